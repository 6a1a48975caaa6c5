"""Tiny configurations of transformers' models, from the configuration classes alone.

Sizes are recognised by the names of a configuration's fields, sub-configurations are shrunk in turn, and whatever is
``None`` is left for the class to derive. ``OVERRIDES`` has what names cannot tell; it does not list sizes that would
only be nicer.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import transformers

WIDTH, HEADS, HEAD_WIDTH, HIDDEN, VOCABULARY, POSITIONS, IMAGE = 64, 4, 16, 128, 128, 64, 64


def at_most(limit: int) -> Callable[[Any], Any]:
    """Return a function that limits a number, or each of a list; negative ones mean something else."""
    return lambda value: (
        [at_most(limit)(item) for item in value] if isinstance(value, (list, tuple)) else min(value, limit)
    )


def largest(value: Any) -> int:
    """Return the largest number of a list, or the number."""
    return max(map(largest, value), default=0) if isinstance(value, (list, tuple)) else value


def patch(value: Any) -> Any:
    """Return a patch size that divides the tiny image; those of several stages stay."""
    if isinstance(value, (list, tuple)):
        return [patch(item) for item in value] if len(value) == 2 else None
    return 16 if value > 8 else value


def some(value: Any, size: int) -> Any:
    """Return a size for a number or for each of a list; zero and negative ones mean something else."""
    if isinstance(value, (list, tuple)):
        return [some(item, size) for item in value]
    return size if value > 0 else value


def few_heads(value: Any) -> Any:
    """Return a few heads, in lists one at first."""
    if isinstance(value, (list, tuple)):
        return [min(2 ** (few_heads(item).bit_length() - 1), HEADS) for item in value]
    return min(value, HEADS)


def widths(value: Any) -> Any:
    """Return a width, in lists a small one and then larger ones, equal where the defaults are."""
    if not isinstance(value, (list, tuple)):
        return some(value, WIDTH)
    if value and isinstance(value[0], (list, tuple)):
        return [widths(item) for item in value]
    ranks = sorted(set(value))
    return [32 if ranks.index(item) == 0 and len(ranks) > 1 else WIDTH for item in value]


#: Pattern of a field's name, and its tiny value or a function of its default; the first that fits decides.
SIZES: list[tuple[str, Any]] = [
    # not sizes, whatever their names look like
    (r"num_conv_pos_embedding_groups", 4),
    (
        r"_ratio$|_rate$|[a-z]{5}_groups$|^[qkv]_groups$|_factor$|_std$|vision_feature_layer|_act$|chunk_size_feed_forward|rescale_every",
        None,
    ),
    (r"num_(nextn_predict|mtp)_layers|num_kv_shared_layers|num_mem_blocks|num_adapter_layers", None),
    (r"^(spatial_merge_size|temporal_patch_size|num_hidden_groups|inner_group_num|type_vocab_size)$", None),
    (r"^(spatial_vision_layer|max_window_layers|conditional_layer|num_codebooks|num_conv_layers)$", None),
    # tokens: generic ids come from `token_ids`
    (r"vocab_size_per_layer_input|vocab_size$|encoder_hash_byte_group_vocab", VOCABULARY),
    (r"_vocab_size$|num_embeddings$|num_hash_buckets|codebook_size", VOCABULARY),
    # layers, and how often a layer is of another kind
    (r"first_k_dense_replace|moe_layer_start_index|num_dense_layers|insert_layer_id|altup_active_idx", at_most(1)),
    (r"(interval|_period|every_n_layers|_frequency|sparse_step|sliding_window_pattern|layer_group_size)$", at_most(2)),
    (r"attn_layer_offset|expert_layer_offset", at_most(1)),
    (
        r"^(n_layers?|num_layers|layers|depth|resampler_depth)$|_layers$|_blocks$|^num_self_attends_per_block$",
        at_most(4),
    ),
    (r"^depths$|^num_block_repeats$|^block_sizes$", lambda v: [2] + [1] * (len(v) - 1)),
    # experts
    (r"^(num|n|moe_num)_?(routed_|local_)?experts$|^zero_expert_num$", at_most(4)),
    (r"experts_per_tok|moe_top_?k|moe_k$|^top_?k$", at_most(2)),
    (r"^(mamba_)?n_?groups$|^n_group$", at_most(2)),
    (r"^topk_group$", 1),
    (r"lora_rank|^laurel_rank|_rank$", 16),
    # heads
    (r"^(linear_num_key_heads)$", 2),
    (r"(^|_)(n_heads?|num_heads|attention_heads|heads|num_head)$|mamba_heads", lambda v: few_heads(v)),
    (r"qk_rope_head_dim|rotary_dim|d_rel$", at_most(8)),
    (
        r"head_dim|dim_head$|head_size$|head_width$|d_kv$|kv_channels|mamba_d_head|d_head$|^key_dim$|hidden_size_per_head",
        lambda v: some(v, HEAD_WIDTH),
    ),
    # widths
    (
        r"intermediate|ffn|d_ff$|dff$|dim_ff$|n_inner|mlp_dim|feed_forward|d_inner|hidden_dim$|_mid_dim",
        lambda v: some(v, HIDDEN),
    ),
    (
        r"(hidden|embedding|embd|embed|model|proj|projector|text|vision|output|input|adapter)_?(size|dim|proj_size|input_dim|output_dim|in_dim|out_dim)s?$",
        lambda v: widths(v),
    ),
    (
        r"^(d_model|n_embd|dim|emb_dim|d_latents|conv_dim|hidden_sizes?|hidden_size_\w+|project_dim|moe_hidden_size|base_channels|base_attn_unit_dims)$",
        lambda v: widths(v),
    ),
    (
        r"(_dim|_dims|_channels|_units|hidden_size|embed_hidden_size|projection_size)$",
        lambda v: widths(v) if largest(v) > 32 else None,
    ),
    # positions, windows, chunks
    (r"^(num_conv_pos_embeddings)$", 16),
    (r"max_source_positions", 32),
    (
        r"max_\w*position|^n_positions$|^n_ctx$|max_seq_len|context_length|^max_pos_emb$|position_embedding_size",
        at_most(POSITIONS),
    ),
    (
        r"sliding_window(_size)?$|local_attention$|attention_window_size|attention_chunk_size|^attention_window$|keep_window_size",
        4,
    ),
    (r"^window_size$", lambda v: None if isinstance(v, (list, tuple)) else 64 if v > 64 else 2),
    (r"chunk_size$|block_size$|segment_means_seq_len|index_block_size", at_most(8)),
    (r"index_topk|num_latents|n_latents|num_query_tokens|latent_query_num|prompt_length|query_num", at_most(4)),
    # images
    (r"^(image_size|input_size|img_size)$", lambda v: [IMAGE] * len(v) if isinstance(v, (list, tuple)) else IMAGE),
    (r"^patch_size$", patch),
]
#: Fields of which the default is None, and what they need if the class does not derive it.
FILLED = {
    "head_dim": HEAD_WIDTH,
    "num_experts_per_tok": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "vocab_size": VOCABULARY,
}
COMPILED = [(re.compile(pattern), value) for pattern, value in SIZES]
TOKEN = re.compile(r"(_token_id|_token_index|_index|_token|_id|_token_ids)$")


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Return the default of a configuration's field."""
    if field.default is not dataclasses.MISSING:
        return field.default
    return None if field.default_factory is dataclasses.MISSING else field.default_factory()


