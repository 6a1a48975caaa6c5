"""Figure: what all heatmaps share, which are their colours, title and scale, and how they are shown and saved."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from zennit.cmap import ColorMap
from zennit.image import CMAPS, get_cmap

from .canvas import GREY, LIGHT, Canvas, Fonts, Picture, Pixels, Rectangle, Text, Typeface, ink_on

Array = NDArray[np.float64]

# blue, white, red (RdBu of ColorBrewer, which the colour-blind can read), exactly white and symmetric about zero
CMAP = "2166ac,3f:92c5de,7f:fff,80:fff,c0:f4a582,b2182b"
WIDTH, SIZE, MARGIN = 480.0, 10.0, 10.0
# length of the scale in units of the size of the text
BAR = 12.0
# the base line of text in the middle of a cell is lower than the middle by half the height of a capital
MIDDLE = 0.36
# in units of the size of the text: other text, the distance of lines, and the narrowest picture, which has the scale
LARGE, SMALL, LEADING, NARROWEST = 1.2, 0.85, 1.2, 26.0


class Heatmap:
    """A picture of relevance.

    Attributes
    ----------
    canvas : zennit_attn.heatmap.canvas.Canvas
        What is drawn.
    title : str
        Its title.
    """

    def __init__(self, canvas: Canvas, title: str) -> None:
        self.canvas, self.title = canvas, title

    def image(self, dpi: float = 300) -> Image.Image:
        """Return the picture as a Pillow image.

        Parameters
        ----------
        dpi : float
            Pixels per inch.

        Returns
        -------
        PIL.Image.Image
            In RGB.

        Raises
        ------
        ValueError
            If the resolution is not positive.
        """
        return self.canvas.image(dpi)

    def save(self, path: str | os.PathLike[str], dpi: float = 300) -> None:
        """Write a file.

        Parameters
        ----------
        path : str or os.PathLike
            Ends with ``.png``, ``.pdf``, ``.svg`` or ``.html``. PDF and SVG are vector graphics.
        dpi : float
            Pixels per inch of PNG.

        Raises
        ------
        ValueError
            If the path ends with something else.
        """
        self.canvas.save(path, self.title or "Relevance", dpi)

    def _repr_html_(self) -> str:
        return self.canvas.svg()


class Paint:
    """Colours of relevance.

    Parameters
    ----------
    cmap : str or zennit.cmap.ColorMap
        Name of one of zennit's colour maps, its source code, or one itself.
    level : float
        Below 1 fades the colours, above 1 has them reached earlier, as in zennit.

    Raises
    ------
    ValueError
        If there is no such colour map.
    """

    def __init__(self, cmap: str | ColorMap = CMAP, level: float = 1.0) -> None:
        try:
            self.map = get_cmap(cmap)
        except RuntimeError as error:
            raise ValueError(
                f"got cmap={cmap!r}, expected one of {', '.join(CMAPS)}, colours as in 'f00,80:fff,00f', or a ColorMap"
            ) from error
        self.level = level

    def __call__(self, values: Array, low: float, high: float) -> Pixels:
        """Return colours, with an axis of size 3 in the end; the middle one where low equals high."""
        unit = (values - low) / (high - low) if high > low else np.full_like(values, 0.5)
        unit = ((2 * unit.clip(0, 1) - 1) * self.level + 1) / 2
        colors: Pixels = (self.map(unit) * 255).round().astype(np.uint8)
        return colors


def as_array(values: Any, what: str) -> Array:
    """Return finite numbers.

    Raises
    ------
    ValueError
        If they are not numbers, or not finite.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"got {what} that is no array of numbers: {error}") from error
    if not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise ValueError(f"got {what} with {count} of {array.size} values that are not finite, expected none")
    return array


def largest(values: Array) -> float:
    """Return the largest absolute value, zero of nothing."""
    return float(np.abs(values).max(initial=0.0))


def limit_of(values: Array, vmax: float | None) -> float:
    """Return the relevance of the strongest colour: a given one, or the largest absolute one.

    Raises
    ------
    ValueError
        If the given one is not positive.
    """
    if vmax is None:
        return largest(values)
    if not (np.isfinite(vmax) and vmax > 0):
        raise ValueError(f"got vmax={vmax}, expected a positive number: the relevance of the strongest colour")
    return float(vmax)


