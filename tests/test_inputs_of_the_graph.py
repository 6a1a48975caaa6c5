"""What counts as input: the explained one, and nothing else that requires grad."""

import functools
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.nn.utils import parametrize
from zennit.attribution import Gradient

from zennit_attn import AttnLRPComposite, CPLRPComposite, InputXGradient, ModelAdapter, input_x_gradient, targets
from zennit_attn.errors import UnknownOperationError, UnknownOperationWarning
from zennit_attn.rules import Gamma

from .forms import FORMS, PRESETS, attributor_of, in_form, relevance_of


@dataclass
class Store:
    """A tensor in a dataclass, which no tree of PyTorch looks into."""

    weight: torch.Tensor
    more: dict[str, Any] = field(default_factory=dict)


class Scaled(nn.Module):
    """Two layers, and between them a scale that comes from somewhere."""

    def __init__(self, place):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8, bias=False), nn.Linear(8, 3, bias=False)
        self.get = place(self)

    def forward(self, x):
        return self.b(self.a(x) * self.get())


def scale():
    return torch.linspace(0.5, 1.5, 8, dtype=torch.float64)


def keep(value, read):
    """Return a place that keeps a value as the attribute ``kept`` of the module, and reads it."""

    def place(module):
        module.kept = value
        return lambda: read(module.kept)

    return place


def in_a_buffer(weight):
    def place(module):
        module.register_buffer("mean", weight)
        return lambda: module.mean

    return place


def computed_before(weight):
    def place(module):
        module.stored = {"scales": weight * 2}
        return lambda: module.stored["scales"] / 2

    return place


def in_a_module_of_a_list(weight):
    layer = nn.Module()
    layer.weight = nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)
    return keep([layer], lambda kept: kept[0].weight)


#: How a tensor gets into a forward without being a parameter of the model.
PLACES = {
    "list": lambda w: keep([w], lambda kept: kept[0]),
    "dict in a tuple": lambda w: keep(({"w": w},), lambda kept: kept[0]["w"]),
    "dataclass": lambda w: keep(Store(w), lambda kept: kept.weight),
    "dict of a dataclass": lambda w: keep(Store(scale(), {"w": w}), lambda kept: kept.more["w"]),
    "namespace": lambda w: keep(SimpleNamespace(w=w), lambda kept: kept.w),
    "closure": lambda w: lambda module: lambda: w,
    "default": lambda w: lambda module: lambda weight=w: weight,
    "partial": lambda w: lambda module: functools.partial(torch.clone, w),
    "buffer": in_a_buffer,
    "attribute": lambda w: keep(w.detach().requires_grad_(w.requires_grad), lambda kept: kept),
    "view of another": lambda w: keep(w[None].expand(2, 8), lambda kept: kept[0]),
    "computed before": computed_before,
    "module of a list": in_a_module_of_a_list,
}


def scaled(name, requires_grad):
    torch.manual_seed(0)
    return Scaled(PLACES[name](nn.Parameter(scale(), requires_grad=requires_grad))).double()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", PLACES)
def test_a_tensor_that_requires_grad_and_is_no_input_is_reported(name, preset, form):
    x = torch.rand(2, 6).double()
    constant, learned = scaled(name, False), scaled(name, True)
    # the scale is a constant: LRP-0 of a linear network is input times weight
    expected = x * ((constant.b.weight[1] * scale()) @ constant.a.weight)
    torch.testing.assert_close(relevance_of(constant, x, form, preset), expected.detach())
    with pytest.raises(UnknownOperationError, match="which requires grad and is neither its input"):
        relevance_of(learned, x, form, preset)
    with pytest.warns(UnknownOperationWarning, match="Expected constants"):
        relevance_of(learned, x, form, preset, strict=False)


