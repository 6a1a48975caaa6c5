"""Explainer: a model of transformers by its name, and the explanation of one text or image, for the command line.

It explains the next token of causal language models, and classes of text and image classifiers. What a person can
mend is an :class:`InputError`. This module does not write files, and has no chat templates: a text is taken as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image, ImageOps
from torch import Tensor
from transformers.models.auto import modeling_auto

from .. import heatmap, targets
from ..adapters import explained
from ..attribution import InputXGradient
from ..composites.configuration import load_composite
from ..composites.registration import input_x_gradient
from ..composites.transformer import TransformerComposite
from ..errors import InputError
from ..hints import nearest

#: Auto classes of the models that can be explained, each with the names of their architectures.
LOADERS: dict[Any, Mapping[str, Any]] = {
    transformers.AutoModelForCausalLM: modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    transformers.AutoModelForSequenceClassification: modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    transformers.AutoModelForImageClassification: modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
}
DTYPES = ("float32", "float64", "bfloat16", "float16")
# tokenizers that have no limit say so by a huge one
NO_LIMIT = 10**9


@dataclass(frozen=True)
class Explanation:
    """What is explained of an input, and the relevance of its parts.

    Attributes
    ----------
    index : int
        The explained token or class.
    label : str
        Its text or name.
    logit : float
        Its logit.
    value : float
        What is explained: the logit, or with a contrastive target the logit minus the mean of all others.
    relevance : numpy.ndarray
        Shape ``(tokens,)``, or ``(height, width)``, summed over channels.
    words : list of str or None
        Text of the tokens.
    pixels : numpy.ndarray or None
        The image as the model sees it, from 0 to 1, of shape ``(channels, height, width)``.
    is_first_special : bool
        Whether the first token is one of the tokenizer's own, which often is an attention sink.
    warnings : list of str
        What was reported on the way, as operations without a rule.
    """

    index: int
    label: str
    logit: float
    value: float
    relevance: np.ndarray[Any, Any]
    words: list[str] | None
    pixels: np.ndarray[Any, Any] | None
    is_first_special: bool
    warnings: list[str]

    def picture(self, title: str = "") -> heatmap.Heatmap:
        """Return the heatmap."""
        if self.words is None:
            return heatmap.images(self.relevance, self.pixels, title=title)
        skipped = int(self.is_first_special and len(self.words) > 1)
        return heatmap.tokens(self.words, self.relevance, skip_first=skipped, title=title)


class Explainer:
    """A model with its tokenizer or image processor, and the composite by which it is explained.

    Parameters
    ----------
    name : str
        Name on the hub, or a folder.
    composite : str, optional
        Preset or TOML file; by default ``"attnlrp"`` for texts and ``"gamma_vit"`` for images.
    device : str, optional
        ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
    dtype : str, optional
        One of :data:`DTYPES`; by default that of the loaded model.

    Raises
    ------
    InputError
        If there is no such model, it is of another kind, the composite does not suit it, or there is no such device.
    """

    def __init__(self, name: str, composite: str | None = None, device: str = "auto", dtype: str | None = None) -> None:
        self.name, self.device = name, device_of(device)
        config = load(transformers.AutoConfig, name)
        self.loader = loader_of(config, name)
        self.is_visual = self.loader is transformers.AutoModelForImageClassification
        self.composite = composite_of(composite or ("gamma_vit" if self.is_visual else "attnlrp"))
        self.reader: Any = load(transformers.AutoImageProcessor if self.is_visual else transformers.AutoTokenizer, name)
        self.model = placed(load(self.loader, name).eval(), self.device, dtype)
        self.attributor = InputXGradient(self.model, input_x_gradient(self.composite))
        check_composite(self.composite, self.model)

    def explain(self, given: str | Path, target: str | None = None, contrastive: bool = False) -> Explanation:
        """Explain a text, or the image in a file.

        Parameters
        ----------
        given : str or pathlib.Path
            The text, or the file.
        target : str, optional
            Token (the word, or ``#`` and its id) or class (name or number); by default that of the largest logit.
        contrastive : bool, optional
            Whether to explain the logit minus the mean of all others.

        Raises
        ------
        InputError
            If the input or the target does not fit the model, or the model cannot be explained.
        """
        if isinstance(given, Path) != self.is_visual:
            wanted, got = ("an image", "a text") if self.is_visual else ("a text", "an image")
            raise InputError(f"got {got} for {self.name!r}, a {type(self.model).__name__}; expected {wanted}")
        batch = self.read(given)
        index = None if target is None else self.index_of(target)
        chosen = pick(index, contrastive)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            output, relevance = self.attribute(batch, chosen)
        logits = explained(output).detach()[0].float()
        logits = logits if logits.dim() == 1 else logits[-1]
        index = int(logits.argmax()) if index is None else index
        ids = batch.get("input_ids")
        messages = [first_line(str(item.message)) for item in caught]
        unknown = None if ids is None else self.reader.unk_token_id
        if unknown is not None and unknown in ids:
            messages.append(f"the model does not know some of the words: it reads {self.reader.unk_token} there")
        return Explanation(
            index,
            self.label_of(index),
            float(logits[index]),
            float((chosen.of_classes(logits[None])[0] * logits).sum()),
            (relevance[0] if ids is not None else relevance[0].sum(0)).cpu().numpy(),
            None if ids is None else heatmap.clean_tokens(self.reader.convert_ids_to_tokens(ids[0]), self.reader),
            None if ids is not None else seen(batch["pixel_values"][0]),
            ids is not None and int(ids[0, 0]) in self.reader.all_special_ids,
            messages,
        )

    def attribute(self, batch: Mapping[str, Any], target: targets.Target) -> tuple[Any, Tensor]:
        """Return the model's output and the relevance of its input."""
        try:
            with self.attributor:
                return self.attributor(batch, target)
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"{self.device} is out of memory ({first_line(str(error))}); give a shorter input, or try "
                "--dtype bfloat16 or --device cpu"
            ) from error
        # what a model refuses, and what the rules do not know, is said by what they raise
        except (RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"{self.name!r} cannot explain this: {first_line(str(error))}") from error

    def read(self, given: str | Path) -> Any:
        """Return what the model takes, on its device."""
        if isinstance(given, Path):
            dtype = next(self.model.parameters()).dtype
            return self.reader(images=picture_of(given), return_tensors="pt").to(self.device, dtype)
        if not given.strip():
            raise InputError(f"got the text {given!r}, expected words")
        batch = self.reader(given, return_tensors="pt")
        count, limit = batch["input_ids"].shape[1], self.limit()
        if count > limit:
            raise InputError(
                f"got a text of {count} tokens, expected at most {limit}, which {self.name!r} takes; shorten it by "
                f"{count - limit} tokens, or choose a model of a longer context"
            )
        return batch.to(self.device)

    def limit(self) -> int:
        """Return how many tokens the model takes."""
        config = self.model.config.get_text_config()
        limits = (getattr(config, "max_position_embeddings", None), self.reader.model_max_length)
        return min([int(limit) for limit in limits if limit is not None and 0 < limit < NO_LIMIT], default=NO_LIMIT)

    def index_of(self, target: str) -> int:
        """Return the token or the class of a target."""
        if self.loader is transformers.AutoModelForCausalLM:
            return token_of(self.reader, target)
        names = self.model.config.id2label
        found = [index for index, name in names.items() if target in (str(index), name)]
        if not found:
            raise InputError(
                f"got the target {target!r}, expected one of {len(names)} classes, by name or number; "
                + nearest(target, names.values())
            )
        return int(found[0])

    def label_of(self, index: int) -> str:
        """Return the text of a token, or the name of a class."""
        if self.loader is transformers.AutoModelForCausalLM:
            return str(self.reader.decode([index]))
        return str(self.model.config.id2label.get(index, index))


