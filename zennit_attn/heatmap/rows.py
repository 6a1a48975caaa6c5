"""Heatmap: relevance of tokens, images, and layers or heads, drawn for a paper, a notebook or a terminal.

Colours are symmetric about zero, and each picture states its scale. :func:`tokens`, :func:`images` and :func:`trace`
return a :class:`Heatmap`, which is shown in notebooks and saved as PNG, SVG, HTML and PDF. Nothing is computed here:
relevance is drawn as it comes, not normalised, smoothed or cut off, unless it is asked for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from zennit.cmap import ColorMap

from .canvas import GREY, INK, Canvas, Color, Fonts, Rectangle, Text, ink_on, is_right_to_left
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
    amounts,
    as_array,
    largest,
    limit_of,
    page,
    with_scale,
    with_title,
)
from .words import clean_tokens, is_special, merge, visible, word_starts

# lengths in units of the size of the text
CELL, PAD, SEAM, SPACE, THINNEST, SMALLEST = 1.55, 0.22, 0.02, 0.15, 0.5, 0.75


class TokenHeatmap(Heatmap):
    """A picture of the relevance of tokens, which a terminal shows as coloured text.

    Attributes
    ----------
    words : list of str
        Text of the tokens, as :func:`~zennit_attn.heatmap.words.clean_tokens` returns it.
    relevance : dict of str to numpy.ndarray
        Relevance of each row, shape ``(tokens,)``.
    limits : list of float
        Relevance of the strongest colour of each row.
    """

    def __init__(
        self,
        canvas: Canvas,
        title: str,
        words: list[str],
        relevance: dict[str, Array],
        limits: list[float],
        paint: Paint,
    ) -> None:
        super().__init__(canvas, title)
        self.words, self.relevance, self.limits, self.paint = words, relevance, limits, paint

    def ansi(self) -> str:
        """Return the text in the colours of a terminal (24 bit), plain if the environment has ``NO_COLOR``."""
        return self.text("NO_COLOR" not in os.environ)

    def __str__(self) -> str:
        return self.text("NO_COLOR" not in os.environ and sys.stdout.isatty())

    def __repr__(self) -> str:
        return f"<TokenHeatmap of {len(self.words)} tokens, {len(self.relevance)} rows>"

    def text(self, colored: bool) -> str:
        """Return a line or more for each row, and the scale."""
        rows = []
        for (label, values), limit in zip(self.relevance.items(), self.limits, strict=True):
            colors = self.paint(values, -limit, limit)
            parts = [ansi(word, tuple(color.tolist()), colored) for word, color in zip(self.words, colors, strict=True)]
            head = f"{label}: " if label else ""
            rows.append(f"{head}{''.join(parts).removeprefix(' ')}  [{amount(-limit)} to {amount(limit)}]")
        return "\n".join(rows)


def ansi(word: str, color: Color, colored: bool) -> str:
    """Return a word for a terminal, the space before it without colour, and a new line after a new line."""
    space, body = " " * (word[:1] == " " and word.strip(" ") != ""), visible(word)
    if colored and body:
        red, green, blue = ink_on(color)
        body = "\x1b[48;2;{};{};{}m".format(*color) + f"\x1b[38;2;{red};{green};{blue}m{body}\x1b[0m"
    return space + body + "\n" * word.endswith("\n")


def tokens(
    tokens: Sequence[Any],
    relevance: Any,
    *,
    tokenizer: Any = None,
    whole_words: bool = False,
    skip_first: int = 0,
    vmax: float | None = None,
    shared: bool = True,
    numbers: bool = False,
    title: str = "",
    cmap: str | ColorMap = CMAP,
    level: float = 1.0,
    width: float = WIDTH,
    size: float = SIZE,
    font: Fonts = None,
) -> TokenHeatmap:
    """Draw the relevance of tokens.

    Parameters
    ----------
    tokens : sequence of str, or ids
        Tokens of one sequence as ``tokenizer.convert_ids_to_tokens`` gives them, words, or ids with a tokenizer.
    relevance : torch.Tensor, numpy.ndarray, or mapping of str to these
        Shape ``(tokens,)``. Those of a mapping are drawn as rows, each with its name, aligned token by token.
    tokenizer : transformers.PreTrainedTokenizerBase, optional
        Tells how its tokens are written; by default the tokens do, see :mod:`zennit_attn.heatmap.words`.
    whole_words : bool
        Whether to draw words, with the sum of the relevance of their tokens.
    skip_first : int
        How many of the first tokens the scale leaves out, 1 (or True) for an attention sink.
    vmax : float, optional
        Relevance of the strongest colours; by default the largest absolute relevance. What is beyond it, or beyond
        the scale that leaves tokens out, has the strongest colour and an outline.
    shared : bool
        Whether rows have one scale, or each its own.
    numbers : bool
        Whether to write the relevance below each token.
    title : str
        Stands above.
    cmap : str or zennit.cmap.ColorMap
        One of zennit's colour maps, or its source code.
    level : float
        Contrast of the colours, as in :func:`zennit.image.imgify`.
    width, size : float
        Width of the picture, and size of its text, in points. A longer word makes the picture wider.
    font : str, os.PathLike or sequence of these, optional
        Path or name of a font, or of several of which the first that has a letter draws it.

    Returns
    -------
    TokenHeatmap
        Has ``save``, ``image`` and ``ansi``.

    Raises
    ------
    ValueError
        If relevance does not fit the tokens or is not finite, or an argument is out of range.

    Examples
    --------
    >>> from zennit_attn import heatmap
    >>> picture = heatmap.tokens(["▁the", "▁key", "s"], [0.1, 0.6, -0.2])
    >>> print(picture)
    the keys  [-0.6 to +0.6]
    >>> picture.image(dpi=300).width
    2000
    """
    words = clean_tokens(tokens, tokenizer)
    rows = checked_rows(relevance, len(words))
    if whole_words:
        words, merged = merge(words, np.stack(list(rows.values())))
        rows = dict(zip(rows, merged, strict=True))
    limits = limits_of(list(rows.values()), skip_first, vmax, shared)
    labels = [label if shared else f"{label} ±{limit:.3g}".strip() for label, limit in zip(rows, limits, strict=True)]
    shown = [visible(word) for word in words]
    written = [amounts(values, limit) for values, limit in zip(rows.values(), limits, strict=True)] if numbers else []
    title = visible(title)
    canvas = page(width, size, font, [*shown, *labels, title])
    paint = Paint(cmap, level)
    drawing = TokenRows(canvas, size, paint, words, shown, written)
    top = drawing.draw(labels, list(rows.values()), limits, title)
    note = note_of(list(rows.values()), drawing.beyond)
    with_scale(canvas, top, size, paint, (-limits[0], limits[0]) if shared else None, note)
    return TokenHeatmap(canvas, title, words, rows, limits, paint)


def checked_rows(relevance: Any, count: int) -> dict[str, Array]:
    """Return rows of relevance by their labels, each of shape ``(count,)``."""
    rows = dict(relevance) if isinstance(relevance, Mapping) else {"": relevance}
    arrays = {
        visible(str(label)): as_array(values, f"relevance {label!r}".replace(" ''", ""))
        for label, values in rows.items()
    }
    for label, values in arrays.items():
        if values.shape != (count,) or not count:
            raise ValueError(
                f"got relevance {label!r} of shape {values.shape} for {count} tokens, expected ({count},), of at "
                "least one: give the relevance of one sequence, as relevance[0], and a mapping for several rows."
            )
    if not arrays:
        raise ValueError("got a mapping without relevance, expected at least one row")
    return arrays


def limits_of(rows: list[Array], skip_first: int, vmax: float | None, shared: bool) -> list[float]:
    """Return the relevance of the strongest colour of each row."""
    if not 0 <= skip_first < len(rows[0]):
        raise ValueError(f"got skip_first={skip_first}, expected 0 to {len(rows[0]) - 1}, which leaves a token")
    # a scale that leaves out all that is not zero is none
    limits = [limit_of(values[int(skip_first) :], vmax) or largest(values) for values in rows]
    return [max(limits)] * len(rows) if shared else limits


def note_of(rows: list[Array], beyond: list[float]) -> str:
    """Say what has to be known of the colours."""
    if not any(values.any() for values in rows):
        return "all relevance is zero"
    if not beyond:
        return ""
    some = ", ".join(map(amount, beyond)) if len(beyond) <= 3 else f"up to {amount(max(beyond, key=abs))}"
    return f"outlined: beyond the scale ({some})"


class TokenRows:
    """Rows of words in boxes, in as many lines as they need.

    Attributes
    ----------
    beyond : list of float
        Relevance that is beyond the scale.
    """

    def __init__(
        self, canvas: Canvas, size: float, paint: Paint, words: list[str], shown: list[str], written: list[list[str]]
    ) -> None:
        self.canvas, self.size, self.paint = canvas, size, paint
        self.words, self.shown, self.written = words, shown, written
        self.beyond, self.backwards = list[float](), is_backwards(words)
        # room before and after each word; there is hardly any inside of a word
        starts = {*word_starts(words), len(words)}
        self.pads = list(pairwise((PAD if index in starts else SEAM) * size for index in range(len(words) + 1)))

    def widths(self) -> list[float]:
        """Return the width of each box, which has to hold its word, and its number in each row."""
        size, length = self.size, self.canvas.face.length
        widths = [max(length(word, size), 0.0 if word else THINNEST * size) for word in self.shown]
        for row in self.written:
            # numbers have to be told from their neighbours
            inner = [length(text, SMALLEST * size) + PAD * size for text in row]
            widths = [max(pair) for pair in zip(widths, inner, strict=True)]
        return [width + sum(pad) for width, pad in zip(widths, self.pads, strict=True)]

    def draw(self, labels: list[str], rows: list[Array], limits: list[float], title: str) -> float:
        """Draw everything but the scale, and return where it ends."""
        size, canvas = self.size, self.canvas
        indent = max(canvas.face.length(label, size) for label in labels)
        left = MARGIN + indent + (0.8 * size if indent else 0)
        widths = self.widths()
        room = max([canvas.width - MARGIN - left, *widths])
        canvas.width = left + room + MARGIN
        top = with_title(canvas, title, size)
        height = (CELL + 0.85 * bool(self.written)) * size
        for line in arrange(self.words, widths, room, SPACE * size):
            for row, label in enumerate(labels):
                if label:
                    canvas.add(Text(left - 0.8 * size, top + (CELL / 2 + MIDDLE) * size, label, size, GREY, "end"))
                for index, x in line:
                    x = left + (room - x - widths[index] if self.backwards else x)
                    self.cell(index, row, rows[row][index], limits[row], (x, top, widths[index], height))
                top += height
            top += (0.6 if len(rows) > 1 else 0.3) * size
        return top

    def cell(self, index: int, row: int, value: float, limit: float, box: tuple[float, float, float, float]) -> None:
        """Draw a word in its box."""
        size, (x, y, width, _) = self.size, box
        color = tuple(self.paint(np.array([value]), -limit, limit)[0].tolist())
        is_beyond = abs(value) > limit
        self.canvas.add(
            Rectangle(*box, color, INK if is_beyond else None, 0.12 * size, f"{self.shown[index]} {value:+.6g}")
        )
        if is_beyond:
            self.beyond.append(float(value))
        before, after = self.pads[index][:: -1 if self.backwards else 1]
        middle, base, ink = x + (width + before - after) / 2, y + (CELL / 2 + MIDDLE) * size, ink_on(color)
        self.canvas.add(Text(middle, base, self.shown[index], size, ink, "middle"))
        if self.written:
            self.canvas.add(Text(middle, base + 0.95 * size, self.written[row][index], SMALLEST * size, ink, "middle"))


def is_backwards(words: Sequence[str]) -> bool:
    """Tell whether most letters are written from right to left."""
    letters = [letter for word in words if not is_special(word.strip()) for letter in word if letter.isalpha()]
    return 2 * sum(map(is_right_to_left, letters)) > len(letters)


def arrange(words: Sequence[str], widths: Sequence[float], room: float, gap: float) -> list[list[tuple[int, float]]]:
    """Return lines of tokens with the left edge of each; lines break between words where they can, and at new lines."""
    lines: list[list[tuple[int, float]]] = [[]]
    edge = 0.0
    starts = [*word_starts(words), len(words)]
    for start, end in pairwise(starts):
        whole = sum(widths[start:end])
        for index in range(start, end):
            edge += gap * (index == start and bool(lines[-1]))
            needed = whole if index == start and whole <= room else widths[index]
            # rounding must not break a line that is as wide as the room
            if lines[-1] and edge + needed > room + 1e-6:
                lines.append([])
                edge = 0.0
            lines[-1].append((index, edge))
            edge += widths[index]
        if words[end - 1].endswith("\n") and not "".join(words[end : end + 1]).startswith("\n"):
            lines.append([])
            edge = 0.0
    return [line for line in lines if line]


def pdf_heatmap(
    words: Sequence[str],
    relevances: Any,
    cmap: str | ColorMap = CMAP,
    path: str | os.PathLike[str] = "heatmap.pdf",
    delete_aux_files: bool = True,
    backend: str = "xelatex",
) -> TokenHeatmap:
    """Write a PDF of words, called as ``lxt.utils.pdf_heatmap`` is.

    Parameters
    ----------
    words : sequence of str
        Words, or tokens. LXT's own ``clean_tokens`` escapes them for LaTeX, :func:`clean_tokens` does not.
    relevances : torch.Tensor or numpy.ndarray
        Shape ``(words,)``, from -1 to 1.
    cmap : str or zennit.cmap.ColorMap
        One of zennit's colour maps.
    path : str or os.PathLike
        The file; its folder is made if need be.
    delete_aux_files, backend
        Unused, because there is no LaTeX, which would leave files behind.

    Returns
    -------
    TokenHeatmap
        What has been written.

    Raises
    ------
    ValueError
        If relevance is not from -1 to 1, or does not fit the words.
    """
    values = as_array(relevances, "relevances")
    if largest(values) > 1:
        raise ValueError(
            f"got relevances of up to {largest(values):.3g}, expected -1 to 1: divide them by their largest"
        )
    path = Path(path).with_suffix(".pdf")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = tokens(words, values, vmax=1.0, cmap=cmap)
    picture.save(path)
    return picture
