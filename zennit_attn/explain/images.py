"""Images: one way to open them, upright and in RGB: a file, its bytes, an image of Pillow, or an array.

A file is read by one of the formats of :data:`FORMATS`, whatever its name ends with. Of an animation, or of a file of
several pages, it is the first one. What can be seen through is put on white. Colour profiles are not applied.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import InputError
from ..files import check_file
from .loading import refused

#: Formats of Pillow that are opened; of others, some start programs, as EPS, which goes to Ghostscript.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")
#: Formats in which Pillow gives 16 bits as numbers of 32.
OF_16_BITS = ("PNG", "PPM")
#: Numbers of TIFF's tags.
BITS, MEANING = 258, 262


@functools.cache
def formats() -> tuple[str, ...]:
    """Return those of :data:`FORMATS` that this Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@functools.cache
def suffixes() -> frozenset[str]:
    """Return what names of images end with."""
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in formats())


def image_of(given: Any) -> Image.Image:
    """Return an image, upright and in RGB, of a file's name, its bytes, an image of Pillow, or an array.

    Raises
    ------
    InputError
        If it is none, has more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``, or numbers of which it is not known how
        bright they are.
    """
    if isinstance(given, (str, Path)):
        check_file(Path(given))
        with read(f"the image {str(given)!r}"), Image.open(given, formats=formats()) as image:
            return in_colour(image)
    if isinstance(given, bytes):
        with read(f"an image of {len(given)} bytes"), Image.open(io.BytesIO(given), formats=formats()) as image:
            return in_colour(image)
    if isinstance(given, Tensor):
        given = given.detach().cpu().float().numpy() if given.is_floating_point() else given.cpu().numpy()
    if isinstance(given, np.ndarray):
        given = image_of_array(given)
    if not isinstance(given, Image.Image):
        raise InputError(f"got {type(given).__name__} as an image, expected a file, an image of Pillow, or an array")
    with read(f"an image of Pillow, {given.mode}"):
        return in_colour(given)


@contextmanager
def read(what: str) -> Iterator[None]:
    """Turn whatever a bad file raises, which may be anything, into an InputError.

    Raises
    ------
    InputError
        At any error.
    """
    with refused(f"cannot read {what}", f"expected an image that is whole, in one of {', '.join(formats())}"):
        yield


def in_colour(image: Image.Image) -> Image.Image:
    """Return an image upright and in RGB.

    Raises
    ------
    InputError
        If it is too large, or nobody can tell how bright its numbers are.
    """
    check_size(image)
    # this decodes; the copy does not know its format any more
    kind, upright = image.format, ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        check_depth(image, kind)
        upright = Image.fromarray(((np.asarray(upright).astype(np.int64) + 128) // 257).astype(np.uint8))
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    upright = upright.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")


def check_size(image: Image.Image) -> None:
    """Raise InputError if an image has more pixels than Pillow warns of: a small file may be a huge image."""
    width, height = image.size
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and width * height > most:
        raise InputError(
            f"got an image of {width} x {height} pixels, expected at most {most}, which is PIL.Image.MAX_IMAGE_PIXELS: "
            "make it smaller"
        )


def check_depth(image: Image.Image, kind: str | None) -> None:
    """Raise InputError if an image of one channel has other numbers than 16 bits, from black to white."""
    tags = getattr(image, "tag_v2", {})
    bits = tuple(tags.get(BITS, (16,)))
    is_known = image.mode.startswith("I;16") or (image.mode == "I" and kind in OF_16_BITS)
    if not is_known or bits != (16,) or tags.get(MEANING) == 0 or "transparency" in image.info:
        raise InputError(
            f"got an image of the mode {image.mode!r} of Pillow, {kind or 'in memory'}, in which it is not known what "
            "is black and what is white; expected 8 or 16 bits: give its values as an array, from 0 to 1"
        )


def image_of_array(given: np.ndarray[Any, Any]) -> Image.Image:
    """Return the image of an array, of integers up to 255 or of numbers up to 1, with channels first or last.

    Raises
    ------
    InputError
        If it has another shape, or other numbers.
    """
    values = given.transpose(1, 2, 0) if given.ndim == 3 and given.shape[0] in (1, 3, 4) else given
    most = 255 if np.issubdtype(values.dtype, np.integer) else 1
    is_image = values.dtype.kind in "biuf" and values.size > 0
    is_image &= values.ndim == 2 or (values.ndim == 3 and values.shape[-1] in (1, 3, 4))
    # NaN is neither
    if not is_image or not (values.min() >= 0 and values.max() <= most):
        span = f"{values.min()} to {values.max()}" if values.size and values.dtype.kind in "biuf" else "no numbers"
        raise InputError(
            f"got an array of {values.dtype} of shape {given.shape} with {span} as an image; expected integers from 0 "
            "to 255, or numbers from 0 to 1, of shape (height, width) with 1, 3 or 4 channels before or after"
        )
    values = (values * (255 / most)).round().astype(np.uint8)
    return Image.fromarray(values.squeeze(-1) if values.ndim == 3 and values.shape[-1] == 1 else values)
