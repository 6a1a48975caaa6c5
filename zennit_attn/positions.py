"""Relevance of positions: what tells a model where a token stands, with leaves of the graph of its own.

In every layer the cosines and sines of a rotary embedding are leaves, so that ``q * cos + rotate(q) * sin`` is made of
products of two tensors that are explained, and shared as such; where positions are added to the input, what is added is
a leaf (PA-LRP, Bakish et al. 2025).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from .engine.handles import Kept
from .engine.names import names_of
from .engine.operands import explained_leaf
from .errors import InputError

#: Argument by which layers are given the cosines and sines of a rotary embedding.
ROTARY = "position_embeddings"

#: Modules, by their own names, of which the output is added to the input to tell positions.
_ADDED = re.compile(r"^(wpe|(embed_)?positions?(al)?(_?(emb|enc)\w*)?|pos_?(emb|enc)\w*)$", re.IGNORECASE)


@dataclass(frozen=True)
class Positions:
    """Relevance of tokens and of the positions that they stand at.

    Attributes
    ----------
    output : Any
        What the model returned.
    relevance : torch.Tensor
        Relevance of the explained input, as of a call; for token ids of shape ``(batch, tokens)``.
    by_module : dict of str to torch.Tensor
        Relevance of positions as each module uses them, of shape ``(factors, batch, tokens)``: cosines and sines of a
        rotary embedding, or the one vector that is added.

    Notes
    -----
    Tokens and positions together conserve what the rules conserve: the ledger of the same call has the rest.
    """

    output: Any
    relevance: Tensor
    by_module: dict[str, Tensor]

    @property
    def layers(self) -> Tensor:
        """Relevance of the positions, raw, of shape ``(batch, layers, tokens)``.

        Raises
        ------
        InputError
            If modules have positions of other numbers of tokens: of patches and of words.
        """
        shapes = {name: tuple(value.shape[1:]) for name, value in self.by_module.items()}
        if len(set(shapes.values())) > 1:
            raise InputError(f"got positions of shapes {shapes}, expected one shape; by_module has each by its name.")
        return torch.stack([value.sum(0) for value in self.by_module.values()], 1)

    def aggregate(self) -> Tensor:
        """Return tokens and positions in one map as the paper's code has it: magnitudes, each layer on its own scale.

        ``P = Σ_l Σ_f |R_lf| / max |R_lf|`` over layers and factors, ``A = R / max |R| + P / max P``, and the result is
        ``A / max |A|``. It tells where there is much of either, and conserves nothing.

        Returns
        -------
        torch.Tensor
            Of shape ``(batch, tokens)``.

        Raises
        ------
        InputError
            If there is no relevance of each token to add to.
        """
        tokens = self.relevance.sum(-1) if self.relevance.dim() == 3 else self.relevance
        layers = self.layers
        if tokens.shape != layers.sum(1).shape:
            raise InputError(
                f"got relevance of shape {tuple(tokens.shape)} and positions of shape {tuple(layers.sum(1).shape)}, "
                "expected one of each for every token; layers has the positions alone."
            )
        positions = sum(scaled(factor.abs()) for value in self.by_module.values() for factor in value)
        return scaled(scaled(tokens) + scaled(torch.as_tensor(positions)))


def scaled(value: Tensor) -> Tensor:
    """Return each sample over its largest magnitude; zeros stay."""
    largest = value.abs().amax(-1, keepdim=True)
    return value / torch.where(largest == 0, torch.ones_like(largest), largest)


def grouped(inner: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the relevance of position leaves by module, each summed to ``(factors, batch, tokens)``."""
    found = {}
    for name, factors in groupby(inner, key=lambda key: key.rpartition("[")[0]):
        values = [inner[factor].sum(-1) for factor in factors]
        values = [value[None] if value.dim() == 1 else value for value in values]
        # axes of one rotary embedding, such as time, height and width, are summed
        values = [value.reshape(-1, *value.shape[-2:]).sum(0) for value in values]
        found[name] = torch.stack(values)
    return found


