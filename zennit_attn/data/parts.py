"""Parts: explanations of a stretch of rows, written as a whole or not at all.

Text is in ``part-00003.parquet``; what has more dimensions is in ``part-00003.safetensors``, by row and place
(``17/0.relevance``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from ..errors import InputError
from ..explain import Explanation
from ..files import encoded, put
from .arrow import arrow
from .buckets import Found
from .columns import READ, WRITTEN, arrays_of, record_of

#: What is handed on of the columns that are read, where it is no file's content.
NAMED = (str, int, float, bool)


@dataclass(frozen=True)
class Precision:
    """How relevance is kept.

    Attributes
    ----------
    kind : str
        ``"float32"`` or ``"float16"``; in float64 nothing is lost of models in float64.
    patch : int or None
        Size of the patches of which an image's sums are kept, and the mean of its pixels.
    """

    kind: str = "float32"
    patch: int | None = None


def name_of(number: int) -> str:
    """Return the name of a part without its ending."""
    return f"part-{number:05d}"


def write(
    folder: Path,
    number: int,
    first: int,
    table: Sequence[Mapping[str, Any] | InputError],
    found: Sequence[Found],
    precision: Precision,
) -> None:
    """Write a part.

    Parameters
    ----------
    folder : pathlib.Path
        Where to.
    number : int
        Which part it is.
    first : int
        The number of its first row.
    table : sequence of mapping
        What was read.
    found : sequence of Explanation or InputError
        What was found.
    precision : Precision
        How relevance is kept.
    """
    pa = arrow("a folder of results")
    kind = np.dtype(precision.kind)
    arrays = {
        f"{row}/{place}": values
        for row, each in enumerate(found, first)
        if isinstance(each, Explanation)
        for place, values in arrays_of(each, precision.patch, kind).items()
    }
    if arrays:
        put(folder / f"{name_of(number)}.safetensors", save(arrays))
    # what tells that the part is there comes last
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(table_of(pa, first, table, found, kind), sink, compression="zstd", write_page_checksum=True)
    put(folder / f"{name_of(number)}.parquet", sink.getvalue())


def table_of(
    pa: Any, first: int, table: Sequence[Mapping[str, Any] | InputError], found: Sequence[Found], kind: Any
) -> Any:
    """Return rows and what was found as a table of Arrow."""
    records = [record_of(each) if isinstance(each, Explanation) else {"error": str(each)} for each in found]
    numbers = pa.list_(pa.from_numpy_dtype(kind))
    columns: dict[str, Any] = {"row": pa.array(range(first, first + len(found)), pa.int64())}
    columns |= handed_on(pa, table)
    types = {
        "explained": pa.string(),
        "index": pa.int64(),
        "logit": pa.float64(),
        "value": pa.float64(),
        "tokens": pa.list_(pa.string()),
        "relevance": numbers,
        "matrix": numbers,
        "warnings": pa.list_(pa.string()),
        "error": pa.string(),
        "explanation": pa.string(),
    }
    for name, wanted in types.items():
        values: list[Any] = [storable(record.get(name)) for record in records]
        if wanted == numbers:
            values = [None if value is None else value.astype(kind) for value in values]
        columns[name] = pa.array(values, wanted)
    return pa.table(columns)


def handed_on(pa: Any, table: Sequence[Mapping[str, Any] | InputError]) -> dict[str, Any]:
    """Return the columns of the input that results have, too: names of files, texts, and what nobody read."""
    rows = [row if isinstance(row, Mapping) else {} for row in table]
    found = {}
    for name in dict.fromkeys(name for row in rows for name in row if name not in WRITTEN):
        values = [storable(row.get(name)) for row in rows]
        if name in READ and not all(value is None or isinstance(value, NAMED) for value in values):
            continue
        found[storable(name)] = array_of(pa, values)
    return found


def array_of(pa: Any, values: list[Any]) -> Any:
    """Return values as an array of Arrow; as JSON if they are of several kinds, or of one that no file has."""
    try:
        found = pa.array(values)
        if pa.types.is_nested(found.type):
            # objects without a key, and lists in lists in lists
            sink = pa.BufferOutputStream()
            pa.parquet.write_table(pa.table({"": found}), sink)
            pa.parquet.ParquetFile(pa.BufferReader(sink.getvalue())).close()
        return found
    # an integer of too many digits, and half of a character
    except (pa.ArrowException, OSError, OverflowError, TypeError, UnicodeEncodeError):
        return pa.array([None if value is None else json.dumps(value, default=str) for value in values])


def storable(value: Any) -> Any:
    """Return texts without halves of characters, which no file has, but names of files and JSON may."""
    if isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value):
        return [storable(each) for each in value]
    return encoded(value).decode("utf-8") if isinstance(value, str) else value
