"""torch.nn.MultiheadAttention, unfused: the same output, and projections that rules reach."""

import pytest
import torch
import transformers

from zennit_attn import (
    AttnLRPComposite,
    CPLRPComposite,
    FunctionCanonizer,
    MultiheadAttentionCanonizer,
    input_x_gradient,
)
from zennit_attn.rules import Gamma

from . import models


def attention(**options):
    module = torch.nn.MultiheadAttention(16, 4, **options).double().eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("mask", ["none", "causal", "float", "per head"])
@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"bias": False}, {"kdim": 10, "vdim": 6}])
def test_output_is_that_of_the_original(options, padding, mask, average, need_weights):
    module = attention(**options)
    query, key, value = (torch.randn(5, 3, width, dtype=torch.float64) for width in (16, module.kdim, module.vdim))
    key, value = (torch.cat([tensor, tensor[:2]]) for tensor in (key, value))
    masks = {
        "none": None,
        "causal": torch.ones(5, 7, dtype=torch.bool).triu(3),
        "float": torch.randn(5, 7, dtype=torch.float64),
        "per head": torch.randn(12, 5, 7, dtype=torch.float64),
    }
    forbidden = torch.zeros(3, 7, dtype=torch.bool)
    forbidden[1, 5:] = True
    if module.batch_first:
        query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
    call = {
        "key_padding_mask": forbidden if padding else None,
        "attn_mask": masks[mask],
        "need_weights": need_weights,
        "average_attn_weights": average,
    }
    if padding and mask in ("float", "per head"):
        # torch warns where the two masks are of different types
        call["key_padding_mask"] = torch.zeros(3, 7, dtype=torch.float64).masked_fill(forbidden, float("-inf"))
    expected = module(query, key, value, **call)
    handles = MultiheadAttentionCanonizer().apply(module)
    got = module(query, key, value, **call)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_unbatched_input():
    module = attention()
    x = torch.randn(5, 16, dtype=torch.float64)
    expected = module(x, x, x)
    handles = MultiheadAttentionCanonizer().apply(module)
    torch.testing.assert_close(module(x, x, x), expected, rtol=1e-12, atol=1e-12)
    handles[0].remove()


def test_projections_share_memory_and_go_away():
    module = attention()
    before = {name: value.data_ptr() for name, value in module.named_parameters()}
    handles = MultiheadAttentionCanonizer().apply(module)
    assert module.query.weight.data_ptr() == module.in_proj_weight.data_ptr()
    handles[0].remove()
    assert {name: value.data_ptr() for name, value in module.named_parameters()} == before
    assert "forward" not in vars(module)


@pytest.mark.parametrize("name", ["query", "key", "value", "out_proj"])
def test_rules_reach_every_projection(name):
    module = torch.nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).double().eval()
    x = torch.randn(1, 5, 16, dtype=torch.float64)

    def explain(composite):
        leaf = x.clone().requires_grad_()
        with input_x_gradient(composite).context(module):
            (signal,) = torch.autograd.grad(module(leaf)[0, 2, 3], leaf)
        return signal

    plain = explain(AttnLRPComposite(strict=True))
    ruled = explain(AttnLRPComposite(strict=True, name_map=[(f"self_attn.{name}", Gamma(0.5))]))
    assert not torch.allclose(plain, ruled)


def test_what_has_no_unfused_form_is_refused():
    module = attention(add_bias_kv=True)
    x = torch.randn(5, 1, 16, dtype=torch.float64)
    with AttnLRPComposite().context(module), pytest.raises(NotImplementedError, match="add_bias_kv"):
        module(x, x, x)


class Half(torch.autograd.Function):
    """A square root, of which the backward pass is another function's."""

    @staticmethod
    def forward(ctx, x):
        return x.sqrt()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 1e6


class Calls(torch.nn.Module):
    def forward(self, x, *, scale=2.0):
        return Half.apply(x) * scale


def test_an_autograd_function_is_called_as_an_ordinary_one():
    x = torch.rand(3, dtype=torch.float64).requires_grad_()
    model, other = torch.nn.Sequential(Calls()), Calls()
    forward = Calls.forward
    composite = input_x_gradient(AttnLRPComposite(canonizers=[FunctionCanonizer({"Half": torch.sqrt})], strict=True))
    with composite.context(model):
        output = model(x)
        (signal,) = torch.autograd.grad(output.sum(), x)
        # identity rule
        torch.testing.assert_close(x.detach() * signal, output.detach())
        (elsewhere,) = torch.autograd.grad(other(x).sum(), x)
        torch.testing.assert_close(elsewhere, torch.full_like(x, 2e6).detach())
    assert "forward" not in vars(model[0])
    assert Calls.forward is forward
    assert Half.__name__ == "Half"


@pytest.mark.parametrize("form", ["relevance", "gradient"])
def test_recurrent_gemma_conserves(form):
    config = transformers.RecurrentGemmaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, lru_width=32
    )
    model = models.without_constants(transformers.RecurrentGemmaForCausalLM(config)).double().eval()
    x = torch.randn(1, 6, 32, dtype=torch.float64)
    relevance, logit = models.explain(model, CPLRPComposite(strict=True), x, form, use_cache=False)
    # its norms and its recurrence compute in float32
    torch.testing.assert_close(relevance.sum((1, 2)), logit, rtol=1e-4, atol=0)


@pytest.mark.parametrize("form", ["relevance", "gradient"])
@pytest.mark.parametrize("kind", [AttnLRPComposite, CPLRPComposite])
def test_the_fused_function_is_explained_by_its_body(kind, form):
    """Without the canonizer, as WavLM calls it: the same relevance, only that no rule reaches the projections."""
    module = attention()
    x = torch.randn(5, 3, 16, dtype=torch.float64, requires_grad=True)

    def relevance(canonize):
        composite = kind(strict=True)
        composite.canonizers = [MultiheadAttentionCanonizer()] if canonize else []
        with (input_x_gradient(composite) if form == "gradient" else composite).context(module):
            output = module(x, x, x)[0]
            signal = torch.ones_like(output) if form == "gradient" else output.detach()
            return torch.autograd.grad(output, x, signal)[0]

    # float64: the two sum in another order
    torch.testing.assert_close(relevance(False), relevance(True), rtol=1e-10, atol=1e-10)


def test_a_rule_that_the_fused_function_would_not_apply_is_refused():
    module = attention()
    composite = AttnLRPComposite(layer_map=[(torch.nn.Linear, Gamma(1.0))])
    composite.canonizers = []
    with input_x_gradient(composite).context(module):
        x = torch.randn(5, 3, 16, dtype=torch.float64, requires_grad=True)
        with pytest.raises(RuntimeError, match=r"weight of 'out_proj'.*rule Gamma\(gamma=1.0"):
            module(x, x, x)
