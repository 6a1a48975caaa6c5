"""Relevance patching and relevance of weights, against what is computed by hand, and against real patching."""

import models
import oracle
import pytest
import torch
from torch import nn

from zennit_attn import (
    AttnLRPComposite,
    CPLRPComposite,
    GammaViTComposite,
    InputXGradient,
    RelPComposite,
    input_x_gradient,
    targets,
)
from zennit_attn.concepts import Features, relevance_patching, weight_relevance
from zennit_attn.errors import InputError

from .test_latents import Autoencoder

ORIGINAL = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]])
PATCH = torch.tensor([[3, 9, 4, 1, 5], [2, 7, 6, 8, 2]])
TARGET = targets.Labels([7, 3], [1, -1])
LAYER = "model.layers.1"


def close(got, expected):
    torch.testing.assert_close(got, expected.detach(), rtol=1e-9, atol=1e-12)


def taken_by(model, modules, ids):
    """What goes into modules, and comes out of them, with a graph to an output."""
    taken = {}

    def keep(module, args, output):
        taken[names[module]] = args[0], output[0] if isinstance(output, tuple) else output

    names = {model.get_submodule(name): name for name in modules}
    handles = [module.register_forward_hook(keep) for module in names]
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    logits = model(inputs_embeds=x).logits[:, -1]
    for handle in handles:
        handle.remove()
    return taken, logits


@pytest.mark.parametrize("kind", [None, RelPComposite, AttnLRPComposite])
def test_an_effect_is_the_difference_times_the_signal(kind):
    model = models.scramble(models.llama()).double().eval()
    names = [LAYER, f"{LAYER}.self_attn.o_proj", f"{LAYER}.mlp.down_proj"]
    with input_x_gradient((kind or RelPComposite)()).context(model):
        first, logits = taken_by(model, names, ORIGINAL)
        tensors = first[names[0]][1], first[names[1]][0], first[names[2]][0]
        signals = torch.autograd.grad((logits[:, 7] - logits[:, 3]).sum(), tensors)
        second, other = taken_by(model, names, PATCH)
    patched = second[names[0]][1], second[names[1]][0], second[names[2]][0]
    layer, head, neuron = ((new - old) * g for new, old, g in zip(patched, tensors, signals, strict=True))
    found = relevance_patching(
        model, ORIGINAL, PATCH, TARGET, [f"{LAYER}.*", "model.layers.0.head"], kind and kind(strict=True)
    )
    close(found.effects[f"{LAYER}.layer"], layer.sum(-1))
    close(found.effects[f"{LAYER}.residual"], layer)
    close(found.effects[f"{LAYER}.head"], head.unflatten(-1, (4, -1)).sum(-1))
    close(found.effects[f"{LAYER}.neuron"], neuron)
    close(found.original[:, -1], logits)
    close(found.patch[:, -1], other)
    # before the first token that differs nothing does
    assert torch.equal(found.effects["model.layers.0.head"][0, 0], torch.zeros(4).double())
    assert float(found.effects["model.layers.0.head"].abs().max()) > 1e-6


