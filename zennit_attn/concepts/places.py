"""Places: tensors inside of a model at which relevance is recorded, masked, or started."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from zennit.core import Hook

from ..attribution import activation_of
from ..engine.handles import Kept
from ..engine.names import modules_by_name
from ..engine.operands import Form
from ..errors import InputError
from ..hints import nearest
from ..latents import Features, Found, first_of, latents_of, watching


@dataclass
class Place:
    """A tensor inside of a model at which relevance is recorded, masked, or started."""

    tensor: Tensor
    module: torch.nn.Module
    samples: int
    found: Found | None = None

    def shown(self, relevance: Tensor) -> Tensor:
        """Return relevance with the samples first: of a latent by unit."""
        if self.found is not None:
            return self.found.tidy(relevance)
        # windows of an image, for example, are many for each sample
        return relevance if len(relevance) == self.samples else relevance.unflatten(0, (self.samples, -1))

    def activation(self) -> Tensor:
        """Return the activation alike; that of a unit of several elements is their norm."""
        return self.shown(self.tensor.detach()) if self.found is None else activation_of(self.found)


@contextmanager
def looking(
    model: torch.nn.Module,
    names: Sequence[str],
    features: Sequence[Features],
    form: Form,
    note: Callable[[str, Place], None],
) -> Iterator[None]:
    """Call something with each place of some names while a model runs.

    Raises
    ------
    InputError
        If there is no module and no latent of a name, or rules of zennit are put on after it was asked for.
    """
    named, known = modules_by_name(model), latents_of(model)
    own = {feature.name for feature in features}
    unknown = [name for name in names if name not in named and name not in known and name not in own]
    if unknown:
        choices = [*known, *own, *named]
        raise InputError(
            f"got {unknown[0]!r}, which is neither a latent nor a module of {type(model).__name__}; "
            + nearest(unknown[0], choices)
        )
    latents = [name for name in names if name in known]
    # filled by the forward pass
    shape: list[int] = []
    counts = Counter[str]()

    def begin(_: Any, args: Any, kwargs: Any) -> None:
        counts.clear()
        shape[:] = next(value.shape for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor))

    def act(found: Found) -> None:
        if found.latent.kind != "error":
            note(found.latent.name, Place(found.tensor, named[found.latent.module], found.samples, found))

    def comes_out(name: str, module: Any, args: Any, output: Any) -> None:
        tensor = first_of(output)
        if not (isinstance(tensor, Tensor) and tensor.requires_grad):
            return
        # zennit's hooks have a part of the graph of their own, behind which the relevance is the layer's
        hooks = list(module._forward_hooks.values())
        mine_at = next(place for place, hook in enumerate(hooks) if getattr(hook, "hook", None) is mine[name])
        if any(isinstance(getattr(hook, "__self__", None), Hook) for hook in hooks[mine_at + 1 :]):
            raise InputError(
                f"rules of zennit were put on {name!r} after the conditions; expected the attributor to be entered "
                "first: with Gradient(model, composite) as attributor, conditioned(model, conditions): ..."
            )
        counts[name] += 1
        note(name if counts[name] == 1 else f"{name}#{counts[name]}", Place(tensor, module, shape[0]))

    mine = {name: partial(comes_out, name) for name in names if name not in known and name not in own}
    with Kept() as kept, watching(model, [*latents, *features], shape, act, form):
        kept.hook(model, begin, before=True, with_kwargs=True, prepend=True)
        for name, hook in mine.items():
            kept.hook(named[name], hook)
        yield