def key_value_heads(name: str, values: dict[str, Any]) -> int:
    """Return all heads where the default has as many keys as queries, else half of them."""
    value, heads = values[name], [values[key] for key in values if key.endswith("num_attention_heads")]
    return HEADS if value in heads else min(value, HEADS // 2)


def tiny_value(name: str, values: dict[str, Any]) -> Any:
    """Return the tiny value of a field, or None if it stays as it is."""
    value = values[name]
    if value is None:
        return FILLED.get(name)
    if isinstance(value, dict):
        return rope(value)
    if isinstance(value, (bool, str, float)) or not largest_is_number(value):
        return None
    if re.search(r"key_value_heads|kv_n_heads|num_kv_heads", name):
        return key_value_heads(name, values)
    for pattern, size in COMPILED:
        if pattern.search(name):
            return size(value) if callable(size) else size
    return None


def largest_is_number(value: Any) -> bool:
    """Tell whether a value is a whole number, or a list of them."""
    if isinstance(value, (list, tuple)):
        return bool(value) and all(map(largest_is_number, value))
    return isinstance(value, int) and not isinstance(value, bool)


def token_ids(names: list[str], values: dict[str, Any]) -> dict[str, Any]:
    """Return ids within the vocabulary for the special tokens that lie outside, each another one."""
    ids: dict[str, Any] = {}
    free = iter(range(VOCABULARY - 1, 40, -1))
    for name in sorted(names):
        value = values[name]
        if not TOKEN.search(name) or not largest_is_number(value):
            continue
        if isinstance(value, (list, tuple)):
            if max(value) >= VOCABULARY:
                ids[name] = [next(free) for _ in value]
        elif value >= VOCABULARY - 30:
            ids[name] = next(free)
    plain = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    ids.update({name: plain[name] for name in plain if name in names and (values[name] is None or name in ids)})
    return ids


def rope(value: Any) -> Any:
    """Return rotary parameters with sections that fit the tiny head."""
    if not isinstance(value, dict):
        return value
    value = {key: rope(item) for key, item in value.items()}
    if "mrope_section" in value:
        total = sum(value["mrope_section"])
        rest = [max(1, HEAD_WIDTH // 2 * part // total) for part in value["mrope_section"][1:]]
        value["mrope_section"] = [HEAD_WIDTH // 2 - sum(rest), *rest]
    return value


def tiny_config(kind: type, given: dict[str, Any] | None = None) -> Any:
    """Return a tiny configuration.

    Parameters
    ----------
    kind : type
        Configuration class.
    given : dict, optional
        Fields that a parent configuration sets in other ways than the class itself.
    """
    values = {field.name: default_of(field) for field in dataclasses.fields(kind) if field.init}
    values.update(given or {})
    overrides = OVERRIDES.get(kind.__name__, {})
    if "" in overrides:
        return kind(**{**(given or {}), **{name: value for name, value in overrides.items() if name}})
    fixed = {*overrides, *(getattr(kind, "sub_configs", None) or {})}
    small = {name: tiny_value(name, values) for name in values if name not in fixed}
    ids = {name: value for name, value in token_ids(list(values), values).items() if name not in overrides}
    changes = {
        **(given or {}),
        **{name: value for name, value in small.items() if value is not None},
        **ids,
        **overrides,
    }
    changes.update(tiny_children(kind, changes))
    return kind(**changes)


def tiny_children(kind: type, changes: dict[str, Any]) -> dict[str, Any]:
    """Return the tiny sub-configurations of a configuration class."""
    names = [name for name in getattr(kind, "sub_configs", None) or {} if name not in changes]
    if not names:
        return {}
    whole = kind()
    children = {}
    for name in names:
        child = getattr(whole, name, None)
        if not isinstance(child, transformers.PreTrainedConfig):
            continue
        children[name] = tiny_config(type(child), own_fields(child))
    return children


def own_fields(config: Any) -> dict[str, Any]:
    """Return the fields in which a sub-configuration differs from the defaults of its class."""
    names = [field.name for field in dataclasses.fields(type(config)) if field.init]
    children = getattr(type(config), "sub_configs", None) or {}
    chosen, plain = config.to_dict(), type(config)().to_dict()
    # lists of words say what each of the layers is, and the tiny model has fewer
    return {
        name: chosen[name]
        for name in names
        if name not in children
        and name not in ("per_layer_config", "vocabulary_map")
        and chosen.get(name) != plain.get(name)
        and not is_words(chosen.get(name))
    }


def is_words(value: Any) -> bool:
    """Tell whether a value is a list of words."""
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, str) for item in value)


#: Mark of configurations that stay as they are, but for their overrides.
KEEP = {"": True}
FULL = {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}


def multimodal_rope(*sections: int) -> dict[str, Any]:
    """Return rotary parameters with a section of the tiny head for each of time, height and width."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections)}}


#: What names cannot tell, by the name of the configuration's class.
OVERRIDES: dict[str, dict[str, Any]] = {
    # a rotary embedding for each kind of layer
    "CohereCompassTextConfig": {"rope_parameters": FULL},
    # the class lacks a field that its model reads
    "DbrxAttentionConfig": {"rope_theta": 10000.0, "clip_qkv": 8.0},
    # layers that share keys and values need one of their kind that does not
    "Gemma3nTextConfig": {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 1},
    # kinds of layers, as many as there are layers
    "GPTNeoConfig": {"attention_types": [[["global", "local"], 2]]},
    "BambaConfig": {"attn_layer_indices": [1, 3]},
    "GraniteMoeHybridConfig": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "Lfm2MoeConfig": {"layer_types": ["conv", "full_attention"] * 2},
    "ZambaConfig": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
    "Zamba2Config": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
    # sizes that have to fit each other
    "LongcatFlashConfig": {"head_dim": 8},
    "Mamba2Config": {"num_heads": 8},
    "NemotronConfig": {"num_key_value_heads": 2},
    "ReformerConfig": {"axial_pos_shape": [8, 8], "axial_pos_embds_dim": [32, 32]},
    "Qwen4ExpTextConfig": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
    },
    "NystromformerConfig": {"num_landmarks": 2, "segment_means_seq_len": 6},
    "LayoutLMv3Config": {"coordinate_size": 8, "shape_size": 16},
    "LiltConfig": {"hidden_size": 96},
    "T5Config": {"decoder_start_token_id": 0},
    "CLIPSegConfig": {"extract_layers": [1, 2, 3]},
    "BitConfig": {"num_groups": 4},
    "FunAsrNanoAdaptorConfig": {"intermediate_size": WIDTH // 4},
    "MimiConfig": {"upsample_groups": WIDTH},
    "Gemma3Config": {"mm_tokens_per_image": 4},
    # lists of the sizes of stages that have to fit each other: these models are small as they are
    **dict.fromkeys(("TextNetConfig", "HGNetV2Config", "MobileViTV2Config", "MobileViTConfig", "CvtConfig"), KEEP),
    "EfficientNetConfig": {**KEEP, "width_coefficient": 0.25, "depth_coefficient": 0.5, "hidden_dim": 320},
    "AlignVisionConfig": {**KEEP, "width_coefficient": 0.25, "depth_coefficient": 0.5, "hidden_dim": 320},
    **dict.fromkeys(
        (
            "Qwen2VLTextConfig Qwen2_5_VLTextConfig Qwen2_5OmniTextConfig Glm4vTextConfig GlmOcrTextConfig "
            "HunYuanVLTextConfig PaddleOCRTextConfig"
        ).split(),
        multimodal_rope(4, 2, 2),
    ),
    "Ernie4_5_VLMoeTextConfig": multimodal_rope(3, 3, 2),
    "Glm4vMoeTextConfig": multimodal_rope(2, 1, 1),
    # how many tokens become of the patches of a tiny image
    "Cosmos3EdgeTextConfig": multimodal_rope(3, 3, 2),
    "Blip2Config": {"image_token_id": 120},
    "InstructBlipConfig": {"image_token_id": 120},
    "InstructBlipVideoConfig": {"video_token_id": 120},
    "MllamaVisionConfig": {"intermediate_layers_indices": [1, 2]},
    "AlignConfig": {"projection_dim": 80},
    "PerceiverConfig": {"num_cross_attention_heads": 1},
    "ShieldGemma2Config": {"mm_tokens_per_image": 4, "yes_token_index": 50, "no_token_index": 51},
    "VoxtralConfig": {"audio_token_id": 119},
    "Qwen3ASREncoderConfig": {"n_window": 16},
    "GraniteSpeechConfig": {"window_size": 15},
    "GraniteSpeechPlusConfig": {"window_size": 15},
    "MoonshineStreamingConfig": {"num_key_value_heads": HEADS},
    # some of its 42 layers differ, by their numbers
    "Dots3NoteVisionConfig": {"num_hidden_layers": 42},
    "AriaConfig": {"projector_patch_to_query_dict": {16: 4}},
    "T5Gemma2EncoderConfig": {"mm_tokens_per_image": 4},
    "LlavaNextConfig": {"image_grid_pinpoints": [[IMAGE, IMAGE]]},
    "LlavaNextVideoConfig": {"image_grid_pinpoints": [[IMAGE, IMAGE]]},
    "LlavaOnevisionConfig": {"image_grid_pinpoints": [[IMAGE, IMAGE]]},
    "VipLlavaConfig": {"vision_feature_layers": [-2, -3]},
    "Molmo2AdapterConfig": {"vision_feature_layer": [-1, -2]},
    "Llama4VisionConfig": {
        "intermediate_size": 256,
        "projector_input_dim": 64,
        "projector_output_dim": 64,
        "vision_output_dim": 64,
    },
    "Glm5NextTextConfig": {"index_kpool": 2},
    "Step3p7TextConfig": {"sliding_window": 4},
    "DeepseekOcr2TextConfig": {"mlp_layer_types": ["dense", "sparse"] * 2},
    "DiffusionGemmaTextConfig": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": HIDDEN},
    "XmodConfig": {"default_language": "en_XX"},
}
