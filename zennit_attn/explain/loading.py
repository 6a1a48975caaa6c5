"""Loading: a model and its reader by a name on the hub, in a folder, in timm or in torchvision.

What a person can mend is an :class:`~zennit_attn.errors.InputError`.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

from ..composites.configuration import load_composite
from ..composites.transformer import TransformerComposite
from ..errors import InputError
from ..hints import nearest
from ..sharding import OffloadedValues, whole

DTYPES = ("float32", "float64", "bfloat16", "float16")
#: What a name begins with that is no transformers model.
TIMM, TORCHVISION = "timm:", "torchvision:"


def first_line(text: str) -> str:
    """Return the first line of a message that has words in it."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "no message")


def load(kind: Any, name: str, **options: Any) -> Any:
    """Return what an auto class of transformers loads by a name; code that comes with a model is never run.

    Raises
    ------
    InputError
        If it cannot.
    """
    with refused(
        f"{kind.__name__} got the model {name!r} and cannot load it",
        "expected a folder that save_pretrained wrote, or a name on the Hugging Face hub, without code of its own: "
        "check the spelling and the connection",
    ):
        # left out, transformers would ask on the terminal
        return kind.from_pretrained(name, trust_remote_code=False, **options)


def load_model(kind: Any, name: str, allow_pickle: bool, **options: Any) -> Any:
    """Return the model that an auto class of transformers loads by a name.

    Parameters
    ----------
    kind : type
        The auto class.
    name : str
        The name.
    allow_pickle : bool
        Whether its weights may be pickles, of which torch takes numbers alone, and not safetensors only.
    **options
        Others of ``from_pretrained``.

    Raises
    ------
    InputError
        If it cannot.
    """
    try:
        # None: safetensors, if there are some
        return load(kind, name, use_safetensors=None if allow_pickle else True, **options)
    except InputError as error:
        if allow_pickle or "safetensors" not in str(error):
            raise
        raise InputError(
            f"{error}. Weights that are pickles are not loaded by themselves: convert them to safetensors, or say "
            "--allow-pickle, in Python allow_pickle=True"
        ) from error


