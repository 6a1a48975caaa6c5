"""Parts: the texts, images and signals that a model was given, each with the relevance of its elements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import InputError
from ..heatmap.words import visible
from ..hints import nearest
from .units import ELSEWHERE, UNITS, Span, around, distinct, owners

Array = np.ndarray[Any, Any]


def nothing() -> Array:
    """Return the relevance of what is not explained yet."""
    return np.zeros((0,))


@dataclass(frozen=True)
class Segment:
    """A message or a document in a text.

    Attributes
    ----------
    kind : str
        ``"message"`` or ``"document"``.
    name : str
        Role, or name of the document.
    span : tuple of int
        Characters from and to.
    """

    kind: str
    name: str
    span: Span


@dataclass(frozen=True)
class Text:
    """A text, its tokens, and their relevance for each row that is explained.

    Attributes
    ----------
    text : str
        The text, as the model read it.
    tokens : tuple of str
        The tokenizer's strings, made readable.
    spans : tuple of tuple of int
        Characters of the text that each token has; none (start = end) for tokens that are not in it.
    special : tuple of bool
        Which tokens are the tokenizer's own.
    name : str
        What this is of the model's input.
    segments : tuple of Segment
        Messages and documents.
    relevance : numpy.ndarray
        Shape ``(rows, tokens)``.
    """

    text: str
    tokens: tuple[str, ...]
    spans: tuple[Span, ...]
    special: tuple[bool, ...]
    name: str = "text"
    segments: tuple[Segment, ...] = ()
    relevance: Array = field(default_factory=nothing, compare=False)

    def with_relevance(self, relevance: Array) -> Text:
        """Return the same text with relevance of shape ``(rows, tokens)``."""
        return replace(self, relevance=np.asarray(relevance))

    def folded(self) -> Text:
        """Return the same text, of which each run of one special token, as stands for an image, is one with the sum."""
        runs: list[list[int]] = []
        for index, (token, own) in enumerate(zip(self.tokens, self.special, strict=True)):
            if own and runs and self.tokens[runs[-1][-1]].strip() == token.strip():
                runs[-1].append(index)
            else:
                runs.append([index])
        return replace(
            self,
            tokens=tuple(
                f"{self.tokens[run[0]].rstrip()} × {len(run)}" if len(run) > 1 else self.tokens[run[0]] for run in runs
            ),
            spans=tuple((self.spans[run[0]][0], self.spans[run[-1]][1]) for run in runs),
            special=tuple(self.special[run[0]] for run in runs),
            relevance=np.add.reduceat(self.relevance, [run[0] for run in runs], 1),
        )

    def kinds(self) -> list[str]:
        """Return the names of the kinds of units that the text has."""
        return ["token", *UNITS, *dict.fromkeys(segment.kind for segment in self.segments)]

    def units(self, unit: str | Mapping[str, Span]) -> tuple[list[str], list[Span]]:
        """Return the names and the spans of units.

        Parameters
        ----------
        unit : str or mapping of str to tuple of int
            A kind of units, see :meth:`kinds`, or spans of characters by name.

        Raises
        ------
        InputError
            If the text has no such units, or a span is not in it.
        """
        if isinstance(unit, Mapping):
            for name, (start, end) in unit.items():
                if not 0 <= start < end <= len(self.text):
                    raise InputError(
                        f"got the span {(start, end)} as {name!r}, expected characters from 0 to {len(self.text)}"
                    )
            return list(unit), [(start, end) for start, end in unit.values()]
        if unit == "token":
            return list(self.tokens), list(self.spans)
        if unit in UNITS:
            whole = [span for span, special in zip(self.spans, self.special, strict=True) if special]
            spans = around(self.text, whole, UNITS[unit])
            return [visible(self.text[start:end].strip() or self.text[start:end]) for start, end in spans], spans
        found = [segment for segment in self.segments if segment.kind == unit]
        if not found:
            raise InputError(f"got the unit {unit!r}, expected one of {self.kinds()}; {nearest(unit, self.kinds())}")
        return [segment.name for segment in found], [segment.span for segment in found]

    def groups(self, unit: str | Mapping[str, Span]) -> list[tuple[str, list[int]]]:
        """Return each unit's name and its tokens, in the order of the text; every token is in one of them.

        Tokens that no unit has are units of their own where they are not in the text (``<s>``), and
        :data:`~zennit_attn.explain.units.ELSEWHERE` otherwise.
        """
        if unit == "token":
            return [(name, [index]) for index, name in enumerate(distinct(self.tokens))]
        names, spans = self.units(unit)
        found: dict[tuple[int, str], list[int]] = {}
        for index, owner in enumerate(owners(self.text, self.spans, spans)):
            is_in_text = self.spans[index][1] > self.spans[index][0]
            name = names[owner] if owner >= 0 else ELSEWHERE if is_in_text else self.tokens[index].strip()
            # a unit is one whatever its name; what is elsewhere is one, too
            key = int(owner) if owner >= 0 else -1 if is_in_text else -2 - index
            found.setdefault((key, name), []).append(index)
        return list(zip(distinct(name for _, name in found), found.values(), strict=True))


@dataclass(frozen=True)
class Picture:
    """An image as the model sees it, and the relevance of its pixels for each row that is explained.

    Attributes
    ----------
    pixels : numpy.ndarray
        From 0 to 1, shape ``(channels, height, width)``.
    name : str
        What this is of the model's input.
    relevance : numpy.ndarray
        Summed over channels, shape ``(rows, height, width)``.
    """

    pixels: Array = field(compare=False)
    name: str = "image"
    relevance: Array = field(default_factory=nothing, compare=False)

    def with_relevance(self, relevance: Array) -> Picture:
        """Return the same image with relevance of shape ``(rows, height, width)``."""
        return replace(self, relevance=np.asarray(relevance))


@dataclass(frozen=True)
class Signal:
    """Audio or a series, and the relevance of its values for each row that is explained.

    Attributes
    ----------
    values : numpy.ndarray
        Shape ``(channels, time)``, as the model takes it.
    rate : float or None
        Values per second, where they have a time.
    name : str
        What this is of the model's input.
    relevance : numpy.ndarray
        Shape ``(rows, channels, time)``.
    """

    values: Array = field(compare=False)
    rate: float | None = None
    name: str = "signal"
    relevance: Array = field(default_factory=nothing, compare=False)

    def with_relevance(self, relevance: Array) -> Signal:
        """Return the same signal with relevance of shape ``(rows, channels, time)``."""
        return replace(self, relevance=np.asarray(relevance))


Part = Text | Picture | Signal


@dataclass(frozen=True)
class Row:
    """One thing that is explained: a token, a class, or a stretch of an answer.

    Attributes
    ----------
    label : str
        Its text or name.
    value : float
        What is shared out: a logit, or what the target makes of logits.
    index : int or None
        Number of the token or class, where it is one.
    logit : float or None
        Its logit.
    span : tuple of int or None
        Its characters in the answer.
    """

    label: str
    value: float
    index: int | None = None
    logit: float | None = None
    span: Span | None = None


def sums(relevance: Array, groups: Sequence[tuple[str, list[int]]]) -> dict[str, float]:
    """Return the sum of relevance in each group of tokens."""
    return {name: float(relevance[indices].sum(dtype=np.float64)) for name, indices in groups}
