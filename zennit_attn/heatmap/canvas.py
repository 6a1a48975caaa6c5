"""Canvas: rectangles, text and pictures, laid out once in points, and written as PNG, SVG, HTML or PDF.

A canvas knows nothing of relevance. Text is measured with the fonts that draw it, of which the first that has a letter
draws it; a letter that none has is drawn as its code point, with a warning. There are no paths, no clipping and no
transparency, but for a picture's own pixels.
"""

from __future__ import annotations

import base64
import functools
import html
import io
import math
import os
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, features

from ..errors import GlyphWarning

Color = tuple[int, int, int]
Pixels = NDArray[np.uint8]
Anchor = Literal["start", "middle", "end"]
# how much of a text is before its point
SHARES: dict[Anchor, float] = {"start": 0.0, "middle": 0.5, "end": 1.0}
# None is Pillow's own font
FontName = str | None
Fonts = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None

BLACK, INK, GREY, LIGHT, WHITE = (0, 0, 0), (26, 30, 38), (86, 94, 106), (206, 211, 218), (255, 255, 255)
POINTS_PER_INCH = 72
# Pillow's own font has hardly more than ASCII; these are tried, by name, for what it has not
FALLBACKS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "msyh.ttc")
# size at which text is measured: large, so that hinting does not count
MEASURE = 200
# how many times larger letters are drawn than they are to be
FINE = 4


@functools.lru_cache(256)
def load(name: FontName, size: int) -> ImageFont.FreeTypeFont:
    """Return a font in a size in pixels.

    Raises
    ------
    ValueError
        If Pillow cannot open it.
    """
    try:
        font = ImageFont.load_default(size) if name is None else ImageFont.truetype(name, size)
    except OSError as error:
        raise ValueError(
            f"got font={name!r}, which Pillow cannot open ({error}); expected the path or "
            "name of a TrueType or OpenType font with outlines, e.g. NotoSansCJK-Regular.ttc."
        ) from error
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise ValueError("got a Pillow without FreeType, which draws no text of a given size; install Pillow's wheel.")
    return font


@functools.lru_cache(65536)
def has(name: FontName, letter: str) -> bool:
    """Tell whether a font has a letter: whether it draws something else than what stands for letters it has not."""
    if letter.isspace():
        return True
    font = load(name, 48)
    # U+FFFF is no character, so that no font has it
    drawn, missing = (font.getmask(text) for text in (letter, "\uffff"))
    return drawn.getbbox() is not None and (drawn.size, bytes(drawn)) != (missing.size, bytes(missing))


@functools.cache
def fallbacks() -> tuple[FontName, ...]:
    """Return Pillow's own font, and those of the system that are there."""
    found: list[FontName] = [None]
    for name in FALLBACKS:
        try:
            load(name, MEASURE)
        except ValueError:
            continue
        found.append(name)
    return tuple(found)


def ignorable(letter: str) -> bool:
    """Tell whether a letter may go undrawn: joiners, and the choice between forms of an emoji."""
    return letter in "\u200c\u200d" or 0xFE00 <= ord(letter) <= 0xFE0F


