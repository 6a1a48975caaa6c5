"""Draw relevance: words in coloured boxes, and pictures beside their heatmaps, on one white page."""

from dataclasses import dataclass

import numpy as np
from matplotlib.patches import Rectangle

from zennit_attn import heatmap
from zennit_attn.heatmap.figure import Paint
from zennit_attn.heatmap.ink import GREY, INK, LIGHT, hexadecimal
from zennit_attn.heatmap.sheet import Sheet, frame, picture

# in points
WIDTH, MARGIN, GAP, COLUMN_GAP = 648, 26, 3, 17
TITLE, HEADING, TEXT, SMALL = 19, 14, 11, 9
PANELS_IN_ROW = 3


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


def write_lines(sheet, top, text):
    """Write small lines as wide as the page, and return where they end."""
    for line in sheet.face.wrapped(text, SMALL, WIDTH - 2 * MARGIN):
        top += 1.35 * SMALL
        sheet.text(MARGIN, top, line, SMALL, GREY)
    return top


def header(sheet, title, subtitle):
    """Draw the title of the page, and the scale of the colours, and return where they end."""
    left, width = WIDTH - MARGIN - 170, 170
    sheet.text(MARGIN, 36, title, TITLE)
    axes = sheet.axes(left, 22, width, 12)
    picture(axes, Paint()(np.linspace(-1, 1, 256)[None], -1, 1), smooth=True)
    axes.set_aspect("auto")
    for x, text, anchor in ((left, "-max: against", "left"), (left + width / 2, "0", "center")):
        sheet.text(x, 46, text, SMALL, GREY, anchor)
    sheet.text(left + width, 46, "for: +max", SMALL, GREY, "right")
    return write_lines(sheet, 50, subtitle) + 12


def heading(sheet, section, top):
    """Draw the heading and the caption of a section, below a thin line, and return where they end."""
    axes = sheet.axes(MARGIN, top, WIDTH - 2 * MARGIN, 0.7)
    axes.set(xticks=[], yticks=[], facecolor=hexadecimal(LIGHT))
    frame(axes)
    sheet.text(MARGIN, top + 24, section.title, HEADING)
    return write_lines(sheet, top + 28, section.caption) + 8


def words(sheet, row, top):
    """Draw a row of words, and return where it ends."""
    sheet.text(MARGIN, top + TEXT, row.title, TEXT)
    sheet.text(MARGIN + sheet.face.length(row.title, TEXT) + 8, top + TEXT, row.note, SMALL, GREY)
    drawn = heatmap.tokens(row.tokens, row.relevance, numbers=True, size=TEXT)
    width = WIDTH - 2 * MARGIN
    cells, height = drawn.drawing.lay(width)
    axes = drawn.plot(sheet.axes(MARGIN, top + 1.5 * TEXT, width, height))
    if row.outlined is not None:
        cell = cells[row.outlined]
        place = (cell.x / width, 1 - (cell.y + cell.height) / height)
        size = (cell.width / width, cell.height / height)
        style = {"fill": False, "edgecolor": hexadecimal(INK), "linewidth": 1.5, "clip_on": False, "zorder": 9}
        axes.add_patch(Rectangle(place, *size, transform=axes.transAxes, **style))
    return top + 1.5 * TEXT + height + 6


def panels(sheet, row, top):
    """Draw pictures side by side, each beside its heatmap, and return where they end."""
    room = (WIDTH - 2 * MARGIN + COLUMN_GAP) / max(len(row), 2) - COLUMN_GAP
    size = (room - GAP) / 2
    heights = [size * panel.picture.shape[0] / panel.picture.shape[1] for panel in row]
    for index, (panel, height) in enumerate(zip(row, heights, strict=True)):
        left = MARGIN + index * (room + COLUMN_GAP)
        sheet.text(left, top + TEXT, panel.title, TEXT)
        pixels = (panel.picture * 255).round().astype(np.uint8)
        picture(
            sheet.axes(left, top + 1.5 * TEXT, size, height),
            np.atleast_3d(pixels).repeat(1 if pixels.ndim == 3 else 3, 2),
        )
        axes = sheet.axes(left + size + GAP, top + 1.5 * TEXT, size, height)
        heatmap.images(panel.relevance, ax=axes)
        axes.set_aspect("auto")
        if panel.outlined is not None:
            outline(axes, panel.outlined)
        sheet.text(left, top + 1.5 * TEXT + height + 1.3 * SMALL, panel.note, SMALL, GREY)
    return top + 1.5 * TEXT + max(heights) + 2 * SMALL + 4


def outline(axes, inside):
    """Draw a line around the cells of a heatmap that are inside of an area."""
    padded, style = np.pad(inside, 1), {"color": hexadecimal(INK), "linewidth": 1.2, "clip_on": False}
    for row, column in np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1]):
        axes.plot([column - 0.5] * 2, [row - 0.5, row + 0.5], **style)
    for row, column in np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1]):
        axes.plot([column - 0.5, column + 0.5], [row - 0.5] * 2, **style)


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
    matplotlib.figure.Figure
        The page.
    """
    sheet = Sheet(WIDTH, None)
    top = header(sheet, title, subtitle)
    for section in sections:
        top, content = heading(sheet, section, top), section.content
        if isinstance(content[0], Words):
            for row in content:
                top = words(sheet, row, top)
        else:
            for start in range(0, len(content), PANELS_IN_ROW):
                top = panels(sheet, content[start : start + PANELS_IN_ROW], top)
        top += 10
    return sheet.done(top + 8)
