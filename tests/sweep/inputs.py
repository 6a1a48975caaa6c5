"""Random arguments for a model, from the signature of its forward and its configuration.

This module knows what the common arguments mean; it does not know architectures, except those in :data:`BUILDERS`.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
from configs import IMAGE

TOKENS = 6


def special_ids(config: Any) -> set[int]:
    """Return the ids in a configuration that mean something."""
    ids: set[int] = set()
    for name, value in config.to_dict().items():
        if isinstance(value, dict) and hasattr(getattr(config, name, None), "to_dict"):
            ids |= special_ids(getattr(config, name))
        if re.search(r"(_id|_index|_token|_ids)$", name):
            ids |= {item for item in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(item, int)}
    return ids


def token_ids(config: Any, count: int) -> torch.Tensor:
    """Return ids of ordinary tokens, the last one that of the end of a sequence, where there is one."""
    taken = special_ids(config)
    free = [number for number in range(5, 100) if number not in taken]
    ids = [free[7 * place % len(free)] for place in range(1, count + 1)]
    end = getattr(config.get_text_config(), "eos_token_id", None)
    end = end[0] if isinstance(end, (list, tuple)) else end
    return torch.tensor([[*ids[:-1], ids[-1] if end is None or end < 0 else end]])


def first(config: Any, names: str, default: Any) -> Any:
    """Return the first of several fields that a configuration, or one within it, has."""
    for name in names.split():
        for part in (config, *(getattr(config, child, None) for child in ("vision_config", "audio_config", "encoder_config", "encoder"))):
            value = getattr(part, name, None)
            if value is not None:
                return value
    return default


def pixels(config: Any) -> torch.Tensor:
    """Return random pixels."""
    size = first(config, "image_size", IMAGE)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    channels = first(config, "num_channels in_channels", 3)
    return torch.randn(1, channels if isinstance(channels, int) else 3, height, width)


def features(model: Any, config: Any) -> torch.Tensor:
    """Return random features of a spectrogram."""
    bins = first(config, "num_mel_bins input_feat_per_channel feature_projection_input_dim input_dim", 80)
    if hasattr(config, "max_source_positions") and model.config.model_type == "whisper":
        return torch.randn(1, bins, 2 * config.max_source_positions)
    return torch.randn(1, first(config, "max_length", 24) if "AST" in type(model).__name__ else 24, bins)


def inputs_of(model: Any, task: str) -> dict[str, Any]:
    """Return arguments for a model of a task."""
    config, names = model.config, inspect.signature(model.forward).parameters
    inputs: dict[str, Any] = {}
    if "input_ids" in names:
        inputs["input_ids"] = token_ids(config, TOKENS)
    if "pixel_values" in names and "image" in task:
        inputs["pixel_values"] = pixels(config)
    if "input_values" in names and "input_ids" not in inputs:
        bins = getattr(config, "num_mel_bins", None) if "Spectrogram" in config.model_type or config.model_type.startswith("audio-spec") else None
        inputs["input_values"] = torch.randn(1, 2000) if bins is None else torch.randn(1, config.max_length, bins)
    if "input_features" in names and "input_ids" not in inputs:
        inputs["input_features"] = features(model, config)
    if "decoder_input_ids" in names and ("seq2seq" in task or task == "image-text-to-text"):
        inputs["decoder_input_ids"] = token_ids(config, 3)
    if "bbox" in names:
        inputs["bbox"] = torch.tensor([[[1, 2, 3, 4]] * TOKENS])
        if config.model_type == "bros":
            inputs["bbox"] = inputs["bbox"] / 10
    if "use_cache" in names:
        inputs["use_cache"] = False
    return inputs
