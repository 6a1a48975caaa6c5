"""Skips: which tokens a scale leaves out, as attention sinks and special tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Mask = NDArray[np.bool_]


def skipped(skip: Any, count: int) -> Mask:
    """Return a mask of the tokens that are left out.

    Parameters
    ----------
    skip : sequence of int, slice, or mask of bool
        Which.
    count : int
        How many tokens there are.

    Raises
    ------
    ValueError
        If there are no such tokens, or none is left.

    Examples
    --------
    >>> from zennit_attn.heatmap.skips import skipped
    >>> skipped([0, -1], 4).tolist()
    [True, False, False, True]
    """
    mask = np.zeros(count, dtype=bool)
    mask[skip if isinstance(skip, slice) else chosen(skip, count)] = True
    if mask.all():
        raise ValueError(f"got skip={skip!r}, which leaves none of {count} tokens for the scale, expected one at least")
    return mask


def chosen(skip: Any, count: int) -> NDArray[Any]:
    """Return indices, each of them once, or a mask."""
    places = np.asarray(skip.tolist() if isinstance(skip, Tensor) else skip)
    if places.dtype == bool and places.shape == (count,):
        return places
    # numpy makes floats of nothing
    places = places if places.size else places.astype(int)
    if places.ndim != 1 or places.dtype.kind not in "iu" or ((places < -count) | (places >= count)).any():
        raise ValueError(
            f"got skip={skip!r} for {count} tokens, expected a list of indices from {-count} to {count - 1}, as [0], a "
            f"slice, or a mask of {count} bool"
        )
    # a tokenizer's special_tokens_mask is of 0 and 1, which could be indices
    if len(set((places % count).tolist())) < len(places):
        raise ValueError(f"got skip={skip!r}, expected each index once; a mask has to be of bool")
    return places
