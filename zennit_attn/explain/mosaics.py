"""Mosaics: images that a model takes in pieces, put together again.

A mosaic is known by what comes with the pixels, not by the model, and is only taken if images that are put together by
it are whole: of each image processor it is asked whether a straight line is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import InputError
from .frames import measured


@dataclass(frozen=True)
class Patches:
    """Patches in a row, as Qwen2-VL takes them: those that are merged stand together, each twice for two moments.

    Attributes
    ----------
    height, width : int
        How many patches.
    merge, moments, side : int
        How many patches of a side are merged, how many moments a patch has, and pixels of its side.
    """

    height: int
    width: int
    merge: int
    moments: int
    side: int

    def __call__(self, values: Tensor, mean: bool = False) -> Tensor:
        """Return images of shape ``(rows, channels, height, width)`` of patches of shape ``(rows, patches, values)``.

        Moments, which are the same image, are summed, or their mean is taken.
        """
        blocks, size = (self.height // self.merge, self.width // self.merge), self.side
        parted = values.reshape(len(values), *blocks, self.merge, self.merge, -1, self.moments, size, size)
        moments = parted.mean(6) if mean else parted.sum(6)
        # rows of blocks, of patches, and of pixels
        whole = moments.permute(0, 5, 1, 3, 6, 2, 4, 7)
        return whole.reshape(len(values), -1, self.height * size, self.width * size)


@dataclass(frozen=True)
class Tiles:
    """Tiles in rows and columns, and the whole image in the size of one after them, as Idefics3 takes them.

    Attributes
    ----------
    rows, columns : int
        How many tiles; none for an image that is one.
    """

    rows: int
    columns: int

    def __call__(self, values: Tensor, mean: bool = False) -> Tensor:
        """Return images of shape ``(rows, channels, height, width)`` of tiles, ``(rows, 1, tiles, channels, ...)``.

        A pixel of the whole image is shared out evenly among those of the tiles that it was made of; for a mean only
        the tiles are taken.
        """
        tiles, (rows, columns) = values[:, 0], (self.rows, self.columns)
        if not rows:
            return tiles[:, 0]
        whole = tiles[:, -1] / (rows * columns)
        parted = tiles[:, :-1].unflatten(1, (rows, columns)).permute(0, 3, 1, 4, 2, 5)
        fine = parted.flatten(4, 5).flatten(2, 3)
        return fine if mean else fine + whole.repeat_interleave(rows, 2).repeat_interleave(columns, 3)


def mosaic_of(explainer: Any, batch: Mapping[str, Any], size: tuple[int, int]) -> Patches | Tiles:
    """Return how to put together the pieces of an image of a height and a width.

    Raises
    ------
    InputError
        If that is not known.
    """
    pixels, reader = batch["pixel_values"], getattr(explainer.reader, "image_processor", None)
    refused = InputError(
        f"got pixel_values of shape {tuple(pixels.shape)}, which {explainer.name!r} takes in pieces; expected one "
        "image, (1, channels, height, width), or pieces as those of Qwen2-VL or Idefics3: explain it in Python, with "
        "zennit_attn.InputXGradient"
    )
    mosaic: Patches | Tiles
    if reader is None:
        raise refused
    if pixels.dim() == 2 and "image_grid_thw" in batch and hasattr(reader, "temporal_patch_size"):
        moments, height, width = batch["image_grid_thw"][0].tolist()
        if moments != 1:
            raise refused
        mosaic = Patches(height, width, reader.merge_size, reader.temporal_patch_size, reader.patch_size)
    elif pixels.dim() == 5 and len(pixels) == 1 and hasattr(reader, "return_row_col_info"):
        blank = np.zeros((*size, 3), np.uint8)
        found = reader(images=[blank], return_tensors="pt", return_row_col_info=True)
        mosaic = Tiles(found["rows"][0][0], found["cols"][0][0])
    else:
        raise refused

    def look(image: Any) -> Any:
        values = reader(images=[image], return_tensors="pt")["pixel_values"]
        return mosaic(values[None], mean=True)[0]

    try:
        frame = measured(look, size)
    except (RuntimeError, ValueError):
        raise refused from None
    if frame is None:
        raise refused
    return mosaic
