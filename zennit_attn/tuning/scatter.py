"""Scatter: the score of every trial of a search against each of its parameters, as one picture.

A trial is a dot in each panel, the best one is red and larger, and a line across is the score of the default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..heatmap import Heatmap
from ..heatmap.figure import LEADING, MARGIN, SIZE, SMALL, WIDTH, drawn, page, with_title
from ..heatmap.ink import GREY, INK, hexadecimal
from .space import Axis

# matplotlib takes time to import: it is imported at the first picture
if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..heatmap.sheet import Face

BLUE, RED = (67, 147, 195), (178, 24, 43)
# in points: height of a panel, and distance of panels
HEIGHT, GAP = 120.0, 30.0
ACROSS = 3


@drawn
def scatter(
    axes: Sequence[Axis],
    parameters: Sequence[Mapping[str, Any]],
    scores: Sequence[float],
    default: float,
    title: str = "",
    size: float = SIZE,
) -> Heatmap:
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
    zennit_attn.heatmap.Heatmap
        Has ``save`` and ``image``.
    """
    ticks = ticks_of([*scores, default])
    labels = [f"{tick:.4g}" for tick in ticks]
    sheet = page(WIDTH, size, None)
    face = sheet.face
    indent = max(face.length(label, SMALL * size) for label in labels) + 0.8 * size
    count = min(ACROSS, len(axes))
    width = (sheet.width - 2 * MARGIN - indent - GAP * (count - 1)) / count
    top = with_title(sheet, title, size)
    legend = top + 0.6 * size
    top += 1.8 * size
    for start in range(0, len(axes), count):
        row = axes[start : start + count]
        names = ["\n".join(face.wrapped(axis.name, size, width)) for axis in row]
        for column, (axis, name) in enumerate(zip(row, names, strict=True)):
            panel = sheet.axes(MARGIN + indent + column * (width + GAP), top, width, HEIGHT)
            values = [choice[axis.name] for choice in parameters]
            draw_panel(panel, face, axis, values, scores, default, size)
            panel.set_ylim(ticks[0], ticks[-1])
            panel.set_yticks(
                ticks, labels if column == 0 else [""] * len(ticks), fontproperties=face.sized(SMALL * size)
            )
            panel.set_xlabel(name, fontproperties=face.sized(size), parse_math=False)
        top += HEIGHT + (0.8 + 2 * LEADING + LEADING * max(name.count("\n") + 1 for name in names)) * size
    figure = sheet.done(top)
    marks, texts = sheet.boxes[0][0].get_legend_handles_labels()
    where = (MARGIN / sheet.width, 1 - legend / top)
    style: dict[str, Any] = {"frameon": False, "borderaxespad": 0, "borderpad": 0, "labelcolor": hexadecimal(GREY)}
    figure.legend(
        marks, texts, loc="center left", bbox_to_anchor=where, ncols=3, prop=face.sized(SMALL * size), **style
    )
    return Heatmap(figure, face, [title], title, f"{len(scores)} trials, {len(axes)} parameters")


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


def draw_panel(
    panel: Axes, face: Face, axis: Axis, values: list[Any], scores: Sequence[float], default: float, size: float
) -> None:
    """Draw the trials over a parameter."""
    from ..heatmap.sheet import frame

    frame(panel)
    small = face.sized(SMALL * size)
    panel.tick_params(color=hexadecimal(GREY), width=0.5, length=0.3 * size, which="both")
    if axis.values:
        places = [float(axis.values.index(value)) for value in values]
        panel.set_xticks(range(len(axis.values)), [str(value) for value in axis.values], parse_math=False)
        panel.set_xlim(-0.5, len(axis.values) - 0.5)
    else:
        places = [float(value) for value in values]
        panel.set_xscale("log" if axis.log else "linear")
        panel.set_xlim(axis.low, axis.high)
        if not axis.log:
            panel.locator_params(axis="x", nbins=4)
    for label in panel.get_xticklabels():
        label.set_fontproperties(small)
    style: dict[str, Any] = {
        "linestyle": "none",
        "marker": "o",
        "markeredgecolor": "white",
        "markeredgewidth": 0.4,
        "clip_on": False,
    }
    panel.plot(places, scores, color=hexadecimal(BLUE), markersize=4, label="a trial", zorder=3, **style)
    best = max(range(len(scores)), key=lambda index: scores[index], default=None)
    if best is not None:
        chosen = [places[best]], [scores[best]]
        panel.plot(*chosen, color=hexadecimal(RED), markersize=6, label="the best trial", zorder=4, **style)
    panel.axhline(default, color=hexadecimal(INK), linewidth=0.7, label="the default")
