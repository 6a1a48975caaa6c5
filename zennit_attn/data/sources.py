"""Sources: the rows of a file or a folder, of which any stretch can be read by itself."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..explain.images import suffixes
from ..files import check_file
from .arrow import arrow

#: A row, or why it could not be read.
Row = Mapping[str, Any] | InputError
#: How many bytes a line may have; a longer one is not read.
LONGEST = 2**24
WANTED = ".parquet, .jsonl, .csv, .txt with a text in each line, or a folder of images or of parquet files"


class Source(ABC):
    """Rows that are counted from 0.

    Attributes
    ----------
    path : pathlib.Path
        Where they are.
    folder : pathlib.Path
        Where files are looked for that rows name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path if path.is_dir() else path.parent

    def __reduce__(self) -> Any:
        # opened again where it is sent to
        return source_of, (self.path,)

    @abstractmethod
    def __len__(self) -> int:
        """Return how many rows there are."""

    @abstractmethod
    def read(self, start: int, end: int) -> list[Row]:
        """Return the rows from one to another."""

    def one(self, row: int) -> Mapping[str, Any]:
        """Return a row.

        Raises
        ------
        InputError
            If it cannot be read.
        """
        (found,) = self.read(row, row + 1)
        if isinstance(found, InputError):
            raise found
        return found

    def digest(self) -> str:
        """Return a fingerprint of everything that is read: another input has another one."""
        found = hashlib.blake2b(digest_size=12)
        with self.path.open("rb") as file:
            while block := file.read(1 << 22):
                found.update(block)
        return found.hexdigest()


class Lines(Source):
    """A file of lines: a JSON object in each (``.jsonl``), or a text (``.txt``)."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.is_json = path.suffix.lower() != ".txt"
        # where each line begins; not held itself, so that a file may be larger than memory
        places, position = [np.zeros(1, np.int64)], 0
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                places.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + position + 1)
                position += len(block)
        ends = np.concatenate(places)
        self.places = ends if ends[-1] == position else np.append(ends, position)

    def __len__(self) -> int:
        return len(self.places) - 1

    def read(self, start: int, end: int) -> list[Row]:
        """Return the rows of some lines."""
        with self.path.open("rb") as file:
            return [self.row_at(file, place) for place in range(start, min(end, len(self)))]

    def row_at(self, file: Any, place: int) -> Row:
        """Return the row of a line, which is read alone, so that no more than one is in memory."""
        first, size = int(self.places[place]), int(self.places[place + 1] - self.places[place])
        if size > LONGEST:
            return InputError(f"the line has {size} bytes, expected at most {LONGEST}; cut it")
        file.seek(first)
        return self.row(file.read(size).removesuffix(b"\n"))

    def row(self, line: bytes) -> Row:
        """Return the row of a line."""
        try:
            text = line.decode("utf-8").removesuffix("\r")
            if not self.is_json:
                return {"text": text}
            content = json.loads(text)
        # of lists in lists in lists Python has enough at some depth
        except (ValueError, RecursionError) as error:
            return InputError(f"the line is not {'valid JSON' if self.is_json else 'UTF-8'}: {error}")
        if not isinstance(content, dict):
            some = text if len(text) < 100 else f"{text[:100]}..."
            return InputError(f'got {some!r}, expected an object, such as {{"text": "the keys"}}')
        return content


class Tables(Source):
    """Files of columns: one in CSV, or one or several in parquet."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        pa = arrow("--input of columns")
        self.files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        for file in self.files:
            check_file(file)
        try:
            if path.suffix.lower() == ".csv":
                self.tables: list[Any] = [pa.csv.read_csv(path)]
                self.counts = [self.tables[0].num_rows]
            else:
                self.tables = [
                    pa.parquet.ParquetFile(file, memory_map=True, page_checksum_verification=True)
                    for file in self.files
                ]
                self.counts = [table.metadata.num_rows for table in self.tables]
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"cannot read {str(path)!r} ({error}); expected {WANTED}") from error

    def __len__(self) -> int:
        return sum(self.counts)

    def read(self, start: int, end: int) -> list[Row]:
        """Return the rows of a stretch, of which only the groups are read that have some of it."""
        found: list[Row] = []
        first = 0
        for table, count in zip(self.tables, self.counts, strict=True):
            low, high = max(start - first, 0), min(end - first, count)
            if low < high:
                found += readable_rows(table, low, high)
            first += count
        return found

    def digest(self) -> str:
        """Return a fingerprint of the files."""
        if not self.path.is_dir():
            return super().digest()
        return of_names([f"{file.name} {Tables(file).digest()}" for file in self.files])


