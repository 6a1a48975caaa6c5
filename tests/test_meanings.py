"""What functions mean, however they are written: remainders, softmax, recurrence, and linear functions of libraries."""

import pytest
import torch
import torchvision
import transformers
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from zennit.attribution import Gradient

from zennit_attn import (
    AttnLRPComposite,
    CPLRPComposite,
    InputXGradient,
    ModelAdapter,
    input_x_gradient,
    register_operator,
    targets,
)
from zennit_attn.composites import TransformerComposite
from zennit_attn.errors import UnknownOperationError
from zennit_attn.rules import Operators

COMPOSITES = [AttnLRPComposite, CPLRPComposite]
FORMS = ["relevance", "gradient"]


def explain(model, x, form="gradient", composite=CPLRPComposite):
    """Return the second logit and its relevance, strictly."""
    rules = composite(strict=True) if isinstance(composite, type) else composite
    attributor = Gradient(model, rules) if form == "relevance" else InputXGradient(model, input_x_gradient(rules))
    with attributor:
        output, relevance = attributor(x, targets.Label(1))
    return output[:, 1].detach(), relevance.detach()


def rand(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Between(nn.Module):
    """A linear layer, a function, and a linear layer."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.function = nn.Linear(6, 8).double(), nn.Linear(8, 3, bias=False).double(), function

    def forward(self, x):
        return self.b(self.function(self.a(x)))


# --------------------------------------------------------------------------------------------------------------------
# Remainders are element-wise functions
# --------------------------------------------------------------------------------------------------------------------


def in_place(h):
    h = h.clone()
    h %= 0.7
    return h


WRAPS = {
    "%": lambda h: h % 1.0,
    "remainder": lambda h: torch.remainder(h, torch.tensor(0.7, dtype=torch.float64)),
    "fmod": lambda h: torch.fmod(h, 1.0),
    "in place": in_place,
    "method": lambda h: h.remainder(0.3),
    "reversed": lambda h: 1.0 % h,
}


@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", WRAPS)
def test_remainders_have_the_slope_of_a_function(name, form, composite):
    model, x = Between(WRAPS[name]), 3 * rand(2, 6)
    logits, relevance = explain(model, x, form, composite)
    inner = model.a(x)
    # R = f(z) w, at z what it was at f(z), and by the layer's weights to the input
    slope = model.b.weight[1] * WRAPS[name](inner) / inner
    torch.testing.assert_close(relevance, (x * (slope @ model.a.weight)).detach())
    torch.testing.assert_close(logits, (slope * inner).sum(-1).detach())


def test_a_divisor_that_depends_on_the_input_has_no_rule():
    for function in (lambda h: h % h.exp(), lambda h: torch.fmod(h, h.abs() + 1)):
        with pytest.raises(UnknownOperationError, match=r"remainder|fmod|mod"):
            explain(Between(function), rand(1, 6))


def test_steps_are_reported_by_their_name():
    with pytest.raises(UnknownOperationError, match="floordiv"):
        explain(Between(lambda h: h - h // 1.0), rand(1, 6))


# --------------------------------------------------------------------------------------------------------------------
# Softmax, written out
# --------------------------------------------------------------------------------------------------------------------


def scattered(a):
    """As graph libraries write it: entries of one destination are normalised by sums, scattered and gathered."""
    flat, rows = a.flatten(), torch.arange(a.numel()) // a.shape[-1]
    count = a.numel() // a.shape[-1]
    largest = torch.full((count,), -torch.inf, dtype=a.dtype).scatter_reduce(0, rows, flat.detach(), "amax")
    weights = (flat - largest[rows]).exp()
    total = torch.zeros(count, dtype=a.dtype).scatter_add(0, rows, weights) + 1e-300
    return (weights / total.index_select(0, rows)).view(a.shape)


def masked(a):
    mask = torch.ones(a.shape[-1], dtype=a.dtype)
    mask[-1] = 0
    weights = a.exp() * mask
    return weights / weights.sum(-1, keepdim=True)


def with_broadcast(a):
    weights = torch.exp(a)
    return torch.div(weights, weights.sum(-1)[..., None].expand_as(weights))


SOFTMAX = {
    "plain": lambda a: a.exp() / a.exp().sum(-1, keepdim=True),
    "stable": lambda a: (e := (a - a.amax(-1, keepdim=True)).exp()) / e.sum(-1, keepdim=True),
    "stable, detached": lambda a: (e := (a - a.amax(-1, keepdim=True).detach()).exp()) / e.sum(-1, keepdim=True),
    "log_softmax": lambda a: a.log_softmax(-1).exp(),
    "functional log_softmax": lambda a: torch.exp(nn.functional.log_softmax(a, dim=-1)),
    "scattered": scattered,
    "broadcast": with_broadcast,
}


#: Those in which the maximum is a constant.
DETACHED = ("stable, detached", "scattered")


class Attention(nn.Module):
    def __init__(self, weights):
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.out = nn.Linear(8, 24, bias=False).double(), nn.Linear(8, 2, bias=False).double()
        self.weights = weights

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(self.weights(q @ k.transpose(-1, -2)) @ v).mean(1)


def composites_of_attention():
    return [AttnLRPComposite, CPLRPComposite, TransformerComposite(Operators("gradient", "uniform", strict=True))]


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SOFTMAX)
def test_a_softmax_that_is_written_out_is_one(name, form, number):
    x, composite = rand(2, 5, 8), composites_of_attention()[number]
    expected = explain(Attention(lambda a: a.softmax(-1)), x, form, composite)
    if form == "relevance" and name in DETACHED and composite is not CPLRPComposite:
        with pytest.raises(UnknownOperationError, match="a maximum that is detached"):
            explain(Attention(SOFTMAX[name]), x, form, composite)
        return
    torch.testing.assert_close(explain(Attention(SOFTMAX[name]), x, form, composite), expected)


@pytest.mark.parametrize("form", FORMS)
def test_a_masked_softmax_is_one_over_what_is_left(form):
    x = rand(2, 5, 8)

    def expected(a):
        return a.masked_fill(torch.arange(5) == 4, -torch.inf).softmax(-1)

    found = explain(Attention(masked), x, form, AttnLRPComposite)
    torch.testing.assert_close(found, explain(Attention(expected), x, form, AttnLRPComposite))


def test_other_quotients_of_exponentials_are_divisions():
    """The denominator is a constant there, and the logit is conserved through the numerator's Taylor expansion."""
    x = rand(2, 6)
    for function in (lambda h: h.exp() / (2 * h).exp().sum(-1, keepdim=True), lambda h: h.exp() / (1 + h * h)):
        model = Between(function)
        _, relevance = explain(model, x)
        inner = model.a(x).detach().requires_grad_()
        quotient = function(inner)
        constant = inner.exp() / (inner.exp() / quotient).detach()
        (gradient,) = torch.autograd.grad((constant @ model.b.weight.T)[:, 1].sum(), inner)
        torch.testing.assert_close(relevance, (x * (gradient @ model.a.weight)).detach())


# --------------------------------------------------------------------------------------------------------------------
# One policy means one thing under every implementation
# --------------------------------------------------------------------------------------------------------------------


def llama(attention):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation=attention,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).double().eval()


