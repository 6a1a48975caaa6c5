"""Axes: relevance on two axes, of tokens and layers, or of layers and heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from zennit.cmap import ColorMap

from .canvas import GREY, LIGHT, Canvas, Fonts, Picture, Pixels, Rectangle, Text
from .figure import (
    CMAP,
    LEADING,
    MARGIN,
    MIDDLE,
    NARROWEST,
    SIZE,
    SMALL,
    WIDTH,
    Heatmap,
    Paint,
    as_array,
    limit_of,
    note_on,
    page,
    with_scale,
    with_title,
)
from .words import visible

# in units of the size of the text: width of all columns at least, of one at most, and height of a row
LEAST, COLUMN, ROW = 10.0, 3.2, 1.35
# of more rows not each has a label
MOST_LABELS = 60


def trace(
    relevance: Any,
    rows: Sequence[Any] | None = None,
    columns: Sequence[Any] | None = None,
    *,
    row_title: str = "",
    column_title: str = "",
    vmax: float | None = None,
    title: str = "",
    cmap: str | ColorMap = CMAP,
    level: float = 1.0,
    width: float = WIDTH,
    size: float = SIZE,
    font: Fonts = None,
) -> Heatmap:
    """Draw relevance on two axes: tokens and layers, or layers and heads.

    Parameters
    ----------
    relevance : torch.Tensor or numpy.ndarray
        Shape ``(rows, columns)``.
    rows, columns : sequence of str or int, optional
        Label of each row and column; by default their index. Of many, only some are written.
    row_title, column_title : str
        What the axes are.
    vmax : float, optional
        Relevance of the strongest colours; by default the largest absolute relevance.
    title, cmap, level, width, size, font
        As in :func:`zennit_attn.heatmap.tokens`.

    Returns
    -------
    Heatmap
        Has ``save`` and ``image``.

    Raises
    ------
    ValueError
        If labels do not fit, or relevance is not finite.

    Examples
    --------
    >>> import torch
    >>> from zennit_attn import heatmap
    >>> words = heatmap.clean_tokens(["▁the", "▁key", "s"])
    >>> picture = heatmap.trace(torch.randn(3, 12), words, row_title="token", column_title="layer")
    >>> picture.save("trace.svg")  # doctest: +SKIP
    """
    values = as_array(relevance, "relevance")
    if values.ndim != 2 or not values.size:
        raise ValueError(f"got relevance of shape {values.shape}, expected (rows, columns): sum over other axes")
    names = [axis_labels("rows", rows, values.shape[0]), axis_labels("columns", columns, values.shape[1])]
    title, row_title, column_title = map(visible, (title, row_title, column_title))
    canvas = page(width, size, font, [*names[0], *names[1], title, row_title, column_title])
    limit = limit_of(values, vmax)
    paint = Paint(cmap, level)
    top = draw_axes(canvas, paint(values, -limit, limit), names, (row_title, column_title), title, size)
    with_scale(canvas, top, size, paint, (-limit, limit), note_on(values, -limit, limit))
    return Heatmap(canvas, title)


def axis_labels(name: str, labels: Sequence[Any] | None, count: int) -> list[str]:
    """Return the labels of an axis."""
    texts = [visible(str(label)) for label in (range(count) if labels is None else labels)]
    if len(texts) != count:
        raise ValueError(f"got {len(texts)} labels of {name} for relevance with {count} {name}, expected as many")
    return texts


def draw_axes(
    canvas: Canvas, colors: Pixels, names: list[list[str]], titles: tuple[str, str], title: str, size: float
) -> float:
    """Draw a picture of cells with its axes and the title, and return where they end."""
    rows, columns = colors.shape[:2]
    indent = widest(canvas, names[0], size) + (0.5 + 1.6 * bool(titles[0])) * size
    left = MARGIN + indent
    width = min(max(canvas.width - MARGIN - left, LEAST * size), COLUMN * size * columns)
    height = size * min(ROW * rows, ROW * MOST_LABELS)
    canvas.width = max(left + width + MARGIN, NARROWEST * size)
    top = with_title(canvas, title, size)
    canvas.add(Picture(left, top, width, height, colors), Rectangle(left, top, width, height, line=LIGHT))
    label_rows(canvas, names[0], size, (left, top, height))
    bottom = label_columns(canvas, names[1], size, (left, top + height, width))
    if titles[0]:
        canvas.add(Text(MARGIN + size, top + height / 2, titles[0], size, anchor="middle", upright=True))
    if titles[1]:
        bottom += 1.3 * size
        canvas.add(Text(left + width / 2, bottom, titles[1], size, anchor="middle"))
    return bottom + 0.6 * size


def widest(canvas: Canvas, labels: list[str], size: float) -> float:
    """Return the width of the widest label."""
    return max(canvas.face.length(text, SMALL * size) for text in labels)


def label_rows(canvas: Canvas, labels: list[str], size: float, place: tuple[float, float, float]) -> None:
    """Write as many labels as have room left of rows, which have a left edge, a top and a height."""
    (left, top, height), small = place, SMALL * size
    cell = height / len(labels)
    for index in range(0, len(labels), math.ceil(LEADING * small / cell)):
        y = top + (index + 0.5) * cell
        canvas.add(Text(left - 0.5 * size, y + MIDDLE * small, labels[index], small, anchor="end"))
        canvas.add(Rectangle(left - 0.3 * size, y - 0.25, 0.3 * size, 0.5, GREY))


def label_columns(canvas: Canvas, labels: list[str], size: float, place: tuple[float, float, float]) -> float:
    """Write as many labels as have room below columns, which have a left edge, a top and a width; return their end."""
    (left, top, width), small = place, SMALL * size
    cell, longest = width / len(labels), widest(canvas, labels, size)
    # long labels are turned, so that more of them have room
    upright = longest > max(cell - 0.3 * size, 2.2 * size)
    for index in range(0, len(labels), math.ceil((LEADING * small if upright else longest + 0.5 * size) / cell)):
        x = left + (index + 0.5) * cell
        canvas.add(Rectangle(x - 0.25, top, 0.5, 0.3 * size, GREY))
        if upright:
            canvas.add(Text(x + MIDDLE * small, top + 0.5 * size, labels[index], small, anchor="end", upright=True))
        else:
            canvas.add(Text(x, top + 0.4 * size + small, labels[index], small, anchor="middle"))
    return top + 0.6 * size + (longest if upright else small)
