"""Tables: the means of a study's scores, their intervals, and what cannot be told from the best."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..data.arrow import arrow
from ..data.parts import name_of
from ..data.run import noted
from ..errors import InputError
from ..evaluation import Interval, bootstrap, paired
from .study import title_of


@dataclass(eq=False)
class Scores:
    """What a study found.

    Attributes
    ----------
    settings : dict
        What it depends on, as ``run.json`` has it.
    values : dict
        ``{(method, score): {row: value}}``.
    errors : dict of int to str
        Rows without scores, and why.
    rows : int
        How many rows were looked at.
    """

    settings: dict[str, Any]
    values: dict[tuple[str, str], dict[int, float]] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    rows: int = 0

    @property
    def methods(self) -> list[str]:
        """The methods, as they were named."""
        return list(dict.fromkeys(method for method, _ in self.values))

    def of(self, method: str, score: str) -> torch.Tensor:
        """Return the values of a method's score, in the order of the rows that have it."""
        found = self.values.get((method, score), {})
        return torch.tensor([found[row] for row in sorted(found)], dtype=torch.float64)

    @cache  # noqa: B019
    def interval(self, method: str, score: str) -> Interval | None:
        """Return the mean of a score over rows, with its interval; None if another method has it in more rows."""
        values = self.of(method, score)
        is_whole = len(values) == self.scored(score) > 0 and bool(values.isfinite().all())
        return bootstrap(values) if is_whole else None

    @cache  # noqa: B019
    def scored(self, score: str) -> int:
        """Return how many rows have a score of any method."""
        return len({row for (_, name), found in self.values.items() if name == score for row in found})

    @cache  # noqa: B019
    def best(self, score: str) -> str | None:
        """Return the method with the best mean of a score, None if none has it in all rows."""
        whole = [method for method in self.methods if self.interval(method, score) is not None]
        return max(whole, key=lambda method: float(self.good(method, score).mean()), default=None)

    def good(self, method: str, score: str) -> torch.Tensor:
        """Return values of which the highest mean is the best: where a low one is, that nearest to zero."""
        values = self.of(method, score)
        return -values.mean().sign() * values if self.settings.get("lower") else values

    def behind(self, method: str, score: str) -> Interval | None:
        """Return how much better than the best one a method is, paired by rows; None if it does not have the score."""
        best = self.best(score)
        if best is None or self.interval(method, score) is None:
            return None
        return paired(self.good(method, score), self.good(best, score))


def open_scores(folder: str | os.PathLike[str]) -> Scores:
    """Open a folder that ``zennit-attn evaluate`` wrote, as far as it is there.

    Raises
    ------
    InputError
        If it is none.
    """
    folder = Path(folder)
    settings = noted(folder / "run.json")
    if "study" not in settings:
        raise InputError(f"got {str(folder)!r}, expected a folder that zennit-attn evaluate wrote")
    pa = arrow("a folder of scores")
    found = Scores(settings)
    for part in range(-(-settings["rows"] // settings["rows_per_part"])):
        file = folder / f"{name_of(part)}.parquet"
        if not file.exists():
            continue
        rows = set()
        for line in pa.parquet.read_table(file).to_pylist():
            rows.add(line["row"])
            if line["error"] is not None:
                found.errors[line["row"]] = line["error"]
            else:
                found.values.setdefault((line["method"], line["score"]), {})[line["row"]] = line["value"]
        found.rows += len(rows)
    return found


def markdown(scores: Scores, columns: Sequence[str]) -> str:
    """Return a table of means and intervals in Markdown.

    The best of a column is bold; so is what cannot be told from it, by the paired bootstrap.
    """
    lines = ["| method | " + " | ".join(columns) + " | seconds |", "|---|" + "---|" * (len(columns) + 1)]
    for method in scores.methods:
        cells = [cell(scores, method, score) for score in columns]
        seconds = scores.of(method, "seconds")
        median = float(seconds[seconds.isfinite()].median()) if len(seconds) else float("nan")
        cells.append(f"{median:.{4 if median < 0.01 else 2}f}" if math.isfinite(median) else "–")
        lines.append(f"| {title_of(method)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(scores: Scores, method: str, score: str) -> str:
    """Return a mean and its interval, bold if it is the best or cannot be told from it."""
    found, behind = scores.interval(method, score), scores.behind(method, score)
    if found is None or behind is None:
        return "–"
    mean = f"{found.mean:.2f}"
    return f"{f'**{mean}**' if behind.high >= 0 else mean} [{found.low:.2f}, {found.high:.2f}]"
