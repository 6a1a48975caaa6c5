"""Leaderboard: what a search found, as a table, two pictures, and the best composite as a file with its provenance.

Nothing is chosen here by what the samples to test on say.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import heatmap
from ..composites.configuration import table, to_toml
from ..composites.transformer import TransformerComposite
from ..evaluation.baselines import lrp
from ..evaluation.features import Patches, Tokens, select
from ..evaluation.intervals import Interval, bootstrap
from ..explain.reading import seen
from ..files import encoded, put
from ..inputs import single_input
from .scatter import scatter
from .study import Study
from .texts import LENGTH

LEADERBOARD, SCATTER, CONTACT_SHEET, WINNER = "leaderboard.csv", "parameters.png", "contact_sheet.png", "winner.toml"
#: How many test samples the contact sheet has.
SHOWN = 8
NAMES = ("default", "best")


@dataclass(frozen=True)
class Trial:
    """A choice of parameters and its score on the samples to tune on.

    Attributes
    ----------
    number : int
        Its place in the order of the search, -1 for the default.
    parameters : dict
        Values by name; none for the default.
    score, low, high : float
        Mean score, and its confidence interval.
    seconds : float
        How long it took, in all processes together.
    """

    number: int
    parameters: dict[str, Any]
    score: float
    low: float
    high: float
    seconds: float


@dataclass(frozen=True)
class Result:
    """What a search found.

    Attributes
    ----------
    composite : TransformerComposite
        The best composite on the samples to tune on, which may be the default.
    best, default : Trial
        Its trial, and that of the default.
    trials : list of Trial
        All others than the default, in the order of the search.
    test_best, test_default, test_difference : Interval
        Scores on the samples to test on, and the mean of the differences, sample by sample.
    folder : pathlib.Path
        Where the files are.
    """

    composite: TransformerComposite
    best: Trial
    default: Trial
    trials: list[Trial]
    test_best: Interval
    test_default: Interval
    test_difference: Interval
    folder: Path

    def __str__(self) -> str:
        if self.best is self.default:
            return f"on the test samples: default {self.test_default}; nothing that was tried is better"
        gain = self.test_difference
        remark = ", which is worse" if gain.high < 0 else "" if gain.low > 0 else ", which may be chance"
        return f"on the test samples: default {self.test_default}, best {self.test_best}, difference {gain}{remark}"


def best_of(trials: Sequence[Trial]) -> Trial:
    """Return the best trial; of equal ones the first, and so rather the default."""
    return max(trials, key=lambda trial: trial.score)


def written(
    study: Study, default: Trial, trials: list[Trial], folder: Path, tested: Callable[[Trial], Tensor]
) -> Result:
    """Write all files.

    Parameters
    ----------
    study : Study
        The study.
    default : Trial
        That of the default.
    trials : list of Trial
        All others.
    folder : pathlib.Path
        Where to.
    tested : callable
        Returns the scores of a trial on the samples to test on.
    """
    best = best_of([default, *trials])
    composite = study.space.default if best is default else study.space.composite(best.parameters)
    before, after = tested(default), tested(best)
    intervals = bootstrap(after), bootstrap(before), bootstrap(after - before)
    result = Result(composite, best, default, trials, *intervals, folder)
    write_leaderboard(result, study)
    scatter(
        list(study.space.axes.values()),
        [trial.parameters for trial in trials],
        [trial.score for trial in trials],
        default.score,
        f"{study.score} of {len(study.tune)} samples to tune on",
    ).save(folder / SCATTER, 200)
    contact_sheet(study, result, before, after).save(folder / CONTACT_SHEET, 200)
    text = to_toml(composite, study.name) + "\n".join(table("[made_with.tuning]", provenance(study, result))) + "\n"
    put(folder / WINNER, encoded(text))
    return result


def write_leaderboard(result: Result, study: Study) -> None:
    """Write all trials with the default, the best first; test scores of the best and the default."""
    tests = {result.default.number: result.test_default, result.best.number: result.test_best}
    ranked = sorted([result.default, *result.trials], key=lambda trial: -trial.score)
    head = ["rank", "trial", *study.space.axes, "score", "low", "high", "test", "test_low", "test_high", "seconds"]
    lines = io.StringIO(newline="")
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(head)
    for rank, trial in enumerate(ranked, 1):
        title = "default" if trial is result.default else trial.number
        values = [trial.parameters.get(name, "") for name in study.space.axes]
        test = asdict(tests[trial.number]).values() if trial.number in tests else [""] * 3
        scores = [f"{value:.6g}" for value in (trial.score, trial.low, trial.high)]
        tested = [value and f"{value:.6g}" for value in test]
        writer.writerow([rank, title, *values, *scores, *tested, f"{trial.seconds:.3f}"])
    put(result.folder / LEADERBOARD, encoded(lines.getvalue()))


def provenance(study: Study, result: Result) -> dict[str, Any]:
    """Return what the winner was found by, for its file."""
    known = {f"{key}_sha256": value for key, value in study.identity().items()}
    data = study.content.get("data", {})
    given = {key: data[key] for key in ("folder", "name", "texts") if key in data}
    what = {"length": LENGTH} if "texts" in data else {"target": "largest"}
    chosen = {key: data.get(key, usual) for key, usual in {**what, "seed": 0}.items()} if data else {}
    fill = study.features.fill
    features = {"size": study.features.size} if isinstance(study.features, Patches) else {}
    return {
        "score": study.score,
        **features,
        "fill": fill,
        "steps": study.steps,
        "data": " ".join(map(str, given.values())) or "given in Python",
        **chosen,
        "tune_samples": len(study.tune),
        "test_samples": len(study.test),
        "method": study.method,
        "trials": len(result.trials),
        "tune_default": result.default.score,
        "tune_best": result.best.score,
        **{
            name: list(asdict(getattr(result, name)).values())
            for name in ("test_default", "test_best", "test_difference")
        },
        **known,
    }


def contact_sheet(study: Study, result: Result, before: Tensor, after: Tensor) -> heatmap.Heatmap:
    """Draw the first samples to test on, and their relevance by the default and the best, with the score of each."""
    count = min(SHOWN, len(study.test))
    rows = torch.arange(count, device=study.test.target.shares.device)
    batch, target = select(study.test.batch, rows), study.test.target.at(rows)
    found = [to_one(lrp(each)(study.model, batch, target)) for each in (study.space.default, result.composite)]
    scores = [[f"{value:.2f}" for value in each[:count].tolist()] for each in (before, after)]
    title = f"Relevance of test samples, each over its largest, and {study.score}"
    if isinstance(study.features, Tokens):
        names = [f"{row} {name} {scores[place][row]}" for row in range(count) for place, name in enumerate(NAMES)]
        return heatmap.trace(torch.stack(found, 1).flatten(0, 1), names, column_title="position", title=title)
    return heatmap.images(
        [[None] * count, *map(list, found)],
        [list(map(seen, single_input(batch)[1])), *[[None] * count] * 2],
        rows=["input", *NAMES],
        labels=[[""] * count, *([f"score {text}" for text in row] for row in scores)],
        vmax=1.0,
        title=title,
    )


def to_one(relevance: Tensor) -> Tensor:
    """Return relevance without channels, of which the largest absolute value in each sample is one."""
    summed = relevance.sum(1) if relevance.dim() == 4 else relevance
    largest = summed.abs().flatten(1).amax(1).clamp(min=torch.finfo(summed.dtype).tiny)
    return summed / largest.reshape(-1, *[1] * (summed.dim() - 1))
