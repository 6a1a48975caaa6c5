"""Operator rules of element-wise functions: relevance passes as it is (identity rule; AttnLRP, eq. 9)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .basic import Rule, constant, plain, unknown
from .functions import Enter, Leave, Route, Scale, Slope, Value
from .gates import ACTIVATION, SCALE, mark, strength
from .operands import Form, depends, operands


def ratio(function: Callable[[Tensor], Tensor], input: Tensor) -> Tensor:
    """Return ``f(x) / x``, in float32 or better; zero where x is exactly zero and carries no relevance."""
    wide = input if input.dtype in (torch.float32, torch.float64) else input.float()
    return torch.where(wide == 0, torch.zeros_like(wide), function(wide) / wide).to(input.dtype)


def gelu_slope(input: Tensor, approximate: str = "none") -> Tensor:
    """Return the slope of GELU: the normal distribution function, or its tanh approximation."""
    if approximate == "none":
        return 0.5 * (1 + torch.erf(input * math.sqrt(0.5)))
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (input + 0.044715 * input**3)))


#: Slopes in closed form; every other element-wise function has :func:`ratio`.
SLOPES: dict[str, Callable[..., Tensor]] = {
    "silu": torch.sigmoid,
    "gelu": gelu_slope,
    "mish": lambda input: torch.tanh(F.softplus(input)),
    "softsign": lambda input: 1 / (1 + input.abs()),
    "hardswish": F.hardsigmoid,
    "square": lambda input: input,
    # piecewise linear through zero: the slope is the derivative
    "relu": lambda input: (input > 0).to(input.dtype),
    "leaky_relu": lambda input, negative_slope=0.01: (
        (input > 0).to(input.dtype) * (1 - negative_slope) + negative_slope
    ),
}


#: Functions that bound their input, and that wrap it: what they make is no gate.
BOUNDS = ("clamp", "clip")
PERIODIC = ("remainder", "fmod")

#: Functions that make scales: bounded or positive, and not zero where their input is.
SCALES = ("sigmoid", "expit", "hardsigmoid", "logsigmoid", "softplus")


def elementwise(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Split the input of an element-wise function from its other arguments, without the order to write in place."""
    kwargs = dict(kwargs)
    if args:
        input, args = args[0], args[1:]
    else:
        input = kwargs.pop("input")
    kwargs.pop("inplace", None)
    # torch.nn.functional writes `inplace` last in every signature that has it
    if args and isinstance(args[-1], bool):
        args = args[:-1]
    return input, args, kwargs


def activation_call(
    form: Form,
    function: Callable[[Tensor], Tensor],
    input: Tensor,
    slope: Callable[[Tensor], Tensor] | None = None,
    degree: int = ACTIVATION,
) -> Tensor:
    """Call an element-wise function with the identity rule as its backward pass (AttnLRP, eq. 9).

    Parameters
    ----------
    form : {"relevance", "gradient"}
        In the relevance form relevance passes as it is, in the gradient form it is times the slope ``f(x) / x``.
    function : callable
        ``f``, of the input alone.
    input : torch.Tensor
        ``x``.
    slope : callable, optional
        The slope in closed form.
    degree : int, optional
        How surely the output is a gate where it becomes a factor; it is no less one than the input.
    """
    if not depends(input):
        return function(input)
    drops, degree = degree == SCALE, max(degree, strength(input))
    if form == "relevance":
        return mark(Route.apply(input, function, drops), degree)
    return mark(Slope.apply(input, function, partial(ratio, function) if slope is None else slope), degree)


def activation(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str, form: Form) -> Any:
    """Pass relevance on through an element-wise function of torch."""
    input, args, kwargs = elementwise(function, args, kwargs)
    if (args or kwargs) and operands(args, kwargs):
        # a bound that depends on the input is chosen among, as by `maximum`; other parameters have no rule
        rule = plain if name.startswith(BOUNDS) else unknown
        return rule(function, (input, *args), kwargs)
    # 2 ** x has a number there
    if isinstance(input, Tensor) and input.is_complex():
        return complex_activation(function, (input, *args), kwargs, name, form)
    slope = SLOPES.get(name)
    if slope is not None and (args or kwargs):
        # the slope takes the function's own arguments, by position or by name
        slope = partial(lambda closed, x: closed(x, *args, **kwargs), slope)
    degree = 0 if name.startswith((*BOUNDS, *PERIODIC)) else SCALE if name in SCALES else ACTIVATION
    return activation_call(form, lambda x: function(x, *args, **kwargs), input, slope, degree)


def complex_activation(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str, form: Form) -> Any:
    """Share the relevance of an absolute value in proportion to the squares of the real and the imaginary part.

    That is plain autograd in the gradient form, as for every root of a sum of squares. Others have no rule.
    """
    if name not in ("abs", "absolute") or not depends(args[0]):
        return unknown(function, args, kwargs)
    if form == "gradient":
        return mark(function(*args, **kwargs))
    return mark(Leave.apply(function(Enter.apply(args[0]), *args[1:], **kwargs)))


def exponential(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Leave ``exp`` to autograd, its Taylor expansion, of which the bias keeps a share as that of the softmax does.

    It makes weights and decays, which change little where their exponent is small, whatever the exponent's relevance.
    """
    return mark(function(*args, **kwargs), SCALE)


def gated_unit(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], product: Rule) -> Any:
    """Take ``glu(a, b) = a * sigmoid(b)`` as what it is made of; its value stays the kernel's."""

    def run(input: Tensor, dim: int = -1) -> Any:
        if not depends(input):
            return function(input, dim)
        value, gate = input.chunk(2, dim)
        gate = activation_call("gradient", torch.sigmoid, gate, degree=SCALE)
        return Value.apply(product(torch.mul, (value, gate), {}), function(input.detach(), dim))

    return run(*args, **kwargs)


def power(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str, form: Form) -> Any:
    """Take ``x ** n`` as a reciprocal for negative n, as an element-wise function otherwise."""
    exponent = kwargs.get("exponent", args[1] if len(args) > 1 else None)
    if isinstance(exponent, Tensor) and exponent.requires_grad:
        return unknown(function, args, kwargs)
    if not isinstance(exponent, (int, float)):
        return activation(function, args, kwargs, name, form)
    if exponent < 0:
        return constant(function, args, kwargs)
    if form == "relevance" or exponent < 1:
        # below 1 the derivative at zero is infinite
        return activation(function, args, kwargs, name, form)
    if exponent == 2 and name == "pow" and args:
        # how torch computes a square; the slope is the factor that keeps the graph out
        if not depends(args[0]):
            return function(*args, **kwargs)
        return mark(args[0] * args[0].detach(), max(ACTIVATION, strength(args[0])))
    # the slope x ** (n - 1) is the derivative over n
    output = function(*args, **kwargs)
    if not depends(output):
        return output
    return mark(Scale.apply(output, 1 / exponent), max(ACTIVATION, strength(args[0] if args else kwargs["input"])))
