"""Random arguments for a model, from the signature of its forward and its configuration.

This module knows what the common arguments mean; it does not know architectures, except those in :data:`SPECIAL`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sweep.sizes import IMAGE, WIDTH

TOKENS = 6
#: Fields of a configuration that hold the id of a token in the place of which an image or a sound comes.
PLACEHOLDERS = {
    "pixel_values": "image_token_id image_token_index media_token_id image_patch_id video_token_id",
    "input_features": "audio_token_id audio_token_index speech_token_id",
    "input_values": "audio_token_id audio_token_index",
}
#: What models say that got another number of placeholders than of features.
MISMATCH = re.compile(r"tokens:? \d+\D.*features:? ?\D*(\d+)|Got (\d+) feature vectors")


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
    return {"pixel_values": torch.randn(1, channels, height, width)}


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


def sound(model: Any, names: Any) -> dict[str, Tensor]:
    """Return a random sound, as features where a model takes them."""
    if "input_features" in names:
        return {"input_features": features(model)}
    if model.config.model_type == "audio-spectrogram-transformer":
        return {"input_values": features(model)}
    return {"input_values": torch.randn(1, 2000)} if "input_values" in names else {}


def inputs_of(model: Any, task: str) -> dict[str, Any]:
    """Return arguments for a model of a task."""
    config, names = model.config, inspect.signature(model.forward).parameters
    inputs: dict[str, Any] = {}
    if "input_ids" in names:
        inputs["input_ids"] = token_ids(config, TOKENS)
    if "pixel_values" in names and "image" in task:
        inputs.update(pixels(model, names))
    if "speech" in task or "audio" in task:
        inputs.update(sound(model, names))
    if "decoder_input_ids" in names and task in ("seq2seq", "speech-seq2seq", "image-text-to-text"):
        inputs["decoder_input_ids"] = token_ids(config, 3)
    if "bbox" in names:
        inputs["bbox"] = torch.tensor([[[1, 2, 3, 4]] * TOKENS])
    if "use_cache" in names:
        inputs["use_cache"] = False
    inputs.update(SPECIAL.get(config.model_type, lambda *_: {})(model, inputs))
    inputs = {name: value for name, value in inputs.items() if value is not None}
    return with_placeholders(model, inputs, names)


def with_placeholders(model: Any, inputs: dict[str, Any], names: Any) -> dict[str, Any]:
    """Return inputs with as many placeholder tokens as an image or a sound has features, as the model counts them."""
    kind = next((name for name in PLACEHOLDERS if name in inputs), None)
    token = first(model.config, PLACEHOLDERS[kind]) if kind else None
    if token is None or "input_ids" not in inputs:
        return inputs
    count, told = 1, None
    # at first one, then as many as the model says, which may count numbers
    for _ in range(3):
        ids = token_ids(model.config, TOKENS)
        inputs["input_ids"] = torch.cat([ids[:, :2], torch.full((1, count), token), ids[:, 2:]], 1)
        if kind == "pixel_values":
            types = {"mm_token_type_ids", "token_type_ids"}.intersection(names)
            inputs.update((name, (inputs["input_ids"] == token).long()) for name in types)
        before, told = told, told_features(model, inputs)
        if told is None:
            break
        # what it says again is a number of features
        count = told // WIDTH if told >= 4 * WIDTH and told != before else told
    return inputs


def told_features(model: Any, inputs: dict[str, Any]) -> int | None:
    """Return how many features a model says that it has, None if it does not complain."""
    try:
        with torch.no_grad():
            model(**inputs)
    except Exception as error:
        found = MISMATCH.search(str(error))
        if found:
            return int(found[1] or found[2])
    return None


def patches(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return pixels as a sequence of patches with their grid, as Siglip 2 takes them."""
    config = first(model.config, "vision_config", model.config)
    width = getattr(config, "num_channels", 3) * config.patch_size**2
    return {
        "pixel_values": torch.randn(1, 16, width),
        "pixel_attention_mask": torch.ones(1, 16, dtype=torch.long),
        "spatial_shapes": torch.tensor([[4, 4]]),
    }


def codes(model: Any) -> dict[str, Any]:
    """Return ids of a sound's codes, a row for each codebook."""
    return {"input_ids": torch.randint(5, 60, (model.config.num_codebooks, TOKENS))}


def image(*shape: int) -> Tensor:
    """Return a random image, with more dimensions before it."""
    return torch.randn(*shape, 3, IMAGE, IMAGE)


