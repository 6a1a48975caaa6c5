"""Run: a folder that is filled part by part, by one process or by several, and gone on with where it was left.

Part ``i`` has the rows from ``i * size``, of one input. A part is there as a whole or not at all, and a lock, which
goes with the process that has it, keeps two processes from making the same one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout  # a requirement of torch

from ..errors import InputError
from ..files import put
from .parts import name_of

FORMAT, VERSION = "zennit-attn results", 1


class Run:
    """A folder of results.

    Parameters
    ----------
    folder : pathlib.Path
        The folder; it is made if need be.
    settings : mapping
        What all results depend on, the input among it, for JSON.
    rows : int
        How many rows the input has.
    size : int
        How many rows a part has.
    kind : str, optional
        What it is filled with.
    ending : str, optional
        Of the file that tells that a part is there.

    Raises
    ------
    InputError
        If the folder has results of other settings, or is not one.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        rows: int,
        size: int,
        kind: str = FORMAT,
        ending: str = ".parquet",
    ) -> None:
        if size < 1:
            raise InputError(f"got {size} rows for a part, expected at least 1")
        self.folder, self.rows, self.size, self.ending = folder, rows, size, ending
        self.parts = -(-rows // size)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the folder --out {str(folder)!r} ({error}); choose another one") from error
        self.settings = {"format": kind, "version": VERSION, **settings, "rows": rows, "rows_per_part": size}
        self.note("run.json", self.settings)

    def note(self, name: str, content: Mapping[str, Any]) -> None:
        """Write down what this run depends on, or raise if the folder is of a run that had something else."""
        file, text = self.folder / name, json.dumps(content, indent=2, ensure_ascii=False)
        with FileLock(self.locked(name)):
            if not file.exists():
                put(file, text.encode())
                return
        before = noted(file, self.settings["format"])
        for key, value in json.loads(text).items():
            if before.get(key) != value:
                raise InputError(
                    f"--out {str(self.folder)!r} has results of a run with {key}={before.get(key)!r}, this one has "
                    f"{value!r}; choose another folder, or delete that one"
                )

    def locked(self, name: str) -> Path:
        """Return the file whose lock stands for a name."""
        return lock_of(self.folder, name)

    def stretch(self, part: int) -> tuple[int, int]:
        """Return the first row of a part, and that after its last."""
        return part * self.size, min((part + 1) * self.size, self.rows)

    def file(self, part: int) -> Path:
        """Return the file that tells that a part is there."""
        return self.folder / f"{name_of(part)}{self.ending}"

    def is_there(self, part: int) -> bool:
        """Tell whether a part is done."""
        return self.file(part).exists()

    @contextmanager
    def claim(self, part: int) -> Iterator[bool]:
        """Keep a part from others as long as this is open; tell whether it is to be made here."""
        try:
            with FileLock(self.locked(name_of(part)), timeout=0):
                # another one may have made it just before
                yield not self.is_there(part)
        except Timeout:
            yield False


def lock_of(folder: Path, name: str) -> Path:
    """Return the file of a folder whose lock stands for a name."""
    locks = folder / ".locks"
    locks.mkdir(exist_ok=True)
    return locks / name


def noted(file: Path, kind: str = FORMAT) -> dict[str, Any]:
    """Return what a run wrote down.

    Parameters
    ----------
    file : pathlib.Path
        Where it did.
    kind : str, optional
        What its folder is filled with.

    Raises
    ------
    InputError
        If it is no such file, or of a later version.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found.get("format", kind) != kind or found.get("version", 0) > VERSION:
            raise InputError(
                f"got {str(file)!r} of the format {found.get('format')!r} {found.get('version')}, expected {kind!r} "
                f"{VERSION}: choose another folder, or update zennit-attn"
            )
    except InputError:
        raise
    except (OSError, AttributeError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {str(file)!r} ({error}); choose another --out") from error
    return dict(found)
