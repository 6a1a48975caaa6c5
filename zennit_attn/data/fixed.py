"""Fixed: what a row asks of a model, as its arguments and what is explained of its output, whatever that becomes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..adapters import target_mask
from ..errors import InputError
from ..evaluation.features import Fixed, run
from ..explain.prompts import takes
from ..explain.reading import moved
from ..targets import Each
from .buckets import BatchExplainer
from .columns import ANSWERED, check_names


def asked_of(explain: BatchExplainer, row: Mapping[str, Any], length: int) -> tuple[dict[str, Any], Fixed]:
    """Return the model's arguments for a row, and what is explained of its output, as it is for the whole input.

    Raises
    ------
    InputError
        If something is missing, or does not fit.
    """
    check_names(row)
    question, explainer = explain.question(row), explain.explainer
    if isinstance(question.target, Each):
        raise InputError("got a row with several targets, expected one")
    batch = moved(question.batch, explainer.model, explainer.device)
    longest = max(question.lengths(), default=0)
    if longest > length:
        # the next word of a text may be that of its beginning
        if explainer.task.name != "next token" or row.get("target") is not None or set(row) & set(ANSWERED):
            raise InputError(
                f"got a text of {longest} tokens, expected at most {length}: each removal reads all of them"
            )
        batch = {key: value[:, :length] for key, value in batch.items()}
    if question.last and takes(explainer.model, "logits_to_keep"):
        batch["logits_to_keep"] = question.last
    with torch.no_grad():
        output = run(explainer.wrapped, batch)
    # of the logits that a text's end has, the last are wanted
    mask = None if "logits_to_keep" in batch else target_mask(explainer.wrapped, batch)
    fixed = Fixed.of(question.target, output, mask)
    if output.dim() == 3:
        # from the end, where the last positions are
        fixed.position = fixed.position - output.shape[1]
    return batch, fixed


def special_ids(tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens that a tokenizer adds by itself, which are never removed from a text."""
    # a word that is unknown is a word
    return tuple(sorted(set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}))
