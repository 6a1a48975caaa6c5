"""Draw relevance: words in coloured boxes, and pictures beside their heatmaps, on one white page.

Everything is drawn with Pillow and the colour maps of zennit, at twice the size at which it is to be shown.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from zennit.image import get_cmap

# blue, white at zero, red: dark enough at its ends for white letters
COLORS = get_cmap("2166ac,92c5de,80:fff,f4a582,b2182b")
WIDTH, MARGIN = 1800, 72
TITLE, HEADING, TEXT, SMALL = 54, 38, 30, 24
INK, GREY, LIGHT = (26, 30, 38), (98, 106, 118), (214, 219, 226)
BOX, GAP, COLUMN_GAP, PANELS_IN_ROW = 96, 8, 48, 3
# how bright red, green and blue look
LUMINANCE = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Words:
    """A row of words, each with its relevance.

    Attributes
    ----------
    title, note : str
        What stands above the row, large and small.
    tokens : list of str
        The words.
    relevance : numpy.ndarray
        Relevance of each word.
    outlined : int, optional
        Index of a word to outline.
    """

    title: str
    note: str
    tokens: list[str]
    relevance: np.ndarray
    outlined: int | None = None


@dataclass(frozen=True)
class Panel:
    """A picture and the relevance of its parts.

    Attributes
    ----------
    title, note : str
        What stands above and below.
    picture : numpy.ndarray
        Values from 0 to 1, of shape (height, width) or (height, width, 3).
    relevance : numpy.ndarray
        Shape (rows, columns), stretched to the size of the picture.
    outlined : numpy.ndarray, optional
        Of the shape of the relevance, true inside of an area to outline on the heatmap.
    """

    title: str
    note: str
    picture: np.ndarray
    relevance: np.ndarray
    outlined: np.ndarray | None = None


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes
    ----------
    title, caption : str
        Heading, and what has to be known to read the rows or panels.
    content : list of Words or list of Panel
        The rows or panels.
    """

    title: str
    caption: str
    content: list


def colors(relevance, scale=None):
    """Colour relevance, symmetric about zero.

    Parameters
    ----------
    relevance : numpy.ndarray
        Relevance of any shape.
    scale : float, optional
        Relevance of the strongest red; by default the largest absolute relevance.

    Returns
    -------
    numpy.ndarray
        Colours of type uint8, with an axis of size 3 in the end.
    """
    scale = np.abs(relevance).max(initial=0) if scale is None else scale
    return (COLORS(relevance / (scale or 1.0) / 2 + 0.5) * 255).round().astype(np.uint8)


def is_bright(color):
    """Tell whether letters on a colour have to be dark."""
    return np.dot(color, LUMINANCE) > 140


def number(value, scale):
    """Write a relevance with its sign, and at least two digits of the largest one.

    Parameters
    ----------
    value : float
        The relevance.
    scale : float
        The largest absolute relevance that it stands beside.

    Returns
    -------
    str
        The number, without a sign before zero.
    """
    decimals = int(np.clip(1 - np.floor(np.log10(scale)), 2, 6)) if scale > 0 else 2
    text = f"{value:+.{decimals}f}"
    return text if float(text) else text[1:]


def font(size, text=""):
    """Return a font that has the letters of a text.

    Parameters
    ----------
    size : int
        Height in pixels.
    text : str, optional
        The text. Pillow's own font has hardly more than ASCII; for others one of the system is tried.

    Returns
    -------
    PIL.ImageFont.FreeTypeFont
        The font.
    """
    if not text.isascii():
        try:
            return ImageFont.truetype("DejaVuSans.ttf", size)
        except OSError:
            pass
    return ImageFont.load_default(size)


def length(text, size):
    """Return the width of a text in pixels."""
    return font(size, text).getlength(text)


def write(draw, place, text, size, fill=INK, anchor="ls", bold=False):
    """Write a text; Pillow's own font has no bold face, a stroke of a pixel makes one."""
    draw.text(place, text, fill, font(size, text), anchor, stroke_width=int(bold), stroke_fill=fill)


