"""Frames: where a place of the image that was given is in what a model sees, if it is resized, cropped or padded.

Image processors have many settings, in many orders. Nothing is read off them: they are asked, with three images of the
given size of which the grey values say where each pixel comes from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..errors import InputError

#: How many pixels at each edge are not looked at, as resizing mixes them with what is beyond.
MARGIN = 3
#: How far an edge may be measured from that of what the model sees to be it, in pixels of the model and of the image.
CLOSE = (1.0, 0.1)
#: How far the grey values of a resized image may be from a straight line, as a share of its length.
BENT = 0.02


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
    height, width = size
    white = probed(explainer, np.full(size, 255, np.uint8))
    inside = white >= white.max() - 1e-3
    if not white.max() > 0:
        raise refused(explainer)
    edges = []
    for axis, length in ((1, width), (0, height)):
        # as steep as there are grey values, so that a small image has whole ones
        steps = np.arange(length) * (255 / (length - 1) if length > 256 else 255 // max(length - 1, 1))
        grey = steps.round().astype(np.uint8)
        values = probed(explainer, np.broadcast_to(grey if axis else grey[:, None], size)) / white.max() * 255
        edges.append(fitted(explainer, values if axis else values.T, inside if axis else inside.T, steps))
    (left, right), (top, bottom) = edges
    return Frame(left, top, right, bottom, size, white.shape)


def fitted(explainer: Any, values: Any, inside: Any, steps: Any) -> tuple[int, int]:
    """Return where the first and the last edge of an image are along its columns, of the grey values there.

    Raises
    ------
    InputError
        If the values are on no straight line.
    """
    columns, length = inside.any(0).nonzero()[0], inside.shape[1]
    if len(steps) == 1:
        return int(columns[0]), int(columns[-1]) + 1
    means = np.array([values[inside[:, column], column].mean() for column in columns])
    places = means / (steps[1] - steps[0]) + 0.5
    margin = MARGIN if len(steps) > 4 * MARGIN else 0.5
    kept = (places > margin) & (places < len(steps) - margin)
    if kept.sum() < 2:
        raise refused(explainer)
    slope, start = np.polyfit(places[kept], columns[kept] + 0.5, 1)
    found = [start, start + slope * len(steps)]
    miss = np.abs(places[kept] * slope + start - columns[kept] - 0.5).max()
    if slope <= 0 or miss > max(1.0, slope) + BENT * (found[1] - found[0]):
        raise refused(explainer)
    close = max(CLOSE[0], CLOSE[1] * slope)
    # most images are seen whole, and there the edge is exact
    first, last = (
        side if abs(edge - side) < close else round(edge) for edge, side in zip(found, (0, length), strict=True)
    )
    return first, last


def probed(explainer: Any, grey: Any) -> Any:
    """Return what a model sees of a grey image, of shape ``(height, width)``."""
    image = Image.fromarray(np.ascontiguousarray(grey)).convert("RGB")
    pixels = explainer.read_images(image, do_normalize=False)["pixel_values"]
    return pixels[0].double().mean(0).numpy()


def refused(explainer: Any) -> InputError:
    """Return the error for a processor of which the places are not known."""
    return InputError(
        f"got a place in an image that {type(explainer.reader).__name__} does more to than to resize, crop and pad it; "
        "expected a class alone, or (class, number of a query)"
    )
