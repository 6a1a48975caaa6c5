"""Graph: nodes in levels, and the relevance that flows between them, from the top down."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
from zennit.cmap import ColorMap

from .figure import (
    CMAP,
    MARGIN,
    MIDDLE,
    SIZE,
    WIDTH,
    Array,
    Heatmap,
    Paint,
    amount,
    as_array,
    drawn,
    largest,
    page,
    with_scale,
    with_title,
)
from .ink import GREY, LIGHT, Fonts, hexadecimal, ink_on
from .words import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .sheet import Face

# in units of the size of the text: the height of a box, the distance of levels, the room in a box and between boxes,
# and the width of the strongest edge
BOX, LEVEL, PAD, GAP, THICK = 1.6, 4.2, 0.35, 0.4, 0.55

#: Its name, and the nodes with their relevance and the position at which they are to stand, if any.
Level = tuple[str, Sequence[tuple[str, float, int | None]]]
#: Level and place in it of the upper and of the lower node, and the relevance.
Flow = tuple[tuple[int, int], tuple[int, int], float]


@drawn
def graph(
    levels: Sequence[Level],
    edges: Sequence[Flow],
    *,
    title: str = "",
    cmap: str | ColorMap = CMAP,
    level: float = 1.0,
    width: float = WIDTH,
    size: float = SIZE,
    font: Fonts = None,
) -> Heatmap:
    """Draw a graph of relevance.

    Parameters
    ----------
    levels : sequence of tuple
        From the top, each a name and its nodes: ``(label, relevance, position)``. The last level has its nodes side by
        side, and what has a position stands above the node there; the others stand in the order that they have.
    edges : sequence of tuple
        ``(upper, lower, relevance)``, each end as numbers of a level and of a node in it.
    title, cmap, level, width, size, font
        As in :func:`zennit_attn.heatmap.tokens`. Many nodes side by side make the picture wider.

    Returns
    -------
    Heatmap
        Has ``save`` and ``image``.

    Raises
    ------
    ValueError
        If there are no nodes, or an edge is of one that there is not, or goes up.

    Examples
    --------
    >>> from zennit_attn import heatmap
    >>> levels = [("", [("are", 2.0, 1)]), ("layer 1", [("head 0", 1.5, 1)]), ("", [("the", 0.1, 0), ("keys", 1.9, 1)])]
    >>> picture = heatmap.graph(levels, [((0, 0), (1, 0), 1.5), ((0, 0), (2, 1), 0.5), ((1, 0), (2, 1), 1.4)])
    >>> picture
    <Heatmap of 4 nodes and 3 edges, 480 x 140 points>
    """
    if not levels or not all(nodes for _, nodes in levels):
        raise ValueError("got levels without nodes, expected at least one in each")
    for upper, lower, _ in edges:
        for at, place in (upper, lower):
            if not (0 <= at < len(levels) and 0 <= place < len(levels[at][1])) or upper[0] >= lower[0]:
                raise ValueError(f"got an edge from {upper} to {lower}, expected nodes that are there, the upper first")
    values = as_array([value for _, nodes in levels for _, value, _ in nodes], "relevance of nodes")
    flows = as_array([value for *_, value in edges], "relevance of edges")
    sheet, title, paint = page(width, size, font), visible(title), Paint(cmap, level)
    drawing = Graph(sheet.face, size, levels, width - 2 * MARGIN)
    sheet.width = max(width, drawing.width + 2 * MARGIN)
    top = with_title(sheet, title, size)
    axes = sheet.axes(MARGIN, top, drawing.width, drawing.height)
    axes.set_xlim(0, drawing.width)
    axes.set_ylim(drawing.height, 0)
    axes.axis("off")
    strongest = largest(flows)
    # the weak ones below
    for upper, lower, value in sorted(edges, key=lambda edge: abs(edge[2])):
        curve(axes, drawing.under(upper), drawing.over(lower), value / strongest if strongest else 0.0, size, paint)
    limit = largest(values)
    shades = iter(paint(values, -limit, limit).tolist())
    for at, (name, nodes) in enumerate(levels):
        base = top + drawing.base(at)
        if name:
            sheet.text(MARGIN, base, visible(name), 0.85 * size, GREY)
        for place, (label, _, _) in enumerate(nodes):
            shade = tuple(next(shades))
            boxed(axes, drawing.box(at, place), hexadecimal(shade), size)
            middle = MARGIN + drawing.centres[at][place]
            sheet.text(middle, base, visible(label), size, ink_on(shade), "center")
    note = f"edges of {amount(-strongest)} to {amount(strongest)}, as thick as they are strong" if edges else ""
    with_scale(sheet, (MARGIN, sheet.width - MARGIN), top + drawing.height, size, paint, (-limit, limit), note)
    count = sum(len(nodes) for _, nodes in levels)
    return Heatmap(sheet.figure, sheet.face, sheet.texts, title, f"{count} nodes and {len(edges)} edges")


class Graph:
    """Where the nodes of a graph stand, in points from the upper left.

    Attributes
    ----------
    width, height : float
        Of all of it.
    centres : list of numpy.ndarray
        Of the nodes of each level, from the left.
    """

    def __init__(self, face: Face, size: float, levels: Sequence[Level], room: float) -> None:
        self.size, self.height = size, (LEVEL * (len(levels) - 1) + BOX + 0.6) * size
        self.left = max(face.length(visible(name), 0.85 * size) for name, _ in levels)
        self.left += 1.2 * size if self.left else 0.0
        self.widths = [
            np.array([face.length(visible(label), size) + 2 * PAD * size for label, *_ in nodes]) for _, nodes in levels
        ]
        needed = [float(widths.sum()) + GAP * size * (len(widths) - 1) for widths in self.widths]
        self.width = max(room, self.left + max(needed))
        lowest, spare = self.widths[-1], (self.width - self.left - needed[-1]) / len(self.widths[-1])
        starts = np.array([0.0, *accumulate(lowest[:-1] + GAP * size + spare)])
        anchors = self.left + starts + lowest / 2 + spare / 2
        self.centres = [
            self.placed(widths, [anchors[at] if at is not None and at < len(anchors) else None for *_, at in nodes])
            for widths, (_, nodes) in zip(self.widths[:-1], levels[:-1], strict=True)
        ]
        self.centres.append(anchors)

    def placed(self, widths: Array, wanted: Sequence[float | None]) -> Array:
        """Return the centres of boxes, as near as there is room to where they are wanted."""
        middle = (self.left + self.width) / 2
        aims = np.array([middle if aim is None else aim for aim in wanted])
        order = np.argsort(aims, kind="stable")
        sizes = widths[order] + GAP * self.size
        # from left to right each box begins where the one before ends, or further on
        starts = aims[order] - sizes / 2
        for place in range(len(starts)):
            starts[place] = max(starts[place], self.left if not place else starts[place - 1] + sizes[place - 1])
        # and back, from the right edge
        end = self.width + GAP * self.size
        for place in reversed(range(len(starts))):
            starts[place] = min(starts[place], end - sizes[place])
            end = starts[place]
        centres = np.empty_like(aims)
        centres[order] = starts + widths[order] / 2
        return centres

    def top(self, at: int) -> float:
        """Return the upper edge of a level's boxes."""
        return LEVEL * self.size * at

    def base(self, at: int) -> float:
        """Return the base line of a level's text."""
        return self.top(at) + (BOX / 2 + MIDDLE) * self.size

    def box(self, at: int, place: int) -> tuple[float, float, float, float]:
        """Return the box of a node: left, top, width, height."""
        wide = float(self.widths[at][place])
        return float(self.centres[at][place]) - wide / 2, self.top(at), wide, BOX * self.size

    def under(self, node: tuple[int, int]) -> tuple[float, float]:
        """Return the middle of the lower edge of a node's box."""
        return float(self.centres[node[0]][node[1]]), self.top(node[0]) + BOX * self.size

    def over(self, node: tuple[int, int]) -> tuple[float, float]:
        """Return the middle of the upper edge of a node's box."""
        return float(self.centres[node[0]][node[1]]), self.top(node[0])


