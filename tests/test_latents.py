"""Latents: one vocabulary of places in every architecture, against tensors that are taken by hand."""

import models
import pytest
import torch
from sweep.cases import build, in_float64

from zennit_attn import AttnLRPComposite, CPLRPComposite, InputXGradient, input_x_gradient, targets
from zennit_attn.errors import InputError
from zennit_attn.latents import KINDS, Features, latents_of

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
#: Of the first layer: where heads and neurons are, how many, and how the layer is called.
PLACES = {
    "llama": ("model.layers.0", "self_attn.o_proj", "mlp.down_proj", 96),
    "qwen3": ("model.layers.0", "self_attn.o_proj", "mlp.down_proj", 96),
    "gpt2": ("transformer.h.0", "attn.c_proj", "mlp.c_proj", 192),
    "bert": ("bert.encoder.layer.0", "attention.output.dense", "output.dense", 96),
    "hf_vit": ("vit.layers.0", "attention.o_proj", "mlp.fc2", 96),
    "torchvision_vit": ("encoder.layers.encoder_layer_0", "self_attention.out_proj", "mlp.3", 96),
    "timm_vit": ("blocks.0", "attn.proj", "mlp.fc2", 96),
}


def input_of(name):
    return torch.randn(2, 3, 32, 32).double() if name.endswith("vit") else IDS


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", PLACES)
def test_heads_neurons_and_layers_have_one_name_in_every_library(name):
    model = models.scramble(getattr(models, name)()).double().eval()
    layer, projection, down, width = PLACES[name]
    found = latents_of(model)
    heads, neurons = found[f"{layer}.head"], found[f"{layer}.neuron"]
    assert (heads.module, heads.units) == (f"{layer}.{projection}", 4)
    assert neurons.module == f"{layer}.{down}"
    assert {latent.kind for latent in found.values()} == set(KINDS) - {"expert"}
    assert sum(latent.kind == "head" for latent in found.values()) == 3

    composite, x, target = AttnLRPComposite(strict=True), input_of(name), targets.Label(3)
    taken = {}
    with input_x_gradient(composite).context(model):
        # after the rules, which put modules of their own into torchvision's attention
        handles = [
            model.get_submodule(latent.module).register_forward_pre_hook(
                lambda _, args, key=latent.name: taken.__setitem__(key, args[0])
            )
            for latent in (heads, neurons)
        ]
        handles.append(model.get_submodule(layer).register_forward_hook(lambda _, a, out: taken.update(layer=out)))
        inputs = x if x.is_floating_point() else model.get_input_embeddings()(x).detach()
        inputs = inputs.requires_grad_()
        output = model(inputs) if x.is_floating_point() else model(inputs_embeds=inputs)
        output = getattr(output, "logits", output)
        logit = output[:, -1, 3] if output.dim() == 3 else output[:, 3]
        tensors = [value[0] if isinstance(value, tuple) else value for value in taken.values()]
        gradients = torch.autograd.grad(logit.sum(), tensors)
    for handle in handles:
        handle.remove()
    products = (value * signal for value, signal in zip(tensors, gradients, strict=True))
    expected = dict(zip(taken, (value.detach() for value in products), strict=True))
    if name == "torchvision_vit":
        # its attention has tokens before the batch
        expected[heads.name] = expected[heads.name].transpose(0, 1)

    with InputXGradient(model, composite, latents=["head", f"{layer}.*"]) as attributor:
        _, _, inner = attributor(x.detach(), target)
    close(inner[heads.name], expected[heads.name].unflatten(-1, (4, -1)).sum(-1))
    close(inner[neurons.name], expected[neurons.name])
    assert inner[neurons.name].shape[-1] == width
    close(inner[f"{layer}.residual"], expected["layer"])
    close(inner[f"{layer}.layer"], expected["layer"].sum(-1))
    assert sum(key.endswith(".head") for key in inner) == 3
    # no hook is left
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_falcon_has_heads_and_neurons_behind_linear_maps_of_its_own():
    # one matrix for queries, keys and values, of which several heads share the keys
    model, inputs = in_float64(*build("causal-lm/falcon"))
    found, layer = latents_of(model), "transformer.h.0"
    assert found[f"{layer}.head"].module == f"{layer}.self_attention.dense"
    assert found[f"{layer}.neuron"].module == f"{layer}.mlp.dense_4h_to_h"
    assert found[f"{layer}.head"].units == model.config.num_attention_heads
    attributor = InputXGradient(model, AttnLRPComposite(), latents=["head", "neuron"])
    _, relevance, inner = attributor(inputs["input_ids"], targets.Label(3))
    assert inner[f"{layer}.head"].shape == (*relevance.shape, model.config.num_attention_heads)
    # what goes into the last layer's projection has what comes out of it, less what the bias keeps
    last = f"transformer.h.{len(model.transformer.h) - 1}"
    with InputXGradient(model, AttnLRPComposite(), modules=[f"{last}.self_attention.dense"]) as attributor:
        (projected,) = attributor(inputs["input_ids"], targets.Label(3)).inner.values()
    close(inner[f"{last}.head"].sum(), projected.sum())


