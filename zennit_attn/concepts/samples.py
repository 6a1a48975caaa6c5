"""Samples: some rows of a tensor or a batch, as many as there are conditions on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..errors import InputError

#: Units by the name of a layer or a latent; under "y" what is explained.
Condition = Mapping[str, Any]


def size_of(data: Tensor | Mapping[str, Any]) -> int:
    """Return the number of samples of a tensor or a batch."""
    tensors = [value for value in ([data] if isinstance(data, Tensor) else data.values()) if isinstance(value, Tensor)]
    if not tensors:
        raise InputError(f"got data of type {type(data).__name__} without tensors, expected a tensor or a batch.")
    return len(tensors[0])


def rows_of(data: Tensor | Mapping[str, Any], rows: Sequence[int]) -> Any:
    """Return some samples of a tensor or a batch, in an order."""
    if isinstance(data, Tensor):
        return data[list(rows)]
    size = size_of(data)
    return {
        key: value[list(rows)] if isinstance(value, Tensor) and value.dim() and len(value) == size else value
        for key, value in data.items()
    }


def broadcast(data: Any, conditions: Sequence[Condition]) -> tuple[Any, list[Condition]]:
    """Return as many samples as conditions: as given, or each sample under each condition."""
    size, count = size_of(data), len(conditions)
    if not count:
        raise InputError("got no condition, expected at least one, such as {'y': [7]}.")
    if size == count:
        return data, list(conditions)
    return rows_of(data, [row for row in range(size) for _ in range(count)]), [*conditions] * size
