"""Pages: an explanation as what :func:`zennit_attn.heatmap.page` draws."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .parts import Picture, Text

if TYPE_CHECKING:
    from .explanation import Explanation


def page_of(explanation: Explanation) -> dict[str, Any]:
    """Return what a page shows of an explanation of a text, of which the first is the prompt."""
    text, answer = explanation.text_part(), explanation.answer
    images = [part for part in explanation.parts if isinstance(part, Picture)]
    rows = []
    for number, row in enumerate(explanation.rows):
        within = 0.0 if answer is None else float(answer.relevance[number].sum())
        # texts and signals beside the prompt have a share, too
        rest = [float(part.relevance[number].sum()) for part in explanation.parts if part is not text]
        other = row.value - float(text.relevance[number].sum()) - within - sum(rest)
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
        "title": explanation.title(),
        "facts": facts_of(explanation),
        "prompt": text_of_page(text),
        "answer": None if answer is None else text_of_page(answer),
        "rows": rows,
        "images": [
            {"name": image.name, "src": encoded(image), "rows": [plane.tolist() for plane in image.relevance]}
            for image in images
        ],
    }


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
    """Return a text with the spans of its tokens and of its units."""
    units = {}
    for kind in text.kinds():
        names, spans = text.units(kind)
        units[kind] = [[*span, name] for name, span in zip(names, spans, strict=True)]
    return {
        "text": text.text,
        "tokens": [list(span) for span in text.spans],
        "labels": list(text.tokens),
        "units": units,
    }


def encoded(image: Picture) -> str:
    """Return an image as the address of a PNG."""
    pixels = (image.pixels.transpose(1, 2, 0) * 255).round().astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
