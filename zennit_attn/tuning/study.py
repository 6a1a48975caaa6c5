"""Study: what is tuned on what, and the score of a choice of parameters, all of it read from one TOML file.

This module does not search: :mod:`zennit_attn.tuning` does, and so can Optuna or Ray, with :meth:`Study.objective`.
"""

from __future__ import annotations

import hashlib
import json
import threading
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..composites.configuration import MAPS, require_known, require_table
from ..composites.parameters import parameters_of
from ..composites.transformer import TransformerComposite
from ..evaluation.baselines import lrp, patch_size
from ..evaluation.features import Batch, Fixed, Patches, Tokens, select
from ..evaluation.localisation import pointing_game, relevance_mass_accuracy, relevance_rank_accuracy
from ..evaluation.perturbation import faithfulness
from ..evaluation.sanity import occlusion_agreement
from ..hints import nearest
from ..inputs import single_input
from .samples import Samples, digest, model_digest, read_samples, read_subject, refuse_code, refuse_overlap, whole
from .space import COMPOSITE_KEYS, Space
from .texts import read_texts

KEYS = (*COMPOSITE_KEYS, "data", "model", "score", "search")
SCORE_KEYS = ("name", "size", "fill", "steps", "batch_size")
SEARCH_KEYS = ("method", "trials", "seed", "parameters", *MAPS)
METHODS = ("grid", "optuna")


@dataclass(frozen=True)
class Explained:
    """Some samples with their relevance, to be scored.

    Attributes
    ----------
    model, batch, target, relevance, features, steps
        See :func:`zennit_attn.evaluation.perturbation_curve`.
    truth : torch.Tensor, optional
        See :class:`Samples`.
    """

    model: torch.nn.Module
    batch: Batch
    target: Fixed
    relevance: Tensor
    features: Patches | Tokens
    steps: int | None
    truth: Tensor | None

    def against_truth(self, score: Callable[..., Tensor]) -> Tensor:
        """Return a score of localisation."""
        summed = self.relevance.sum(1) if self.relevance.dim() == 4 else self.relevance
        real = self.features.real(self.batch) if isinstance(self.features, Tokens) else None
        return score(summed, self.truth, real)


def delta_area(given: Explained) -> Tensor:
    """Return ΔA, see :func:`zennit_attn.evaluation.faithfulness`."""
    return faithfulness(given.model, given.batch, given.target, given.relevance, given.features, given.steps)


def occlusion(given: Explained) -> Tensor:
    """Return the rank correlation with occlusion, see :func:`zennit_attn.evaluation.occlusion_agreement`."""
    return occlusion_agreement(given.model, given.batch, given.target, given.relevance, given.features)


#: Scores by name, the higher, the better; those of localisation need a truth.
SCORES: dict[str, Callable[[Explained], Tensor]] = {
    "delta_area": delta_area,
    "occlusion": occlusion,
    "pointing_game": lambda given: given.against_truth(pointing_game),
    "relevance_mass": lambda given: given.against_truth(relevance_mass_accuracy),
    "relevance_rank": lambda given: given.against_truth(relevance_rank_accuracy),
}
NEED_TRUTH = ("pointing_game", "relevance_mass", "relevance_rank")


