"""Heatmap: relevance of tokens, images, and layers or heads, drawn for a paper, a notebook or a terminal.

Colours are symmetric about zero, and each picture states its scale. All functions that draw return a :class:`Heatmap`,
which is shown in notebooks and saved as PNG, SVG, HTML and PDF. Nothing is computed here:
relevance is drawn as it comes, not normalised, smoothed or cut off, unless it is asked for.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from zennit.cmap import ColorMap

from .figure import (
    CMAP,
    MARGIN,
    MIDDLE,
    NARROWEST,
    SIZE,
    WIDTH,
    Array,
    Heatmap,
    Limit,
    Paint,
    amount,
    amounts,
    as_array,
    call_of,
    drawn,
    largest,
    limit_of,
    page,
    with_scale,
    with_title,
)
from .ink import GREY, Color, Fonts, ink_on
from .skips import Mask, skipped
from .spans import element, scale, span
from .words import clean_tokens, is_special, merge, visible, word_starts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .cells import Cell
    from .sheet import Face

# lengths in units of the size of the text
CELL, PAD, SEAM, SPACE, THINNEST, SMALLEST, SCALE = 1.55, 0.22, 0.02, 0.15, 0.5, 0.75, 26.0


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
        self, figure: Figure, texts: list[str], title: str, words: list[str], limits: list[float], drawing: TokenRows
    ) -> None:
        rows = {label: values.tolist() for label, values in drawing.rows.items()}
        call = call_of("tokens", len(words) * len(rows), words, rows.get("", rows), title=title)
        what = f"{len(words)} tokens, {len(rows)} rows"
        super().__init__(figure, drawing.face, texts, title, what, call)
        self.words, self.relevance, self.limits, self.paint = words, drawing.rows, limits, drawing.paint
        self.drawing = drawing

    def plot(self, ax: Axes) -> Axes:
        """Draw the words on axes of matplotlib, in lines as wide as these are when they are drawn.

        Parameters
        ----------
        ax : matplotlib.axes.Axes
            The axes, which lose their frame.

        Returns
        -------
        matplotlib.axes.Axes
            The same axes.
        """
        from .cells import Words

        Words(ax, self.face, self.drawing.lay)
        return ax

    def _repr_html_(self) -> str:
        return self.drawing.html(self.title)

    def ansi(self) -> str:
        """Return the text in the colours of a terminal (24 bit), plain if the environment has ``NO_COLOR``."""
        return self.text("NO_COLOR" not in os.environ)

    def __str__(self) -> str:
        return self.text("NO_COLOR" not in os.environ and sys.stdout.isatty())

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


@drawn
def tokens(
    tokens: Sequence[Any],
    relevance: Any,
    *,
    tokenizer: Any = None,
    whole_words: bool = False,
    skip: Any = (),
    vmax: Limit = None,
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
    skip : sequence of int, slice, or mask of bool
        Which tokens the scale leaves out, as ``[0]`` for an attention sink, or those of a chat's template. A word is
        left out with any of its tokens.
    vmax : float or str, optional
        Relevance of the strongest colours, or a percentile of absolute relevance, as ``"99%"``; by default the largest
        absolute relevance. What is beyond it, or beyond the scale that leaves tokens out, has the strongest colour and
        an outline.
    shared : bool
        Whether rows have one scale, or each its own.
    numbers : bool
        Whether to write the relevance below each token.
    title : str
        Stands above.
    cmap : str or zennit.cmap.ColorMap
        One of zennit's colour maps, or its source code, or the name of one of matplotlib's.
    level : float
        Contrast of the colours, as in :func:`zennit.image.imgify`.
    width, size : float
        Width of the picture, and size of its text, in points. A longer word makes the picture wider.
    font : str, os.PathLike or sequence of these, optional
        Path or name of a font, or of several of which the first that has a letter draws it.

    Returns
    -------
    TokenHeatmap
        Has ``save``, ``image``, ``figure``, ``plot`` and ``ansi``.

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
    from .cells import Words

    words = clean_tokens(tokens, tokenizer)
    rows = checked_rows(relevance, len(words))
    left_out = skipped(skip, len(words))
    if whole_words:
        words, rows, left_out = whole(words, rows, left_out)
    limits = limits_of(list(rows.values()), left_out, vmax, shared)
    labels = [label if shared else f"{label} ±{limit:.3g}".strip() for label, limit in zip(rows, limits, strict=True)]
    written = [amounts(values, limit) for values, limit in zip(rows.values(), limits, strict=True)] if numbers else []
    title = visible(title)
    sheet = page(width, size, font)
    drawing = TokenRows(sheet.face, size, Paint(cmap, level), words, rows, labels, limits, written, shared)
    sheet.width = max(width, drawing.narrowest() + 2 * MARGIN, NARROWEST * size + 2 * MARGIN)
    top, room = with_title(sheet, title, size), sheet.width - 2 * MARGIN
    cells, height = drawing.lay(room)
    Words(sheet.axes(MARGIN, top, room, height), sheet.face, drawing.lay)
    sheet.texts.extend([*drawing.shown, *labels])
    right = MARGIN + max(cell.x + cell.width for cell in cells)
    sides = MARGIN, max(right, min(MARGIN + SCALE * size, sheet.width - MARGIN))
    with_scale(sheet, sides, top + height, size, drawing.paint, drawing.ends, drawing.note)
    return TokenHeatmap(sheet.figure, sheet.texts, title, words, limits, drawing)


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


def whole(words: list[str], rows: dict[str, Array], left_out: Mask) -> tuple[list[str], dict[str, Array], Mask]:
    """Return whole words, the sums of their tokens, and which of them have a token that is left out."""
    names, merged = merge(words, np.stack([*rows.values(), left_out]))
    return names, dict(zip(rows, merged, strict=False)), merged[-1] > 0


def limits_of(rows: list[Array], left_out: Mask, vmax: Limit, shared: bool) -> list[float]:
    """Return the relevance of the strongest colour of each row."""
    stacks = [np.stack(rows)] * len(rows) if shared else rows
    # a scale that leaves out all that is not zero is none
    return [limit_of(values[..., ~left_out], vmax) or largest(values) for values in stacks]


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
    note : str
        What has to be known of the colours.
    ends : tuple of float, optional
        Relevance of the outermost colours, none if rows have their own.
    """

    def __init__(
        self,
        face: Face,
        size: float,
        paint: Paint,
        words: list[str],
        rows: dict[str, Array],
        labels: list[str],
        limits: list[float],
        written: list[list[str]],
        shared: bool,
    ) -> None:
        self.face, self.size, self.paint, self.words, self.rows = face, size, paint, words, rows
        self.labels, self.limits, self.written = labels, limits, written
        self.shown, self.backwards = [visible(word) for word in words], is_backwards(words)
        self.ends = (-limits[0], limits[0]) if shared else None
        pairs = list(zip(rows.values(), limits, strict=True))
        self.colors = [[tuple(each) for each in paint(values, -top, top).tolist()] for values, top in pairs]
        self.beyond = [float(value) for values, top in pairs for value in values if abs(value) > top]
        self.note = note_of(list(rows.values()), self.beyond)
        # room before and after each word; there is hardly any inside of a word
        starts = {*word_starts(words), len(words)}
        self.pads = list(pairwise((PAD if index in starts else SEAM) * size for index in range(len(words) + 1)))
        indent = max(face.length(label, size) for label in labels)
        self.left = indent + (0.8 * size if indent else 0)
        self.widths = self.measured()

    def measured(self) -> list[float]:
        """Return the width of each box, which has to hold its word, and its number in each row."""
        size, length = self.size, self.face.length
        widths = [max(length(word, size), 0.0 if word else THINNEST * size) for word in self.shown]
        for row in self.written:
            # numbers have to be told from their neighbours
            inner = [length(text, SMALLEST * size) + PAD * size for text in row]
            widths = [max(pair) for pair in zip(widths, inner, strict=True)]
        return [width + sum(pad) for width, pad in zip(widths, self.pads, strict=True)]

    def narrowest(self) -> float:
        """Return the width that the labels and the longest word need."""
        return self.left + max(self.widths)

    def lay(self, width: float) -> tuple[list[Cell], float]:
        """Return all boxes in lines of a width, in points, and how high they are."""
        from .cells import Cell

        size, top, cells = self.size, 0.0, list[Cell]()
        room = max(width, self.narrowest()) - self.left
        height = (CELL + 0.85 * bool(self.written)) * size
        for line in arrange(self.words, self.widths, room, SPACE * size):
            for row, label in enumerate(self.labels):
                if label:
                    long, base = self.face.length(label, size), top + (CELL / 2 + MIDDLE) * size
                    x = self.left - 0.8 * size - long
                    cells.append(Cell(x, top, long, height, None, 0, "", ((label, x + long / 2, base, size, GREY),)))
                for index, x in line:
                    x = self.left + (room - x - self.widths[index] if self.backwards else x)
                    cells.append(self.cell(index, row, (x, top, self.widths[index], height)))
                top += height
            top += (0.6 if len(self.rows) > 1 else 0.3) * size
        return cells, top

    def note_at(self, index: int, row: int) -> str:
        """Say what a word's relevance is."""
        return f"{self.shown[index]} {list(self.rows.values())[row][index]:+.6g}"

    def is_beyond(self, index: int, row: int) -> bool:
        """Tell whether a word's relevance is beyond the scale."""
        return bool(abs(list(self.rows.values())[row][index]) > self.limits[row])

    def cell(self, index: int, row: int, box: tuple[float, float, float, float]) -> Cell:
        """Return the box of a word."""
        from .cells import Cell

        size, (x, y, width, _), color = self.size, box, self.colors[row][index]
        before, after = self.pads[index][:: -1 if self.backwards else 1]
        middle, base, ink = x + (width + before - after) / 2, y + (CELL / 2 + MIDDLE) * size, ink_on(color)
        texts = [(self.shown[index], middle, base, size, ink)]
        if self.written:
            texts.append((self.written[row][index], middle, base + 0.95 * size, SMALLEST * size, ink))
        line = 0.12 * size * self.is_beyond(index, row)
        return Cell(*box, color, line, self.note_at(index, row), tuple(texts))

    def html(self, title: str) -> str:
        """Return the words as HTML, which breaks lines as the reader's window is wide."""
        parts = [element("h3", title)] if title else []
        for row, label in enumerate(self.labels):
            head = element("small", label) + " " if label else ""
            body = "".join(
                " " * word[:1].isspace()
                + span(
                    self.shown[index],
                    self.colors[row][index],
                    self.note_at(index, row),
                    self.written[row][index] if self.written else "",
                    self.is_beyond(index, row),
                )
                + "<br>" * word.endswith("\n")
                for index, word in enumerate(self.words)
            )
            parts.append(f'<p dir="{"rtl" if self.backwards else "ltr"}">{head}{body}</p>')
        names = ("-max", "+max") if self.ends is None else (amount(self.ends[0]), amount(self.ends[1]))
        shades = self.paint(np.linspace(-1, 1, 9), -1, 1).tolist()
        parts.append(f"<p>{scale(names, [tuple(shade) for shade in shades])}</p>")
        if self.note:
            parts.append(f"<p>{element('small', self.note)}</p>")
        style = "font-family:system-ui,sans-serif;line-height:1.8;overflow-wrap:anywhere"
        return f'<div style="{style}">{"".join(parts)}</div>'


def is_right_to_left(letter: str) -> bool:
    """Tell whether a letter is Hebrew, Arabic or the like."""
    return unicodedata.bidirectional(letter) in ("R", "AL")


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