def pick(index: int | None, contrastive: bool) -> targets.Target:
    """Return the target of a token or class, or of the largest logit."""
    if contrastive:
        return targets.Contrastive(index)
    return targets.MaxLogit() if index is None else targets.Label(index)


def first_line(text: str) -> str:
    """Return the first line of a message that has words in it."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "no message")


def load(kind: Any, name: str) -> Any:
    """Return what an auto class of transformers loads by a name.

    Raises
    ------
    InputError
        If it cannot.
    """
    try:
        return kind.from_pretrained(name)
    # a broken file raises what its reader raises, and there are many readers
    except Exception as error:
        raise InputError(
            f"{kind.__name__} got --model {name!r} and cannot load it ({first_line(str(error))}); expected a folder "
            "that save_pretrained wrote, or a name on the Hugging Face hub: check the spelling and the connection"
        ) from error


def placed(model: Any, device: torch.device, dtype: str | None) -> Any:
    """Return a model on a device, in a dtype if there is one given.

    Raises
    ------
    InputError
        If it has no room there, or has to stay as it is, as some quantised models do.
    """
    try:
        return model.to(device, getattr(torch, dtype)) if dtype else model.to(device)
    except (RuntimeError, ValueError) as error:
        wanted = f"{device} in {dtype}" if dtype else str(device)
        raise InputError(
            f"cannot put {type(model).__name__} on {wanted} ({first_line(str(error))}); try another --device, and "
            "--dtype bfloat16, or none for quantised models"
        ) from error


def loader_of(config: Any, name: str) -> Any:
    """Return the auto class of a model.

    Raises
    ------
    InputError
        If it is of a kind that is not explained here.
    """
    architecture = next(iter(config.architectures or ()), None)
    for loader, names in LOADERS.items():
        # some types of models have several architectures
        if any(architecture in ((name,) if isinstance(name, str) else name) for name in names.values()):
            return loader
    raise InputError(
        f"--model {name!r} is a {architecture or config.model_type + ' without an architecture in its config'}, "
        "expected a causal language model, a sequence classifier or an image classifier; others are explained in "
        "Python, with zennit_attn.InputXGradient"
    )


def empty_model(name: str) -> Any:
    """Return a model without weights, to look at its modules."""
    config = load(transformers.AutoConfig, name)
    with torch.device("meta"):
        return loader_of(config, name).from_config(config)


def composite_of(name: str) -> TransformerComposite:
    """Return a composite by the name of a preset or a file.

    Raises
    ------
    InputError
        If there is none, or its file is wrong.
    """
    try:
        return load_composite(name)
    except (OSError, TypeError, ValueError) as error:
        raise InputError(f"--composite: {first_line(str(error))}") from error


def check_composite(composite: TransformerComposite, model: torch.nn.Module) -> None:
    """Raise InputError if a composite does not suit a model."""
    try:
        with composite.context(model):
            pass
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"--composite: {first_line(str(error))}") from error


def device_of(name: str) -> torch.device:
    """Return a device that is there.

    Raises
    ------
    InputError
        If it is not.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"got --device {name!r}, expected auto, cpu, cuda, cuda:1 or mps") from None
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if counts.get(device.type, 0) <= (device.index or 0):
        raise InputError(
            f"got --device {name}, but torch finds {counts.get(device.type, 0)} such devices here; use --device cpu, "
            "or a torch that is built for the device"
        )
    return device


