"""Where relevance stops being finite: the first module in which a NaN or an infinite value appears.

This module does not say why: overflow in a forward in float16 and relevance at an input of exactly zero are the usual
reasons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..errors import NotFiniteError
from .handles import Kept
from .names import names_of


@contextmanager
def watch(model: torch.nn.Module) -> Iterator[Callable[[Any], None]]:
    """Check every module's inputs and outputs: values in the forward passes inside, signals in their backward passes.

    Parameters
    ----------
    model : torch.nn.Module
        Model to watch. Each check waits for the device.

    Yields
    ------
    callable
        Checks what is explained of the model's output: no sample of it may be without a finite value.

    Raises
    ------
    NotFiniteError
        If the output or a backward signal is not finite, with the innermost module at which that began. What a model
        computes for padding, and throws away, may be NaN.
    """
    overflow: list[str] = []
    places: dict[int, tuple[Tensor, list[str]]] = {}

    def note(tensor: Tensor, place: str) -> None:
        if id(tensor) not in places:
            spots: list[str] = []
            # the tensor is kept while the model runs, so that its id stays its own, but not by its own hook
            places[id(tensor)] = tensor, spots
            tensor.register_hook(lambda signal: check_signal(signal, spots, overflow))
        places[id(tensor)][1].append(place)

    def before(module: Any, args: Any, kwargs: Any) -> None:
        for tensor in differentiable((args, kwargs)):
            note(tensor, f"the input of {names[module]}")

    def after(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        if any(bool(unusable(value).any()) for value in floating(output)):
            overflow.append(names[module])
        for tensor in differentiable(output):
            note(tensor, f"the output of {names[module]}")

    names = {
        module: f"{name or 'the model itself'!r} ({type(module).__name__})" for module, name in names_of(model).items()
    }

    def refuse(signal: Any) -> None:
        if signal is not None:
            raise NotFiniteError(in_forward(overflow or ["the model itself"]))

    def check_output(output: Any) -> None:
        values = floating(output)
        values = differentiable(values) or values
        lost = list(filter(has_lost, values))
        if lost and len(lost) == len(values):
            refuse(lost)
        for value in differentiable(lost):
            # such as a loss of no label, beside logits that are explained
            value.register_hook(refuse)

    with Kept() as kept:
        for module in names:
            kept.hook(module, before, before=True, with_kwargs=True)
            kept.hook(module, after, with_kwargs=True)
        try:
            yield check_output
        finally:
            places.clear()


def floating(values: Any) -> list[Tensor]:
    """Return the floating-point tensors in nested values."""
    return [value for value in tree_leaves(values) if isinstance(value, Tensor) and value.is_floating_point()]


def has_lost(value: Tensor) -> bool:
    """Tell whether an output has a sample without any finite value."""
    samples = unusable(value).flatten(1) if value.dim() > 1 else unusable(value).reshape(1, -1)
    return samples.numel() > 0 and bool(samples.all(-1).any())


def unusable(value: Tensor) -> Tensor:
    """Return where a tensor is not finite; -inf is a mask."""
    return value.isnan() | value.isposinf()


def differentiable(values: Any) -> list[Tensor]:
    """Return the tensors in nested values that a backward pass may reach."""
    return [value for value in tree_leaves(values) if isinstance(value, Tensor) and value.requires_grad]


def in_forward(overflow: list[str]) -> str:
    """Say where a forward pass left the range of its numbers."""
    return (
        f"got values that are not finite in the forward pass, first in the output of {overflow[0]}; expected none: try "
        "float32 or bfloat16 in place of float16, and padding on the right."
    )


def check_signal(signal: Tensor | None, places: list[str], overflow: list[str]) -> None:
    """Raise NotFiniteError if a backward signal is not finite; where there is none, autograd may give None."""
    if signal is not None and not bool(signal.isfinite().all()):
        if overflow:
            raise NotFiniteError(in_forward(overflow))
        innermost = max(places, key=lambda place: place.count("."))
        raise NotFiniteError(
            f"got {int((~signal.isfinite()).sum())} of {signal.numel()} relevances that are not finite, first at "
            f"{innermost}; expected none. Either the backward pass overflows (try float32 or bfloat16), or a rule "
            "gives relevance to inputs that are exactly zero (Flat, WSquare, ZBox), which only the relevance form can "
            "express: use zennit.attribution.Gradient."
        )
