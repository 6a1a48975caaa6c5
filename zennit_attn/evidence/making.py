"""Making: the parts of a folder of scores, by whatever engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..data.arrow import arrow
from ..data.engines import Maker
from ..data.parts import name_of
from ..errors import InputError
from ..files import put
from .study import Study


@dataclass
class Measuring(Maker):
    """Makes parts of scores: a row for each row of the input, method and score.

    Attributes
    ----------
    study : Study
        What is measured.
    """

    study: Study = field(kw_only=True)

    def fill(self, part: int, start: int, table: Sequence[Mapping[str, Any] | InputError]) -> int:
        """Make a part of the rows from a number; return how many could not be measured."""
        pa = arrow("a folder of scores")
        # scores of other weights do not belong here
        about = self.about()
        self.run.note("about.json", {name: about[name] for name in ("class", "digest", "dtype")})
        rows = [row for row in table if not isinstance(row, InputError)]
        measured = iter(self.study.measure(self.explain, rows))
        found = [row if isinstance(row, InputError) else next(measured) for row in table]
        columns: dict[str, list[Any]] = {name: [] for name in ("row", "method", "score", "value", "error")}
        for row, each in enumerate(found, start):
            if isinstance(each, InputError):
                add(columns, row, error=str(each))
                continue
            for method, scores in each.items():
                for score, value in scores.items():
                    add(columns, row, method, score, value)
        types = dict(zip(columns, (pa.int64(), pa.string(), pa.string(), pa.float64(), pa.string()), strict=True))
        sink = pa.BufferOutputStream()
        pa.parquet.write_table(pa.table(columns, pa.schema(types.items())), sink, compression="zstd")
        put(self.run.folder / f"{name_of(part)}.parquet", sink.getvalue())
        return sum(isinstance(each, InputError) for each in found)


def add(
    columns: dict[str, list[Any]],
    row: int,
    method: str | None = None,
    score: str | None = None,
    value: float | None = None,
    error: str | None = None,
) -> None:
    """Add a line."""
    for column, item in zip(columns.values(), (row, method, score, value, error), strict=True):
        column.append(item)
