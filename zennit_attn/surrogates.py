"""Surrogates: token ids that tell where they came from, for models that change their ids before they embed them.

A model that pads, slices, transposes, joins or bags its ids looks up others than it was given. It is run once more with
an id of its own for each position, larger than any in the vocabulary; where a table is looked up, they are changed
back, and tell which position is embedded. That is right if, and only if, the model returns what it did with its own
ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .engine.handles import Kept
from .engine.operands import explained_leaf
from .inputs import Leaves, embeddings

#: Larger than any vocabulary.
FIRST = 1 << 40


@contextmanager
def surrogates_of(
    model: torch.nn.Module, given: Mapping[str | None, Tensor], padding: int | None = None
) -> Iterator[tuple[dict[Any, Tensor], Leaves]]:
    """Yield what to call the model with, and the leaves that the call makes: one for each lookup of a table.

    Parameters
    ----------
    model : torch.nn.Module
        The model; its embeddings are watched while it runs.
    given : mapping of str to torch.Tensor
        Explained arguments: floating-point tensors, or token ids.
    padding : int, optional
        An id that stays what it is, for models that tell padding by it.
    """
    leaves: Leaves = {name: {} for name in given}
    values: dict[Any, Tensor] = {}
    tokens: dict[str | None, Tensor] = {}
    starts: dict[str | None, int] = {}
    for name, value in given.items():
        if value.is_floating_point():
            leaves[name][0] = explained_leaf(value)
            values[name] = leaves[name][0].view_as(value)
            continue
        tokens[name], starts[name] = value, FIRST * (1 + len(tokens))
        places = torch.arange(value.numel(), device=value.device).view_as(value) + starts[name]
        values[name] = places if padding is None else torch.where(value == padding, value, places)

    def look_up(table: Any, indices: Tensor) -> Tensor:
        """Return the embeddings of indices, with the graph of the leaves of the positions that they tell."""
        indices = indices.long()
        real = indices.clone()
        for name, ids in tokens.items():
            ours = belong(indices, name)
            real = torch.where(ours, ids.flatten().long()[(indices - starts[name]).where(ours, 0)], real)
        output: Tensor = torch.nn.functional.embedding(real, table.weight.detach())
        for name, ids in tokens.items():
            ours = belong(indices, name)
            if not bool(ours.any()):
                continue
            places = (indices - starts[name])[ours]
            embedded = output.new_zeros(ids.numel(), output.shape[-1])
            embedded[places] = output.detach()[ours]
            leaf = explained_leaf(embedded.view(*ids.shape, -1))
            leaves[name][len(leaves[name])] = leaf
            output = output.index_put(ours.nonzero(as_tuple=True), leaf.flatten(0, -2)[places])
        return output

    def belong(indices: Tensor, name: str | None) -> Tensor:
        ours: Tensor = (indices >= starts[name]) & (indices < starts[name] + tokens[name].numel())
        return ours

    def embed(table: Any, forward: Any, args: Any, kwargs: Any) -> Any:
        indices = args[0] if args else kwargs.get("input")
        if not isinstance(indices, Tensor) or not any(bool(belong(indices, name).any()) for name in tokens):
            return forward(*args, **kwargs)
        if isinstance(table, torch.nn.EmbeddingBag):
            return bagged(table, look_up(table, indices), args[1:], kwargs)
        if type(table).forward is torch.nn.Embedding.forward:
            return look_up(table, indices)
        raise RuntimeError(f"got ids that a {type(table).__name__} looks up after the model changed them")

    with Kept() as kept:
        for table in tables_of(model):
            kept.forward(table, partial(embed, table))
        yield values, leaves


def tables_of(model: Any) -> list[torch.nn.Module]:
    """Return the modules that may embed token ids, bags of them too."""
    bags = [module for module in model.modules() if isinstance(module, torch.nn.EmbeddingBag)]
    return [*embeddings(model), *bags]


def bagged(table: torch.nn.EmbeddingBag, embedded: Tensor, rest: Any, kwargs: Any) -> Tensor:
    """Return the sum, mean or maximum of each row of embeddings, as a bag does.

    Raises
    ------
    RuntimeError
        If the bag has offsets, weights or padding.
    """
    options = [*rest, *(value for name, value in kwargs.items() if name != "input")]
    if any(value is not None for value in options) or embedded.dim() != 3 or table.padding_idx is not None:
        raise RuntimeError(
            "got an EmbeddingBag with offsets, weights or padding; expected ids of shape (batch, tokens)"
        )
    if table.mode == "max":
        return embedded.amax(1)
    return embedded.mean(1) if table.mode == "mean" else embedded.sum(1)
