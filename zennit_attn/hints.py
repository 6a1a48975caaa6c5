"""Hints for errors: the nearest valid choices."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(got: str, choices: Iterable[str]) -> str:
    """Return a hint that names the nearest valid choices."""
    choices = list(dict.fromkeys(choices))
    close = difflib.get_close_matches(got, choices, n=3, cutoff=0.4) or choices[:8]
    return "nearest: " + ", ".join(map(repr, close)) if close else "there is none"
