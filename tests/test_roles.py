"""Roles: the same configuration means the same modules in every library."""

import models
import pytest
import timm
import torch
import torchvision
import transformers

from zennit_attn import AttnLRPComposite, GammaViTComposite, rules
from zennit_attn.composites.roles import is_linear, role

DEPTH = 2
IMAGE = {**models.IMAGE, "num_hidden_layers": DEPTH}
CLIP = {**IMAGE, "projection_dim": 16}
VISION = {
    "ViT": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**IMAGE)),
    "DeiT": lambda: transformers.DeiTForImageClassification(transformers.DeiTConfig(**IMAGE)),
    "DINOv2": lambda: transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**IMAGE)),
    "BEiT": lambda: transformers.BeitForImageClassification(transformers.BeitConfig(**IMAGE)),
    "CLIP": lambda: transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**CLIP)),
    "SigLIP": lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**IMAGE)),
}


def roles_of(model):
    """Return the linear modules of each role, with torch's attention unfused."""
    handles = AttnLRPComposite().canonizers[0].apply(model)
    found = {}
    for name, module in model.named_modules():
        if is_linear(module):
            found.setdefault(role(name, module), []).append(name)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", VISION)
def test_roles_in_transformers(name):
    found = roles_of(VISION[name]())
    # SigLIP pools by an attention and an MLP of its own
    pooled = name == "SigLIP"
    expected = {
        "patch_embedding": 1,
        "qkv": 3 * (DEPTH + pooled),
        "projection": DEPTH + pooled,
        "mlp": 2 * (DEPTH + pooled),
    }
    if not pooled:
        expected["head"] = 1
    assert {key: len(names) for key, names in found.items()} == expected


@pytest.mark.parametrize("name", VISION)
@pytest.mark.parametrize("attention", ["cp", "attnlrp"])
def test_gamma_vit_explains_vision_towers(name, attention):
    model = models.scramble(VISION[name]()).eval().double()
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)

    class Tower(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.tower = model

        def forward(self, pixels):
            output = self.tower(pixel_values=pixels)
            return output[0] if output[0].dim() == 2 else output.pooler_output

    composite = GammaViTComposite(attention=attention, strict=True)
    fast, _ = models.explain(Tower(), composite, x, "gradient")
    slow, _ = models.explain(Tower(), composite, x, "relevance")
    assert fast.abs().max() > 0
    assert models.relative_error(slow, fast) < 1e-6


def test_roles_of_swin_in_two_libraries():
    window = {"patch_size": [4, 4], "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 4], "window_size": [4, 4]}
    ours = roles_of(torchvision.models.SwinTransformer(**window, num_classes=3))
    sizes = {"img_size": 32, "embed_dim": 12, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4, "num_classes": 3}
    theirs = roles_of(timm.models.swin_transformer.SwinTransformer(**sizes))
    for key in ("patch_embedding", "qkv", "projection", "head"):
        assert len(ours[key]) == len(theirs[key]) > 0, key


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bert.encoder.layer.0.attention.self.query", "qkv"),
        ("bert.encoder.layer.0.attention.output.dense", "projection"),
        ("bert.encoder.layer.0.intermediate.dense", "mlp"),
        ("bert.encoder.layer.0.output.dense", "mlp"),
        ("bert.pooler.dense", "head"),
        ("classifier", "head"),
        ("vit.encoder.layer.3.attention.attention.key", "qkv"),
        ("blocks.3.attn.qkv", "qkv"),
        ("blocks.3.attn.proj", "projection"),
        ("visual.transformer.resblocks.0.attn.out_proj", "projection"),
        ("model.layers.0.self_attn.o_proj", "projection"),
        ("model.layers.0.mlp.gate_proj", "mlp"),
        ("lm_head", "head"),
        ("heads.head", "head"),
        ("something", None),
    ],
)
def test_role_of_a_name(name, expected):
    assert role(name, torch.nn.Linear(2, 2)) == expected


def to_timm(state):
    """Return a state of torchvision's VisionTransformer with timm's names."""
    names = {
        "class_token": "cls_token",
        "encoder.pos_embedding": "pos_embed",
        "conv_proj": "patch_embed.proj",
        "encoder.ln": "norm",
        "heads.head": "head",
        "self_attention.in_proj_": "attn.qkv.",
        "self_attention.out_proj": "attn.proj",
        "encoder.layers.encoder_layer_": "blocks.",
        "ln_1": "norm1",
        "ln_2": "norm2",
        "mlp.0": "mlp.fc1",
        "mlp.3": "mlp.fc2",
    }
    return {renamed(key, names): value for key, value in state.items()}


def to_transformers(state, model):
    """Return a state of torchvision's VisionTransformer with the names of transformers."""
    names = {
        "class_token": "vit.embeddings.cls_token",
        "encoder.pos_embedding": "vit.embeddings.position_embeddings",
        "conv_proj": "vit.embeddings.patch_embeddings.projection",
        "encoder.ln": "vit.layernorm",
        "heads.head": "classifier",
        "ln_1": "layernorm_before",
        "ln_2": "layernorm_after",
    }
    wanted, found = model.state_dict(), {}
    # transformers 5.20 gave the modules of a ViT's blocks new names
    new = "vit.layers.0.attention.q_proj.weight" in wanted
    block = "vit.layers." if new else "vit.encoder.layer."
    parts = ("q_proj", "k_proj", "v_proj") if new else ("attention.query", "attention.key", "attention.value")
    output = "attention.o_proj" if new else "attention.output.dense"
    first, second = ("mlp.fc1", "mlp.fc2") if new else ("intermediate.dense", "output.dense")
    inner = {"self_attention.out_proj": output, "mlp.0": first, "mlp.3": second, "encoder.layers.encoder_layer_": block}
    for key, value in state.items():
        if "in_proj_" in key:
            head, kind = key.split("self_attention.in_proj_")
            for part, piece in zip(parts, value.chunk(3), strict=True):
                found[renamed(f"{head}attention.{part}.{kind}", {**names, **inner})] = piece
        else:
            found[renamed(key, {**inner, **names})] = value
    return found


def renamed(key, names):
    for old, new in names.items():
        key = key.replace(old, new)
    return key


@pytest.mark.parametrize("attention", ["cp", "attnlrp"])
@pytest.mark.parametrize("form", ["relevance", "gradient"])
def test_the_same_weights_give_the_same_relevance_in_three_libraries(form, attention):
    torchvision_vit = models.scramble(models.torchvision_vit()).double().eval()
    state = torchvision_vit.state_dict()
    timm_vit = models.timm_vit().double().eval()
    timm_vit.load_state_dict(to_timm(state))
    config = transformers.ViTConfig(**models.IMAGE, num_hidden_layers=3, num_labels=10, layer_norm_eps=1e-6)
    hf_vit = transformers.ViTForImageClassification(config).double().eval()
    hf_vit.load_state_dict(to_transformers(state, hf_vit))
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    composite = GammaViTComposite(attention=attention, role_map=[("projection", rules.Epsilon(0.01))], strict=True)
    found = [models.explain(model, composite, x, form) for model in (torchvision_vit, timm_vit, hf_vit)]
    for relevance, explained in found[1:]:
        torch.testing.assert_close(explained, found[0][1], rtol=1e-10, atol=0)
        assert models.relative_error(relevance, found[0][0]) < 1e-8
