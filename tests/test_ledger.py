"""The ledger: everything that is explained is accounted for, and what is said to be kept is what is kept."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
import zennit.rules

from zennit_attn import AttnLRPComposite, CPLRPComposite, GammaViTComposite, InputXGradient, input_x_gradient, targets
from zennit_attn.errors import NotFiniteError
from zennit_attn.ledger import Ledger
from zennit_attn.rules import Epsilon, Gamma

from . import models, oracle

#: Model, and the largest remainder relative to what is explained: rounding, in float32 where RMSNorm or a softmax does.
CASES = {
    "gpt2": (models.gpt2, 1e-10),
    "llama": (models.llama, 1e-6),
    "qwen3": (models.qwen3, 1e-6),
    "mixtral": (models.mixtral, 1e-6),
    "bert": (models.bert, 1e-10),
    "t5": (models.t5, 1e-6),
    "vit": (models.hf_vit, 1e-6),
    "torchvision-vit": (models.torchvision_vit, 1e-10),
    "timm-vit": (models.timm_vit, 1e-10),
}
IMAGES = ("vit", "torchvision-vit", "timm-vit")


def case(name):
    """Return a model without zeros, an input for it, what is explained, and the tolerance."""
    make, tolerance = CASES[name]
    model = models.scramble(make()).eval()
    model = model if name == "mixtral" else model.double()
    if name in IMAGES:
        x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
        return model, {"pixel_values": x} if name == "vit" else x, None, tolerance
    batch = {"input_ids": torch.randint(3, 60, (2, 7))}
    if name == "t5":
        batch["decoder_input_ids"] = torch.randint(3, 60, (2, 3))
        return model, batch, ("input_ids", "decoder_input_ids"), tolerance
    return model, batch, None, tolerance


@pytest.mark.parametrize("preset", [AttnLRPComposite, CPLRPComposite])
@pytest.mark.parametrize("name", CASES)
def test_the_ledger_sums_to_the_logit(name, preset):
    model, batch, argument, tolerance = case(name)
    attributor = InputXGradient(model, input_x_gradient(preset(strict=True)), argument=argument)
    ledger = attributor.ledger(batch, targets.MaxLogit())
    output, relevance = attributor(batch, targets.MaxLogit())
    logits = getattr(output, "logits", output)
    logits = (logits[:, -1] if logits.dim() == 3 else logits).detach()
    assert math.isclose(ledger.explained, float(logits.max(-1)[0].sum()), rel_tol=1e-6)
    parts = relevance if isinstance(relevance, dict) else {next(iter(ledger.inputs)): relevance}
    assert ledger.inputs.keys() == parts.keys()
    for key, value in parts.items():
        # the ledger changes nothing of what the input gets
        assert math.isclose(ledger.inputs[key], float(value.sum()), rel_tol=1e-5, abs_tol=tolerance)
    assert abs(ledger.remainder) < tolerance * abs(ledger.explained)
    # CP-LRP keeps nothing in the softmax
    assert ("softmax" in ledger.by_kind()) == (preset is AttnLRPComposite)


@pytest.mark.parametrize("attention", ["cp", "attnlrp"])
def test_the_ledger_of_layer_rules(attention):
    model, x, _, tolerance = case("torchvision-vit")
    composite = GammaViTComposite(attention=attention, epsilon=1e-3, strict=True)
    ledger = InputXGradient(model, input_x_gradient(composite)).ledger(x, targets.MaxLogit())
    assert abs(ledger.remainder) < tolerance * abs(ledger.explained)
    assert {"Gamma", "Epsilon", "class_token", "encoder.pos_embedding"} <= ledger.by_kind().keys()


@torch.no_grad()
def by_oracle(x, first, second):
    """Relevance of a small network, and what each bias and the stabilizer kept, by the oracle."""
    hidden = F.linear(x, first.weight, first.bias)
    output = F.linear(torch.relu(hidden), second.weight, second.bias)
    relevance = torch.zeros_like(output)
    relevance[:, 1] = output[:, 1]
    at_hidden = oracle.linear(torch.relu(hidden), second.weight, second.bias, relevance)
    at_input = oracle.linear(x, first.weight, first.bias, at_hidden, 0.1)
    kept = {"second": relevance.sum() - at_hidden.sum(), "first": at_hidden.sum() - at_input.sum()}
    return output, at_input, kept


@pytest.mark.parametrize("rule", [Epsilon(0.1), zennit.rules.Epsilon(0.1)], ids=["ours", "zennit's"])
def test_what_layers_keep_equals_the_oracle(rule):
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)).double()
    x = torch.randn(2, 4, dtype=torch.float64)
    composite = input_x_gradient(CPLRPComposite(name_map=[("0", rule)]))
    ledger = InputXGradient(model, composite).ledger(x, targets.Label(1))
    output, relevance, kept = by_oracle(x, model[0], model[2])
    expected = [float(output[:, 1].sum()), float(relevance.sum()), float(kept["first"]), float(kept["second"])]
    got = [ledger.explained, ledger.inputs["input"], ledger.kept["0", "Epsilon"], ledger.kept["2", "bias"]]
    assert got == pytest.approx(expected, rel=1e-9)
    assert len(ledger.kept) == 2


class Softmax(torch.nn.Module):
    """Scores that decide over constants."""

    def forward(self, x):
        return F.softmax(x, -1) @ torch.eye(5, dtype=x.dtype)[:, :2]


def test_what_a_softmax_keeps_equals_the_oracle():
    x = torch.randn(3, 5, dtype=torch.float64)
    ledger = InputXGradient(Softmax(), input_x_gradient(AttnLRPComposite())).ledger(x, targets.Label(0))
    weights = F.softmax(x, -1)
    relevance = torch.zeros_like(weights)
    relevance[:, 0] = weights[:, 0]
    passed = oracle.softmax(x, relevance)
    assert ledger.inputs["input"] == pytest.approx(float(passed.sum()), rel=1e-9)
    assert ledger.kept == {("", "softmax"): pytest.approx(float(relevance.sum() - passed.sum()), rel=1e-9)}


class Adds(torch.nn.Module):
    """Constants that come in every way: a buffer, a number, a token in front, in place, where a mask says so."""

    def __init__(self):
        super().__init__()
        self.token = torch.nn.Parameter(torch.randn(1, 4, dtype=torch.float64))
        self.register_buffer("shift", torch.randn(4, dtype=torch.float64))

    def forward(self, x):
        x = torch.cat([self.token, x]) + 1.5
        x += self.shift
        x = torch.where(self.shift > 0, x, torch.full_like(x, 2.0))
        return (3 - x).masked_fill(self.shift > 1, 0.7).sum(0, keepdim=True) @ torch.ones(4, 2, dtype=x.dtype)


def test_constants_of_every_kind():
    model = Adds()
    x = torch.randn(3, 4, dtype=torch.float64)
    ledger = InputXGradient(model, input_x_gradient(CPLRPComposite(strict=True))).ledger(x, targets.Label(1))
    # each element of the input is subtracted where nothing stands in its place
    reaches = (model.shift > 0) & (model.shift <= 1)
    assert ledger.inputs["input"] == pytest.approx(-float(x[:, reaches].sum()), rel=1e-9, abs=1e-12)
    assert ledger.kept["", "token"] == pytest.approx(
        -float(model.token.detach()[:, reaches].sum()), rel=1e-9, abs=1e-12
    )
    assert abs(ledger.remainder) < 1e-12


@pytest.mark.parametrize("preset", [AttnLRPComposite, CPLRPComposite])
@pytest.mark.parametrize("make", [torchvision.models.resnet18, torchvision.models.mobilenet_v3_small])
def test_models_that_write_in_place(make, preset):
    model = models.scramble(make(num_classes=5)).double().eval()
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    ledger = InputXGradient(model, input_x_gradient(preset(strict=True))).ledger(x, targets.Label(2))
    # random networks have relevances that are much larger than their sum, and so is the rounding
    size = sum(map(abs, ledger.kept.values())) + abs(ledger.inputs["input"])
    assert abs(ledger.remainder) < 1e-9 * size


class Writes(torch.nn.Module):
    """A constant into which the input is added, and one of which a part is the input's."""

    def __init__(self):
        super().__init__()
        self.start = torch.nn.Parameter(torch.randn(2, 4, dtype=torch.float64))

    def forward(self, x):
        hidden = self.start.clone()
        hidden += x
        buffer = torch.ones(2, 5, dtype=x.dtype)
        buffer[:, 1:] = hidden
        return buffer.sum(1, keepdim=True)


