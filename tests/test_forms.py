"""Relevance form and gradient form on real architectures: the same relevance, and the same forward."""

import models
import pytest
import torch
import transformers
from zennit.attribution import Gradient

from zennit_attn import AttnLRPComposite, CPLRPComposite, GammaViTComposite, ModelAdapter, input_x_gradient

LANGUAGE = {
    "llama": models.llama,
    "qwen3": models.qwen3,
    "mixtral": models.mixtral,
    "gpt2": models.gpt2,
    "bert": models.bert,
    "t5": models.t5,
}
CASES = [(name, make, attention) for name, make in LANGUAGE.items() for attention in ("sdpa", "eager")]
if not getattr(transformers.T5ForConditionalGeneration, "_supports_sdpa", False):
    # early versions of transformers 4
    CASES.remove(("t5", models.t5, "sdpa"))
CASES += [("hf_vit", models.hf_vit, attention) for attention in ("sdpa", "eager")]
CASES += [("torchvision_vit", models.torchvision_vit, None), ("timm_vit", models.timm_vit, None)]
COMPOSITES = {"attnlrp": AttnLRPComposite, "cp_lrp": CPLRPComposite, "gamma_vit": GammaViTComposite}


def build(name, make, attention):
    model = models.scramble(make() if attention is None else make(attention)).eval()
    # the kernels of mixture-of-experts models take no float64
    dtype = torch.float32 if name == "mixtral" else torch.float64
    model = model.to(dtype)
    shape = (2, 3, 32, 32) if "vit" in name else (2, models.POSITIONS, models.WIDTH)
    rest = {"decoder_input_ids": torch.tensor([[0, 5, 9], [0, 7, 2]])} if name == "t5" else {}
    return model, torch.randn(shape, dtype=dtype), rest


def cases():
    for name, make, attention in CASES:
        for title in COMPOSITES:
            if title != "gamma_vit" or "vit" in name:
                yield pytest.param(name, make, attention, title, id=f"{name}-{attention}-{title}")


@pytest.mark.parametrize(("name", "make", "attention", "title"), list(cases()))
def test_both_forms_give_the_same_relevance(name, make, attention, title):
    model, x, rest = build(name, make, attention)
    composite = COMPOSITES[title](strict=True)
    fast, explained = models.explain(model, composite, x, "gradient", **rest)
    slow, _ = models.explain(model, composite, x, "relevance", **rest)
    assert fast.isfinite().all()
    assert fast.abs().max() > 0
    assert explained.abs().min() > 0
    # float32 inside of RMSNorm and of eager softmax bounds the float64 models
    assert models.relative_error(slow, fast) < (1e-3 if name == "mixtral" else 1e-6)


@pytest.mark.parametrize(("name", "make", "attention"), CASES, ids=lambda case: getattr(case, "__name__", str(case)))
def test_the_forward_is_that_of_the_model(name, make, attention):
    model, x, rest = build(name, make, attention)
    # the same call outside: what requires grad decides which attention kernel torch takes
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    x.requires_grad_()
    expected = models.logits_of(model, x, **rest)
    for composite in (AttnLRPComposite(), input_x_gradient(AttnLRPComposite())):
        with composite.context(model):
            got = models.logits_of(model, x, **rest)
        if name == "torchvision_vit":
            # its attention is unfused, to rounding
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
        else:
            assert torch.equal(got, expected)


@pytest.mark.parametrize("name", ["llama", "qwen3", "mixtral", "gpt2", "bert"])
def test_cp_lrp_conserves_without_constants(name):
    model, x, rest = build(name, LANGUAGE[name], "sdpa")
    models.without_constants(model)
    relevance, explained = models.explain(model, CPLRPComposite(strict=True), x, **rest)
    # float32 inside of RMSNorm, and throughout Mixtral
    tolerance = {"mixtral": 1e-4, "llama": 1e-6, "qwen3": 1e-6}.get(name, 1e-10)
    torch.testing.assert_close(relevance.sum((1, 2)), explained, rtol=tolerance, atol=0)


