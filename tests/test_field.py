"""RelP, LibraGrad and PA-LRP, against their rules by hand: what is detached, and what is halved."""

import models
import pytest
import torch
import torch.nn.functional as F
from sweep.cases import build, in_float64

from zennit_attn import AttnLRPComposite, CPLRPComposite, InputXGradient, LibraGradComposite, RelPComposite, targets
from zennit_attn.errors import InputError
from zennit_attn.positions import position_leaves

from .forms import FORMS, attributor_of


def rms(x, module):
    """The LN rule: the root of the mean square is a constant."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon).detach() * module.weight


def half(product):
    """The uniform rule of a product of two: the value with half of its gradient."""
    return product / 2 + product.detach() / 2


def turned(x, cos, sin):
    share = half if cos.requires_grad else lambda product: product
    return share(x * cos) + share(torch.cat([-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]], -1) * sin)


def by_hand(model, x, rule, angles):
    """Logits of a Llama, with a backward pass by what the papers detach; angles are the cosines and sines of layers."""
    base, config = model.model, model.config
    mask = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1).double()
    share = half if rule == "uniform" else lambda product: product
    for layer, (cos, sin) in zip(base.layers, angles, strict=True):
        attention, mlp = layer.self_attn, layer.mlp
        h = rms(x, layer.input_layernorm)
        counts = config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads
        sides = zip((attention.q_proj, attention.k_proj, attention.v_proj), counts, strict=True)
        q, k, v = (side(h).unflatten(-1, (count, -1)).transpose(1, 2) for side, count in sides)
        q, k = turned(q, cos[:, None], sin[:, None]), turned(k, cos[:, None], sin[:, None])
        k, v = (side.repeat_interleave(counts[0] // counts[1], 1) for side in (k, v))
        weights = (share(q @ k.mT) * q.shape[-1] ** -0.5 + mask).softmax(-1)
        weights = weights.detach() if rule == "value" else weights
        x = x + attention.o_proj(share(weights @ v).transpose(1, 2).flatten(2))
        h = rms(x, layer.post_attention_layernorm)
        gate = mlp.gate_proj(h)
        # identity rule: SiLU is x times a constant
        x = x + mlp.down_proj(half(gate * gate.sigmoid().detach() * mlp.up_proj(h)))
    return model.lm_head(rms(x, base.norm))


def angles_of(model, x):
    """Cosines and sines for each sample, once for each layer."""
    angles = model.model.rotary_emb(x, torch.arange(x.shape[1])[None].expand(len(x), -1))
    return [tuple(value.clone() for value in angles) for _ in model.model.layers]


PAPERS = {"relp": (RelPComposite, "gradient"), "libragrad": (LibraGradComposite, "value")}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", PAPERS)
def test_a_preset_of_the_field_is_what_its_paper_detaches(name, attention, form):
    kind, rule = PAPERS[name]
    model = models.scramble(models.llama(attention)).double().eval()
    x = torch.randn(2, models.POSITIONS, models.WIDTH).double().requires_grad_()
    logits = by_hand(model, x, rule, angles_of(model, x))
    largest = logits[:, -1].max(-1)[0]
    (gradient,) = torch.autograd.grad(largest.sum(), x)
    got, explained = models.explain(model, kind(strict=True), x, form)
    # transformers' RMSNorm and softmax compute in float32
    torch.testing.assert_close(explained, largest.detach(), rtol=1e-5, atol=1e-6)
    assert models.relative_error(got, (x * gradient).detach()) < 1e-5
    if rule == "value":
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


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rotary_positions_get_half_of_each_product_in_each_layer(attention):
    model = models.scramble(models.llama(attention)).double().eval()
    ids = torch.randint(models.VOCABULARY, (2, 5))
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    angles = [tuple(value.requires_grad_() for value in layer) for layer in angles_of(model, x)]
    leaves = [leaf for layer in angles for leaf in layer]
    logits = by_hand(model, x, "uniform", angles)[:, -1, 3]
    on_x, *on_leaves = torch.autograd.grad(logits.sum(), [x, *leaves])
    expected = [(leaf * signal).sum(-1).detach() for leaf, signal in zip(leaves, on_leaves, strict=True)]
    found = InputXGradient(model, AttnLRPComposite(strict=True)).positions(ids, targets.Label(3))
    got = torch.cat(list(found.by_module.values()))
    # transformers' RMSNorm and softmax compute in float32
    assert models.relative_error(got, torch.stack(expected)) < 1e-5
    assert models.relative_error(found.relevance, (x * on_x).sum(-1).detach()) < 1e-5
    torch.testing.assert_close(found.layers, got.unflatten(0, (3, 2)).sum(1).transpose(0, 1))
    assert list(found.by_module) == [f"model.layers.{index}" for index in range(3)]
    # the paper's code: each factor of each layer by its largest magnitude, then both maps, then their sum
    scaled = [value.abs() / value.abs().amax(-1, keepdim=True) for value in expected]
    positions, tokens = sum(scaled), (x * on_x).sum(-1)
    both = tokens / tokens.abs().amax(-1, keepdim=True) + positions / positions.amax(-1, keepdim=True)
    torch.testing.assert_close(
        found.aggregate(), (both / both.abs().amax(-1, keepdim=True)).detach(), rtol=1e-5, atol=0
    )


def test_tokens_positions_and_what_the_ledger_has_are_the_logit():
    ids = torch.randint(models.VOCABULARY, (2, 5))
    one = InputXGradient(models.llama(num_hidden_layers=1).double().eval(), AttnLRPComposite(strict=True))
    found, plain = one.positions(ids, targets.Label(3)), one(ids, targets.Label(3)).relevance
    # one layer's softmax keeps the same, whoever gets the rest; transformers' RMSNorm computes in float32
    torch.testing.assert_close(found.relevance.sum(1) + found.layers.sum((1, 2)), plain.sum(1), rtol=1e-6, atol=1e-8)
    assert float((found.relevance - plain).abs().max()) > 1e-6
    model = models.llama().double().eval()
    attributor = InputXGradient(model, AttnLRPComposite(strict=True))
    found = attributor.positions(ids, targets.Label(3))
    with position_leaves(model, 2):
        ledger = attributor.ledger(ids, targets.Label(3))
    # of all that the output had, what no entry of the ledger has is the positions'
    assert ledger.remainder == pytest.approx(float(found.layers.sum()), abs=1e-8)
    assert abs(ledger.remainder) > 1e-5
    assert ledger.inputs["input"] == pytest.approx(float(found.relevance.sum()), rel=1e-9)
    # a call after that is as before
    assert abs(attributor.ledger(ids, targets.Label(3)).remainder) < 1e-8


def test_cp_lrp_gives_rotary_positions_nothing():
    model = models.llama().double().eval()
    attributor, ids = InputXGradient(model, CPLRPComposite(strict=True)), torch.randint(models.VOCABULARY, (1, 5))
    found = attributor.positions(ids, targets.Label(3))
    assert torch.equal(found.layers, torch.zeros(1, 3, 5).double())
    assert torch.equal(found.relevance, attributor(ids, targets.Label(3)).relevance)


@pytest.mark.parametrize("make", [models.gpt2, models.bert])
def test_learned_positions_get_their_share_of_the_sum(make):
    model = make().double().eval()
    attributor, ids = InputXGradient(model, AttnLRPComposite(strict=True)), torch.randint(models.VOCABULARY, (2, 5))
    found = attributor.positions(ids, targets.Label(3))
    ledger = attributor.ledger(ids, targets.Label(3))
    (kept,) = (value for (_, kind), value in ledger.kept.items() if kind.endswith(("wpe", "position_embeddings")))
    assert found.layers.shape == (2, 1, 5)
    assert float(found.layers.sum()) == pytest.approx(kept, rel=1e-9)
    assert torch.equal(found.relevance, attributor(ids, targets.Label(3)).relevance)


@pytest.mark.parametrize(
    "case",
    [
        "causal-lm/deepseek_v2",  # rotations as complex numbers
        "causal-lm/dots3_note",  # an indexer of tokens in its attention, which is given them, too
        "causal-lm/gpt_neox",  # of a part of the width
        "causal-lm/bart",  # looked up by the ids, and added
        "causal-lm/roformer",  # sines of one sample for all
    ],
)
def test_positions_of_other_models_are_what_the_ledger_lacks(case):
    model, inputs = in_float64(*build(case))
    batch = {key: value for key, value in inputs.items() if isinstance(value, torch.Tensor)}
    for name, parameter in model.named_parameters():
        # the sweep has set it to zero, as all that is added
        if "embed_positions" in name:
            parameter.data.normal_()
    attributor = InputXGradient(model, AttnLRPComposite())
    found, ledger = attributor.positions(batch, targets.Label(1)), attributor.ledger(batch, targets.Label(1))
    with position_leaves(model, 1):
        less = attributor.ledger(batch, targets.Label(1))
    relevance = float(sum(value.sum() for value in found.by_module.values()))
    assert abs(relevance) > 1e-9
    # these models compute in float32 in places
    assert less.remainder - ledger.remainder == pytest.approx(relevance, rel=1e-3, abs=1e-7)


def test_rows_of_pixels_are_no_samples():
    # an image is sixteen rows, of which the language model makes one sample
    model, inputs = in_float64(*build("image-text-to-text/cosmos3_edge"))
    attributor = InputXGradient(model, AttnLRPComposite(), argument="pixel_values")
    assert len(inputs["pixel_values"]) == 16
    found, ledger = attributor.positions(inputs, targets.Label(1)), attributor.ledger(inputs, targets.Label(1))
    assert found.by_module["model.language_model.layers.0"].shape == (2, 1, inputs["input_ids"].shape[1])
    with position_leaves(model, 16):
        less = attributor.ledger(inputs, targets.Label(1))
    relevance = float(sum(value.sum() for value in found.by_module.values()))
    assert less.remainder - ledger.remainder == pytest.approx(relevance, rel=1e-3, abs=1e-7)


def test_a_model_may_write_into_its_positions():
    model, inputs = in_float64(*build("image-text-to-text/kosmos-2.5"))
    attributor = InputXGradient(model, AttnLRPComposite(), argument="input_ids")
    assert torch.isfinite(attributor.positions(inputs, targets.Label(1)).layers).all()


@pytest.mark.parametrize(
    ("case", "samples", "match"),
    [
        # four codes of one token each
        ("causal-lm/musicgen", 1, r"MusicgenForCausalLM returned an output of shape \(16, .*rows\s+are the samples"),
        ("causal-lm/roformer", 2, r"RoFormerForCausalLM does not run with positions of its own .* expected one sample"),
    ],
)
def test_positions_that_cannot_be_told_by_sample_are_refused(case, samples, match):
    model, inputs = in_float64(*build(case))
    ids = inputs["input_ids"].repeat(samples, 1)
    with pytest.raises(InputError, match=match):
        InputXGradient(model, AttnLRPComposite()).positions({"input_ids": ids}, targets.Label(1))


def test_positions_are_no_tokens():
    model = models.gpt2().double().eval()
    # ids that are equal to the positions
    ids = torch.arange(5)[None]
    attributor = InputXGradient(model, AttnLRPComposite(strict=True))
    x = model.get_input_embeddings()(ids).detach()
    expected = attributor({"inputs_embeds": x}, targets.Label(3)).relevance.sum(-1)
    torch.testing.assert_close(attributor(ids, targets.Label(3)).relevance, expected, rtol=1e-9, atol=1e-12)


def test_a_model_that_is_told_no_positions_is_an_error():
    model = torch.nn.Sequential(torch.nn.Linear(4, 3))
    with pytest.raises(InputError, match="was told no positions"):
        InputXGradient(model, AttnLRPComposite()).positions(torch.ones(1, 4), targets.Label(0))
    with pytest.raises(ValueError, match="one of them at a time"):
        InputXGradient(model).positions(torch.ones(1, 4), targets.Each([targets.Label(0)]))