def test_constants_that_are_written_to():
    model, x = Writes(), torch.randn(2, 4, dtype=torch.float64)
    ledger = InputXGradient(model, input_x_gradient(CPLRPComposite(strict=True))).ledger(x, targets.Label(0))
    assert ledger.inputs["input"] == pytest.approx(float(x.sum()), rel=1e-9)
    # each row has a one, beside what it starts with
    assert sum(ledger.kept.values()) == pytest.approx(float(model.start.detach().sum()) + 2, rel=1e-9)


def test_a_ledger_of_nan_is_an_error():
    model = torch.nn.Sequential(torch.nn.Linear(4, 2))
    model[0].weight.data[0, 0] = float("nan")
    with pytest.raises(NotFiniteError):
        InputXGradient(model, input_x_gradient(AttnLRPComposite())).ledger(torch.ones(1, 4), targets.Label(0))


def test_the_table_and_the_dictionary():
    model, batch, _, _ = case("gpt2")
    ledger = InputXGradient(model, input_x_gradient(AttnLRPComposite())).ledger(batch, targets.MaxLogit())
    exported = json.loads(json.dumps(ledger.to_dict()))
    assert exported["inputs"] == ledger.inputs
    assert exported["kept"]["transformer"]["transformer.wpe"] == ledger.kept["transformer", "transformer.wpe"]
    kept = sum(value for kinds in exported["kept"].values() for value in kinds.values())
    total = sum(exported["inputs"].values()) + kept + exported["remainder"]
    assert total == pytest.approx(exported["explained"], rel=1e-9)
    assert "transformer.h.2.mlp.c_fc" in ledger.table()
    assert ledger.table(depth=2).count("transformer.h ") == 2  # bias and softmax
    lines = str(ledger).splitlines()
    assert lines[0].startswith("input_ids")
    assert lines[-1].split()[-1] == "+100.00%"
    assert len({len(line) for line in lines}) == 1


