"""Curves: relevance of time series and of audio, shaded under the signal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from zennit.cmap import ColorMap

from .figure import (
    CMAP,
    LARGE,
    MARGIN,
    MIDDLE,
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

# in units of the size of the text: height of a lone strip and of one of many, the room between strips, and the least
# width
LONE, LOWEST, GAP, LEAST = 10.0, 3.2, 0.5, 10.0
# the narrowest colour in points, and the stretches of a line in each point
NARROWEST, FINE = 1.0, 2
# room above and below a line, as a share of its height
BESIDE = 0.08


@drawn
def curve(
    relevance: Any,
    values: Any = None,
    rate: float | None = None,
    names: Sequence[Any] | None = None,
    *,
    vmax: Limit = None,
    title: str = "",
    cmap: str | ColorMap = CMAP,
    level: float = 1.0,
    width: float = WIDTH,
    size: float = SIZE,
    font: Fonts = None,
    ax: Axes | None = None,
) -> Heatmap:
    """Draw the relevance of a time series or of audio under its signal.

    Parameters
    ----------
    relevance : torch.Tensor or numpy.ndarray
        Shape ``(time,)``, or ``(channels, time)``, which are stacked. It may have fewer steps than the signal, as
        patches or the frames of a spectrogram have, each of which is drawn over its extent. Steps that would be
        narrower than a point are summed, and the picture says how many.
    values : torch.Tensor or numpy.ndarray, optional
        The signal, of as many channels; by default the line is the relevance itself.
    rate : float, optional
        Samples per second of the signal, or of the relevance if there is none, for an axis in seconds.
    names : sequence of str, optional
        What stands before each channel.
    vmax : float or str, optional
        Relevance of the strongest colours, or a percentile of absolute relevance, as ``"99%"``; by default the largest
        absolute relevance.
    title, cmap, level, width, size, font
        As in :func:`zennit_attn.heatmap.tokens`.
    ax : matplotlib.axes.Axes, optional
        Draw one channel on these axes, without a scale: ``fig.colorbar(ax.images[0])`` draws one.

    Returns
    -------
    Heatmap
        Has ``save`` and ``image``.

    Raises
    ------
    ValueError
        If shapes or names do not fit, or values are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from zennit_attn import heatmap
    >>> wave = np.sin(np.linspace(0, 60, 16000))
    >>> picture = heatmap.curve(np.random.randn(100), wave, rate=16000, title="one second")
    >>> picture.save("curve.pdf")  # doctest: +SKIP
    """
    shares = as_channels(relevance, "relevance")
    signal = None if values is None else as_channels(values, "values")
    check(shares, signal, rate)
    labels = [visible(str(name)) for name in names or [""] * len(shares)]
    if len(labels) != len(shares):
        raise ValueError(f"got {len(labels)} names for {len(shares)} channels, expected as many")
    title, steps = visible(title), (shares if signal is None else signal).shape[1]
    sheet = page(width, size, font)
    drawing = Strips(sheet.face, size, Paint(cmap, level), shares, signal, rate, vmax, width)
    what = f"{len(shares)} channel{'s' * (len(shares) > 1)}, {steps} steps"
    given = shares.tolist(), None if signal is None else signal.tolist(), rate, labels if names else None
    call = call_of("curve", shares.size + (0 if signal is None else signal.size), *given, vmax=vmax, title=title)
    if ax is not None:
        from .sheet import figure_of

        if len(shares) != 1:
            raise ValueError(f"got ax= for {len(shares)} channels, expected one: call it for each, with its own axes")
        point = figure_of(ax).dpi / 72
        drawing.draw(ax, 0, ax.bbox.width / point, ax.bbox.height / point, True)
        ax.set_xlabel(drawing.unit, fontproperties=sheet.face.sized(SMALL * size), color=hexadecimal(GREY))
        if title:
            ax.set_title(sheet.face.drawable(title), fontproperties=sheet.face.sized(LARGE * size), parse_math=False)
        return Heatmap(figure_of(ax), sheet.face, [title], title, what, call)
    high, small = size * max(LOWEST, LONE / math.sqrt(len(shares))), SMALL * size
    before = max(sheet.face.length(label, size) for label in labels)
    left = MARGIN + before + 0.8 * size * bool(before) + drawing.numbers(high) + 0.5 * size
    across = max(sheet.width - MARGIN - left, LEAST * size)
    sheet.width, top = left + across + MARGIN, with_title(sheet, title, size) + 0.3 * size
    for channel, label in enumerate(labels):
        is_last = channel == len(labels) - 1
        drawing.draw(sheet.axes(left, top, across, high), channel, across, high, is_last)
        sheet.text(MARGIN + before, top + high / 2 + MIDDLE * size, label, size, anchor="right")
        top += high + GAP * size * (not is_last)
    # the numbers of the axis, and what they are
    sheet.text(left + across / 2, top + 0.5 * size + 2.1 * small, drawing.unit, small, GREY, "center")
    top += 0.8 * size + 2.4 * small
    with_scale(sheet, (left, left + across), top, size, drawing.paint, drawing.ends, drawing.note)
    return Heatmap(sheet.figure, sheet.face, sheet.texts, title, what, call)


class Strips:
    """A signal over its relevance, channel by channel.

    Attributes
    ----------
    cells : numpy.ndarray
        Relevance of each colour, shape ``(channels, colours)``.
    ends : tuple of float
        Relevance of the outermost colours.
    unit : str
        That of time.
    note : str
        What has to be known of the colours.
    """

    def __init__(
        self,
        face: Face,
        size: float,
        paint: Paint,
        relevance: Array,
        signal: Array | None,
        rate: float | None,
        vmax: Limit,
        width: float,
    ) -> None:
        self.face, self.size, self.paint, self.signal, self.rate = face, size, paint, signal, rate
        count = relevance.shape[1]
        steps, second = count if signal is None else signal.shape[1], 1 / (rate or 1.0)
        each = math.ceil(count * NARROWEST / width)
        full = math.ceil(count / each)
        padded = np.pad(relevance, ((0, 0), (0, full * each - count)))
        self.cells: Array = padded.reshape(len(relevance), full, each).sum(-1)
        # a step is drawn around its sample; the last colour of several may reach beyond the signal, which is cut off
        self.span = -0.5 * second, (steps - 0.5) * second
        self.end = self.span[0] + full * each * steps / count * second
        self.edges = np.linspace(self.span[0], self.end, full + 1)
        limit = limit_of(self.cells, vmax)
        self.ends, self.unit = (-limit, limit), "step" if rate is None else "seconds"
        long = f" ({each * steps / count * second:.3g} s)" if rate else ""
        summed = f"each colour is the sum of {each} steps{long}" if each > 1 else ""
        self.note = "; ".join(filter(None, [summed, note_on(self.cells, -limit, limit)]))

    def numbers(self, high: float) -> float:
        """Return the width of the numbers beside strips of a height."""
        texts = [text for channel in range(len(self.cells)) for _, text in self.ticks(self.heights(channel), high)]
        return max((self.face.length(text, SMALL * self.size) for text in texts), default=0.0)

    def heights(self, channel: int) -> tuple[float, float]:
        """Return the lowest and highest value of a strip, with room beside the line."""
        line = np.append(self.cells[channel], 0.0) if self.signal is None else self.signal[channel]
        low, high = float(line.min()), float(line.max())
        # of a constant, any height will do
        room = BESIDE * (high - low) or 1.0
        return low - room, high + room

    def ticks(
        self, span: tuple[float, float], room: float, apart: float = 1.8, whole: bool = False
    ) -> list[tuple[float, str]]:
        """Return places and texts of numbers that are some sizes of text apart."""
        from matplotlib.ticker import MaxNLocator

        most = max(1, int(room / (apart * self.size)))
        places = MaxNLocator(most, steps=[1, 2, 5, 10], integer=whole).tick_values(*span)
        return [(float(place), f"{place:.6g}") for place in places if span[0] <= place <= span[1]]

    def draw(self, axes: Axes, channel: int, across: float, high: float, is_last: bool) -> None:
        """Draw a channel on axes of a width and height, with numbers of time below the last one."""
        from matplotlib.colors import Normalize
        from matplotlib.patheffects import Normal, Stroke

        from .sheet import frame

        heights, limit = self.heights(channel), self.ends[1] or 1.0
        # relevance of zero alone has the middle colour, which a scale of no width has not
        axes.imshow(
            self.cells[channel][None],
            cmap=self.paint.table(),
            norm=Normalize(-limit, limit),
            aspect="auto",
            interpolation="nearest",
            extent=(self.span[0], self.end, *heights),
        )
        # a light casing keeps the line apart from dark colours
        style: dict[str, Any] = {
            "color": hexadecimal(INK),
            "linewidth": 0.08 * self.size,
            "path_effects": [Stroke(linewidth=0.24 * self.size, foreground="white", alpha=0.8), Normal()],
        }
        if self.signal is None:
            axes.stairs(self.cells[channel], self.edges, baseline=None, **style)
        else:
            places = decimated(self.signal[channel], int(FINE * across))
            axes.plot(places / (self.rate or 1.0), self.signal[channel][places], solid_joinstyle="round", **style)
        axes.set(xlim=self.span, ylim=heights)
        frame(axes)
        below = self.ticks(self.span, across, 5.0, self.rate is None) if is_last else []
        for axis, ticks in ((axes.yaxis, self.ticks(heights, high)), (axes.xaxis, below)):
            texts = self.face.sized(SMALL * self.size)
            axis.set_ticks(
                [place for place, _ in ticks],
                [text for _, text in ticks],
                fontproperties=texts,
                color=hexadecimal(GREY),
                parse_math=False,
            )
            axis.set_tick_params(length=0.25 * self.size, width=0.5, pad=0.2 * self.size, color=hexadecimal(GREY))


def decimated(line: Array, stretches: int) -> NDArray[np.int64]:
    """Return the places of the lowest and highest value in each stretch of a line, all of them if it is short.

    Examples
    --------
    >>> import numpy as np
    >>> from zennit_attn.heatmap.curves import decimated
    >>> decimated(np.array([0.0, 3.0, 1.0, 2.0, -1.0, 0.0, 0.0, 0.0, 0.0]), 2).tolist()
    [1, 4, 5, 5]
    """
    if len(line) <= 2 * stretches:
        return np.arange(len(line))
    each = math.ceil(len(line) / stretches)
    blocks = np.pad(line, (0, -len(line) % each), mode="edge").reshape(-1, each)
    inner = np.sort(np.stack([blocks.argmin(1), blocks.argmax(1)], 1), 1)
    places: NDArray[np.int64] = (inner + each * np.arange(len(blocks))[:, None]).ravel().clip(max=len(line) - 1)
    return places


def as_channels(values: Any, what: str) -> Array:
    """Return values of shape ``(channels, time)``."""
    array = as_array(values, what)
    if array.ndim not in (1, 2) or not array.size:
        raise ValueError(
            f"got {what} of shape {array.shape}, expected (time,) or (channels, time), of one sample: sum relevance "
            "over other axes, and transpose (time, channels)"
        )
    return array if array.ndim == 2 else array[None]


def check(relevance: Array, signal: Array | None, rate: float | None) -> None:
    """Raise if relevance does not fit a signal."""
    if signal is not None and (len(relevance) != len(signal) or relevance.shape[1] > signal.shape[1]):
        raise ValueError(
            f"got relevance of shape {relevance.shape} for values of shape {signal.shape}, expected (channels, time) "
            "of as many channels, and at most as many steps: sum relevance over other axes, as frequencies"
        )
    if rate is not None and not (np.isfinite(rate) and rate > 0):
        raise ValueError(f"got rate={rate}, expected a positive number of samples per second")
