"""The choice among latents: by kind, name or pattern."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import torch

from ..errors import InputError
from ..hints import nearest
from .features import Features
from .latent import KINDS, Latent
from .places import latents_of


def fits(latent: Latent, entry: str) -> bool:
    """Tell whether a kind, a name or a pattern means a latent."""
    return latent.kind == entry or fnmatch.fnmatchcase(latent.name, entry)


def chosen(model: torch.nn.Module, wanted: Sequence[str | Features]) -> tuple[list[Latent], list[Features]]:
    """Return the latents of kinds, names or patterns, and the features among them.

    Raises
    ------
    InputError
        If a name fits none.
    """
    known = latents_of(model)
    found: dict[str, Latent] = {}
    features = [entry for entry in wanted if isinstance(entry, Features)]
    for entry in wanted:
        if isinstance(entry, Features):
            continue
        fitting = [name for name, latent in known.items() if fits(latent, entry)]
        if not fitting:
            has = [kind for kind in KINDS if any(latent.kind == kind for latent in known.values())]
            raise InputError(
                f"latents got {entry!r}, which fits none of {type(model).__name__}; expected one of {KINDS}, of which "
                f"this model has {has}, the name of one, or a pattern; {nearest(entry, [*KINDS, *known])}"
            )
        found.update((name, known[name]) for name in fitting)
    return list(found.values()), features
