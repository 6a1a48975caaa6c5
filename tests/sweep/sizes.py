"""What a field of a configuration means, by its name, and its tiny value.

Nothing here knows an architecture: what names cannot tell is in :mod:`sweep.overrides`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

WIDTH, HEADS, HEAD_WIDTH, HIDDEN, VOCABULARY, POSITIONS, IMAGE = 64, 4, 16, 128, 128, 64, 64


def at_most(limit: int) -> Callable[[Any], Any]:
    """Return a function that limits a number, or each of a list; negative ones mean something else."""

    def of(value: Any) -> Any:
        return [of(item) for item in value] if isinstance(value, (list, tuple)) else min(value, limit)

    return of


def largest(value: Any) -> int:
    """Return the largest number of a list, or the number."""
    return max(map(largest, value), default=0) if isinstance(value, (list, tuple)) else value


def patch(value: Any) -> Any:
    """Return a patch size that divides the tiny image; those of several stages stay."""
    if isinstance(value, (list, tuple)):
        return [patch(item) for item in value] if len(value) == 2 else None
    return 16 if value > 8 else value


def sized(size: int) -> Callable[[Any], Any]:
    """Return a function that returns a size for a number, or for each of a list; zero means something else."""

    def of(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [of(item) for item in value]
        return size if value > 0 else value

    return of


def few_layers(value: Any) -> list[int]:
    """Return two layers for the first stage, one for the others."""
    return [2] + [1] * (len(value) - 1)


def window(value: Any) -> Any:
    """Return the width of a window in patches, or in pixels; those of several stages stay."""
    if isinstance(value, (list, tuple)):
        return None
    return 4 * patch(16) if value > 64 else 2


def few_heads(value: Any) -> Any:
    """Return a few heads, in lists one at first."""
    if isinstance(value, (list, tuple)):
        return [min(2 ** (few_heads(item).bit_length() - 1), HEADS) for item in value]
    return min(value, HEADS)


def widths(value: Any) -> Any:
    """Return a width, in lists a small one and then larger ones, equal where the defaults are."""
    if not isinstance(value, (list, tuple)):
        return sized(WIDTH)(value)
    if value and isinstance(value[0], (list, tuple)):
        return [widths(item) for item in value]
    ranks = sorted(set(value))
    return [32 if ranks.index(item) == 0 and len(ranks) > 1 else WIDTH for item in value]


def large_widths(value: Any) -> Any:
    """Return widths for what is large enough to be one; others stay."""
    return widths(value) if largest(value) > 32 else None


#: Pattern of a field's name, and its tiny value or a function of its default; the first that fits decides.
SIZES: list[tuple[str, Any]] = [
    # not sizes, whatever their names look like
    (r"num_conv_pos_embedding_groups", 4),
    (r"_(ratio|rate|factor|std|act)$|[a-z]{5}_groups$|^[qkv]_groups$", None),
    (r"vision_feature_layer|chunk_size_feed_forward|rescale_every|num_mem_blocks|^inner_group_num$", None),
    (r"num_(nextn_predict|mtp|kv_shared|adapter|conv)_layers|^(spatial_vision|max_window|conditional)_layers?$", None),
    (r"^(spatial_merge_size|temporal_patch_size|type_vocab_size|num_codebooks)$", None),
    (
        r"vocab_size$|vocab_size_per_layer|num_embeddings$|num_hash_buckets|codebook_size|encoder_hash_byte_group_vocab",
        VOCABULARY,
    ),
    # layers, and how often a layer is of another kind
    (r"first_k_dense_replace|moe_layer_start_index|num_dense_layers|insert_layer_id|altup_active_idx", at_most(1)),
    (r"(attn|expert)_layer_offset", at_most(1)),
    (r"(interval|_period|every_n_layers|_frequency|sparse_step|sliding_window_pattern|layer_group_size)$", at_most(2)),
    (r"^(n_layers?|num_layers|layers|depth|resampler_depth)$|_layers$|_blocks$|^num_self_attends", at_most(4)),
    (r"^depths$|^num_block_repeats$|^block_sizes$", few_layers),
    # experts
    (r"^(num|n|moe_num)_?(routed_|local_)?experts$|^zero_expert_num$", at_most(4)),
    (r"experts_per_tok|moe_top_?k|moe_k$|^top_?k$|^(mamba_)?n_?groups?$", at_most(2)),
    (r"^topk_group$", 1),
    (r"_rank$", 16),
    # heads
    (r"^linear_num_key_heads$", 2),
    (r"(^|_)(n_heads?|heads|num_head)$", few_heads),
    (r"qk_rope_head_dim|rotary_dim|d_rel$", at_most(8)),
    (r"head_dim|dim_head$|head_size$|head_width$|d_kv$|kv_channels|d_head$|^key_dim$", sized(HEAD_WIDTH)),
    # widths
    (r"intermediate|ffn|d_ff$|dff$|dim_ff$|n_inner|mlp_dim|feed_forward|d_inner|hidden_dim$|_mid_dim", sized(HIDDEN)),
    (
        r"(hidden|embedding|embd|embed|model|proj|projector|text|vision|output|input|adapter)"
        r"_?(size|dim|proj_size|input_dim|output_dim|in_dim|out_dim)s?$",
        widths,
    ),
    (r"^(d_model|n_embd|dim|emb_dim|d_latents|conv_dim|project_dim|base_channels|base_attn_unit_dims)$", widths),
    (r"^hidden_size_", widths),
    (r"(_dim|_dims|_channels|_units|hidden_size|projection_size)$", large_widths),
    # positions, windows, chunks
    (r"^num_conv_pos_embeddings$", 16),
    (r"max_source_positions", 32),
    (r"max_\w*position|^n_positions$|^n_ctx$|max_seq_len|context_length|^max_pos_emb$", at_most(POSITIONS)),
    (r"position_embedding_size", at_most(POSITIONS)),
    (r"sliding_window(_size)?$|local_attention$|attention_(window_size|chunk_size|window)$|keep_window_size", 4),
    (r"^window_size$", window),
    (r"chunk_size$|block_size$|segment_means_seq_len|index_block_size", at_most(8)),
    (r"index_topk|num_latents|n_latents|num_query_tokens|latent_query_num|prompt_length|query_num", at_most(4)),
    # images
    (r"^(image_size|input_size|img_size)$", sized(IMAGE)),
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
