"""Passes: a forward pass with the places inside, and signals that are passed back from one of them to others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attribution import relevance_of
from ..engine.operands import Form
from ..inputs import Leaves
from .places import Place


@dataclass
class Run:
    """A forward pass: what it was given and returned, and the places inside, in the order of the pass."""

    output: Tensor
    mask: Tensor | None
    leaves: Leaves
    name: str | None
    is_tokens: bool
    padding: Tensor | None
    places: dict[str, Place]
    form: Form

    def sources(self) -> list[Tensor]:
        """Return the leaves of the input."""
        return list(self.leaves[self.name].values())


def passed(root: Tensor, signal: Tensor, sources: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Return the signal at each source, None where there is no path."""
    if not sources:
        return ()
    if not root.requires_grad:
        return (None,) * len(sources)
    return torch.autograd.grad(root, sources, signal, retain_graph=True, allow_unused=True)


def in_form(form: Form, value: Tensor, signal: Tensor | None) -> Tensor:
    """Return relevance, given the signal of a form."""
    if form == "gradient":
        return relevance_of(value, signal).detach()
    return torch.zeros_like(value).detach() if signal is None else signal.detach()
