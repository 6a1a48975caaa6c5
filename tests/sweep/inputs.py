"""Random arguments for a model, from the signature of its forward and its configuration.

This module knows what the common arguments mean; it does not know architectures, except those in :data:`SPECIAL`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import torch
from configs import IMAGE
from torch import Tensor

TOKENS = 6
#: Fields of a configuration that hold the id of a token in the place of which an image or a sound comes.
PLACEHOLDERS = {
    "pixel_values": "image_token_id image_token_index media_token_id image_patch_id",
    "input_features": "audio_token_id audio_token_index speech_token_id",
    "input_values": "audio_token_id audio_token_index",
}
#: What models say that got another number of placeholders than of features.
MISMATCH = re.compile(r"tokens:? (\d+)\D.*features:? ?\D*(\d+)")


def special_ids(config: Any) -> set[int]:
    """Return the ids in a configuration that mean something."""
    ids: set[int] = set()
    for name, value in vars(config).items():
        if hasattr(value, "to_dict"):
            ids |= special_ids(value)
        if re.search(r"(_id|_index|_token|_ids)$", name):
            ids |= {item for item in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(item, int)}
    return ids


def token_ids(config: Any, count: int) -> Tensor:
    """Return ids of ordinary tokens, the last one that of the end of a sequence, where there is one."""
    taken = special_ids(config)
    free = [number for number in range(5, 100) if number not in taken]
    ids = [free[7 * place % len(free)] for place in range(1, count + 1)]
    end = getattr(config.get_text_config(), "eos_token_id", None)
    end = end[0] if isinstance(end, (list, tuple)) else end
    return torch.tensor([[*ids[:-1], ids[-1] if end is None or end < 0 else end]])


def first(config: Any, names: str, default: Any = None) -> Any:
    """Return the first of several fields that a configuration, or one within it, has."""
    children = ("vision_config", "audio_config", "encoder_config", "encoder", "thinker_config")
    for part in (config, *(getattr(config, child, None) for child in children)):
        for name in names.split():
            value = getattr(part, name, None)
            if value is not None:
                return value
    return default


def pixels(model: Any, names: Any) -> dict[str, Tensor]:
    """Return random pixels, as patches where a model takes a grid of them."""
    config = model.config
    channels = first(config, "num_channels in_channels in_chans", 3)
    channels = channels if isinstance(channels, int) else 3
    if "image_grid_thw" in names or "image_grid_hws" in names:
        size, depth = first(config, "patch_size", 16), first(config, "temporal_patch_size", 1)
        grid = {"image_grid_thw": torch.tensor([[1, 4, 4]])} if "image_grid_thw" in names else {}
        return {"pixel_values": torch.randn(16, channels * depth * size * size), **grid}
    size = first(config, "image_size", IMAGE)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    values = torch.randn(1, channels, height, width)
    return {"pixel_values": values}


def features(model: Any) -> Tensor:
    """Return random features of a spectrogram."""
    config = model.config
    bins = first(config, "num_mel_bins input_feat_per_channel feature_projection_input_dim input_dim feature_size", 80)
    if config.model_type == "audio-spectrogram-transformer":
        return torch.randn(1, config.max_length, bins)
    places = first(config, "max_source_positions")
    if places is not None and "input_feat_per_channel" not in vars(config):
        return torch.randn(1, bins, 2 * places)
    return torch.randn(1, 24, bins)


def inputs_of(model: Any, task: str) -> dict[str, Any]:
    """Return arguments for a model of a task."""
    config, names = model.config, inspect.signature(model.forward).parameters
    inputs: dict[str, Any] = {}
    if "input_ids" in names:
        inputs["input_ids"] = token_ids(config, TOKENS)
    if "pixel_values" in names and "image" in task:
        inputs.update(pixels(model, names))
    sound = "speech" in task or "audio" in task
    if "input_features" in names and sound:
        inputs["input_features"] = features(model)
    elif "input_values" in names and sound:
        spectrogram = config.model_type == "audio-spectrogram-transformer"
        inputs["input_values"] = features(model) if spectrogram else torch.randn(1, 2000)
    if "decoder_input_ids" in names and task in ("seq2seq", "speech-seq2seq", "image-text-to-text"):
        inputs["decoder_input_ids"] = token_ids(config, 3)
    if "bbox" in names:
        inputs["bbox"] = torch.tensor([[[1, 2, 3, 4]] * TOKENS])
    if "use_cache" in names:
        inputs["use_cache"] = False
    inputs.update(SPECIAL.get(config.model_type, lambda *_: {})(model, inputs))
    return with_placeholders(model, inputs, names)


def with_placeholders(model: Any, inputs: dict[str, Any], names: Any) -> dict[str, Any]:
    """Return inputs with as many placeholder tokens as an image or a sound has features, as the model counts them."""
    kind = next((name for name in PLACEHOLDERS if name in inputs), None)
    token = first(model.config, PLACEHOLDERS.get(kind, "")) if kind else None
    if token is None or "input_ids" not in inputs:
        return inputs
    count = 1
    for _ in range(3):
        place = torch.full((1, count), token)
        ids = token_ids(model.config, TOKENS)
        inputs["input_ids"] = torch.cat([ids[:, :2], place, ids[:, 2:]], 1)
        for name in ("mm_token_type_ids", "token_type_ids"):
            if name in names and kind == "pixel_values":
                inputs[name] = (inputs["input_ids"] == token).long()
        try:
            with torch.no_grad():
                model(**inputs)
        except Exception as error:
            found = MISMATCH.search(str(error))
            if not found or int(found[2]) == count:
                break
            count = int(found[2]) if int(found[1]) == count else int(found[2]) * count // int(found[1])
            continue
        break
    return inputs


def patches(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return pixels as a sequence of patches with their grid, as Siglip 2 takes them."""
    config = first(model.config, "vision_config", model.config)
    width = config.num_channels * config.patch_size**2
    return {
        "pixel_values": torch.randn(1, 16, width),
        "pixel_attention_mask": torch.ones(1, 16, dtype=torch.long),
        "spatial_shapes": torch.tensor([[4, 4]]),
    }


#: Arguments that only one model type has, by its name.
SPECIAL: dict[str, Callable[[Any, dict[str, Any]], dict[str, Any]]] = {
    "bros": lambda model, inputs: {"bbox": inputs["bbox"] / 10},
    "siglip2": patches,
    "dia": lambda model, inputs: {"decoder_input_ids": torch.randint(5, 60, (1, 3, model.config.decoder_config.num_channels))},
    "lxmert": lambda model, inputs: {
        "visual_feats": torch.randn(1, 3, model.config.visual_feat_dim),
        "visual_pos": torch.rand(1, 3, model.config.visual_pos_dim),
    },
    "videoprism": lambda model, inputs: {"pixel_values_videos": torch.randn(1, 2, 3, IMAGE, IMAGE)},
    "longformer": lambda model, inputs: {"global_attention_mask": torch.tensor([[1] + [0] * (TOKENS - 1)])},
}
