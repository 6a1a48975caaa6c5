"""What is explained: the parts of a model's input that relevance is attributed to, each a leaf of the graph.

Token ids have no relevance of their own: their embeddings have, wherever the model looks them up.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .engine.handles import Kept
from .engine.names import names_of
from .engine.operands import explained_leaf
from .positions import tells_positions
from .sharding import is_sharded, replicated_as, whole

#: Entries of a batch that hold what is explained, of which exactly one has to be there.
INPUTS = ("input_ids", "inputs_embeds", "pixel_values", "input_values", "input_features")

#: Leaves by argument (None for a tensor by position), and by the embedding table that made them.
Leaves = dict[str | None, dict[int, Tensor]]


def split_input(
    input: Any, argument: str | Sequence[str] | None = None
) -> tuple[dict[str | None, Tensor], dict[str, Any]]:
    """Return the explained arguments by name, and the other arguments.

    Parameters
    ----------
    input : torch.Tensor or mapping
        A tensor, of which the name is None, or a mapping of keyword arguments.
    argument : str or sequence of str, optional
        Names of the explained arguments; by default the one of :data:`INPUTS` that is there.

    Raises
    ------
    TypeError, ValueError
        If the input is neither a tensor nor a mapping with the explained arguments.
    """
    if isinstance(input, Tensor):
        return {None: input}, {}
    if not isinstance(input, Mapping):
        raise TypeError(
            f"got an input of type {type(input).__name__}, expected a tensor, or a mapping of arguments: what "
            'tokenizer(text, return_tensors="pt") or an image processor returns.'
        )
    if input.get("labels") is not None:
        raise ValueError(
            "got a batch with labels, of which a model makes a loss, which is not explained; expected one without. "
            "What is explained is a target; an encoder-decoder takes decoder_input_ids."
        )
    if argument is None:
        names = [name for name in INPUTS if input.get(name) is not None]
        fits, wanted = len(names) == 1, f"exactly one of {INPUTS} in it, or its name as argument"
    else:
        names = [argument] if isinstance(argument, str) else list(argument)
        fits, wanted = bool(names) and all(input.get(name) is not None for name in names), repr(argument)
    if not fits:
        raise ValueError(f"got a batch of {sorted(input)}, expected {wanted}")
    for name in names:
        if not isinstance(input[name], Tensor):
            kind = type(input[name]).__name__
            raise TypeError(f"got {name} of type {kind}, expected a tensor: use return_tensors='pt'")
    # what is not explained is a constant, whatever it was computed of
    rest = {key: constant_of(item) for key, item in input.items() if key not in names}
    return {name: input[name] for name in names}, rest


def constant_of(value: Any) -> Any:
    """Return a value without a graph, and a copy of it where the model writes into it, as into a cache."""
    if any(base.__name__ == "Cache" for base in type(value).__mro__):
        return copied(value)
    return tree_map_only(Tensor, Tensor.detach, value)


def copied(value: Any) -> Any:
    """Return a copy of a cache with all that it holds: tensors without a graph, lists, and the caches of layers."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, (list, tuple)):
        return type(value)(map(copied, value))
    if isinstance(value, dict):
        return type(value)((key, copied(item)) for key, item in value.items())
    if type(value).__module__.startswith("transformers.cache_utils"):
        twin = copy.copy(value)
        vars(twin).update((key, copied(item)) for key, item in vars(value).items())
        return twin
    return value


def single_input(input: Any, argument: str | None = None) -> tuple[str | None, Tensor, dict[str, Any]]:
    """Return the name of the one explained argument, its value, and the other arguments, see :func:`split_input`."""
    given, rest = split_input(input, argument)
    ((name, value),) = given.items()
    return name, value, rest


