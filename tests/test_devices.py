"""All rules on another device than the CPU: on "meta", which has no values, and on a GPU where there is one.

A tensor that a rule makes on the wrong device cannot be joined with those of the model.
"""

import models
import pytest
import torch
import transformers

from zennit_attn import (
    AttnLRPComposite,
    CPLRPComposite,
    GammaViTComposite,
    input_x_gradient,
    rules,
)

GPU = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
)


def mamba():
    config = {"vocab_size": models.VOCABULARY, "hidden_size": models.WIDTH, "num_hidden_layers": 2, "state_size": 4}
    return transformers.MambaForCausalLM(transformers.MambaConfig(**config))


MODELS = {
    "llama": models.llama,
    "llama, eager": lambda: models.llama("eager"),
    "qwen3": models.qwen3,
    "mixtral": models.mixtral,
    "gpt2": models.gpt2,
    "bert": models.bert,
    "mamba": mamba,
    "vit": models.hf_vit,
    "torchvision": models.torchvision_vit,
    "timm": models.timm_vit,
}
LAYER_RULES = {
    "epsilon": rules.Epsilon(1e-3),
    "gamma": rules.Gamma(0.25),
    "gamma, no bias": rules.Gamma(0.25, zero_params="bias"),
    "z-plus": rules.ZPlus(),
    "alpha-beta": rules.AlphaBeta(2, 1),
}


def composites(name):
    """Return every preset and layer rule that suits a model."""
    found = {"attnlrp": AttnLRPComposite(), "cp_lrp": CPLRPComposite()}
    for title, rule in LAYER_RULES.items():
        found[title] = CPLRPComposite(layer_map=[(torch.nn.Linear, rule)])
    if name in ("vit", "torchvision", "timm"):
        found["gamma_vit"] = GammaViTComposite()
    return found


def explain(model, composite, x, form):
    """Return the backward signal at an input, of the sum of all outputs; no value is looked at."""
    x = x.detach().requires_grad_()
    composite = input_x_gradient(composite) if form == "gradient" else composite
    with composite.context(model):
        output = models.logits_of(model, x)
        (signal,) = torch.autograd.grad(output, x, torch.ones_like(output))
    return signal


@pytest.mark.parametrize("form", ["relevance", "gradient"])
@pytest.mark.parametrize("device", ["meta", GPU])
@pytest.mark.parametrize("name", MODELS)
def test_rules_make_their_tensors_where_the_model_is(name, device, form):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    x = torch.randn(2, 3, 32, 32) if name in ("vit", "torchvision", "timm") else torch.randn(2, 5, models.WIDTH)
    moved, there = model.to(device), x.to(device)
    for title, composite in composites(name).items():
        signal = explain(moved, composite, there, form)
        assert signal.device.type == device, title
        assert signal.shape == x.shape, title


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("form", ["relevance", "gradient"])
@pytest.mark.parametrize("name", MODELS)
def test_a_gpu_finds_what_the_cpu_does(name, form):
    torch.manual_seed(0)
    model = MODELS[name]().double().eval()
    images = name in ("vit", "torchvision", "timm")
    x = torch.randn(2, 3, 32, 32).double() if images else torch.randn(2, 5, models.WIDTH).double()
    expected = {title: explain(model, composite, x, form) for title, composite in composites(name).items()}
    model.cuda()
    for title, composite in composites(name).items():
        torch.testing.assert_close(explain(model, composite, x.cuda(), form).cpu(), expected[title])
