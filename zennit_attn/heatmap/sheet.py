"""Sheet: a figure of matplotlib that is laid out in points from the upper left, and its fonts.

This module imports matplotlib, which takes time, so that others import it at the first picture.
"""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.textpath import TextToPath
from matplotlib.transforms import Affine2D
from PIL import Image

from ..errors import GlyphWarning
from .ink import INK, LIGHT, Color, Fonts, Pixels, hexadecimal

Anchor = Literal["left", "center", "right"]
POINTS_PER_INCH, LARGEST_PAGE = 72, 14400
# size at which text is measured
MEASURE = 100
# matplotlib's own font has no CJK; these are tried for what it has not
FALLBACKS = (
    "Noto Sans",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "WenQuanYi Zen Hei",
    "Arial Unicode MS",
    "PingFang SC",
    "Microsoft YaHei",
)
# the same bytes each time, and text that can be selected
OURS: dict[Any, Any] = {"svg.hashsalt": "zennit-attn", "svg.fonttype": "none", "pdf.fonttype": 42}
# settings of matplotlib belong to the process, and rc_context does not keep threads apart
LOCK = threading.RLock()


@contextmanager
def settings() -> Iterator[None]:
    """Draw with matplotlib's own settings, whatever the process has set, one thread at a time."""
    with LOCK, mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(OURS)
        yield


def family_of(font: str) -> str:
    """Return the family of a font that is given by its path, its file's name or its family.

    Raises
    ------
    ValueError
        If matplotlib finds none.
    """
    by_name = {Path(entry.fname).name: entry.fname for entry in fontManager.ttflist}
    path = by_name.get(font, font)
    try:
        if not Path(path).is_file():
            findfont(FontProperties(family=[font]), fallback_to_default=False)
            return font
        fontManager.addfont(path)
        return str(get_font(path).family_name)
    except (ValueError, RuntimeError, OSError) as error:
        raise ValueError(
            f"got font={font!r}, which matplotlib cannot open ({error}); expected the path or "
            "name of a TrueType or OpenType font with outlines, e.g. NotoSansCJK-Regular.ttc."
        ) from error


class Face:
    """Fonts, of which the first that has a letter draws it.

    Parameters
    ----------
    font : str, os.PathLike or sequence of these, optional
        Path, file name or family of a font, or of several, which go before matplotlib's own and those of the system.
    """

    def __init__(self, font: Fonts = None) -> None:
        chosen = [] if font is None else [font] if isinstance(font, (str, os.PathLike)) else list(font)
        known = set(fontManager.get_font_names())
        self.families = [family_of(os.fspath(each)) for each in chosen]
        self.families += ["DejaVu Sans", *(name for name in FALLBACKS if name in known)]
        self.fonts = [get_font(findfont(FontProperties(family=[name]))) for name in self.families]
        self.lengths = dict[str, float]()
        self.has = lru_cache(None)(lambda letter: any(font.get_char_index(ord(letter)) for font in self.fonts))

    def sized(self, size: float) -> FontProperties:
        """Return the fonts in a size."""
        return FontProperties(family=self.families, size=size)

    def drawable(self, text: str) -> str:
        """Return a text with code points for letters that no font has, without joiners that would be boxes."""
        return "".join(
            letter if letter.isspace() or self.has(letter) else "" if ignorable(letter) else f"U+{ord(letter):04X}"
            for letter in text
        )

    def length(self, text: str, size: float) -> float:
        """Return the width of a text, in the unit of the size."""
        if text not in self.lengths:
            drawn = self.drawable(text)
            measured = TextToPath().get_text_width_height_descent(drawn, self.sized(MEASURE), False)[0] if drawn else 0
            self.lengths[text] = float(measured) / MEASURE
        return self.lengths[text] * size

    def check(self, texts: Iterable[str]) -> None:
        """Warn of letters that no font has."""
        letters = sorted(set("".join(texts)))
        missing = [each for each in letters if self.drawable(each).startswith("U+") and each != "U"]
        if missing:
            shown = ", ".join(f"{letter} (U+{ord(letter):04X})" for letter in missing[:8])
            warnings.warn(
                f"no font has {len(missing)} of the letters, among them {shown}, which are drawn as code points. "
                "Pass font=, the path or name of one that has them, e.g. NotoSansCJK-Regular.ttc, or save as .html, "
                "which takes fonts from the viewer.",
                GlyphWarning,
                stacklevel=4,
            )

    def wrapped(self, text: str, size: float, width: float) -> list[str]:
        """Break a text into lines of at most a width, words that are wider, too."""
        lines = [""]
        for word in text.split():
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and self.length(longer, size) > width:
                lines.append("")
                longer = word
            while len(longer) > 1 and self.length(longer, size) > width:
                fits = next(
                    n for n in range(len(longer) - 1, 0, -1) if n == 1 or self.length(longer[:n], size) <= width
                )
                lines[-1], longer = longer[:fits], longer[fits:]
                lines.append("")
            lines[-1] = longer
        return lines


