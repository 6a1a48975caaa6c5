"""Axes: relevance on two axes, of tokens and layers, or of layers and heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zennit.cmap import ColorMap

from .figure import (
    CMAP,
    LARGE,
    LEADING,
    MARGIN,
    NARROWEST,
    SIZE,
    SMALL,
    WIDTH,
    Array,
    Heatmap,
    Limit,
    Paint,
    as_array,
    call_of,
    drawn,
    limit_of,
    note_on,
    page,
    with_scale,
    with_title,
)
from .ink import GREY, INK, Fonts, hexadecimal
from .words import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .sheet import Face

# in units of the size of the text: width of all columns at least, of one at most, height of a row,
# and of columns that have the scale below themselves
LEAST, COLUMN, ROW, SCALE = 10.0, 3.2, 1.35, 20.0
# of more rows not each has a label
MOST_LABELS = 60


@drawn
def trace(
    relevance: Any,
    rows: Sequence[Any] | None = None,
    columns: Sequence[Any] | None = None,
    *,
    row_title: str = "",
    column_title: str = "",
    vmax: Limit = None,
    title: str = "",
    cmap: str | ColorMap = CMAP,
    level: float = 1.0,
    width: float = WIDTH,
    size: float = SIZE,
    font: Fonts = None,
    ax: Axes | None = None,
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
    vmax : float or str, optional
        Relevance of the strongest colours, or a percentile of absolute relevance, as ``"99%"``; by default the largest
        absolute relevance.
    title, cmap, level, width, size, font
        As in :func:`zennit_attn.heatmap.tokens`.
    ax : matplotlib.axes.Axes, optional
        Draw on these axes, without a scale: ``fig.colorbar(ax.images[0])`` draws one.

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
    limit, paint = limit_of(values, vmax), Paint(cmap, level)
    sheet = page(width, size, font)
    face, what = sheet.face, f"{values.shape[0]} rows, {values.shape[1]} columns"
    texts = [*names[0], *names[1], title, row_title, column_title]
    titles = {"row_title": row_title, "column_title": column_title, "title": title}
    call = call_of("trace", values.size, values.tolist(), *names, **titles)
    if ax is not None:
        from .sheet import figure_of

        unit = 72 / figure_of(ax).dpi
        box = ax.bbox.width * unit, ax.bbox.height * unit
        draw_cells(ax, face, values, paint, limit, names, (row_title, column_title), size, box)
        if title:
            ax.set_title(face.drawable(title), fontproperties=face.sized(LARGE * size), parse_math=False)
        return Heatmap(figure_of(ax), face, texts, title, what, call)
    left = MARGIN + widest(face, names[0], size) + (0.5 + 1.8 * bool(row_title)) * size
    across = min(max(sheet.width - MARGIN - left, LEAST * size), COLUMN * size * values.shape[1])
    down = size * min(ROW * values.shape[0], ROW * MOST_LABELS)
    sheet.width = left + max(across, NARROWEST * size) + MARGIN
    top = with_title(sheet, title, size)
    axes = sheet.axes(left, top, across, down)
    draw_cells(axes, face, values, paint, limit, names, (row_title, column_title), size, (across, down))
    upright = is_upright(face, names[1], size, across)
    bottom = top + down + 0.7 * size + (widest(face, names[1], size) if upright else SMALL * size)
    bottom += (1.7 * bool(column_title) + 0.6) * size
    sheet.texts.extend(texts)
    sides = (left if across >= SCALE * size else MARGIN, left + max(across, NARROWEST * size))
    with_scale(sheet, sides, bottom, size, paint, (-limit, limit), note_on(values, -limit, limit))
    return Heatmap(sheet.figure, face, sheet.texts, title, what, call)


def axis_labels(name: str, labels: Sequence[Any] | None, count: int) -> list[str]:
    """Return the labels of an axis."""
    texts = [visible(str(label)) for label in (range(count) if labels is None else labels)]
    if len(texts) != count:
        raise ValueError(f"got {len(texts)} labels of {name} for relevance with {count} {name}, expected as many")
    return texts


def draw_cells(
    axes: Axes,
    face: Face,
    values: Array,
    paint: Paint,
    limit: float,
    names: list[list[str]],
    titles: tuple[str, str],
    size: float,
    box: tuple[float, float],
) -> None:
    """Draw cells on axes of a width and height, with as many labels as have room."""
    from matplotlib.colors import Normalize

    from .sheet import frame

    # relevance of zero alone has the middle colour, which a scale of no width has not
    ends = Normalize(-(limit or 1.0), limit or 1.0)
    axes.imshow(values, cmap=paint.table(), norm=ends, aspect="auto", interpolation="nearest")
    frame(axes)
    small, upright = SMALL * size, is_upright(face, names[1], size, box[0])
    longest = max(face.length(text, small) for text in names[1])
    needed = (LEADING * small, LEADING * small if upright else longest + 0.5 * size)
    for axis, labels, room, side in (
        (axes.yaxis, names[0], needed[0], box[1]),
        (axes.xaxis, names[1], needed[1], box[0]),
    ):
        places = range(0, len(labels), math.ceil(room / (side / len(labels)) - 1e-9))
        texts = [face.drawable(labels[place]) for place in places]
        axis.set_ticks(list(places), texts, fontproperties=face.sized(small), color=hexadecimal(INK), parse_math=False)
        axis.set_tick_params(length=0.3 * size, width=0.5, pad=0.2 * size, color=hexadecimal(GREY))
    axes.tick_params("x", rotation=90 if upright else 0)
    style: dict[str, Any] = {
        "fontproperties": face.sized(size),
        "color": hexadecimal(INK),
        "parse_math": False,
        "labelpad": 0.3 * size,
    }
    axes.set_ylabel(face.drawable(titles[0]), **style)
    axes.set_xlabel(face.drawable(titles[1]), **style)


def is_upright(face: Face, labels: list[str], size: float, width: float) -> bool:
    """Tell whether labels of columns are turned, so that more of them have room: whether they are long."""
    return widest(face, labels, size) > max(width / len(labels) - 0.3 * size, 2.2 * size)


def widest(face: Face, labels: list[str], size: float) -> float:
    """Return the width of the widest label."""
    return max(face.length(text, SMALL * size) for text in labels)
