"""One architecture of each kind of block, checked as the sweep checks all of them (``tests/sweep/sweep.py``)."""

import pytest
from sweep.cases import run

BLOCKS = {
    "dense": "causal-lm/llama",
    "experts, grouped": "causal-lm/qwen3_moe",
    "experts, in loops": "causal-lm/dbrx",
    "experts with a sigmoid router": "causal-lm/deepseek_v3",
    "latent attention": "causal-lm/deepseek_v2",
    "sliding window": "causal-lm/mistral",
    "capped logits": "causal-lm/gemma2",
    "attention sinks": "causal-lm/gpt_oss",
    "ALiBi": "causal-lm/bloom",
    "relative position bias": "seq2seq/t5",
    "cross-attention": "seq2seq/bart",
    "disentangled attention": "masked-lm/deberta-v2",
    "Mamba": "causal-lm/mamba",
    "Mamba 2": "causal-lm/mamba2",
    "Mamba and attention": "causal-lm/jamba",
    "gated delta net": "causal-lm/qwen3_next",
    "RG-LRU": "causal-lm/recurrent_gemma",
    "RWKV": "causal-lm/rwkv",
    "xLSTM": "causal-lm/xlstm",
    "depthwise convolution": "image-classification/convnext",
    "squeeze-excitation": "torchvision/efficientnet_b0",
    "group norm": "image-classification/poolformer",
    "batch norm": "torchvision/resnet18",
    "weight standardisation": "image-classification/bit",
    "shifted windows": "image-classification/swin",
    "class attention": "timm/cait",
    "channel attention": "timm/xcit",
    "gated convolution": "audio-classification/wav2vec2-conformer",
    "pixels and text": "image-text-to-text/llava",
    "two towers": "zero-shot-image/clip",
}


@pytest.mark.parametrize("block", BLOCKS)
def test_each_kind_of_block_is_explained(block):
    result = run(BLOCKS[block])
    assert result["status"] == "conserves", result
