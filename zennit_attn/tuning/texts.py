"""Texts: rows of a file as the samples of a study, padded to one length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..composites.configuration import require_known
from ..data.buckets import BatchExplainer
from ..data.fixed import asked_of, special_ids
from ..data.sources import source_of
from ..errors import InputError
from ..evaluation.features import Fixed, run, select
from ..explain.questions import collated
from ..explain.reading import padding_of
from .samples import SPLITS, Samples, Subject, split, whole

KEYS = ("texts", "length", *SPLITS, "seed")
#: How many tokens of a text are read.
LENGTH = 48
#: How many are read at once only to see that padding changes nothing.
CHUNK = 8


def read_texts(table: Mapping[str, Any], subject: Subject, folder: Path, source: str) -> tuple[Samples, Samples]:
    """Return the texts to tune on, and those to test on.

    Parameters
    ----------
    table : mapping
        ``texts``: a file of rows, as ``zennit-attn explain --input`` takes them; ``length``: how many tokens are read
        of each (default 48); the numbers ``tune`` and ``test``; and the ``seed`` of the split (default 0).
    subject : Subject
        The model.
    folder : pathlib.Path
        Where the file is looked for.
    source : str
        The study, for errors.

    Raises
    ------
    ValueError, TypeError
        If there are too few texts, a row does not fit, or the model has to be one by name.
    """
    require_known("key of [data]", table, KEYS, source)
    if subject.explainer is None:
        raise ValueError(f"{source} got texts for the model {subject.name!r}, expected one by name, or its folder")
    counts = [whole(table, name, source) for name in SPLITS]
    length, seed = whole(table, "length", source, LENGTH, 2), whole(table, "seed", source, 0, 0)
    rows = source_of(folder / table["texts"])
    explain = BatchExplainer(subject.explainer, folder=rows.folder)
    tune, test = (
        together(explain, [asked_of(explain, rows.one(index), length) for index in part])
        for part in split(len(rows), counts, seed, f"{source} got {len(rows)} texts")
    )
    return tune, test


def together(explain: BatchExplainer, asked: Sequence[tuple[dict[str, Any], Fixed]]) -> Samples:
    """Return texts as samples, padded at their end to one length.

    Raises
    ------
    InputError
        If they are not of one kind, or the model makes something else of a padded text.
    """
    model, tokenizer = explain.explainer.wrapped, explain.explainer.tokenizer
    # of padded texts, the last positions are not all at one place
    batches = [{name: value for name, value in batch.items() if name != "logits_to_keep"} for batch, _ in asked]
    if len({tuple(batch) for batch in batches}) > 1 or "input_ids" not in batches[0]:
        raise InputError(f"got rows that become {sorted({tuple(batch) for batch in batches})}, expected texts alone")
    targets = [target for _, target in asked]
    # from the beginning, where padding at the end leaves them
    places = [
        target.position % batch["input_ids"].shape[1]
        for batch, target in zip(batches, targets, strict=True)
        if target.position is not None
    ]
    fixed = Fixed(torch.cat([target.shares for target in targets]), torch.cat(places) if places else None)
    samples = Samples(collated(batches, padding_of(tokenizer)), fixed, keep=special_ids(tokenizer))
    # of one length, they are padded with nothing
    if len({tuple(value.shape for value in batch.values() if isinstance(value, Tensor)) for batch in batches}) > 1:
        refuse_padding(model, samples, asked)
    return samples


@torch.no_grad()
def refuse_padding(model: torch.nn.Module, samples: Samples, asked: Sequence[tuple[dict[str, Any], Fixed]]) -> None:
    """Raise InputError if a model makes something else of a text with padding than of the same one alone."""
    parts = torch.arange(len(samples), device=samples.target.shares.device).split(CHUNK)
    found = torch.cat(
        [samples.target.at(rows).score(run(model, select(samples.batch, rows))) for rows in parts]
    ).double()
    alone = torch.cat([target.score(run(model, batch)) for batch, target in asked]).double()
    # rounding is far below
    allowed = torch.finfo(samples.target.shares.dtype).eps ** 0.5 * float(alone.abs().max())
    if bool(((found - alone).abs() > allowed).any()):
        raise InputError(
            f"got texts of several lengths for {type(model).__name__}, of which padding changes the output; expected "
            "texts of at least 'length' tokens each"
        )