def bert(attention):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        attn_implementation=attention,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config).double().eval()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("product", ["uniform", "gate", "gradient"])
@pytest.mark.parametrize("attention", ["uniform", "value", "gradient"])
@pytest.mark.parametrize("make", [llama, bert])
def test_attention_is_explained_by_its_policy_however_it_is_computed(make, attention, product, form):
    found = []
    for implementation in ("eager", "sdpa"):
        adapter = ModelAdapter(
            make(implementation), {"attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])}
        )
        x = adapter.embed(torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]]))
        composite = TransformerComposite(Operators(attention, product, "constant", "identity", strict=True))
        found.append(explain(adapter, x, form, composite)[1])
    # eager attention of transformers takes its softmax in float32
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6 * float(found[1].abs().max()))


# --------------------------------------------------------------------------------------------------------------------
# Recurrent networks
# --------------------------------------------------------------------------------------------------------------------


class Last(nn.Module):
    """The last output of a recurrent network, in two classes."""

    def __init__(self, recurrent, width):
        super().__init__()
        self.recurrent, self.out = recurrent, nn.Linear(width, 2, bias=False)

    def forward(self, x):
        return self.out(self.recurrent(x)[0][:, -1])


class WrittenLSTM(nn.Module):
    """The equations of an LSTM by hand, one direction and one layer."""

    def __init__(self, recurrent):
        super().__init__()
        self.recurrent = recurrent

    def forward(self, x):
        own = self.recurrent
        h = c = x.new_zeros(len(x), own.hidden_size)
        outputs = []
        for step in x.unbind(1):
            gates = nn.functional.linear(step, own.weight_ih_l0, own.bias_ih_l0)
            gates = gates + nn.functional.linear(h, own.weight_hh_l0, own.bias_hh_l0)
            i, f, g, o = gates.chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs, 1), (h, c)


