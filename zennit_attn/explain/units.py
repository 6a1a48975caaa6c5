"""Units: the words, sentences and lines of a text, as spans of characters, and the tokens that each of them has.

A kind of units covers a text from end to end, so that sums over units are the sum over tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import regex  # type: ignore[import-untyped]  # a requirement of transformers

Span = tuple[int, int]

#: What is between units: what no span has.
ELSEWHERE = "elsewhere"
# boundaries of words as Unicode defines them (UAX 29): letters of Chinese are words of their own
_WORDS = regex.compile(r"(?w)\b")
_SENTENCES = regex.compile(r"""(?m)(?<!^\s*\d{1,3})[.!?…]+["'”’»)\]]*(?=\s+[^\s\p{Ll}])|[。！？｡]+["”’」』）]*|\n+""")
_LINES = regex.compile(r"\n")


def words(text: str) -> list[Span]:
    """Return the words of a text, each with the white space before it.

    Examples
    --------
    >>> from zennit_attn.explain.units import words
    >>> [" a 8,320 m.", "中文"][0][slice(*words(" a 8,320 m.")[1])]
    ' 8,320'
    """
    ends = [match.start() for match in _WORDS.finditer(text)]
    # a piece of white space goes with what comes after it
    kept = [end for start, end in zip([0, *ends], ends, strict=False) if end > start and text[start:end].strip()]
    return between(kept, len(text))


def sentences(text: str) -> list[Span]:
    """Return the sentences of a text: a line's end is one, and a full stop before a space and no small letter."""
    return between([match.end() for match in _SENTENCES.finditer(text)], len(text))


def lines(text: str) -> list[Span]:
    """Return the lines of a text."""
    return between([match.end() for match in _LINES.finditer(text)], len(text))


def between(ends: Iterable[int], length: int) -> list[Span]:
    """Return the spans between places, from the beginning to the end."""
    places = sorted({0, length, *ends})
    return list(pairwise(places))


#: Kinds of units that every text has, beside its tokens.
UNITS: dict[str, Callable[[str], list[Span]]] = {"word": words, "sentence": sentences, "line": lines}


def around(text: str, whole: Sequence[Span], cut: Callable[[str], list[Span]]) -> list[Span]:
    """Return the units of a text in which some spans, as special tokens are, stay whole."""
    found: list[Span] = []
    place = 0
    for start, end in [*sorted(whole), (len(text), len(text))]:
        found += [(place + first, place + last) for first, last in cut(text[place:start]) if last > first]
        if end > start:
            found.append((start, end))
        place = max(place, end)
    return found


def owners(text: str, tokens: Sequence[Span], units: Sequence[Span]) -> np.ndarray[Any, Any]:
    """Return which unit each token is of: that which has its middle; -1 for tokens that none has.

    Parameters
    ----------
    text : str
        The text; white space at a token's ends does not count.
    tokens, units : sequence of tuple of int
        Spans of characters. Tokens of an empty span are of no unit.

    Raises
    ------
    ValueError
        If two units have a character in common: relevance would be counted twice.
    """
    order = sorted(range(len(units)), key=lambda index: units[index])
    for one, other in pairwise(order):
        if units[one][1] > units[other][0]:
            raise ValueError(
                f"got the spans {units[one]} and {units[other]}, which have characters in common; expected none, so "
                "that no relevance is counted twice"
            )
    starts = np.array([units[index][0] for index in order], dtype=int)
    found = np.full(len(tokens), -1)
    for number, (start, end) in enumerate(tokens):
        body = text[start:end].strip()
        if end <= start or not order:
            continue
        first = text.index(body, start) if body else start
        middle = first + (max(len(body), 1) - 1) // 2
        place = int(np.searchsorted(starts, middle, side="right")) - 1
        if place >= 0 and middle < units[order[place]][1]:
            found[number] = order[place]
    return found


def distinct(names: Iterable[str]) -> list[str]:
    """Return names of which none is there twice: the second ``the`` is ``the#2``."""
    seen: dict[str, int] = {}
    found: dict[str, None] = {}
    for name in names:
        made = name
        while made in found:
            seen[name] = seen.get(name, 1) + 1
            made = f"{name}#{seen[name]}"
        found[made] = None
    return list(found)