def wrapped(text, size, width):
    """Break a text into lines of at most a width, in pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and length(longer, size) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def block(height):
    """Return an empty strip of the page, and what draws on it."""
    image = Image.new("RGB", (WIDTH, round(height)), "white")
    return image, ImageDraw.Draw(image)


def header(title, subtitle):
    """Draw the title of the page, and the scale of the colours."""
    image, draw = block(142)
    write(draw, (MARGIN, 62), title, TITLE, bold=True)
    write(draw, (MARGIN, 116), subtitle, SMALL, GREY)
    left, right = WIDTH - MARGIN - 480, WIDTH - MARGIN
    bar = Image.fromarray(np.tile(colors(np.linspace(-1, 1, right - left)), (34, 1, 1)))
    image.paste(bar, (left, 30))
    draw.rectangle((left, 30, right - 1, 63), outline=LIGHT, width=2)
    write(draw, (left, 104), "-max: against", SMALL, GREY)
    write(draw, ((left + right) / 2, 104), "0", SMALL, GREY, "ms")
    write(draw, (right, 104), "for: +max", SMALL, GREY, "rs")
    return image


def heading(section):
    """Draw the heading and the caption of a section, below a thin line."""
    lines = wrapped(section.caption, SMALL, WIDTH - 2 * MARGIN)
    image, draw = block(96 + 34 * len(lines))
    draw.line((MARGIN, 1, WIDTH - MARGIN, 1), LIGHT, 2)
    write(draw, (MARGIN, 64), section.title, HEADING, bold=True)
    for index, line in enumerate(lines):
        write(draw, (MARGIN, 108 + 34 * index), line, SMALL, GREY)
    return image


def arranged(widths):
    """Arrange boxes in lines.

    Parameters
    ----------
    widths : list of float
        Widths of the boxes.

    Returns
    -------
    list of tuple of float
        Left edge, line and width of each box.
    """
    places, left, line = [], MARGIN, 0
    for width in widths:
        if places and left + width > WIDTH - MARGIN:
            left, line = MARGIN, line + 1
        places.append((left, line, width))
        left += width + GAP
    return places


def words(row):
    """Draw a row of words as coloured boxes, in as many lines as it needs."""
    scale = np.abs(row.relevance).max(initial=0)
    numbers = [number(value, scale) for value in row.relevance]
    pairs = list(zip(row.tokens, numbers, strict=True))
    places = arranged([max(length(token, TEXT), length(text, SMALL)) + 28 for token, text in pairs])
    image, draw = block(56 + (BOX + GAP) * (places[-1][1] + 1))
    write(draw, (MARGIN, 36), row.title, TEXT)
    write(draw, (MARGIN + length(row.title, TEXT) + 24, 36), row.note, SMALL, GREY)
    for index, (left, line, width) in enumerate(places):
        top = 56 + (BOX + GAP) * line
        color = tuple(colors(row.relevance[index], scale).tolist())
        edge, thickness = (INK, 4) if index == row.outlined else (LIGHT, 2)
        draw.rounded_rectangle((left, top, left + width, top + BOX), 10, color, edge, thickness)
        ink = INK if is_bright(color) else "white"
        write(draw, (left + width / 2, top + 42), pairs[index][0], TEXT, ink, "ms")
        write(draw, (left + width / 2, top + 78), pairs[index][1], SMALL, ink, "ms")
    return image


def panels(row):
    """Draw pictures side by side, each beside its heatmap."""
    room = (WIDTH - 2 * MARGIN + COLUMN_GAP) / max(len(row), 2) - COLUMN_GAP
    size = int((room - GAP) / 2)
    heights = [round(size * panel.picture.shape[0] / panel.picture.shape[1]) for panel in row]
    image, draw = block(56 + max(heights) + 60)
    for index, (panel, height) in enumerate(zip(row, heights, strict=True)):
        left = round(MARGIN + index * (room + COLUMN_GAP))
        write(draw, (left, 36), panel.title, TEXT)
        picture = Image.fromarray((panel.picture * 255).round().astype(np.uint8)).convert("RGB")
        for place, part in ((left, picture), (left + size + GAP, Image.fromarray(colors(panel.relevance)))):
            image.paste(part.resize((size, height), Image.Resampling.NEAREST), (place, 56))
            draw.rectangle((place, 56, place + size - 1, 55 + height), outline=LIGHT, width=2)
        if panel.outlined is not None:
            outline(draw, panel.outlined, (left + size + GAP, 56, size, height))
        write(draw, (left, 56 + height + 36), panel.note, SMALL, GREY)
    return image


def outline(draw, inside, place):
    """Draw a line around the cells of a heatmap that are inside of an area."""
    left, top, width, height = place
    rows, columns = inside.shape
    padded = np.pad(inside, 1)
    for row, column in np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1]):
        x, ys = left + width * column / columns, (top + height * row / rows, top + height * (row + 1) / rows)
        draw.line((x, ys[0], x, ys[1]), INK, 3)
    for row, column in np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1]):
        y, xs = top + height * row / rows, (left + width * column / columns, left + width * (column + 1) / columns)
        draw.line((xs[0], y, xs[1], y), INK, 3)


def blocks_of(section):
    """Draw a section, as a list of strips."""
    content = section.content
    if isinstance(content[0], Words):
        drawn = [words(row) for row in content]
    else:
        drawn = [panels(content[i : i + PANELS_IN_ROW]) for i in range(0, len(content), PANELS_IN_ROW)]
    return [heading(section), *drawn]


def draw_page(title, subtitle, sections):
    """Draw a page.

    Parameters
    ----------
    title, subtitle : str
        What stands on its top, beside the scale of the colours.
    sections : list of Section
        Its parts.

    Returns
    -------
    PIL.Image.Image
        The page, at twice the size at which it is to be shown.
    """
    strips = [block(MARGIN // 2)[0], header(title, subtitle)]
    for section in sections:
        strips += [*blocks_of(section), block(MARGIN // 2)[0]]
    page = Image.new("RGB", (WIDTH, sum(strip.height for strip in strips)), "white")
    top = 0
    for strip in strips:
        page.paste(strip, (0, top))
        top += strip.height
    return page