def one_of_several(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return pixels with a dimension for several images, or tiles of one."""
    return {"pixel_values": image(1, 1)}


def tiles(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return an image as a whole and as its one tile, with its size."""
    return {"pixel_values": image(1, 2), "image_sizes": torch.tensor([[IMAGE, IMAGE]])}


def sized(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return pixels with the size of the image."""
    return {"pixel_values": image(1), "image_sizes": torch.tensor([[IMAGE, IMAGE]])}


def placed(side: int, width: int) -> dict[str, Any]:
    """Return a square of patches with the place of each."""
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).flip(-1)
    return {"pixel_values": torch.randn(1, side**2, width), "image_position_ids": places[None]}


def flattened(width: int) -> Tensor:
    """Return four patches, each after its row and its column."""
    return torch.cat([torch.tensor([[[1.0, 1], [1, 2], [2, 1], [2, 2]]]), torch.randn(1, 4, width)], -1)


def queries(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return pixels with the instruction that a Q-Former reads."""
    shape = (1, 1) if "video" in model.config.model_type else (1,)
    return {"pixel_values": image(*shape), "qformer_input_ids": torch.tensor([[5, 9, 12]])}


#: Arguments that only one model type has, by its name.
SPECIAL: dict[str, Callable[[Any, dict[str, Any]], dict[str, Any]]] = {
    "bros": lambda model, inputs: {"bbox": inputs["bbox"] / 10},
    "siglip2": patches,
    # it attends to every fourth of the characters
    "canine": lambda model, inputs: {"input_ids": token_ids(model.config, 16)},
    # retrieval has its queries before the text
    "blip-2": lambda model, inputs: (
        {"attention_mask": torch.ones(1, TOKENS + model.config.num_query_tokens).long()}
        if "Retrieval" in type(model).__name__
        else {}
    ),
    "musicgen_decoder": lambda model, inputs: codes(model),
    "musicgen_melody_decoder": lambda model, inputs: codes(model),
    "pop2piano": lambda model, inputs: {"input_ids": None, "input_features": torch.randn(1, 24, WIDTH)},
    "pix2struct": lambda model, inputs: {"flattened_patches": flattened(WIDTH)},
    "kosmos-2.5": lambda model, inputs: {
        "input_ids": token_ids(model.config, model.config.latent_query_num + 2),
        "flattened_patches": flattened(WIDTH),
        "image_embeds_position_mask": torch.tensor([[0, *[1] * model.config.latent_query_num, 0]]),
    },
    "speech-encoder-decoder": lambda model, inputs: {"input_features": None, "input_values": torch.randn(1, 2000)},
    "fun_asr_nano": lambda model, inputs: {
        "input_features": torch.randn(1, 24, 560),
        "input_features_mask": torch.ones(1, 24).long(),
    },
    "qwen3_asr": lambda model, inputs: (
        {"input_features": torch.randn(1, 128, 200), "input_features_mask": torch.ones(1, 200).long()}
        if "input_features" in inputs
        else {}
    ),
    # else its complaint tells the number of sounds
    **dict.fromkeys(
        ("granite_speech", "granite_speech_plus"),
        lambda model, inputs: {"input_features_mask": torch.ones(1, 6).bool()} if "input_features" in inputs else {},
    ),
    "voxtral_realtime": lambda model, inputs: {"input_features": torch.randn(1, 128, 48)},
    "kyutai_speech_to_text": lambda model, inputs: {
        "input_ids": torch.randint(5, 60, (1, TOKENS, model.config.num_codebooks + 1))
    },
    "dia": lambda model, inputs: {
        "decoder_input_ids": torch.randint(5, 60, (1, 3, model.config.decoder_config.num_channels))
    },
    "lxmert": lambda model, inputs: {
        "visual_feats": torch.randn(1, 3, model.config.visual_feat_dim),
        "visual_pos": torch.rand(1, 3, model.config.visual_pos_dim),
    },
    "videoprism": lambda model, inputs: {
        "pixel_values_videos": image(1, getattr(model.config.vision_config, "num_frames", 2))
    },
    # some of its arguments are those of a robot: the noise is what becomes its actions
    "pi0": lambda model, inputs: {
        "input_ids": torch.cat([torch.full((1, 16), model.config.vlm_config.image_token_id), inputs["input_ids"]], 1),
        "pixel_values": image(1, 1),
        "pixel_attention_mask": torch.ones(1, 1).bool(),
        "state": torch.randn(1, model.config.max_state_dim),
        "noise": torch.randn(1, model.config.chunk_size, model.config.max_action_dim),
        "timestep": torch.tensor([0.5]),
    },
    # its pixels are among the arguments that it passes on
    "diffusion_gemma": lambda model, inputs: {
        "input_ids": torch.cat([inputs["input_ids"], torch.full((1, 4), model.config.image_token_id)], 1),
        **placed(6, 768),
    },
    "evolla": lambda model, inputs: {
        "protein_input_ids": inputs["input_ids"],
        "protein_attention_mask": torch.ones(1, TOKENS).long(),
    },
    # else it adds noise
    "vibevoice_asr": lambda model, inputs: (
        {"input_values": torch.randn(1, 1, 32), "sample": False} if "input_values" in inputs else {}
    ),
    "vibevoice": lambda model, inputs: {
        "input_values": torch.randn(1, 1, 32),
        "padding_mask": torch.ones(1, 32).bool(),
        "sample": False,
    },
    "longformer": lambda model, inputs: {"global_attention_mask": torch.tensor([[1] + [0] * (TOKENS - 1)])},
}


def images(names: str, make: Callable[[Any, dict[str, Any]], dict[str, Any]]) -> None:
    """Let some model types have an image of another form, in tasks with images."""
    for name in names.split():
        SPECIAL[name] = lambda model, inputs: make(model, inputs) if "pixel_values" in inputs else {}


images("idefics2 idefics3 perception_lm smolvlm", one_of_several)
images(
    "granite_docling",
    lambda model, inputs: {"pixel_values": image(1, 1), "pixel_attention_mask": torch.ones(1, 1).bool()},
)
images(
    "idefics",
    lambda model, inputs: {"pixel_values": image(1, 1), "image_attention_mask": torch.ones(1, TOKENS, 1).long()},
)
images(
    "kosmos-2",
    lambda model, inputs: {"image_embeds_position_mask": torch.tensor([[0, *[1] * model.config.latent_query_num, 0]])},
)
images("llava_next llava_next_video llava_onevision granite4_vision", tiles)
images("emu3 mistral3 mistral_large4 lighton_ocr", sized)
images("kimi_k25 paddleocr_vl", lambda model, inputs: {"pixel_values": torch.randn(16, 3, 16, 16)})
images("muse_glimmer muse_spark", lambda model, inputs: {"pixel_values": torch.randn(16, 1536)})
images(
    "nemotron_h_omni",
    lambda model, inputs: {"pixel_values": torch.randn(16, 768), "image_grid_hw": torch.tensor([[4, 4]])},
)
images(
    "molmo2",
    lambda model, inputs: {
        "pixel_values": torch.randn(1, 16, 768),
        "image_token_pooling": torch.arange(16).reshape(4, 4),
        "image_grids": torch.tensor([[2, 2, 0, 0]]),
    },
)
images("fuyu", lambda model, inputs: {"pixel_values": torch.randn(1, 4, 768)})
images(
    "inkling2",
    lambda model, inputs: {"pixel_values": torch.randn(4, 32, 32, 3), "image_grid_thw": torch.tensor([[1, 2, 2]])},
)
images("inkling_mm_model", lambda model, inputs: {"pixel_values": torch.randn(4, 2, 16, 16, 3)})
images("gemma4", lambda model, inputs: placed(6, 768))
images("gemma4_unified", lambda model, inputs: placed(2, 6912))
images("instructblip instructblipvideo", queries)
images("lfm2_vl", patches)
images("lfm3_vl", lambda model, inputs: {**patches(model, inputs), "pixel_values": torch.randn(16, 1536)})
images("deepseek_vl_hybrid", lambda model, inputs: {"high_res_pixel_values": image(1)})
images(
    "mllama",
    lambda model, inputs: {
        "pixel_values": image(1, 1, model.config.vision_config.max_num_tiles),
        "aspect_ratio_ids": torch.tensor([[1]]),
        "aspect_ratio_mask": torch.ones(1, 1, model.config.vision_config.max_num_tiles, dtype=torch.long),
    },
)
images(
    "minicpm_ocr minicpmv4_6 minicpmv4_7",
    lambda model, inputs: {
        "pixel_values": torch.randn(1, 3, *(model.config.vision_config.patch_size * n for n in (1, 16))),
        "target_sizes": torch.tensor([[4, 4]]),
    },
)
images("video_llama_3", lambda model, inputs: {"image_merge_sizes": torch.tensor([1])})