def amount(value: float) -> str:
    """Write a relevance with its sign and three digits.

    Examples
    --------
    >>> from zennit_attn.heatmap.figure import amount
    >>> amount(0.25), amount(-12345.0), amount(0.0)
    ('+0.25', '-1.23e+04', '0')
    """
    return f"{value:+.3g}" if value else "0"


def amounts(values: Array, limit: float) -> list[str]:
    """Write relevance with two decimals, or as many as a scale needs for two digits; without a sign if they are zero.

    Examples
    --------
    >>> import numpy as np
    >>> from zennit_attn.heatmap.figure import amounts
    >>> amounts(np.array([0.025, -1e-9, -0.0031]), 0.025)
    ['+0.025', '0', '-0.003']
    """
    decimals = max(2, int(1 - np.floor(np.log10(limit or 1.0))))
    if decimals > 6 or limit >= 1e4:
        return [amount(value) for value in values]
    texts = [f"{value:+.{decimals}f}" for value in values]
    return [text if float(text) else "0" for text in texts]


def note_on(values: Array, low: float, high: float) -> str:
    """Say what has to be known of values and a scale: that all are zero, or that some are beyond it."""
    if not values.any():
        return "all relevance is zero"
    count = int(((values < low) | (values > high)).sum())
    span = f"{amount(float(values.min()))} to {amount(float(values.max()))}"
    return f"{count} of {values.size} values are beyond the scale: all are {span}" if count else ""


def page(width: float, size: float, font: Fonts, texts: Iterable[str]) -> Canvas:
    """Return an empty canvas, with a font for texts.

    Raises
    ------
    ValueError
        If a size is not positive.
    """
    if not (np.isfinite([width, size]).all() and width > 0 and size > 0):
        raise ValueError(f"got width={width} and size={size}, expected positive numbers of points")
    return Canvas(width, 0.0, Typeface(font, texts))


def with_title(canvas: Canvas, title: str, size: float) -> float:
    """Draw a title, and return where it ends."""
    top = MARGIN
    for line in canvas.face.wrapped(title, LARGE * size, canvas.width - 2 * MARGIN) if title else []:
        top += LEADING * LARGE * size
        canvas.add(Text(MARGIN, top - 0.3 * size, line, LARGE * size))
    return top + 0.5 * size * bool(title)


def with_scale(
    canvas: Canvas, top: float, size: float, paint: Paint, ends: tuple[float, float] | None, note: str
) -> None:
    """Draw the scale of the colours and a note below everything else, and end the canvas there.

    Parameters
    ----------
    canvas : Canvas
        The canvas.
    top : float
        Where the scale is drawn.
    size : float
        Size of the text.
    paint : Paint
        The colours.
    ends : tuple of float, optional
        Relevance of the outermost colours; none if each part has its own.
    note : str
        What else has to be known.
    """
    small, right = SMALL * size, canvas.width - MARGIN
    low, high = ends or (-1.0, 1.0)
    names = ("-max", "+max") if ends is None else (amount(low), amount(high))
    base, bar = top + 1.1 * size, BAR * size
    right -= canvas.face.length(names[1], small)
    canvas.add(Text(right, base, names[1], small, GREY))
    left = right - 0.4 * size - bar
    shades = paint(np.linspace(low, high, 256)[None], low, high)
    canvas.add(Picture(left, top + 0.3 * size, bar, 1.05 * size, shades, smooth=True))
    canvas.add(Rectangle(left, top + 0.3 * size, bar, 1.05 * size, line=LIGHT))
    if low < 0 < high:
        color = paint(np.zeros(1), low, high)[0].tolist()
        share = -low / (high - low)
        canvas.add(Text(left + share * bar, base, "0", small, ink_on(tuple(color)), "middle"))
    name = f"relevance {names[0]}"
    canvas.add(Text(left - 0.4 * size, base, name, small, GREY, "end"))
    bottom, room = top + 1.35 * size, left - size - canvas.face.length(name, small) - MARGIN
    # a note that does not fit beside the scale stands below it
    if canvas.face.length(note, small) > room:
        base, room = bottom + 1.3 * small, canvas.width - 2 * MARGIN
    for line in canvas.face.wrapped(note, small, room) if note else []:
        canvas.add(Text(MARGIN, base, line, small, GREY))
        bottom = max(bottom, base + 0.3 * small)
        base += LEADING * small
    canvas.height = bottom + MARGIN
