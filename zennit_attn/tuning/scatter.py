"""Scatter: the score of every trial of a search against each of its parameters, as one picture.

A trial is a dash in each panel, the best one is red, and a line across is the score of the default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..heatmap.canvas import GREY, INK, LIGHT, Canvas, Color, Rectangle, Text
from ..heatmap.figure import LEADING, MARGIN, MIDDLE, SIZE, SMALL, WIDTH, page, with_title
from ..heatmap.traces import label_columns
from .space import Axis

BLUE, RED = (67, 147, 195), (178, 24, 43)
# in points: height of a panel, distance of panels, and size of a dash
HEIGHT, GAP, DASH, THICK = 120.0, 14.0, 9.0, 1.6
ACROSS = 3


def scatter(
    axes: Sequence[Axis],
    parameters: Sequence[Mapping[str, Any]],
    scores: Sequence[float],
    default: float,
    title: str = "",
    size: float = SIZE,
) -> Canvas:
    """Draw scores against parameters.

    Parameters
    ----------
    axes : sequence of Axis
        The parameters.
    parameters : sequence of mapping
        Their values in each trial, by name.
    scores : sequence of float
        Score of each trial.
    default : float
        Score of the default.
    title : str, optional
        Stands above.
    size : float, optional
        Size of the text in points.

    Returns
    -------
    zennit_attn.heatmap.canvas.Canvas
        Has ``save`` and ``image``.
    """
    ticks = ticks_of([*scores, default])
    labels = [f"{tick:.4g}" for tick in ticks]
    canvas = page(WIDTH, size, None, [title, "default best", *labels, *(axis.name for axis in axes)])
    indent = max(canvas.face.length(label, SMALL * size) for label in labels) + 0.6 * size
    count = min(ACROSS, len(axes))
    width = (canvas.width - 2 * MARGIN - indent - GAP * (count - 1)) / count
    top = with_legend(canvas, with_title(canvas, title, size), size)
    for start in range(0, len(axes), count):
        bottoms = []
        for column, axis in enumerate(axes[start : start + count]):
            box = (MARGIN + indent + column * (width + GAP), top, width, HEIGHT)
            values = [choice[axis.name] for choice in parameters]
            draw_panel(canvas, box, axis, list(zip(values, scores, strict=True)), default, (ticks[0], ticks[-1]))
            bottoms.append(label_panel(canvas, box, axis, labels if column == 0 else [], size))
        top = max(bottoms) + 0.8 * size
    canvas.height = top + MARGIN - 0.8 * size
    return canvas


def ticks_of(values: Sequence[float]) -> list[float]:
    """Return three round numbers or more, around all values, at equal distances.

    Examples
    --------
    >>> from zennit_attn.tuning.scatter import ticks_of
    >>> ticks_of([1.2, 3.9])
    [1.0, 2.0, 3.0, 4.0]
    """
    low, high = min(values), max(values)
    span = high - low or abs(high) or 1.0
    step = next(step for step in steps_from(span / 5) if math.ceil(high / step) - math.floor(low / step) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    # one value alone is in the middle
    first, last = (first - 1, last + 1) if first == last else (first, last)
    return [index * step for index in range(first, last + 1)]


def steps_from(least: float) -> list[float]:
    """Return round numbers of at least about a size."""
    power = 10.0 ** math.floor(math.log10(least))
    return [factor * power for factor in (1, 2, 5, 10, 20, 50)]


def with_legend(canvas: Canvas, top: float, size: float) -> float:
    """Say what the marks are, and return where that ends."""
    small, x = SMALL * size, MARGIN
    base = top + small
    for color, thick, text in ((BLUE, THICK, "a trial"), (RED, THICK, "the best trial"), (INK, 0.7, "the default")):
        canvas.add(Rectangle(x, base - MIDDLE * small - thick / 2, DASH, thick, color))
        canvas.add(Text(x + DASH + 0.4 * small, base, text, small, GREY))
        x += DASH + 2 * small + canvas.face.length(text, small)
    return base + size


def place_of(axis: Axis, value: Any) -> float:
    """Return where a value is on an axis, from 0 to 1."""
    if axis.values:
        return (axis.values.index(value) + 0.5) / len(axis.values)
    low, high, here = (math.log(each) if axis.log else each for each in (axis.low, axis.high, value))
    return float((here - low) / (high - low))


def draw_panel(
    canvas: Canvas,
    box: tuple[float, float, float, float],
    axis: Axis,
    points: list[tuple[Any, float]],
    default: float,
    ends: tuple[float, float],
) -> None:
    """Draw the frame and the marks of a parameter, given values with scores."""
    x, y, width, height = box
    canvas.add(Rectangle(*box, line=LIGHT))

    def level(score: float) -> float:
        return y + height * (ends[1] - score) / (ends[1] - ends[0])

    def dash(value: Any, score: float, color: Color) -> None:
        # dashes stay inside of the frame
        left = min(max(x + place_of(axis, value) * width - DASH / 2, x), x + width - DASH)
        canvas.add(Rectangle(left, level(score) - THICK / 2, DASH, THICK, color, note=f"{value} {score:.6g}"))

    canvas.add(Rectangle(x, level(default) - 0.35, width, 0.7, INK))
    for value, score in points:
        dash(value, score, BLUE)
    if points:
        dash(*max(points, key=lambda point: point[1]), RED)


def label_panel(
    canvas: Canvas, box: tuple[float, float, float, float], axis: Axis, ticks: list[str], size: float
) -> float:
    """Write the ticks and the name of a panel, and return where they end."""
    (x, y, width, height), small = box, SMALL * size
    for index, tick in enumerate(ticks):
        level = y + height * (1 - index / (len(ticks) - 1))
        canvas.add(Rectangle(x - 0.3 * size, level - 0.25, 0.3 * size, 0.5, GREY))
        canvas.add(Text(x - 0.5 * size, level + MIDDLE * small, tick, small, GREY, "end"))
    if axis.values:
        bottom = label_columns(canvas, [f"{value}" for value in axis.values], size, (x, y + height, width))
    else:
        bottom = y + height + 0.6 * size + small
        base = y + height + 0.4 * size + small
        canvas.add(
            Text(x, base, f"{axis.low:.3g}", small), Text(x + width, base, f"{axis.high:.3g}", small, anchor="end")
        )
        if axis.log:
            canvas.add(Text(x + width / 2, base, "logarithmic", small, GREY, "middle"))
    lines = canvas.face.wrapped(axis.name, size, width)
    for place, line in enumerate(lines):
        canvas.add(Text(x + width / 2, bottom + (1 + LEADING * place) * size, line, size, anchor="middle"))
    return bottom + (LEADING * len(lines) + 0.2) * size
