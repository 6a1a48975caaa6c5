"""Pages: an explanation as what :func:`zennit_attn.heatmap.page` draws."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .parts import Picture, Segment, Text
from .units import UNITS, Span

if TYPE_CHECKING:
    from .explanation import Explanation


def page_of(explanation: Explanation) -> dict[str, Any]:
    """Return what a page shows of an explanation that has a text."""
    text = joined([part.folded() for part in explanation.parts if isinstance(part, Text)])
    answer = explanation.answer
    images = [part for part in explanation.parts if isinstance(part, Picture)]
    rows = []
    for number, row in enumerate(explanation.rows):
        within = 0.0 if answer is None else float(answer.relevance[number].sum())
        other = row.value - within - sum(float(part.relevance[number].sum()) for part in explanation.parts)
        relevance = text.relevance[number].tolist()
        span = None if answer is None else row.span
        rows.append(
            {
                "label": row.label,
                "span": span,
                "value": row.value,
                "relevance": relevance,
                "within": within,
                "other": other,
            }
        )
    return {
        "title": explanation.title() if answer is None else "Why this answer?",
        "facts": facts_of(explanation),
        "prompt": text_of_page(text),
        "answer": None if answer is None else text_of_page(answer),
        "rows": rows,
        "images": [
            {"name": image.name, "src": encoded(image), "rows": [plane.tolist() for plane in image.relevance]}
            for image in images
        ],
    }


def joined(texts: Sequence[Text]) -> Text:
    """Return texts as one, one below the other, each of which is a unit."""
    if len(texts) == 1:
        return texts[0]
    whole, spans, segments = "", [], []
    for text in texts:
        start = len(whole) + 2 * bool(whole)
        whole += "\n\n" * bool(whole) + text.text
        spans += [(first + start, last + start) for first, last in text.spans]
        segments.append(Segment("text", text.name, (start, len(whole))))
    return Text(
        whole,
        tuple(token for text in texts for token in text.tokens),
        tuple(spans),
        tuple(own for text in texts for own in text.special),
        "prompt",
        tuple(segments),
        np.concatenate([text.relevance for text in texts], 1),
    )


def facts_of(explanation: Explanation) -> dict[str, str]:
    """Return what an explanation depends on, as it is to be read."""
    about = explanation.about
    found = {
        name: about.get(name) for name in ("model", "revision", "digest", "composite", "target", "dtype", "device")
    }
    versions = ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items())
    found |= {"task": explanation.task, "made with": versions, "warnings": "; ".join(explanation.warnings)}
    return {name: str(value) for name, value in found.items() if value}


def text_of_page(text: Text) -> dict[str, Any]:
    """Return a text with the spans of its tokens and of its units.

    The tokenizer's own tokens, as those of a chat's template, are not in the text, but beside it: a page leaves those
    out of its scale.
    """
    own = [False] * len(text.text)
    for span, special in zip(text.spans, text.special, strict=True):
        if special:
            own[slice(*span)] = [True] * (span[1] - span[0])
    # where each character is without them
    places = [0, *accumulate(not hidden for hidden in own)]

    def moved(span: Span) -> list[int]:
        return [places[span[0]], places[span[1]]]

    units = {}
    # the first is shown first
    for kind in sorted(text.kinds(), key=lambda kind: kind != "word"):
        named = zip(*text.units(kind), strict=True)
        # a word is called what it says, and need not be called twice
        is_named = kind != "token" and kind not in UNITS
        units[kind] = [
            [*moved(span), name if is_named else ""] for name, span in named if places[span[0]] < places[span[1]]
        ]
    return {
        "text": "".join(letter for letter, hidden in zip(text.text, own, strict=True) if not hidden),
        "tokens": [moved(span) for span in text.spans],
        "labels": list(text.tokens),
        "units": units,
    }


def encoded(image: Picture) -> str:
    """Return an image as the address of a PNG."""
    pixels = (image.pixels.transpose(1, 2, 0) * 255).round().astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
