"""Randomised: whether relevance follows the weights, as they are shuffled from the output on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from ..data.buckets import BatchExplainer
from ..data.fixed import asked_of
from ..errors import InputError
from ..evaluation import Fixed, randomisation
from ..evaluation.features import Batch
from ..explain.loading import refused
from ..targets import Target
from .study import Found, Study, plain, without_sink

Asked = tuple[dict[str, Any], Fixed]


class Randomised(Study):
    """Rank correlation with the relevance of the trained model, after each block's weights are shuffled, last first.

    Parameters
    ----------
    methods, dtype, batch_size
        See :class:`Study`; the dtype is that of the copy that is shuffled.
    length : int, optional
        How many tokens of a text are read.
    depths : int, optional
        After how many blocks it is looked at, evenly spread.
    """

    name = "randomisation"
    lower = True
    axis = "share of the blocks of which the weights are shuffled, the last ones first"
    wants = '{"text": "..."}, of at least as many tokens as are read, or an "image"'
    default = ("gradient", "input_x_gradient", "gradient_attention_rollout", "cp_lrp", "attnlrp", "libragrad")

    def __init__(
        self,
        methods: Sequence[str] | None = None,
        dtype: str | None = None,
        batch_size: int = 16,
        length: int = 48,
        depths: int = 6,
    ) -> None:
        super().__init__(methods, dtype, batch_size)
        if depths < 1:
            raise InputError(f"got depths={depths}, expected at least 1")
        self.length, self.depths = length, depths
        self.scores = {
            f"{depth}/{depths}": f"after the last {depth} of {depths} parts of the blocks"
            for depth in range(1, depths + 1)
        }

    def measure(self, explain: BatchExplainer, rows: Sequence[Mapping[str, Any]]) -> list[Found | InputError]:
        """Return the scores of each row, or why it has none; rows of one shape are explained together."""
        found: list[Found | InputError] = []
        asked: dict[int, Asked] = {}
        for number, row in enumerate(rows):
            try:
                with refused("cannot measure the row", f"expected {self.wants}"):
                    asked[number] = asked_of(explain, row, self.length)
                found.append({})
            except InputError as error:
                found.append(error)
        model = self.scoring(explain.explainer.wrapped)
        names = blocks_of(model, self.depths)
        for numbers in alike(asked):
            batch, target = joined([asked[number] for number in numbers])
            for method in self.methods:
                try:
                    similar = randomisation(model, batch, target, partial(self.one, method), names)
                except (RuntimeError, TypeError, ValueError) as error:
                    self.refused[method] = str(error)
                    continue
                curves = torch.stack(list(similar.values()), 1).tolist()
                for number, values in zip(numbers, curves, strict=True):
                    found[number][method] = dict(zip(self.scores, values, strict=True))  # type: ignore[index]
        return found

    def one(self, method: str, model: torch.nn.Module, batch: Batch, target: Target) -> torch.Tensor:
        """Return the relevance of a method by its name."""
        relevance = self.method(method)(model, batch, target)
        return relevance if method == plain(method) else without_sink(relevance)


def blocks_of(model: torch.nn.Module, count: int) -> list[list[str]]:
    """Return the names of a model's blocks, the last one first, in a number of groups.

    Raises
    ------
    InputError
        If it has fewer.
    """
    kinds = (torch.nn.ModuleList, torch.nn.Sequential)
    lists = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    name = max(lists, key=lambda name: len(lists[name]), default=None)
    if name is None or len(lists[name]) < count:
        raise InputError(f"got {type(model).__name__} with fewer blocks in a list than depths={count}, expected more")
    own = [f"{name}.{child}" if name else child for child, _ in lists[name].named_children()]
    return [group.tolist() for group in np.array_split(own[::-1], count)]


def alike(asked: Mapping[int, Asked]) -> list[list[int]]:
    """Return the numbers of rows whose arguments have the same shapes, together."""
    found: dict[Any, list[int]] = {}
    for number, (batch, target) in asked.items():
        shapes = [value.shape if isinstance(value, torch.Tensor) else value for value in batch.values()]
        found.setdefault((*batch, str(shapes), target.shares.shape), []).append(number)
    return list(found.values())


def joined(asked: Sequence[Asked]) -> Asked:
    """Return several rows as one batch."""
    first, target = asked[0]
    batch = {
        key: torch.cat([each[key] for each, _ in asked]) if isinstance(value, torch.Tensor) else value
        for key, value in first.items()
    }
    places = None if target.position is None else torch.cat([each.position for _, each in asked])
    return batch, Fixed(torch.cat([each.shares for _, each in asked]), places)
