"""The residual stream of a model that adds to it alone: which modules read it, and which write to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..engine.handles import Kept
from ..engine.names import modules_by_name
from ..engine.operands import depends
from ..errors import InputError
from ..latents import WRITERS, Found, Latent, first_of, found_of, latents_of, own_view

#: The reader of what the last layer returns: all that comes after the layers.
OUTPUT = "output"


@dataclass
class Stream:
    """What was read from the stream, and written to it, in one forward pass.

    The stream has a version for each sum: it is that which the layers were given, version 0, and what was written
    between two of its readers.

    Attributes
    ----------
    readers : dict of str to (int, torch.Tensor)
        By module: which version it read, with a view of its own. A reader is a module without parts that is called
        with the stream, mostly a norm.
    writers : dict of str to (int, Found)
        By latent: the version that was the last one before it wrote, and the input of the map that wrote.
    """

    readers: dict[str, tuple[int, Tensor]] = field(default_factory=dict)
    writers: dict[str, tuple[int, Found]] = field(default_factory=dict)
    version: int = 0
    latest: Tensor | None = None
    written: Tensor | None = None
    begun: Tensor | None = None

    @property
    def start(self) -> Tensor:
        """What the first layer was given.

        Raises
        ------
        InputError
            If no layer was called.
        """
        if self.begun is None:
            raise InputError(
                "got a model that called no layers with what depends on the input; expected a transformer of which "
                "latents_of(model) has layers."
            )
        return self.begun

    def read(self, name: str, value: Any) -> Tensor | None:
        """Return the view that a module reads the stream with, None if it is given something else."""
        if not self.knows(value):
            return None
        if name in self.readers:
            raise InputError(f"{name!r} was called twice in one forward; expected a model that calls each layer once.")
        local: Tensor = own_view(value)
        self.readers[name] = self.version, local
        return local

    def write(self, latent: Latent, value: Any, output: Any) -> None:
        """Note what is written to the stream, and of what."""
        if self.latest is None or not (depends(output) and output.numel() == self.latest.numel()):
            return
        if latent.name in self.writers:
            raise InputError(f"{latent.module!r} was called twice in one forward; expected a model that calls it once.")
        found = found_of(latent, value, self.latest.shape, None)
        self.writers[latent.name] = self.version, found
        turned = output.detach().transpose(0, 1) if found.latent.time_major else output.detach()
        turned = turned.reshape(self.latest.shape)
        self.written = turned if self.written is None else self.written + turned

    def knows(self, value: Any) -> bool:
        """Tell whether a tensor is the stream as it is, or with what was written since; then it has a new version."""
        if self.latest is None or not depends(value) or value.shape != self.latest.shape:
            return False
        if torch.equal(value, self.latest):
            return True
        if self.written is None or not near(value, self.latest + self.written):
            return False
        self.version, self.latest, self.written = self.version + 1, value.detach(), None
        return True

    def enter(self, name: str, value: Any) -> None:
        """Begin with what the first layer is given; each one after it has to be given the stream.

        Raises
        ------
        InputError
            If a layer is given something else.
        """
        if self.begun is None and depends(value):
            self.begun, self.latest = value, value.detach()
        if not self.knows(value):
            raise InputError(f"{name!r} is not given what the layer before it returned; expected one stack of layers.")

    def leave(self, name: str, value: Any) -> None:
        """Hold what a layer returns against what was written.

        Raises
        ------
        InputError
            If it is something else than the sum.
        """
        if not self.knows(value):
            raise InputError(
                f"{name!r} returns something else than what it was given and what its heads and neurons write; "
                "expected layers that add these as they are. Where there are norms behind, scales, or experts, "
                "relevance_patching tells the effects of nodes."
            )
        # all that comes after the layers reads what the last one returns
        self.readers.pop(OUTPUT, None)
        self.readers[OUTPUT] = self.version, value


def near(value: Tensor, expected: Tensor) -> bool:
    """Tell whether tensors are equal but for rounding."""
    difference = float((value.detach() - expected).abs().max())
    return difference <= 32 * torch.finfo(value.dtype).eps * float(expected.abs().max())


@contextmanager
def residual_stream(model: torch.nn.Module) -> Iterator[Stream]:
    """Note who reads from the residual stream, and who writes to it, while a model runs once.

    Parameters
    ----------
    model : torch.nn.Module
        The model, with its rules on.
    """
    stream, named, known = Stream(), modules_by_name(model), latents_of(model)
    layers = [latent.module for latent in known.values() if latent.kind == "layer"]

    def before(name: str, module: Any, args: Any, kwargs: Any) -> None:
        stream.enter(name, first_given(args, kwargs))

    def after(name: str, module: Any, args: Any, output: Any) -> None:
        stream.leave(name, first_of(output))

    def read(name: str, module: Any, args: Any) -> Any:
        local = stream.read(name, args[0]) if args else None
        return None if local is None else (local, *args[1:])

    def write(latent: Latent, module: Any, args: Any, output: Any) -> None:
        stream.write(latent, first_of(args), output)

    with Kept() as kept:
        for layer in layers:
            kept.hook(named[layer], partial(before, layer), before=True, with_kwargs=True)
            kept.hook(named[layer], partial(after, layer))
            for name, module in named.items():
                if name.startswith(f"{layer}.") and next(module.children(), None) is None:
                    kept.hook(module, partial(read, name), before=True)
        for latent in known.values():
            if latent.kind in WRITERS:
                kept.hook(named[latent.module], partial(write, latent))
        yield stream


def first_given(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return the first tensor that depends on the input among the arguments of a call."""
    return next(filter(depends, (*args, *kwargs.values())), None)
