"""Batch: many texts or images, explained one by one into a folder, which is gone on with where it was left.

The folder gets a picture of each row, ``results.jsonl`` (a line for each row that was tried), and ``run.json`` (what
they were made with). Relevance of images is in a ``.npy`` file each. Rows are not put together into larger inputs, so
that none depends on how long others are.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm  # type: ignore[import-untyped]

from ..errors import InputError
from ..explain import Explainer, Explanation
from ..explain.parts import Text
from ..hints import nearest
from .journal import append, complete_lines

#: Keys of a line of the input; ``id`` is handed on.
KEYS = ("text", "image", "target", "id")


@dataclass(frozen=True)
class Row:
    """One text or image of a batch.

    Attributes
    ----------
    name : str
        Number of the line, or name of the file; names what is written.
    given : str, pathlib.Path or None
        The text or the file; None if the line could not be read.
    target : str or None
        Token or class.
    id : Any
        What the line has as ``id``.
    error : str
        Why the line could not be read.
    """

    name: str
    given: str | Path | None = None
    target: str | None = None
    id: Any = None
    error: str = ""


def rows_of(source: Path, target: str | None) -> list[Row]:
    """Return the rows of a JSONL file, or of a folder of images.

    Parameters
    ----------
    source : pathlib.Path
        The file or the folder.
    target : str, optional
        Target of rows that have none of their own.

    Raises
    ------
    InputError
        If it has no rows, or cannot be read.
    """
    if source.is_dir():
        readable = Image.registered_extensions()
        files = sorted(file for file in source.iterdir() if file.suffix.lower() in readable)
        rows = [Row(file.name, file, target) for file in files]
    else:
        try:
            # not splitlines: a text may hold other line separators
            lines = source.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"cannot read --input {str(source)!r} ({error}); expected a JSONL file in UTF-8, or a folder of images"
            ) from error
        found = (row_of(number, line, source.parent) for number, line in enumerate(lines, 1) if line.strip())
        rows = [row if row.target is not None else replace(row, target=target) for row in found]
    if not rows:
        raise InputError(
            f"got --input {str(source)!r} without a row, expected lines such as "
            '{"text": "the keys"}, or a folder with images in it'
        )
    return rows


def row_of(number: int, line: str, folder: Path) -> Row:
    """Return the row of a line; images are looked for from the folder of the file."""
    name = f"{number:05d}"
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        return Row(name, error=f"is not valid JSON: {error}")
    if not isinstance(content, dict):
        return Row(name, error=f'got {line!r}, expected an object, such as {{"text": "the keys"}}')
    for key in content:
        if key not in KEYS:
            return Row(name, error=f"got the key {key!r}, expected some of {KEYS}; {nearest(key, KEYS)}")
    given = [content[key] for key in ("text", "image") if key in content]
    if len(given) != 1 or not isinstance(given[0], str):
        return Row(name, error=f"got {sorted(content)}, expected either a text or an image, as a string")
    target = content.get("target")
    target = None if target is None else str(target)
    return Row(name, given[0] if "text" in content else folder / given[0], target, content.get("id"))


class Results:
    """The folder of a batch: what is done, and what was made with what.

    Parameters
    ----------
    folder : pathlib.Path
        The folder; it is made if need be.
    settings : mapping
        What all results depend on.

    Raises
    ------
    InputError
        If the folder has results of other settings, or is not one.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self.file = folder, folder / "results.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the folder --out {str(folder)!r} ({error}); choose another one") from error
        self.check(settings)
        self.records = {record["row"]: record for record in self.read()}

    def check(self, settings: Mapping[str, Any]) -> None:
        """Write the settings, or raise if there are others."""
        file, text = self.folder / "run.json", json.dumps(settings, indent=2, ensure_ascii=False)
        if not file.exists():
            file.write_text(text, encoding="utf-8")
            return
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
            differs = [key for key in settings if before.get(key) != json.loads(text)[key]]
        except (AttributeError, ValueError) as error:
            raise InputError(f"cannot read {str(file)!r} ({error}); choose another --out") from error
        if differs:
            key = differs[0]
            raise InputError(
                f"--out {str(self.folder)!r} has results of a run with {key}={before.get(key)!r}, this one has "
                f"{settings[key]!r}; choose another folder, or delete that one"
            )

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the records of runs before."""
        for number, line in enumerate(complete_lines(self.file), 1):
            try:
                record = json.loads(line)
                record["row"]
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(f"cannot read line {number} of {str(self.file)!r} ({error!r}); delete it") from error
            yield record

    def is_done(self, row: Row) -> bool:
        """Tell whether a row was explained, as it is now."""
        record = self.records.get(row.name, {})
        same = record.get("input") == str(row.given) and record.get("asked") == row.target
        return same and "picture" in record and (self.folder / record["picture"]).exists()

    def add(self, record: dict[str, Any]) -> None:
        """Write a record down."""
        self.records[record["row"]] = record
        append(self.file, record)


def run(explainer: Explainer, rows: list[Row], results: Results, contrastive: bool, suffix: str) -> dict[str, int]:
    """Explain all rows that are not done yet; one that fails is reported, and the rest goes on.

    Returns
    -------
    dict of str to int
        How many rows are ``done``, were ``skipped`` because they had been, and ``failed``.
    """
    counts = {"done": 0, "skipped": 0, "failed": 0}
    reported: set[str] = set()
    for row in tqdm(rows, unit="row", disable=None):
        if results.is_done(row):
            counts["skipped"] += 1
            continue
        record = {
            "row": row.name,
            "id": row.id,
            "input": None if row.given is None else str(row.given),
            "asked": row.target,
        }
        try:
            if row.given is None:
                raise InputError(row.error)
            explanation = explainer(row.given, target=row.target, contrastive=contrastive)
            record |= saved(explanation, results.folder, row.name, suffix)
        except InputError as error:
            counts["failed"] += 1
            results.add({**record, "error": str(error)})
            tqdm.write(f"row {row.name}: {error}", file=sys.stderr)
            continue
        results.add(record)
        counts["done"] += 1
        for message in set(explanation.warnings) - reported:
            reported.add(message)
            tqdm.write(f"warning, in row {row.name}: {message}", file=sys.stderr)
    return counts


def saved(explanation: Explanation, folder: Path, name: str, suffix: str) -> dict[str, Any]:
    """Write the picture of an explanation, and return what a record says of it."""
    explanation.picture().save(folder / f"{name}{suffix}")
    record = {**summary(explanation), "picture": f"{name}{suffix}"}
    if isinstance(explanation.parts[0], Text):
        return {**record, "tokens": list(explanation.tokens), "relevance": explanation.relevance.tolist()}
    np.save(folder / f"{name}.npy", explanation.relevance)
    return {**record, "relevance_file": f"{name}.npy"}


def summary(explanation: Explanation) -> dict[str, Any]:
    """Return what is explained, for JSON."""
    return {
        "target": {"index": explanation.rows[0].index, "label": explanation.label},
        "logit": explanation.rows[0].logit,
        "explained": explanation.value,
    }