class Study:
    """A model, samples to tune and to test on, a score, and a space of composites.

    Parameters
    ----------
    content : mapping
        Content of a study file; ``data`` and ``model`` in it are only noted.
    model : torch.nn.Module
        Model in evaluation mode.
    tune, test : Samples
        Samples that share no input.
    name : str, optional
        What the model is called; by default its class.
    source : str, optional
        Where the content is from, for errors.

    Attributes
    ----------
    space : zennit_attn.tuning.space.Space
        The parameters that are searched.
    method : str
        ``"grid"`` or ``"optuna"``.
    trials : int
        How many choices of parameters are tried.
    path : pathlib.Path or None
        The file, if it was read from one. In another process, such a study is read from there again.
    allow_code : bool
        Whether it may name Python files then.

    Raises
    ------
    TypeError, ValueError
        At unknown keys and wrong values, at samples that are in both sets, if a composite does not suit the model, and
        if a parameter changes nothing.
    """

    def __init__(
        self,
        content: Mapping[str, Any],
        model: torch.nn.Module,
        tune: Samples,
        test: Samples,
        name: str = "",
        source: str = "the study",
    ) -> None:
        require_known("key", content, KEYS, source)
        self.path: Path | None = None
        self.allow_code = False
        # rules are registered on the model itself, which so belongs to one thread at a time
        self.lock = threading.Lock()
        self.content, self.model, self.tune, self.test = content, model, tune, test
        self.name, self.source = name or type(model).__name__, source
        refuse_overlap(tune, test, source)
        self.space = Space(content, source)
        self.read_score(require_table("score", content.get("score", {}), source))
        self.read_search(require_table("search", content["search"], source))
        for composite in (self.space.default, self.space.composite(next(self.space.probes()))):
            with composite.context(model):
                pass
        self.refuse_idle()

    def __reduce__(self) -> tuple[Any, ...]:
        # classes of a Python file that a study runs cannot be imported by another process
        if self.path is not None:
            return read_again, (self.path, self.identity(), self.allow_code)
        return Study, (self.content, self.model, self.tune, self.test, self.name, self.source)

    def refuse_idle(self) -> None:
        """Raise ValueError if the rules of the model are the same for all values of a parameter."""
        ends = {name: axis.ends() for name, axis in self.space.axes.items()}
        # one parameter may matter only at some values of another: each value of each is in one of these at least
        others = [
            {name: values[place % len(values)] for name, values in ends.items()}
            for place in range(max(map(len, ends.values())))
        ]
        for name, values in ends.items():
            found = ([self.rules({**base, name: value}) for value in values] for base in others)
            if len(values) > 1 and all(rules.count(rules[0]) == len(rules) for rules in found):
                raise ValueError(
                    f"{self.source} got {name!r} in [search], which changes no rule of {type(self.model).__name__}: "
                    "what comes before it has all of its modules. Leave it out, or put it first"
                )

    def rules(self, parameters: Mapping[str, Any]) -> list[Any]:
        """Return name, rule and its parameters of each module of the model that has a rule."""
        found = self.space.composite(parameters).assignments(self.model)
        return [(name, type(rule).__name__, parameters_of(rule)) for name, _, rule in found]

    def read_score(self, table: Mapping[str, Any]) -> None:
        """Take what the file says about the score."""
        require_known("key of [score]", table, SCORE_KEYS, self.source)
        self.score = table.get("name", "delta_area")
        if self.score not in SCORES:
            hint = nearest(str(self.score), SCORES)
            raise ValueError(f"{self.source} got the score {self.score!r}, expected one of {list(SCORES)}; {hint}")
        if self.score in NEED_TRUTH and (self.tune.truth is None or self.test.truth is None):
            raise ValueError(
                f"{self.source} got the score {self.score!r} for data without masks, expected 'delta_area'"
            )
        self.steps = whole(table, "steps", self.source, 16)
        self.batch_size = whole(table, "batch_size", self.source, 50)
        is_visual = single_input(self.tune.batch)[1].is_floating_point()
        if not is_visual and "size" in table:
            raise ValueError(f"{self.source} got size={table['size']!r} in [score] for tokens, expected it for images")
        if is_visual:
            size = whole(table, "size", self.source) if "size" in table else patch_size(self.model)
            self.features: Patches | Tokens = Patches(size, table.get("fill", 0.0))
        else:
            self.features = Tokens(table.get("fill", "zero"), self.tune.keep)

    def read_search(self, table: Mapping[str, Any]) -> None:
        """Take what the file says about the search."""
        require_known("key of [search]", table, SEARCH_KEYS, self.source)
        self.method = table.get("method", "grid")
        if self.method not in METHODS:
            raise ValueError(f"{self.source} got method={self.method!r} in [search], expected one of {METHODS}")
        self.seed = whole(table, "seed", self.source, 0, 0)
        if self.method == "optuna":
            self.trials = whole(table, "trials", self.source, 50)
            # each trial has a seed of its own, and Optuna takes them up to 2**32 - 1
            if self.seed + self.trials > 2**32:
                raise ValueError(f"{self.source} got seed={self.seed} in [search], expected less than 2**32")
            return
        if "trials" in table or self.space.has_bounds:
            raise ValueError(
                f"{self.source} got a number of trials, or bounds, with method='grid', which tries all values; "
                "expected lists of values, or method='optuna'"
            )
        self.trials = sum(1 for _ in self.space.grid())

    def objective(self, parameters: Mapping[str, Any]) -> float:
        """Return the mean score of the samples to tune on; the higher, the better.

        Threads that share a study wait for each other: only processes are faster than one.

        Parameters
        ----------
        parameters : mapping of str to value
            A value for each parameter of the space, such as ``study.space.suggest(trial)`` of an Optuna trial.

        Raises
        ------
        ValueError
            If a parameter is unknown or missing, a rule does not accept a value, or the score is not finite.
        """
        # not every device has float64
        composite = self.space.composite(parameters)
        with self.lock:
            return float(self.scores(composite, self.tune).cpu().double().mean())

    def scores(
        self, composite: TransformerComposite, samples: Samples, start: int = 0, end: int | None = None
    ) -> Tensor:
        """Return the score of each sample, of shape ``(samples,)``.

        Parameters
        ----------
        composite : TransformerComposite
            What is scored.
        samples : Samples
            On what.
        start, end : int, optional
            Which of them, by default all: from the first of these numbers on, and before the second.

        Raises
        ------
        ValueError
            If one is not finite.
        """
        parts, method = [], lrp(composite)
        numbers = torch.arange(len(samples), device=samples.target.shares.device)[start:end]
        for rows in numbers.split(self.batch_size):
            batch, target = select(samples.batch, rows), samples.target.at(rows)
            truth = None if samples.truth is None else samples.truth[rows]
            relevance = method(self.model, batch, target)
            given = Explained(self.model, batch, target, relevance, self.features, self.steps, truth)
            parts.append(SCORES[self.score](given))
        scores = torch.cat(parts)
        if not bool(scores.isfinite().all()):
            count = int((~scores.isfinite()).sum())
            raise ValueError(
                f"{self.source} got a score that is not finite for {count} of {len(scores)} samples, by "
                f"{composite.parameters()}; expected numbers: narrow the search, or take these samples out"
            )
        return scores

    def identity(self) -> dict[str, str]:
        """Return hashes of all that a score depends on: the file but for the number of trials, the data, the model."""
        content = json.loads(json.dumps(self.content))
        content["search"].pop("trials", None)
        text = json.dumps(content, sort_keys=True)
        return {
            "study": hashlib.sha256(text.encode()).hexdigest(),
            "data": digest([*self.tune.tensors(), *self.test.tensors()]),
            "model": model_digest(self.model),
        }


