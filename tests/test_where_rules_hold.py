"""Where the rules hold: hooks and wrappers of the root, what runs where no rule can see it, weights that go away."""

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
import transformers
import zennit.rules
from torch import nn
from zennit.attribution import Gradient

from zennit_attn import AttnLRPComposite, CPLRPComposite, InputXGradient, input_x_gradient, rules, targets
from zennit_attn.engine.graph import sequence_number
from zennit_attn.errors import UnknownOperationError, UnknownOperationWarning, UnusedRuleError

from .forms import FORMS, PRESETS, attributor_of, in_form, relevance_of


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


# what wraps the root's forward


class Net(nn.Module):
    """A network, and what to do around it."""

    def __init__(self, before=lambda x: x, after=lambda x: x):
        super().__init__()
        torch.manual_seed(0)
        self.before, self.after = before, after
        self.a, self.n, self.b = nn.Linear(6, 8, bias=False), nn.LayerNorm(8), nn.Linear(8, 3, bias=False)

    def forward(self, x):
        return self.after(self.b(F.gelu(self.n(self.a(self.before(x))))))


class Called(Net):
    """The same, around its forward, in a call of its own."""

    def __call__(self, x):
        return self.late(super().__call__(self.early(x)))


def with_pre_hook(before, after):
    net = Net()
    net.register_forward_pre_hook(lambda module, args: (before(args[0]),))
    net.register_forward_hook(lambda module, args, output: after(output))
    return net


def with_keyword_hook(before, after):
    net = Net()
    net.register_forward_pre_hook(lambda module, args, kwargs: ((before(args[0]),), kwargs), with_kwargs=True)
    net.register_forward_hook(lambda module, args, kwargs, output: after(output), with_kwargs=True, always_call=True)
    return net


def with_own_forward(before, after):
    net = Net()
    forward = net.forward
    net.forward = lambda x: after(forward(before(x)))
    return net


def in_data_parallel(before, after):
    return nn.DataParallel(with_pre_hook(before, after))


def in_a_sequential(before, after):
    return nn.Sequential(with_pre_hook(before, after))


