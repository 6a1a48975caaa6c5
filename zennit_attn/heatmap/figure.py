"""Figure: what all heatmaps share, which are their colours, title and scale, and how they are shown and saved."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from zennit.cmap import ColorMap
from zennit.image import CMAPS, get_cmap

from ..files import encoded, put
from .ink import GREY, Fonts, Pixels, ink_on
from .spans import document

# matplotlib takes time to import: it is imported at the first picture, in the functions that draw
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    from .sheet import Face, Sheet

Array = NDArray[np.float64]
# relevance of the strongest colour: a number, or a percentile as "99%"
Limit = float | str | None
P = ParamSpec("P")
T = TypeVar("T")

# blue, white, red (RdBu of ColorBrewer, which the colour-blind can read), exactly white and symmetric about zero
CMAP = "2166ac,3f:92c5de,7f:fff,80:fff,c0:f4a582,b2182b"
WIDTH, SIZE, MARGIN = 480.0, 10.0, 10.0
# length of the scale in units of the size of the text
BAR = 12.0
# of more numbers, a picture does not print how it is made
MOST_NUMBERS = 200
# colours in a table
ENTRIES = 4097
PERCENTILE = re.compile(r"(\d+(?:\.\d+)?)%")
# the base line of text in the middle of a cell is lower than the middle by half the height of a capital
MIDDLE = 0.36
# in units of the size of the text: other text, the distance of lines, and the narrowest content
LARGE, SMALL, LEADING, NARROWEST = 1.2, 0.85, 1.2, 10.0


class Heatmap:
    """A picture of relevance.

    Attributes
    ----------
    figure : matplotlib.figure.Figure
        What is drawn.
    title : str
        Its title.
    """

    def __init__(self, figure: Figure, face: Face, texts: list[str], title: str, what: str, call: str = "") -> None:
        self.figure, self.face, self.texts, self.title = figure, face, texts, title
        self.what, self.call = what, call

    def __repr__(self) -> str:
        width, height = (72 * self.figure.get_size_inches()).round().astype(int).tolist()
        return self.call or f"<{type(self).__name__} of {self.what}, {width} x {height} points>"

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
        from . import sheet

        self.face.check(self.texts)
        return sheet.raster(self.figure, dpi)

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
            If the path ends with something else, or a page of PDF cannot be as large.
        """
        from . import sheet

        path, title = Path(path), self.title or "Relevance"
        kind = path.suffix.lower()
        if kind in (".png", ".pdf", ".svg"):
            self.face.check(self.texts)
            put(path, sheet.written(self.figure, kind[1:], dpi if kind == ".png" else 300, title))
        elif kind == ".html":
            put(path, encoded(document(title, self._repr_html_())))
        else:
            raise ValueError(f"got path={os.fspath(path)!r}, expected one that ends with .png, .svg, .html or .pdf")

    def _repr_html_(self) -> str:
        from . import sheet

        svg = sheet.written(self.figure, "svg").decode()
        return svg[svg.index("<svg") :]


def drawn(make: Callable[P, T]) -> Callable[P, T]:
    """Have a function make its figure with matplotlib's own settings, which are read as its parts are made."""

    @functools.wraps(make)
    def made(*args: P.args, **kwargs: P.kwargs) -> T:
        from .sheet import settings

        with settings():
            return make(*args, **kwargs)

    return made


class Paint:
    """Colours of relevance.

    Parameters
    ----------
    cmap : str or zennit.cmap.ColorMap
        Name of one of zennit's or matplotlib's colour maps, zennit's source code, or one of zennit itself.
    level : float
        Below 1 fades the colours, above 1 has them reached earlier, as in zennit.

    Raises
    ------
    ValueError
        If there is no such colour map.
    """

    def __init__(self, cmap: str | ColorMap = CMAP, level: float = 1.0) -> None:
        try:
            self.map: Callable[[Array], Array] = get_cmap(cmap)
        except RuntimeError as error:
            self.map = of_matplotlib(str(cmap), error)
        self.level = level

    def table(self) -> ListedColormap:
        """Return the colours for matplotlib, as many as have one of exactly zero in the middle."""
        from matplotlib.colors import ListedColormap

        return ListedColormap(self(np.linspace(-1, 1, ENTRIES), -1, 1) / 255, "relevance")

    def __call__(self, values: Array, low: float, high: float) -> Pixels:
        """Return colours, with an axis of size 3 in the end; the middle one where low equals high."""
        unit = (values - low) / (high - low) if high > low else np.full_like(values, 0.5)
        unit = ((2 * unit.clip(0, 1) - 1) * self.level + 1) / 2
        colors: Pixels = (self.map(unit) * 255).round().astype(np.uint8)
        return colors


def of_matplotlib(name: str, error: Exception) -> Callable[[Array], Array]:
    """Return the colours of matplotlib that have a name."""
    from matplotlib import colormaps

    if name not in colormaps:
        raise ValueError(
            f"got cmap={name!r}, expected one of {', '.join(CMAPS)}, a name of matplotlib's, colours as in "
            "'f00,80:fff,00f', or a ColorMap"
        ) from error
    # more entries than the 256 of matplotlib have one of exactly zero
    found = colormaps[name].resampled(ENTRIES)
    return lambda values: np.asarray(found(values)[..., :3])


