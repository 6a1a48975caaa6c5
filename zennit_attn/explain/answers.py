"""Answers: a whole answer of a language model, its rows, and the prompt, chat and documents that it came from."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..hints import nearest
from ..targets import Answer, Each, Label, Target
from .explanation import Explanation
from .parts import Row, Segment, Text
from .reading import check_length, encoded, limit_of, moved, readable, specials, text_of
from .units import Span

#: What may have a row of its own, beside the answer as a whole and its tokens.
ROWS = ("answer", "sentence", "line", "word", "token")


@dataclass(frozen=True)
class Prompt:
    """What a model goes on from.

    Attributes
    ----------
    ids : list of int
        Its tokens.
    text : Text
        Its text, with messages and documents.
    special : bool
        Whether the tokenizer added its special tokens.
    """

    ids: list[int]
    text: Text
    special: bool


def explain(
    explainer: Any,
    given: str | Sequence[Mapping[str, Any]],
    answer: str | None,
    documents: Sequence[str] | Mapping[str, str] | None,
    instead: str | None,
    max_new_tokens: int,
    rows: str,
    kind: type[Target] | None,
    chunk: int,
) -> Explanation:
    """Explain an answer, see :meth:`zennit_attn.Explainer.answer`."""
    if explainer.task.name != "next token":
        raise InputError(
            f"got {explainer.name!r}, a {type(explainer.model).__name__}, for an answer; expected a causal language "
            f"model: ask it by explainer({explainer.task.gives})"
        )
    if rows not in ROWS:
        raise InputError(f"got rows={rows!r}, expected one of {', '.join(ROWS)}; {nearest(rows, ROWS)}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prompt = prompt_of(explainer.tokenizer, given, documents)
        limit = limit_of(explainer.model, explainer.tokenizer)
        check_length(len(prompt.ids) + (max_new_tokens if answer is None else 0), limit, explainer.name)
        if answer is None:
            ids = generated(explainer, prompt.ids, max_new_tokens)
            said = answered(explainer.tokenizer, prompt.ids, ids)
        else:
            ids, said = taken(explainer.tokenizer, prompt, answer)
        found = of_ids(explainer, prompt, ids, said, rows, kind or Label, chunk)
        if instead is not None:
            other_ids, other = taken(explainer.tokenizer, prompt, instead)
            found = found.minus(of_ids(explainer, prompt, other_ids, other, "answer", kind or Label, chunk))
    messages = explainer.messages(caught, torch.tensor(prompt.ids))
    return replace(found, warnings=messages)


def of_ids(
    explainer: Any, prompt: Prompt, ids: list[int], said: Text, rows: str, kind: type[Target], chunk: int
) -> Explanation:
    """Explain the tokens of an answer, in rows."""
    check_length(len(prompt.ids) + len(ids), limit_of(explainer.model, explainer.tokenizer), explainer.name)
    groups = [("", list(range(len(ids))))] if rows == "answer" else said.groups(rows)
    chosen = [Answer(ids, kind, indices) for _, indices in groups]
    # the last token is only said, and read by nobody
    tokens = torch.tensor([[*prompt.ids, *ids[:-1]]])
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "use_cache": False}
    if takes(explainer.model, "logits_to_keep"):
        batch["logits_to_keep"] = len(ids)
    batch = moved(batch, explainer.model, explainer.device)
    target = Each(chosen, chunk) if len(chosen) > 1 else chosen[0]
    output, relevance = explainer.attribute(batch, target, ("input_ids",))
    values = relevance["input_ids"].detach().cpu().numpy().reshape(len(chosen), -1)
    logits = output.logits.detach()[:, -len(ids) :]
    made = []
    for (_, indices), each in zip(groups, chosen, strict=True):
        weights = each.weights(logits)
        spans = [said.spans[index] for index in indices]
        span: Span = (min(start for start, _ in spans), max(end for _, end in spans))
        index = ids[indices[0]] if len(indices) == 1 else None
        made.append(
            Row(
                said.text[slice(*span)] or said.tokens[indices[0]],
                float((weights.double() * logits.double()).sum()),
                index,
                None if index is None else float(logits[0, indices[0], index]),
                span,
            )
        )
    # the last token was not read: nothing went there
    inside = np.concatenate([values[:, len(prompt.ids) :], np.zeros((len(chosen), 1), values.dtype)], 1)
    about = explainer.about({"target": kind.__name__, "rows": rows})
    return Explanation(
        "answer",
        (prompt.text.with_relevance(values[:, : len(prompt.ids)]),),
        tuple(made),
        replace(said, name="answer").with_relevance(inside),
        about,
    )


def takes(model: Any, argument: str) -> bool:
    """Tell whether a model's forward takes an argument."""
    return argument in inspect.signature(model.forward).parameters


# prompts


