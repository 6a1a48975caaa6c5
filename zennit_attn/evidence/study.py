"""Study: what is asked of each row of a data set, and how an explanation of it is scored."""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import InputError
from ..evaluation import METHODS, TITLES, Fixed, Method
from ..evaluation.baselines import lrp
from ..evaluation.features import Batch
from ..explain import Explainer
from ..explain.loading import composite_of
from ..hints import nearest

#: Ends the name of a method that is to say nothing of the first token, where attention rests that looks at nothing.
WITHOUT = "_without_sink"
#: Scores of a row by method and name; ``seconds`` is what the explanation took.
Found = dict[str, dict[str, float]]
#: What each study is called, filled by the classes themselves.
STUDIES: dict[str, type[Study]] = {}


class Study(ABC):
    """Base of the studies.

    Parameters
    ----------
    methods : sequence of str, optional
        Names of :data:`zennit_attn.evaluation.METHODS`, or TOML files of composites.
    dtype : str, optional
        Dtype in which a copy of the model computes scores, such as ``"bfloat16"``, which is faster: they are forward
        passes, many for each explanation. By default that of the model.
    batch_size : int, optional
        How many inputs are scored in one forward pass.

    Raises
    ------
    InputError
        If a method is unknown.
    """

    name: ClassVar[str]
    #: What a row of its data has, as one is told who gives others.
    wants: ClassVar[str]
    #: Scores by name: what each means, in a sentence.
    scores: dict[str, str]
    #: Methods, where none are named.
    default: ClassVar[tuple[str, ...]]

    def __init__(self, methods: Sequence[str] | None = None, dtype: str | None = None, batch_size: int = 16) -> None:
        self.methods = list(methods or self.default)
        self.dtype, self.batch_size = dtype, batch_size
        #: Methods that did not apply to a row, and why.
        self.refused: dict[str, str] = {}
        for name in self.methods:
            self.method(name)

    def __init_subclass__(cls) -> None:
        STUDIES[cls.name] = cls

    def method(self, name: str) -> Method:
        """Return a method by its name, or that of a composite's file.

        Raises
        ------
        InputError
            If there is no such method.
        """
        name = name.removesuffix(WITHOUT)
        if name in METHODS:
            return METHODS[name]
        if not name.endswith(".toml"):
            raise InputError(
                f"got the method {name!r}, expected a TOML file, or one of these; {nearest(name, METHODS)}"
            )
        return lrp(composite_of(name))

    def relevances(
        self, methods: Sequence[str], model: torch.nn.Module, batch: Batch, target: Fixed
    ) -> dict[str, tuple[Tensor, float]]:
        """Return the relevance of methods that apply to a model, and the seconds that each took.

        Raises
        ------
        InputError
            If none does.
        """
        known: dict[str, tuple[Tensor, float]] = {}
        found = {}
        for name in methods:
            plain = name.removesuffix(WITHOUT)
            if plain not in known:
                start = time.perf_counter()
                try:
                    relevance = self.method(plain)(model, batch, target).detach()
                except ValueError as error:
                    self.refused[plain] = str(error)
                    continue
                known[plain] = relevance, time.perf_counter() - start
            relevance, seconds = known[plain]
            if name != plain:
                relevance = relevance.clone()
                relevance[:, 0] = 0
            found[name] = relevance, seconds
        if not found:
            raise InputError(f"no method applies: {self.refused}")
        return found

    def settings(self) -> dict[str, Any]:
        """Return what scores depend on, for JSON."""
        return {
            key: value for key, value in vars(self).items() if isinstance(value, (str, int, float, list, type(None)))
        }

    def scoring(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model that computes scores."""
        if self.dtype is None:
            return model
        return copy.deepcopy(model).to(getattr(torch, self.dtype))

    @abstractmethod
    def measure(self, explainer: Explainer, rows: Sequence[Mapping[str, Any]]) -> list[Found | InputError]:
        """Return the scores of each row, or why it has none."""

    def rows(self, count: int) -> list[dict[str, Any]]:
        """Return rows, where nobody gives any.

        Raises
        ------
        InputError
            If the study has none of its own.
        """
        raise InputError(f"got no --data for {self.name}, expected a file: {self.wants}")


def title_of(method: str) -> str:
    """Return what a method is called where it is shown."""
    name = method.removesuffix(WITHOUT)
    return (TITLES.get(name) or Path(name).stem) + (", not the first token" if name != method else "")


def each(rows: Sequence[Mapping[str, Any]], measured: Callable[[Mapping[str, Any]], Found]) -> list[Found | InputError]:
    """Return what is measured of each row, or why nothing is."""
    found: list[Found | InputError] = []
    for row in rows:
        try:
            found.append(measured(row))
        except InputError as error:
            found.append(error)
    return found