def test_a_deep_model_prints_one_line_for_each_kind():
    deep = Ledger(1.0, {"input": 0.5}, {(f"layer{number}", "bias"): 0.01 for number in range(50)})
    assert str(deep).splitlines()[1].split() == ["(all", "modules)", "bias", "+0.5", "+50.00%"]


def test_a_ledger_needs_operator_rules():
    model, batch, _, _ = case("gpt2")
    with pytest.raises(RuntimeError, match="operator rules"):
        InputXGradient(model).ledger(batch, targets.MaxLogit())


def test_checkpointed_layers_are_refused():
    model, batch, _, _ = case("llama")
    for layer in model.model.layers:
        layer.gradient_checkpointing = True
    model.train()
    attributor = InputXGradient(model, input_x_gradient(AttnLRPComposite()))
    with pytest.raises(RuntimeError, match="checkpoints"):
        attributor.ledger(batch, targets.MaxLogit())


def test_nothing_of_the_recorder_is_left():
    model, batch, _, _ = case("llama")
    attributor = InputXGradient(model, input_x_gradient(AttnLRPComposite()))
    _, before = attributor(batch, targets.MaxLogit())
    attributor.ledger(batch, targets.MaxLogit())
    _, after = attributor(batch, targets.MaxLogit())
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_gamma_keeps_what_its_bias_and_stabilizer_get():
    layer = torch.nn.Linear(4, 3).double()
    x = torch.randn(2, 4, dtype=torch.float64)
    composite = input_x_gradient(CPLRPComposite(layer_map=[(torch.nn.Linear, Gamma(0.25))]))
    attributor = InputXGradient(layer, composite)
    ledger = attributor.ledger(x, targets.Label(2))
    output, relevance = attributor(x, targets.Label(2))
    assert ledger.kept == {("", "Gamma"): pytest.approx(float(output.detach()[:, 2].sum() - relevance.sum()), rel=1e-9)}
