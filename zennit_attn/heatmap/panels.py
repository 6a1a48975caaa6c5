"""Panels: relevance of images, plain or over them, in a grid with labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from zennit.cmap import ColorMap

from .figure import (
    CMAP,
    LEADING,
    MARGIN,
    MIDDLE,
    NARROWEST,
    SIZE,
    SMALL,
    WIDTH,
    Array,
    Heatmap,
    Limit,
    Paint,
    amount,
    as_array,
    call_of,
    drawn,
    largest,
    limit_of,
    note_on,
    page,
    with_scale,
    with_title,
)
from .ink import GREY, Fonts, Pixels
from .words import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .sheet import Sheet

# the widest panel in points, and the room between panels in units of the size of the text
WIDEST, GAP = 150.0, 0.6
# pixels of a side, or of height and width
Patch = int | tuple[int, int] | None


def imgify(
    relevance: Any,
    picture: Any = None,
    *,
    vmin: float | None = None,
    vmax: Limit = None,
    cmap: str | ColorMap = CMAP,
    level: float = 1.0,
    symmetric: bool = True,
    opacity: float = 0.65,
    smooth: bool = False,
    grey: bool = True,
    patch: Patch = None,
) -> Image.Image:
    """Return relevance as an image, pixel by pixel, as :func:`zennit.image.imgify` does, or over a picture.

    Unlike zennit's it is symmetric about zero by default, sums channels, and draws relevance that is zero everywhere.

    Parameters
    ----------
    relevance : torch.Tensor or numpy.ndarray
        Shape ``(height, width)``, or ``(channels, height, width)``, which is summed over channels.
    picture : PIL.Image.Image, torch.Tensor or numpy.ndarray, optional
        What the relevance is of: uint8 or from 0 to 1, of shape ``(height, width)``, ``(3, height, width)`` or
        ``(height, width, 3)``. Relevance is drawn over it, and enlarged to it.
    vmin, vmax : float, optional
        Relevance of the outermost colours. If one is given and the colours are symmetric, it is the other one, too.
        The greatest may be a percentile of absolute relevance, as ``"99%"``.
    cmap, level, symmetric
        As in :func:`zennit.image.imgify`.
    opacity : float
        Opacity of relevance over a picture, from 0 to 1.
    smooth : bool
        Whether to interpolate what is enlarged.
    grey : bool
        Whether the picture is grey, or has its own colours, over which relevance is the fainter the weaker it is.
    patch : int or tuple of int, optional
        Sum relevance over patches of so many pixels, or of a height and a width, as those of a vision transformer.

    Returns
    -------
    PIL.Image.Image
        In RGB, of the size of the picture, or of the relevance.

    Raises
    ------
    ValueError
        If shapes do not fit, or values are not finite or out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from zennit_attn import heatmap
    >>> image = heatmap.imgify(np.array([[-1.0, 0.0, 1.0]]))
    >>> image.size, [image.getpixel((x, 0)) for x in range(3)]
    ((3, 1), [(33, 102, 172), (255, 255, 255), (178, 24, 43)])
    """
    values, pixels = as_plane(relevance, patch), None if picture is None else as_pixels(picture)
    ends = bounds([values], vmin, vmax, symmetric)
    return Image.fromarray(Over(Paint(cmap, level), opacity, smooth, grey, patch).painted(values, pixels, ends))


@drawn
def images(
    relevance: Any,
    pictures: Any = None,
    *,
    grid: tuple[int, int] | None = None,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    labels: Sequence[Any] | None = None,
    beside: bool = False,
    shared: bool = True,
    vmin: float | None = None,
    vmax: Limit = None,
    symmetric: bool = True,
    opacity: float = 0.65,
    smooth: bool = False,
    grey: bool = True,
    patch: Patch = None,
    title: str = "",
    cmap: str | ColorMap = CMAP,
    level: float = 1.0,
    width: float = WIDTH,
    size: float = SIZE,
    font: Fonts = None,
    ax: Axes | None = None,
) -> Heatmap:
    """Draw the relevance of images in a grid.

    Parameters
    ----------
    relevance : torch.Tensor, numpy.ndarray, or list of these
        Of one image, as :func:`imgify` takes it; of several, as a list or of shape ``(images, channels, height,
        width)``; or of a grid, as a list of lists. None in a list is an image without relevance.
    pictures : optional
        One for all, or as many as there are images, each as :func:`imgify` takes it, or None.
    grid : tuple of int, optional
        Rows and columns; by default as the relevance or the labels are, and nearly square otherwise.
    rows, columns : sequence of str, optional
        What stands before each row, and above each column.
    labels : sequence of str, optional
        What stands below each image, in a list or in a list of lists.
    beside : bool
        Whether each picture as it is, in its own colours, stands before its relevance; one for all stands there once.
    shared : bool
        Whether images have one scale, or each its own, which then stands below it.
    vmin, vmax, symmetric, opacity, smooth, grey, patch
        As in :func:`imgify`.
    title, cmap, level, width, size, font
        As in :func:`zennit_attn.heatmap.tokens`. Images are at most 150 points wide.
    ax : matplotlib.axes.Axes, optional
        Draw one image on these axes, without a scale.

    Returns
    -------
    Heatmap
        Has ``save`` and ``image``.

    Raises
    ------
    ValueError
        If shapes or counts do not fit, or values are not finite or out of range.

    Examples
    --------
    >>> import torch
    >>> from zennit_attn import heatmap
    >>> picture = heatmap.images(torch.randn(6, 3, 8, 8), rows=["AttnLRP", "CP-LRP"], columns=["a", "b", "c"])
    >>> picture.save("images.pdf")  # doctest: +SKIP
    """
    planes, shape = flattened(listed(relevance, partial(as_plane, patch=patch)), "relevance")
    known = [values for values in planes if values is not None]
    if not known:
        raise ValueError("got no relevance, expected it of one image at least")
    shape = shape_of(len(planes), grid or shape, rows, columns)
    pixels, _ = flattened(listed(pictures, as_pixels), "pictures")
    is_of_all = len(pixels) == 1 < len(planes)
    pixels = filled("pictures", pixels * (len(planes) if is_of_all else 1), len(planes))
    if beside and not any(picture is not None for picture in pixels):
        raise ValueError("got beside=True without pictures, expected those that are to stand beside their relevance")
    below, _ = flattened(listed(labels, shown), "labels")
    below = filled("labels", below * (len(planes) if labels is None else 1), len(planes))
    limits = [bounds(known if shared or values is None else [values], vmin, vmax, symmetric) for values in planes]
    paint = Paint(cmap, level)
    over, panels = Over(paint, opacity, smooth, grey, patch), list[Panel]()
    for values, picture, ends, label in zip(planes, pixels, limits, below, strict=True):
        parts = [picture if values is None else over.painted(values, picture, ends)]
        if beside and not is_of_all:
            parts.insert(0, None if values is None else picture)
        scale = f"±{ends[1]:.3g}" if -ends[0] == ends[1] else f"{amount(ends[0])} to {amount(ends[1])}"
        panels.append(Panel(parts, list(filter(None, [label, "" if shared or values is None else scale]))))
    title, heads, tops = shown(title), list(map(shown, rows or ())), list(map(shown, columns or ()))
    sheet, what = page(width, size, font), f"{len(planes)} image{'s' * (len(planes) > 1)}"
    call, alike = "", {values.shape for values in known}
    is_plain = labels is None and patch is None and all(picture is None for picture in pixels)
    if is_plain and len(known) == len(planes) and len(alike) == 1:
        # one plane for each image, in an axis of channels
        stack = np.stack(known)[:, None]
        call = call_of("images", stack.size, stack, grid=shape, rows=heads, columns=tops, title=title)
    if ax is not None:
        from .sheet import figure_of

        draw_on(ax, panels, smooth, title)
        return Heatmap(figure_of(ax), sheet.face, [title], title, what, call)
    if beside and is_of_all:
        for row in range(shape[0]):
            panels.insert(row * (shape[1] + 1), Panel([None if row else pixels[0]], []))
        shape, tops = (shape[0], shape[1] + 1), ["input", *tops] if tops else []
    top = Grid(sheet, panels, shape, heads, tops, size, smooth).draw(title)
    everything = np.concatenate([values.ravel() for values in known])
    of_each = [(values.size, ends) for values, ends in zip(planes, limits, strict=True) if values is not None]
    low, high = (np.repeat([ends[place] for _, ends in of_each], [count for count, _ in of_each]) for place in (0, 1))
    note = note_on(everything, low, high)
    sides = MARGIN, sheet.width - MARGIN
    with_scale(sheet, sides, top, size, paint, limits[0] if shared else None, note)
    return Heatmap(sheet.figure, sheet.face, sheet.texts, title, what, call)


@dataclass(frozen=True)
class Panel:
    """Pictures that stand beside each other, as many in each panel, and the text below them."""

    parts: list[Pixels | None]
    texts: list[str]


def draw_on(axes: Axes, panels: list[Panel], smooth: bool, title: str) -> None:
    """Draw one panel on axes."""
    from .sheet import picture

    parts = [pixels for panel in panels for pixels in panel.parts]
    if len(parts) != 1 or parts[0] is None:
        raise ValueError(f"got ax= for {len(parts)} images, expected one: call it for each, with axes of its own")
    picture(axes, parts[0], smooth)
    if title:
        axes.set_title(title, parse_math=False)
    axes.set_xlabel("\n".join(panels[0].texts), parse_math=False)


@dataclass(frozen=True)
class Grid:
    """Panels in rows and columns.

    Attributes
    ----------
    sheet : Sheet
        What they are drawn on.
    panels : list of Panel
        Row by row.
    shape : tuple of int
        Rows and columns.
    rows, columns : list of str
        Labels, or none.
    size : float
        Size of the text.
    smooth : bool
        Whether to interpolate pixels.
    """

    sheet: Sheet
    panels: list[Panel]
    shape: tuple[int, int]
    rows: list[str]
    columns: list[str]
    size: float
    smooth: bool

    def draw(self, title: str) -> float:
        """Draw everything but the scale, and return where it ends."""
        sheet, gap, heads = self.sheet, GAP * self.size, self.heads()
        indent = max((sheet.face.length(text, self.size) for lines in heads for text in lines), default=-gap) + gap
        left, count = MARGIN + indent, self.shape[1]
        each = len(self.panels[0].parts)
        part = min(((sheet.width - MARGIN - left + gap) / count - gap - (each - 1) * self.seam()) / each, WIDEST)
        if part < self.size:
            raise ValueError(f"got width={sheet.width} for {count} columns, which leaves {part:.1f} points for each")
        width = each * part + (each - 1) * self.seam()
        parts = [pixels for panel in self.panels for pixels in panel.parts]
        height = part * max(pixels.shape[0] / pixels.shape[1] for pixels in parts if pixels is not None)
        sheet.width = max(left + count * (width + gap) - gap + MARGIN, NARROWEST * self.size)
        lefts = [left + index * (width + gap) for index in range(count)]
        top = self.draw_columns(with_title(sheet, title, self.size), lefts, width)
        for row in range(self.shape[0]):
            self.write(heads[row] if heads else [], left - gap, top + height / 2)
            panels = self.panels[row * count : (row + 1) * count]
            placed = zip(panels, lefts, strict=False)
            top = gap + max(self.draw_panel(panel, (x, top, width, height)) for panel, x in placed) if panels else top
        return top

    def seam(self) -> float:
        """Return the room between the pictures of a panel, which is less than that between panels."""
        return GAP / 3 * self.size

    def heads(self) -> list[list[str]]:
        """Return the lines of the label of each row."""
        return [self.sheet.face.wrapped(row, self.size, 0.2 * self.sheet.width) for row in self.rows]

    def draw_columns(self, top: float, lefts: list[float], width: float) -> float:
        """Write the labels of the columns, and return where they end."""
        labels = [self.sheet.face.wrapped(column, self.size, width) for column in self.columns]
        top += LEADING * self.size * max(map(len, labels), default=0)
        for left, lines in zip(lefts, labels, strict=False):
            for place, text in enumerate(reversed(lines)):
                y = top - (0.4 + LEADING * place) * self.size
                self.sheet.text(left + width / 2, y, text, self.size, anchor="center")
        return top

    def write(self, lines: list[str], right: float, middle: float) -> None:
        """Write the label of a row."""
        for place, text in enumerate(lines):
            y = middle + (LEADING * (place - (len(lines) - 1) / 2) + MIDDLE) * self.size
            self.sheet.text(right, y, text, self.size, anchor="right")

    def draw_panel(self, panel: Panel, box: tuple[float, float, float, float]) -> float:
        """Draw a panel, and return where it ends."""
        from .sheet import picture

        x, top, width, height = box
        small, middle = SMALL * self.size, x + width / 2
        step = (width + self.seam()) / len(panel.parts)
        for place, pixels in enumerate(panel.parts):
            if pixels is not None:
                picture(self.sheet.axes(x + place * step, top, step - self.seam(), height), pixels, self.smooth)
        lines = [line for text in panel.texts for line in self.sheet.face.wrapped(text, small, width)]
        for place, text in enumerate(lines):
            y = top + height + (1 + LEADING * place) * small
            self.sheet.text(middle, y, text, small, GREY, "center")
        return top + height + (LEADING * len(lines) + 0.2 * bool(lines)) * small


def shown(label: Any) -> str:
    """Return a label as it is to be drawn."""
    return visible(str(label))


# ---- what comes in


def as_plane(relevance: Any, patch: Patch) -> Array:
    """Return relevance of an image of shape ``(height, width)``, the sum over channels, and over patches."""
    values = as_array(relevance, "relevance")
    if values.ndim not in (2, 3) or not values.size:
        raise ValueError(
            f"got relevance of shape {values.shape} for one image, expected (height, width) or "
            "(channels, height, width); of several images, give a list, or (images, channels, height, width)."
        )
    plane = values if values.ndim == 2 else values.sum(0)
    high, wide = sides_of(patch)
    if high < 1 or wide < 1 or plane.shape[0] % high or plane.shape[1] % wide:
        raise ValueError(
            f"got patch={patch} for relevance of {plane.shape[0]} x {plane.shape[1]} pixels, expected a size that "
            "divides them: that of the patches of the model, and relevance of all that it saw"
        )
    return plane.reshape(plane.shape[0] // high, high, plane.shape[1] // wide, wide).sum((1, 3))


def sides_of(patch: Patch) -> tuple[int, int]:
    """Return the height and width of a patch, which is one pixel by default."""
    if patch is None:
        return 1, 1
    return patch if isinstance(patch, tuple) else (patch, patch)


def as_pixels(picture: Any) -> Pixels:
    """Return a picture as uint8 of shape ``(height, width, 3)``."""
    if isinstance(picture, Image.Image):
        return np.asarray(picture.convert("RGB"))
    is_bytes = str(getattr(picture, "dtype", "")).endswith("uint8")
    values = as_array(picture, "picture")
    if values.ndim == 3 and values.shape[0] in (1, 3):
        values = values.transpose(1, 2, 0)
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[2] not in (1, 3) or not values.size:
        raise ValueError(
            f"got a picture of shape {np.shape(picture)}, expected (height, width), or three with one axis of 1 or 3 "
            "channels, in the beginning or in the end"
        )
    if not is_bytes and (values.min() < 0 or values.max() > 1):
        raise ValueError(
            f"got a picture of values from {values.min():.3g} to {values.max():.3g}, expected 0 to 1, or uint8: undo "
            "the normalisation that the model needs (x * std + mean)."
        )
    scaled: Pixels = (values if is_bytes else values * 255).round().astype(np.uint8)
    return np.repeat(scaled, 3, axis=2) if scaled.shape[2] == 1 else scaled


def listed(values: Any, leaf: Callable[[Any], Any]) -> Any:
    """Return values as they are nested, each as a function makes it; a batch is a list."""
    if isinstance(values, (list, tuple)) or getattr(values, "ndim", 0) > 3:
        return [listed(value, leaf) for value in values]
    return None if values is None else leaf(values)


def flattened(values: Any, what: str) -> tuple[list[Any], tuple[int, int] | None]:
    """Return values in one list, and the rows and columns that they came in."""
    values = values if isinstance(values, list) else [values]
    if not any(isinstance(value, list) for value in values):
        return values, None
    lengths = {len(value) if isinstance(value, list) else 0 for value in values}
    if len(lengths) != 1 or any(isinstance(value, list) for row in values for value in row):
        raise ValueError(f"got {what} in lists that are no grid, expected rows of as many each, of at most two levels")
    return [value for row in values for value in row], (len(values), lengths.pop())


def shape_of(
    count: int, grid: tuple[int, int] | None, rows: Sequence[str] | None, columns: Sequence[str] | None
) -> tuple[int, int]:
    """Return the rows and columns of a grid."""
    if grid is None:
        # a row of a few, and otherwise nearly a square
        default = count if count <= 5 else math.ceil(math.sqrt(count))
        across = len(columns) if columns else math.ceil(count / len(rows)) if rows else default
        grid = math.ceil(count / across), across
    given = (len(rows) if rows else grid[0], len(columns) if columns else grid[1])
    if tuple(grid) != given or math.prod(grid) < count:
        raise ValueError(
            f"got {count} images for a grid of {grid[0]} x {grid[1]} with labels of {given[0]} rows and {given[1]} "
            "columns, expected a label for each, and room for all images"
        )
    return grid[0], grid[1]


def filled(what: str, values: list[Any], count: int) -> list[Any]:
    """Return values, checked to be as many as there are images."""
    if len(values) != count:
        raise ValueError(f"got {len(values)} {what} for relevance of {count} images, expected as many")
    return values


def bounds(values: list[Array], vmin: float | None, vmax: Limit, symmetric: bool) -> tuple[float, float]:
    """Return the relevance of the outermost colours."""
    if isinstance(vmax, str):
        # relevance that is zero everywhere has no percentile
        vmax = limit_of(np.concatenate([part.ravel() for part in values]), vmax) or None
    for end in (vmin, vmax):
        if end is not None and (isinstance(end, str) or not np.isfinite(end)):
            raise ValueError(f"got vmin={vmin!r}, vmax={vmax!r}, expected finite numbers; vmax may be a percentile")
    # one end of symmetric colours is the other one, too
    if symmetric and vmin is None and vmax is not None:
        vmin = -vmax
    elif symmetric and vmax is None and vmin is not None:
        vmax = -vmin
    limit = max(map(largest, values))
    low = vmin if vmin is not None else -limit if symmetric else min(float(part.min()) for part in values)
    high = vmax if vmax is not None else limit if symmetric else max(float(part.max()) for part in values)
    if low > high or low == high == vmin == vmax:
        raise ValueError(f"got a scale from {low} to {high}, expected vmin < vmax")
    return float(low), float(high)


# ---- what comes out


@dataclass(frozen=True)
class Over:
    """How relevance is painted over a picture."""

    paint: Paint
    opacity: float
    smooth: bool
    grey: bool
    patch: Patch

    def painted(self, values: Array, picture: Pixels | None, ends: tuple[float, float]) -> Pixels:
        """Return the colours of relevance, over a picture if there is one."""
        if not 0 <= self.opacity <= 1:
            raise ValueError(f"got opacity={self.opacity}, expected 0 to 1")
        if picture is None:
            high, wide = sides_of(self.patch)
            return self.paint(values, *ends).repeat(high, 0).repeat(wide, 1)
        values = enlarged(values, picture.shape[:2], self.patch, self.smooth)
        below: Array = np.asarray(Image.fromarray(picture).convert("L" if self.grey else "RGB"), dtype=np.float64)
        below = below.reshape(*picture.shape[:2], -1)
        share = self.opacity * (1.0 if self.grey else strength(values, ends))
        mixed: Pixels = (below * (1 - share) + self.paint(values, *ends) * share).round().astype(np.uint8)
        return mixed


def strength(values: Array, ends: tuple[float, float]) -> Array:
    """Return how opaque relevance is over colours, from 0 to 1, with an axis of size 1 in the end."""
    # the root keeps what is half as strong visible
    unit: Array = np.sqrt((np.abs(values) / (max(map(abs, ends)) or 1.0)).clip(0, 1))
    return unit[..., None]


def enlarged(values: Array, shape: tuple[int, ...], patch: Patch, smooth: bool) -> Array:
    """Return relevance of patches, or of pixels, stretched to the shape of a picture."""
    # as it came: patches that were summed here need not be square
    given = tuple(count * side for count, side in zip(values.shape, sides_of(patch), strict=True))
    pairs = list(zip(shape, given, strict=True))
    # a size of patches of which as many fit into each side, with less than one left
    if not max(1.0, *(side / (count + 1) for side, count in pairs)) <= min(side / count for side, count in pairs):
        raise ValueError(
            f"got relevance of shape {given} for a picture of {shape[0]} x {shape[1]} pixels, expected the same "
            "shape, or that of its patches: crop the picture to what the model saw."
        )
    method = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    image = Image.fromarray(values.astype(np.float32)).resize((shape[1], shape[0]), method)
    # interpolation must not go beyond the values that there are
    return np.asarray(image, dtype=np.float64).clip(values.min(), values.max())