def call_of(name: str, count: int, *given: Any, **options: Any) -> str:
    """Return the call that makes a small picture again, as it could be typed in; nothing for more numbers than that."""
    if count > MOST_NUMBERS:
        return ""
    texts = [f"numpy.array({value.tolist()})" if isinstance(value, np.ndarray) else repr(value) for value in given]
    texts += [f"{key}={value!r}" for key, value in options.items() if value]
    return f"heatmap.{name}({', '.join(texts)})"


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


def limit_of(values: Array, vmax: Limit) -> float:
    """Return the relevance of the strongest colour: a given one, a percentile, or the largest absolute one.

    Raises
    ------
    ValueError
        If the given one is not positive, or is no percentile.

    Examples
    --------
    >>> import numpy as np
    >>> from zennit_attn.heatmap.figure import limit_of
    >>> values = np.array([*range(-100, 0), 5000.0])
    >>> limit_of(values, None), limit_of(values, 10), limit_of(values, "99%")
    (5000.0, 10.0, 100.0)
    """
    if vmax is None:
        return largest(values)
    if isinstance(vmax, str):
        # where nearly all relevance is zero the percentile is, too, and is no scale
        share = percentage(vmax)
        return (float(np.percentile(np.abs(values), share)) if values.size else 0.0) or largest(values)
    if not (np.isfinite(vmax) and vmax > 0):
        raise ValueError(f"got vmax={vmax}, expected a positive number: the relevance of the strongest colour")
    return float(vmax)


def percentage(text: str) -> float:
    """Return the number of a text as "99%"."""
    found = PERCENTILE.fullmatch(text)
    if found is None or not 0 < float(found[1]) <= 100:
        raise ValueError(
            f"got vmax={text!r}, expected a number, or a percentile of absolute relevance above 0% and up to 100%, "
            "as '99%'"
        )
    return float(found[1])


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


def note_on(values: Array, low: float | Array, high: float | Array) -> str:
    """Say what has to be known of values and their scale or scales: that all are zero, or that some are beyond it."""
    if not values.any():
        return "all relevance is zero"
    count = int(((values < low) | (values > high)).sum())
    span = f"{amount(float(values.min()))} to {amount(float(values.max()))}"
    return f"{count} of {values.size} values are beyond the scale: all are {span}" if count else ""


def page(width: float, size: float, font: Fonts) -> Sheet:
    """Return an empty sheet.

    Raises
    ------
    ValueError
        If a size is not positive, or there is no such font.
    """
    from .sheet import Sheet

    if not (np.isfinite([width, size]).all() and width > 0 and size > 0):
        raise ValueError(f"got width={width} and size={size}, expected positive numbers of points")
    return Sheet(width, font)


def with_title(sheet: Sheet, title: str, size: float) -> float:
    """Draw a title, and return where it ends."""
    top = MARGIN
    for line in sheet.face.wrapped(title, LARGE * size, sheet.width - 2 * MARGIN) if title else []:
        top += LEADING * LARGE * size
        sheet.text(MARGIN, top - 0.3 * size, line, LARGE * size)
    return top + 0.5 * size * bool(title)


def with_scale(
    sheet: Sheet,
    sides: tuple[float, float],
    top: float,
    size: float,
    paint: Paint,
    ends: tuple[float, float] | None,
    note: str,
) -> None:
    """Draw the scale of the colours and a note below everything else, and end the sheet there.

    Parameters
    ----------
    sheet : Sheet
        The sheet.
    sides : tuple of float
        Left and right edge of the content, with which the scale stands.
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
    small, (left, right) = SMALL * size, sides
    low, high = ends or (-1.0, 1.0)
    names = ("-max", "+max") if ends is None else (amount(low), amount(high))
    name, last = f"relevance {names[0]}", sheet.face.length(names[1], small)
    before = sheet.face.length(name, small) + 0.4 * size
    height = 1.05 * size
    if right - left >= before + BAR / 2 * size + 0.4 * size + last:
        bar = min(BAR * size, right - left - before - last - 0.4 * size)
        start, base, bottom = right - last - 0.4 * size - bar, top + 1.1 * size, top + 1.35 * size
        sheet.text(start - 0.4 * size, base, name, small, GREY, "right")
        room = start - size - (before - 0.4 * size) - left
    else:
        # narrow content has its scale below, as wide as itself, and the ends of the scale below that
        start, bar, room, base = left, right - left, 0.0, top + 1.1 * size
        bottom = top + 1.35 * size + LEADING * small
        sheet.text(left, bottom - 0.3 * small, names[0], small, GREY)
    sheet.text(
        right, base if room or bottom == top + 1.35 * size else bottom - 0.3 * small, names[1], small, GREY, "right"
    )
    axes = sheet.axes(start, top + 0.3 * size, bar, height)
    shown(axes, paint(np.linspace(low, high, 256)[None], low, high))
    if low < 0 < high:
        color = paint(np.zeros(1), low, high)[0].tolist()
        sheet.text(start - low / (high - low) * bar, base, "0", small, ink_on(tuple(color)), "center")
    # a note that does not fit beside the scale stands below it
    base = top + 1.1 * size
    if sheet.face.length(note, small) > room:
        base, room = bottom + 1.3 * small, sheet.width - MARGIN - left
    for line in sheet.face.wrapped(note, small, room) if note else []:
        sheet.text(left, base, line, small, GREY)
        bottom = max(bottom, base + 0.3 * small)
        base += LEADING * small
    sheet.done(bottom + MARGIN)


def shown(axes: Axes, shades: Pixels) -> None:
    """Draw shades over the whole of axes."""
    from .sheet import picture

    picture(axes, shades, smooth=True)
    axes.set_aspect("auto")
