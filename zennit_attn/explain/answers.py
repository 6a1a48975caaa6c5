"""Answers: a whole answer of a model, a row for each sentence or token of it, and where each came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..hints import nearest
from ..targets import Answer, Each, Label, Labels, Target
from .caught import caught_here
from .explanation import Explanation, with_warnings
from .parts import Array, Part, Row, Text
from .prompts import Source, source_of
from .questions import Question
from .reading import check_length, limit_of, moved, readable, shared_out, special_ids, specials, text_of
from .tasks import ANSWERING

#: Whatever a model's own settings say.
GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "return_dict_in_generate": False,
}
#: How many tokens an answer has at most, unless told.
LENGTH = 64
#: What may have a row of its own, beside the answer as a whole and its tokens.
ROWS = ("answer", "sentence", "line", "word", "token")


def question_of(
    explainer: Any,
    given: Any,
    answer: str | None,
    documents: Sequence[str] | Mapping[str, str] | None,
    image: Any,
    instead: str | None,
    max_new_tokens: int | None,
    rows: str,
    kind: type[Target] | None,
    chunk: int,
) -> Question:
    """Return what :meth:`zennit_attn.Explainer.answer` asks, with what was reported on the way."""
    if instead is not None and rows in ROWS[2:]:
        raise InputError(f"got instead with rows={rows!r}; expected none: the difference of two answers is one row")
    if instead is not None and kind is not None:
        raise InputError(
            f"got instead with target={kind.__name__}; expected none: the difference of two logits is that of their "
            "log-probabilities, and does not depend on other tokens"
        )
    with caught_here() as messages:
        source, ids, text = said(explainer, given, answer, documents, image, max_new_tokens, rows)
        if instead is None:
            whole = question(explainer, source, ids, text, rows, kind or Label, chunk)
        else:
            whole = rather(explainer, source, ids, text, *taken(explainer.tokenizer, source, instead))
    return replace(whole, finish=lambda *found: with_warnings(whole.finish(*found), messages))


def said(
    explainer: Any,
    given: Any,
    answer: str | None,
    documents: Sequence[str] | Mapping[str, str] | None,
    image: Any,
    max_new_tokens: int | None,
    rows: str,
) -> tuple[Source, list[int], Text]:
    """Return what an answer comes from, its tokens, and its text: that which was given, or that which the model makes.

    Raises
    ------
    InputError
        If the model is no language model, or something does not fit.
    """
    if explainer.task.name not in ANSWERING:
        raise InputError(
            f"got {explainer.name!r}, a {type(explainer.model).__name__}, for an answer; expected a model for "
            f"{', '.join(ANSWERING)}: ask this one by explainer({explainer.task.gives})"
        )
    if max_new_tokens is not None and max_new_tokens < 1:
        raise InputError(f"got max_new_tokens={max_new_tokens}, expected at least 1")
    if rows not in ROWS:
        raise InputError(f"got rows={rows!r}, expected one of {', '.join(ROWS)}; {nearest(rows, ROWS)}")
    source = source_of(explainer, given, documents, image)
    room = limit_of(explainer.model, explainer.tokenizer)
    check_length(len(source.prefix) + (max_new_tokens or 1), room, explainer.name)
    if "input_ids" in source.batch:
        # what an encoder reads
        check_length(source.batch["input_ids"].shape[1], room, explainer.name)
    if answer is not None:
        return source, *taken(explainer.tokenizer, source, answer)
    count = min(LENGTH, room - len(source.prefix)) if max_new_tokens is None else max_new_tokens
    ids = generated(explainer, source, count)
    return source, ids, answered(explainer.tokenizer, source.prefix, ids)


def question(
    explainer: Any, source: Source, ids: list[int], text: Text, rows: str, kind: type[Target], chunk: int
) -> Question:
    """Return the question for the tokens of an answer, in rows."""
    groups = [("", list(range(len(ids))))] if rows == "answer" else text.groups(rows)
    chosen = [Answer(ids, kind, indices) for _, indices in groups]
    about = explainer.about({"target": kind.__name__, "rows": rows})

    def made(logits: torch.Tensor, parts: tuple[Part, ...], inside: Array) -> Explanation:
        found = [row_of(text, indices, each, logits) for (_, indices), each in zip(groups, chosen, strict=True)]
        own = replace(text, name="answer").with_relevance(inside)
        return Explanation("answer", parts, tuple(found), own, about)

    return asked(explainer, source, ids, chosen, chunk, made)


def rather(explainer: Any, source: Source, ids: list[int], text: Text, other_ids: list[int], other: Text) -> Question:
    """Return why a model gives one answer rather than another: the two logits where they first differ.

    What is shared out is ``z_a - z_b``, which is ``log p_a - log p_b``, as both are of one softmax: a contrastive
    explanation, as of Yin and Neubig 2022 (https://arxiv.org/abs/2202.10419). From there on each answer goes on from
    another text, and the logits of two softmaxes cannot be compared.

    Raises
    ------
    InputError
        If one answer begins with all of the other.
    """
    pairs = zip(ids, other_ids, strict=False)
    place = next((number for number, (one, two) in enumerate(pairs) if one != two), None)
    if place is None:
        raise InputError(
            f"got the answers {text.text.strip()!r} and {other.text.strip()!r}, of which one begins with all of the "
            "other; expected two that differ in a token"
        )
    target = Labels([ids[place], other_ids[place]], [1, -1], position=-1)
    names = [each.text[slice(*each.spans[place])].strip() or each.tokens[place] for each in (text, other)]
    about = explainer.about({"target": repr(target), "rows": "answer", "rather_than": other.text})

    def made(logits: torch.Tensor, parts: tuple[Part, ...], inside: Array) -> Explanation:
        # what comes after the token was not read
        own = replace(text, name="answer").with_relevance(np.pad(inside, ((0, 0), (0, len(ids) - place - 1))))
        value = float(logits[0, -1, ids[place]].double() - logits[0, -1, other_ids[place]].double())
        row = Row(" rather than ".join(names), value, span=text.spans[place])
        return Explanation("answer", parts, (row,), own, about)

    return asked(explainer, source, ids[: place + 1], [target], 1, made)


def asked(
    explainer: Any,
    source: Source,
    ids: list[int],
    chosen: Sequence[Target],
    chunk: int,
    made: Callable[[torch.Tensor, tuple[Part, ...], Array], Explanation],
) -> Question:
    """Return a question for tokens that a model goes on with.

    Parameters
    ----------
    explainer, source, ids
        The model, what it goes on from, and the tokens.
    chosen : sequence of Target
        What is explained, a row each.
    chunk : int
        How many rows share a backward pass.
    made : callable
        ``(logits that predict the tokens, parts with their relevance, relevance of the tokens) -> Explanation``.
    """
    check_length(len(source.prefix) + len(ids), limit_of(explainer.model, explainer.tokenizer), explainer.name)
    unknown = explainer.unknown(torch.tensor([*source.prefix, *ids]))

    def finish(output: torch.Tensor, relevance: Mapping[str, torch.Tensor]) -> Explanation:
        found = {}
        for name, values in relevance.items():
            if name == "pixel_values" and source.mosaic is not None:
                found[name] = source.mosaic(values if len(chosen) > 1 else values[None])
            else:
                # a batch of one sample, after the rows where there are several
                found[name] = values[:, 0] if len(chosen) > 1 else values
        read = found[source.argument].detach().cpu().numpy()
        # the last token was not read: nothing went there
        inside = np.concatenate([read[:, len(source.prefix) :], np.zeros((len(chosen), 1), read.dtype)], 1)
        parts = [shared_out(name, part, found[name]) for name, part in source.parts.items()]
        if source.prompt is not None:
            parts.insert(0, source.prompt.with_relevance(read[:, : len(source.prefix)]))
        return replace(made(output[:, -len(ids) :], tuple(parts), inside), warnings=unknown)

    target = Each(chosen, chunk) if len(chosen) > 1 else chosen[0]
    return Question(source.arguments(ids), (source.argument, *source.parts), target, finish, len(ids))


def row_of(said: Text, indices: list[int], target: Answer, logits: torch.Tensor) -> Row:
    """Return what is explained of some tokens of an answer."""
    spans = [said.spans[index] for index in indices]
    span = (min(start for start, _ in spans), max(end for _, end in spans))
    label = said.text[slice(*span)] or said.tokens[indices[0]]
    predicted = [(target.of_token(index, logits[:, index]), logits[:, index]) for index in indices]
    value = sum(float((weights.double() * there.double()).sum()) for weights, there in predicted)
    if len(indices) > 1:
        return Row(label, value, span=span)
    index = target.tokens[indices[0]]
    return Row(label, value, index, float(logits[0, indices[0], index]), span)


def generated(explainer: Any, source: Source, count: int) -> list[int]:
    """Return the tokens by which a model goes on, greedily, without those that end its answer."""
    tokens = torch.tensor([source.prefix], device=explainer.device)
    given = moved(source.batch, explainer.model, explainer.device)
    given[source.argument] = tokens
    if source.argument == "input_ids":
        given["attention_mask"] = torch.ones_like(tokens)
    ends = explainer.tokenizer.pad_token_id, explainer.tokenizer.eos_token_id
    padding = next((token for token in ends if token is not None), None)
    # of settings for sampling, which there is none of
    with torch.no_grad(), caught_here():
        found = explainer.model.generate(**given, max_new_tokens=count, pad_token_id=padding, **GREEDY)
    new = [int(token) for token in found[0].tolist()]
    new = new[len(source.prefix) :] if new[: len(source.prefix)] == source.prefix else new
    own = special_ids(explainer.tokenizer)
    while new and new[-1] in own:
        new.pop()
    if not new:
        raise InputError("the model answered nothing; expected an answer: give one, or another prompt")
    return new


def answered(tokenizer: Any, before: list[int], ids: list[int]) -> Text:
    """Return the text of an answer's tokens, as they go on from a prompt."""
    last = before[-1:]
    beginning = tokenizer.decode(last)
    whole, spans, place, waiting = "", [], 0, 0
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode([*last, *ids[:count]])
        text = text[len(beginning) :] if text.startswith(beginning) else text
        # a letter of which bytes are missing yet
        end = max(place, len(text.rstrip("\ufffd")) if count < len(ids) else len(text))
        waiting += 1
        if end > place or count == len(ids):
            # all tokens that have bytes of it
            spans += [(place, end)] * waiting
            waiting = 0
        place, whole = end, text
    if not all(0 <= start <= end <= len(whole) for start, end in spans):
        return text_of(tokenizer, ids, "answer")
    return Text(whole, readable(tokenizer, ids), tuple(spans), specials(tokenizer, ids), "answer")


def taken(tokenizer: Any, source: Source, answer: str) -> tuple[list[int], Text]:
    """Return the tokens of an answer that was given, as they are in one text with the prompt.

    Raises
    ------
    InputError
        If there is no word in it.
    """
    if not answer.strip():
        raise InputError(f"got the answer {answer!r}, expected words")
    before = None if source.prompt is None else source.prompt.text
    if before is None:
        ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        return ids, answered(tokenizer, source.prefix, ids)
    # a space, where neither has one
    is_apart = before[-1:].isspace() or answer[:1].isspace() or source.prompt.special[-1]  # type: ignore[union-attr]
    text = answer if is_apart else f" {answer}"
    ids = tokenizer(before + text, add_special_tokens=source.special)["input_ids"]
    count = len(source.prefix)
    if ids[:count] == source.prefix and len(ids) > count:
        ids = ids[count:]
    else:
        # where they melt together, the answer's own tokens
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids, answered(tokenizer, source.prefix, ids)
