"""Page: a file of HTML on which a person reads why a language model gave an answer."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from itertools import accumulate
from typing import Any

import numpy as np

from .figure import CMAP, Array, Paint, as_array, largest
from .ink import hexadecimal, ink_on

# a part of a text: where it starts and ends, and its name, which is all that is shown of an empty one
Part = tuple[int, int, str]
# parts of a text, and for each token, or each row, the index of its part
View = tuple[list[Part], list[int]]
# steps of colour from zero to the strongest
LEVELS = 50
# on a dark page zero has the colour of its cards, and what is stronger is brighter
DARK = "7cc0ff,3f:2c5f94,7f:1d2025,80:1d2025,c0:96343a,ff8579"
# what HTML cannot hold: half a character of UTF-16, and NUL
UNWRITTEN = re.compile("[\x00\ud800-\udfff]")
# what stands for a token that is no text and has no name
NAMELESS = "·"


def page(data: Mapping[str, Any]) -> str:
    """Write an answer of a language model and its prompt as a page that colours the prompt by what made the answer.

    Pointing at a part of the answer, or moving to it by the arrow keys, colours the prompt by the relevance for that
    part; a click or Enter keeps it, Escape lets it go. With no part chosen, or without scripts, the colours show the
    sum of all rows. The page is one file that loads nothing, follows the reader's light or dark scheme, and can be
    printed.

    Parameters
    ----------
    data : mapping
        What is shown:

        title : str
            Stands above.
        facts : mapping of str to str
            How the explanation was made: model, preset, target, versions. They stand below.
        prompt : mapping
            ``text`` (str), ``tokens`` (a pair of character offsets each, in order; tokens that are no text, as ``<s>``,
            have an empty span and stand where they are in the order), ``labels`` (optional: a name for each token, or
            for each with an empty span) and ``units`` (optional): for each name, as ``"word"`` or ``"message"``,
            a list of ``[start, end]`` or ``[start, end, name]``. A unit's relevance is the sum of its tokens': of those
            that start in it, or in white space before it. What is in no unit stands for itself, so that nothing is left
            out. The first unit is shown first; ``"token"`` is always there, and made from the tokens.
        answer : mapping, optional
            The same. Its units group rows, if they are larger than these. None if there is no text but the prompt.
        rows : sequence of mappings
            What is explained, as the tokens of the answer: ``label`` (str), ``span`` (a pair of offsets in the answer,
            in order, or None for what is no part of it), ``value`` (float, what is explained), ``relevance`` (a float
            for each token of the prompt), ``within`` (float, relevance of the answer itself, that is of its tokens
            before) and ``other`` (float, of everything else, as biases and positions).
        images : sequence of mappings, optional
            ``name`` (str), ``src`` (a ``data:image/`` URI) and ``rows``: for each row relevance of shape
            ``(height, width)``. It is relevance of the prompt beside that of its tokens, which it does not contain.

    Returns
    -------
    str
        HTML, to be written in UTF-8. Relevance in it has six significant digits.

    Raises
    ------
    ValueError
        If something is missing, or its shape does not fit.

    Examples
    --------
    >>> from zennit_attn import heatmap
    >>> prompt = {"text": "the keys", "tokens": [[0, 3], [3, 7], [7, 8]], "units": {"word": [[0, 3], [4, 8]]}}
    >>> row = {"label": "are", "span": [0, 3], "value": 1.0, "relevance": [0.1, 0.6, 0.3], "within": 0.0, "other": 0.0}
    >>> answer = {"text": "are", "tokens": [[0, 3]]}
    >>> html = heatmap.page({"title": "Why?", "facts": {}, "prompt": prompt, "answer": answer, "rows": [row]})
    >>> html.count("<script"), "http://" in html
    (2, False)
    """
    prompt = Text.of(needed(data, "prompt", "data"), "prompt")
    answer = Text("", [], [], {}) if data.get("answer") is None else Text.of(data["answer"], "answer")
    given = list(needed(data, "rows", "data"))
    if not given:
        raise ValueError("got no rows, expected at least one: give what is explained, as the tokens of the answer")
    rows = [Row.of(row, f"row {index}", len(prompt.spans), len(answer.text)) for index, row in enumerate(given)]
    images = [Picture.of(image, f"image {index}", len(rows)) for index, image in enumerate(data.get("images") or [])]
    views, choices = prompt.views(), choices_of(answer, rows)
    whole = "Whole answer" if answer.text else rows[0].label if len(rows) == 1 else "All together"
    embedded = {
        "levels": LEVELS,
        "whole": whole,
        "prompt": embedded_text(prompt.text, views),
        "answer": embedded_text(answer.text, choices),
        "rows": [row.embedded() for row in rows],
        "images": [[rounded(values) for values in image.rows] for image in images],
    }
    (parts, owners), (chosen, _) = next(iter(views.values())), next(iter(choices.values()), ([], []))
    values: Array = np.bincount(owners, np.sum([row.relevance for row in rows], axis=0), len(parts)).astype(float)
    limit = limit_of(values, parts)
    files_of = files(__package__)
    style, script, template = (files_of.joinpath(f"page.{kind}").read_text("utf-8") for kind in ("css", "js", "html"))
    fields = {
        "title": escaped(data.get("title") or "Relevance"),
        "style": style + palette(),
        # the only script that the page runs, whatever the texts hold
        "hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "columns": "two" if chosen else "one",
        "unchosen": "" if chosen else "hidden",
        "heading": "Answer" if answer.text else "Explained",
        "choices": options(choices),
        "answer": spans(answer.text, chosen),
        "units": options(views),
        "low": signed(-limit),
        "high": signed(limit),
        "whole": escaped(whole),
        "shares": escaped(shares(rows, images)),
        "images": "".join(image.html() for image in images),
        "prompt": spans(prompt.text, parts, values, limit),
        "facts": "".join(
            f"<div><dt>{escaped(name)}</dt><dd>{escaped(fact)}</dd></div>"
            for name, fact in (data.get("facts") or {}).items()
        ),
        "data": inert(embedded),
        "script": script,
    }
    # in one pass: what is filled in is not searched for fields
    return re.sub(r"<!--(\w+)-->", lambda field: fields[field[1]], template)


@dataclass
class Text:
    """A text, the spans of its tokens, their names if these are no text, and its units by their names."""

    text: str
    spans: list[tuple[int, int]]
    names: list[str]
    units: dict[str, list[Part]]

    @classmethod
    def of(cls, given: Mapping[str, Any], what: str) -> Text:
        """Check a text and its spans.

        Raises
        ------
        ValueError
            If spans are not in order, or not in the text, or there are not as many labels as tokens.
        """
        text = written(needed(given, "text", what))
        tokens = [
            checked_span(span, len(text), f"{what}'s token {index}")
            for index, span in enumerate(needed(given, "tokens", what))
        ]
        labels = list(given.get("labels") or [])
        empty = [start == end for start, end in tokens]
        if len(labels) == sum(empty) != len(tokens):
            left = iter(labels)
            labels = [next(left) if is_empty else "" for is_empty in empty]
        if labels and len(labels) != len(tokens):
            raise ValueError(
                f"got {len(labels)} labels of the {what}'s {len(tokens)} tokens, {sum(empty)} of them with an empty "
                "span, expected a label for each of all, or for each of these"
            )
        names = [written(label or "") for label in labels] or [""] * len(tokens)
        units = {
            written(name): [
                checked_unit(unit, len(text), f"{what}'s {name} {index}") for index, unit in enumerate(spans)
            ]
            for name, spans in (given.get("units") or {}).items()
        }
        in_order(tokens, f"{what}'s token")
        for name, unit in units.items():
            in_order(unit, f"{what}'s {name}", apart=name != "token")
        return cls(text, tokens, names, units)

    def views(self) -> dict[str, View]:
        """Return the parts of the text in each unit, tokens first, unless units say where they are in the order."""
        tokens = single(self.text, self.spans, self.names)
        names = list(self.units) if "token" in self.units else ["token", *self.units]
        return {name: tokens if name == "token" else grouped(self.text, tokens, self.units[name]) for name in names}


@dataclass
class Row:
    """What is explained, and its relevance."""

    label: str
    span: tuple[int, int] | None
    value: float
    relevance: Array
    within: float
    other: float

    @classmethod
    def of(cls, given: Mapping[str, Any], what: str, tokens: int, length: int) -> Row:
        """Check a row.

        Raises
        ------
        ValueError
            If its relevance does not fit the prompt, or its span the answer.
        """
        relevance = as_array(needed(given, "relevance", what), f"relevance of {what}")
        if relevance.shape != (tokens,):
            raise ValueError(
                f"got relevance of {what} of shape {relevance.shape}, expected ({tokens},): a number for each of the "
                "prompt's tokens. Give the relevance of the answer's own tokens as their sum, within."
            )
        span = None if given.get("span") is None else checked_span(given["span"], length, f"the span of {what}")
        numbers = [as_array(given.get(name, 0.0), f"{name} of {what}") for name in ("value", "within", "other")]
        if any(number.size != 1 for number in numbers) or "value" not in given:
            raise ValueError(f"got {what} without its value, within or other as single numbers, expected one of each")
        value, within, other = (float(number.item()) for number in numbers)
        return cls(written(needed(given, "label", what)), span, value, relevance, within, other)

    def embedded(self) -> dict[str, Any]:
        """Return what the script reads of it."""
        numbers = {name: rounded(np.array(getattr(self, name))) for name in ("value", "within", "other")}
        return {"label": self.label, **numbers, "relevance": rounded(self.relevance)}


@dataclass
class Picture:
    """An image, and its relevance for each row."""

    name: str
    source: str
    rows: list[Array]

    @classmethod
    def of(cls, given: Mapping[str, Any], what: str, count: int) -> Picture:
        """Check an image.

        Raises
        ------
        ValueError
            If it is not in the page, or its relevance does not fit the rows.
        """
        source = str(needed(given, "src", what))
        if not source.startswith("data:image/"):
            raise ValueError(
                f"got {what} with src={source[:40]!r}, expected data:image/png;base64,…: the page loads nothing"
            )
        rows = [as_array(values, f"relevance of {what}") for values in needed(given, "rows", what)]
        shapes = {values.shape for values in rows}
        if len(rows) != count or len(shapes) != 1 or len(next(iter(shapes))) != 2:
            raise ValueError(
                f"got {what} with relevance of shape {sorted(shapes)} for {len(rows)} rows, expected one shape "
                f"(height, width) for {count} rows: a map for each row, of zeros if it has none"
            )
        return cls(written(given.get("name") or "Image"), source, rows)

    def html(self) -> str:
        """Return the image with an empty layer, which the script colours."""
        image = f'<img src="{escape(self.source)}" alt="{escape(self.name)}"><canvas aria-hidden="true"></canvas>'
        return f"<figure><div>{image}</div><figcaption>{escape(self.name)}<span></span></figcaption></figure>"


def needed(given: Mapping[str, Any], key: str, what: str) -> Any:
    """Return an entry of a mapping.

    Raises
    ------
    ValueError
        If it has none.
    """
    if key not in given:
        raise ValueError(f"got {what} with {', '.join(map(repr, given)) or 'nothing'}, expected {key!r} as well")
    return given[key]


def checked_span(span: Sequence[Any], length: int, what: str) -> tuple[int, int]:
    """Return where a span starts and ends.

    Raises
    ------
    ValueError
        If it does so outside of the text.
    """
    start, end = map(int, span[:2]) if len(span) >= 2 else (0, -1)
    if not 0 <= start <= end <= length:
        raise ValueError(
            f"got {what} at {list(span)}, expected [start, end] with 0 <= start <= end <= {length}: offsets of "
            "characters, not bytes, in the text as it is given"
        )
    return start, end


def checked_unit(unit: Sequence[Any], length: int, what: str) -> Part:
    """Return a unit with its name."""
    return (*checked_span(unit, length, what), written(unit[2]) if len(unit) > 2 and unit[2] else "")


def in_order(spans: Sequence[tuple[int, int] | Part], what: str, apart: bool = False) -> None:
    """Refuse spans that go backwards, or that overlap if they have to be apart; empty ones stand anywhere.

    Raises
    ------
    ValueError
        If they do.
    """
    place = (0, 0)
    for index, (start, end, *_) in enumerate(spans):
        if start == end:
            continue
        if start < place[apart]:
            raise ValueError(
                f"got {what} {index} at [{start}, {end}] after {list(place)}, expected it further on: give spans in "
                f"the order of the one text{', which do not overlap' * apart}"
            )
        place = start, end


def single(text: str, spans: Sequence[tuple[int, int]], names: Sequence[str]) -> View:
    """Return tokens as parts, one for those that share a character; empty ones stand after the token before."""
    parts, owners, last, place = list[Part](), list[int](), 0, 0
    for (start, end), name in zip(spans, names, strict=True):
        if start == end:
            parts.append((place, place, name or NAMELESS))
            owners.append(len(parts) - 1)
        elif start < place:
            parts[last] = (parts[last][0], max(place, end), "")
            owners.append(last)
        else:
            last = len(parts)
            parts.append((start, end, ""))
            owners.append(last)
        place = max(place, end if start < end else 0)
    return [trimmed(text, part) for part in parts], owners


def grouped(text: str, tokens: View, units: Sequence[Part]) -> View:
    """Return units that have tokens as parts, and what is in none."""
    units = [unit for unit in units if unit[0] < unit[1]]
    starts, parts, places, indices = [start for start, _, _ in units], list[Part](), dict[int, int](), list[int]()
    for part in tokens[0]:
        # white space before a part is left out of it
        unit = bisect_right(starts, part[0]) - 1
        if part[0] == part[1] or unit < 0 or part[0] >= units[unit][1]:
            indices.append(len(parts))
            parts.append(part)
            continue
        if unit not in places:
            places[unit] = len(parts)
            parts.append(trimmed(text, units[unit]))
        indices.append(places[unit])
    return parts, [indices[owner] for owner in tokens[1]]


def trimmed(text: str, part: Part) -> Part:
    """Return a part without white space around it, unless it is nothing else."""
    start, end, name = part
    body = text[start:end]
    if not body.strip():
        return part
    return start + len(body) - len(body.lstrip()), end - len(body) + len(body.rstrip()), name


def choices_of(answer: Text, rows: Sequence[Row]) -> dict[str, View]:
    """Return rows as parts of the answer, alone and in its larger units; nothing if there is nothing to choose."""
    if not answer.text and len(rows) == 1:
        return {}
    spans = [row.span or (0, 0) for row in rows]
    in_order(spans, "the span of row")
    alone = single(answer.text, spans, [row.label for row in rows])
    base = "token" if {row.span for row in rows} <= {*answer.spans, None} else "part"
    larger = {name: grouped(answer.text, alone, units) for name, units in answer.units.items() if name != base}
    views = {name: view for name, view in larger.items() if len(view[0]) < len(alone[0])}
    names = list(answer.units) if base in answer.units else [base, *answer.units]
    return {name: alone if name == base else views[name] for name in names if name == base or name in views}


def embedded_text(text: str, views: Mapping[str, View]) -> dict[str, Any]:
    """Return what the script reads of a text, whose letters JavaScript counts in UTF-16."""
    places = [0, *accumulate(1 + (letter > "\uffff") for letter in text)]
    return {
        "text": text,
        "views": {
            name: {"parts": [[places[start], places[end], title] for start, end, title in parts], "owners": owners}
            for name, (parts, owners) in views.items()
        },
    }


def rounded(values: Array) -> Any:
    """Return numbers with six significant digits, as lists."""
    flat = [float(f"{value:.6g}") for value in values.ravel().tolist()]
    return np.reshape(flat, values.shape).tolist()


def inert(embedded: Any) -> str:
    """Return JSON that HTML cannot take for its own."""
    text = json.dumps(embedded, separators=(",", ":"))
    return re.sub("[<>&]", lambda sign: f"\\u{ord(sign[0]):04x}", text)


def written(text: Any) -> str:
    """Return a text that HTML can hold, as long as it was."""
    return UNWRITTEN.sub("\ufffd", str(text))


def escaped(text: Any) -> str:
    """Return a text as HTML."""
    return escape(written(text)).replace("\r", "&#13;")


def options(views: Mapping[str, View]) -> str:
    """Return the names of views to choose from."""
    return "".join(f"<option>{escaped(name)}</option>" for name in views)


def spans(
    text: str,
    parts: Sequence[Part],
    values: Array | None = None,
    limit: float = 0.0,
    marked: int | None = None,
) -> str:
    """Return a text whose parts have the colours of values, as the script writes it as well, and one a mark."""
    pieces, place = list[str](), 0
    for index, (start, end, name) in enumerate(parts):
        value = 0.0 if values is None else float(values[index])
        kind = " ".join(filter(None, [shade(value, limit), "marked" * (index == marked)]))
        at = f' class="{kind}"' if kind else ""
        at += f' title="{signed(value, 6)}"' if values is not None else ""
        at += f' data-name="{escaped(name)}"' if name and start < end else ""
        chip = " data-chip" if start == end else ""
        pieces += [
            escaped(text[place:start]),
            f"<span{at}{chip}>{escaped(text[start:end] if start < end else name)}</span>",
        ]
        place = max(place, end)
    return "".join([*pieces, escaped(text[place:])])


def limit_of(values: Array, parts: Sequence[Part]) -> float:
    """Return the relevance of the strongest colour: the largest of the text; special tokens often have more."""
    inside = np.array([start < end for start, end, _ in parts], dtype=bool)
    return largest(values[inside]) or largest(values)


def shade(value: float, limit: float) -> str:
    """Return the class of a value's colour."""
    level = round(LEVELS * min(abs(value) / limit, 1.0)) if limit else 0
    beyond = " beyond" if abs(value) > limit * (1 + 1e-6) else ""
    return f"{'p' if value > 0 else 'n'}{level}{beyond}" if level else ""


