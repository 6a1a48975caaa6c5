"""Pairs: an image and a text in one picture, in one scale, and how much of the relevance each has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from zennit.cmap import ColorMap

from .figure import (
    CMAP,
    LARGE,
    LEADING,
    MARGIN,
    SIZE,
    WIDTH,
    Array,
    Heatmap,
    Limit,
    Paint,
    amount,
    amounts,
    drawn,
    largest,
    limit_of,
    note_on,
    page,
    with_scale,
    with_title,
)
from .ink import Fonts
from .panels import WIDEST, Over, Patch, as_pixels, as_plane
from .rows import SCALE, TokenRows, checked_rows, note_of, whole
from .skips import skipped
from .words import clean_tokens, visible

# the widest image as a share of the picture, and the room beside it in units of the size of the text
SHARE, GAP = 0.4, 1.2
# sums that cancel to less than this share of themselves have no shares in their total
CANCELLED = 1e-6


@drawn
def pair(
    relevance: Any,
    picture: Any,
    tokens: Sequence[Any],
    token_relevance: Any,
    *,
    tokenizer: Any = None,
    whole_words: bool = False,
    skip: Any = (),
    numbers: bool = False,
    opacity: float = 0.65,
    smooth: bool = False,
    grey: bool = True,
    patch: Patch = None,
    vmax: Limit = None,
    title: str = "",
    cmap: str | ColorMap = CMAP,
    level: float = 1.0,
    width: float = WIDTH,
    size: float = SIZE,
    font: Fonts = None,
) -> Heatmap:
    """Draw the relevance of an image and of a text in one scale, and say the share of each.

    A share is the sum of the relevance of one, of the total of both. It is negative, or above 100 %, where one speaks
    for an output and the other one against it.

    Parameters
    ----------
    relevance, picture
        Of one image, as :func:`zennit_attn.heatmap.imgify` takes them.
    tokens, token_relevance
        Of one text, as :func:`zennit_attn.heatmap.tokens` takes them, a single row.
    tokenizer, whole_words, skip, numbers
        As in :func:`zennit_attn.heatmap.tokens`.
    opacity, smooth, grey, patch
        As in :func:`zennit_attn.heatmap.imgify`. Relevance of a pixel is far less than that of a token: ``patch`` makes
        the image of patches, which can be compared.
    vmax : float or str, optional
        Relevance of the strongest colours of both, or a percentile of the absolute relevance of pixels, or patches, and
        tokens, as ``"99%"``; by default the largest one.
    title, cmap, level, width, size, font
        As in :func:`zennit_attn.heatmap.tokens`.

    Returns
    -------
    Heatmap
        Has ``save`` and ``image``.

    Raises
    ------
    ValueError
        If shapes do not fit, or values are not finite or out of range.

    Examples
    --------
    >>> import torch
    >>> from zennit_attn import heatmap
    >>> of_image, of_text = torch.full((3, 4, 4), 0.0625), [0.5, 0.5]
    >>> picture = heatmap.pair(of_image, torch.rand(3, 4, 4), ["a", "cat"], of_text, patch=2)
    >>> [text for text in picture.texts if "%" in text]
    ['image +75 %, text +25 % of the total relevance of +4']
    """
    from .cells import Words
    from .sheet import picture as show

    plane, pixels = as_plane(relevance, patch), None if picture is None else as_pixels(picture)
    words = clean_tokens(tokens, tokenizer)
    rows, left_out = checked_rows({"": token_relevance}, len(words)), skipped(skip, len(words))
    if whole_words:
        words, rows, left_out = whole(words, rows, left_out)
    values, title = rows[""], visible(title)
    everything = np.concatenate([plane.ravel(), values])
    limit = limit_of(np.concatenate([plane.ravel(), values[~left_out]]), vmax) or largest(everything)
    paint, sheet = Paint(cmap, level), page(width, size, font)
    written = [amounts(values, limit)] if numbers else []
    drawing = TokenRows(sheet.face, size, paint, words, rows, [""], [limit], written, True)
    image = Over(paint, opacity, smooth, grey, patch).painted(plane, pixels, (-limit, limit))
    wide = min(SHARE * (width - 2 * MARGIN), WIDEST)
    high, left = wide * image.shape[0] / image.shape[1], MARGIN + wide + GAP * size
    room = max(width - MARGIN - left, drawing.narrowest())
    # beside a short text the page ends, if what stands above and below has room
    room = max(cell.x + cell.width for cell in drawing.lay(room)[0])
    said = shares(float(plane.sum()), float(values.sum()))
    long = max(SCALE * size, sheet.face.length(said, size), sheet.face.length(title, LARGE * size))
    sheet.width = max(left + room + MARGIN, min(MARGIN + long + MARGIN, width))
    top, deep = with_title(sheet, title, size), drawing.lay(room)[1]
    end = top + max(high, deep)
    # a text that is less high than its image stands beside the middle of it
    show(sheet.axes(MARGIN, top, wide, high), image, smooth)
    Words(sheet.axes(left, top + max(high - deep, 0) / 2, room, deep), sheet.face, drawing.lay)
    sheet.texts.extend(drawing.shown)
    for line in sheet.face.wrapped(said, size, sheet.width - 2 * MARGIN) if said else []:
        end += LEADING * size
        sheet.text(MARGIN, end + 0.3 * size, line, size)
    note = note_on_both(plane, values, drawing)
    with_scale(sheet, (MARGIN, sheet.width - MARGIN), end + size, size, paint, drawing.ends, note)
    return Heatmap(sheet.figure, sheet.face, sheet.texts, title, f"an image and {len(words)} tokens")


def shares(image: float, text: float) -> str:
    """Say how much of the total two sums are; nothing of zeros.

    Examples
    --------
    >>> from zennit_attn.heatmap.pairs import shares
    >>> shares(3.0, -1.0)
    'image +150 %, text -50 % of the total relevance of +2'
    >>> shares(1.0, -1.0)
    'image +1, text -1, which cancel: they have no shares of a total of 0'
    """
    total = image + text
    if image == text == 0:
        return ""
    if abs(total) <= CANCELLED * (abs(image) + abs(text)):
        return f"image {amount(image)}, text {amount(text)}, which cancel: they have no shares of a total of 0"
    # rounded so that both are 100
    share = round(100 * image / total)
    return f"image {share:+d} %, text {100 - share:+d} % of the total relevance of {amount(total)}"


def note_on_both(plane: Array, values: Array, drawing: TokenRows) -> str:
    """Say what has to be known of the colours."""
    words = note_of([plane.ravel(), values], drawing.beyond)
    limit = drawing.limits[0]
    pixels = note_on(plane, -limit, limit) if plane.any() else ""
    return "; ".join(filter(None, [f"image: {pixels}" if pixels else "", words]))
