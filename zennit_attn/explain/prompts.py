"""Prompts: texts, chats and documents as the tokens that a model goes on from, and what else it looks at.

Everything that an answer comes from is a :class:`Source`, whichever kind of model it is.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..errors import InputError
from .parts import Part, Segment, Text
from .reading import encoded, image_of, read_audio, shown, special_ids, text_of

Given = str | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Source:
    """What an answer comes from.

    Attributes
    ----------
    prefix : list of int
        The tokens that the answer goes on from.
    argument : str
        The argument by which the model takes them.
    prompt : Text or None
        Their text, where a person gave it.
    batch : dict
        What else the model takes.
    parts : dict of str to Part
        What of that is explained.
    special : bool
        Whether the tokenizer added its special tokens.
    """

    prefix: list[int]
    argument: str = "input_ids"
    prompt: Text | None = None
    batch: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)
    special: bool = False

    def arguments(self, ids: Sequence[int]) -> dict[str, Any]:
        """Return the arguments of the model for an answer, of which the last token is only said, and read by nobody."""
        tokens = torch.tensor([[*self.prefix, *ids[:-1]]])
        batch = {**self.batch, self.argument: tokens, "use_cache": False}
        for name, value in self.batch.items():
            # what is there for each token of the prompt: types, of which an answer has the first
            is_of_tokens = isinstance(value, torch.Tensor) and value.shape == (1, len(self.prefix))
            if is_of_tokens and self.argument == "input_ids":
                batch[name] = torch.nn.functional.pad(value, (0, tokens.shape[1] - value.shape[1]))
        if self.argument == "input_ids":
            batch["attention_mask"] = torch.ones_like(tokens)
        return batch


def takes(model: Any, argument: str) -> bool:
    """Tell whether a model's forward takes an argument."""
    return argument in inspect.signature(model.forward).parameters


def source_of(explainer: Any, given: Any, documents: Any, image: Any) -> Source:
    """Return what a model answers from, as its task has it.

    Raises
    ------
    InputError
        If something does not fit.
    """
    name = explainer.task.name
    if image is not None and name != "image and text to text":
        raise InputError(f"got an image for {explainer.name!r}, a {type(explainer.model).__name__}; it takes none")
    if image is not None:
        return with_image(explainer, given, documents, image)
    if name == "speech to text":
        reading = read_audio(explainer, given)
        parts = {key: part for key, part in reading.parts.items() if part is not None}
        return Source(beginning(explainer), "decoder_input_ids", None, reading.batch, parts)
    if name == "text to text":
        batch, text = encoded(explainer.tokenizer, with_documents(given, named(documents)))
        text = replace(text, name="prompt", segments=placed(text.text, named(documents)))
        return Source(beginning(explainer), "decoder_input_ids", None, dict(batch), {"input_ids": text})
    return prompt_of(explainer.tokenizer, given, documents)


def beginning(explainer: Any) -> list[int]:
    """Return the tokens that a decoder begins with."""
    own = getattr(explainer.tokenizer, "prefix_tokens", None) if explainer.task.name == "speech to text" else None
    start = explainer.model.config.decoder_start_token_id
    if start is None:
        start = explainer.model.generation_config.decoder_start_token_id
    # what every answer is made to begin with, as BART's
    forced = explainer.model.generation_config.forced_bos_token_id
    return [int(token) for token in own] if own else [int(start), *([] if forced is None else [int(forced)])]


