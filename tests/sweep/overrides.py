"""What the names of a configuration's fields cannot tell: values by configuration class.

Sizes that would only be nicer are not here.
"""

from __future__ import annotations

from typing import Any

from sweep.sizes import HEADS, HIDDEN, IMAGE, POSITIONS, WIDTH

#: Key of configurations that stay as they are, but for their other overrides.
KEEP = "as it is"
FULL = {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}
CODEC = {"num_filters": 8, "downsampling_ratios": [2, 4], "depths": [2, 1, 1]}


def multimodal_rope(*sections: int) -> dict[str, Any]:
    """Return rotary parameters with a section of the tiny head for each of time, height and width."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections)}}


def codes(image: str, code: str, **others: int) -> dict[str, Any]:
    """Return a vocabulary with the ids of an image's placeholder, of ten codes of an image, and of other tokens."""
    names = {code.format(number, "ABCDEFGHIJ"[number]): 100 + number for number in range(10)}
    return {"vocabulary_map": {image: 120, **names, **others}}


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
    # cycles that run under torch.no_grad cannot be explained
    "HrmTextConfig": {"L_bp_cycles": [3, 3]},
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
    "MuseGlimmerConfig": {"out_hidden_size": 4 * WIDTH},
    "MuseSparkConfig": {"out_hidden_size": 4 * WIDTH},
    "VibeVoiceAcousticTokenizerConfig": CODEC,
    "VibeVoiceAcousticTokenizerEncoderConfig": CODEC,
    "VibeVoiceAsrConfig": {"acoustic_tokenizer_chunk_size": 8 * POSITIONS},
    "DeepseekOcr2SamVisionConfig": {"downsample_channels": [32, WIDTH]},
    # lists of the sizes of stages that have to fit each other: these models are small as they are
    "TextNetConfig": {KEEP: True, "image_size": [IMAGE, IMAGE]},
    "HGNetV2Config": {KEEP: True},
    "MobileViTConfig": {KEEP: True},
    "MobileViTV2Config": {KEEP: True},
    "CvtConfig": {KEEP: True},
    "EfficientNetConfig": {KEEP: True, "width_coefficient": 0.25, "depth_coefficient": 0.5, "hidden_dim": 320},
    "AlignVisionConfig": {KEEP: True, "width_coefficient": 0.25, "depth_coefficient": 0.5, "hidden_dim": 320},
    **dict.fromkeys(
        (
            "Qwen2VLTextConfig Qwen2_5_VLTextConfig Qwen2_5OmniTextConfig Glm4vTextConfig GlmOcrTextConfig "
            "HunYuanVLTextConfig PaddleOCRTextConfig"
        ).split(),
        multimodal_rope(4, 2, 2),
    ),
    "Ernie4_5_VLMoeTextConfig": multimodal_rope(3, 3, 2),
    "Glm4vMoeTextConfig": multimodal_rope(2, 1, 1),
    "Cosmos3EdgeTextConfig": multimodal_rope(3, 3, 2),
    # the id of the token in the place of an image or a sound
    "Blip2Config": {"image_token_id": 120},
    "InstructBlipConfig": {"image_token_id": 120},
    "InstructBlipVideoConfig": {"video_token_id": 120},
    "VoxtralConfig": {"audio_token_id": 119},
    "MiniCPMOcrConfig": {"image_token_id": 120},
    "MiniCPMV4_6Config": {"image_token_id": 120},
    "MiniCPMV4_7Config": {"image_token_id": 120},
    "NemotronH_Omni_Reasoning_V3_Config": {"image_token_id": 120, "audio_config": None},
    # images are ids of codes, which are tokens
    "ChameleonConfig": codes("<image>", "IMGIMG{1}Z"),
    "ChameleonVQVAEConfig": {"num_embeddings": 10},
    "Emu3Config": codes("<image>", "<|visual token {0:06}|>", **{"<|extra_200|>": 121}),
    "Emu3VQVAEConfig": {"codebook_size": 10, "hidden_size": 4 * WIDTH},
    # encoders of timm
    "FastVlmConfig": {
        "vision_config": {
            "model_type": "timm_wrapper",
            "architecture": "fastvit_t8",
            "hidden_size": 768,
            "model_args": {"inference_mode": True},
        }
    },
    "PerceptionLMConfig": {
        "vision_config": {
            "model_type": "timm_wrapper",
            "architecture": "vit_pe_core_tiny_patch16_384",
            "model_args": {
                "embed_dim": WIDTH,
                "num_heads": HEADS,
                "depth": 2,
                "img_size": [IMAGE, IMAGE],
                "ref_feat_shape": [4, 4],
                "global_pool": "",
            },
        }
    },
    "Gemma3nVisionConfig": {KEEP: True, "model_args": {"channel_multiplier": 0.25}},
    # which layers an image is read from
    "VipLlavaConfig": {"vision_feature_layers": [-2, -3]},
    "Molmo2AdapterConfig": {"vision_feature_layer": [-1, -2]},
    "Molmo2VisionConfig": {"image_size": [IMAGE, IMAGE]},
    "Granite4VisionConfig": {
        "image_grid_pinpoints": [[IMAGE, IMAGE]],
        "downsample_rate": "1/2",
        "deepstack_layer_map": [[1, 0]],
        "spatial_target_layers": [0, 1, 2, 3],
    },
    "GraniteDoclingVisionConfig": {"deepstack_visual_indexes": [0, 1, 2]},
    "MllamaVisionConfig": {"intermediate_layers_indices": [1, 2], "vision_output_dim": 3 * WIDTH},
    "AlignConfig": {"projection_dim": 80},
    "PerceiverConfig": {"num_cross_attention_heads": 1},
    "ShieldGemma2Config": {"mm_tokens_per_image": 4, "yes_token_index": 50, "no_token_index": 51},
    "GraniteSpeechEncoderConfig": {"hidden_dim": WIDTH},
    "GraniteSpeechPlusEncoderConfig": {"hidden_dim": WIDTH},
    "GraniteSpeechConfig": {"window_size": 15},
    "GraniteSpeechPlusConfig": {"window_size": 15},
    "MoonshineStreamingConfig": {"num_key_value_heads": HEADS},
    # some of its 42 layers differ, by their numbers
    "Dots3NoteVisionConfig": {"num_hidden_layers": 42},
    # how many tokens become of the patches of a tiny image
    "Gemma3Config": {"mm_tokens_per_image": 4},
    "AriaConfig": {"projector_patch_to_query_dict": {16: 4}},
    "T5Gemma2EncoderConfig": {"mm_tokens_per_image": 4},
    "LlavaNextConfig": {"image_grid_pinpoints": [[IMAGE, IMAGE]]},
    "LlavaNextVideoConfig": {"image_grid_pinpoints": [[IMAGE, IMAGE]]},
    "LlavaOnevisionConfig": {"image_grid_pinpoints": [[IMAGE, IMAGE]]},
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
