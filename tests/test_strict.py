"""What is reported: rules that no forward applied, and the first module at which something is not finite."""

import gc
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers
import zennit.rules
from zennit.composites import LayerMapComposite, NameMapComposite

from zennit_attn import AttnLRPComposite, CPLRPComposite, InputXGradient, input_x_gradient, targets
from zennit_attn.errors import CutOffError, CutOffWarning, NotFiniteError, UnusedRuleError, UnusedRuleWarning
from zennit_attn.rules import Gamma

from . import models
from .models import WIDTH

FORMS = ["relevance", "gradient"]


class Tied(torch.nn.Module):
    """A layer that is called, one of which only the weight is used, and one that nobody calls."""

    def __init__(self):
        super().__init__()
        self.called, self.used, self.spare = (torch.nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        return self.called(x) @ self.used.weight


def in_form(composite, form):
    return input_x_gradient(composite) if form == "gradient" else composite


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", [Gamma(0.1), zennit.rules.Gamma(0.1)], ids=["ours", "zennit's"])
@pytest.mark.parametrize("name", ["used", "spare"])
def test_a_rule_that_no_forward_applied_is_reported_once(name, rule, form):
    model, x = Tied(), torch.randn(2, 4, requires_grad=True)
    composite = in_form(AttnLRPComposite(name_map=[(name, rule)]), form)
    with composite.context(model):
        with pytest.warns(UnusedRuleWarning, match=rf"Gamma[\s\S]*nowhere[\s\S]*Tied[\s\S]*{name}"):
            model(x)
        model(x)  # a second warning would be an error


@pytest.mark.parametrize("form", FORMS)
def test_a_rule_that_no_forward_applied_is_an_error_when_strict(form):
    composite = in_form(AttnLRPComposite(name_map=[("used", Gamma(0.1))], strict=True), form)
    with composite.context(Tied()) as model, pytest.raises(UnusedRuleError, match="used"):
        model(torch.randn(2, 4, requires_grad=True))


class Cut(torch.nn.Module):
    """A model that encodes its input under ``torch.no_grad``, and adds what a function makes of that."""

    def __init__(self, function):
        super().__init__()
        self.encoder, self.head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        self.function = function

    def forward(self, x):
        with torch.no_grad():
            hidden = self.encoder(x)
        return self.head(self.function(x, hidden))


def written_by_rows(values):
    """Copy of a tensor, written row by row into views."""
    buffer = torch.zeros_like(values)
    for row, value in zip(buffer, values, strict=True):
        row.copy_(value)
    return buffer


LOST = {
    "sum": lambda x, h: x + h,
    "sum of what a layer made of it": lambda x, h: x * 2 + torch.nn.functional.linear(h, torch.eye(4)).reshape(x.shape),
    "joined": lambda x, h: torch.cat([x, h])[:, :4],
    "written": lambda x, h: torch.zeros(4, 4).index_copy(0, torch.arange(2), h) + torch.cat([x, x]),
    "values": lambda x, h: torch.softmax(x @ x.T, -1) @ h,
    "written to a view": lambda x, h: x + written_by_rows(h),
}
KEPT = {
    "mask": lambda x, h: x * (h > 0),
    "chosen": lambda x, h: x.gather(1, h.topk(4)[1]),
    "scale": lambda x, h: x / h.abs().max(),
    "not used": lambda x, h: x + torch.zeros_like(h),
    "type": lambda x, h: x + torch.ones(4, dtype=torch.float64).type_as(h),
}


class Encoder(torch.nn.Module):
    """A model with a method beside its forward."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def encode(self, x):
        return torch.relu(self.layer(x))

    def forward(self, x):
        return self.encode(x).sum(-1)


@pytest.mark.parametrize("form", FORMS)
def test_a_call_of_another_method_is_reported(form):
    model, x = Encoder(), torch.randn(2, 4, requires_grad=True)
    with in_form(AttnLRPComposite(), form).context(model):
        model(x)
        model.encode(x.detach())
        with pytest.warns(UnusedRuleWarning, match=r"'layer' was called outside of a forward of Encoder"):
            model.encode(x)
        model.encode(x)  # a second warning would be an error
    with (
        in_form(CPLRPComposite(strict=True), form).context(model),
        pytest.raises(UnusedRuleError, match="expected a call of the model itself"),
    ):
        model.encode(x)
    assert not model.layer._forward_pre_hooks


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LOST)
def test_what_is_computed_without_a_graph_is_reported_where_it_is_used(name, form):
    x = torch.randn(2, 4, requires_grad=True)
    with in_form(AttnLRPComposite(), form).context(Cut(LOST[name])) as model:
        with pytest.warns(CutOffWarning, match=r"in 'the model itself' \(Cut\)[\s\S]*torch.no_grad"):
            model(x)
        model(x)  # a second warning would be an error
    with (
        in_form(CPLRPComposite(strict=True), form).context(Cut(LOST[name])) as model,
        pytest.raises(CutOffError, match="expected a model that computes it with a graph"),
    ):
        model(x)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", KEPT)
def test_what_takes_no_relevance_may_be_computed_without_a_graph(name, form):
    x = torch.randn(2, 4, requires_grad=True)
    with in_form(AttnLRPComposite(strict=True), form).context(Cut(KEPT[name])) as model:
        model(x)


def test_what_is_computed_in_inference_mode_is_reported():
    class Model(torch.nn.Module):
        def forward(self, x):
            with torch.inference_mode():
                hidden = torch.relu(x)
            return x + hidden

    composite = input_x_gradient(AttnLRPComposite(strict=True))
    with composite.context(Model()) as model, pytest.raises(CutOffError, match="add"):
        model(torch.randn(2, 4, requires_grad=True))


@pytest.mark.parametrize("form", FORMS)
def test_one_module_that_is_called_stands_for_all(form):
    composite = in_form(AttnLRPComposite(layer_map=[(torch.nn.Linear, Gamma(0.1))], strict=True), form)
    with composite.context(Tied()) as model:
        model(torch.randn(2, 4, requires_grad=True))


@pytest.mark.parametrize("form", FORMS)
def test_a_rule_inside_of_a_module_with_a_rule_of_its_own_is_reported(form):
    model = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(4, 4)))
    composite = NameMapComposite([(("0",), zennit.rules.Epsilon()), (("0.0",), zennit.rules.Gamma())])
    converted = AttnLRPComposite(name_map=[("0", zennit.rules.Epsilon()), ("0.0", zennit.rules.Gamma())])
    with in_form(converted, form).context(model), pytest.warns(UnusedRuleWarning, match=r"Gamma[\s\S]*0\.0"):
        model(torch.randn(2, 4, requires_grad=True))
    if form == "gradient":
        other = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(4, 4)))
        with input_x_gradient(composite).context(other), pytest.warns(UnusedRuleWarning):
            other(torch.randn(2, 4, requires_grad=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make", [models.llama, models.mixtral, models.bert, models.t5, models.hf_vit])
def test_presets_apply_each_of_their_rules(make, form):
    model = make().eval()
    with in_form(CPLRPComposite(epsilon=1e-6, strict=True), form).context(model), warnings.catch_warnings():
        warnings.simplefilter("error")
        x = torch.randn(1, 3, 32, 32) if make is models.hf_vit else torch.randn(1, 5, WIDTH)
        rest = {"decoder_input_ids": torch.tensor([[0, 1]])} if make is models.t5 else {}
        models.logits_of(model, x.requires_grad_(), **rest)


def test_a_presets_own_rule_of_a_module_that_is_not_called_is_no_mistake():
    model = Tied()
    model.activation = torch.nn.ModuleDict({"spare": transformers.activations.NewGELUActivation()})
    with input_x_gradient(AttnLRPComposite(epsilon=1e-6, strict=True)).context(model):
        model(torch.randn(2, 4, requires_grad=True))


class Discards(torch.nn.Module):
    """A NaN that nobody uses, as in rows of an attention that are masked altogether."""

    def __init__(self, used):
        super().__init__()
        self.layer, self.used = torch.nn.Linear(4, 4), used

    def forward(self, x):
        hidden = self.layer(torch.cat([x, torch.full_like(x, float("nan"))], 1))
        return hidden if self.used else hidden[:, : x.shape[1]]


@pytest.mark.parametrize("form", FORMS)
def test_a_nan_that_is_thrown_away_is_none(form):
    x = torch.randn(2, 3, 4, requires_grad=True)
    with in_form(AttnLRPComposite(strict=True), form).context(Discards(used=False)) as model:
        model(x).sum().backward()
    assert x.grad.isfinite().all()
    with (
        in_form(AttnLRPComposite(strict=True), form).context(Discards(used=True)) as model,
        pytest.raises(NotFiniteError, match="forward"),
    ):
        model(x)[:, 3:].backward(torch.full((2, 3, 4), float("nan")))


class Overflows(torch.nn.Module):
    """A forward that leaves the range of its numbers, or a rule that gives relevance to exact zeros."""

    def __init__(self, scale):
        super().__init__()
        self.first, self.second, self.third = (torch.nn.Linear(4, 4) for _ in range(3))
        self.scale = scale

    def forward(self, x):
        return self.third(self.second(self.first(x).relu() * self.scale))


def zero_input(model):
    """Let the second layer see exact zeros."""
    torch.nn.init.zeros_(model.first.weight)
    torch.nn.init.constant_(model.first.bias, -1.0)
    return model


@pytest.mark.parametrize("strict", [False, True])
def test_a_forward_that_overflows_is_located(strict):
    model = Overflows(1e30)
    torch.nn.init.constant_(model.second.weight, 1e30)
    composite = input_x_gradient(AttnLRPComposite(strict=strict))
    with (
        InputXGradient(model, composite) as attributor,
        pytest.raises(NotFiniteError, match=r"forward[\s\S]*output of 'second' \(Linear\)"),
    ):
        attributor(torch.ones(1, 4), targets.Label(0))


@pytest.mark.parametrize("where", ["attributor", "strict"])
def test_relevance_at_exact_zeros_is_located(where):
    model = zero_input(Overflows(1.0))
    flat = AttnLRPComposite(name_map=[("second", zennit.rules.Flat())], strict=where == "strict")
    composite, x = input_x_gradient(flat), torch.ones(1, 4)
    expected = pytest.raises(NotFiniteError, match=r"input of 'second' \(Linear\)[\s\S]*exactly zero")
    if where == "attributor":
        with InputXGradient(model, composite) as attributor, expected:
            attributor(x, targets.Label(0))
    else:
        with composite.context(model), expected:
            model(x.requires_grad_())[0, 0].backward()


@pytest.mark.parametrize("form", FORMS)
def test_masks_of_minus_infinity_are_no_overflow(form):
    model = models.gpt2("eager").eval()
    with in_form(AttnLRPComposite(strict=True), form).context(model):
        x = torch.randn(1, 5, WIDTH, requires_grad=True)
        output = models.logits_of(model, x)
        output.backward(output.detach())


def test_strict_rules_keep_no_graph_alive():
    model, alive = models.llama().eval(), []
    with input_x_gradient(AttnLRPComposite(strict=True)).context(model):
        for _ in range(3):
            x = torch.randn(1, 5, WIDTH, requires_grad=True)
            logits = models.logits_of(model, x)
            logits.sum().backward()
            alive.append(weakref.ref(logits))
            del logits
    gc.collect()
    assert [reference() for reference in alive] == [None] * 3


def test_threads_do_not_hide_each_others_rules():
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(8)))
    composite = input_x_gradient(AttnLRPComposite(layer_map=[(torch.nn.Linear, Gamma(0.1))]))

    def run(_):
        return model(torch.randn(2, 4, requires_grad=True)).shape

    with composite.context(model), ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(60))) == [(2, 4)] * 60


def test_nothing_of_the_watch_is_left():
    model = models.llama().eval()
    composite = input_x_gradient(LayerMapComposite([(torch.nn.Linear, Gamma(0.1))]))
    for chosen in (composite, input_x_gradient(AttnLRPComposite(strict=True))):
        with chosen.context(model):
            before = [(*module._forward_hooks, *module._forward_pre_hooks) for module in model.modules()]
            models.logits_of(model, torch.randn(1, 5, WIDTH, requires_grad=True))
            assert before == [(*module._forward_hooks, *module._forward_pre_hooks) for module in model.modules()]