@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("form", FORMS)
def test_an_lstm_is_its_equations(form, composite):
    torch.manual_seed(0)
    model, x = Last(nn.LSTM(6, 8, batch_first=True), 8).double().eval(), rand(2, 4, 6)
    found = explain(model, x, form, composite)
    model.recurrent = WrittenLSTM(model.recurrent)
    expected = explain(model, x, form, composite)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-15)


KINDS = [nn.LSTM, nn.GRU, nn.RNN]
SETTINGS = [{}, {"num_layers": 2}, {"bidirectional": True}, {"bias": False}, {"num_layers": 2, "bidirectional": True}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_recurrent_networks_keep_their_values_and_account_for_all(kind, settings):
    torch.manual_seed(0)
    width = 16 if settings.get("bidirectional") else 8
    model, x = Last(kind(6, 8, batch_first=True, **settings), width).double().eval(), rand(2, 4, 6)
    with torch.no_grad():
        expected = model(x)[:, 1]
    found = []
    for form in FORMS:
        logits, relevance = explain(model, x, form)
        torch.testing.assert_close(logits, expected)
        found.append(relevance)
    torch.testing.assert_close(*found)
    ledger = InputXGradient(model, input_x_gradient(CPLRPComposite(strict=True))).ledger(x, targets.Label(1))
    assert abs(ledger.remainder) < 1e-14
    if settings == {"bias": False} and kind is not nn.GRU:
        # the 1 of a GRU's (1 - z) is a constant
        torch.testing.assert_close(found[0].sum((1, 2)), expected)


class Packed(nn.Module):
    def __init__(self, kind, **settings):
        super().__init__()
        torch.manual_seed(0)
        self.recurrent, self.out = kind(6, 8, bidirectional=True, **settings), nn.LazyLinear(2)

    def forward(self, x):
        _, state = self.recurrent(pack_sequence([x[0], x[1, :2]]))
        state = state[0] if isinstance(state, tuple) else state
        return self.out(state.transpose(0, 1).flatten(1))


@pytest.mark.parametrize("settings", [{}, {"proj_size": 3}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences(kind, settings):
    if settings and kind is not nn.LSTM:
        pytest.skip("only an LSTM projects")
    x = rand(2, 4, 6)
    model = Packed(kind, **settings).double().eval()
    with torch.no_grad():
        expected = model(x)[:, 1]
    logits, relevance = explain(model, x)
    torch.testing.assert_close(logits, expected)
    assert relevance[0].abs().min() > 0
    # the second sequence ends after two steps
    assert not relevance[1, 2:].any()
    torch.testing.assert_close(explain(model, x, "relevance")[1], relevance)


class Cell(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell, self.out = cell, nn.Linear(8, 2)

    def forward(self, x):
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.out(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize(("cell", "whole"), [(nn.LSTMCell, nn.LSTM), (nn.GRUCell, nn.GRU), (nn.RNNCell, nn.RNN)])
def test_cells_are_steps_of_networks(cell, whole):
    torch.manual_seed(0)
    model, x = Cell(cell(6, 8)).double().eval(), rand(2, 4, 6)
    network = Last(whole(6, 8, batch_first=True), 8).double().eval()
    network.out = model.out
    for name, value in model.cell.named_parameters():
        getattr(network.recurrent, f"{name}_l0").data = value.data
    torch.testing.assert_close(explain(model, x), explain(network, x))


# --------------------------------------------------------------------------------------------------------------------
# Linear functions, and functions that route, of libraries
# --------------------------------------------------------------------------------------------------------------------

BOXES = [torch.tensor([[1.0, 1.0, 6.0, 6.0]], dtype=torch.float64)]
MATRIX = (rand(8, 8, seed=3) > 0).double()


def unpooled(h):
    pooled, indices = nn.functional.max_pool2d(h, 2, return_indices=True)
    return nn.functional.max_unpool2d(pooled, indices, 2)


IMAGES = {
    "roi_align": lambda h: torchvision.ops.roi_align(h, BOXES, 2),
    "roi_pool": lambda h: torchvision.ops.roi_pool(h, BOXES, 2),
    "max_pool2d with indices": lambda h: nn.functional.max_pool2d(h, 2, return_indices=True)[0],
    "adaptive_max_pool2d with indices": lambda h: nn.functional.adaptive_max_pool2d(h, 3, return_indices=True)[0],
    "max_unpool2d": unpooled,
}


class Image(nn.Module):
    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.function = nn.Conv2d(3, 4, 3, bias=False), nn.Linear(4, 3, bias=False), function

    def forward(self, x):
        return self.b(self.function(self.a(x)).mean((-1, -2)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", IMAGES)
def test_functions_of_images_conserve(name, form):
    logits, relevance = explain(Image(IMAGES[name]).double().eval(), rand(1, 3, 10, 10), form)
    torch.testing.assert_close(relevance.sum(), logits.sum())


SPARSE = {
    "mm": lambda h: torch.sparse.mm(MATRIX.to_sparse(), h),
    "addmm": lambda h: torch.sparse.addmm(torch.zeros_like(h).detach(), MATRIX.to_sparse(), h),
    "@": lambda h: MATRIX.to_sparse() @ h,
}


@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SPARSE)
def test_sparse_products_are_those_of_the_dense_matrix(name, form, composite):
    x = rand(8, 6)
    expected = explain(Between(lambda h: MATRIX @ h), x, form, composite)
    torch.testing.assert_close(explain(Between(SPARSE[name]), x, form, composite), expected)


def test_boxes_that_depend_on_the_input_have_no_rule():
    def crop(h):
        return torchvision.ops.roi_align(h, [BOXES[0] * h.mean()], 2)

    with pytest.raises(UnknownOperationError, match="roi_align"):
        explain(Image(crop).double().eval(), rand(1, 3, 10, 10))


def test_custom_operators_are_reported_by_the_name_under_which_they_are_registered():
    @torch.library.custom_op("zennit_attn_tests::double", mutates_args=())
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    double.register_autograd(lambda ctx, gradient: gradient * 2)
    operator = torch.ops.zennit_attn_tests.double
    with pytest.raises(UnknownOperationError, match=r"torch\.ops\.zennit_attn_tests\.double"):
        explain(Between(operator), rand(1, 6))
    register_operator(operator, "linear")
    torch.testing.assert_close(explain(Between(operator), rand(1, 6)), explain(Between(lambda h: h * 2), rand(1, 6)))