@contextmanager
def position_leaves(model: torch.nn.Module, samples: int) -> Iterator[dict[str, Tensor]]:
    """Let positions be leaves while a model runs, and collect these as ``name[factor]``.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    samples : int
        Size of the batch: each sample has leaves of its own.

    Raises
    ------
    InputError
        If no module was told positions in a known way, or a model cannot run with those of each sample.
    """
    found: dict[str, Tensor] = {}
    spread: list[str] = []

    def leaves_of(name: str, values: Sequence[Tensor], samples: int) -> list[Tensor]:
        if f"{name}[0]" in found:
            raise InputError(f"{name!r} was given positions twice in one forward; expected a model that calls it once.")
        made = {}
        for number, value in enumerate(values):
            if samples > 1 and value.dim() > 2 and value.shape[-3] == 1:
                spread.append(name)
                value = value.expand(*value.shape[:-3], samples, *value.shape[-2:])
            # a rotation as one complex number: real and imaginary part are factors of their own
            parts = torch.view_as_real(value).flatten(-2) if value.is_complex() else value
            made[f"{name}[{number}]"] = explained_leaf(parts.clone())
        found.update(made)
        return [
            torch.view_as_complex(leaf.unflatten(-1, (-1, 2))) if value.is_complex() else leaf
            for leaf, value in zip(made.values(), values, strict=True)
        ]

    def turn(name: str, place: int, module: Any, args: Any, kwargs: Any) -> Any:
        given = kwargs.get(ROTARY, args[place] if place < len(args) else None)
        single = isinstance(given, Tensor)
        values = (given,) if single else given
        if not isinstance(values, (tuple, list)) or not all(isinstance(value, Tensor) for value in values):
            return None
        # of patches that are rows of one matrix, each has its own
        hidden = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        rows = 1 if hidden.dim() < 3 else len(hidden)
        if rows > 1 and any(value.dim() < 3 for value in values):
            raise InputError(f"{name!r} was given positions of {rows} samples at once; expected one at a time.")
        leaves = leaves_of(name, values, rows)
        changed: Any = leaves[0] if single else type(given)(leaves)
        if ROTARY in kwargs:
            return args, {**kwargs, ROTARY: changed}
        return (*args[:place], changed, *args[place + 1 :]), kwargs

    def add(name: str, module: Any, args: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point() or output.requires_grad:
            return None
        # a copy, so that a model that writes into its positions does not write into the leaf
        return leaves_of(name, [output[None] if output.dim() == 2 and samples > 1 else output], samples)[0].clone()

    with Kept() as kept:
        for name, module in turned(model).items():
            place = [*inspect.signature(type(module).forward).parameters][1:].index(ROTARY)
            kept.hook(module, partial(turn, name, place), before=True, with_kwargs=True)
        for module, name in names_of(model).items():
            if tells_positions(name) and next(module.children(), None) is None and not takes_rotary(module):
                kept.hook(module, partial(add, name))
        try:
            yield found
        except RuntimeError as error:
            if not spread:
                raise
            raise InputError(
                f"{type(model).__name__} does not run with positions of its own for each of {samples} samples, as "
                f"{spread[0]!r} gave one for all; expected one sample at a time, of which the first dimension is 1."
            ) from error
    if not found:
        raise InputError(
            f"{type(model).__name__} was told no positions in a way that is known; expected cosines and sines as an "
            f"argument {ROTARY!r} of its attention, or a module that embeds positions, such as 'wpe'. What a parameter "
            "adds to the input, as in vision transformers, is in the ledger."
        )


def refuse_other_shape(model: torch.nn.Module, output: Tensor, plain: Tensor) -> None:
    """Raise InputError if a model returned more samples with positions as leaves than it does without."""
    if output.shape != plain.shape:
        raise InputError(
            f"{type(model).__name__} returned an output of shape {tuple(output.shape)} with positions of its own for "
            f"each row of the input, and of shape {tuple(plain.shape)} without; expected an input of which the rows "
            "are the samples."
        )


def tells_positions(name: str) -> bool:
    """Tell whether a module, by its name, embeds positions, which are added to the input."""
    return bool(_ADDED.match(name.rpartition(".")[2]))


def turned(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Return the modules that are given cosines and sines for one layer: layers, or attentions of layers that are not.

    What takes them for a list of layers is none of these, nor is what is inside of one, such as an indexer of tokens.
    """
    taking = {name: module for module, name in names_of(model).items() if takes_rotary(module)}
    inside = {name: [other[len(name) :] for other in taking if other.startswith(f"{name}.")] for name in taking}
    single = [name for name in taking if not any(re.search(r"\.\d+", rest) for rest in inside[name])]
    return {name: taking[name] for name in single if not any(name.startswith(f"{outer}.") for outer in single)}


def takes_rotary(module: torch.nn.Module) -> bool:
    """Tell whether a module takes cosines and sines as an argument."""
    return ROTARY in inspect.signature(type(module).forward).parameters
