"""Cells: an artist that lays words out in coloured boxes, as wide as its axes are when it is drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.path import Path
from matplotlib.transforms import Affine2D

from .ink import INK, Color, hexadecimal
from .sheet import Face, figure_of, settings


@dataclass(frozen=True)
class Cell:
    """A box, in points from the upper left, with a text in its middle and a smaller one below it; and what it says."""

    x: float
    y: float
    width: float
    height: float
    fill: Color | None
    line: float
    note: str
    # text, the middle and base line of it, its size and colour
    texts: tuple[tuple[str, float, float, float, Color], ...]


class Words(Artist):
    """Cells, which a function lays out in a width."""

    def __init__(self, axes: Axes, face: Face, lay: Callable[[float], tuple[list[Cell], float]]) -> None:
        super().__init__()
        self.face, self.lay = face, lay
        self.set_figure(axes.get_figure(root=False) or figure_of(axes))
        self.axes = axes
        axes.set_axis_off()
        axes.add_artist(self)

    def draw(self, renderer: Any) -> None:
        """Draw the words."""
        if not self.get_visible():
            return
        with settings():
            self.draw_cells(renderer)
        self.stale = False

    def draw_cells(self, renderer: Any) -> None:
        """Draw boxes and then text."""
        assert self.axes is not None
        box, unit = self.axes.bbox, renderer.points_to_pixels(1.0)
        cells, _ = self.lay(box.width / unit)
        gc, rectangle = renderer.new_gc(), Path.unit_rectangle()
        high = renderer.get_canvas_width_height()[1]
        for cell in cells:
            if cell.fill is None:
                continue
            inset = cell.line / 2
            gc.set_linewidth(renderer.points_to_pixels(cell.line))
            gc.set_foreground(hexadecimal(INK))
            place = Affine2D().scale((cell.width - 2 * inset) * unit, (cell.height - 2 * inset) * unit)
            place.translate(box.x0 + (cell.x + inset) * unit, box.y1 - (cell.y + cell.height - inset) * unit)
            renderer.draw_path(gc, rectangle, place, tuple(part / 255 for part in cell.fill))
        for cell in cells:
            for text, middle, base, size, color in cell.texts:
                drawn = self.face.drawable(text)
                if not drawn:
                    continue
                gc.set_foreground(hexadecimal(color))
                x = box.x0 + (middle - self.face.length(text, size) / 2) * unit
                y = box.y1 - base * unit
                renderer.draw_text(gc, x, high - y if renderer.flipy() else y, drawn, self.face.sized(size), 0, False)
        gc.restore()
