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
from .images import image_of
from .loading import first_line
from .mosaics import Patches, Tiles, mosaic_of
from .parts import Part, Segment, Text
from .reading import encoded, read_audio, shown, special_ids, text_of
from .units import Span

#: What a message of a chat is in here: a role, and a content that is a list of parts.
Message = Mapping[str, Any]


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
    mosaic : Patches, Tiles or None
        How an image is put together, where the model takes it in pieces.
    """

    prefix: list[int]
    argument: str = "input_ids"
    prompt: Text | None = None
    batch: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)
    special: bool = False
    mosaic: Patches | Tiles | None = None

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
    name, texts = explainer.task.name, named(documents)
    if name == "speech to text":
        if image is not None:
            raise no_image(explainer)
        reading = read_audio(explainer, given)
        parts = {key: part for key, part in reading.parts.items() if part is not None}
        return Source(beginning(explainer), "decoder_input_ids", None, reading.batch, parts)
    messages, images = ([], []) if isinstance(given, str) else checked(given)
    images = [*([] if image is None else [image]), *images]
    prompt = messages or given
    if (images or places_of_images(messages)) and name != "image and text to text":
        raise no_image(explainer)
    if places_of_images(messages) > len(images):
        raise InputError("got a message with an image that is not given; expected one in it, or as image=")
    if images:
        return with_image(explainer, prompt, texts, images)
    if name == "text to text":
        if messages:
            raise InputError(f"got messages for {explainer.name!r}, a model for text to text; expected a text")
        batch, text = encoded(explainer.tokenizer, with_documents(given, texts))
        text = replace(text, name="prompt", segments=placed(text.text, texts))
        return Source(beginning(explainer), "decoder_input_ids", None, dict(batch), {"input_ids": text})
    return prompt_of(explainer, prompt, texts)


def no_image(explainer: Any) -> InputError:
    """Return the error for an image that a model does not take."""
    return InputError(f"got an image for {explainer.name!r}, a {type(explainer.model).__name__}; it takes none")


def beginning(explainer: Any) -> list[int]:
    """Return the tokens that a decoder begins with."""
    own = getattr(explainer.tokenizer, "prefix_tokens", None) if explainer.task.name == "speech to text" else None
    if own:
        return [int(token) for token in own]
    start = explainer.model.config.decoder_start_token_id
    if start is None:
        start = explainer.model.generation_config.decoder_start_token_id
    # what every answer is made to begin with: a token as BART's, or that of a language
    forced = language_of(explainer, int(start))
    if forced is None:
        forced = explainer.model.generation_config.forced_bos_token_id
    return [int(start), *([] if forced is None else [int(forced)])]


def language_of(explainer: Any, start: int) -> int | None:
    """Return the token of the language that a model is to translate to, None where it needs none.

    Raises
    ------
    InputError
        If it needs one, and there is none, or none of that name.
    """
    tokenizer = explainer.tokenizer
    usual = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    # a decoder may begin with the language, as that of a model for one does
    if not hasattr(tokenizer, "tgt_lang") or start not in usual:
        return None
    name = tokenizer.tgt_lang
    if name is None and explainer.model.generation_config.forced_bos_token_id is not None:
        return None
    code = getattr(tokenizer, "lang_code_to_token", {}).get(name, name)
    found = None if name is None else tokenizer.convert_tokens_to_ids(code)
    if found is None or found == tokenizer.unk_token_id:
        raise InputError(
            f"got the language {name!r} for {explainer.name!r}, which translates to several; expected one as its "
            f"tokenizer writes it: explainer.tokenizer.tgt_lang = {tokenizer.src_lang!r}"
        )
    return int(found)


def with_image(explainer: Any, given: str | list[Message], documents: Mapping[str, str], images: list[Any]) -> Source:
    """Return what a model answers from that looks at an image.

    Raises
    ------
    InputError
        If there are several images, no place for the image, or the model takes it in pieces that are no picture.
    """
    if len(images) > 1:
        raise InputError(f"got {len(images)} images, expected one: in a message, or as image=")
    place = getattr(explainer.reader, "image_token", None)
    if isinstance(given, str):
        messages: list[Message] = []
        text, _ = put_before(explainer, given, documents)
        if place is not None and place not in text:
            raise InputError(
                f"got an image with a text that has no place for it; expected {place!r} where the image stands, or "
                'messages, as [{"role": "user", "content": "..."}]'
            )
    else:
        messages = with_documents_before(given, documents)
        if not places_of_images(messages):
            messages[-1] = {**messages[-1], "content": [{"type": "image"}, *messages[-1]["content"]]}
        text = rendered(explainer, messages)
    # a template may have begun the text already
    first = getattr(explainer.tokenizer, "bos_token", None)
    options = {"add_special_tokens": False} if first and text.startswith(first) else {}
    picture = image_of(images[0])
    batch = dict(explainer.reader(text=text, images=picture, return_tensors="pt", **options))
    ids = batch.pop("input_ids")[0].tolist()
    batch.pop("attention_mask", None)
    pixels, mosaic = batch["pixel_values"], None
    if pixels.dim() != 4 or len(pixels) != 1:
        mosaic = mosaic_of(explainer, batch, picture.size[::-1])
        pixels = mosaic(pixels[None], mean=True)
    prompt = text_of(explainer.tokenizer, ids, "prompt")
    prompt = replace(prompt, segments=segments_of(prompt.text, messages, documents))
    return Source(ids, "input_ids", prompt, batch, {"pixel_values": shown(pixels[0])}, mosaic=mosaic)


def named(documents: Sequence[str] | Mapping[str, str] | None) -> dict[str, str]:
    """Return documents by their names, or by their numbers."""
    if isinstance(documents, Mapping):
        return dict(documents)
    if isinstance(documents, str):
        raise InputError(f"got the documents {documents!r}, expected a list of texts, or texts by name")
    return {f"document {number}": text for number, text in enumerate(documents or (), 1)}


def prompt_of(explainer: Any, given: str | list[Message], documents: Mapping[str, str]) -> Source:
    """Return the prompt of a text, or of the messages of a chat."""
    messages: list[Message] = []
    if isinstance(given, str):
        text, is_rendered = put_before(explainer, given, documents)
        if template_of(explainer) is not None and not is_rendered:
            warnings.warn(
                "got a text for a model that was trained on chats, which takes it as the beginning of a page; expected "
                'messages, as in answer([{"role": "user", "content": "..."}])',
                UserWarning,
                stacklevel=2,
            )
    else:
        messages, is_rendered = with_documents_before(given, documents), True
        text = rendered(explainer, messages)
    # what is rendered has its special tokens, and would get them twice
    batch, read = encoded(explainer.tokenizer, text, special=not is_rendered)
    read = replace(read, name="prompt", segments=segments_of(read.text, messages, documents))
    return Source(batch["input_ids"][0].tolist(), prompt=read, special=not is_rendered)


def template_of(explainer: Any) -> Any:
    """Return the tokenizer or processor that has a template for chats, None if neither has."""
    return next(
        (each for each in (explainer.reader, explainer.tokenizer) if getattr(each, "chat_template", None)), None
    )


def rendered(explainer: Any, messages: list[Message]) -> str:
    """Return the text that a model's template makes of messages.

    Templates of models that see take parts, in some messages or in all; the others take texts.

    Raises
    ------
    InputError
        If there is no template, or it refuses or drops a message.
    """
    reader = template_of(explainer)
    if reader is None:
        raise InputError(
            "got messages for a model whose tokenizer has no chat template; expected a text, with the roles as the "
            "model knows them"
        )
    sees = explainer.task.name == "image and text to text"
    made = [message if sees else as_text(message) for message in messages]
    lost, why = list(range(len(messages))), "no message"
    for _ in range(2):
        try:
            text = str(reader.apply_chat_template(made, tokenize=False, add_generation_prompt=True))
            lost = lost_in(text, messages) if sees else []
            why = "it drops words of them"
        # templates raise errors of their own, and whatever parts run into that are taken for texts
        except Exception as error:
            why = first_line(str(error))
        if not lost:
            return text
        made = [
            as_text(message) if number in lost and not places_of_images([message]) else message
            for number, message in enumerate(messages)
        ]
    raise InputError(
        f"the chat template of {explainer.name!r} does not take the messages of "
        f"{', '.join(str(messages[number]['role']) for number in lost)} ({why}); expected roles and an order that it "
        "knows"
    )


def lost_in(text: str, messages: list[Message]) -> list[int]:
    """Return which messages a template did not take: they are not in its text, or as Python writes a list."""
    # as in [{'type': 'text', 'text': '...'}]
    there = [
        number for number, (start, _) in found_in(text, messages) if not text[: max(start - 1, 0)].endswith("'text': ")
    ]
    return [number for number, message in enumerate(messages) if texts_of(message) and number not in there]


def put_before(explainer: Any, given: str, documents: Mapping[str, str]) -> tuple[str, bool]:
    """Return a text with documents before it, and whether a template made it already.

    Raises
    ------
    InputError
        If it did, and a document is not in it: before the text it would stand outside of all messages.
    """
    # where an image stands is written by people
    own = {getattr(explainer.reader, "image_token", None)}
    if not any(token in given for token in markers(explainer.tokenizer) if token not in own):
        return with_documents(given, documents), False
    for name, content in documents.items():
        if content.strip() not in given:
            raise InputError(
                f"got documents with a text that a template made already, and {name!r} is not in it; expected "
                "messages, before the last of which they are put, or a text that has them where they are to be read"
            )
    return given, True


def markers(tokenizer: Any) -> list[str]:
    """Return the special tokens by which a text shows that it is rendered already."""
    unknown = getattr(tokenizer, "unk_token", None)
    tokens = tokenizer.convert_ids_to_tokens(sorted(special_ids(tokenizer)))
    return [token for token in tokens if token != unknown and len(token) > 1]


def checked(messages: Any) -> tuple[list[Message], list[Any]]:
    """Return the messages of a chat, each content as a list of parts, and the images in them.

    Raises
    ------
    InputError
        If there are none, or one has no role, or something else than texts and images.
    """
    if not messages or isinstance(messages, Mapping) or not isinstance(messages, Sequence):
        raise InputError('got no messages, expected some, as [{"role": "user", "content": "..."}]')
    made: list[Message] = []
    images: list[Any] = []
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list) or "role" not in message:
            raise InputError(f'got the message {message!r}, expected {{"role": "user", "content": "..."}}')
        kept = []
        for part in parts:
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind == "text" and isinstance(part.get("text"), str):
                kept.append({"type": "text", "text": part["text"]})
            elif kind == "image":
                kept.append({"type": "image"})
                images += [part[name] for name in ("image", "path") if part.get(name) is not None][:1]
            else:
                raise InputError(
                    f'got the part {part!r} of a message, expected {{"type": "text", "text": "..."}}, or '
                    '{"type": "image", "image": ...} with a file or an image'
                )
        made.append({**message, "content": kept})
    return made, images


def texts_of(message: Message) -> list[str]:
    """Return the texts of a message, as templates trim them."""
    texts = [part["text"].strip() for part in message["content"] if part["type"] == "text"]
    return [text for text in texts if text]


def places_of_images(messages: Sequence[Message]) -> int:
    """Return how many images messages have a place for."""
    return sum(part["type"] == "image" for message in messages for part in message["content"])


def as_text(message: Message) -> Message:
    """Return a message of which the content is a text."""
    return {**message, "content": "\n".join(part["text"] for part in message["content"])}


def with_documents(text: str, documents: Mapping[str, str]) -> str:
    """Return a text with documents before it."""
    return "\n\n".join([*documents.values(), text])


def with_documents_before(messages: list[Message], documents: Mapping[str, str]) -> list[Message]:
    """Return messages with documents at the beginning of the last one's text."""
    *before, last = messages
    parts = list(last["content"])
    place = next((number for number, part in enumerate(parts) if part["type"] == "text"), None)
    if documents:
        text = "" if place is None else parts.pop(place)["text"]
        parts.insert(len(parts) if place is None else place, {"type": "text", "text": with_documents(text, documents)})
    return [*before, {**last, "content": parts}]


def found_in(text: str, messages: Sequence[Message]) -> list[tuple[int, Span]]:
    """Return which messages are in a text that a template made of them, and where, from the last to the first."""
    found, place = [], len(text)
    # from the end, as templates may begin with words of their own
    for number, message in reversed(list(enumerate(messages))):
        start, end = place, 0
        for words in reversed(texts_of(message)):
            start = text.rfind(words, 0, start) if start >= 0 else start
            end = end or start + len(words)
        if end and start >= 0:
            found.append((number, (start, end)))
            place = start
    return found


def segments_of(text: str, messages: Sequence[Message], documents: Mapping[str, str]) -> tuple[Segment, ...]:
    """Return where the messages, and the documents in the last one or in a text alone, are in a prompt."""
    found = found_in(text, messages)
    said = tuple(Segment("message", str(messages[number]["role"]), span) for number, span in found[::-1])
    return (*said, *placed(text, documents, said[-1].span[0] if said else 0))


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
