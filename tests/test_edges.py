"""Edges of the residual stream, ablation and pruning: against path patching by hand, and against real patching."""

import copy
from contextlib import contextmanager

import models
import pytest
import torch
from torch import nn

from zennit_attn import targets
from zennit_attn.composites import TransformerComposite
from zennit_attn.concepts import ablated, edge_patching, latents_of, pruned, relevance_patching
from zennit_attn.errors import InputError
from zennit_attn.rules import Operators

ORIGINAL = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]])
PATCH = torch.tensor([[3, 9, 4, 1, 5], [2, 7, 6, 8, 2]])
TARGET = targets.Labels([7, 3], [1, -1])
GRADIENT = TransformerComposite(Operators("gradient", "gradient", "gradient", "gradient"))
WIDTH, TOKENS = 6, 4


def close(got, expected):
    torch.testing.assert_close(got, expected.detach(), rtol=1e-9, atol=1e-12)


class Mixing(nn.Module):
    """An attention with weights that are constants, so that it is linear."""

    def __init__(self):
        super().__init__()
        self.num_heads = 2
        self.v_proj, self.o_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.weights = torch.rand(2, TOKENS, TOKENS).tril().double()

    def forward(self, x):
        values = self.v_proj(x).unflatten(-1, (2, -1))
        return self.o_proj(torch.einsum("hts,bshc->bthc", self.weights, values).flatten(2))


