"""Storage: an explanation as JSON, or as safetensors, in which its arrays stay as they are.

Reading builds nothing but texts and numbers, whatever a file holds.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from ..errors import InputError
from ..files import encoded, put
from .parts import Array, Part, Picture, Row, Segment, Signal, Text

if TYPE_CHECKING:
    from .explanation import Explanation

FORMAT, VERSION = "zennit-attn explanation", 1
KINDS: dict[str, Any] = {"text": Text, "image": Picture, "signal": Signal}
#: Attributes that are arrays.
ARRAYS = ("relevance", "pixels", "values")
#: What has their types in JSON, where a number does not tell its own.
DTYPES = "dtypes"
KIND_OF = {kind: name for name, kind in KINDS.items()}
#: What an explanation is about that is a text, if it is there.
NAMES = ("model", "preset", "target", "rather_than")


def to_dict(explanation: Explanation) -> dict[str, Any]:
    """Return everything as what JSON has."""
    content, arrays = taken_apart(explanation)
    for place, array in arrays.items():
        kind, _, name = place.partition(".")
        holder = content["answer"] if kind == "answer" else content["parts"][int(kind)]
        holder[name] = array.tolist()
        holder.setdefault(DTYPES, {})[name] = str(array.dtype)
    return content


def taken_apart(explanation: Explanation) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return what an explanation has beside its arrays, and the arrays by their places."""
    arrays: dict[str, Array] = {}

    def of(part: Part, place: str) -> dict[str, Any]:
        kind = next(name for name, kind in KINDS.items() if isinstance(part, kind))
        found: dict[str, Any] = {"kind": kind}
        for name, value in vars(part).items():
            if name in ARRAYS:
                arrays[f"{place}.{name}"] = np.asarray(value)
            elif name == "segments":
                found[name] = [[segment.kind, segment.name, list(segment.span)] for segment in value]
            else:
                found[name] = value
        return found

    content = {
        "format": FORMAT,
        "version": VERSION,
        "task": explanation.task,
        "about": explanation.about,
        "warnings": list(explanation.warnings),
        "rows": [vars(row) for row in explanation.rows],
        "parts": [of(part, str(number)) for number, part in enumerate(explanation.parts)],
        "answer": None if explanation.answer is None else of(explanation.answer, "answer"),
    }
    # tuples are lists there
    return json.loads(json.dumps(content)), arrays


def put_together(kind: type[Explanation], content: dict[str, Any], arrays: dict[str, Array]) -> Explanation:
    """Return the explanation of what :func:`taken_apart` returned."""

    def of(found: dict[str, Any], place: str) -> Any:
        found = dict(found)
        made = KINDS[found.pop("kind")]
        for name in ("spans", "special", "tokens"):
            if name in found:
                found[name] = tuple(tuple(item) if isinstance(item, list) else item for item in found[name])
        if "segments" in found:
            found["segments"] = tuple(Segment(kind, name, tuple(span)) for kind, name, span in found["segments"])
        named = {name: arrays[f"{place}.{name}"] for name in ARRAYS if f"{place}.{name}" in arrays}
        return made(**found, **named)

    rows = [{**row, "span": None if row["span"] is None else tuple(row["span"])} for row in content["rows"]]
    return checked(
        kind(
            content["task"],
            tuple(of(part, str(number)) for number, part in enumerate(content["parts"])),
            tuple(Row(**row) for row in rows),
            None if content["answer"] is None else of(content["answer"], "answer"),
            content["about"],
            tuple(content["warnings"]),
        )
    )


def checked(explanation: Explanation) -> Explanation:
    """Return an explanation of which all parts have the types and shapes that they say.

    Raises
    ------
    TypeError
        If one has not.
    """
    about = explanation.about
    texts = [explanation.task, *explanation.warnings, *(about.get(name) or "" for name in NAMES)]
    wrong = [] if are(texts, str) and explanation.parts and explanation.rows else ["the texts"]
    wrong += [f"row {number}" for number, row in enumerate(explanation.rows) if not is_row(row)]
    parts = [*explanation.parts, *([] if explanation.answer is None else [explanation.answer])]
    count = len(explanation.rows)
    wrong += [f"the {KIND_OF[type(part)]} {part.name!r}" for part in parts if not is_whole(part, count)]
    if wrong:
        raise TypeError(f"{wrong[0]} is not as it was written")
    return explanation


