"""Conditional relevance: CRP's definition with dense matrices, sums over units, both forms, zennit's attributors."""

import models
import oracle
import pytest
import torch
from torch import nn
from zennit.attribution import Gradient
from zennit.composites import EpsilonPlus

from zennit_attn import AttnLRPComposite, CPLRPComposite, InputXGradient, ModelAdapter, input_x_gradient, targets
from zennit_attn.concepts import ChannelConcept, CondAttribution, Features, conditioned
from zennit_attn.errors import InputError

from .forms import FORMS, in_form
from .test_latents import Autoencoder

IDS = torch.tensor([[3, 1, 4, 1, 5]])
LAYER = "model.layers.1"


def close(got, expected):
    torch.testing.assert_close(got, expected.detach(), rtol=1e-9, atol=1e-12)


# convolutional networks: the definition of the paper


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 5, 3, bias=False), nn.ReLU(), nn.Flatten()
    model = nn.Sequential(*layers, nn.Linear(20, 3, bias=False)).double()
    for parameter in model.parameters():
        # so that each channel is active somewhere
        parameter.data += 0.05
    return model


def matrix_of(conv, x):
    """The dense matrix of a convolution without bias: what it makes of the unit vectors."""
    units = torch.eye(x[0].numel()).double().reshape(-1, *x.shape[1:])
    return conv(units).flatten(1).T.detach()


def positive(conv, x, relevance):
    """z+ with zennit's stabilizer, of one sample: R_i = Σ_j (x_i w_ji)⁺ / (Σ_i (x_i w_ji)⁺ + ε) R_j."""
    contributions = (matrix_of(conv, x) * x.flatten()).clamp(min=0)
    total = contributions.sum(1, keepdim=True) + 1e-6
    return (contributions / total * relevance.flatten()[:, None]).sum(0).reshape(x.shape)


def crp(model, x, condition):
    """CRP (Achtibat et al. 2023, eq. 5 to 7): after each layer relevance is masked by the condition on it."""
    with torch.no_grad():
        values = [x]
        for layer in model:
            values.append(layer(values[-1]))
    relevance = torch.zeros_like(values[-1])
    relevance[0, condition["y"]] = values[-1][0, condition["y"]]
    recorded = {}
    for place in reversed(range(len(model))):
        if str(place) in condition:
            kept = torch.zeros_like(relevance)
            kept[:, condition[str(place)]] = 1
            relevance = relevance * kept
        recorded[str(place)] = relevance
        layer, value = model[place], values[place]
        if isinstance(layer, nn.Conv2d):
            relevance = positive(layer, value, relevance)
        elif isinstance(layer, nn.Linear):
            # zennit's Epsilon has the same stabilizer
            relevance = oracle.linear(value, layer.weight.detach(), None, relevance, 1e-6)
        else:
            relevance = relevance.reshape(value.shape)
    return relevance.sum(1), recorded


CONDITIONS = [
    {"2": [1], "y": [0]},
    {"2": [0, 3], "0": [2], "y": [2]},
    {"0": [1], "y": [1]},
    {"y": [0, 2]},
    {"2": [4], "0": [3, 0], "y": [2]},
    {"2": [], "y": [0]},
]


@pytest.mark.parametrize("exclude_parallel", [True, False])
def test_a_convolutional_network_has_the_conditional_relevance_of_the_paper(exclude_parallel):
    model, x = network(), torch.rand(1, 3, 6, 6).double()
    attribution = CondAttribution(model)
    found = attribution(x, CONDITIONS, EpsilonPlus(), record_layer=["5"], exclude_parallel=exclude_parallel)
    assert found.heatmap.shape == (6, 6, 6)
    assert list(found.relevances) == ["0", "2", "5"]
    for row, condition in enumerate(CONDITIONS):
        heatmap, recorded = crp(model, x, condition)
        close(found.heatmap[row], heatmap[0])
        for name in found.relevances:
            close(found.relevances[name][row], recorded[name][0])
    close(found.prediction, model(x).expand(6, -1))
    close(found.activations["0"], model[0](x).expand(6, -1, -1, -1))
    assert float(found.heatmap[0].abs().max()) > 1e-3
    assert torch.equal(found.heatmap[5], torch.zeros(6, 6).double())
    # the hooks are gone, and the parameters as they were
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_many_conditions_of_one_forward_are_those_of_many():
    model, x = network(), torch.rand(1, 3, 6, 6).double()
    conditions = [{"2": [unit], "0": [unit % 4], "y": [unit % 3]} for unit in range(5)]
    attribution, calls = CondAttribution(model), []
    together = attribution(x, conditions, EpsilonPlus())
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    parts = list(attribution.generate(x, conditions, EpsilonPlus(), batch_size=2))
    handle.remove()
    assert [len(part.heatmap) for part in parts] == [2, 2, 1]
    assert len(calls) == 1
    close(torch.cat([part.heatmap for part in parts]), together.heatmap)
    for name in ("0", "2"):
        close(torch.cat([part.relevances[name] for part in parts]), together.relevances[name])
    # two samples, each under each condition
    both = attribution(torch.cat([x, x.flip(-1)]), conditions, EpsilonPlus())
    close(both.heatmap[:5], together.heatmap)
    close(both.heatmap[5:], attribution(x.flip(-1), conditions, EpsilonPlus()).heatmap)


