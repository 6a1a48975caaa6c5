"""Linear layers, with another weight: what the rules that look at signs compute beside a layer's own output.

This module does not know rules: see :mod:`zennit_attn.rules`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.nn.grad import conv1d_input, conv2d_input, conv3d_input

from .functions import unwritten

_CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
#: Linear maps of transformers, which need not be installed for this, with a forward of their own.
_WRITTEN_OUT = {
    "transformers.pytorch_utils.Conv1D": "transposed linear",
    "transformers.models.falcon.modeling_falcon.FalconLinear": "linear",
}
_TRANSPOSED = (torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d)


def linear_kind(module: torch.nn.Module) -> str | None:
    """Return which linear map a module is by its forward, None for others (quantised, adapted, subclassed forwards)."""
    forward = type(module).forward
    if forward is torch.nn.Linear.forward:
        return "linear"
    if any(forward is base.forward for base in _CONVOLUTIONS):
        return "convolution"
    if any(forward is base.forward for base in _TRANSPOSED):
        return "transposed convolution"
    return _WRITTEN_OUT.get(f"{type(module).__module__}.{type(module).__name__}")


def linear_map(
    module: Any, input: Tensor, weight: Tensor, output: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """Apply a module's linear map with another weight and bias.

    Parameters
    ----------
    module : torch.nn.Module
        Module of a kind that :func:`linear_kind` knows.
    input : torch.Tensor
        Its input.
    weight : torch.Tensor
        The weight to use, of the shape of the module's.
    output : torch.Tensor, optional
        An output of the module: its spatial size decides that of a transposed convolution's.
    bias : torch.Tensor, optional
        The bias to use, none by default.
    """
    kind = linear_kind(module)
    if kind == "linear":
        return F.linear(input, weight, bias)
    if kind == "transposed linear":
        return input @ weight if bias is None else input @ weight + bias
    if kind == "convolution":
        return module._conv_forward(input, weight, bias)
    spatial = len(module.kernel_size)
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[spatial - 1]
    padding = [
        (0 if output is None else output.shape[-spatial + axis])
        - (input.shape[-spatial + axis] - 1) * module.stride[axis]
        + 2 * module.padding[axis]
        - module.dilation[axis] * (module.kernel_size[axis] - 1)
        - 1
        for axis in range(spatial)
    ]
    extra = module.output_padding if output is None else padding
    return function(input, weight, bias, module.stride, module.padding, extra, module.groups, module.dilation)


def linear_vjp(module: Any, input: Tensor, weight: Tensor, signal: Tensor) -> Tensor:
    """Return the vector-Jacobian product of :func:`linear_map` at ``input``, without its forward where there is a way.

    Parameters
    ----------
    module : torch.nn.Module
        Module of a kind that :func:`linear_kind` knows.
    input : torch.Tensor
        Its input; for most kinds only the shape is used.
    weight : torch.Tensor
        The weight to use.
    signal : torch.Tensor
        Signal at the output.
    """
    kind = linear_kind(module)
    if kind == "linear":
        return signal @ weight
    if kind == "transposed linear":
        return signal @ weight.T
    spatial = len(module.kernel_size)
    settings = (module.stride, module.padding, module.dilation, module.groups)
    if kind == "transposed convolution":
        # the transpose of a transposed convolution is the convolution with the same weight
        product = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1](signal, weight, None, *settings)
        for axis in range(-spatial, 0):
            # output padding of a stride or more adds rows that no input has a part in
            if product.shape[axis] > input.shape[axis]:
                product = product.narrow(axis, 0, input.shape[axis])
        return product
    if module.padding_mode == "zeros" and not isinstance(module.padding, str) and input.ndim == spatial + 2:
        function = (conv1d_input, conv2d_input, conv3d_input)[spatial - 1]
        return function(input.shape, weight, signal, *settings)
    second_order = torch.is_grad_enabled()
    with torch.enable_grad():
        point = torch.zeros_like(input, requires_grad=True)
        output = linear_map(module, point, weight)
        return torch.autograd.grad(output, point, signal, create_graph=second_order)[0]


class AbsoluteProduct(Function):
    """``A = |W| |x| + |b|``; backward: ``sign(x) * |W|ᵀ t``, with ``|W|`` made anew, so that no copy of it is kept."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, module: Any, output: Tensor, bias: Tensor | None) -> Tensor:
        # the weight, too: it may be another one when the backward pass comes (functional_call, offloaded weights)
        ctx.save_for_backward(unwritten(input), module.weight)
        ctx.module = module
        return linear_map(module, input.abs(), module.weight.abs(), output, None if bias is None else bias.abs())

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> tuple[Tensor, None, None, None]:
        input, weight = ctx.saved_tensors
        return input.sign() * linear_vjp(ctx.module, input, weight.abs(), signal), None, None, None


class SignedProduct(Function):
    """The contributions ``W_ij x_j`` of one sign, summed; backward: the vector-Jacobian product of that sum.

    Computed from the parts of weight and input that have a sign each, not as a difference of ``W x`` and ``|W| |x|``:
    where nearly all contributions have the other sign, that difference is rounding (ZPlus in float32 was off by 9 %,
    AlphaBeta by 36 %, after a ReLU).
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, module: Any, output: Tensor, sign: int) -> Tensor:
        ctx.save_for_backward(unwritten(input), module.weight)
        ctx.module, ctx.sign = module, sign
        positive, negative = signed_weights(module.weight, sign)
        return linear_map(module, input.clamp(min=0), positive, output) + linear_map(
            module, input.clamp(max=0), negative, output
        )

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> tuple[Tensor, None, None, None]:
        input, weight = ctx.saved_tensors
        positive, negative = signed_weights(weight, ctx.sign)
        at_positive = linear_vjp(ctx.module, input, positive, signal)
        at_negative = linear_vjp(ctx.module, input, negative, signal)
        return torch.where(input > 0, at_positive, at_negative), None, None, None


def signed_weights(weight: Tensor, sign: int) -> tuple[Tensor, Tensor]:
    """Return the weights that make contributions of a sign of positive inputs, and of negative ones."""
    parts = weight.clamp(min=0), weight.clamp(max=0)
    return parts if sign > 0 else parts[::-1]
