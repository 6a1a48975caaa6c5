"""A look at the tensors of latents while a model runs."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..engine.functions import Enter, Leave, Value
from ..engine.gates import mark, strength
from ..engine.handles import FrozenHandle, Kept
from ..engine.names import modules_by_name
from ..engine.operands import Form, depends, explained_leaf
from ..errors import InputError
from ..hints import nearest
from .choice import chosen, fits
from .experts import slots_of
from .features import Features
from .found import Found, found_of
from .latent import WRITERS, Latent
from .places import joined

#: What is done with each tensor that is found.
Act = Callable[[Found], None]


@contextmanager
def watching(
    model: torch.nn.Module,
    wanted: Sequence[str | Features],
    shape: Sequence[int],
    act: Act,
    form: Form = "gradient",
) -> Iterator[None]:
    """Call something with the tensor of each latent while a model runs.

    Parameters
    ----------
    model : torch.nn.Module
        The model, with its rules on: modules that these put in are looked at, too.
    wanted : sequence of str or Features
        Kinds, names or patterns of latents.
    shape : sequence of int
        Shape of the input, which tells batch and tokens.
    act : callable
        ``(found: Found) -> None``.
    form : {"relevance", "gradient"}
        Form of the backward signal.

    Raises
    ------
    InputError
        If there is no such latent, or none of a name was computed of the input.
    """
    latents, features = chosen(model, wanted)
    named, seen = modules_by_name(model), Counter[str]()

    def tell(latent: Latent, tensor: Tensor, index: Tensor | None = None) -> None:
        seen[latent.name] += 1
        if seen[latent.name] > 1:
            latent = replace(latent, name=f"{latent.name}#{seen[latent.name]}")
        act(found_of(latent, tensor, shape, index))

    def goes_in(latent: Latent, module: Any, args: Any) -> Any:
        value = args[0]
        if not depends(value):
            return None
        local = own_view(value)
        tell(latent, local)
        return (local, *args[1:])

    def comes_out(latent: Latent, module: Any, args: Any, output: Any) -> None:
        value = first_of(output)
        if depends(value):
            tell(latent, value)

    def by_expert(latent: Latent, forward: Any, args: Any, kwargs: Any) -> Any:
        module = named[latent.module]
        slots = slots_of(module) or ()
        bound = inspect.signature(type(module).forward).bind(module, *args, **kwargs)
        given = [bound.arguments[key] for key in slots]
        parts = []
        # the sum over the experts of a token, one of them at a time: as many products as before
        for slot in range(given[0].shape[1]):
            bound.arguments.update((key, value[:, slot : slot + 1]) for key, value in zip(slots, given, strict=True))
            parts.append(forward(*bound.args[1:], **bound.kwargs))
        terms = torch.stack(parts, 1)
        if depends(terms):
            tell(latent, terms, given[0])
        return terms.sum(1)

    def decoded(feature: Features, forward: Any, args: Any, kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        value = first_of(output)
        given = value if feature.reads == "output" else next(iter((*args, *kwargs.values())), None)
        if not (depends(value) and depends(given)):
            return output
        encoded = feature.autoencoder.encode(given)
        if not depends(encoded):
            return output
        tell(Latent(feature.name, "feature", feature.module), encoded)
        rebuilt = feature.autoencoder.decode(encoded)
        if form == "gradient":
            error = explained_leaf(value - rebuilt)
            tell(Latent(joined(feature.module, "error"), "error", feature.module, 1), error)
            rebuilt = Value.apply(rebuilt + error, value)
        else:
            # of the output's relevance the features' part: by proportion
            rebuilt = Leave.apply(Value.apply(Enter.apply(rebuilt), value))
        return rebuilt if isinstance(output, Tensor) else type(output)((rebuilt, *output[1:]))

    with Kept() as kept:
        for feature in features:
            if feature.module not in named:
                raise InputError(
                    f"{feature!r} is at no module of {type(model).__name__}; {nearest(feature.module, named)}"
                )
            if isinstance(feature.autoencoder, torch.nn.Module):
                FrozenHandle(feature.autoencoder.modules(), kept)
            kept.forward(named[feature.module], partial(decoded, feature))
        for latent in latents:
            module = named[latent.module]
            if latent.kind == "expert":
                kept.forward(module, partial(by_expert, latent))
            elif latent.kind in WRITERS:
                kept.hook(module, partial(goes_in, latent), before=True)
            else:
                kept.hook(module, partial(comes_out, latent))
        yield
    for entry in wanted:
        names = (
            [entry.name] if isinstance(entry, Features) else [latent.name for latent in latents if fits(latent, entry)]
        )
        if not any(seen[name] for name in names):
            raise InputError(
                f"latents got {entry!r}, of which {type(model).__name__} computed none of the input in this forward; "
                "expected modules that are called. torch.nn.MultiheadAttention has heads under the rules of a preset."
            )


def first_of(output: Any) -> Any:
    """Return the tensor that a module returned, or the first of several."""
    return output[0] if isinstance(output, (tuple, list)) and output else output


def own_view(value: Tensor) -> Tensor:
    """Return a view with a signal of its own: what else is computed of the same tensor has another part of it."""
    return mark(value.view_as(value), strength(value))
