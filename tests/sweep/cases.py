"""The cases of the sweep: every architecture of transformers' auto-mappings, of torchvision and of timm.

A case is named ``group/architecture``; :func:`run` builds it and checks it.
"""

from __future__ import annotations

import functools
import re
import time
import traceback
from typing import Any

import timm
import torch
import torchvision
import transformers
from torch.utils._pytree import tree_map
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from sweep.checks import Refused, check, explained
from sweep.configs import tiny_config
from sweep.inputs import inputs_of
from sweep.leaves import call, is_floating, randomise, zero_constants

#: Groups of cases, the auto class of each and its mapping.
TASKS = {
    "causal-lm": ("AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"),
    "masked-lm": ("AutoModelForMaskedLM", "MODEL_FOR_MASKED_LM_MAPPING_NAMES"),
    "seq2seq": ("AutoModelForSeq2SeqLM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"),
    "sequence-classification": (
        "AutoModelForSequenceClassification",
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    ),
    "token-classification": ("AutoModelForTokenClassification", "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES"),
    "question-answering": ("AutoModelForQuestionAnswering", "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES"),
    "image-classification": ("AutoModelForImageClassification", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES"),
    "zero-shot-image": (
        "AutoModelForZeroShotImageClassification",
        "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    ),
    "audio-classification": ("AutoModelForAudioClassification", "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES"),
    "speech-seq2seq": ("AutoModelForSpeechSeq2Seq", "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES"),
    "image-text-to-text": ("AutoModelForImageTextToText", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"),
}


#: Settings that only one task of a model type needs.
SETTINGS = {
    "causal-lm/reformer": {"is_decoder": True},
    "zero-shot-image/blip-2": {"qformer_config.use_qformer_text_input": True},
}

#: What the class in the mapping takes of a configuration, where the auto class does not find that class.
DIRECT = {
    "causal-lm/musicgen": lambda config: config.decoder,
    "causal-lm/musicgen_melody": lambda config: config.decoder,
    "image-text-to-text/evolla": lambda config: config,
}

#: What a status does not tell by itself.
NOTES = {
    **dict.fromkeys(
        ("causal-lm/gemma4_assistant", "causal-lm/gemma4_unified_assistant"),
        "transformers refuses that all of its layers reuse keys and values, as they have to",
    ),
    "causal-lm/hrm_text": "with L_bp_cycles = L_cycles: else cycles under torch.no_grad lose a share",
    "image-text-to-text/chameleon": "its visual tokens are codes",
    "image-text-to-text/emu3": "its visual tokens are codes",
    "image-text-to-text/ovis2": "its visual tokens are an argmax",
    **dict.fromkeys(
        ("speech-seq2seq/granite_speech", "speech-seq2seq/granite_speech_plus"),
        "a softmax in the middle of its encoder is no attention",
    ),
    "speech-seq2seq/vibevoice": "it encodes sound under torch.no_grad",
    "speech-seq2seq/vibevoice_asr": "it encodes sound under torch.no_grad",
    "zero-shot-image/videoprism": "its logits are probabilities, of which similarities near 0 tell little",
}


def all_cases() -> list[str]:
    """Return the names of all cases."""
    cases = []
    for task, (_, names) in TASKS.items():
        for kind, classes in getattr(modeling_auto, names).items():
            several = isinstance(classes, tuple) and len(classes) > 1
            cases += [f"{task}/{kind}:{name}" for name in classes] if several else [f"{task}/{kind}"]
    cases += [f"torchvision/{name}" for name in torchvision.models.list_models(module=torchvision.models)]
    cases += [f"timm/{family}" for family in timm.list_modules()]
    return cases


def build(case: str) -> tuple[Any, dict[str, Any]]:
    """Return the tiny model of a case, without additive constants, and its inputs."""
    torch.manual_seed(0)
    group, kind = case.split("/", 1)
    if group == "torchvision":
        model, inputs = build_torchvision(kind)
    elif group == "timm":
        model, inputs = build_timm(kind)
    else:
        model = build_transformers(group, kind)
        inputs = None
    model.eval()
    randomise(model)
    zero_constants(model)
    return model, inputs_of(model, group) if inputs is None else inputs


def build_transformers(task: str, kind: str) -> Any:
    """Return the model of a task and a model type, or of one of its classes, ``type:class``."""
    case = f"{task}/{kind}"
    kind, _, name = kind.partition(":")
    config = tiny_config(CONFIG_MAPPING[kind])
    if case in DIRECT:
        return getattr(transformers, getattr(modeling_auto, TASKS[task][1])[kind])(DIRECT[case](config))
    for field, value in SETTINGS.get(case, {}).items():
        *path, last = field.split(".")
        setattr(functools.reduce(getattr, path, config), last, value)
    if name:
        config.architectures = [name]
    return getattr(transformers, TASKS[task][0]).from_config(config)


def build_torchvision(name: str) -> tuple[Any, dict[str, Any]]:
    """Return a classification model of torchvision, and the smallest image that it takes."""
    sizes = {"inception_v3": 96, "maxvit_t": 224}
    size = sizes.get(name, 64)
    options: dict[str, Any] = {"num_classes": 10, "weights": None}
    if name.startswith("vit"):
        size = 14 * 4 if name.endswith("14") else 64
        options["image_size"] = size
    if name in ("inception_v3", "googlenet"):
        options |= {"init_weights": False, "aux_logits": False}
    return torchvision.models.get_model(name, **options), {"x": torch.randn(1, 3, size, size)}


#: Arguments that families of timm need.
FAMILIES = {
    # a class token of zero attends to nothing
    "coat": {"global_pool": "avg"},
}


def families() -> dict[str, str]:
    """Return the smallest model of each of timm's families, as its name tells."""
    return {family: min(timm.list_models(module=family), key=smallness) for family in timm.list_modules()}


def smallness(name: str) -> tuple[int, int, str]:
    """Return a key by which models are sorted by their size: words for small first, then small numbers."""
    words = (
        "test zepto atto femto pico nano xxtiny xxsmall xxs xtiny xsmall xs tiny ti mini small s s0 m0 b0 t0".split()
    )
    parts = re.split(r"[_\W]", name)
    rank = min((words.index(part) for part in parts if part in words), default=len(words))
    numbers = [int(number) for number in re.findall(r"\d+", name)]
    return rank, max(numbers, default=0), name


def build_timm(family: str) -> tuple[Any, dict[str, Any]]:
    """Return the smallest model of a family of timm, and an image as small as it takes."""
    name = families()[family]
    wanted = timm.get_pretrained_cfg(name).input_size
    # 84 is a multiple of a patch of 14
    for size in (64, 128, 84, wanted[-1]):
        for options in ({"img_size": size, "depth": 4}, {"img_size": size}, {"depth": 4}, {}):
            try:
                model = timm.create_model(name, num_classes=10, **options, **FAMILIES.get(family, {})).eval()
                image = torch.randn(1, wanted[0], size, size)
                with torch.no_grad():
                    if bool(model(image).isfinite().all()):
                        return model, {"x": image}
            except Exception as error:
                failure = error
    raise failure


def run(case: str) -> dict[str, Any]:
    """Return the result of a case."""
    begin = time.monotonic()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    result: dict[str, Any] = {"case": case}
    stage = "cannot be built"
    try:
        model, inputs = build(case)
        model, inputs = in_float64(model, inputs)
        stage = "fails"
        result |= check(model, inputs)
    except Refused as error:
        result |= {"status": "refused", "note": str(error)}
    except Exception as error:
        note = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if "allocate memory" in note:
            stage, note = "cannot be built", "more than a worker's memory: cannot allocate memory"
        result |= {"status": stage, "note": note[:300], "traceback": traceback.format_exc()[-3000:]}
    if case in NOTES:
        result["note"] = "; ".join(filter(None, (result.get("note"), NOTES[case])))
    return result | {"seconds": round(time.monotonic() - begin, 1)}


def in_float64(model: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return model and inputs in float64, or in float32 if a kernel takes nothing else or memory is short.

    Raises
    ------
    Exception
        What the model raises in both.
    """
    try:
        return converted(model, inputs, torch.float64)
    except Exception as error:
        if not any(word in str(error).lower() for word in ("dtype", "double", "float", "memory")):
            raise
    return converted(model, inputs, torch.float32)


def converted(model: Any, inputs: dict[str, Any], dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """Return model and inputs of a type, in which the model runs."""
    model = model.to(dtype)
    inputs = tree_map(lambda value: value.to(dtype) if is_floating(value) else value, inputs)
    with torch.no_grad():
        logits = explained(call(model, inputs))
    if dtype == torch.float64 and not bool(logits.isfinite().all()):
        # the smallest number of one type is put into a tensor of the other
        raise FloatingPointError("outputs are not finite in this dtype")
    return model, inputs
