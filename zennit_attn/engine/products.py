"""Operator rules of products and attention, in the gradient form.

Sources: AttnLRP (Achtibat et al. 2024), prop. 3.1 to 3.3; CP-LRP (Ali et al. 2022); MambaLRP (Jafari et al. 2024).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .basic import Rule
from .functions import Normalize, Scale, ScaleEach, Value
from .gates import ACTIVATION, NEVER, WEIGHT, mark, mixed, strength
from .operands import depends, operands, swap, swap_call


def uniform(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Give each of the N operands that depend on the input the N-th part (AttnLRP, prop. 3.2 and 3.3)."""
    if len(args) == 2 and not kwargs and isinstance(args[0], Tensor):
        # nearly every product of a forward, and small models feel each line
        first, second = args
        count = first.requires_grad + (isinstance(second, Tensor) and second.requires_grad)
    else:
        count = len(operands(args, kwargs))
    output = function(*args, **kwargs)
    return output if count < 2 else Scale.apply(output, 1 / count)


def carrying(rule: Rule, places: slice = slice(None)) -> Rule:
    """Let what a function makes of gates alone be a gate: moved, cast, negated, renormalised.

    Parameters
    ----------
    rule : callable
        Rule of the function.
    places : slice, optional
        Arguments that count: the first of routing and of divisions, all of a sum (default).
    """
    everything = places == slice(None)

    def carried(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # by name, the first argument is one of all
        counted = kwargs if everything or not args else {}
        degree = min(map(strength, operands(args[places], counted)), default=0)
        output = rule(function, args, kwargs)
        if output is None and args:
            mark(args[0], degree)  # what was written to
        return mark(output, degree)

    return carried


def weights(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Leave a softmax to autograd: it is a constant where it weights something, and has a share where it does not.

    The share is that of its Taylor expansion, of which the bias keeps the rest (AttnLRP, prop. 3.1).
    """
    return mark(function(*args, **kwargs), WEIGHT)


def gate(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], least: int = ACTIVATION) -> Any:
    """Take the factor that is a gate as a constant: the other one gets everything (CP-LRP).

    Of two gates it is the one that is more surely one; two of one degree get equal shares.
    """
    factors = operands(args, kwargs)
    if least > ACTIVATION and len(factors) < 2:
        # a matrix of constants mixes gates, which are none then
        output = function(*args, **kwargs)
        return mixed(factors[0], output) if factors else output
    degrees = [degree if degree >= least else 0 for degree in map(strength, factors)]
    if len(degrees) == 2 and degrees[0] != degrees[1]:
        output = swap_call(function, args, kwargs, without(max(degrees)))
    else:
        output = uniform(function, args, kwargs)
    return mark(output, min(degrees, default=0))


def without(degree: int) -> Any:
    """Return what takes gates of a degree as constants."""
    return lambda value: value.detach() if strength(value) == degree else value


def elements(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Share ``prod`` and ``cumprod`` uniformly among the elements that are multiplied."""
    output = function(*args, **kwargs)
    if not depends(output):
        return output
    input = args[0] if args else kwargs["input"]
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if not isinstance(dim, int):
        return Scale.apply(output, 1 / input.numel())
    if output.shape != input.shape:
        return Scale.apply(output, 1 / input.shape[dim])
    # cumprod: the n-th output has n factors
    counts = torch.arange(1, input.shape[dim] + 1, device=input.device, dtype=output.dtype)
    shares = counts.reciprocal().reshape([-1 if axis == dim % input.ndim else 1 for axis in range(input.ndim)])
    return Normalize.apply(output, output.detach(), shares, None, None)


def similarity(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Take the norms in ``cosine_similarity`` as constants and share the product uniformly; its value stays."""

    def run(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Any:
        value = function(x1.detach(), x2.detach(), dim, eps)
        if not (depends(x1) or depends(x2)):
            return value
        x1, x2 = torch.broadcast_tensors(x1, x2)
        norms = [x.detach().norm(dim=dim).clamp_min(eps) for x in (x1, x2)]
        return Value.apply(uniform(torch.mul, (x1, x2), {}).sum(dim) / (norms[0] * norms[1]), value)

    return run(*args, **kwargs)


def selected(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Take B and C of a selective state space as constants where they are split off (MambaLRP).

    Their sizes are the last two of three, and equal.
    """
    parts = function(*args, **kwargs)
    sizes = [part.shape for part in parts]
    if len(parts) == 3 and sizes[1] == sizes[2]:
        return type(parts)((parts[0], parts[1].detach(), parts[2].detach()))
    return parts


def halved(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], places: slice, other: str, least: int = NEVER
) -> Any:
    """Call a function of a product and a summand: the factors, if both depend on the input, get half each.

    Factors are the arguments at ``places``, and those given by any name that is not ``other``. Of gates of a degree of
    at least ``least`` the one that is more surely one is a constant, as in :func:`gate`.
    """
    named = {name: value for name, value in kwargs.items() if name != other}
    degrees = [strength(value) for value in (*args[places], *named.values()) if depends(value)]
    if len(degrees) < 2:
        return function(*args, **kwargs)
    decided = max(degrees) >= least and min(degrees) < max(degrees)
    change = without(max(degrees)) if decided else lambda value: Scale.apply(value, 0.5)
    changed = list(args)
    changed[places] = (swap(value, change) for value in args[places])
    return function(*changed, **{**kwargs, **{name: swap(value, change) for name, value in named.items()}})


def added(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], least: int = NEVER) -> Any:
    """Share the product in ``input + a * b`` uniformly, unless one is a gate; the sum is linear."""
    return halved(function, args, kwargs, slice(1, None), "input", least)


def weighted_sum(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], least: int = NEVER) -> Any:
    """Share ``W x`` uniformly where the weight depends on the input, too, unless one is a gate; the bias is added."""
    # nearly every layer of a forward: no call more than it takes
    if len(args) > 1 and isinstance(args[1], Tensor) and not args[1].requires_grad:
        output = function(*args, **kwargs)
        return output if least == NEVER else mixed(args[0], output)
    return halved(function, args, kwargs, slice(2), "bias", least)


def uniform_attention(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Give half to the value, a quarter each to query and key (AttnLRP, prop. 3.1 and 3.3).

    What does not depend on the input, such as a learned query, takes no part, and the other side gets its share.
    """
    sides, rest, kwargs = attention_arguments(args, kwargs)
    query, key, value, mask = map(depends, sides)
    scores = 0.5 if value else 1.0
    factor = scores / 2 if query and key else scores
    # a mask that depends on the input is added to the scores
    shares = (factor, factor, 0.5 if query or key or mask else 1.0, scores)
    factors = {place: share for place, share in enumerate(shares) if share != 1 and depends(sides[place])}
    if factors:
        # one node for all: small models feel each
        scaled = ScaleEach.apply(tuple(factors.values()), *(sides[place] for place in factors))
        for place, side in zip(factors, scaled, strict=True):
            sides[place] = side
    return function(*sides, *rest, **kwargs)


def value_attention(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Give everything to the value (CP-LRP, AH rule)."""
    (query, key, value, mask), rest, kwargs = attention_arguments(args, kwargs)
    return function(query.detach(), key.detach(), value, swap(mask, Tensor.detach), *rest, **kwargs)


def attention_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], tuple[Any, ...], Any]:
    """Split the arguments of fused attention into query, key, value and mask, more positional ones, and the others."""
    kwargs = dict(kwargs)
    sides = list(args[:4])
    sides += [kwargs.pop(name, None) for name in ("query", "key", "value", "attn_mask")[len(sides) :]]
    return sides, args[4:], kwargs
