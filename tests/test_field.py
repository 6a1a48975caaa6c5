"""Presets of the field, RelP and LibraGrad, against their rules by hand: what is detached, and what is halved."""

import models
import pytest
import torch
import torch.nn.functional as F

from zennit_attn import InputXGradient, LibraGradComposite, RelPComposite, targets

from .forms import FORMS, attributor_of


def rms(x, module):
    """The LN rule: the root of the mean square is a constant."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon).detach() * module.weight


def turned(x, cos, sin):
    return x * cos + torch.cat([-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]], -1) * sin


def by_hand(model, x, prunes_attention):
    """Logits of a Llama, with a backward pass by what the papers detach."""
    base, config = model.model, model.config
    angles = base.rotary_emb(x, torch.arange(x.shape[1])[None])
    mask = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1).double()
    for layer in base.layers:
        attention, mlp = layer.self_attn, layer.mlp
        h = rms(x, layer.input_layernorm)
        counts = config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads
        sides = zip((attention.q_proj, attention.k_proj, attention.v_proj), counts, strict=True)
        q, k, v = (side(h).unflatten(-1, (count, -1)).transpose(1, 2) for side, count in sides)
        q, k = turned(q, *angles), turned(k, *angles)
        k, v = (side.repeat_interleave(counts[0] // counts[1], 1) for side in (k, v))
        weights = (q @ k.mT * q.shape[-1] ** -0.5 + mask).softmax(-1)
        weights = weights.detach() if prunes_attention else weights
        x = x + attention.o_proj((weights @ v).transpose(1, 2).flatten(2))
        h = rms(x, layer.post_attention_layernorm)
        gate = mlp.gate_proj(h)
        # identity rule: SiLU is x times a constant; half rule: the value with half of its gradient
        product = gate * gate.sigmoid().detach() * mlp.up_proj(h)
        x = x + mlp.down_proj(product / 2 + product.detach() / 2)
    return model.lm_head(rms(x, base.norm))


PAPERS = {"relp": (RelPComposite, False), "libragrad": (LibraGradComposite, True)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", PAPERS)
def test_a_preset_of_the_field_is_what_its_paper_detaches(name, attention, form):
    kind, prunes_attention = PAPERS[name]
    model = models.scramble(models.llama(attention)).double().eval()
    x = torch.randn(2, models.POSITIONS, models.WIDTH).double().requires_grad_()
    logits = by_hand(model, x, prunes_attention)
    largest = logits[:, -1].max(-1)[0]
    (gradient,) = torch.autograd.grad(largest.sum(), x)
    got, explained = models.explain(model, kind(strict=True), x, form)
    # transformers' RMSNorm and softmax compute in float32
    torch.testing.assert_close(explained, largest.detach(), rtol=1e-5, atol=1e-6)
    assert models.relative_error(got, (x * gradient).detach()) < 1e-5
    if prunes_attention:
        # complete: nothing is kept, as there is no constant
        torch.testing.assert_close(got.sum((1, 2)), explained, rtol=1e-5, atol=1e-6)


def test_fullgrad_plus_is_a_mean_over_the_inputs_of_layers():
    model = models.llama().double().eval()
    ids = torch.randint(models.VOCABULARY, (2, 5))
    with InputXGradient(model, LibraGradComposite(), modules="model.layers.*") as attributor:
        output, first, inner = attributor(ids, targets.Label(3))
    # the input of a layer is the output of the one before, and of the first the embeddings
    before = [inner[name].sum(-1) for name in ("model.layers.0", "model.layers.1")]
    got = torch.stack([first, *before]).mean(0)
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    logits, inputs = None, []
    handles = [layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for layer in model.model.layers]
    with attributor_of(model, LibraGradComposite(), "gradient").composite.context(model):
        logits = model(inputs_embeds=x).logits[:, -1, 3]
        gradients = torch.autograd.grad(logits.sum(), inputs)
    for handle in handles:
        handle.remove()
    expected = sum((value * gradient).sum(-1) for value, gradient in zip(inputs, gradients, strict=True)) / 3
    torch.testing.assert_close(got, expected.detach(), rtol=1e-9, atol=1e-12)
    # each of the layers conserves, and so does their mean
    torch.testing.assert_close(got.sum(-1), output.logits[:, -1, 3].detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [RelPComposite, LibraGradComposite])
def test_a_gelu_and_a_layer_norm_of_a_vision_transformer(kind):
    torch.manual_seed(0)
    block = torch.nn.Sequential(torch.nn.LayerNorm(6), torch.nn.Linear(6, 5), torch.nn.GELU(), torch.nn.Linear(5, 3))
    block, x = models.scramble(block).double(), torch.randn(2, 6).double()
    leaf = x.clone().requires_grad_()
    norm = block[0]
    centred = leaf - leaf.mean(-1, keepdim=True)
    normal = centred * torch.rsqrt(leaf.var(-1, unbiased=False, keepdim=True) + norm.eps).detach()
    h = block[1](normal * norm.weight + norm.bias)
    output = block[3](h * (F.gelu(h) / h).detach())
    (gradient,) = torch.autograd.grad(output[:, 1].sum(), leaf)
    with InputXGradient(block, kind(strict=True)) as attributor:
        _, got = attributor(x, targets.Label(1))
    torch.testing.assert_close(got, x * gradient, rtol=1e-9, atol=1e-12)