def curve(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], share: float, size: float, paint: Paint
) -> None:
    """Draw an edge, which leaves and arrives upright, as thick and as strongly coloured as it is strong."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    bend = min(0.5 * (end[1] - start[1]), 2.2 * size)
    points = [start, (start[0], start[1] + bend), (end[0], end[1] - bend), end]
    # what is weak is thin, not pale: a pale line cannot be seen
    shade = paint(np.array([np.sign(share) * (0.45 + 0.55 * abs(share))]), -1.0, 1.0)[0].tolist()
    path = Path(points, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
    width = max(0.4, THICK * size * abs(share))
    axes.add_patch(
        PathPatch(
            path, facecolor="none", edgecolor=hexadecimal(tuple(shade)), linewidth=width, capstyle="butt", zorder=1
        )
    )


def boxed(axes: Axes, box: tuple[float, float, float, float], color: Any, size: float) -> None:
    """Draw the box of a node."""
    from matplotlib.patches import FancyBboxPatch

    left, top, width, height = box
    style = f"round,pad=0,rounding_size={0.3 * size}"
    look: dict[str, Any] = {"facecolor": color, "edgecolor": hexadecimal(LIGHT), "linewidth": 0.6, "zorder": 2}
    # the outer half of a line at the edge is outside of the axes
    axes.add_patch(FancyBboxPatch((left, top), width, height, style, clip_on=False, **look))