class Typeface:
    """Fonts, of which the first that has a letter draws it.

    Parameters
    ----------
    font : str, os.PathLike or sequence of these, optional
        Path or name of a font, or of several. By default Pillow's own, or one of the system that has more of the
        letters of the text.
    texts : iterable of str
        The text, which decides between the fonts of the system, so that one text has one font where it can.
    """

    def __init__(self, font: Fonts = None, texts: Iterable[str] = ()) -> None:
        letters = set("".join(texts))
        chosen = [] if font is None else [font] if isinstance(font, (str, os.PathLike)) else list(font)
        # a sort keeps the order of fonts that have as many letters
        others = sorted(fallbacks(), key=lambda name: -sum(int(has(name, letter)) for letter in letters))
        self.names: list[FontName] = [*(os.fspath(name) for name in chosen), *others]
        for name in self.names:
            load(name, MEASURE)

    def font_of(self, text: str) -> tuple[FontName, bool]:
        """Return the first font that has all letters of a text, and whether there is one."""
        for name in self.names:
            if all(has(name, letter) or ignorable(letter) for letter in text):
                return name, True
        return self.names[0], False

    def runs(self, text: str) -> list[tuple[FontName, str]]:
        """Return parts of a text, each with its font, code points for letters that no font has."""
        name, complete = self.font_of(text)
        if complete:
            # a font without a sign for a joiner would draw a box
            return [(name, "".join(letter for letter in text if has(name, letter)))]
        runs: list[tuple[FontName, str]] = []
        for letter in text:
            name, known = self.font_of(letter)
            part = "" if not has(name, letter) and known else letter if known else f"U+{ord(letter):04X}"
            if runs and runs[-1][0] == name:
                runs[-1] = (name, runs[-1][1] + part)
            else:
                runs.append((name, part))
        return runs

    def length(self, text: str, size: float) -> float:
        """Return the width of a text, in the unit of the size."""
        return sum(load(name, MEASURE).getlength(part) for name, part in self.runs(text)) * size / MEASURE

    def check(self, texts: Iterable[str]) -> None:
        """Warn of text that cannot be drawn as it should be."""
        letters = sorted(set("".join(texts)))
        missing = [letter for letter in letters if not self.font_of(letter)[1]]
        if missing:
            shown = ", ".join(f"{letter} (U+{ord(letter):04X})" for letter in missing[:8])
            warnings.warn(
                f"no font has {len(missing)} of the letters, among them {shown}, which are drawn as code points. "
                "Pass font=, the path or name of one that has them, e.g. NotoSansCJK-Regular.ttc, or save as .svg or "
                ".html, which take fonts from the viewer.",
                GlyphWarning,
                stacklevel=4,
            )
        if any(map(is_right_to_left, letters)) and not features.check("raqm"):
            warnings.warn(
                "the text is written from right to left, for which Pillow needs Raqm (python -m PIL --report); its "
                "letters are drawn in the wrong order. Save as .svg or .html.",
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


def is_right_to_left(letter: str) -> bool:
    """Tell whether a letter is Hebrew, Arabic or the like."""
    return unicodedata.bidirectional(letter) in ("R", "AL")


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
    >>> from zennit_attn.heatmap.canvas import ink_on
    >>> ink_on((255, 255, 255)), ink_on((178, 24, 43))
    ((0, 0, 0), (255, 255, 255))
    """
    return max((BLACK, WHITE), key=lambda ink: contrast(ink, color))


@dataclass(frozen=True)
class Rectangle:
    """A rectangle, with a line inside of its edge, and a note that viewers show of it."""

    x: float
    y: float
    width: float
    height: float
    fill: Color | None = None
    line: Color | None = None
    thickness: float = 0.5
    note: str = ""


@dataclass(frozen=True)
class Text:
    """A text at a point on its base line; an upright one reads from bottom to top."""

    x: float
    y: float
    text: str
    size: float
    color: Color = INK
    anchor: Anchor = "start"
    upright: bool = False


@dataclass(frozen=True)
class Picture:
    """Pixels of shape (rows, columns, 3), stretched to a rectangle; smooth ones are interpolated."""

    x: float
    y: float
    width: float
    height: float
    pixels: Pixels
    smooth: bool = False


@dataclass
class Canvas:
    """What is drawn, in points from the upper left.

    Attributes
    ----------
    width, height : float
        Size in points, of which an inch has 72.
    face : Typeface
        Fonts of all text.
    items : list
        What is drawn, in this order.
    """

    width: float
    height: float
    face: Typeface
    items: list[Rectangle | Text | Picture] = field(default_factory=list)

    def add(self, *items: Rectangle | Text | Picture) -> None:
        """Draw more."""
        self.items.extend(items)

    def texts(self) -> list[str]:
        """Return all text."""
        return [item.text for item in self.items if isinstance(item, Text)]

    def image(self, dpi: float) -> Image.Image:
        """Return the picture in RGB, in a resolution in pixels per inch."""
        self.face.check(self.texts())
        return self.drawn(dpi)

    def drawn(self, dpi: float) -> Image.Image:
        """Return the picture in a resolution, without a look at its fonts."""
        if not dpi > 0:
            raise ValueError(f"got dpi={dpi}, expected more than 0")
        scale = dpi / POINTS_PER_INCH
        image = Image.new("RGB", (round(self.width * scale), round(self.height * scale)), WHITE)
        draw = ImageDraw.Draw(image)
        for item in self.items:
            if isinstance(item, Rectangle):
                draw_rectangle(draw, item, scale)
            elif isinstance(item, Picture):
                left, top, right, bottom = corners(item, scale)
                image.paste(stretched(item.pixels, (right - left, bottom - top), item.smooth), (left, top))
            else:
                self.draw_text(image, item, scale)
        return image

    def draw_text(self, image: Image.Image, item: Text, scale: float) -> None:
        """Draw a text on an image, from letters that are larger, because small ones are hinted to other widths."""
        runs, size = self.face.runs(item.text), max(round(item.size * scale * FINE), 1)
        length = sum(load(name, size).getlength(part) for name, part in runs)
        # along the text, which runs to the right or up, and across it, in small pixels
        start = (-item.y if item.upright else item.x) * scale * FINE - SHARES[item.anchor] * length
        base = (item.x if item.upright else item.y) * scale * FINE
        before, above = (math.floor((value - 2 * size) / FINE) for value in (start, base))
        shape = (math.ceil((length + 4 * size) / FINE + 1) * FINE, math.ceil(3 * size / FINE + 1) * FINE)
        mask = Image.new("L", shape)
        write(ImageDraw.Draw(mask), (start - before * FINE, base - above * FINE), runs, size, 255)
        if item.upright:
            mask = mask.rotate(90, expand=True)
        mask = mask.reduce(FINE)
        # the lower end of a turned mask is where the text starts
        image.paste(item.color, (above, -before - mask.height) if item.upright else (before, above), mask)

    def svg(self) -> str:
        """Return the picture as SVG, whose text can be selected, and which takes fonts from the viewer."""
        width, height = number(self.width), number(self.height)
        root = ElementTree.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {width} {height}"})
        names = [load(name, MEASURE).getname()[0] for name in self.face.names[:1]]
        families = [f"'{name}'" for name in names if name] + ["Helvetica", "Arial", "'DejaVu Sans'", "sans-serif"]
        root.attrib |= {"width": f"{width}pt", "height": f"{height}pt", "font-family": ", ".join(families)}
        root.set("style", "max-width: 100%; height: auto; white-space: pre")
        svg_rectangle(root, Rectangle(0, 0, self.width, self.height, WHITE))
        for item in self.items:
            if isinstance(item, Rectangle):
                svg_rectangle(root, item)
            elif isinstance(item, Picture):
                svg_picture(root, item)
            elif item.text:
                self.svg_text(root, item)
        return ElementTree.tostring(root, encoding="unicode")

    def svg_text(self, root: ElementTree.Element, item: Text) -> None:
        """Add a text to SVG."""
        at = {"x": number(item.x), "y": number(item.y), "font-size": number(item.size), "fill": hexadecimal(item.color)}
        if item.anchor != "start":
            at["text-anchor"] = item.anchor
        if item.upright:
            at["transform"] = f"rotate(-90 {at['x']} {at['y']})"
        # the viewer's font may be another one: text has the room that was measured
        if len(item.text) > 1 and all(self.face.font_of(letter)[1] for letter in item.text):
            length = self.face.length(item.text, item.size)
            at |= {"textLength": number(length), "lengthAdjust": "spacingAndGlyphs"}
        ElementTree.SubElement(root, "text", at).text = item.text

    def html(self, title: str) -> str:
        """Return a page with the picture, which needs nothing but itself."""
        head = f'<head><meta charset="utf-8"><title>{html.escape(title)}</title></head>'
        return f'<!DOCTYPE html>\n<html lang="und">{head}<body>{self.svg()}</body></html>\n'

    def save(self, path: str | os.PathLike[str], title: str, dpi: float) -> None:
        """Write PNG, SVG, HTML or PDF, as the end of a path says, with the title of a page or document."""
        from .pdf import document

        path = Path(path)
        kind = path.suffix.lower()
        if kind in (".png", ".pdf"):
            self.face.check(self.texts())
        if kind == ".png":
            self.drawn(dpi).save(path, dpi=(dpi, dpi))
        elif kind == ".pdf":
            path.write_bytes(document(self, title))
        elif kind in (".svg", ".html"):
            path.write_text(self.svg() if kind == ".svg" else self.html(title), encoding="utf-8")
        else:
            raise ValueError(f"got path={os.fspath(path)!r}, expected one that ends with .png, .svg, .html or .pdf")


def stretched(pixels: Pixels, size: tuple[int, int], smooth: bool) -> Image.Image:
    """Return pixels as an image of a size, with sharp edges if it is larger and not to be smooth."""
    enlarges = size[0] >= pixels.shape[1] and size[1] >= pixels.shape[0]
    sharp = Image.Resampling.NEAREST if enlarges else Image.Resampling.BOX
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return image.resize(size, Image.Resampling.BICUBIC if smooth else sharp)


def enlarged(item: Picture) -> Pixels:
    """Return the pixels of a picture in about 300 per inch, because some viewers blur fewer ones."""
    size = (item.width * 300 / POINTS_PER_INCH, item.height * 300 / POINTS_PER_INCH)
    rows, columns = item.pixels.shape[:2]
    factor = max(math.ceil(size[0] / columns), math.ceil(size[1] / rows))
    return np.asarray(stretched(item.pixels, (columns * factor, rows * factor), item.smooth))


def corners(item: Rectangle | Picture, scale: float) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom in pixels; neighbours share an edge."""
    left, top = round(item.x * scale), round(item.y * scale)
    right, bottom = round((item.x + item.width) * scale), round((item.y + item.height) * scale)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def draw_rectangle(draw: ImageDraw.ImageDraw, item: Rectangle, scale: float) -> None:
    """Draw a rectangle on an image."""
    left, top, right, bottom = corners(item, scale)
    thickness = max(round(item.thickness * scale), 1) if item.line else 0
    draw.rectangle((left, top, right - 1, bottom - 1), item.fill, item.line, thickness)


def write(draw: ImageDraw.ImageDraw, place: tuple[float, float], runs: Any, pixels: int, color: Color | int) -> None:
    """Draw parts of a text, one after the other, from a point on their base line."""
    x, y = place
    for name, part in runs:
        font = load(name, pixels)
        draw.text((x, y), part, color, font, "ls")
        x += font.getlength(part)


def number(value: float) -> str:
    """Write a length for SVG and PDF."""
    return f"{value:.3f}".rstrip("0").rstrip(".")


def hexadecimal(color: Color) -> str:
    """Write a colour for SVG."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def svg_rectangle(root: ElementTree.Element, item: Rectangle) -> None:
    """Add a rectangle to SVG."""
    inset = item.thickness / 2 if item.line else 0.0
    x, y, width, height = item.x + inset, item.y + inset, item.width - 2 * inset, item.height - 2 * inset
    at = {"x": number(x), "y": number(y), "width": number(width), "height": number(height)}
    at["fill"] = hexadecimal(item.fill) if item.fill else "none"
    if item.line:
        at |= {"stroke": hexadecimal(item.line), "stroke-width": number(item.thickness)}
    element = ElementTree.SubElement(root, "rect", at)
    if item.note:
        ElementTree.SubElement(element, "title").text = item.note


def svg_picture(root: ElementTree.Element, item: Picture) -> None:
    """Add a picture to SVG, as PNG inside of it."""
    file = io.BytesIO()
    Image.fromarray(enlarged(item)).save(file, "PNG", optimize=True)
    at = {"x": number(item.x), "y": number(item.y), "width": number(item.width), "height": number(item.height)}
    at["preserveAspectRatio"] = "none"
    at["href"] = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    ElementTree.SubElement(root, "image", at)
