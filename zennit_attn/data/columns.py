"""Columns: a row of a table as the question that it asks, and an explanation as a row of a table."""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..explain import Explainer, Explanation
from ..explain.parts import Array, Text
from ..explain.questions import Question
from ..explain.storage import put_together, taken_apart
from ..explain.tasks import ANSWERING
from ..hints import nearest

#: Columns that are read; all others are handed on.
READ = ("text", "second", "question", "image", "texts", "audio", "series", "messages", "documents", "answer", "target")
#: Columns that are written.
WRITTEN = (
    "row", "explained", "index", "logit", "value", "tokens", "relevance", "matrix", "warnings", "error", "explanation"
)  # fmt: skip
#: What says that a model is to answer.
ANSWERED = ("messages", "answer", "documents")


@functools.cache
def fault_of(name: str) -> str:
    """Return what is wrong with a column's name: it could be meant as another one, or would be written over."""
    close = difflib.get_close_matches(name, READ, n=1, cutoff=0.8)
    if name not in READ and close:
        return f"got the column {name!r}, which is like {close[0]!r} and would not be read; rename it"
    return f"got the column {name!r}, which results have, too; rename it" if name in WRITTEN else ""


def check_names(names: Mapping[str, Any]) -> None:
    """Raise InputError if a column has a name that it must not have."""
    for name in names:
        if fault_of(name):
            raise InputError(fault_of(name))


@dataclass(frozen=True)
class Files:
    """Which files rows may name.

    Attributes
    ----------
    folder : pathlib.Path
        Where names are looked for.
    within : pathlib.Path
        What they have to be in, wherever a link or ``..`` leads to.
    """

    folder: Path
    within: Path

    def named(self, value: Any) -> Any:
        """Return the path of a file that a row names; what is no name stays what it is.

        Raises
        ------
        InputError
            If it is elsewhere.
        """
        if not isinstance(value, str):
            return value
        path = self.folder / value
        try:
            is_inside = path.resolve().is_relative_to(self.within.resolve())
        # links in a circle, and names that no file can have
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(f"cannot read {value!r} ({error}); expected a file") from error
        if not is_inside:
            raise InputError(
                f"got the file {value!r}, which is not in {str(self.within)!r}; expected one that is: say which files "
                "rows may name, by --files-within FOLDER, in Python by within="
            )
        return path

    def image(self, value: Any) -> Any:
        """Return an image that a row names, or holds as data sets do: ``{"bytes": ..., "path": ...}``."""
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        return self.named(value)

    def messages(self, messages: Any) -> Any:
        """Return messages with the images that they name; what is wrong with them is said by who reads them."""
        return [self.message(each) for each in messages] if isinstance(messages, list) else messages

    def message(self, message: Any) -> Any:
        """Return a message with the images that it names."""
        content = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(content, list):
            return message
        parts = [
            {name: self.image(value) if name in ("image", "path") else value for name, value in part.items()}
            if isinstance(part, Mapping)
            else part
            for part in content
        ]
        return {**message, "content": parts}


def question_of(
    explainer: Explainer,
    row: Mapping[str, Any],
    files: Files,
    target: Any,
    contrastive: bool,
    answer: Mapping[str, Any],
) -> Question:
    """Return what a row asks.

    Parameters
    ----------
    explainer : Explainer
        Whom it asks.
    row : mapping
        Column to value; those that are None are not there.
    files : Files
        Which files it may name.
    target : Any
        Target of rows that have none of their own.
    contrastive : bool
        Whether to set the logit against the others.
    answer : mapping
        Options of :meth:`zennit_attn.Explainer.answer`.

    Raises
    ------
    InputError
        If something is missing, or does not fit.
    """
    read = {"image": files.image, "audio": files.named, "messages": files.messages}
    given = {name: read.get(name, same)(value) for name, value in row.items() if name in READ and value is not None}
    target = given.pop("target", target)
    task = explainer.task
    if task.name in ANSWERING and (task.read is None or set(ANSWERED) & given.keys()):
        if target is not None:
            raise InputError("got a target for an answer, expected none: all of its tokens are explained")
        (prompt,) = taken(given, (("messages",), ("text",), ("audio",)), ("image", "documents", "answer"), task.name)
        options = {**answer, "image": given.get("image")}
        return explainer.question_of_answer(prompt, given.get("answer"), documents=given.get("documents"), **options)
    values = taken(given, task.columns, (), task.name)
    return explainer.question(*values, target=target, contrastive=contrastive)


def same(value: Any) -> Any:
    """Return a value as it is."""
    return value