def palette() -> str:
    """Return the colours of all classes, on light pages and dark ones, and those of the scale."""
    light, dark = colours(CMAP), colours(DARK)
    return f"{light}\n@media screen and (prefers-color-scheme: dark) {{\n{dark}\n}}\n"


def colours(cmap: str) -> str:
    """Return the colours of all classes."""
    steps = np.arange(-LEVELS, LEVELS + 1)
    shades = [tuple(shade.tolist()) for shade in Paint(cmap)(steps / LEVELS, -1.0, 1.0)]
    rules = [
        f".{'p' if step > 0 else 'n'}{abs(step)}{{background:{hexadecimal(shade)};color:{hexadecimal(ink_on(shade))}}}"
        for step, shade in zip(steps.tolist(), shades, strict=True)
        if step
    ]
    scale = ",".join(hexadecimal(shade) for shade in shades[:: LEVELS // 10])
    return "\n".join([*rules, f":root{{--scale:linear-gradient(90deg,{scale})}}"])


def signed(value: float, digits: int = 3) -> str:
    """Write a number with a sign."""
    return f"{value:+.{digits}g}".replace("-", "−") if value else "0"


def shares(rows: Sequence[Row], images: Sequence[Picture]) -> str:
    """Say where the relevance of all rows together is."""
    value, within = sum(row.value for row in rows), sum(row.within for row in rows)
    tokens = sum(float(row.relevance.sum()) for row in rows)
    prompt = tokens + sum(float(values.sum()) for image in images for values in image.rows)
    other = sum(row.other for row in rows)
    parts = {"prompt": prompt, "answer itself": within, "everything else": other}
    left = value - prompt - within - other
    if abs(left) > 0.005 * abs(value):
        parts["not accounted for"] = left
    # what cancels is not told in shares of the little that is left
    cancels = 10 * abs(value) <= max(map(abs, parts.values()))
    told = [f"{name} {signed(part) if cancels else percent(part / value)}" for name, part in parts.items()]
    return f"of {signed(value)}: {', '.join(told)}"


def percent(share: float) -> str:
    """Write a share."""
    return f"{100 * share:.0f}\u00a0%".replace("-", "−")