WRAPPERS = [with_pre_hook, with_keyword_hook, with_own_forward, in_data_parallel, in_a_sequential]
AROUND = {
    "affine": (lambda x: (x - 0.5) / 0.25, lambda y: y * 2),
    "gated": (lambda x: x * x.sigmoid(), lambda y: y.tanh()),
    "in place": (lambda x: x.clone().mul_(x), lambda y: y.clone().mul_(y.sigmoid())),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", AROUND)
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_what_is_around_the_roots_forward_has_rules(wrap, name, preset, form):
    x = torch.rand(2, 6).double()
    expected = relevance_of(Net(*AROUND[name]).double(), x, form, preset)
    close(relevance_of(wrap(*AROUND[name]).double(), x, form, preset), expected)


@pytest.mark.parametrize("form", FORMS)
def test_a_call_of_the_roots_own_is_reported(form):
    net = Called().double()
    net.early, net.late = AROUND["gated"]
    x = torch.rand(2, 6).double()
    with pytest.raises(UnknownOperationError, match="Called has a __call__ of its own"):
        relevance_of(net, x, form)
    net.late = torch.nn.Identity()
    with pytest.warns(UnknownOperationWarning, match="__call__"):
        relevance_of(net, x, form, strict=False)
    # as the report says: in a module around it, it is a part of a forward
    expected = relevance_of(Net(AROUND["gated"][0]).double(), x, form)
    close(relevance_of(nn.Sequential(net), x, form), expected)


@pytest.mark.parametrize("form", FORMS)
def test_a_call_of_torchs_own_is_not_reported(form):
    net, x = nn.Sequential(nn.Linear(6, 4), nn.Tanh()).double(), torch.rand(2, 6).double()
    expected = relevance_of(net, x, form)
    close(relevance_of(torch.fx.symbolic_trace(net), x, form), expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", [rules.Gamma(0.2), zennit.rules.Gamma(0.2)], ids=["ours", "zennit's"])
def test_hooks_of_an_inner_module_with_a_layer_rule_have_operator_rules(rule, form):
    x = torch.rand(2, 6).double()

    class Written(Net):
        def forward(self, x):
            h = self.a(x)
            return self.b(h * h.sigmoid())

    class Hooked(Net):
        def forward(self, x):
            return self.b(self.a(x))

    hooked = Hooked().double()
    hooked.a.register_forward_hook(lambda module, args, output: output * output.sigmoid())
    settings = {"layer_map": [(nn.Linear, rule)]}
    close(
        relevance_of(hooked, x, form, "attnlrp", **settings),
        relevance_of(Written().double(), x, form, "attnlrp", **settings),
    )


@pytest.mark.parametrize("form", FORMS)
def test_rules_are_off_and_hooks_are_back_after_the_context(form):
    net, x = with_pre_hook(*AROUND["gated"]).double(), torch.rand(2, 6).double()
    expected = net(x)
    relevance_of(net, x, form)
    assert "_call_impl" not in vars(net)
    assert "forward" not in vars(net)
    assert torch.equal(net(x), expected)
    assert all(parameter.requires_grad for parameter in net.parameters())


# what is computed after the forward


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 5)

    def forward(self, x):
        return self.b(F.gelu(self.a(x)))


#: What is no plain gradient, computed of outputs outside of the forward.
OUTSIDE = {
    "cosine": lambda f, x, y: F.cosine_similarity(f(x), f(y)).sum(),
    "dot": lambda f, x, y: (f(x) * f(y)).sum(),
    "matrix": lambda f, x, y: (f(x) @ f(y).T).sum(),
    "square": lambda f, x, y: f(x).square().sum(),
    "norm": lambda f, x, y: f(x).norm() + f(y).norm(),
    "distance": lambda f, x, y: torch.cdist(f(x), f(y)).sum(),
    "softmax": lambda f, x, y: f(x).softmax(-1)[:, 1].sum(),
    "loss": lambda f, x, y: F.cross_entropy(f(x), torch.tensor([1, 0])),
    "later": lambda f, x, y: f(x)[0, 1].mul_(f(y)[0, 1]),
    "through a list": lambda f, x, y: torch.stack([f(x)[0, 1] / f(y)[0, 1], f(x)[1, 1]]).sum(),
}
#: What is the sum of logits, however it is written.
SUMS = {
    "logit": lambda f, x, y: f(x)[0, 1],
    "sum": lambda f, x, y: f(x)[:, 1].sum() + f(y)[:, 2].mean(),
    "difference": lambda f, x, y: f(x)[0, 1] - f(x)[0, 2],
    "weighted": lambda f, x, y: (f(x) * torch.arange(5.0)).sum() / 2,
    "projected": lambda f, x, y: (f(x) @ torch.arange(5.0)).sum(),
    "largest": lambda f, x, y: f(x).max(-1)[0].sum() + f(y).amax(),
    "gathered": lambda f, x, y: torch.cat([f(x), f(y)]).gather(1, torch.zeros(4, 1, dtype=torch.long)).sum(),
    "chosen": lambda f, x, y: torch.where(f(x) > 0, f(x), 0).flatten()[3:7].double().sum(),
    "in a thread": lambda f, x, y: ThreadPoolExecutor(1).submit(f, x).result()[0, 1] + f(y)[0, 1],
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_is_computed_of_outputs_after_the_forward_is_reported(name):
    x, y = torch.randn(2, 4, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    model = Encoder()
    with (
        input_x_gradient(CPLRPComposite(strict=True)).context(model),
        pytest.raises(UnknownOperationError, match="computed of the output of Encoder after its forward"),
    ):
        OUTSIDE[name](model, x, y).backward()
    model = Encoder()
    with (
        input_x_gradient(CPLRPComposite()).context(model),
        pytest.warns(UnknownOperationWarning, match="after its forward"),
    ):
        OUTSIDE[name](model, x, y).backward()


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_of_logits_is_not_reported(name):
    x, y = torch.randn(2, 4, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    model = Encoder()
    with input_x_gradient(AttnLRPComposite(strict=True)).context(model):
        SUMS[name](model, x, y).backward()
    assert float(x.grad.abs().max()) > 0


def test_sums_of_two_forwards_add_up():
    x = torch.randn(2, 4, requires_grad=True)
    model = Encoder()
    with input_x_gradient(AttnLRPComposite(strict=True)).context(model):
        (both,) = torch.autograd.grad(model(x)[0, 1] + 3 * model(2 * x)[0, 2], x)
        (first,) = torch.autograd.grad(model(x)[0, 1], x)
        (second,) = torch.autograd.grad(model(2 * x)[0, 2], x)
    torch.testing.assert_close(both, first + 3 * second)


def test_a_cosine_inside_of_a_module_is_explained():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = Encoder()

        def forward(self, a, b):
            return F.cosine_similarity(self.encoder(a), self.encoder(b))[:, None]

    pair, a, b = Pair().double(), torch.randn(2, 4).double(), torch.randn(2, 4).double()
    with InputXGradient(pair, input_x_gradient(AttnLRPComposite(strict=True)), argument=("a", "b")) as attributor:
        output, got = attributor({"a": a, "b": b}, targets.Label(0))
    # the norms are constants, the product is shared in halves, and the encoder is explained for each
    for name, one, other in (("a", a, b), ("b", b, a)):
        encoded, fixed = pair.encoder(one).detach(), pair.encoder(other).detach()
        weights = fixed / (encoded.norm(dim=1) * fixed.norm(dim=1))[:, None] / 2
        with InputXGradient(pair.encoder, input_x_gradient(AttnLRPComposite(strict=True))) as attributor:
            expected = attributor(one, lambda value, weights=weights: value * weights)[1]
        close(got[name], expected)
    assert output.shape == (2, 1)


def test_a_second_backward_pass_is_looked_at():
    x, model = torch.randn(2, 4, requires_grad=True), Encoder()
    with input_x_gradient(CPLRPComposite(strict=True)).context(model):
        output = model(x)
        output[0, 1].backward(retain_graph=True)
        with pytest.raises(UnknownOperationError, match="after its forward"):
            (output[0, 1] * output[0, 2]).backward()


def test_a_head_that_is_applied_outside_is_linear():
    """A frozen linear map of the output is a sum of logits; one that is learned is, too."""
    x, model, head = torch.randn(2, 4, requires_grad=True), Encoder(), nn.Linear(5, 2)
    for learned in (False, True):
        head.requires_grad_(learned)
        with input_x_gradient(CPLRPComposite(strict=True)).context(model):
            head(model(x))[:, 1].sum().backward()


# where no mode sees a function


pool = ThreadPoolExecutor(2)


def product(h, g):
    return h * g


def in_a_thread(h, g):
    return pool.submit(product, h, g).result()


def in_two_threads(h, g):
    return sum(pool.map(lambda half: product(*half), [(h / 2, g), (h / 2, g)]))


def in_a_thread_of_its_own(h, g):
    found = []
    thread = threading.Thread(target=lambda: found.append(product(h, g)))
    thread.start()
    thread.join()
    return found[0]


def disabled(h, g):
    with torch._C.DisableTorchFunction():
        return h * g


class Script(nn.Module):
    def forward(self, h, g):
        return h * g


with warnings.catch_warnings():
    # deprecated, and everywhere
    warnings.simplefilter("ignore")
    scripted, script_module = torch.jit.script(product), torch.jit.script(Script())
    traced = torch.jit.trace(product, (torch.rand(2, 8).double(), torch.rand(2, 8).double()))


class Product(nn.Module):
    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.function = [function]
        self.a, self.c, self.b = (nn.Linear(*size, bias=False) for size in ((6, 8), (6, 8), (8, 3)))

    def forward(self, x):
        return self.b(self.function[0](self.a(x), self.c(x)))


UNSEEN = {
    "thread": in_a_thread,
    "two threads": in_two_threads,
    "own thread": in_a_thread_of_its_own,
    "disabled": disabled,
    "scripted": scripted,
    "traced": traced,
    "script module": script_module,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", UNSEEN)
def test_a_function_that_no_rule_sees_is_reported(name, form):
    x, model = torch.randn(2, 6).double(), Product(UNSEEN[name]).double()
    with pytest.raises(UnknownOperationError, match="MulBackward0 that no function made which the rules saw"):
        relevance_of(model, x, form, "attnlrp")
    with pytest.warns(UnknownOperationWarning, match="MulBackward0"):
        relevance_of(model, x, form, "attnlrp", strict=False)
    assert float(relevance_of(Product(product).double(), x, form, "attnlrp").abs().max()) > 0


@pytest.mark.parametrize("form", FORMS)
def test_a_thread_that_counts_its_nodes_as_the_forward_does_is_no_way_to_hide(form):
    """Each thread numbers its nodes for itself: a number alone does not tell who made one."""

    def count_up_to(number):
        value = torch.ones(1, requires_grad=True)
        while sequence_number() < number:
            value.view(1)

    def function(h, g):
        # the number that the next layer's node will have, too
        return pool.submit(lambda: (count_up_to(number), product(h, g))[1]).result()

    x, model, pool = torch.randn(2, 6).double(), Product(function).double(), ThreadPoolExecutor(1)
    number = sequence_number() + 200
    model.a.register_forward_hook(lambda module, args, output: count_up_to(number))
    with pytest.raises(UnknownOperationError, match="MulBackward0"):
        relevance_of(model, x, form, "attnlrp")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "function",
    [
        lambda h, g: torch.ops.aten.mul(h, g),
        lambda h, g: torch.ops.aten.mul.Tensor(h, g),
        lambda h, g: torch._foreach_mul([h], [g])[0],
        lambda h, g: torch.vmap(torch.mul)(h, g),
    ],
    ids=["packet", "overload", "foreach", "vmap"],
)
def test_a_product_by_another_name_is_shared_or_reported(function, form):
    x = torch.randn(2, 6).double()
    expected = relevance_of(Product(product).double(), x, form, "attnlrp")
    try:
        got = relevance_of(Product(function).double(), x, form, "attnlrp")
    except UnknownOperationError as error:
        assert "no rule is known for" in str(error)  # noqa: PT017
    else:
        close(got, expected)


@pytest.mark.parametrize("form", FORMS)
def test_subclasses_being_disabled_hides_nothing(form):
    def function(h, g):
        with torch._C.DisableTorchFunctionSubclass():
            return h * g

    x = torch.randn(2, 6).double()
    expected = relevance_of(Product(product).double(), x, form, "attnlrp")
    close(relevance_of(Product(function).double(), x, form, "attnlrp"), expected)


def test_a_module_that_is_called_in_a_thread_is_reported():
    class Threaded(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.b(pool.submit(self.a, x).result())

    with pytest.raises((UnknownOperationError, UnusedRuleError)):
        relevance_of(Threaded(), torch.rand(2, 6), layer_map=[(nn.Linear, rules.Gamma(0.1))])


def test_what_routes_may_run_anywhere():
    def routed(h, g):
        moved = pool.submit(lambda: torch.cat([h, g], -1)[:, ::2].reshape(2, -1)).result()
        with torch._C.DisableTorchFunction():
            return moved.flip(-1)

    x = torch.randn(2, 6).double()
    got = relevance_of(Product(routed).double(), x)
    close(got, relevance_of(Product(lambda h, g: torch.cat([h, g], -1)[:, ::2].flip(-1)).double(), x))


@pytest.mark.parametrize("form", FORMS)
def test_threads_that_each_explain_do_not_see_each_others_functions(form):
    """A forward in another thread meanwhile, of the same model, takes sequence numbers of its own."""
    x = [torch.randn(2, 6).double() for _ in range(12)]
    model = Product(product).double()
    expected = [relevance_of(model, value, form, "attnlrp") for value in x]
    with attributor_of(model, AttnLRPComposite(), form) as attributor:
        got = list(ThreadPoolExecutor(3).map(lambda value: attributor(value, targets.Label(1))[1], x))
    for one, other in zip(got, expected, strict=True):
        close(one, other)


# weights that are put back before a rule reads them


class Layers(nn.Sequential):
    def __init__(self, seed):
        torch.manual_seed(seed)
        super().__init__(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


class Functional(nn.Module):
    """A network that is called with other weights."""

    def __init__(self, net, *weights):
        super().__init__()
        self.net, self.weights = net, weights

    def forward(self, x):
        return sum(torch.func.functional_call(self.net, weights, (x,)) for weights in self.weights)


class OneLayer(nn.Module):
    """A network of which one layer is called with other weights."""

    def __init__(self, net, layer):
        super().__init__()
        self.net = net
        self.weights = {name: value.detach() for name, value in layer.named_parameters()}

    def forward(self, x):
        first, activation, last = self.net
        return last(activation(torch.func.functional_call(first, self.weights, (x,))))


def weights_of(net):
    return {name: value.detach() for name, value in net.named_parameters()}


RULES = {
    "Gamma": (rules.Gamma(0.25), zennit.rules.Gamma(0.25)),
    "ZPlus": (rules.ZPlus(), zennit.rules.ZPlus()),
    "AlphaBeta": (rules.AlphaBeta(2, 1), zennit.rules.AlphaBeta(2, 1)),
    "Epsilon": (rules.Epsilon(1e-6), zennit.rules.Epsilon(1e-6)),
    "WSquare": (zennit.rules.WSquare(),),
}
RULE_CASES = [
    pytest.param(rule, id=f"{type(rule).__module__.split('.')[0]}-{name}") for name in RULES for rule in RULES[name]
]


def settings(rule):
    return {"layer_map": [(nn.Linear, rule)]}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", RULE_CASES)
def test_a_functional_call_is_explained_with_the_weights_of_the_call(rule, form):
    x = torch.randn(2, 6).double()
    right, other = Layers(1).double(), Layers(2).double()
    expected = relevance_of(right, x, form, **settings(rule))
    close(relevance_of(Functional(other, weights_of(right)), x, form, **settings(rule)), expected)
    mixed = nn.Sequential(right[0], nn.Tanh(), other[2])
    close(
        relevance_of(OneLayer(other, right[0]), x, form, **settings(rule)),
        relevance_of(mixed, x, form, **settings(rule)),
    )


@pytest.mark.parametrize("rule", [case for case in RULE_CASES if "WSquare" not in case.id])
def test_an_ensemble_of_weights_is_explained_with_those_of_each_call(rule):
    x = torch.randn(2, 6).double()
    nets = [Layers(seed).double() for seed in (1, 2, 3)]

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.nets = nn.ModuleList(nets)

        def forward(self, x):
            return sum(net(x) for net in self.nets)

    functional = Functional(Layers(4).double(), *map(weights_of, nets))
    for form in FORMS:
        close(relevance_of(functional, x, form, **settings(rule)), relevance_of(Sum(), x, form, **settings(rule)))


@pytest.mark.parametrize("rule", RULE_CASES)
def test_a_functional_call_gives_the_weights_back(rule):
    model, net = Layers(1).double(), Layers(2).double()
    functional = Functional(net, weights_of(model))
    before = dict(net.named_parameters())
    for form in FORMS:
        relevance_of(functional, torch.randn(2, 6).double(), form, **settings(rule))
        after = dict(net.named_parameters())
        assert all(after[name] is value and value.requires_grad for name, value in before.items())


def llama():
    torch.manual_seed(0)
    config = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**config, num_attention_heads=4)).eval()


def explained_llama(model, rule):
    composite = input_x_gradient(AttnLRPComposite(strict=True, layer_map=[(nn.Linear, rule)]))
    with InputXGradient(model, composite) as attributor:
        return attributor({"input_ids": torch.tensor([[3, 1, 4, 1, 5]])}, targets.Label(7))[1]


@pytest.mark.parametrize("rule", [case for case in RULE_CASES if "WSquare" not in case.id])
def test_weights_that_are_offloaded_are_explained_and_stay_trainable(rule):
    accelerate = pytest.importorskip("accelerate")
    expected = explained_llama(llama(), rule)
    model = accelerate.cpu_offload(llama(), "cpu")
    for _ in range(2):
        torch.testing.assert_close(explained_llama(model, rule), expected, rtol=1e-4, atol=1e-6)
        assert {parameter.requires_grad for parameter in model.parameters()} == {True}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", [case for case in RULE_CASES if "WSquare" not in case.id])
def test_a_network_that_is_offloaded_in_parts_is_explained(rule, form, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    x = torch.randn(2, 6)
    expected = relevance_of(Layers(1), x, form, **settings(rule))
    whole = accelerate.cpu_offload(Layers(1), "cpu")
    torch.testing.assert_close(relevance_of(whole, x, form, **settings(rule)), expected)
    mapped = accelerate.dispatch_model(
        Layers(1), {"0": "cpu", "1": "cpu", "2": "disk"}, main_device="cpu", offload_dir=tmp_path, force_hooks=True
    )
    torch.testing.assert_close(relevance_of(mapped, x, form, **settings(rule)), expected)


def test_weights_that_were_frozen_stay_frozen():
    model = Layers(1)
    model[0].weight.requires_grad_(False)
    relevance_of(model, torch.rand(2, 6), layer_map=[(nn.Linear, rules.Gamma(0.1))])
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, True, True, True]


def test_the_relevance_form_reports_no_start_of_its_own():
    """How the relevance form begins: relevance of the output, for a batch, of a sum of logits."""
    x, model = torch.randn(2, 4, requires_grad=True), Encoder()
    with CPLRPComposite(strict=True).context(model):
        output = model(x)
        output.backward(output.detach())
    with Gradient(model, CPLRPComposite(strict=True)) as attributor:
        torch.testing.assert_close(attributor(x.detach(), lambda output: output.detach())[1], x.grad)


@pytest.mark.parametrize("form", FORMS)
def test_a_context_on_an_inner_module_reports_what_is_computed_around_it(form):
    encoder = Encoder()

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = encoder

        def forward(self, x):
            return self.encoder(x).square().sum(-1)

    x = torch.randn(2, 4, requires_grad=True)
    with in_form(CPLRPComposite(strict=True), form).context(encoder), pytest.raises(UnknownOperationError, match="Pow"):
        Around()(x).sum().backward()
