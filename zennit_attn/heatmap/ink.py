"""Ink: the colours of text and lines, and which of them can be read on a colour."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Color = tuple[int, int, int]
Pixels = NDArray[np.uint8]
Fonts = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None

BLACK, INK, GREY, LIGHT, WHITE = (0, 0, 0), (26, 30, 38), (86, 94, 106), (206, 211, 218), (255, 255, 255)


def luminance(color: Color) -> float:
    """Return the relative luminance of a colour, from 0 to 1, as WCAG 2 has it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in color)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(one: Color, other: Color) -> float:
    """Return the contrast of two colours, from 1 to 21, as WCAG 2 has it."""
    dark, bright = sorted((luminance(one), luminance(other)))
    return (bright + 0.05) / (dark + 0.05)


def ink_on(color: Color) -> Color:
    """Return the ink, black or white, that is easier to read on a colour.

    Examples
    --------
    >>> from zennit_attn.heatmap.ink import ink_on
    >>> ink_on((255, 255, 255)), ink_on((178, 24, 43))
    ((0, 0, 0), (255, 255, 255))
    """
    return max((BLACK, WHITE), key=lambda ink: contrast(ink, color))


def hexadecimal(color: Color) -> str:
    """Write a colour for HTML and matplotlib."""
    return "#{:02x}{:02x}{:02x}".format(*color)