@pytest.mark.parametrize("title", ["attnlrp", "cp_lrp"])
def test_retained_gradients_are_relevance_at_inner_tensors(title):
    model = models.llama().double().eval()
    x = torch.randn(1, models.POSITIONS, models.WIDTH, dtype=torch.float64)
    kept = {}
    for form in ("relevance", "gradient"):
        composite = COMPOSITES[title](strict=True)
        inner = []

        def keep(module, args, output, inner=inner):
            output.retain_grad()
            inner.append(output)

        handles = [layer.mlp.register_forward_hook(keep) for layer in model.model.layers]
        handles += [layer.self_attn.o_proj.register_forward_hook(keep) for layer in model.model.layers]
        with (input_x_gradient(composite) if form == "gradient" else composite).context(model):
            logit = models.logits_of(model, x.clone().requires_grad_())[0].max()
            logit.backward(torch.ones_like(logit) if form == "gradient" else logit.detach())
        for handle in handles:
            handle.remove()
        kept[form] = [tensor.grad if form == "relevance" else tensor.detach() * tensor.grad for tensor in inner]
    assert len(kept["relevance"]) == 6
    for slow, fast in zip(kept["relevance"], kept["gradient"], strict=True):
        assert models.relative_error(slow, fast) < 1e-6


def test_zennit_gradient_returns_relevance():
    model = models.llama().double().eval()
    x = torch.randn(1, models.POSITIONS, models.WIDTH, dtype=torch.float64)
    expected, _ = models.explain(model, AttnLRPComposite(), x)
    adapter = ModelAdapter(model)
    chosen = int(models.logits_of(model, x).argmax())

    def largest(output):
        start = torch.zeros_like(output)
        start[0, -1, chosen] = output[0, -1, chosen]
        return start

    with Gradient(adapter, AttnLRPComposite()) as attributor:
        _, relevance = attributor(x, largest)
    assert models.relative_error(relevance, expected) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("make", [models.llama, models.gpt2, models.hf_vit])
def test_half_precision_is_close_to_float64(make, dtype):
    model = models.scramble(make()).eval().double()
    shape = (1, 3, 32, 32) if make is models.hf_vit else (1, models.POSITIONS, models.WIDTH)
    x = torch.randn(shape, dtype=torch.float64)
    expected, _ = models.explain(model, CPLRPComposite(), x)
    model = model.to(dtype)
    got, _ = models.explain(model, CPLRPComposite(), x.to(dtype))
    # three blocks of roundings of 2^-8, 2^-11 and 2^-24, relative to the largest relevance
    tolerance = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float32: 1e-4}[dtype]
    assert models.relative_error(got.double(), expected) < tolerance


def test_parameters_may_require_grad_or_not():
    model = models.llama().double().eval()
    x = torch.randn(1, models.POSITIONS, models.WIDTH, dtype=torch.float64)
    trained, _ = models.explain(model, AttnLRPComposite(), x)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    frozen, _ = models.explain(model, AttnLRPComposite(), x)
    assert torch.equal(trained, frozen)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("make", [models.gpt2, models.llama, models.hf_vit])
def test_autocast_changes_the_forward_as_it_does_without_rules(make):
    model = models.scramble(make()).eval().requires_grad_(False)
    x = torch.randn(
        (1, 3, 32, 32) if make is models.hf_vit else (1, models.POSITIONS, models.WIDTH), requires_grad=True
    )
    with torch.autocast("cpu", torch.bfloat16):
        expected = models.logits_of(model, x)
        with input_x_gradient(AttnLRPComposite()).context(model):
            got = models.logits_of(model, x)
    assert torch.equal(got, expected)
    (signal,) = torch.autograd.grad(got.sum(), x)
    assert signal.isfinite().all()