def ignorable(letter: str) -> bool:
    """Tell whether a letter may go undrawn: joiners, and the choice between forms of an emoji."""
    return letter in "\u200c\u200d" or 0xFE00 <= ord(letter) <= 0xFE0F


class Sheet:
    """A figure whose parts are placed in points from the upper left.

    Attributes
    ----------
    figure : matplotlib.figure.Figure
        What is drawn.
    face : Face
        Its fonts.
    width, height : float
        In points; the figure has them when it is :meth:`done`.
    texts : list of str
        All text.
    """

    def __init__(self, width: float, font: Fonts) -> None:
        self.figure, self.face, self.width, self.height = Figure(), Face(font), width, 0.0
        self.texts = list[str]()
        self.boxes = list[tuple[Axes, tuple[float, float, float, float]]]()
        self.down = Affine2D()

    def text(self, x: float, y: float, text: str, size: float, color: Color = INK, anchor: Anchor = "left") -> None:
        """Write at a point on the base line."""
        self.texts.append(text)
        self.figure.text(
            x,
            y,
            self.face.drawable(text),
            fontproperties=self.face.sized(size),
            color=hexadecimal(color),
            ha=anchor,
            va="baseline",
            parse_math=False,
            transform=self.down + self.figure.dpi_scale_trans,
        )

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Add axes in a box."""
        axes = self.figure.add_axes((0, 0, 1, 1), label=str(len(self.boxes)))
        self.boxes.append((axes, (x, y, width, height)))
        return axes

    def done(self, height: float) -> Figure:
        """End the sheet at a height, and return the figure."""
        self.height = height
        self.figure.set_size_inches(self.width / POINTS_PER_INCH, height / POINTS_PER_INCH)
        self.down.clear().scale(1 / POINTS_PER_INCH, -1 / POINTS_PER_INCH).translate(0, height / POINTS_PER_INCH)
        for axes, (x, y, wide, high) in self.boxes:
            axes.set_position((x / self.width, 1 - (y + high) / height, wide / self.width, high / height))
        return self.figure


def figure_of(axes: Axes) -> Figure:
    """Return the figure that axes are in."""
    figure = axes.get_figure(root=True)
    if figure is None:
        raise ValueError("got axes that are in no figure any more, expected those of a figure")
    return figure


def picture(axes: Axes, pixels: Pixels, smooth: bool = False) -> None:
    """Draw pixels on axes without ticks, with a thin frame."""
    axes.imshow(pixels, interpolation="bicubic" if smooth else "auto" if max(pixels.shape) > 600 else "nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    frame(axes)


def frame(axes: Axes) -> None:
    """Draw a thin light frame."""
    for spine in axes.spines.values():
        spine.set(color=hexadecimal(LIGHT), linewidth=0.5)


def raster(figure: Figure, dpi: float) -> Image.Image:
    """Return a figure in RGB, in a resolution in pixels per inch."""
    if not dpi > 0:
        raise ValueError(f"got dpi={dpi}, expected more than 0")
    return Image.open(io.BytesIO(written(figure, "png", dpi))).convert("RGB")


def written(figure: Figure, kind: str, dpi: float = 300, title: str = "") -> bytes:
    """Return the bytes of a PNG, PDF or SVG, which do not depend on the time."""
    if not dpi > 0:
        raise ValueError(f"got dpi={dpi}, expected more than 0")
    size = max(figure.get_size_inches()) * POINTS_PER_INCH
    if kind == "pdf" and size > LARGEST_PAGE:
        raise ValueError(
            f"got a picture of {size:.0f} points, of which a page of PDF has at most {LARGEST_PAGE}: make it narrower, "
            "or save as .svg, .png or .html"
        )
    dates: dict[str, Any] = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[kind]
    named = {"Title": title} if title and kind != "png" else {}
    file = io.BytesIO()
    with settings():
        # the one canvas that needs no window; savefig takes that of the format itself
        FigureCanvasAgg(figure)
        # compressing more takes longer by half, for a tenth of the bytes
        fast: dict[str, Any] = {"pil_kwargs": {"compress_level": 1}} if kind == "png" else {}
        figure.savefig(file, format=kind, dpi=dpi, metadata={**dates, **named}, **fast)
    return file.getvalue()