@pytest.mark.parametrize("name", ["llama", "torchvision_vit"])
def test_latents_of_a_batch_are_those_of_its_samples(name):
    model, x = getattr(models, name)().double().eval(), input_of(name)
    attributor = InputXGradient(model, AttnLRPComposite(), latents=["layer", "head", "neuron"])
    together = attributor(x, targets.Label(3)).inner
    for place in range(2):
        alone = attributor(x[place : place + 1], targets.Label(3)).inner
        for key, value in alone.items():
            # sums of another order
            torch.testing.assert_close(together[key][place], value[0], rtol=1e-7, atol=1e-9)
    each = targets.Each([targets.Label(3), targets.Label(1)])
    both = attributor(x, each).inner
    for key, value in together.items():
        torch.testing.assert_close(both[key][0], value, rtol=1e-7, atol=1e-9)
        assert both[key].shape == (2, *value.shape)


def test_layers_with_several_attentions_name_each():
    model = models.t5().double().eval()
    names = [name for name in latents_of(model) if name.startswith("decoder.block.0.")]
    assert names == [
        "decoder.block.0.layer",
        "decoder.block.0.residual",
        "decoder.block.0.layer.0.SelfAttention.head",
        "decoder.block.0.layer.1.EncDecAttention.head",
        "decoder.block.0.neuron",
    ]
    batch = {"input_ids": IDS, "decoder_input_ids": IDS[:, :3]}
    attributor = InputXGradient(model, AttnLRPComposite(), latents="head", argument="input_ids")
    inner = attributor(batch, targets.Label(3)).inner
    # the decoder's first layer hears of the encoder's input after its own attention alone
    assert inner["encoder.block.0.head"].shape == (2, 5, 4)
    assert inner["decoder.block.0.layer.1.EncDecAttention.head"].shape == (2, 3, 4)