@contextmanager
def refused(what: str, advice: str) -> Iterator[None]:
    """Turn whatever a library raises, of which there are many readers, into an InputError.

    Raises
    ------
    InputError
        At any error.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{what} ({first_line(str(error)) or type(error).__name__}); {advice}") from error


def placed(model: Any, device: torch.device, dtype: str | None) -> Any:
    """Return a model on a device, in a dtype if there is one given.

    Raises
    ------
    InputError
        If it has no room there, or has to stay as it is, as some quantised models do.
    """
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"got the dtype {dtype!r}, expected one of {', '.join(DTYPES)}; {nearest(dtype, DTYPES)}")
    try:
        return model.to(device, getattr(torch, dtype)) if dtype else model.to(device)
    except (RuntimeError, ValueError) as error:
        wanted = f"{device} in {dtype}" if dtype else str(device)
        raise InputError(
            f"cannot put {type(model).__name__} on {wanted} ({first_line(str(error))}); try another device, and "
            "the dtype bfloat16, or none for quantised models"
        ) from error


def places_of(device_map: Any, tp_plan: str | None, name: str) -> dict[str, Any]:
    """Return the options of ``from_pretrained`` that say where a model is put, none for one device.

    Raises
    ------
    InputError
        If both are given, the model is not of transformers, or there are no processes to share it.
    """
    if device_map is None and tp_plan is None:
        return {}
    if device_map is not None and tp_plan is not None:
        raise InputError("got a device_map and a tp_plan, expected one of them")
    if name.startswith((TIMM, TORCHVISION)):
        raise InputError(f"got a device_map or a tp_plan for {name}, expected a model of transformers")
    if device_map is not None:
        # what goes to a disk needs a folder, which lives as long as the process
        folder = tempfile.TemporaryDirectory(prefix="zennit-attn-")
        atexit.register(folder.cleanup)
        return {"device_map": device_map, "offload_folder": folder.name}
    if tp_plan != "auto":
        raise InputError(f"got the tp_plan {tp_plan!r}, expected 'auto': the one that the model brings")
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        raise InputError(
            "got a tp_plan in a single process, expected several: torchrun --nproc-per-node 2 -m zennit_attn ..."
        )
    config: Any = getattr(importlib.import_module("transformers.distributed"), "DistributedConfig", None)
    takes = config is not None and "tp_plan" in inspect.signature(config).parameters
    return {"distributed_config": config(tp_plan=tp_plan)} if takes else {"tp_plan": tp_plan}


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
        raise InputError(f"got the device {name!r}, expected auto, cpu, cuda, cuda:1 or mps") from None
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if counts.get(device.type, 0) <= (device.index or 0):
        raise InputError(
            f"got the device {name}, but torch finds {counts.get(device.type, 0)} such devices here; use the "
            "device cpu, or a torch that is built for the device"
        )
    return device


def composite_of(given: str | TransformerComposite) -> TransformerComposite:
    """Return a composite by the name of a preset or a file, or as it is.

    Raises
    ------
    InputError
        If there is none, or its file is wrong.
    """
    if isinstance(given, TransformerComposite):
        return given
    try:
        return load_composite(given)
    except (OSError, TypeError, ValueError) as error:
        raise InputError(f"the composite: {first_line(str(error))}") from error


def check_composite(composite: TransformerComposite, model: torch.nn.Module) -> None:
    """Raise InputError if a composite does not suit a model."""
    try:
        with composite.context(model):
            pass
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"the composite: {first_line(str(error))}") from error


def timm_model(name: str, empty: bool = False) -> tuple[Any, Any]:
    """Return a model of timm by its name, or by ``NAME@FILE`` with weights of a file, and its transform.

    Raises
    ------
    InputError
        If timm is not installed, or has no such model.
    """
    if importlib.util.find_spec("timm") is None:
        raise InputError(f"got {TIMM}{name}, but timm is not installed: pip install timm")
    timm: Any = importlib.import_module("timm")
    name, _, file = name.partition("@")
    if not name.startswith("hf-hub:") and name.split(".")[0] not in timm.list_models():
        raise InputError(f"got {TIMM}{name}, which timm does not have; {nearest(name, timm.list_models())}")
    with refused(f"timm cannot load {name!r}", "expected a name with weights that can be reached, or NAME@FILE"):
        if empty:
            with torch.device("meta"):
                return timm.create_model(name), None
        model = timm.create_model(name, pretrained=not file)
        if file:
            # some versions of timm would load any pickle
            timm.models.load_checkpoint(model, file, weights_only=True)
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    return model, transform


def torchvision_model(name: str, empty: bool = False) -> tuple[Any, Any, list[str] | None]:
    """Return a model of torchvision by its name, its transform, and the names of its classes.

    Its weights are the default ones of torchvision, or those of a file: ``torchvision:vit_b_16@weights.pth``.

    Raises
    ------
    InputError
        If torchvision has no such model, or the weights do not fit.
    """
    import torchvision

    name, _, file = name.partition("@")
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise InputError(f"got {TORCHVISION}{name}, which torchvision does not have; {nearest(name, known)}")
    weights = torchvision.models.get_model_weights(name).DEFAULT
    with refused(f"torchvision cannot load {name!r}", f"expected weights that can be reached, or {name}@FILE"):
        if empty or file:
            with torch.device("meta" if empty else "cpu"):
                model = torchvision.models.get_model(name)
            if file:
                model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        else:
            model = torchvision.models.get_model(name, weights=weights)
    return model, weights.transforms(), list(weights.meta.get("categories", ())) or None


def check_pooling(name: str) -> None:
    """Raise InputError if an encoder of sentences says that it takes another than the mean of its hidden states."""
    modules = content_in(name, "modules.json") or []
    # a normalisation changes no cosine, and dropout nothing
    others = [str(module["type"]).split(".")[-1] for module in modules]
    others = [kind for kind in others if kind not in ("Transformer", "Pooling", "Normalize", "Dropout")]
    if others:
        raise InputError(
            f"got the model {name!r} with {' and '.join(others)} after its encoder, expected the mean of its hidden "
            "states alone: put a module around it that does the same, and explain that with zennit_attn.InputXGradient"
        )
    content = content_in(name, "1_Pooling/config.json") or {}
    modes = [key for key, value in content.items() if key.startswith("pooling_mode") and value is True]
    if modes not in ([], ["pooling_mode_mean_tokens"]):
        raise InputError(
            f"got the model {name!r} with {' and '.join(modes)}, expected pooling_mode_mean_tokens: "
            "put a module around it that pools in its own way, and explain that with zennit_attn.InputXGradient"
        )


def content_in(name: str, file: str) -> Any:
    """Return what a JSON file of a model has, None if there is no such file."""
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    found = transformers.utils.hub.cached_file(name, file, **quiet)
    return None if found is None else json.loads(Path(found).read_text(encoding="utf-8"))


def digest_of(model: torch.nn.Module) -> str:
    """Return a fingerprint of a model: of its parameters' names and shapes, and of some values of each.

    Two models of one fingerprint are the same for all that matters here; it is no protection from forgery.
    """
    found = hashlib.sha256()
    loaded = OffloadedValues(model)
    for name, parameter in model.named_parameters():
        found.update(json.dumps([name, list(parameter.shape), str(parameter.dtype)]).encode())
        values = whole(loaded.get(name, parameter).detach()).flatten()
        if values.device.type != "meta" and values.numel():
            some = values[:: max(1, values.numel() // 64)][:64]
            found.update(some.to("cpu", torch.float64).numpy().tobytes())
    return found.hexdigest()[:16]