@pytest.mark.parametrize(
    ("name", "title"), [("list", "'kept'"), ("buffer", "'mean'"), ("closure", r"a Parameter of shape \(8,\)")]
)
def test_the_report_names_what_it_can(name, title):
    with pytest.raises(UnknownOperationError, match=f"ends in {title}"):
        relevance_of(scaled(name, True), torch.rand(2, 6).double())


@pytest.mark.parametrize("form", FORMS)
def test_what_was_computed_of_a_parameter_and_kept_is_reported(form):
    class Cached(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.w = nn.Linear(4, 4), nn.Parameter(torch.rand(4))
            self.cache = None

        def forward(self, x):
            self.cache = torch.exp(self.w) if self.cache is None else self.cache
            return self.a(x) * self.cache

    model, x = Cached(), torch.rand(2, 4)
    relevance_of(model, x, form)
    model.cache = None
    model(x)  # a training step, say
    with pytest.raises(UnknownOperationError, match=r"its parameter 'w' before the context"):
        relevance_of(model, x, form)


@pytest.mark.parametrize("form", FORMS)
def test_a_cached_parametrization_is_reported(form):
    class Double(nn.Module):
        def forward(self, weight):
            return 2 * weight

    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).double(), torch.rand(2, 4).double()
    parametrize.register_parametrization(model[0], "weight", Double())
    expected = relevance_of(model, x, form)
    assert float(expected.abs().max()) > 0
    with parametrize.cached():
        model(x)
        with pytest.raises(UnknownOperationError, match=r"its parameter '0\.parametrizations\.weight\.original'"):
            relevance_of(model, x, form)


