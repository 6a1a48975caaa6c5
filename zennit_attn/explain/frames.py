"""Frames: where a place of the image that was given is in what a model sees, if it is resized, cropped or padded.

Image processors have many settings, in many orders. Nothing is read off them: they are asked, with four images of the
given size of which the grey values say where each pixel comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..errors import InputError

#: What a model sees of an image.
Look = Callable[[Image.Image], Any]
#: How many pixels at each edge are not looked at, as resizing mixes them with what is beyond.
MARGIN = 3
#: How far an edge may be measured from that of what the model sees to be it, in pixels of the model and of the image.
CLOSE = (1.0, 0.1)
#: How far the grey values of a resized image may be from a straight line, as a share of its length.
BENT = 0.02
#: How far a difference of grey values is off by rounding, as a share of it.
ROUNDING = 1e-3


@dataclass(frozen=True)
class Frame:
    """Where an image is in what a model sees.

    Attributes
    ----------
    left, top, right, bottom : int
        Its edges in the model's pixels; what is cropped is below zero, or beyond the size.
    given, seen : tuple of int
        Height and width of the image that was given, and of the model's pixels.
    """

    left: int
    top: int
    right: int
    bottom: int
    given: tuple[int, int]
    seen: tuple[int, int]

    @property
    def is_padded(self) -> bool:
        """Whether the model sees more than the image."""
        return self.left > 0 or self.top > 0 or self.right < self.seen[1] or self.bottom < self.seen[0]

    def of(self, box: Sequence[float]) -> tuple[float, float, float, float]:
        """Return a box ``(left, top, right, bottom)`` of the given image as shares of what the model sees.

        Raises
        ------
        InputError
            If nothing of it is seen.
        """
        (height, width), (rows, columns) = self.given, self.seen
        across = [(self.left + side * (self.right - self.left) / width) / columns for side in (box[0], box[2])]
        down = [(self.top + side * (self.bottom - self.top) / height) / rows for side in (box[1], box[3])]
        if min(across[1], down[1]) <= 0 or max(across[0], down[0]) >= 1:
            raise InputError(
                f"got the place {tuple(box)}, of which the model sees nothing; expected one in the image of "
                f"{width} x {height} pixels, inside of what its processor crops"
            )
        return across[0], down[0], across[1], down[1]


def frame_of(explainer: Any, size: tuple[int, int]) -> Frame:
    """Return where an image of a height and a width is in what a model sees.

    Raises
    ------
    InputError
        If the processor does more to it than resizing, cropping and padding.
    """
    found = measured(lambda image: explainer.read_images(image)["pixel_values"][0], size)
    if found is None:
        raise InputError(
            f"got a place in an image that {type(explainer.reader).__name__} does more to than to resize, crop and pad "
            "it; expected a class alone, or (class, number of a query)"
        )
    return found


def measured(look: Look, size: tuple[int, int]) -> Frame | None:
    """Return where an image is in what is seen of it, of shape ``(channels, height, width)``; None if it is bent."""
    height, width = size

    def seen(grey: Any) -> Any:
        image = Image.fromarray(np.ascontiguousarray(np.broadcast_to(grey, size))).convert("RGB")
        return look(image).double().mean(0).numpy()

    # whatever a processor makes of grey values, it is a straight line of them
    black, white = seen(np.uint8(0)), seen(np.uint8(255))
    span = (white - black).max()
    if not span > 0:
        return None
    # padding has one value in both
    inside = white - black >= (1 - ROUNDING) * span
    edges = []
    for axis, length in ((1, width), (0, height)):
        # as steep as there are grey values, so that a small image has whole ones
        steps = np.arange(length) * (255 / (length - 1) if length > 256 else 255 // max(length - 1, 1))
        grey = steps.round().astype(np.uint8)
        values = (seen(grey if axis else grey[:, None]) - black) / span * 255
        found = fitted(values if axis else values.T, inside if axis else inside.T, steps)
        if found is None:
            return None
        edges.append(found)
    (left, right), (top, bottom) = edges
    return Frame(left, top, right, bottom, size, white.shape)


def fitted(values: Any, inside: Any, steps: Any) -> tuple[int, int] | None:
    """Return where the first and the last edge of an image are along columns, of their grey values.

    None if the values are on no straight line.
    """
    columns, length = inside.any(0).nonzero()[0], inside.shape[1]
    if len(steps) == 1:
        return int(columns[0]), int(columns[-1]) + 1
    kept = [values[inside[:, column], column] for column in columns]
    places = np.array([each.mean() for each in kept]) / (steps[1] - steps[0]) + 0.5
    spread = max(float(np.ptp(each)) for each in kept) / (steps[1] - steps[0])
    margin = MARGIN if len(steps) > 4 * MARGIN else 0.5
    clear = (places > margin) & (places < len(steps) - margin)
    if clear.sum() < 2:
        return None
    slope, start = np.polyfit(places[clear], columns[clear] + 0.5, 1)
    found = [start, start + slope * len(steps)]
    miss = max(np.abs(places[clear] * slope + start - columns[clear] - 0.5).max(), spread * slope)
    if slope <= 0 or miss > max(1.0, slope) + BENT * (found[1] - found[0]):
        return None
    close = max(CLOSE[0], CLOSE[1] * slope)
    # most images are seen whole, and there the edge is exact
    first, last = (
        side if abs(edge - side) < close else round(edge) for edge, side in zip(found, (0, length), strict=True)
    )
    return first, last