def readable_rows(table: Any, low: int, high: int) -> list[Row]:
    """Return rows of a table, each an error if the stretch cannot be read."""
    try:
        return rows_of(table, low, high)
    # Arrow's own errors are of these kinds
    except (OSError, ValueError, MemoryError, NotImplementedError) as error:
        return [InputError(f"cannot read the rows {low} to {high - 1} of their file ({error})")] * (high - low)


def rows_of(table: Any, low: int, high: int) -> list[Row]:
    """Return rows of a table of Arrow, or of a parquet file."""
    if hasattr(table, "slice"):
        return list(table.slice(low, high - low).to_pylist())
    groups, first, skipped = [], 0, None
    for group in range(table.num_row_groups):
        count = table.metadata.row_group(group).num_rows
        if first < high and first + count > low:
            skipped = low - first if skipped is None else skipped
            groups.append(group)
        first += count
    return list(table.read_row_groups(groups).slice(skipped, high - low).to_pylist())


class Images(Source):
    """A folder of images; those in folders inside of it have the folder's name as their ``class``."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        found = (file for place in (path.glob("*"), path.glob("*/*")) for file in place)
        # what is no file, or leads to none, is a row all the same, which says so
        self.files = sorted(file for file in found if file.suffix.lower() in suffixes() and not file.is_dir())

    def __len__(self) -> int:
        return len(self.files)

    def read(self, start: int, end: int) -> list[Row]:
        """Return the rows of some images."""
        inside = [file.relative_to(self.path) for file in self.files[start:end]]
        has_classes = any(file.parent != self.path for file in self.files)
        return [{"image": str(name), **({"class": name.parent.name or None} if has_classes else {})} for name in inside]

    def digest(self) -> str:
        """Return a fingerprint of the files' names and sizes: reading a million images would take hours."""
        return of_names([f"{file.relative_to(self.path)} {size_of(file)}" for file in self.files])


def size_of(file: Path) -> int:
    """Return the size of a file, -1 for a link that leads to none."""
    try:
        return file.stat().st_size
    except OSError:
        return -1


def of_names(names: list[str]) -> str:
    """Return a fingerprint of some lines."""
    return hashlib.blake2b("\n".join(names).encode(errors="surrogateescape"), digest_size=12).hexdigest()


def source_of(path: Path) -> Source:
    """Return the source at a path.

    Raises
    ------
    InputError
        If it is none, or has no rows.
    """
    kinds: dict[str, type[Source]] = {
        ".parquet": Tables, ".csv": Tables, ".jsonl": Lines, ".ndjson": Lines, ".txt": Lines
    }  # fmt: skip
    if not path.exists():
        raise InputError(f"cannot read --input {str(path)!r}: there is no such file; expected {WANTED}")
    if path.is_dir():
        kind: type[Source] = Tables if any(path.glob("*.parquet")) else Images
    elif path.is_file() and path.suffix.lower() in kinds:
        kind = kinds[path.suffix.lower()]
    else:
        raise InputError(f"got --input {str(path)!r}, expected {WANTED}")
    source = kind(path)
    if not len(source):
        raise InputError(f"got --input {str(path)!r} without a row, expected {WANTED}")
    return source
