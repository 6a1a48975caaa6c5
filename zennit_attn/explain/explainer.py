"""Explainer: a model with its reader, and a question in one call."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor
from zennit.core import Composite

from ..adapters import explained, target_mask
from ..attribution import InputXGradient
from ..composites.configuration import made_with
from ..composites.registration import input_x_gradient
from ..composites.transformer import TransformerComposite
from ..engine.names import as_written
from ..errors import InputError
from ..latents import Features
from ..sharding import is_offloaded, whole
from ..targets import Chosen, Each, Target
from . import answers, loading
from .caught import caught_here
from .explanation import Explanation, with_warnings
from .loading import TIMM, TORCHVISION, first_line
from .parts import Row, Text
from .prompts import takes
from .questions import IDS, OfEach, Question, collated, kept
from .reading import Reading, check_length, limit_of, moved, padding_of, shared_out, text_of
from .tasks import IMAGE_CLASSIFICATION, Task, task_of
from .wrapping import Similarity

#: What is asked for where no target is given, as explanations tell it.
CHOSEN = "what the model chose"


class Explainer:
    """A model with its tokenizer or processor, of which it can be asked why it said what it said.

    Parameters
    ----------
    model : str or torch.nn.Module
        A name on the Hugging Face hub, a folder, ``"timm:NAME"``, ``"torchvision:NAME"`` (with ``@FILE``, weights of
        a file), or a model that is loaded already.
    reader : optional
        Tokenizer or processor of a loaded model, or the transform of an image model. By default the model's own.
    composite : str or TransformerComposite, optional
        A preset, a TOML file, or a composite; by default ``"attnlrp"``, and ``"gamma_vit"`` for image classifiers.
    device : str, optional
        ``"auto"`` (a GPU if there is one; a loaded model stays where it is), ``"cpu"``, ``"cuda"``, ``"cuda:1"``,
        ``"mps"``.
    dtype : str, optional
        ``"float32"``, ``"float64"``, ``"bfloat16"`` or ``"float16"``; by default that of the model.
    device_map : str or mapping, optional
        For models of transformers that are too large for one device, as accelerate takes it: ``"auto"``, or the device
        of each module, ``"cpu"`` and ``"disk"`` too. Layers that wait there are computed again in the backward pass.
    tp_plan : str, optional
        ``"auto"`` shares the layers of a model of transformers out among the processes of ``torchrun`` (tensor
        parallel); all of them have to ask the same.
    labels : sequence of str or mapping of int to str, optional
        Names of the classes, where the model has none.
    allow_pickle : bool, optional
        Whether weights of a model of transformers may be pickles, and not safetensors only; torch takes numbers of them
        alone. Code that comes with a model is never run.

    Attributes
    ----------
    task : Task
        What the model is asked for, a row of :data:`zennit_attn.explain.tasks.TASKS`.

    Raises
    ------
    InputError
        If there is no such model, its task is not known, the composite does not suit it, or there is no such device.

    Examples
    --------
    >>> from zennit_attn import Explainer
    >>> explainer = Explainer("HuggingFaceTB/SmolLM2-135M-Instruct")  # doctest: +SKIP
    >>> explainer("The capital of France is").by("word")  # doctest: +SKIP
    """

    def __init__(
        self,
        model: str | Path | torch.nn.Module,
        reader: Any = None,
        composite: str | TransformerComposite | None = None,
        device: str = "auto",
        dtype: str | None = None,
        device_map: Any = None,
        labels: Sequence[str] | Mapping[int, str] | None = None,
        tp_plan: str | None = None,
        allow_pickle: bool = False,
    ) -> None:
        found: Mapping[int, str] | None = None
        where = loading.places_of(device_map, tp_plan, str(model))
        if where and isinstance(model, torch.nn.Module):
            raise InputError("got a device_map or a tp_plan for a loaded model, expected its name: it is where it is")
        if isinstance(model, torch.nn.Module):
            # a model that was compiled before is asked as it was written
            model = as_written(model)
            self.name, self.model, self.task = named(model), model, task_of_module(model)
            self.reader = reader
            self.device = device_of_module(model) if device == "auto" else loading.device_of(device)
        else:
            self.name, self.device = str(model), loading.device_of(device)
            self.model, self.reader, self.task, found = loaded(self.name, where, allow_pickle)
            self.reader = self.reader if reader is None else reader
            self.device = device_of_module(self.model) if where else self.device
        is_placed = isinstance(model, torch.nn.Module) and device == "auto" and dtype is None
        if not is_placed and not where:
            self.model = loading.placed(self.model, self.device, dtype)
        self.model.eval()
        if self.reader is None and self.task.reader:
            raise InputError(f"got a {type(self.model).__name__} without a reader, expected its {self.task.reader}")
        self.labels = labels_of(self.model, labels, found)
        self.composite = loading.composite_of(composite or self.task.preset)
        self.tokenizer = getattr(self.reader, "tokenizer", self.reader)
        #: Whether the model is not of transformers, and takes a tensor by its place.
        self.is_plain = not hasattr(self.model, "config")
        self.wrapped = self.model if self.task.wrap is None else self.task.wrap(self.model)
        loading.check_composite(self.composite, self.wrapped)
        self._about: dict[str, Any] | None = None
        #: The rules that are kept on the model, see :meth:`holding`.
        self._held: Composite | None = None

    def __repr__(self) -> str:
        return f"Explainer({self.name!r}, {self.task.name}, {self.composite.preset}, {self.device})"

    def __call__(self, *given: Any, target: Any = None, contrastive: bool = False) -> Explanation:
        """Explain what the model makes of an input.

        Parameters
        ----------
        *given
            What the task takes: a text, two texts, an image (a file, an image of Pillow, an array), an image and a list
            of texts, audio (a WAV file or samples), or a series.
        target : optional
            What is explained, as the task has it: a token or a class by its name or number, ``(word, label)`` of a
            token classifier, words or ``(start, end)`` of an answer in a text, ``(class, box)`` of a segmentation,
            ``(class, query or box)`` of a detection, ``(step, channel)`` of a forecast; or a
            :class:`zennit_attn.targets.Target`. By default what the model chose.
        contrastive : bool, optional
            Whether to explain the logit minus the mean of all others.

        Returns
        -------
        Explanation

        Raises
        ------
        InputError
            If the input or the target does not fit the model, or the model cannot be explained.
        """
        if self.task.read is None:
            self.check_kind(given)
            return self.answered(given, target, contrastive)
        return self.explain([self.question(*given, target=target, contrastive=contrastive)])[0]

    def question(self, *given: Any, target: Any = None, contrastive: bool = False) -> Question:
        """Return what a call asks, to be asked with others by :meth:`explain`.

        Parameters
        ----------
        *given, target, contrastive
            As for a call.

        Raises
        ------
        InputError
            If the input or the target does not fit the model.
        """
        self.check_kind(given)
        if self.task.read is None:
            raise InputError(f"got a question for {self.task.name}, which answers: expected answer(...)")
        reading = self.task.read(self, *given)
        for name in set(IDS) & reading.batch.keys():
            check_length(reading.batch[name].shape[1], limit_of(self.model, self.tokenizer), self.name)
        chosen = target if isinstance(target, Target) else self.task.target(self, reading, target, contrastive)
        about = self.about({"target": CHOSEN if target is None else str(target)}, contrastive)
        last = int(self.task.name == "next token" and not isinstance(target, Target))

        def finish(output: Tensor, relevance: Mapping[str, Tensor]) -> Explanation:
            row = self.row(reading, output, chosen, None if last else target_mask(self.model, reading.batch))
            parts = tuple(
                self.chosen_text(reading, relevance[name], row)
                if part is None
                else shared_out(name, part, relevance[name])
                for name, part in reading.parts.items()
            )
            return Explanation(self.task.name, parts, (row,), None, about, self.unknown(reading.batch.get("input_ids")))

        return Question(reading.batch, tuple(reading.parts), chosen, finish, last)

    def explain(self, questions: Sequence[Question]) -> list[Explanation]:
        """Explain several questions by one forward and one backward pass.

        Parameters
        ----------
        questions : sequence of Question
            What :meth:`question` returned, of one :meth:`~zennit_attn.explain.questions.Question.kind`.

        Raises
        ------
        InputError
            If there is no room for them, or the model cannot be explained.
        """
        batch, first = self.batch_of(questions), questions[0]
        own = OfEach(questions, self.model, batch)
        with caught_here() as messages:
            output, relevance, _ = self.attribute(batch, self.target_of(questions, batch), first.arguments)
        # of logits that several processes share, all
        logits = whole(explained(output, self.task.output)).detach()
        if isinstance(first.target, Each):
            pieces = [(logits, relevance)]
        else:
            pieces = [(own.piece(logits, sample), own.relevance(relevance, sample)) for sample in range(len(questions))]
        found = [question.finish(*piece) for question, piece in zip(questions, pieces, strict=True)]
        return [with_warnings(each, messages) for each in found]

    def batch_of(self, questions: Sequence[Question]) -> dict[str, Any]:
        """Return the model's arguments for several questions, where the model is."""
        batch = collated([question.batch for question in questions], padding_of(self.tokenizer))
        positions = kept(questions)
        if positions and takes(self.model, "logits_to_keep"):
            batch["logits_to_keep"] = positions
        return moved(batch, self.model, self.device)

    def target_of(self, questions: Sequence[Question], batch: Mapping[str, Any]) -> Target:
        """Return what is explained of the output for a batch."""
        first = questions[0].target
        return first if isinstance(first, Each) else OfEach(questions, self.model, batch)

    def answer(
        self,
        prompt: Any,
        answer: str | None = None,
        *,
        documents: Sequence[str] | Mapping[str, str] | None = None,
        image: Any = None,
        instead: str | None = None,
        max_new_tokens: int | None = None,
        rows: str = "sentence",
        target: type[Target] | None = None,
        chunk: int = 1,
    ) -> Explanation:
        """Explain a whole answer of a language model: which words of the prompt it came from.

        Parameters
        ----------
        prompt : str or sequence of mapping
            A text, or the messages of a chat: ``[{"role": "user", "content": "..."}]``, where a content may be a list
            of ``{"type": "text", "text": "..."}`` and ``{"type": "image", "image": file}``. A model that hears takes
            audio.
        answer : str, optional
            What the model answered; by default it is generated, greedily.
        documents : sequence of str or mapping of str to str, optional
            What the model is to answer from; they stand before the last message. A text that a template made already
            has to have them in it.
        image : optional
            What a model looks at that takes an image with the text, if no message has it.
        instead : str, optional
            Another answer: what is explained is why the model gives this one rather than that, which is decided where
            they first differ: the one token's logit minus the other's there, after the words that both begin with.
        max_new_tokens : int, optional
            How long an answer is generated (default 64, or as many as there is room for).
        rows : {"sentence", "token", "word", "line", "answer"}, optional
            What has a row, and a backward pass, of its own. ``"answer"`` is one for the whole answer, ``"token"`` the
            matrix of the answer's and the prompt's tokens.
        target : type of Target, optional
            What is explained of each token: :class:`~zennit_attn.targets.Label` (default, its logit),
            :class:`~zennit_attn.targets.Contrastive` or :class:`~zennit_attn.targets.LogProb`.
        chunk : int, optional
            How many rows share a backward pass, see :class:`zennit_attn.targets.Each`.

        Returns
        -------
        Explanation

        Raises
        ------
        InputError
            If the model is no language model, or something does not fit.
        """
        asked = answers.question_of(
            self, prompt, answer, documents, image, instead, max_new_tokens, rows, target, chunk
        )
        return self.explain([asked])[0]

    def question_of_answer(
        self,
        prompt: Any,
        answer: str | None = None,
        *,
        documents: Sequence[str] | Mapping[str, str] | None = None,
        image: Any = None,
        instead: str | None = None,
        max_new_tokens: int | None = None,
        rows: str = "sentence",
        target: type[Target] | None = None,
        chunk: int = 1,
    ) -> Question:
        """Return what :meth:`answer` asks, to be asked with others by :meth:`explain`; see there.

        The answer is made here, if there is none.
        """
        return answers.question_of(self, prompt, answer, documents, image, instead, max_new_tokens, rows, target, chunk)

    def answered(self, given: Sequence[Any], target: Any, contrastive: bool) -> Explanation:
        """Explain the answer of a model that does nothing else, as :meth:`answer` does, which has the options.

        Raises
        ------
        InputError
            If there is a target, or other than what the task takes.
        """
        if target is not None or contrastive:
            raise InputError(f"got a target for {self.task.name}; expected none: answer(...) takes what is explained")
        most = 1 + (self.task.name == "image and text to text")
        if not 1 <= len(given) <= most:
            raise InputError(f"got {len(given)} inputs, expected {self.task.gives}")
        return self.answer(given[-1], image=given[0] if len(given) == 2 else None)

    def check_kind(self, given: Sequence[Any]) -> None:
        """Raise InputError if an image is given to a model of texts, or a text to one of images."""
        first, takes = (given or (None,))[0], self.task.gives
        is_image = isinstance(first, (Path, Image.Image))
        is_text = isinstance(first, str) and "text" not in takes and not os.path.isfile(first)
        if (is_image and "image" not in takes and "audio" not in takes) or is_text:
            what = "a text" if is_text else "an image"
            file = f"; there is no file {first!r}" if is_text else ""
            raise InputError(f"got {what} for {self.name!r}, a {type(self.model).__name__}; expected {takes}{file}")

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Keep the rules on the model, for many calls: each of them would put them there again."""
        rules = input_x_gradient(self.composite)
        with rules.context(self.wrapped):
            try:
                self._held = rules
                yield
            finally:
                self._held = None

    def attribute(
        self,
        batch: Mapping[str, Any],
        target: Target,
        arguments: tuple[str, ...],
        latents: Sequence[str | Features] = (),
    ) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        """Return the model's output, the relevance of its inputs by their names, and that of latents.

        Raises
        ------
        InputError
            If there is no room, or the model cannot be explained.
        """
        attributor, given = self.attributor(batch, arguments, latents)
        with self.refusals():
            output, relevance, *inner = attributor(given, target)
        return output, {arguments[0]: relevance} if self.is_plain else relevance, inner[0] if inner else {}

    def activations(
        self, batch: Mapping[str, Any], arguments: tuple[str, ...], latents: Sequence[str | Features]
    ) -> dict[str, Tensor]:
        """Return the activations of latents by unit.

        Raises
        ------
        InputError
            If there is no room, or the model cannot be explained.
        """
        attributor, given = self.attributor(batch, arguments, latents)
        with self.refusals():
            return attributor.activations(given)

    def attributor(
        self, batch: Mapping[str, Any], arguments: tuple[str, ...], latents: Sequence[str | Features]
    ) -> tuple[InputXGradient[Any], Any]:
        """Return the attributor of the model, and what it takes of a batch."""
        composite = self._held or self.composite
        options: dict[str, Any] = {"latents": tuple(latents)}
        if self.is_plain:
            return InputXGradient(self.wrapped, composite, **options), batch[arguments[0]]
        options |= {"output_key": self.task.output, "argument": arguments}
        return InputXGradient(self.wrapped, composite, **options), batch

    @contextmanager
    def refusals(self) -> Iterator[None]:
        """Say what a model refuses, and what the rules do not know, as an error of the input.

        Raises
        ------
        InputError
            If there is no room, or the model cannot be explained.
        """
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"{self.device} is out of memory ({first_line(str(error))}); give a shorter input, or try "
                "the dtype bfloat16 or the device cpu"
            ) from error
        except InputError:
            raise
        except (RuntimeError, TypeError, ValueError, LookupError, NotImplementedError) as error:
            raise InputError(f"{self.name!r} cannot explain this: {first_line(str(error))}") from error

    def row(self, reading: Reading, output: Tensor, target: Target, mask: Tensor | None) -> Row:
        """Return what is explained of the output of one sample."""
        weights = target.weights(output, mask)[0]
        logits = output[0]
        value = float((weights.double() * logits.double()).sum())
        if isinstance(target, Chosen):
            # of a class that is certain LogProb's weights are zero, as everyone's else are
            weights = target.alone().weights(output, mask)[0]
        places = np.argwhere((weights == weights.max()).cpu().numpy()).tolist() if weights.dim() else [[0]]
        label = self.task.label(self, reading, places)
        if len(places) > 1 or not weights.dim():
            return Row(label, value)
        return Row(label, value, places[0][-1], float(logits[tuple(places[0])]))

    def chosen_text(self, reading: Reading, relevance: Tensor, row: Row) -> Text:
        """Return, of several texts, the one that is explained, with its relevance."""
        index = row.index or 0
        # padding is on the right or on the left
        read = reading.about["read"][index]
        text = text_of(self.tokenizer, reading.batch["input_ids"][index][read].tolist())
        return text.with_relevance(relevance.detach().cpu()[index, read][None].numpy())

    def read_images(self, image: Image.Image) -> dict[str, Any]:
        """Return the arguments for an image."""
        if self.is_plain:
            return {"pixel_values": self.reader(image)[None]}
        return dict(self.reader(images=image, return_tensors="pt"))

    def about(self, asked: Mapping[str, Any], contrastive: bool = False) -> dict[str, Any]:
        """Return what an explanation depends on."""
        if self._about is None:
            dtype = next((parameter.dtype for parameter in self.model.parameters()), None)
            self._about = {
                "model": self.name,
                "class": type(self.model).__name__,
                "revision": getattr(getattr(self.model, "config", None), "_commit_hash", None),
                "digest": loading.digest_of(self.model),
                "preset": self.composite.preset,
                "composite": repr(self.composite),
                "patch": patch_of(getattr(self.model, "config", None)),
                "device": str(self.device),
                "dtype": str(dtype).removeprefix("torch."),
                "versions": made_with(None),
            }
        return {**self._about, **asked, "contrastive": contrastive}

    def unknown(self, ids: Tensor | None) -> tuple[str, ...]:
        """Return a warning if there are words that the model does not know."""
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        if ids is None or unknown is None or unknown not in ids:
            return ()
        return (f"the model does not know some of the words: it reads {self.tokenizer.unk_token} there",)


def loaded(name: str, where: Mapping[str, Any], allow_pickle: bool) -> tuple[Any, Any, Task, Mapping[int, str] | None]:
    """Return a model by its name, its reader, its task, and the names of its classes if it does not have them.

    Raises
    ------
    InputError
        If there is none, or its task is not known.
    """
    if name.startswith(TIMM):
        return (*loading.timm_model(name.removeprefix(TIMM)), IMAGE_CLASSIFICATION, None)
    if name.startswith(TORCHVISION):
        model, transform, names = loading.torchvision_model(name.removeprefix(TORCHVISION))
        return model, transform, IMAGE_CLASSIFICATION, None if names is None else dict(enumerate(names))
    config = loading.load(transformers.AutoConfig, name)
    task = task_of_config(config, name)
    if task.wrap is Similarity:
        loading.check_pooling(name)
    kind = getattr(transformers, task.loader_of(architecture_of(config)))
    model = loading.load_model(kind, name, allow_pickle, **where)
    reader = loading.load(getattr(transformers, task.reader), name) if task.reader else None
    return model, reader, task, None


def task_of_config(config: Any, name: str) -> Task:
    """Return the task of a model, by its config.

    Raises
    ------
    InputError
        If it has none that is known.
    """
    if config.model_type == "timm_wrapper":
        # how checkpoints of timm are read, which do not name an architecture of transformers
        return task_of("TimmWrapperForImageClassification", name)
    return task_of(architecture_of(config) or f"{config.model_type} without an architecture in its config", name)


def architecture_of(config: Any) -> str | None:
    """Return the architecture of a model, None if its config does not name it."""
    return next(iter(config.architectures or ()), None)


def task_of_module(model: torch.nn.Module) -> Task:
    """Return the task of a loaded model, by its class; one that is not of transformers takes images."""
    if not hasattr(model, "config"):
        return IMAGE_CLASSIFICATION
    return task_of(type(model).__name__, named(model))


def patch_of(config: Any) -> int | None:
    """Return the size of the patches that a model cuts an image into, None if it does not tell."""
    for part in (getattr(config, "vision_config", None), config):
        size = getattr(part, "patch_size", None)
        if isinstance(size, int):
            return size
    return None


def named(model: Any) -> str:
    """Return the name of a loaded model."""
    return str(getattr(model, "name_or_path", "") or type(model).__name__)


def device_of_module(model: torch.nn.Module) -> torch.device:
    """Return the device of a model."""
    hook = getattr(model, "_hf_hook", None)
    if is_offloaded(model) and hook is not None:
        # where accelerate puts the input
        return torch.device(hook.execution_device)
    return next((value.device for value in model.parameters() if not value.is_meta), torch.device("cpu"))


def labels_of(model: Any, given: Any, found: Mapping[int, str] | None) -> dict[int, str]:
    """Return the names of a model's classes."""
    names = given if given is not None else found
    if names is None:
        names = getattr(getattr(model, "config", None), "id2label", None) or {}
    pairs = names.items() if isinstance(names, Mapping) else enumerate(names)
    return {int(index): str(name) for index, name in pairs}


def empty_model(name: str) -> tuple[Any, Task]:
    """Return a model without weights, to look at its modules, and its task."""
    for prefix, make in ((TIMM, loading.timm_model), (TORCHVISION, loading.torchvision_model)):
        if name.startswith(prefix):
            return make(name.removeprefix(prefix), empty=True)[0], IMAGE_CLASSIFICATION
    config = loading.load(transformers.AutoConfig, name)
    task = task_of_config(config, name)
    kind = getattr(transformers, task.loader_of(architecture_of(config)))
    with torch.device("meta"):
        is_auto = hasattr(kind, "from_config")
        model = kind.from_config(config, trust_remote_code=False) if is_auto else kind(config)
    return (model if task.wrap is None else task.wrap(model)), task
