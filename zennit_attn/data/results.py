"""Results: a folder that a run filled, of which one row of a million is read as fast as any other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from ..errors import InputError
from ..explain import Explanation
from ..explain.loading import refused
from .arrow import arrow
from .columns import explanation_of
from .parts import name_of
from .run import FORMAT, noted

#: What is to be done about a part that is not as it was written.
AGAIN = "delete it, and run the same command again"


class Results:
    """The rows of a folder, counted as those of the input.

    Attributes
    ----------
    settings : dict
        What they depend on, as ``run.json`` has it.

    Examples
    --------
    >>> from zennit_attn.data import open_results
    >>> results = open_results("results")  # doctest: +SKIP
    >>> results[17].by("word"), results.column("value")  # doctest: +SKIP
    """

    def __init__(self, folder: Path, partial: bool) -> None:
        self.folder = folder
        self.settings = noted(folder / "run.json")
        if self.settings.get("format") != FORMAT:
            raise InputError(f"got {str(folder)!r}, expected a folder that zennit-attn explain --input wrote")
        about = folder / "about.json"
        self.about = noted(about) if about.exists() else {}
        numbers = [self.settings.get(name) for name in ("rows", "rows_per_part")]
        if not all(type(number) is int and number > 0 for number in numbers):
            raise InputError(f"got {str(folder)!r}, whose run.json has no numbers of rows; run the same command again")
        self.size = int(self.settings["rows_per_part"])
        count = -(-len(self) // self.size)
        self.there = [part for part in range(count) if self.file(part).exists()]
        if len(self.there) < count and not partial:
            raise InputError(
                f"got {str(folder)!r} with {len(self.there)} of {count} parts; run the same command again, which goes "
                "on, or open_results(folder, partial=True)"
            )
        self.pa = arrow("a folder of results")
        self._table = lru_cache(maxsize=16)(self._read)

    def __len__(self) -> int:
        return int(self.settings["rows"])

    def __getitem__(self, row: int) -> Explanation:
        """Return the explanation of a row.

        Raises
        ------
        InputError
            If the row could not be explained, or is not there.
        """
        return explanation_of(self.record(row), self.arrays(row), self.about)

    def record(self, row: int) -> dict[str, Any]:
        """Return the columns of a row.

        Raises
        ------
        InputError
            If it is not there.
        """
        if not 0 <= row < len(self):
            raise InputError(f"got the row {row}, expected 0 to {len(self) - 1}")
        if row // self.size not in self.there:
            raise InputError(f"got the row {row} of the part {row // self.size}, which is not there yet")
        return dict(self._table(row // self.size).slice(row % self.size, 1).to_pylist()[0])

    def arrays(self, row: int) -> dict[str, np.ndarray[Any, Any]]:
        """Return the arrays of a row by their places: relevance and pixels of images, for example."""
        file = self.file(row // self.size).with_suffix(".safetensors")
        if not file.exists():
            return {}
        with refused(f"cannot read {str(file)!r}", AGAIN), safe_open(file, "np") as found:
            own = [name for name in found.keys() if name.startswith(f"{row}/")]
            return {name.partition("/")[2]: found.get_tensor(name) for name in own}

    def column(self, name: str) -> list[Any]:
        """Return a column of all rows that are there.

        Raises
        ------
        InputError
            If there is no such column.
        """
        found: list[Any] = []
        for part in self.there:
            with self.opened(part) as file:
                if name not in file.schema_arrow.names:
                    raise InputError(f"got the column {name!r}, expected one of {file.schema_arrow.names}")
                found += file.read([name]).column(name).to_pylist()
        return found

    def errors(self) -> dict[int, str]:
        """Return why rows could not be explained, by their numbers."""
        rows = zip(self.column("row"), self.column("error"), strict=True)
        return {row: error for row, error in rows if error is not None}

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the columns of all rows that are there."""
        for part in self.there:
            yield from self._read(part).to_pylist()

    def file(self, part: int) -> Path:
        """Return the file of a part."""
        return self.folder / f"{name_of(part)}.parquet"

    @contextmanager
    def opened(self, part: int) -> Iterator[Any]:
        """Open the file of a part.

        Raises
        ------
        InputError
            If it is not as it was written.
        """
        path = self.file(part)
        with (
            refused(f"cannot read {str(path)!r}", AGAIN),
            self.pa.parquet.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file,
        ):
            yield file

    def _read(self, part: int) -> Any:
        # a table of one small file: threads and the look for more files would take longer than the reading
        with self.opened(part) as file:
            return file.read(use_threads=False)


def open_results(folder: str | os.PathLike[str], partial: bool = False) -> Results:
    """Open a folder that ``zennit-attn explain --input`` wrote.

    Parameters
    ----------
    folder : str or path
        The folder.
    partial : bool, optional
        Whether it may lack parts.

    Returns
    -------
    Results
        ``results[17]`` is an explanation, ``results.record(17)`` its columns, ``results.column("value")`` one column.

    Raises
    ------
    InputError
        If it is no such folder, or lacks parts.
    """
    return Results(Path(folder), partial)
