"""Autograd functions that carry relevance: each is an identity, or a known map, with a backward pass of its own.

A signal is propagated in one of two forms. In the *gradient form* the backward signal at a tensor ``a`` is
``g_a = R_a / a``, in the *relevance form* it is ``R_a`` itself. Every rule is written once, in the gradient form;
:class:`Enter` and :class:`Leave` put it between two changes of form.

This module does not decide which rule is applied where: see :mod:`zennit_attn.engine.operators`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def multiply(input: Tensor, gradient: Tensor) -> Tensor:
    """Relevance ``input * gradient``, where a gradient of zero carries no relevance, even at infinite inputs.

    Infinite values are what additive masks leave behind (``-inf`` scores), and ``-inf * 0`` would be NaN.
    """
    if gradient.is_complex():
        return complex_parts(multiply, input, gradient)
    return torch.where(gradient == 0, gradient, input * gradient)


def divide(relevance: Tensor, output: Tensor) -> Tensor:
    """Gradient ``relevance / output``, where no relevance gives no gradient, even at outputs that are exactly zero.

    Relevance at an exact zero cannot be written as a gradient: the result is infinite there, on purpose, so that it
    shows as a relevance that is not finite.
    """
    if relevance.is_complex():
        return complex_parts(divide, relevance, output)
    return torch.where(relevance == 0, relevance, relevance / output)


def complex_parts(change: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor) -> Tensor:
    """Change form at real and imaginary parts, which are two real tensors as far as relevance goes."""
    parts = (torch.view_as_real(value.resolve_conj()) for value in (first, second))
    return torch.view_as_complex(change(*parts))


def unwritten(tensor: Tensor) -> Tensor:
    """Return a tensor to save for the backward pass: torch refuses one that was written to, a trace would take it."""
    return tensor.clone() if torch.compiler.is_compiling() else tensor


class Snapshot:
    """The value of a tensor at the time of a forward pass, kept over later in-place writes to its memory.

    Parameters
    ----------
    tensor : torch.Tensor
        Tensor of which the values are needed in the backward pass.
    """

    __slots__ = ("__weakref__", "tensor")
    live: weakref.WeakSet[Snapshot] = weakref.WeakSet()

    def __init__(self, tensor: Tensor) -> None:
        if torch.compiler.is_compiling():
            # a trace knows nothing of the writes that come later, and turns copies that need not be into none
            self.tensor = tensor.detach().clone()
        else:
            self.tensor = tensor.detach()
            self.live.add(self)

    @classmethod
    def protect(cls, tensor: Tensor) -> None:
        """Give every snapshot that shares memory with ``tensor`` a copy of its own, before ``tensor`` is written to."""
        if torch.compiler.is_compiling():
            return
        memory = tensor.untyped_storage().data_ptr()
        for snapshot in cls.live:
            if snapshot.tensor.untyped_storage().data_ptr() == memory:
                snapshot.tensor = snapshot.tensor.clone()


def require_first_order() -> None:
    """Raise where a graph of the relevance form's backward pass is asked for: it would miss the rules' denominators."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "create_graph=True is not possible in the relevance form; expected the gradient form for second-order "
            "gradients: convert the composite with zennit_attn.input_x_gradient(composite)."
        )


class Enter(Function):
    """Identity on an operation's input; backward: from gradient to relevance, ``R = x * g``."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.input = Snapshot(input)
        return input.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        require_first_order()
        return multiply(ctx.input.tensor, gradient)


class Leave(Function):
    """Identity on an operation's output; backward: from relevance to gradient, ``g = R / z``."""

    @staticmethod
    def forward(ctx: Any, output: Tensor) -> Tensor:
        ctx.output = Snapshot(output)
        return output.detach()

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> Tensor:
        return divide(relevance, ctx.output.tensor)


class Scale(Function):
    """Identity; backward: the gradient times a constant, as the uniform rule shares it among N operands."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return input.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


class ScaleEach(Function):
    """Identities of several tensors; backward: each gradient times a constant of its own."""

    @staticmethod
    def forward(ctx: Any, factors: tuple[float, ...], *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.factors = factors
        return tuple(input.detach() for input in inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(gradient * factor for gradient, factor in zip(gradients, ctx.factors, strict=True))


class Value(Function):
    """The value of one tensor with the graph of another one, which is equal up to rounding."""

    @staticmethod
    def forward(ctx: Any, graph: Tensor, value: Tensor) -> Tensor:
        return value.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class Route(Function):
    """An element-wise function; backward: the gradient, or relevance, as it came: identity rule.

    Parameters
    ----------
    input : torch.Tensor
        Input of the function.
    function : callable
        The function, of the input alone.
    drops : bool
        Whether to drop relevance at inputs of exactly zero, as the gradient form does: where ``f(0)`` is not zero, it
        is all a constant's, and what is below could not divide it by zero.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, function: Callable[[Tensor], Tensor], drops: bool = False) -> Tensor:
        ctx.kept = input != 0 if drops else None
        return function(input)

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor, None, None]:
        return relevance if ctx.kept is None else relevance * ctx.kept, None, None


class Slope(Function):
    """An element-wise function ``f``; backward: ``g * slope(x)`` with ``slope(x) = f(x) / x``.

    Parameters
    ----------
    input : torch.Tensor
        Input ``x`` of the element-wise function.
    function : callable
        ``f``, of the input alone.
    slope : callable
        ``(x: Tensor) -> Tensor``, in the data type that it is given.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, function: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]
    ) -> Tensor:
        ctx.save_for_backward(unwritten(input))
        ctx.slope = slope
        return function(input)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (input,) = ctx.saved_tensors
        return gradient * ctx.slope(input), None, None


class Normalize(Function):
    """A normalisation layer's output; backward: its statistics are constants (LN rule).

    ``y = w * (x - mean) * rstd + b`` passes back ``g_x = rstd * (h - mean(h))`` with ``h = w * g``; without centering
    (RMSNorm) ``g_x = rstd * h``.

    Parameters
    ----------
    input : torch.Tensor
        Input ``x``, of any shape.
    output : torch.Tensor
        Output ``y`` of the same shape, without a graph.
    rstd : torch.Tensor
        Reciprocal of the standard deviation, broadcastable to ``x``.
    weight : torch.Tensor or None
        Affine weight, broadcastable to ``x``.
    center : callable or None
        ``(h: Tensor) -> Tensor`` subtracts the mean over the normalised elements.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, output: Tensor, rstd: Tensor, weight: Tensor | None, center: Any) -> Tensor:
        ctx.save_for_backward(rstd, weight)
        ctx.center = center
        return output.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        rstd, weight = ctx.saved_tensors
        signal = gradient if weight is None else gradient * weight
        if ctx.center is not None:
            signal = ctx.center(signal)
        return (signal * rstd).to(gradient.dtype), None, None, None, None
