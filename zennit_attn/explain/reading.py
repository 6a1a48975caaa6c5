"""Reading: what a person gives, as the arguments of a model and as parts to be shown with their relevance."""

from __future__ import annotations

import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import heatmap
from ..errors import InputError
from ..files import check_file
from .images import image_of
from .loading import refused
from .parts import Part, Picture, Segment, Signal, Text
from .units import Span

# tokenizers that have no limit say so by a huge one
NO_LIMIT = 10**9
#: What no model takes of audio: more than two hours at 16 kHz.
MOST_SAMPLES = 2**27
#: Types of samples by their bytes.
WIDTHS = {1: "u1", 2: "<i2", 4: "<i4"}


@dataclass(frozen=True)
class Reading:
    """What a model is called with, and what is shown of it.

    Attributes
    ----------
    batch : dict
        The model's arguments.
    parts : dict of str to Part
        What is explained, by the name of its argument; None where that depends on what is explained.
    about : dict
        What choosing a target needs to know: positions of a context, labels that were given, sizes.
    """

    batch: dict[str, Any]
    parts: dict[str, Part | None]
    about: dict[str, Any] = field(default_factory=dict)


# texts


def encoded(tokenizer: Any, *texts: str, special: bool = True) -> tuple[dict[str, Tensor], Text]:
    """Return the ids of a text, or of a pair of texts, and the text with its tokens.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        The tokenizer.
    *texts : str
        One or two.
    special : bool, optional
        Whether the tokenizer adds its special tokens.

    Raises
    ------
    InputError
        If there is nothing to read, or no tokenizer for two texts.
    """
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"got the text {text!r}, expected words")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise InputError("got a text with half of a character, a surrogate that is alone; expected characters")
    is_fast = bool(getattr(tokenizer, "is_fast", False))
    found = tokenizer(*texts, return_tensors="pt", add_special_tokens=special, return_offsets_mapping=is_fast)
    offsets = found.pop("offset_mapping", None)
    ids = found["input_ids"][0].tolist()
    if not ids:
        raise InputError(f"got the text {texts[0]!r}, of which the tokenizer makes no token; expected words")
    if offsets is None:
        return dict(found), text_of(tokenizer, ids)
    # the second text stands below the first
    starts, joined = [0], texts[0]
    for text in texts[1:]:
        starts.append(len(joined) + 1)
        joined += "\n" + text
    owners = found.sequence_ids(0)
    spans = tuple(
        (0, 0) if owner is None else (int(start) + starts[owner], int(end) + starts[owner])
        for owner, (start, end) in zip(owners, offsets[0].tolist(), strict=True)
    )
    segments = tuple(
        Segment("part", name, (start, start + len(text)))
        for name, start, text in zip(("first", "second"), starts, texts, strict=False)
        if len(texts) > 1
    )
    return dict(found), Text(joined, readable(tokenizer, ids), spans, specials(tokenizer, ids), "text", segments)


