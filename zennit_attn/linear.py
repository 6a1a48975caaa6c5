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

_CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
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
    # transformers need not be installed for this: its Conv1D is a Linear with a transposed weight
    if type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils":
        return "transposed linear"
    return None


def linear_map(module: Any, input: Tensor, weight: Tensor, output: Tensor | None = None) -> Tensor:
    """Apply a module's linear map, without its bias, with another weight.

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
    """
    kind = linear_kind(module)
    if kind == "linear":
        return F.linear(input, weight)
    if kind == "transposed linear":
        return input @ weight
    if kind == "convolution":
        return module._conv_forward(input, weight, None)
    spatial = len(module.kernel_size)
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[spatial - 1]
    size = None if output is None else list(output.shape[-spatial:])
    padding = module._output_padding(
        input, size, module.stride, module.padding, module.kernel_size, spatial, module.dilation
    )
    return function(input, weight, None, module.stride, module.padding, padding, module.groups, module.dilation)


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
        return (F.conv1d, F.conv2d, F.conv3d)[spatial - 1](signal, weight, None, *settings)
    if module.padding_mode == "zeros" and not isinstance(module.padding, str) and input.ndim == spatial + 2:
        function = (conv1d_input, conv2d_input, conv3d_input)[spatial - 1]
        return function(input.shape, weight, signal, *settings)
    with torch.enable_grad():
        point = torch.zeros_like(input, requires_grad=True)
        return torch.autograd.grad(
            linear_map(module, point, weight), point, signal, create_graph=torch.is_grad_enabled()
        )[0]


class AbsoluteProduct(Function):
    """``A = |W| |x|``; backward: ``sign(x) * |W|ᵀ t``, with ``|W|`` made anew, so that no copy of it is kept."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, module: Any, output: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        ctx.module = module
        return linear_map(module, input.abs(), module.weight.abs(), output)

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> tuple[Tensor, None, None]:
        (input,) = ctx.saved_tensors
        return input.sign() * linear_vjp(ctx.module, input, ctx.module.weight.abs(), signal), None, None