def are(values: Any, kind: Any) -> bool:
    """Tell whether values are of a type; True and False are no numbers."""
    return all(isinstance(value, kind) and (kind is bool or not isinstance(value, bool)) for value in values)


def is_row(row: Row) -> bool:
    """Tell whether a row has what it says."""
    numbers = [value for value in (row.value, row.logit) if value is not None]
    return (
        isinstance(row.label, str)
        and row.value is not None
        and are(numbers, (int, float))
        and are([row.index] if row.index is not None else [], int)
        and (row.span is None or is_span(row.span))
    )


def is_span(span: Any, size: float = math.inf) -> bool:
    """Tell whether something is a stretch of a text of some size."""
    return isinstance(span, tuple) and len(span) == 2 and are(span, int) and 0 <= span[0] <= span[1] <= size


def is_whole(part: Part, count: int) -> bool:
    """Tell whether a part has relevance for each of its elements, in some rows, and what is to be shown of them."""
    relevance = part.relevance
    is_finite = relevance.dtype.kind == "f" and bool(np.isfinite(relevance).all())
    if not is_finite or not isinstance(part.name, str) or not relevance.size:
        return False
    if isinstance(part, Text):
        return (
            are([part.text, *part.tokens], str)
            and are(part.special, bool)
            and all(is_span(span, len(part.text)) for span in part.spans)
            and all(are([each.kind, each.name], str) and is_span(each.span, len(part.text)) for each in part.segments)
            and {len(part.tokens), len(part.special), len(part.spans)} == {relevance.shape[-1]}
            and relevance.ndim == 2
            and len(relevance) == count
        )
    shown = part.pixels if isinstance(part, Picture) else part.values
    is_timed = isinstance(part, Picture) or part.rate is None or are([part.rate], (int, float))
    places = relevance.shape[-2:] if isinstance(part, Picture) else relevance.shape[1:]
    same = shown.shape[-2:] if isinstance(part, Picture) else shown.shape
    return is_timed and shown.dtype.kind in "fiu" and relevance.ndim == 3 and len(relevance) == count and places == same


def write_json(path: Path, explanation: Explanation) -> None:
    """Write an explanation as JSON."""
    put(path, encoded(json.dumps(to_dict(explanation), ensure_ascii=False)))


def write_safetensors(path: Path, explanation: Explanation) -> None:
    """Write an explanation as safetensors: its arrays, and the rest as metadata."""
    content, arrays = taken_apart(explanation)
    contiguous = {place: np.ascontiguousarray(array) for place, array in arrays.items()}
    put(path, save(contiguous, {"explanation": json.dumps(content)}))


def read(path: Path, kind: type[Explanation]) -> Explanation:
    """Read an explanation.

    Raises
    ------
    InputError
        If the file is none, or of a later version.
    """
    wanted = "expected a file that Explanation.save wrote as .json or .safetensors"
    try:
        if path.suffix.lower() == ".safetensors":
            with safe_open(path, "np") as file:
                content = json.loads((file.metadata() or {})["explanation"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}
        else:
            content = json.loads(path.read_text(encoding="utf-8"))
            arrays = {}
            for place, part in [*enumerate(content["parts"]), ("answer", content["answer"])]:
                for name, dtype in (part or {}).pop(DTYPES, {}).items():
                    arrays[f"{place}.{name}"] = np.array(part.pop(name), np.dtype(dtype))
        if content["format"] != FORMAT or content["version"] > VERSION:
            raise InputError(
                f"got {str(path)!r}, of the format {content['format']!r} {content['version']}; expected {FORMAT!r} "
                f"{VERSION}: write it again, or update zennit-attn"
            )
        return put_together(kind, content, arrays)
    except InputError:
        raise
    # whatever a file that is no explanation runs into
    except Exception as error:
        raise InputError(f"cannot read {str(path)!r} ({type(error).__name__}: {error}); {wanted}") from error