def readable(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """Return the text of each token."""
    return tuple(heatmap.clean_tokens(tokenizer.convert_ids_to_tokens(list(ids)), tokenizer))


def special_ids(tokenizer: Any) -> set[int]:
    """Return the tokens that are the tokenizer's own, those of a chat that have no name among them."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {*tokenizer.all_special_ids, *(index for index, token in added.items() if token.special)}


def specials(tokenizer: Any, ids: Sequence[int]) -> tuple[bool, ...]:
    """Return which tokens are the tokenizer's own."""
    own = special_ids(tokenizer)
    return tuple(token in own for token in ids)


def padding_of(tokenizer: Any) -> int:
    """Return the token that stands where a text has ended; where a tokenizer has none, any one does."""
    found = getattr(tokenizer, "pad_token_id", None)
    found = getattr(tokenizer, "eos_token_id", None) if found is None else found
    return 0 if found is None else int(found)


def text_of(tokenizer: Any, ids: Sequence[int], name: str = "text") -> Text:
    """Return the text that tokens make, where there is no other that they were made of."""
    words = readable(tokenizer, ids)
    ends = np.cumsum([len(word) for word in words]).tolist()
    spans: list[Span] = list(zip([0, *ends[:-1]], ends, strict=True))
    return Text("".join(words), words, tuple(spans), specials(tokenizer, ids), name)


def limit_of(model: Any, tokenizer: Any) -> int:
    """Return how many tokens a model takes."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    limits = (getattr(config, "max_position_embeddings", None), getattr(tokenizer, "model_max_length", None))
    return min([int(limit) for limit in limits if limit is not None and 0 < limit < NO_LIMIT], default=NO_LIMIT)


def check_length(count: int, limit: int, name: str) -> None:
    """Raise InputError if there are more tokens than a model takes."""
    if count > limit:
        raise InputError(
            f"got a text of {count} tokens, expected at most {limit}, which {name!r} takes; shorten it by "
            f"{count - limit} tokens, or choose a model of a longer context"
        )


# images


def seen(pixels: Tensor) -> np.ndarray[Any, Any]:
    """Return a model's input of shape ``(channels, height, width)`` with values from 0 to 1."""
    values = pixels.detach().float().cpu()
    low, high = values.min(), values.max()
    return ((values - low) / (high - low).clamp(min=1e-6)).numpy()


def shown(pixels: Tensor) -> Picture:
    """Return what is shown of an image as a model sees it."""
    return Picture(seen(pixels))


# audio and series


def samples_of(given: Any, rate: int | None) -> tuple[np.ndarray[Any, Any], int | None]:
    """Return audio as one channel of floating-point numbers, of a WAV file or an array, and its rate.

    Raises
    ------
    InputError
        If it is none, or of another rate than the model's.
    """
    if isinstance(given, (str, Path)):
        check_file(Path(given))
        with (
            refused(f"cannot read {str(given)!r}", "expected a WAV file of 8, 16 or 32 bits"),
            wave.open(str(given), "rb") as file,
        ):
            width, found, channels = file.getsampwidth(), file.getframerate(), file.getnchannels()
            if width not in WIDTHS:
                raise InputError(f"got {str(given)!r} of {8 * width} bits, expected 8, 16 or 32")
            frames = np.frombuffer(file.readframes(MOST_SAMPLES // channels + 1), WIDTHS[width])
            values = frames.reshape(-1, channels).mean(1)
        if frames.size > MOST_SAMPLES:
            raise InputError(f"got {str(given)!r} of more than {MOST_SAMPLES} samples, expected fewer: cut it")
        if rate is not None and found != rate:
            raise InputError(f"got {str(given)!r} of {found} Hz, expected {rate} Hz: resample it")
        values = (values - 128) / 128 if width == 1 else values / 2.0 ** (8 * width - 1)
        return values.astype(np.float32), found
    values = numbers_of(given, "audio")
    if values.ndim != 1:
        raise InputError(f"got audio of shape {values.shape}, expected one channel: a vector of samples")
    return values, rate


def numbers_of(given: Any, what: str) -> np.ndarray[Any, Any]:
    """Return an array, or lists of numbers, in single precision.

    Raises
    ------
    InputError
        If there is something else than numbers in it.
    """
    with refused(f"cannot read {what} of {type(given).__name__}", "expected numbers"):
        values = np.asarray(given.detach().cpu().float() if isinstance(given, Tensor) else given)
        if values.dtype.kind not in "biuf":
            raise InputError(f"got {what} of {values.dtype}, expected numbers")
        return values.astype(np.float32)


def series_of(given: Any) -> Tensor:
    """Return a series of shape ``(1, time, channels)``.

    Raises
    ------
    InputError
        If it is none.
    """
    values = torch.as_tensor(numbers_of(given, "a series"))
    values = values[:, None] if values.dim() == 1 else values
    if values.dim() != 2:
        raise InputError(f"got a series of shape {tuple(values.shape)}, expected (time, channels)")
    return values[None]


# of each task, given the explainer


def read_text(explainer: Any, *given: str) -> Reading:
    """Read a text, or a pair of texts."""
    if len(given) not in (1, 2):
        raise InputError(f"got {len(given)} texts, expected one, or two for a pair")
    batch, text = encoded(explainer.tokenizer, *given)
    return Reading(batch, {"input_ids": text})


def read_one_text(explainer: Any, *given: str) -> Reading:
    """Read one text."""
    if len(given) != 1:
        raise InputError(f"got {len(given)} texts, expected one")
    return read_text(explainer, *given)


def read_masked(explainer: Any, *given: str) -> Reading:
    """Read a text with a token that is to be found."""
    reading = read_one_text(explainer, *given)
    mask = explainer.tokenizer.mask_token_id
    places = [] if mask is None else (reading.batch["input_ids"][0] == mask).nonzero().flatten().tolist()
    if len(places) != 1:
        raise InputError(
            f"got {len(places)} times {explainer.tokenizer.mask_token} in {given[0]!r}, expected one, where a token "
            "is to be found"
        )
    return Reading(reading.batch, reading.parts, {"position": places[0]})


def read_image(explainer: Any, *given: Any) -> Reading:
    """Read an image."""
    if len(given) != 1:
        raise InputError(f"got {len(given)} inputs, expected an image")
    image = image_of(given[0])
    batch = explainer.read_images(image)
    return Reading(batch, {"pixel_values": shown(batch["pixel_values"][0])}, {"size": image.size[::-1]})


def read_image_and_labels(explainer: Any, *given: Any) -> Reading:
    """Read an image, and the texts that it may show."""
    if len(given) != 2 or isinstance(given[1], str) or not given[1]:
        raise InputError('got no labels to choose from, expected an image and a list of texts: ("cat.jpg", ["a cat"])')
    labels = [str(label) for label in given[1]]
    image = image_of(given[0])
    options: dict[str, Any] = {"padding": True}
    if is_filled_up(explainer):
        options = {"padding": "max_length", "max_length": limit_of(explainer.model, explainer.tokenizer)}
    batch = dict(explainer.reader(text=labels, images=image, return_tensors="pt", **options))
    if is_filled_up(explainer):
        batch.pop("attention_mask", None)
    pixels = batch["pixel_values"]
    if pixels.dim() != 4 or len(pixels) != 1:
        raise InputError(
            f"got pixel_values of shape {tuple(pixels.shape)}, which {explainer.name!r} takes in pieces; expected "
            "(1, channels, height, width): explain it in Python, with zennit_attn.InputXGradient"
        )
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])) != 0
    return Reading(batch, {"pixel_values": shown(pixels[0]), "input_ids": None}, {"labels": labels, "read": mask})