def prompt_of(
    tokenizer: Any, given: str | Sequence[Mapping[str, Any]], documents: Sequence[str] | Mapping[str, str] | None
) -> Prompt:
    """Return the prompt of a text, or of the messages of a chat."""
    template = getattr(tokenizer, "chat_template", None)
    named = dict(documents) if isinstance(documents, Mapping) else None
    if named is None:
        named = {f"document {number}": text for number, text in enumerate(documents or (), 1)}
    if isinstance(given, str):
        text = with_documents(given, named)
        is_rendered = any(token in text for token in markers(tokenizer))
        if template and not is_rendered:
            warnings.warn(
                "got a text for a model that was trained on chats, which takes it as the beginning of a page; expected "
                'messages, as in answer([{"role": "user", "content": "..."}])',
                UserWarning,
                stacklevel=2,
            )
        messages: list[Mapping[str, Any]] = []
    else:
        messages = with_documents_before(checked(given), named)
        if not template:
            raise InputError(
                "got messages for a model whose tokenizer has no chat template; expected a text, with the roles as the "
                "model knows them"
            )
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        is_rendered = True
    # what is rendered has its special tokens, and would get them twice
    batch, read = encoded(tokenizer, text, special=not is_rendered)
    segments = (*spoken(read.text, messages), *placed(read.text, named))
    return Prompt(batch["input_ids"][0].tolist(), replace(read, name="prompt", segments=segments), not is_rendered)


def markers(tokenizer: Any) -> list[str]:
    """Return the special tokens by which a text shows that it is rendered already."""
    unknown = getattr(tokenizer, "unk_token", None)
    return [token for token in tokenizer.all_special_tokens if token != unknown and len(token) > 1]


def checked(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages of a chat.

    Raises
    ------
    InputError
        If there are none, or one has no role or no text.
    """
    if not messages:
        raise InputError('got no messages, expected some, as [{"role": "user", "content": "..."}]')
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str) or "role" not in message:
            raise InputError(f'got the message {message!r}, expected {{"role": "user", "content": "..."}}')
    return [dict(message) for message in messages]


def with_documents(text: str, documents: Mapping[str, str]) -> str:
    """Return a text with documents before it."""
    return "\n\n".join([*documents.values(), text])


def with_documents_before(messages: list[dict[str, Any]], documents: Mapping[str, str]) -> list[Mapping[str, Any]]:
    """Return messages with documents at the beginning of the last one."""
    *before, last = messages
    return [*before, {**last, "content": with_documents(last["content"], documents)}]


def spoken(text: str, messages: Sequence[Mapping[str, Any]]) -> tuple[Segment, ...]:
    """Return where the messages are in a text that a template made of them."""
    found, place = [], 0
    for message in messages:
        # templates trim
        content = message["content"].strip()
        start = text.find(content, place)
        if content and start >= 0:
            place = start + len(content)
            found.append(Segment("message", str(message["role"]), (start, place)))
    return tuple(found)


def placed(text: str, documents: Mapping[str, str]) -> tuple[Segment, ...]:
    """Return where documents are in a text.

    Raises
    ------
    InputError
        If one is not there as it was given.
    """
    found, place = [], 0
    for name, content in documents.items():
        body = content.strip()
        start = text.find(body, place)
        if not body or start < 0:
            raise InputError(f"got {name!r}, which is not in the prompt as it was given; expected a text of words")
        place = start + len(body)
        found.append(Segment("document", name, (start, place)))
    return tuple(found)


# answers


def generated(explainer: Any, ids: list[int], count: int) -> list[int]:
    """Return the tokens by which a model goes on, greedily, without those that end its answer."""
    tokens = torch.tensor([ids], device=explainer.device)
    with torch.no_grad():
        found = explainer.model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=count, do_sample=False
        )
    new = found[0, len(ids) :].tolist()
    while new and new[-1] in explainer.tokenizer.all_special_ids:
        new.pop()
    if not new:
        raise InputError("the model answered nothing; expected an answer: give one, or another prompt")
    return [int(token) for token in new]


def answered(tokenizer: Any, before: list[int], ids: list[int]) -> Text:
    """Return the text of an answer's tokens, as they go on from a prompt."""
    last = before[-1:]
    beginning = tokenizer.decode(last)
    whole, spans, place = "", [], 0
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode([*last, *ids[:count]])
        text = text[len(beginning) :] if text.startswith(beginning) else text
        # a letter of which bytes are missing yet
        end = len(text.rstrip("\ufffd")) if count < len(ids) else len(text)
        spans.append((place, max(place, end)))
        place, whole = max(place, end), text
    if not all(0 <= start <= end <= len(whole) for start, end in spans):
        return text_of(tokenizer, ids, "answer")
    return Text(whole, readable(tokenizer, ids), tuple(spans), specials(tokenizer, ids), "answer")


def taken(tokenizer: Any, prompt: Prompt, answer: str) -> tuple[list[int], Text]:
    """Return the tokens of an answer that was given, as they are in one text with the prompt.

    Raises
    ------
    InputError
        If there is no word in it.
    """
    if not answer.strip():
        raise InputError(f"got the answer {answer!r}, expected words")
    before = prompt.text.text
    # a space, where neither has one
    text = answer if before[-1:].isspace() or answer[:1].isspace() or prompt.text.special[-1] else f" {answer}"
    ids = tokenizer(before + text, add_special_tokens=prompt.special)["input_ids"]
    count = len(prompt.ids)
    if ids[:count] == prompt.ids and len(ids) > count:
        ids = ids[count:]
    else:
        # where they melt together, the answer's own tokens
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids, answered(tokenizer, prompt.ids, ids)