class Linear(nn.Module):
    """A transformer that is linear; norms are maps of a direction each."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList()
        for _ in range(2):
            parts = {"norm1": nn.Linear(WIDTH, WIDTH), "self_attn": Mixing(), "norm2": nn.Linear(WIDTH, WIDTH)}
            parts["mlp"] = nn.Sequential(nn.Linear(WIDTH, 9), nn.Linear(9, WIDTH))
            self.layers.append(Layer(parts))
        self.head = nn.Linear(WIDTH, 8)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Layer(nn.ModuleDict):
    def forward(self, x):
        x = x + self["self_attn"](self["norm1"](x))
        return x + self["mlp"](self["norm2"](x))


@contextmanager
def added(model, reader, difference):
    """Let one reader of the stream see it with something added."""
    if reader == "output":
        last = [latent.module for latent in latents_of(model).values() if latent.kind == "layer"][-1]
        handle = model.get_submodule(last).register_forward_hook(lambda _, args, output: output + difference)
    else:
        module = model.get_submodule(reader)
        handle = module.register_forward_pre_hook(lambda _, args: (args[0] + difference, *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def written(model, latent, unit, one, other):
    """What another input changes of that which a unit writes to the stream."""
    module, taken = model.get_submodule(latent.module), []
    handle = module.register_forward_pre_hook(lambda _, args: taken.append(args[0].detach()))
    for data in (one, other):
        model(data) if isinstance(data, torch.Tensor) else model(**data)
    handle.remove()
    width = taken[0].shape[-1] // (latent.units or taken[0].shape[-1])
    part = slice(unit * width, (unit + 1) * width)
    weight = module.weight.T if type(module).__name__ == "Conv1D" else module.weight
    return (taken[1] - taken[0])[..., part] @ weight[:, part].T


def test_edges_are_path_patching_where_the_model_is_linear():
    model, (one, other) = Linear().double(), torch.randn(2, 1, TOKENS, WIDTH).double()
    found = edge_patching(model, one, other, targets.Label(3), ["head", "neuron"])
    inner = [f"layers.{layer}.{norm}" for layer in range(2) for norm in ("norm1", "norm2")]
    assert found.readers == [*inner, "output"]
    before = model(one)[:, -1, 3]
    for name, latent in latents_of(model).items():
        if latent.kind not in ("head", "neuron"):
            continue
        effects = found.effects[name]
        first = found.readers.index(f"{name[:8]}.norm2") if latent.kind == "head" else 2 * int(name[7]) + 2
        assert torch.equal(effects[..., :first], torch.zeros_like(effects[..., :first]))
        for unit in range(effects.shape[2]):
            difference = written(model, latent, unit, one, other)
            for place in range(first, 5):
                for token in range(TOKENS):
                    at_token = torch.zeros_like(difference)
                    at_token[:, token] = difference[:, token]
                    with added(model, found.readers[place], at_token):
                        close(effects[:, token, unit, place], model(one)[:, -1, 3] - before)
    for place, reader in enumerate(found.readers):
        with added(model, reader, other - one):
            close(found.effects["input"][..., place].sum(1), model(one)[:, -1, 3] - before)


@pytest.mark.parametrize("make", [models.llama, models.gpt2, models.timm_vit])
def test_small_changes_do_what_gradients_say(make):
    model = models.scramble(make()).double().eval()
    if make is models.timm_vit:
        one = torch.randn(1, 3, 32, 32).double()
        other = one + 1e-6 * torch.randn_like(one)
    else:
        x = model.get_input_embeddings()(ORIGINAL[:1]).detach()
        one, other = ({"inputs_embeds": value} for value in (x, x + 1e-6 * torch.randn_like(x)))

    def explained():
        output = model(one) if isinstance(one, torch.Tensor) else model(**one).logits[:, -1]
        return float((output[:, 7] - output[:, 3]).detach())

    found = edge_patching(model, one, other, TARGET, ["head", "neuron"], GRADIENT)
    layer = next(iter(latents_of(model).values())).module
    for kind, unit, first in (("head", 1, 1), ("neuron", 5, 2)):
        latent = latents_of(model)[f"{layer}.{kind}"]
        effects = found.effects[latent.name][..., unit, :].sum((0, 1))
        with torch.no_grad():
            difference = written(model, latent, unit, one, other)
        assert torch.equal(effects[:first], torch.zeros(first).double())
        for reader, effect in list(zip(found.readers, effects.tolist(), strict=True))[first:]:
            sides = []
            for size in (100, -100):
                with added(model, reader, size * difference):
                    sides.append(explained())
            # Llama's norms and softmax compute in float32
            assert (sides[0] - sides[1]) / 200 == pytest.approx(effect, abs=1e-2 * float(effects.abs().max()))


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "timm_vit", "torchvision_vit"])
def test_edges_of_a_node_add_up_to_its_effect(name):
    model = models.scramble(getattr(models, name)()).double().eval()
    pair = torch.randn(2, 2, 3, 32, 32).double() if name.endswith("vit") else (ORIGINAL, PATCH)
    kinds = ["head", "neuron"]
    found, nodes = (asked(model, *pair, TARGET, kinds) for asked in (edge_patching, relevance_patching))
    assert len(found.readers) == 7
    for key, effects in nodes.effects.items():
        close(found.effects[key].sum(-1), effects)
        assert float(effects.abs().max()) > 1e-9
    close(found.original, nodes.original)
    close(found.patch, nodes.patch)
    # the model is as it was
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda: edge_patching(models.bert(), ORIGINAL, PATCH, TARGET),
            "returns something else than what it was given",
        ),
        (lambda: edge_patching(models.mixtral(), ORIGINAL, PATCH, TARGET), "experts, relevance_patching tells"),
        (lambda: edge_patching(models.llama(), ORIGINAL, PATCH, TARGET, "layer"), "a matrix writes to the residual"),
        (lambda: edge_patching(models.llama(), ORIGINAL, PATCH[:, :4], TARGET), "the same number of samples"),
        (lambda: edge_patching(nn.Linear(3, 3), torch.ones(1, 3), torch.ones(1, 3), TARGET), "fits none of Linear"),
    ],
)
def test_models_without_such_a_stream_are_refused(call, match):
    with pytest.raises(InputError, match=match):
        call()


def test_a_stream_that_something_else_reads_is_refused():
    model = Linear().double()

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = model

        def forward(self, x):
            # what the layers are given goes around all of them, too
            return self.inside(x) + x @ torch.ones(WIDTH, 8).double()

    one, other = torch.randn(2, 1, TOKENS, WIDTH).double()
    with pytest.raises(InputError, match=r"differ by .* from its own"):
        edge_patching(Around(), one, other, targets.Label(3))


# ablation


def test_an_ablated_head_is_one_whose_columns_are_zero():
    model = models.scramble(models.llama()).double().eval()
    units = {"model.layers.0.head": [1, -1], "model.layers.2.neuron": [0, 90]}
    with torch.no_grad():
        plain = model(ORIGINAL).logits
        with ablated(model, units):
            got = model(ORIGINAL).logits
        torch.equal(model(ORIGINAL).logits, plain)
        # one mapping for each sample
        with ablated(model, [units, {}]):
            each = model(ORIGINAL).logits
        layers, width = model.model.layers, models.WIDTH // 4
        weight = layers[0].self_attn.o_proj.weight
        for head in (1, 3):
            weight[:, head * width : (head + 1) * width] = 0
        layers[2].mlp.down_proj.weight[:, [0, 90]] = 0
        close(got, model(ORIGINAL).logits)
    close(each[0], got[0])
    close(each[1], plain[1])
    assert float((got - plain).abs().max()) > 1e-3


def test_what_has_the_least_score_is_pruned():
    model = models.gpt2().double().eval()
    scores = {f"transformer.h.{layer}.neuron": torch.rand(192) for layer in range(3)}
    scores["transformer.h.1.head"] = torch.tensor([3.0, 1.0, 2.0, 4.0])
    least = {name: values.argsort()[: round(len(values) / 4)].tolist() for name, values in scores.items()}
    assert least["transformer.h.1.head"] == [1]
    with torch.no_grad():
        with pruned(model, scores, 0.25):
            got = model(ORIGINAL).logits
        with ablated(model, least):
            close(got, model(ORIGINAL).logits)
        with pruned(model, scores, 0):
            torch.testing.assert_close(model(ORIGINAL).logits, model(ORIGINAL).logits, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "units", "match"),
    [
        (models.llama, {"model.layers.0.heads": [0]}, "nearest: 'model.layers.0.head'"),
        (models.llama, {"model.layers.0.layer": [0]}, "expected the name of a latent of"),
        (models.llama, {"model.layers.0.head": [4]}, "got unit 4 of 'model.layers.0.head', which has 4"),
        (models.torchvision_vit, {"encoder.layers.encoder_layer_0.head": [0]}, "does not call its projection"),
        (models.llama, [{"model.layers.0.head": [0]}] * 3, "expected 3 samples"),
    ],
)
def test_what_cannot_be_ablated_is_said(make, units, match):
    model = make().eval()
    with pytest.raises(InputError, match=match), ablated(model, units):
        model(ORIGINAL)


def test_scores_that_fit_no_units_are_said():
    model = models.llama()
    for scores, share in (({"model.layers.0.head": torch.ones(3)}, 0.5), ({"model.layers.0.head": torch.ones(4)}, 50)):
        with pytest.raises(InputError, match=r"each of its units: \(4,\)|from 0 to 1"), pruned(model, scores, share):
            pass
    with pytest.raises(InputError, match=r"rows or weights: \(48,\) or \(48, 48\)"):
        pruned(model, {"model.layers.0.self_attn.q_proj": torch.ones(48, 47)}, 0.5).__enter__()


@pytest.mark.parametrize("make", [models.gpt2, models.llama])
def test_weights_and_rows_of_least_score_are_pruned(make):
    model = make().double().eval()
    name = "transformer.h.1.mlp.c_fc" if make is models.gpt2 else "model.layers.1.mlp.up_proj"
    other = copy.deepcopy(model)
    layer = other.get_submodule(name)
    matrix = layer.weight.data.T if make is models.gpt2 else layer.weight.data
    weights, rows = torch.rand(matrix.shape), torch.rand(len(matrix))
    before = model(ORIGINAL).logits
    with torch.no_grad():
        for scores, change in (
            (weights, lambda: matrix.mul_(weights > weights.flatten().sort()[0][weights.numel() // 4 - 1])),
            (rows, lambda: matrix.mul_((rows > rows.sort()[0][len(rows) // 4 - 1])[:, None])),
        ):
            was = matrix.clone()
            change()
            assert int((matrix == 0).sum()) == matrix.numel() // 4
            if scores is rows and make is models.gpt2:
                # a row goes with its bias
                layer.bias[rows <= rows.sort()[0][len(rows) // 4 - 1]] = 0
            with pruned(model, {name: scores}, 0.25):
                got = model(ORIGINAL).logits
            close(got, other(ORIGINAL).logits)
            assert float((got - before).abs().max()) > 1e-4
            matrix.copy_(was)
    torch.testing.assert_close(model(ORIGINAL).logits, before, rtol=0, atol=0)