def is_filled_up(explainer: Any) -> bool:
    """Tell whether a model reads its padding, so that it needs as much of it as it was trained with.

    SigLIP takes the last position for the text, whatever stands there, and was trained without a mask on texts that
    are filled up; of others a tokenizer without a mask says so.
    """
    is_siglip = str(explainer.model.config.model_type).startswith("siglip")
    return is_siglip or "attention_mask" not in explainer.tokenizer.model_input_names


def read_audio(explainer: Any, *given: Any) -> Reading:
    """Read audio: a WAV file, or a vector of samples of the model's rate."""
    if len(given) != 1:
        raise InputError(f"got {len(given)} inputs, expected audio")
    extractor = getattr(explainer.reader, "feature_extractor", explainer.reader)
    samples, rate = samples_of(given[0], getattr(extractor, "sampling_rate", None))
    batch = dict(extractor(samples, sampling_rate=rate, return_tensors="pt"))
    if "input_values" in batch and batch["input_values"].dim() == 2:
        return Reading(batch, {"input_values": Signal(batch["input_values"][0].numpy()[None], rate, "audio")})
    name = "input_values" if "input_values" in batch else "input_features"
    # a spectrogram: its frames are the time, its bands are the channels
    values = batch[name][0].numpy()
    values = values if name == "input_features" else values.T
    seconds = len(samples) / rate if rate else None
    return Reading(batch, {name: Signal(values, None if not seconds else values.shape[-1] / seconds, "spectrogram")})


def read_series(explainer: Any, *given: Any) -> Reading:
    """Read a series, of shape ``(time,)`` or ``(time, channels)``."""
    if len(given) != 1:
        raise InputError(f"got {len(given)} inputs, expected a series")
    values = series_of(given[0])
    config = explainer.model.config
    length, channels = getattr(config, "context_length", None), getattr(config, "num_input_channels", values.shape[2])
    if values.shape[2] != channels or (length is not None and values.shape[1] != length):
        raise InputError(
            f"got a series of shape {tuple(values.shape[1:])}, expected {(length or 'time', channels)}: cut it, or "
            "choose a model of that length"
        )
    return Reading({"past_values": values}, {"past_values": Signal(values[0].T.numpy(), None, "series")})


def read_question(explainer: Any, *given: str) -> Reading:
    """Read a question and the text that holds its answer."""
    if len(given) != 2:
        raise InputError(f"got {len(given)} texts, expected a question and a text that holds its answer")
    batch, text = encoded(explainer.tokenizer, *given)
    if explainer.tokenizer.is_fast:
        return Reading(batch, {"input_ids": text}, {"context": len(given[0]) + 1})
    # where the text's own tokens are among those of both
    ids, own = batch["input_ids"][0].tolist(), explainer.tokenizer(given[1], add_special_tokens=False)["input_ids"]
    first = next((place for place in range(len(ids) - len(own), 0, -1) if ids[place : place + len(own)] == own), None)
    if first is None:
        raise InputError(
            f"got {type(explainer.tokenizer).__name__}, which reads a text after a question in other tokens than "
            "alone; expected a fast tokenizer, which tells where its tokens are"
        )
    return Reading(batch, {"input_ids": text}, {"context": text.spans[first][0], "is_slow": True})


def read_two_texts(explainer: Any, *given: str) -> Reading:
    """Read two texts, each by itself."""
    if len(given) != 2:
        raise InputError(f"got {len(given)} texts, expected two to compare")
    (one, text), (other, second) = (encoded(explainer.tokenizer, each) for each in given)
    text, second = replace(text, name="first"), replace(second, name="second")
    batch = {
        "input_ids": one["input_ids"],
        "other_ids": other["input_ids"],
        "attention_mask": one["attention_mask"],
        "other_mask": other["attention_mask"],
    }
    return Reading(batch, {"input_ids": text, "other_ids": second})


def shared_out(name: str, part: Part, relevance: Tensor) -> Part:
    """Return a part with its relevance, of the shape of the model's argument after the rows."""
    values = relevance.detach().cpu()
    if isinstance(part, Text):
        return part.with_relevance(values.numpy())
    if isinstance(part, Picture):
        return part.with_relevance(values.sum(1).numpy())
    values = values[:, None] if values.dim() == 2 else values
    # as it is shown: channels first
    return part.with_relevance((values if values.shape[1:] == part.values.shape else values.transpose(1, 2)).numpy())


def moved(batch: Mapping[str, Any], model: torch.nn.Module, device: torch.device) -> dict[str, Any]:
    """Return a batch on a device, its floating-point tensors in the model's dtype."""
    dtype = next((parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()), None)

    def of(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(device, dtype) if value.is_floating_point() else value.to(device)

    return {key: of(value) for key, value in batch.items()}
