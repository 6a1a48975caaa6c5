"""Samples: a page of HTML with several inputs, each with a heatmap and the place in it that is meant."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image

from .figure import Array, as_array
from .page import Text, escaped, limit_of, needed, palette, signed, single, spans
from .panels import imgify

#: How wide an image is drawn at least, in pixels.
WIDE = 224


def samples(data: Mapping[str, Any]) -> str:
    """Write several inputs as a page, each coloured by relevance, with a mark at one place of it.

    The page is one file that loads nothing and runs no script; it follows the reader's light or dark scheme. Each
    sample has a scale of its own.

    Parameters
    ----------
    data : mapping
        What is shown:

        title : str
            Stands above.
        facts : mapping of str to str
            What it depends on. They stand below.
        mark : str
            What a mark means.
        samples : sequence of mappings
            ``title`` (str), ``score`` (float), ``note`` (str), and ``text`` or ``image``. A text is as the prompt of
            :func:`~zennit_attn.heatmap.page`, with ``relevance`` (a float for each token) and ``marked`` (the number
            of a token, or None). An image has ``src`` (a ``data:image/`` URI), ``relevance`` of shape ``(height,
            width)``, ``patch`` (its size, or None) and ``marked``, a box of it as ``[left, top, width, height]`` in
            pixels, or None.

    Returns
    -------
    str
        HTML, to be written in UTF-8.

    Raises
    ------
    ValueError
        If something is missing, or its shape does not fit.

    Examples
    --------
    >>> from zennit_attn import heatmap
    >>> text = {"text": "the keys", "tokens": [[0, 3], [3, 8]], "relevance": [0.1, 0.6], "marked": 1}
    >>> sample = {"title": "row 3", "score": 0.7, "note": "are", "text": text}
    >>> html = heatmap.samples({"title": "Head 3", "facts": {}, "mark": "most relevant", "samples": [sample]})
    >>> html.count("<article"), "http://" in html, "<script" in html
    (1, False, False)
    """
    cards = [card(sample, f"sample {number}") for number, sample in enumerate(needed(data, "samples", "data"))]
    if not cards:
        raise ValueError("got no samples, expected at least one")
    place = files(__package__)
    style = "\n".join(place.joinpath(f"{name}.css").read_text("utf-8") for name in ("page", "samples"))
    title = escaped(data.get("title") or "Samples")
    facts = "".join(
        f"<div><dt>{escaped(name)}</dt><dd>{escaped(fact)}</dd></div>"
        for name, fact in (data.get("facts") or {}).items()
    )
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>
{style}{palette()}</style>
</head>
<body>
<header>
<h1 dir="auto">{title}</h1>
<div class="legend plain"><div class="scale"><span>relevance</span><span>−</span><span class="colours" role="img" \
aria-label="from blue, negative, over none to red, positive"></span><span>+</span><span>up to the largest of each \
sample</span><span class="marked">{escaped(data.get("mark") or "marked")}</span></div></div>
</header>
<main class="samples">
{"".join(cards)}</main>
<footer><dl>{facts}</dl></footer>
</body>
</html>
"""


def card(sample: Mapping[str, Any], what: str) -> str:
    """Return a sample as HTML.

    Raises
    ------
    ValueError
        If it has neither a text nor an image.
    """
    if "text" in sample:
        body = Sample.of(sample["text"], what).html()
    elif "image" in sample:
        body = pair(sample["image"], what)
    else:
        raise ValueError(f"got {what} with {list(sample)}, expected 'text' or 'image' as well")
    score = signed(float(needed(sample, "score", what)))
    head = f"<h2><bdi>{escaped(needed(sample, 'title', what))}</bdi><span>{score}</span></h2>"
    return f"<article>{head}<p><bdi>{escaped(sample.get('note') or '')}</bdi></p>{body}</article>\n"


@dataclass
class Sample:
    """A text with its relevance, and the token that is marked."""

    text: Text
    relevance: Array
    marked: int | None

    @classmethod
    def of(cls, given: Mapping[str, Any], what: str) -> Sample:
        """Check a text.

        Raises
        ------
        ValueError
            If relevance or the mark does not fit it.
        """
        text = Text.of(given, what)
        relevance, marked = as_array(needed(given, "relevance", what), f"relevance of {what}"), given.get("marked")
        if relevance.shape != (len(text.spans),) or not (marked is None or 0 <= marked < len(text.spans)):
            raise ValueError(
                f"got {what} of {len(text.spans)} tokens with relevance of shape {relevance.shape} and a mark at "
                f"{marked}; expected a number for each token, and one of them marked"
            )
        return cls(text, relevance, marked)

    def html(self) -> str:
        """Return the text in its colours."""
        parts, owners = single(self.text.text, self.text.spans, self.text.names)
        values: Array = np.bincount(owners, self.relevance, len(parts)).astype(float)
        marked = None if self.marked is None else owners[self.marked]
        return (
            '<div class="text" dir="auto" lang="">'
            f"{spans(self.text.text, parts, values, limit_of(values, parts), marked)}</div>"
        )


def pair(given: Mapping[str, Any], what: str) -> str:
    """Return an image, with its mark, beside its heatmap.

    Raises
    ------
    ValueError
        If it is not in the page.
    """
    source = str(needed(given, "src", what))
    if not source.startswith("data:image/png;base64,"):
        raise ValueError(
            f"got {what} with src={source[:40]!r}, expected data:image/png;base64,…: the page loads nothing"
        )
    picture = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).convert("RGB")
    relevance = as_array(needed(given, "relevance", what), f"relevance of {what}")
    if relevance.shape != picture.size[::-1]:
        raise ValueError(f"got {what} of {picture.size[::-1]} with relevance of {relevance.shape}, expected as many")
    large = picture.resize(
        [side * max(1, WIDE // min(picture.size)) for side in picture.size], Image.Resampling.NEAREST
    )
    drawn = imgify(relevance, large, patch=given.get("patch"))
    box = "" if given.get("marked") is None else boxed(given["marked"], picture.size)
    sides = (escaped(source), "the image"), (encoded(drawn), "its relevance")
    images = "".join(f'<div><img src="{address}" alt="{name}">{box}</div>' for address, name in sides)
    return f'<div class="pair">{images}</div>'


def boxed(marked: Sequence[float], size: tuple[int, int]) -> str:
    """Return a mark in an image."""
    shares = [100 * value / size[place % 2] for place, value in enumerate(marked)]
    style = ";".join(
        f"{name}:{share:.4g}%" for name, share in zip(("left", "top", "width", "height"), shares, strict=True)
    )
    return f'<span class="marked" style="{style}"></span>'


def encoded(picture: Image.Image) -> str:
    """Return an image as the address of a PNG."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