@pytest.mark.parametrize("form", FORMS)
def test_a_layer_with_a_rule_hides_no_foreign_weight(form):
    """A weight that is no parameter any more, under a rule that reads it."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False)).double()
    weight = model[0].weight
    del model[0].weight
    model[0].weight = weight.detach().clone().requires_grad_() * 1
    x = torch.randn(2, 4).double()
    with pytest.raises(UnknownOperationError, match="requires grad"):
        relevance_of(model, x, form, layer_map=[(nn.Linear, Gamma(0.1))])


class Graph(nn.Module):
    """A graph convolution, with weights of the edges as an argument."""

    edges = torch.tensor([[0, 1, 2, 3, 0, 2], [1, 2, 3, 0, 2, 1]])

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8, bias=False), nn.Linear(8, 2, bias=False)

    def spread(self, h, weight):
        return torch.zeros_like(h).index_add(0, self.edges[1], h[self.edges[0]] * weight[:, None])

    def forward(self, x, weight, **more):
        weight = weight["edges"][0] if isinstance(weight, dict) else getattr(weight, "weight", weight)
        return self.b(self.spread(torch.relu(self.spread(self.a(x), weight)), weight)).mean(0, keepdim=True)


#: How another argument of the batch holds a tensor that requires grad.
ARGUMENTS = {
    "parameter": nn.Parameter,
    "computed": lambda w: torch.sigmoid(nn.Parameter(torch.logit(w))),
    "nested": lambda w: {"edges": [nn.Parameter(w)]},
    "model output": lambda w: transformers.modeling_outputs.BaseModelOutput(last_hidden_state=nn.Parameter(w)),
}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", ARGUMENTS)
def test_other_arguments_of_a_batch_are_constants(name, preset):
    model, x, w = Graph().double(), torch.randn(4, 4).double(), torch.rand(6).double()
    if name == "model output":
        model.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, "weight": kwargs["weight"].last_hidden_state}),
            with_kwargs=True,
        )
    attributor = InputXGradient(model, input_x_gradient(PRESETS[preset](strict=True)), argument="x")
    with attributor:
        output, got = attributor({"x": x, "weight": ARGUMENTS[name](w)}, targets.Label(1))
    point = x.clone().requires_grad_()
    logit = Graph.forward(model, point, w)[0, 1]
    (gradient,) = torch.autograd.grad(logit, point)
    # LRP-0 of a ReLU network without biases is input times gradient (Ancona et al. 2018)
    torch.testing.assert_close(got, (point * gradient).detach())
    torch.testing.assert_close(got.sum(), output[0, 1].detach())
    assert abs(attributor.ledger({"x": x, "weight": ARGUMENTS[name](w)}, targets.Label(1)).remainder) < 1e-12


def test_an_argument_that_no_tree_looks_into_is_reported():
    model, x = Graph().double(), torch.randn(4, 4).double()
    batch = {"x": x, "weight": Store(nn.Parameter(torch.rand(6).double()))}
    composite = input_x_gradient(AttnLRPComposite(strict=True))
    with (
        InputXGradient(model, composite, argument="x") as attributor,
        pytest.raises(UnknownOperationError, match=r"Parameter of shape \(6,\)"),
    ):
        attributor(batch, targets.Label(1))
    batch["weight"].weight.requires_grad_(False)
    with InputXGradient(model, composite, argument="x") as attributor:
        attributor(batch, targets.Label(1))


def t5():
    config = {"vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    config = transformers.T5Config(**config, decoder_start_token_id=0, pad_token_id=0)
    return transformers.T5ForConditionalGeneration(config).double().eval()


@pytest.mark.parametrize("as_tuple", [False, True])
@pytest.mark.parametrize("preset", PRESETS)
def test_encoder_outputs_with_a_graph_are_constants(preset, as_tuple):
    model, ids, decoder = t5(), torch.randint(5, 50, (1, 7)), torch.tensor([[0, 7, 8]])
    got = {}
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            encoded = model.encoder(input_ids=ids)
        if as_tuple:
            encoded = (encoded.last_hidden_state,)
        composite = input_x_gradient(PRESETS[preset](strict=True))
        batch = {"encoder_outputs": encoded, "decoder_input_ids": decoder}
        with InputXGradient(model, composite, argument="decoder_input_ids") as attributor:
            got[grad] = attributor(batch, targets.MaxLogit())[1]
    torch.testing.assert_close(got[True], got[False], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_encoder_outputs_with_a_graph_in_an_adapter_are_reported(form):
    model, decoder = t5(), torch.tensor([[0, 7, 8]])
    encoded = model.encoder(input_ids=torch.randint(5, 50, (1, 7)))
    x = model.shared(decoder).detach()
    adapter = ModelAdapter(model, {"encoder_outputs": encoded}, argument="decoder_inputs_embeds")
    with pytest.raises(UnknownOperationError, match=r"before the context and kept"):
        relevance_of(adapter, x, form, "attnlrp")


def spliced(frozen, kind="hook"):
    """A network with an autoencoder in its middle, the error of which is a constant."""
    # no exact zeros, which are a sum of two parts here
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.LeakyReLU(0.1), nn.Linear(8, 3, bias=False)).double()
    encoder, decoder = nn.Linear(8, 32, bias=False).double(), nn.Linear(32, 8, bias=False).double()
    for module in (encoder, decoder):
        module.requires_grad_(not frozen)

    def reconstruct(output):
        reconstruction = decoder(torch.relu(encoder(output)))
        return reconstruction + (output - reconstruction).detach()

    if kind == "hook":
        model[1].register_forward_hook(lambda module, args, output: reconstruct(output))
    elif kind == "pre-hook":
        model[2].register_forward_pre_hook(lambda module, args: (reconstruct(args[0]),))
    else:
        forward = model[1].forward
        model[1].forward = lambda x: reconstruct(forward(x))
    return model


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kind", ["hook", "pre-hook", "forward"])
def test_a_module_that_is_spliced_in_is_explained_if_frozen_and_reported_if_not(kind, preset, form):
    x = torch.randn(1, 6).double()
    torch.manual_seed(1)
    model = spliced(True, kind)
    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(point)[0, 1], point)
    torch.testing.assert_close(relevance_of(model, x, form, preset), (point * gradient).detach())
    torch.manual_seed(1)
    with pytest.raises(UnknownOperationError, match=r"Parameter of shape \(8, 32\)|Parameter of shape \(32, 8\)"):
        relevance_of(spliced(False, kind), x, form, preset)


@pytest.mark.parametrize("form", FORMS)
def test_a_steering_vector_that_is_learned_is_reported(form):
    model, vector = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), nn.Parameter(torch.ones(4))
    model[0].register_forward_hook(lambda module, args, output: output + vector)
    with pytest.raises(UnknownOperationError, match=r"Parameter of shape \(4,\)"):
        relevance_of(model, torch.rand(2, 4), form)


@pytest.mark.parametrize("form", FORMS)
def test_weights_of_a_functional_call_that_require_grad_are_reported(form):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, 2)
            # averaged weights, kept beside the model as they were made
            self.weights = {"weight": torch.rand(2, 4, requires_grad=True), "bias": torch.rand(2)}

        def forward(self, x):
            return torch.func.functional_call(self.net, self.weights, (x,))

    with pytest.raises(UnknownOperationError, match="'weights'"):
        relevance_of(Functional(), torch.rand(2, 4), form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_not_on_the_path_is_not_reported(preset, form):
    """A learned tensor that is cut off, in a mask, in an index, or in what is not returned."""

    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.kept = nn.Linear(4, 4), [torch.rand(4, requires_grad=True)]

        def forward(self, x):
            h = self.a(x) * self.kept[0].detach()
            self.loss = (h * self.kept[0]).square().sum()
            h = h.masked_fill(self.kept[0] > 0.9, 0.0)
            return h.index_select(1, self.kept[0].argsort())

    relevance = relevance_of(Beside(), torch.rand(2, 4), form, preset)
    assert float(relevance.abs().max()) > 0


@pytest.mark.parametrize("form", FORMS)
def test_a_leaf_that_somebody_puts_inside_is_the_input(form):
    """Embeddings of token ids that a hook makes a leaf, as people do it by hand."""
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2)).double()
    leaves = []

    def make_leaf(module, args, output):
        leaves.append(output.detach().requires_grad_())
        return leaves[0]

    model[0].register_forward_hook(make_leaf)
    with in_form(CPLRPComposite(strict=True), form).context(model):
        logit = model(torch.tensor([[1, 5, 7]]))[:, 1]
        (signal,) = torch.autograd.grad(logit, leaves[0], torch.ones(1) if form == "gradient" else logit.detach())
    got = leaves[0].detach() * signal if form == "gradient" else signal
    weight = model[2].weight[1].reshape(1, 3, 4)
    value, bias = leaves[0].detach(), model[2].bias[1]
    total = (value * weight).sum() + bias
    torch.testing.assert_close(got, (value * weight * (1 if form == "gradient" else logit / total)).detach())


@pytest.mark.parametrize("form", FORMS)
def test_what_requires_grad_again_after_a_first_forward_is_reported_when_strict(form):
    model, x = scaled("list", False), torch.rand(2, 6).double()
    with attributor_of(model, CPLRPComposite(strict=True), form) as attributor:
        attributor(x, targets.Label(1))
        model.kept[0].requires_grad_(True)
        with pytest.raises(UnknownOperationError, match="'kept'"):
            attributor(x, targets.Label(1))


def test_the_input_of_zennits_attributor_is_the_input():
    """No report for a leaf that is an argument, nor for what an argument was computed of."""
    model, x = nn.Linear(3, 2), torch.rand(2, 3, requires_grad=True)
    with Gradient(model, CPLRPComposite(strict=True)) as attributor:
        attributor(x, targets.Label(0))
    with input_x_gradient(CPLRPComposite(strict=True)).context(model):
        model(x * nn.Parameter(torch.rand(3)))[0, 1].backward()
    assert x.grad is not None