@contextmanager
def leaves_of(model: torch.nn.Module, given: Mapping[str | None, Tensor]) -> Iterator[tuple[dict[Any, Tensor], Leaves]]:
    """Yield what to call the model with, and the leaves that the call makes.

    Parameters
    ----------
    model : torch.nn.Module
        The model; its embeddings are watched while it runs.
    given : mapping of str to torch.Tensor
        Explained arguments: floating-point tensors, or token ids.
    """
    leaves: Leaves = {name: {} for name in given}
    # ids are told apart by their memory: those of an encoder may be its decoder's, too
    values: dict[Any, Tensor] = {name: value.clone() for name, value in given.items()}
    tokens = {name: value for name, value in values.items() if not value.is_floating_point()}
    for name, value in given.items():
        if name not in tokens:
            leaves[name][0] = explained_leaf(value)
            values[name] = leaves[name][0].view_as(value)

    def catch(table: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        indices = args[0] if args else kwargs.get("input")
        # of a table that processes share, each has some rows or columns: the leaf has all, in each process
        name = looked_up(whole(indices), tokens, leaves)
        if name is NOTHING:
            return None
        key = id(getattr(table, "weight", table))
        if key not in leaves[name]:
            leaves[name][key] = explained_leaf(whole(output).reshape(*tokens[name].shape, -1))
        # a copy, so that a model that writes into its embeddings does not write into the leaf
        embedded = leaves[name][key].clone().view(output.shape)
        return replicated_as(embedded, output) if is_sharded(output) else embedded

    with Kept() as kept:
        for table in embeddings(model) if tokens else []:
            # before the hooks that collect inner relevance, which are to see the leaf's graph
            kept.hook(table, catch, with_kwargs=True, prepend=True)
        yield values, leaves
    for name, value in tokens.items():
        if not leaves[name]:
            raise NotLookedUpError(
                f"got {value.dtype} {name or 'input'} of shape {tuple(value.shape)}, but no embedding of "
                f"{type(model).__name__} was looked up with it; expected a model that embeds its ids with a "
                "torch.nn.Embedding, or a floating-point tensor: pixels as pixels.float(), or embeddings, which a "
                "module around the model takes in place of its ids."
            )


class NotLookedUpError(RuntimeError):
    """Token ids with which no embedding was looked up."""


NOTHING: Any = object()


def looked_up(indices: Any, tokens: Mapping[str | None, Tensor], leaves: Leaves) -> Any:
    """Return which argument's token ids an embedding is looked up with; :data:`NOTHING` if it is none's."""
    candidates = {
        name: ids for name, ids in tokens.items() if isinstance(indices, Tensor) and indices.numel() == ids.numel()
    }
    for name, ids in candidates.items():
        # the same memory, and in the same order: a transposed view is another sequence
        if indices.data_ptr() == ids.data_ptr() and decisions.decided(indices.reshape(ids.shape), ids):
            return name
    for name, ids in candidates.items():
        # a copy of them; later copies may be the ids of a decoder
        if not leaves[name] and decisions.decided(indices.reshape(ids.shape), ids):
            return name
    return NOTHING


class Decisions(threading.local):
    """Whether tensors were equal in one forward, told again in another one whose tensors have no values to compare."""

    def __init__(self) -> None:
        self.noted: list[bool] | None = None
        self.told: Iterator[bool] | None = None

    def decided(self, one: Tensor, other: Tensor) -> bool:
        """Tell whether tensors are equal, or were."""
        if self.told is not None:
            return next(self.told)
        found = torch.equal(one, other)
        if self.noted is not None:
            self.noted.append(found)
        return found

    @contextmanager
    def noting(self) -> Iterator[list[bool]]:
        """Yield what is found inside."""
        self.noted = []
        try:
            yield self.noted
        finally:
            self.noted = None

    @contextmanager
    def telling(self, noted: list[bool]) -> Iterator[None]:
        """Tell inside what was found before."""
        self.told = iter(noted)
        try:
            yield
        finally:
            self.told = None


decisions = Decisions()


def embeddings(model: Any) -> list[torch.nn.Module]:
    """Return the modules that may embed token ids."""
    # BART's positions are looked up by the ids' shape, and GPT-2's may happen to be equal to them
    tables: list[torch.nn.Module] = [
        module
        for module, name in names_of(model).items()
        if isinstance(module, torch.nn.Embedding) and not tells_positions(name)
    ]
    try:
        own = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return tables
    # an embedding of another kind, not one that is made of those
    if isinstance(own, torch.nn.Module) and not any(table in own.modules() for table in tables):
        tables.append(own)
    return tables