def read_study(path: str | Path, *, allow_code: bool = False) -> Study:
    """Read a study from a TOML file, with its model and data.

    Parameters
    ----------
    path : str or pathlib.Path
        The file. Other files are looked for in its folder.
    allow_code : bool, optional
        Whether a model or a dataset may be a Python file, whose name ends with ``.py``: it is run.

    Returns
    -------
    Study
        The study.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError
        If something in the file is unknown, of a wrong type, not there, or code that is not asked for.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error
    source = str(path)
    require_known("key", content, KEYS, source)
    # what is wrong in the file is said before a model is loaded
    Space(content, source)
    for key in ("data", "model"):
        if key not in content:
            raise ValueError(f"{source} got no [{key}], expected one")
    model, data = (require_table(key, content[key], source) for key in ("model", "data"))
    if not allow_code:
        refuse_code((model, data), path.parent, source)
    subject = read_subject(model, content["preset"], path.parent, source)
    read = read_texts if "texts" in data else read_samples
    tune, test = read(data, subject, path.parent, source)
    study = Study(content, subject.model, tune, test, subject.name, source)
    study.path, study.allow_code = path.resolve(), allow_code
    return study


def read_again(path: Path, identity: Mapping[str, str], allow_code: bool) -> Study:
    """Read the study that another process has read.

    Raises
    ------
    ValueError
        If something that a score depends on has changed.
    """
    study = read_study(path, allow_code=allow_code)
    differs = [key for key, value in study.identity().items() if identity[key] != value]
    if differs:
        raise ValueError(
            f"got {str(path)!r} that differs in its {' and '.join(differs)} from what another process read, expected "
            "the same: let each process read the study itself, by read_study"
        )
    return study