def taken(
    given: Mapping[str, Any], wanted: tuple[tuple[str, ...], ...], also: tuple[str, ...], task: str
) -> tuple[Any, ...]:
    """Return the values of the columns that a task takes.

    Raises
    ------
    InputError
        If a row has others, or lacks some.
    """
    there = given.keys() - set(also)
    for names in wanted:
        if there == set(names):
            return tuple(given[name] for name in names)
    expected = ", or ".join(" and ".join(names) for names in wanted)
    got = " and ".join(sorted(there)) or "nothing to explain"
    raise InputError(f"got {got} for {task}, expected the columns {expected}; {nearest(got, READ)}")


def record_of(explanation: Explanation) -> dict[str, Any]:
    """Return an explanation as the values of :data:`WRITTEN`; what is no text has its arrays elsewhere."""
    content, arrays = taken_apart(explanation)
    about = content["about"]
    for name in ("format", "version", "about"):
        del content[name]
    # the rest of it is the same for all rows
    content["asked"] = {name: about[name] for name in ("target", "rows") if name in about}
    one = len(explanation.rows) == 1
    texts = [name for name in arrays if is_of_text(content, name)]
    every = [arrays[name] for name in texts]
    return {
        "explained": explanation.label,
        "index": explanation.rows[0].index if one else None,
        "logit": explanation.rows[0].logit if one else None,
        "value": explanation.value,
        "tokens": [token for text in texts_of(explanation) for token in text.tokens],
        "relevance": np.concatenate([values.sum(0) for values in every]) if every else None,
        "matrix": None if one or not every else np.concatenate([values.ravel() for values in every]),
        "warnings": content.pop("warnings"),
        "error": None,
        "explanation": json.dumps(content, ensure_ascii=False),
    }


def texts_of(explanation: Explanation) -> list[Text]:
    """Return the texts of an explanation, its answer last."""
    return [part for part in (*explanation.parts, explanation.answer) if isinstance(part, Text)]


def is_of_text(content: Mapping[str, Any], name: str) -> bool:
    """Tell whether an array is the relevance of a text."""
    place = name.partition(".")[0]
    part = content["answer"] if place == "answer" else content["parts"][int(place)]
    return bool(part["kind"] == "text")


def arrays_of(explanation: Explanation, patch: int | None, kind: Any) -> dict[str, Array]:
    """Return the arrays of what is no text, by their places.

    Parameters
    ----------
    explanation : Explanation
        The explanation.
    patch : int or None
        Size of the patches of which the sums are kept, and the mean of the pixels.
    kind : numpy.dtype
        Of relevance. Pixels are bytes.
    """
    content, arrays = taken_apart(explanation)
    found = {}
    for name, values in arrays.items():
        if is_of_text(content, name):
            continue
        if patch is not None and content["parts"][int(name.partition(".")[0])]["kind"] == "image":
            values = patched(values, patch) / (patch**2 if name.endswith(".pixels") else 1)
        if name.endswith(".pixels"):
            values = (values * 255).round().astype(np.uint8)
        found[name] = np.ascontiguousarray(values.astype(kind) if name.endswith(".relevance") else values)
    return found


def patched(values: Array, patch: int) -> Array:
    """Return the sums over square patches of the last two axes.

    Raises
    ------
    InputError
        If patches do not cover them.
    """
    *first, height, width = values.shape
    if height % patch or width % patch:
        raise InputError(f"got patches of {patch} for an image of {(height, width)}, expected a divisor of both")
    return values.reshape(*first, height // patch, patch, width // patch, patch).sum((-3, -1))


def explanation_of(record: Mapping[str, Any], arrays: Mapping[str, Array], about: Mapping[str, Any]) -> Explanation:
    """Return the explanation of a record.

    Raises
    ------
    InputError
        If the row could not be explained.
    """
    if record["error"] is not None:
        raise InputError(f"the row could not be explained: {record['error']}")
    content = json.loads(record["explanation"])
    count = len(content["rows"])
    values = record["matrix"] if record["matrix"] is not None else record["relevance"]
    found = {name: value / np.float32(255) if name.endswith(".pixels") else value for name, value in arrays.items()}
    start = 0
    for place, part in [*enumerate(content["parts"]), ("answer", content["answer"])]:
        if part is not None and part["kind"] == "text":
            end = start + count * len(part["tokens"])
            found[f"{place}.relevance"] = np.asarray(values)[start:end].reshape(count, -1)
            start = end
    asked = content.pop("asked", {})
    return put_together(Explanation, {**content, "warnings": record["warnings"], "about": {**about, **asked}}, found)