def with_image(explainer: Any, given: Given, documents: Any, image: Any) -> Source:
    """Return what a model answers from that looks at an image.

    Raises
    ------
    InputError
        If the model takes it in pieces that are no picture.
    """
    if isinstance(given, str):
        text = with_documents(given, named(documents))
    else:
        *before, last = with_documents_before(checked(given), named(documents))
        content = [{"type": "image"}, {"type": "text", "text": last["content"]}]
        text = explainer.reader.apply_chat_template(
            [*before, {**last, "content": content}], tokenize=False, add_generation_prompt=True
        )
    batch = dict(explainer.reader(text=text, images=image_of(image), return_tensors="pt"))
    ids = batch.pop("input_ids")[0].tolist()
    batch.pop("attention_mask", None)
    pixels = batch["pixel_values"]
    if pixels.dim() != 4 or len(pixels) != 1:
        raise InputError(
            f"got pixel_values of shape {tuple(pixels.shape)}, which {explainer.name!r} takes in pieces; expected "
            "(1, channels, height, width): explain it in Python, with zennit_attn.InputXGradient"
        )
    prompt = text_of(explainer.tokenizer, ids, "prompt")
    said = () if isinstance(given, str) else spoken(prompt.text, [*before, last])
    place = said[-1].span[0] if said else 0
    prompt = replace(prompt, segments=(*said, *placed(prompt.text, named(documents), place)))
    return Source(ids, "input_ids", prompt, batch, {"pixel_values": shown(pixels[0])})


def named(documents: Sequence[str] | Mapping[str, str] | None) -> dict[str, str]:
    """Return documents by their names, or by their numbers."""
    if isinstance(documents, Mapping):
        return dict(documents)
    if isinstance(documents, str):
        raise InputError(f"got the documents {documents!r}, expected a list of texts, or texts by name")
    return {f"document {number}": text for number, text in enumerate(documents or (), 1)}


def prompt_of(tokenizer: Any, given: Given, documents: Sequence[str] | Mapping[str, str] | None) -> Source:
    """Return the prompt of a text, or of the messages of a chat."""
    template, texts = getattr(tokenizer, "chat_template", None), named(documents)
    messages: list[Mapping[str, Any]] = []
    if isinstance(given, str):
        text = with_documents(given, texts)
        is_rendered = any(token in text for token in markers(tokenizer))
        if template and not is_rendered:
            warnings.warn(
                "got a text for a model that was trained on chats, which takes it as the beginning of a page; expected "
                'messages, as in answer([{"role": "user", "content": "..."}])',
                UserWarning,
                stacklevel=2,
            )
    else:
        messages, is_rendered = with_documents_before(checked(given), texts), True
        if not template:
            raise InputError(
                "got messages for a model whose tokenizer has no chat template; expected a text, with the roles as the "
                "model knows them"
            )
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    # what is rendered has its special tokens, and would get them twice
    batch, read = encoded(tokenizer, text, special=not is_rendered)
    said = spoken(read.text, messages)
    read = replace(read, name="prompt", segments=(*said, *placed(read.text, texts, said[-1].span[0] if said else 0)))
    return Source(batch["input_ids"][0].tolist(), prompt=read, special=not is_rendered)


def markers(tokenizer: Any) -> list[str]:
    """Return the special tokens by which a text shows that it is rendered already."""
    unknown = getattr(tokenizer, "unk_token", None)
    tokens = tokenizer.convert_ids_to_tokens(sorted(special_ids(tokenizer)))
    return [token for token in tokens if token != unknown and len(token) > 1]


def checked(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages of a chat.

    Raises
    ------
    InputError
        If there are none, or one has no role or no text.
    """
    if not messages or isinstance(messages, Mapping):
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
    found, place = [], len(text)
    # from the end, as templates may begin with words of their own
    for message in reversed(messages):
        # templates trim
        content = message["content"].strip()
        start = text.rfind(content, 0, place)
        if content and start >= 0:
            found.append(Segment("message", str(message["role"]), (start, start + len(content))))
            place = start
    return tuple(found[::-1])


def placed(text: str, documents: Mapping[str, str], place: int = 0) -> tuple[Segment, ...]:
    """Return where documents are in a text, from a place on.

    Raises
    ------
    InputError
        If one is not there as it was given.
    """
    found = []
    for name, content in documents.items():
        body = content.strip()
        start = text.find(body, place)
        if not body or start < 0:
            raise InputError(f"got {name!r}, which is not in the prompt as it was given; expected a text of words")
        place = start + len(body)
        found.append(Segment("document", name, (start, place)))
    return tuple(found)
