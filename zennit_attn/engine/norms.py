"""Operator rules of normalisation, in the gradient form: statistics are constants (LN rule).

A weight or a bias that depends on the input has no rule: it is reported.

Sources: Ali et al. 2022; AttnLRP (Achtibat et al. 2024), prop. 3.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .basic import unknown
from .functions import Normalize
from .operands import depends, swap, swap_call


def statistics(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Treat the first of two statistics as a constant: the mean that comes with it is linear."""
    spread, mean = function(*args, **kwargs)
    return spread.detach(), mean


def division(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Take the denominator as a constant (LN rule); what is rounded has no rule."""
    if kwargs.get("rounding_mode") is not None:
        return unknown(function, args, kwargs)
    if "other" in kwargs:
        return function(*args, **{**kwargs, "other": swap(kwargs["other"], Tensor.detach)})
    return function(args[0], *(swap(value, Tensor.detach) for value in args[1:]), **kwargs)


def added_division(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Take the denominator in ``input + a / b`` as a constant."""
    if "tensor2" in kwargs:
        return function(*args, **{**kwargs, "tensor2": swap(kwargs["tensor2"], Tensor.detach)})
    return function(*args[:2], swap(args[2], Tensor.detach), *args[3:], **kwargs)


def reversed_division(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Divide ``other / input``, called as a method of the denominator."""
    if not args:
        return function(**{**kwargs, "A": swap(kwargs["A"], Tensor.detach)})
    return function(swap(args[0], Tensor.detach), *args[1:], **kwargs)


def unit(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Divide by a norm, which is a constant: ``torch.nn.functional.normalize``."""

    def run(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None) -> Tensor:
        return input / input.detach().norm(p, dim, keepdim=True).clamp_min(eps).expand_as(input)

    return run(*args, **kwargs)


def wide(input: Tensor) -> Tensor:
    """Return the input in float32 or better, as the kernels compute statistics."""
    return input if input.dtype == torch.float64 else input.float()


def layer_norm(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Take the standard deviation as a constant; mean and affine are linear (LN rule; AttnLRP, prop. 3.4)."""

    def run(
        input: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        cudnn_enable: bool = True,
    ) -> Any:
        if not depends(input):
            return function(*args, **kwargs)
        if depends(weight) or depends(bias):
            return unknown(function, args, kwargs)
        dims = tuple(range(-len(normalized_shape), 0))
        with torch.no_grad():
            tensors: tuple[Any, ...] = (input, weight, bias)
            device = input.device.type
            if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                # autocast takes layer_norm to float32, but not the kernel that it calls
                tensors = tuple(None if value is None else value.float() for value in tensors)
            # that kernel also returns the statistics
            output, _, rstd = torch.native_layer_norm(tensors[0], tuple(normalized_shape), tensors[1], tensors[2], eps)
        return Normalize.apply(input, output, rstd, weight, lambda signal: signal - signal.mean(dims, keepdim=True))

    return run(*args, **kwargs)


def rms_norm(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Take the root mean square as a constant (LN rule)."""

    def run(
        input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
    ) -> Any:
        if not depends(input):
            return function(*args, **kwargs)
        if depends(weight):
            return unknown(function, args, kwargs)
        dims = tuple(range(-len(normalized_shape), 0))
        with torch.no_grad():
            output = function(*args, **kwargs)
            smallest = torch.finfo(input.dtype).eps if eps is None else eps
            rstd = torch.rsqrt(wide(input).square().mean(dims, keepdim=True) + smallest)
        return Normalize.apply(input, output, rstd, weight, None)

    return run(*args, **kwargs)


def group_norm(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Take the standard deviation of groups of channels as a constant (LN rule)."""

    def run(
        input: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        cudnn_enabled: bool = True,
    ) -> Any:
        if depends(weight) or depends(bias):
            return unknown(function, args, kwargs)
        return grouped(function, args, kwargs, input, num_groups, weight, eps)

    return run(*args, **kwargs)


def instance_norm(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Take the standard deviation of each channel as a constant (LN rule)."""

    def run(
        input: Tensor,
        running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        use_input_stats: bool = True,
        momentum: float = 0.1,
        eps: float = 1e-5,
        cudnn_enabled: bool = True,
    ) -> Any:
        if depends(weight) or depends(bias):
            return unknown(function, args, kwargs)
        if not use_input_stats:
            return function(*args, **kwargs)
        return grouped(function, args, kwargs, input, input.shape[1], weight, eps)

    # torch.instance_norm has weight and bias before the running statistics
    ordered = (args[0], *args[3:5], *args[1:3], *args[5:]) if function is torch.instance_norm else args
    return run(*ordered, **kwargs)


def grouped(
    function: Any, args: Any, kwargs: Any, input: Tensor, groups: int, weight: Tensor | None, eps: float
) -> Any:
    """Normalise groups of channels of ``(batch, channels, ...)`` by the LN rule."""
    if not depends(input):
        return function(*args, **kwargs)
    per_channel = (1, input.shape[1], *(1,) * (input.ndim - 2))
    with torch.no_grad():
        output = function(*args, **kwargs)
        parts = wide(input).reshape(input.shape[0], groups, -1)
        rstd = torch.rsqrt(parts.var(-1, unbiased=False, keepdim=True) + eps).expand_as(parts)
        rstd = rstd[:, :, : input.shape[1] // groups].reshape(input.shape[0], *per_channel[1:])

    def center(signal: Tensor) -> Tensor:
        parts = signal.reshape(signal.shape[0], groups, -1)
        return (parts - parts.mean(-1, keepdim=True)).reshape(signal.shape)

    weight = None if weight is None else weight.reshape(per_channel)
    return Normalize.apply(input, output, rstd, weight, center)


def batch_norm(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Take running statistics as a linear map; with the batch's own statistics there is no rule."""

    def run(
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
        cudnn_enabled: bool = True,
    ) -> Any:
        if not depends(input):
            return function(*args, **kwargs)
        if depends(weight) or depends(bias):
            return unknown(function, args, kwargs)
        if training or running_var is None:
            raise RuntimeError(
                "batch_norm with the statistics of the batch (training mode) mixes the samples that it explains; "
                "expected running statistics, and model.eval() before the explanation."
            )
        per_channel = (1, -1, *(1,) * (input.ndim - 2))
        with torch.no_grad():
            output = function(*args, **kwargs)
            rstd = torch.rsqrt(running_var + eps).reshape(per_channel)
        # PyTorch's own backward pass is wrong on the CPU for strided gradients of a single sample
        return Normalize.apply(input, output, rstd, None if weight is None else weight.reshape(per_channel), None)

    # torch.batch_norm has weight and bias before the running statistics
    ordered = (args[0], *args[3:5], *args[1:3], *args[5:]) if function is torch.batch_norm else args
    return run(*ordered, **kwargs)


def log_softmax(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Take the normaliser, the logarithm of the sum of exponentials, as a constant."""
    output = swap_call(function, args, kwargs, Tensor.detach)
    input = kwargs.get("input", args[0] if args else None)
    return Normalize.apply(input, output, output.new_ones(()), None, None) if depends(input) else output
