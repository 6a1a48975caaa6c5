"""Showing: a unit by its reference samples, each with what the unit saw in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..composites.registration import input_x_gradient
from ..data.columns import Files, question_of
from ..data.sources import source_of
from ..errors import InputError
from ..explain import Explainer, Explanation
from ..explain.pages import encoded, facts_of, joined, text_of_page
from ..explain.parts import Picture, Text
from ..explain.questions import OfEach, Question
from ..heatmap import samples
from ..heatmap.words import visible
from ..latents import Features
from .conditional import CondAttribution
from .references import Reference, References


def unit_page(
    references: References,
    latent: str,
    unit: int,
    explainer: Explainer,
    input: str | Path,
    features: Sequence[Features] = (),
    target: Any = None,
    contrastive: bool = False,
    within: str | Path | None = None,
) -> str:
    """Show a unit by the rows in which it is strongest, as a page of HTML.

    Each row has the heatmap of what reached its input through this unit alone, see :class:`CondAttribution`, and a mark
    at the position at which the unit is strongest.

    Parameters
    ----------
    references : References
        What :class:`RelMax` or :class:`ActMax` found.
    latent : str
        Such as ``"model.layers.1.head"``.
    unit : int
        Number of the unit.
    explainer : Explainer
        The model, with the rules that it was looked through with.
    input : str or pathlib.Path
        The rows that it was looked through.
    features : sequence of Features, optional
        Sparse autoencoders, of which the unit may be one's feature.
    target : Any, optional
        Target of rows that have none of their own.
    contrastive : bool, optional
        Whether the logit minus the mean of all others is explained.
    within : str or pathlib.Path, optional
        Which files rows may name, by default those in the folder of the input.

    Returns
    -------
    str
        One file that loads nothing, to be written in UTF-8.

    Raises
    ------
    InputError
        If the unit is strong in no row, or the model or the rows are others.

    Examples
    --------
    >>> from zennit_attn import Explainer
    >>> from zennit_attn.concepts import open_references, unit_page
    >>> found, explainer = open_references("references"), Explainer("examples/models/agreement")  # doctest: +SKIP
    >>> page = unit_page(found, "model.layers.1.head", 2, explainer, "examples/texts.jsonl")  # doctest: +SKIP
    """
    source = source_of(Path(input))
    files = Files(source.folder, Path(source.folder if within is None else within))
    check(references, explainer, f"{source.path.name} {source.digest()}")
    found = references.of(latent, unit)
    of, sign = references.settings["of"], references.settings["sign"]
    if not found:
        raise InputError(f"got the unit {unit} of {latent!r}, which has no {sign} {of} in any row; choose another one")
    cards = []
    facts: dict[str, str] = {}
    for each in found:
        answer = {"rows": "answer", "max_new_tokens": references.settings["max_new_tokens"]}
        question = question_of(explainer, source.one(each.row), files, target, contrastive, answer)
        explanation, at_unit = through(explainer, question, latent, unit, features)
        facts = facts or facts_of(explanation)
        cards.append(card(explanation, each, of, at_unit))
    # each row may have one of its own
    facts.pop("target", None)
    layer, _, kind = latent.rpartition(".")
    by = {"max": "its strongest position", "sum": "the sum over positions"}[references.settings["by"]]
    return samples(
        {
            "title": f"{kind} {unit} of {layer or explainer.name}: the rows of its {adjective(sign)} {of}",
            "mark": f"here the unit's {of} is strongest",
            "facts": {**facts, "rows": f"{references.settings['rows']}, each by {by}", "input": source.path.name},
            "samples": cards,
        }
    )


def adjective(sign: str) -> str:
    """Return which values a sign looks for."""
    return {"positive": "largest", "negative": "most negative", "both": "strongest"}[sign]


def check(references: References, explainer: Explainer, input: str) -> None:
    """Raise InputError if a folder is of another model, other rules or another input."""
    about = explainer.about({})
    pairs = {name: (references.about.get(name), about[name]) for name in ("digest", "composite")}
    pairs["input"] = references.settings["input"], input
    for name, (before, now) in pairs.items():
        if before != now:
            raise InputError(
                f"got references with {name}={before!r} for {now!r}, expected the model, the rules and the rows that "
                "they were found with"
            )


def through(
    explainer: Explainer, question: Question, latent: str, unit: int, features: Sequence[Features] = ()
) -> tuple[Explanation, Tensor]:
    """Return the explanation of what reaches the input through one unit, and the relevance at the latent.

    Raises
    ------
    InputError
        If the model takes something else than texts and images.
    """
    batch = explainer.batch_of([question])
    condition = {latent: [unit], CondAttribution.MODEL_OUTPUT_NAME: OfEach([question], explainer.model, batch)}
    composite = input_x_gradient(explainer.composite)
    relevance, output, at_unit = dict[str, Tensor](), torch.zeros(()), torch.zeros(())
    for name in question.arguments:
        if explainer.is_plain:
            asking, given = CondAttribution(explainer.wrapped, features=features), batch[name]
        else:
            asking, given = CondAttribution(explainer.wrapped, explainer.task.output, name, features), batch
        with explainer.refusals():
            found = asking(given, [condition], composite)
        output, at_unit = found.prediction, found.relevances[latent]
        # summed over colours
        relevance[name] = found.heatmap[:, None] if batch[name].dim() == 4 else found.heatmap
    explanation = question.finish(output, relevance)
    if not all(isinstance(part, (Text, Picture)) for part in explanation.parts):
        raise InputError(f"pages of units are of texts and images, got {explainer.task.name}; expected another model")
    return explanation, at_unit


def card(explanation: Explanation, reference: Reference, of: str, at_unit: Tensor) -> dict[str, Any]:
    """Return a row as :func:`zennit_attn.heatmap.samples` takes it."""
    texts = [part for part in explanation.parts if isinstance(part, Text)]
    place, shown = f"position {reference.position}", dict[str, Any]()
    if texts:
        text = joined(texts)
        is_there = reference.position < len(text.tokens)
        if is_there:
            place = f"“{visible(text.tokens[reference.position])}”"
        marked = reference.position if is_there else None
        shown["text"] = {**text_of_page(text), "relevance": text.relevance.sum(0), "marked": marked}
    else:
        (image,) = (part for part in explanation.parts if isinstance(part, Picture))
        patch = explanation.about.get("patch")
        shown["image"] = {
            "src": encoded(image),
            "relevance": image.relevance.sum(0),
            "patch": None if patch is None or np.mod(image.pixels.shape[1:], patch).any() else patch,
            "marked": patch_at(reference.position, at_unit.shape[1], image.pixels.shape[1:], patch),
        }
        place += ", which is no patch" * (patch is not None and shown["image"]["marked"] is None)
    said = "" if of == "relevance" else f"; relevance {float(at_unit.sum()):+.3g}"
    note = f"at {place}{said}; explained: {explanation.title()}"
    return {"title": f"row {reference.row}", "score": reference.score, "note": note, **shown}


def patch_at(position: int, tokens: int, size: Sequence[int], patch: int | None) -> list[int] | None:
    """Return the box of a patch, as [left, top, width, height]; None if the position is of none, or it is not known."""
    if patch is None:
        return None
    high, wide = (side // patch for side in size)
    # a class token and others stand before the patches
    row, column = divmod(position - (tokens - high * wide), wide)
    return [column * patch, row * patch, patch, patch] if tokens >= high * wide and 0 <= row < high else None
