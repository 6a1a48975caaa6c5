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

from ..data.buckets import BatchExplainer
from ..errors import InputError
from ..evaluation import METHODS, TITLES, Fixed, Method
from ..evaluation.baselines import lrp
from ..evaluation.features import Batch
from ..explain.loading import composite_of, refused

#: Ends the name of a method that is to say nothing of the first token, where attention rests that looks at nothing.
WITHOUT = "_without_sink"
#: Scores of a row by method and name; ``seconds`` is what the explanation took.
Found = dict[str, dict[str, float]]
#: What is measured of tokens, where no methods are named.
USUAL = (
    *("random", "gradient", "input_x_gradient", "attention_rollout", "gradient_attention_rollout"),
    *("attention_value_norm", "cp_lrp", "attnlrp", f"attnlrp{WITHOUT}", "relp", "libragrad"),
)
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
    #: What its scores are points along, if they make a curve.
    axis: ClassVar[str] = ""
    #: Whether a low score is a good one.
    lower: ClassVar[bool] = False

    def __init__(self, methods: Sequence[str] | None = None, dtype: str | None = None, batch_size: int = 16) -> None:
        self.methods = list(methods or self.default)
        self.dtype, self.batch_size = dtype, batch_size
        if batch_size < 1:
            raise InputError(f"got batch_size={batch_size}, expected at least 1")
        #: Methods that did not apply to a row, and why.
        self.refused: dict[str, str] = {}
        #: Composites of files, as they were when the study began.
        self.composites = {name: composite_of(name) for name in map(plain, self.methods) if name.endswith(".toml")}
        for name in self.methods:
            self.method(name)
        self._scoring: tuple[torch.nn.Module, torch.nn.Module] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_scoring": None}

    def __init_subclass__(cls) -> None:
        STUDIES[cls.name] = cls

    def method(self, name: str) -> Method:
        """Return a method by its name, or that of a composite's file.

        Raises
        ------
        InputError
            If there is no such method.
        """
        name = plain(name)
        if name in self.composites:
            return lrp(self.composites[name])
        if name not in METHODS:
            raise InputError(f"got the method {name!r}, expected a TOML file, or one of {', '.join(METHODS)}")
        return METHODS[name]

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
            whole = plain(name)
            try:
                if whole not in known:
                    start = now()
                    relevance = self.method(whole)(model, batch, target).detach()
                    known[whole] = relevance, now() - start
                relevance, seconds = known[whole]
                found[name] = relevance if name == whole else without_sink(relevance), seconds
            except (ImportError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
                self.refused[name] = str(error)
        if not found:
            raise InputError(f"no method applies: {self.refused}")
        return found

    def settings(self) -> dict[str, Any]:
        """Return what scores depend on, for JSON."""
        plainly = {key: value for key, value in vars(self).items() if isinstance(value, (str, int, float, list))}
        # how many are read at once changes nothing
        del plainly["batch_size"]
        composites = {name: repr(composite) for name, composite in self.composites.items()}
        return {**plainly, "dtype": self.dtype, "composites": composites, "lower": self.lower}

    def scoring(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model that computes scores."""
        if self.dtype is None:
            return model
        if self._scoring is None or self._scoring[0] is not model:
            self._scoring = model, copy.deepcopy(model).to(getattr(torch, self.dtype))
        return self._scoring[1]

    @abstractmethod
    def measure(self, explain: BatchExplainer, rows: Sequence[Mapping[str, Any]]) -> list[Found | InputError]:
        """Return the scores of each row, or why it has none."""

    def rows(self, count: int) -> list[dict[str, Any]]:
        """Return rows, where nobody gives any.

        Raises
        ------
        InputError
            If the study has none of its own.
        """
        raise InputError(f"got no --data for {self.name}, expected a file: {self.wants}")


def plain(method: str) -> str:
    """Return the name of a method that says something of the first token, too."""
    return method.removesuffix(WITHOUT)


def without_sink(relevance: Tensor) -> Tensor:
    """Return the relevance of tokens without that of the first one.

    Raises
    ------
    ValueError
        If it is not of tokens.
    """
    if relevance.dim() != 2:
        raise ValueError(
            f"got relevance of shape {tuple(relevance.shape)}, expected that of tokens: images have no first"
        )
    relevance = relevance.clone()
    relevance[:, 0] = 0
    return relevance


def now() -> float:
    """Return the time, when all that was begun has ended."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def title_of(method: str) -> str:
    """Return what a method is called where it is shown."""
    name = plain(method)
    return (TITLES.get(name) or Path(name).stem) + (", not the first token" if name != method else "")


def each(rows: Sequence[Mapping[str, Any]], measured: Callable[[Mapping[str, Any]], Found]) -> list[Found | InputError]:
    """Return what is measured of each row, or why nothing is."""
    found: list[Found | InputError] = []
    for row in rows:
        try:
            # a row may hold anything, at which what reads it raises anything
            with refused("cannot measure the row", "expected what the study takes"):
                found.append(measured(row))
        except InputError as error:
            found.append(error)
    return found
