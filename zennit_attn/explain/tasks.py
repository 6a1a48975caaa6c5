"""Tasks: what models are asked for, a row of a table each: how it is read, what a target may be, what is explained.

A model's task is read off its architecture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers.models.auto import modeling_auto

from .. import targets
from ..errors import InputError
from . import choosing, reading
from .reading import Reading
from .wrapping import Similarity, SpanModel

#: Begins the name of a mapping of which the base models are meant.
BASE = "base of "
#: The auto class of encoders of texts.
TEXT_ENCODER = "AutoModelForTextEncoding"


@dataclass(frozen=True)
class Task:
    """A row of the table.

    Attributes
    ----------
    name : str
        What the model is asked for.
    gives : str
        What a person gives, in words.
    loader, reader : str
        Auto classes of transformers, of the model and of its tokenizer or processor.
    mappings : tuple of str
        Which architectures have the task: names of mappings in ``transformers.models.auto.modeling_auto``; after
        :data:`BASE`, the models without a head of the same types.
    read : callable or None
        ``(explainer, *given) -> Reading``; None for models that do nothing but answer.
    target : callable
        ``(explainer, reading, wanted, contrastive) -> Target``; None wants what the model chose.
    label : callable
        ``(explainer, reading, places) -> str``, of the places of the output that are explained.
    preset : str
        The preset that suits.
    output : str or None
        Entry of the output that is explained, where it is not the logits.
    wrap : callable or None
        What turns the model into one that returns a tensor to explain.
    columns : tuple of tuple of str
        Columns of a table that are what a person gives, in its order; the ways there are.
    """

    name: str
    gives: str
    loader: str
    reader: str
    mappings: tuple[str, ...]
    read: Callable[..., Reading] | None = None
    target: Callable[..., targets.Target] = choosing.class_target
    label: Callable[..., str] = choosing.class_label
    preset: str = "attnlrp"
    output: str | None = None
    wrap: Callable[[Any], torch.nn.Module] | None = None
    columns: tuple[tuple[str, ...], ...] = (("text",),)

    def loader_of(self, architecture: str | None) -> str:
        """Return the auto class that loads an architecture.

        That of encoders is not the base class of their type where a type has a decoder, too, as T5 has.
        """
        return (
            TEXT_ENCODER
            if "TEXT_ENCODING" in self.mappings and architecture in names_in("TEXT_ENCODING")
            else self.loader
        )

    def architectures(self) -> set[str]:
        """Return the names of the architectures."""
        return set().union(*map(names_in, self.mappings))


def names_in(name: str) -> set[str]:
    """Return the architectures of a mapping of transformers, or after :data:`BASE` the models without its heads."""
    names = getattr(modeling_auto, f"MODEL_FOR_{name.removeprefix(BASE)}_MAPPING_NAMES", {})
    if name.startswith(BASE):
        names = {kind: modeling_auto.MODEL_MAPPING_NAMES.get(kind, ()) for kind in names}
    found: set[str] = set()
    for value in names.values():
        # some types of models have several
        found |= {value} if isinstance(value, str) else set(value)
    return found


#: The table. An architecture has the first task that names it: what sees or hears comes before what reads alone.
TASKS: tuple[Task, ...] = (
    Task(
        "image and text to text",
        "an image and a text, or a text",
        "AutoModelForImageTextToText",
        "AutoProcessor",
        ("IMAGE_TEXT_TO_TEXT",),
    ),
    Task("speech to text", "audio", "AutoModelForSpeechSeq2Seq", "AutoProcessor", ("SPEECH_SEQ_2_SEQ",)),
    Task("text to text", "a text", "AutoModelForSeq2SeqLM", "AutoTokenizer", ("SEQ_TO_SEQ_CAUSAL_LM",)),
    Task(
        "next token",
        "a text",
        "AutoModelForCausalLM",
        "AutoTokenizer",
        ("CAUSAL_LM",),
        reading.read_one_text,
        choosing.token_target,
        choosing.token_label,
    ),
    Task(
        "masked token",
        "a text with a mask",
        "AutoModelForMaskedLM",
        "AutoTokenizer",
        ("MASKED_LM",),
        reading.read_masked,
        choosing.token_target,
        choosing.token_label,
    ),
    Task(
        "text classification",
        "a text, or a pair of texts as a reranker takes it",
        "AutoModelForSequenceClassification",
        "AutoTokenizer",
        ("SEQUENCE_CLASSIFICATION",),
        reading.read_text,
        choosing.class_target,
        choosing.class_label,
        columns=(("text",), ("text", "second")),
    ),
    Task(
        "token classification",
        "a text",
        "AutoModelForTokenClassification",
        "AutoTokenizer",
        ("TOKEN_CLASSIFICATION",),
        reading.read_one_text,
        choosing.label_target,
        choosing.label_at,
    ),
    Task(
        "question answering",
        "a question and a text",
        "AutoModelForQuestionAnswering",
        "AutoTokenizer",
        ("QUESTION_ANSWERING",),
        reading.read_question,
        choosing.span_target,
        choosing.span_label,
        wrap=SpanModel,
        columns=(("question", "text"),),
    ),
    Task(
        "similarity",
        "two texts",
        "AutoModel",
        "AutoTokenizer",
        ("TEXT_ENCODING", f"{BASE}MASKED_LM"),
        reading.read_two_texts,
        choosing.similarity_target,
        lambda *_: "similarity",
        wrap=Similarity,
        columns=(("text", "second"),),
    ),
    Task(
        "image classification",
        "an image",
        "AutoModelForImageClassification",
        "AutoImageProcessor",
        ("IMAGE_CLASSIFICATION",),
        reading.read_image,
        choosing.class_target,
        choosing.class_label,
        "gamma_vit",
        columns=(("image",),),
    ),
    Task(
        "semantic segmentation",
        "an image",
        "AutoModelForSemanticSegmentation",
        "AutoImageProcessor",
        ("SEMANTIC_SEGMENTATION",),
        reading.read_image,
        choosing.region_target,
        choosing.region_label,
        columns=(("image",),),
    ),
    Task(
        "object detection",
        "an image",
        "AutoModelForObjectDetection",
        "AutoImageProcessor",
        ("OBJECT_DETECTION",),
        reading.read_image,
        choosing.object_target,
        choosing.object_label,
        columns=(("image",),),
    ),
    Task(
        "zero-shot image classification",
        "an image and a list of texts",
        "AutoModelForZeroShotImageClassification",
        "AutoProcessor",
        ("ZERO_SHOT_IMAGE_CLASSIFICATION",),
        reading.read_image_and_labels,
        choosing.text_target,
        choosing.text_label,
        columns=(("image", "texts"),),
    ),
    Task(
        "audio classification",
        "audio",
        "AutoModelForAudioClassification",
        "AutoFeatureExtractor",
        ("AUDIO_CLASSIFICATION",),
        reading.read_audio,
        choosing.class_target,
        choosing.class_label,
        columns=(("audio",),),
    ),
    Task(
        "time series classification",
        "a series",
        "PatchTSTForClassification",
        "",
        ("TIME_SERIES_CLASSIFICATION",),
        reading.read_series,
        choosing.class_target,
        choosing.class_label,
        output="prediction_logits",
        columns=(("series",),),
    ),
    Task(
        "time series forecasting",
        "a series",
        "PatchTSTForPrediction",
        "",
        (),
        reading.read_series,
        choosing.step_target,
        choosing.step_label,
        output="prediction_outputs",
        columns=(("series",),),
    ),
)


#: That of models which are not of transformers.
IMAGE_CLASSIFICATION = next(task for task in TASKS if task.name == "image classification")
#: Tasks of which :meth:`zennit_attn.Explainer.answer` explains whole answers.
ANSWERING = ("next token", *(task.name for task in TASKS if task.read is None))


def task_of(architecture: str | None, name: str) -> Task:
    """Return the task of an architecture.

    Raises
    ------
    InputError
        If there is none.
    """
    for task in TASKS:
        if architecture is not None and architecture in {task.loader, *task.architectures()}:
            return task
    raise InputError(
        f"the model {name!r} is a {architecture or 'model without an architecture in its config'}, expected one for "
        f"{', '.join(task.name for task in TASKS)}; others are explained in Python, with "
        "zennit_attn.InputXGradient(model, composite)(batch, target)"
    )