def token_of(tokenizer: Any, word: str) -> int:
    """Return the token of a word, or of ``#`` and an id.

    Raises
    ------
    InputError
        If the word is not one token.
    """
    if word[:1] == "#" and word[1:].isdigit() and int(word[1:]) < len(tokenizer):
        return int(word[1:])
    # as a new word first, because that is what a text usually goes on with
    for text in (word,) if word[:1].isspace() else (f" {word}", word):
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            return int(ids[0])
    known = [tokenizer.decode([token]).strip() for token in range(len(tokenizer))]
    raise InputError(
        f"got the target {word!r}, expected one token of the vocabulary, as a word or as # and an id below "
        f"{len(tokenizer)}; {nearest(word, known)}"
    )


def picture_of(path: Path) -> Image.Image:
    """Return the image in a file, upright, in RGB.

    Raises
    ------
    InputError
        If Pillow cannot read it.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    # Pillow's readers raise SyntaxError and ValueError, too
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(
            f"cannot read the image {str(path)!r} ({first_line(str(error))}); expected a PNG, JPEG or "
            "another file that Pillow opens"
        ) from error


def seen(pixels: Tensor) -> np.ndarray[Any, Any]:
    """Return a model's input of shape ``(channels, height, width)`` with values from 0 to 1."""
    values = pixels.detach().float().cpu()
    low, high = values.min(), values.max()
    return ((values - low) / (high - low).clamp(min=1e-6)).numpy()