@pytest.mark.parametrize("preset", [CPLRPComposite, AttnLRPComposite])
def test_relevance_of_an_expert_is_that_of_its_term(preset):
    # its kernel has no float64
    model = models.mixtral().eval()
    name, composite = "model.layers.0.mlp.experts", preset(strict=True)
    experts, taken = model.get_submodule(name), {}
    handles = [
        experts.register_forward_pre_hook(lambda _, args: taken.update(args=args)),
        experts.register_forward_hook(lambda _, args, output: taken.update(output=output)),
    ]
    with input_x_gradient(composite).context(model):
        x = model.get_input_embeddings()(IDS).detach().requires_grad_()
        logits = model(inputs_embeds=x).logits[:, -1, 3]
        (signal,) = torch.autograd.grad(logits.sum(), taken["output"])
    for handle in handles:
        handle.remove()
    h, index, weights = (value.detach() for value in taken["args"])
    terms = [experts(h, index, weights * (index == expert)) for expert in range(4)]
    expected = torch.stack([(signal * term).sum(-1) for term in terms], -1).unflatten(0, (2, 5))
    with InputXGradient(model, composite, latents="expert") as attributor:
        output, relevance, inner = attributor(IDS, targets.Label(3))
    # sums of float32 in another order
    got = inner["model.layers.0.expert"]
    torch.testing.assert_close(got, expected.detach(), rtol=1e-4, atol=1e-6)
    assert torch.equal(got != 0, torch.zeros(10, 4).scatter(1, index, 1).unflatten(0, (2, 5)) > 0)
    with InputXGradient(model, composite) as attributor:
        plain = attributor(IDS, targets.Label(3))
    torch.testing.assert_close(output.logits, plain.output.logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(relevance, plain.relevance, rtol=1e-4, atol=1e-6)


class Autoencoder(torch.nn.Module):
    def __init__(self, width=models.WIDTH, count=60):
        super().__init__()
        self.up, self.down = torch.nn.Linear(width, count), torch.nn.Linear(count, width)

    def encode(self, x):
        return self.up(x).relu()

    def decode(self, features):
        return self.down(features)


@pytest.mark.parametrize("reads", ["output", "input"])
def test_features_of_an_autoencoder_leave_the_forward_as_it_is(reads):
    model, autoencoder = models.llama().double().eval(), Autoencoder().double()
    place = "model.layers.1.mlp"
    taken = {}
    handle = model.get_submodule(place).register_forward_hook(lambda _, args, out: taken.update(x=args[0], y=out))
    plain = InputXGradient(model, AttnLRPComposite(strict=True), modules=place)(IDS, targets.Label(3))
    handle.remove()
    with InputXGradient(
        model, AttnLRPComposite(strict=True), latents=Features(place, autoencoder, reads)
    ) as attributor:
        output, relevance, inner = attributor(IDS, targets.Label(3))
    assert torch.equal(output.logits, plain.output.logits)
    # by hand: what the output's signal gives to each feature's direction, and to the error
    x, y = taken["x"].detach(), taken["y"].detach()
    signal = plain.inner[place] / y
    features = autoencoder.encode(y if reads == "output" else x).detach()
    expected = features * (signal @ autoencoder.down.weight)
    torch.testing.assert_close(inner[f"{place}.feature"], expected.detach(), rtol=1e-7, atol=1e-10)
    error = (signal * (y - autoencoder.decode(features))).sum(-1)
    torch.testing.assert_close(inner[f"{place}.error"], error.detach(), rtol=1e-7, atol=1e-10)
    # what the error and the decoder's bias keep does not reach the tokens
    assert not torch.allclose(relevance, plain.relevance)
    assert all(parameter.requires_grad for parameter in autoencoder.parameters())
    assert "forward" not in vars(model.get_submodule(place))


@pytest.mark.parametrize(
    ("case", "kinds"),
    [
        ("causal-lm/deepseek_v2", {"layer", "residual", "head", "neuron", "expert"}),
        ("causal-lm/gpt_oss", {"layer", "residual", "head", "expert"}),
        ("causal-lm/mamba", {"layer", "residual", "neuron"}),
        ("image-classification/swin", {"layer", "residual", "head", "neuron"}),
        ("masked-lm/deberta-v2", {"layer", "residual", "head", "neuron"}),
    ],
)
def test_latents_of_other_blocks(case, kinds):
    model, inputs = in_float64(*build(case))
    assert {latent.kind for latent in latents_of(model).values()} == kinds
    batch = {key: value for key, value in inputs.items() if isinstance(value, torch.Tensor)}
    inner = InputXGradient(model, CPLRPComposite(), latents=sorted(kinds))(batch, targets.Label(1)).inner
    samples = len(next(iter(batch.values())))
    assert all(value.shape[0] == samples for value in inner.values())
    # without constants each layer of a stack conserves; GPT-OSS adds 1 to a factor of its experts
    totals = [float(value.sum()) for key, value in inner.items() if key.endswith(".layer")]
    assert case.endswith("gpt_oss") or totals == pytest.approx([totals[0]] * len(totals), rel=1e-4)


@pytest.mark.parametrize(
    ("latents", "match"),
    [
        ("heads", "nearest: 'head'"),
        ("expert", "of which this model has"),
        ("model.layers.7.head", "fits none of LlamaForCausalLM"),
        (Features("model.layers.7", Autoencoder()), "is at no module"),
    ],
)
def test_latents_that_there_are_not(latents, match):
    with pytest.raises(InputError, match=match):
        InputXGradient(models.llama(), AttnLRPComposite(), latents=latents)(IDS, targets.Label(3))


def test_features_that_are_none():
    with pytest.raises(InputError, match="expected methods encode and decode"):
        Features("model.layers.1", torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match="expected 'output' or 'input'"):
        Features("model.layers.1", Autoencoder(), reads="both")


def test_a_fused_attention_without_rules_has_no_heads():
    with pytest.raises(InputError, match="under the rules of a preset"):
        InputXGradient(models.torchvision_vit(), latents="head")(torch.randn(1, 3, 32, 32), targets.Label(3))