class Residual(nn.Module):
    """Two convolutions, each with a shortcut around it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = (nn.Conv2d(3, 3, 1, bias=False) for _ in range(2))
        self.last = nn.Linear(12, 2, bias=False)

    def forward(self, x):
        h = x + self.first(x)
        return self.last((h + self.second(h)).flatten(1))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("exclude_parallel", [True, False])
def test_what_goes_around_a_condition(exclude_parallel, form):
    model, x = Residual().double(), torch.rand(1, 3, 2, 2).double() + 0.5
    condition = {"second": [2], "first": [0, 1], "y": [1]}
    # LRP-0 by hand
    a = model.first(x).detach()
    h = x + a
    b = model.second(h).detach()
    top = (h + b).flatten(1)
    logit = torch.zeros(1, 2).double()
    logit[0, 1] = model.last(top)[0, 1].detach()
    on_top = oracle.linear(top, model.last.weight.detach(), None, logit).reshape(h.shape)
    on_h, on_b = oracle.addition([h, b], on_top)
    masks = [torch.zeros(1, 3, 1, 1).double() for _ in range(2)]
    masks[0][:, 2], masks[1][:, :2] = 1, 1
    through = oracle.affine(model.second, h, on_b * masks[0]).detach()
    on_h = through if exclude_parallel else on_h + through
    on_x, on_a = oracle.addition([x, a], on_h)
    through = oracle.affine(model.first, x, on_a * masks[1]).detach()
    expected = through if exclude_parallel else on_x + through
    composite = in_form(CPLRPComposite(strict=True), form)
    found = CondAttribution(model)(x, [condition], composite, exclude_parallel=exclude_parallel)
    close(found.heatmap, expected.sum(1))


# transformers


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [CPLRPComposite, AttnLRPComposite])
def test_conditional_relevance_of_all_units_is_the_unconditional_one(kind, form):
    model = models.llama().double().eval()
    composite, attribution = in_form(kind(strict=True), form), CondAttribution(model)
    plain = InputXGradient(model, kind(strict=True))(IDS, targets.Label(7)).relevance
    # a whole cut of the graph
    conditions = [{f"{LAYER}.residual": [unit], "y": [7]} for unit in range(models.WIDTH)]
    parts = [found.heatmap for found in attribution.generate(IDS, conditions, composite, batch_size=16)]
    # RMSNorm computes in float32, and each condition has its own rounding
    torch.testing.assert_close(torch.cat(parts).sum(0, keepdim=True), plain, rtol=1e-6, atol=1e-6)
    (unconditional,) = (found.heatmap for found in attribution.generate(IDS, [{"y": [7]}], composite))
    torch.testing.assert_close(unconditional, plain, rtol=1e-6, atol=1e-7)
    # heads and neurons are one branch of a layer: together all of it, the rest goes around
    for latent, units in (("head", 4), ("neuron", 96)):
        name = f"{LAYER}.{latent}"
        each = attribution(IDS, [{name: [unit], "y": [7]} for unit in range(units)], composite).heatmap
        branch = attribution(IDS, [{name: range(units), "y": [7]}], composite).heatmap
        around = attribution(IDS, [{name: [], "y": [7]}], composite, exclude_parallel=False).heatmap
        torch.testing.assert_close(each.sum(0, keepdim=True), branch, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(branch + around, plain, rtol=1e-6, atol=1e-7)
        assert float(each.abs().max()) > 1e-5


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_relevance_through_a_head_is_what_its_part_of_the_signal_gives(attention, form):
    model = models.scramble(models.llama(attention)).double().eval()
    x, taken = model.get_input_embeddings()(IDS).detach().requires_grad_(), {}
    projection = model.get_submodule(f"{LAYER}.self_attn.o_proj")
    handle = projection.register_forward_pre_hook(lambda _, args: taken.update(mixed=args[0]))
    with input_x_gradient(AttnLRPComposite()).context(model):
        logit = model(inputs_embeds=x).logits[0, -1, 7]
        (signal,) = torch.autograd.grad(logit, taken["mixed"], retain_graph=True)
        kept = torch.zeros_like(signal)
        kept[..., 12:24] = signal[..., 12:24]
        (on_x,) = torch.autograd.grad(taken["mixed"], x, kept)
    handle.remove()
    composite = in_form(AttnLRPComposite(strict=True), form)
    conditions = [{f"{LAYER}.head": [1], "y": [7]}, {f"{LAYER}.head": [1], "y": targets.Labels([7, 3], [1, -1])}]
    found = CondAttribution(model)(IDS, conditions, composite, record_layer=["model.layers.0"])
    # transformers' RMSNorm computes in float32
    assert models.relative_error(found.heatmap[0], (x * on_x).sum(-1)[0].detach()) < 1e-5
    by_head = (taken["mixed"] * signal).unflatten(-1, (4, -1)).sum(-1).detach()
    recorded = found.relevances[f"{LAYER}.head"]
    assert recorded.shape == (2, 5, 4)
    assert models.relative_error(recorded[0, :, 1], by_head[0, :, 1]) < 1e-5
    assert torch.equal(recorded[..., [0, 2, 3]], torch.zeros(2, 5, 3).double())
    # under AttnLRP the softmax below keeps a share, a layer's own output has all of what went through
    total = found.relevances["model.layers.0"].sum((1, 2))
    assert total.shape == (2,)
    assert float((found.heatmap[0] - found.heatmap[1]).abs().max()) > 1e-6


@pytest.mark.parametrize("make", [models.torchvision_vit, models.timm_vit, models.hf_vit])
def test_heads_of_vision_transformers(make):
    model, pixels = models.scramble(make()).double().eval(), torch.randn(2, 3, 32, 32).double()
    (name,) = (name for name in ("encoder.layers.encoder_layer_1", "blocks.1", "vit.layers.1") if has(model, name))
    attribution, composite = CondAttribution(model), CPLRPComposite(strict=True)
    conditions = [{f"{name}.head": [unit], "y": [3]} for unit in (0, 2)]
    found = attribution(pixels, conditions, composite)
    batch = [attribution(pixels[:1], conditions[:1], composite), attribution(pixels[1:], conditions[1:], composite)]
    assert found.heatmap.shape == (2, 32, 32)
    # sums of another order
    torch.testing.assert_close(found.heatmap, torch.cat([part.heatmap for part in batch]), rtol=1e-7, atol=1e-9)
    assert set(found.relevances[f"{name}.head"].nonzero()[:, 2].tolist()) == {0, 2}


def has(model, name):
    return name in dict(model.named_modules())


def test_experts_share_what_goes_through_all_of_them():
    model = models.mixtral().eval()
    attribution, name = CondAttribution(model), "model.layers.1.expert"
    each = attribution(IDS, [{name: [unit], "y": [7]} for unit in range(4)], CPLRPComposite(strict=True))
    branch = attribution(IDS, [{name: range(4), "y": [7]}], input_x_gradient(CPLRPComposite(strict=True)))
    # sums of float32 in another order
    torch.testing.assert_close(each.heatmap.sum(0, keepdim=True), branch.heatmap, rtol=1e-4, atol=1e-6)
    assert float(branch.heatmap.abs().max()) > 1e-4


@pytest.mark.parametrize("form", FORMS)
def test_features_of_an_autoencoder_are_units(form):
    model, autoencoder = models.llama().double().eval(), Autoencoder(count=9).double()
    features = Features(LAYER, autoencoder)
    attribution, composite = CondAttribution(model, features=[features]), in_form(CPLRPComposite(strict=True), form)
    each = attribution(IDS, [{features.name: [unit], "y": [7]} for unit in range(9)], composite)
    plain = attribution(IDS, [{"y": [7]}], composite)
    # all relevance that gets below the layer does so through a feature
    torch.testing.assert_close(each.heatmap.sum(0, keepdim=True), plain.heatmap, rtol=1e-6, atol=1e-7)
    inner = InputXGradient(model, CPLRPComposite(), latents=features)(IDS, targets.Label(7)).inner[features.name]
    on_units = each.relevances[features.name]
    torch.testing.assert_close(on_units.diagonal(dim1=0, dim2=2), inner[0], rtol=1e-6, atol=1e-8)


def test_zennits_gradient_under_conditions():
    model = models.llama().double().eval()
    adapter, composite = ModelAdapter(model), AttnLRPComposite(strict=True)
    x, conditions = adapter.embed(IDS.expand(2, -1)), [{f"{LAYER}.head": [0]}, {f"{LAYER}.neuron": [5, 7]}]
    with Gradient(adapter, composite) as attributor, conditioned(model, conditions):
        _, relevance = attributor(x, targets.Label(7))
        again = attributor(x, targets.Label(7))[1]
    asked = [{**condition, "y": [7]} for condition in conditions]
    expected = CondAttribution(model)(IDS, asked, composite, exclude_parallel=False)
    close(relevance.sum(-1), expected.heatmap)
    assert torch.equal(relevance, again)
    with Gradient(adapter, composite) as attributor:
        plain = attributor(x, targets.Label(7))[1]
    assert float((plain - relevance).abs().max()) > 1e-6


def test_zennits_gradient_and_composite_under_one_condition_for_all():
    model, x = network(), torch.rand(3, 3, 6, 6).double()
    with Gradient(model, EpsilonPlus()) as attributor, conditioned(model, [{"2": [1]}]):
        _, relevance = attributor(x, targets.Label(0))
    found = CondAttribution(model)(x, [{"2": [1], "y": [0]}], EpsilonPlus())
    close(relevance.sum(1), found.heatmap)
    with conditioned(model, [{"2": [1]}]), pytest.raises(InputError, match="to be entered first"):
        Gradient(model, EpsilonPlus())(x, targets.Label(0))


# how it is asked


def test_relevance_starts_at_a_layer():
    model, x = network(), torch.rand(1, 3, 6, 6).double()
    attribution = CondAttribution(model)
    found = attribution(x, [{"2": [1]}, {"2": [2], "0": [0]}], EpsilonPlus(), start_layer="2")
    activation = model[:3](x).detach()
    for row, condition in enumerate([{"2": [1]}, {"2": [2], "0": [0]}]):
        kept = torch.zeros_like(activation)
        kept[:, condition["2"]] = activation[:, condition["2"]]
        on_h = positive(model[2], model[1](model[0](x)).detach(), kept)
        if "0" in condition:
            on_h[:, [1, 2, 3]] = 0
        close(found.heatmap[row], positive(model[0], x, on_h).sum(1)[0])
    close(found.prediction, activation.expand(2, -1, -1, -1))
    around = attribution(x, [{"2": [1]}, {"2": [2], "0": [0]}], EpsilonPlus(), start_layer="2", exclude_parallel=False)
    close(around.heatmap, found.heatmap)
    close(around.relevances["2"], found.relevances["2"])
    twice = attribution(x, [{"2": [1]}], EpsilonPlus(), start_layer="2", init_rel=lambda value: 2 * value)
    close(twice.heatmap, 2 * found.heatmap[:1])
    ones = attribution(x, [{"2": [1]}], EpsilonPlus(), start_layer="2", init_rel=1.0)
    close(ones.relevances["2"][0, 1], torch.ones(2, 2).double())


@pytest.mark.parametrize("form", FORMS)
def test_relevance_of_the_output_may_be_given(form):
    model = models.bert().double().eval()
    attribution, composite = CondAttribution(model), in_form(AttnLRPComposite(strict=True), form)
    given = torch.tensor([[0.0, 2.0, 0.0, -1.0, 0.0]]).double()
    found = attribution(IDS, [{}], composite, init_rel=given)
    parts = attribution(IDS, [{"y": [1]}, {"y": [3]}], composite, init_rel=1)
    torch.testing.assert_close(found.heatmap[0], 2 * parts.heatmap[0] - parts.heatmap[1], rtol=1e-7, atol=1e-9)
    assert float(parts.heatmap.abs().max()) > 1e-6
    # for each condition, in batches of which the last one is not full
    several = torch.eye(5).double()[[1, 3, 1]]
    asked = list(attribution.generate(IDS, [{}] * 3, composite, init_rel=several, batch_size=2))
    rows = torch.cat([part.heatmap for part in asked])
    torch.testing.assert_close(rows, parts.heatmap[[0, 1, 0]], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(attribution(IDS, [{}] * 3, composite, init_rel=several).heatmap, rows)


def test_where_the_channels_are_is_the_concepts_to_know():
    model = models.llama().double().eval()
    attribution, composite = CondAttribution(model), CPLRPComposite(strict=True)
    by_type = attribution(IDS, [{f"{LAYER}.mlp.up_proj": [4], "y": [7]}], composite)
    last = {f"{LAYER}.mlp.up_proj": ChannelConcept(axis=-1)}
    close(
        by_type.heatmap, attribution(IDS, [{f"{LAYER}.mlp.up_proj": [4], "y": [7]}], composite, mask_map=last).heatmap
    )

    # as in zennit-crp, a function that writes into the signal; here of tokens, along axis 1
    def of_tokens(batch_id, concept_ids, layer_name):
        assert layer_name == LAYER

        def mask(signal):
            left = torch.zeros_like(signal[batch_id])
            left[concept_ids] = signal[batch_id, concept_ids]
            signal[batch_id] = left
            return signal

        return mask

    conditions = [{LAYER: [4], "y": [7]}, {LAYER: [0, 1, 2, 3], "y": [7]}]
    found = attribution(IDS, conditions, composite, mask_map=of_tokens)
    assert torch.equal(found.relevances[LAYER][0, :4], torch.zeros(4, models.WIDTH).double())
    close(found.heatmap, attribution(IDS, conditions, composite, mask_map=ChannelConcept(1)).heatmap)
    plain = attribution(IDS, [{"y": [7]}], composite).heatmap
    torch.testing.assert_close(found.heatmap.sum(0, keepdim=True), plain, rtol=1e-6, atol=1e-7)


def test_relevance_by_channel():
    relevance = torch.arange(12.0).reshape(1, 2, 3, 2)
    assert ChannelConcept().attribute(relevance, abs_norm=False).tolist() == [[15, 51]]
    assert ChannelConcept(-1).attribute(relevance, abs_norm=False).tolist() == [[30, 36]]
    assert ChannelConcept().attribute(-relevance).sum() == -1
    assert ChannelConcept().attribute(relevance * 0).tolist() == [[0, 0]]


def test_padding_has_no_part():
    model = models.llama().double().eval()
    batch = {"input_ids": torch.tensor([[3, 1, 4, 1, 5, 0, 0]]), "attention_mask": torch.tensor([[1] * 5 + [0] * 2])}
    attribution, composite = CondAttribution(model), CPLRPComposite()
    condition = {f"{LAYER}.head": [2], "y": [7]}
    found = attribution(batch, [condition, condition], composite)
    close(found.heatmap[:, :5], attribution(IDS, [condition], composite).heatmap.expand(2, -1))
    assert torch.equal(found.heatmap[:, 5:], torch.zeros(2, 2).double())


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda a: a(IDS, [{"model.layers.7.head": [1], "y": [7]}]), "neither a latent nor a module"),
        (lambda a: a(IDS, [{f"{LAYER}.head": [4], "y": [7]}]), "expected numbers from 0 to 3"),
        (lambda a: a(IDS, [{f"{LAYER}.head": [1]}]), "expected 'y' in it"),
        (lambda a: a(IDS, []), "got no condition"),
        (lambda a: a(IDS, [{"y": [7]}], start_layer=LAYER), "relevance starts at the layer, or at the output"),
        (lambda a: a(IDS, [{LAYER: [7], "y": [7]}]), r"ChannelConcept\(axis=1\)"),
        (lambda a: list(a.generate(IDS.expand(2, -1), [{"y": [7]}])), "expected one sample"),
        (lambda a: list(a.generate(IDS, [{"y": [7]}, {f"{LAYER}.head": [1], "y": [7]}])), "the same in each"),
        (lambda a: a(IDS, [{f"{LAYER}.mlp.up_proj": [1], f"{LAYER}.mlp.gate_proj": [1], "y": [7]}]), "nothing reaches"),
    ],
)
def test_errors_say_what_to_do(call, match):
    with pytest.raises(InputError, match=match):
        call(CondAttribution(models.llama()))


def test_conditions_under_an_attributor_say_nothing_of_the_output():
    with pytest.raises(InputError, match="none on 'y'"), conditioned(network(), [{"y": [1]}]):
        pass
    model = network()
    with (
        pytest.raises(InputError, match="got 2 conditions for a batch of 3"),
        conditioned(model, [{"2": [1]}] * 2, form="gradient"),
    ):
        InputXGradient(model)(torch.rand(3, 3, 6, 6).double(), targets.Label(0))