class Gated(nn.Module):
    """A stack of numbered layers, of which the last one is read off by a linear map."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.ModuleDict({"mlp": nn.Linear(6, 6)}) for _ in range(2))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer["mlp"](x)
        return self.head(x)


def test_an_effect_is_exact_where_the_rest_of_the_model_is_linear():
    model, pair = Gated().double(), torch.randn(2, 1, 6).double()
    found = relevance_patching(model, pair[0], pair[1], [1], "neuron")
    # by real patching: the input of the second layer's map is another one's
    inputs = [x + model.layers[0]["mlp"](x) for x in pair]
    output = model.head(inputs[0] + model.layers[1]["mlp"](inputs[1]))
    effect = (output - model(pair[0]))[0, 1]
    assert float(found.effects["layers.1.neuron"].sum()) == pytest.approx(float(effect.detach()), rel=1e-9)


def test_features_are_patched_too():
    model, autoencoder = models.llama().double().eval(), Autoencoder().double()
    features = Features(LAYER, autoencoder)
    found = relevance_patching(model, ORIGINAL, PATCH, TARGET, features)
    with input_x_gradient(RelPComposite()).context(model):
        first, logits = taken_by(model, [LAYER], ORIGINAL)
        (signal,) = torch.autograd.grad((logits[:, 7] - logits[:, 3]).sum(), first[LAYER][1])
        second, _ = taken_by(model, [LAYER], PATCH)
    difference = autoencoder.encode(second[LAYER][1]) - autoencoder.encode(first[LAYER][1])
    close(found.effects[features.name], difference * (signal @ autoencoder.down.weight))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: relevance_patching(models.llama(), ORIGINAL, PATCH[:, :4], TARGET), "of the same number of samples"),
        (lambda: relevance_patching(models.mixtral(), ORIGINAL, PATCH, TARGET, "expert"), "latents of experts"),
        (lambda: relevance_patching(models.llama(), ORIGINAL, PATCH, TARGET, "heads"), "nearest: 'head'"),
        (lambda: weight_relevance(models.llama(), ORIGINAL, TARGET, CPLRPComposite(), "*.downproj"), "down_proj"),
        (
            lambda: weight_relevance(models.hf_vit(), torch.ones(1, 3, 32, 32), [1], GammaViTComposite(), "*.fc2"),
            r"expected LRP-0",
        ),
    ],
)
def test_errors_say_what_to_do(call, match):
    with pytest.raises(InputError, match=match):
        call()


# weights


def test_relevance_of_a_weight_is_the_message_through_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    x = torch.randn(2, 4).double()
    found = weight_relevance(model, x, [1], CPLRPComposite(strict=True))
    # LRP-0 by hand: R_ij = x_i w_ji / z_j R_j
    h = model[:2](x).detach()
    weight, bias = model[2].weight.detach(), model[2].bias.detach()
    relevance = torch.zeros(2, 3).double()
    relevance[:, 1] = model(x)[:, 1].detach()
    z = h @ weight.T + bias
    messages = h[:, None] * weight / z[..., None] * relevance[..., None]
    close(found["2"].weights, messages.sum(0))
    close(found["2"].bias, (bias / z * relevance).sum(0))
    on_h = oracle.linear(h, weight, bias, relevance)
    close(found["2"].columns, on_h.sum(0))
    # the ReLU passes relevance on
    close(found["0"].rows + found["0"].bias, on_h.sum(0))


@pytest.mark.parametrize("make", [models.llama, models.gpt2])
def test_sums_of_weights_are_the_relevance_of_neurons_heads_and_outputs(make):
    model = models.scramble(make()).double().eval()
    layer, projection, down = {
        models.llama: ("model.layers.1", "self_attn.o_proj", "mlp.down_proj"),
        models.gpt2: ("transformer.h.1", "attn.c_proj", "mlp.c_proj"),
    }[make]
    composite = AttnLRPComposite(strict=True)
    found = weight_relevance(model, ORIGINAL, TARGET, composite, f"{layer}.*")
    modules = [f"{layer}.{projection}", f"{layer}.{down}"]
    inner = InputXGradient(model, composite, modules=modules, latents=["head", "neuron"])(ORIGINAL, TARGET).inner
    heads, neurons = (found[name] for name in modules)
    close(heads.by_head(), inner[f"{layer}.head"].sum((0, 1)))
    close(neurons.columns, inner[f"{layer}.neuron"].sum((0, 1)))
    for name, value in zip(modules, (heads, neurons), strict=True):
        close(value.rows + (0 if value.bias is None else value.bias), inner[name].sum((0, 1)))
        module = model.get_submodule(name)
        transposed = type(module).__name__ == "Conv1D"
        assert value.weights.shape == (module.weight.T if transposed else module.weight).shape
    with pytest.raises(InputError, match="no output projection"):
        neurons.by_head()
    # the model is as it was
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_weights_are_input_times_gradient_of_the_weights_themselves():
    model = models.llama().double().eval()
    name = f"{LAYER}.mlp.up_proj"
    found = weight_relevance(model, ORIGINAL, [7], CPLRPComposite(), name)[name]
    with input_x_gradient(CPLRPComposite()).context(model):
        taken, logits = taken_by(model, [name], ORIGINAL)
        x, y = taken[name]
        (signal,) = torch.autograd.grad(logits[:, 7].sum(), y)
    weight = model.get_submodule(name).weight.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(x.detach() @ weight.T, weight, signal)
    close(found.weights, weight * gradient)
    assert found.bias is None
