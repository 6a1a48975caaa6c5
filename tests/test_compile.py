"""torch.compile of an explained model: one graph, the same relevance."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import models
import pytest
import torch
from torch._dynamo import eval_frame
from zennit.attribution import Gradient
from zennit.composites import EpsilonPlus

from zennit_attn import (
    AttnLRPComposite,
    CPLRPComposite,
    GammaViTComposite,
    InputXGradient,
    input_x_gradient,
    targets,
)
from zennit_attn.engine.compiled import EagerHandle
from zennit_attn.errors import UnknownOperationError
from zennit_attn.rules import Epsilon, Gamma, Identity, Operators

CASES = {
    "llama-attnlrp": (models.llama, AttnLRPComposite, (2, 6, models.WIDTH)),
    "gpt2-cp_lrp": (models.gpt2, CPLRPComposite, (2, 6, models.WIDTH)),
    "bert-attnlrp": (models.bert, AttnLRPComposite, (2, 6, models.WIDTH)),
    "timm_vit-gamma_vit": (models.timm_vit, GammaViTComposite, (2, 3, 32, 32)),
    "torchvision_vit-gamma_vit": (models.torchvision_vit, GammaViTComposite, (2, 3, 32, 32)),
}

pytestmark = [
    pytest.mark.skipif(torch.__version__ < "2.12", reason="older compilers do not trace every function of the rules"),
    # torch's own, of its compiler
    pytest.mark.filterwarnings("ignore"),
]


def assert_equal_compiled(model, composite, x, form):
    """Compare with the relevance of the model before it was compiled, then with the plain gradient."""

    def signal(run):
        leaf = x.clone().requires_grad_()
        logits = models.logits_of(run, leaf)
        # of the relevance form, the relevance of the largest logit; its gradient form starts with 1
        start = (logits == logits.amax(-1, keepdim=True)).to(x.dtype)
        return torch.autograd.grad(logits, leaf, start if form == "gradient" else start * logits.detach())[0]

    with (input_x_gradient(composite) if form == "gradient" else composite).context(model):
        torch._dynamo.reset()
        # the backend runs the traced graphs by the same kernels: what could differ is the trace
        got = signal(torch.compile(model, backend="aot_eager", fullgraph=True))
        expected = signal(model)
    torch._dynamo.reset()
    # the relevance form divides by activations: where one is near zero, another order of a sum shows
    tolerance = {"rtol": 1e-5, "atol": 1e-7} if form == "gradient" else {"rtol": 1e-3, "atol": 1e-5}
    torch.testing.assert_close(got, expected, **tolerance)
    assert not torch.allclose(signal(model), expected)


@pytest.mark.parametrize(
    ("case", "form"),
    [*((case, "gradient") for case in CASES), ("llama-attnlrp", "relevance"), ("timm_vit-gamma_vit", "relevance")],
)
def test_a_compiled_model_gives_the_same_relevance_without_a_graph_break(case, form):
    make, kind, shape = CASES[case]
    assert_equal_compiled(make().eval(), kind(strict=True), torch.randn(shape), form)


class Block(torch.nn.Module):
    """A gated product, which rules of its own may explain in another way than those around it."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x):
        hidden = self.linear(x)
        return hidden * torch.sigmoid(hidden) * x


@pytest.mark.parametrize("form", ["gradient", "relevance"])
@pytest.mark.parametrize(
    "rule", [Operators(product="gate"), Identity(), Gamma(0.5), Epsilon(0.1)], ids=lambda rule: type(rule).__name__
)
def test_rules_of_inner_modules_hold_when_compiled(rule, form):
    torch.manual_seed(0)
    name = "1.linear" if isinstance(rule, (Gamma, Epsilon)) else "1"
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), Block(), torch.nn.ReLU(inplace=True), torch.nn.Linear(8, 4))
    composite = AttnLRPComposite(name_map=[([name], rule)])
    assert_equal_compiled(model.double().eval(), composite, torch.randn(3, 8, dtype=torch.float64), form)


def compiled(model, backend):
    return torch.compile(model, backend=backend)


def compiled_in_place(model, backend):
    model.compile(backend=backend)
    return model


def compiled_inside(model, backend):
    for name, child in list(model.named_children()):
        setattr(model, name, torch.compile(child, backend=backend))
    return model


def with_a_compiled_forward(model, backend):
    # as transformers' own pages write it
    model.forward = torch.compile(model.forward, backend=backend)
    return model


GIVEN = [compiled, compiled_in_place, compiled_inside, with_a_compiled_forward]


def explanations(model, batches, form):
    """Return the relevance of each batch, and what the model returned."""
    if form == "gradient":
        attributor = InputXGradient(model, AttnLRPComposite(strict=True))
    else:
        attributor = Gradient(model, AttnLRPComposite(strict=True))
    with attributor:
        return [attributor(batch, targets.MaxLogit())[1] for batch in batches]


@pytest.mark.parametrize("form", ["gradient", "relevance"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("given", GIVEN, ids=lambda given: given.__name__)
def test_a_model_that_was_compiled_before_is_explained_as_it_was_written(given, backend, form):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), Block(), torch.nn.GELU(), torch.nn.Linear(8, 4)).eval()
    batches = [torch.randn(3, 8), torch.randn(2, 8)]
    expected = explanations(model, batches, form)
    changed = given(model, backend)
    # it has been in use, and still is
    before = changed(batches[0])
    torch.testing.assert_close(explanations(changed, batches, form), expected)
    torch.testing.assert_close(changed(batches[0]), before)
    torch._dynamo.reset()


@pytest.mark.parametrize("given", GIVEN, ids=lambda given: given.__name__)
def test_token_ids_of_changing_lengths_and_a_compiled_model(given):
    torch._dynamo.reset()
    model = models.llama(num_hidden_layers=1).eval()
    batches = [{"input_ids": torch.tensor([[3, 1, 4, 1, 5]])}, {"input_ids": torch.tensor([[9, 2, 6]])}]
    expected = explanations(model, batches, "gradient")
    torch.testing.assert_close(explanations(given(model, "eager"), batches, "gradient"), expected)
    torch._dynamo.reset()


@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler")
def test_a_model_that_inductor_compiled_is_explained_as_it_was_written():
    test_a_model_that_was_compiled_before_is_explained_as_it_was_written(compiled, "inductor", "gradient")


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        *((kind, form) for kind in (CPLRPComposite, GammaViTComposite) for form in ("gradient", "relevance")),
        # of rules by zennit's composites, without operator rules
        (EpsilonPlus, "gradient"),
    ],
)
@pytest.mark.parametrize("given", GIVEN, ids=lambda given: given.__name__)
def test_a_context_on_a_model_that_was_compiled_before(given, kind, form):
    model, x = models.timm_vit().double().eval(), torch.randn(2, 3, 32, 32, dtype=torch.float64)

    def relevance(run, count):
        leaf = x[:count].clone().requires_grad_()
        with (input_x_gradient(kind()) if form == "gradient" else kind()).context(run):
            output = run(leaf).max(-1)[0]
            start = torch.ones_like(output) if form == "gradient" else output.detach()
            return torch.autograd.grad(output, leaf, start)[0]

    torch._dynamo.reset()
    expected = [relevance(model, count) for count in (2, 1)]
    run = given(model, "eager")
    torch.testing.assert_close([relevance(run, count) for count in (2, 1)], expected)
    torch._dynamo.reset()


def test_a_function_that_was_compiled_inside_of_a_model_runs_as_it_was_written():
    traced = []

    def backend(graph, _):
        traced.append(graph)
        return graph.forward

    model = Written(torch.nn.functional.gelu).eval()
    batches = [torch.randn(3, 4), torch.randn(2, 4)]
    expected = explanations(model, batches, "gradient")
    torch._dynamo.reset()
    model.function = torch.compile(model.function, backend=backend)
    torch.testing.assert_close(explanations(model, batches, "gradient"), expected)
    assert not traced
    # it is compiled for who predicts
    model(batches[0])
    assert traced
    torch._dynamo.reset()


def test_names_are_those_of_the_model_that_was_written():
    model = models.llama(num_hidden_layers=1).eval()
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    composite = AttnLRPComposite(
        name_map=[("model.layers.0.mlp.down_proj", Gamma(0.5))], role_map=[("qkv", Epsilon(0.5)), ("head", Gamma(0.1))]
    )

    def found(run):
        attributor = InputXGradient(run, composite, targets.MaxLogit(), "model.layers.0.mlp", latents="head")
        _, relevance, inner = attributor(ids)
        kept = attributor.ledger(ids, targets.MaxLogit()).kept
        return (relevance, inner, kept), str(composite.describe(run))

    expected, table = found(model)
    model.lm_head = torch.compile(model.lm_head, backend="eager")
    attention = model.model.layers[0].self_attn
    attention.q_proj = torch.compile(attention.q_proj, backend="eager")
    got, title = found(torch.compile(model, backend="eager"))
    torch.testing.assert_close(got, expected)
    assert title == table


def test_several_threads_run_what_was_compiled_as_it_was_written():
    first, second = EagerHandle(), EagerHandle()
    first.remove()
    assert eval_frame._stance.stance == "force_eager"
    second.remove()
    second.remove()
    assert eval_frame._stance.stance == "default"


@pytest.mark.parametrize("composite", [AttnLRPComposite(), EpsilonPlus(), None])
def test_a_compiled_function_is_refused_by_name(composite):
    function = torch.compile(torch.nn.Linear(3, 2).forward, backend="eager")
    with pytest.raises(TypeError, match=r"of type function, expected a torch\.nn\.Module"):
        InputXGradient(function, composite)(torch.ones(1, 3), targets.Label(0))


def test_replicas_are_refused_by_name(tmp_path):
    import torch.distributed as distributed

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 2))
        with pytest.raises(ValueError, match=r"explain model\.module"):
            InputXGradient(model, AttnLRPComposite())(torch.ones(1, 3), targets.Label(0))
        InputXGradient(model.module, AttnLRPComposite())(torch.ones(1, 3), targets.Label(0))
    finally:
        distributed.destroy_process_group()
    # without several devices it is the module itself
    relevance = InputXGradient(torch.nn.DataParallel(model.module), AttnLRPComposite())(
        torch.ones(1, 3), targets.Label(0)
    )[1]
    torch.testing.assert_close(relevance, model.module.weight[:1].detach())


class Written(torch.nn.Module):
    """A linear layer, and a function of what it gives."""

    def __init__(self, function):
        super().__init__()
        self.linear, self.function = torch.nn.Linear(4, 4), function

    def forward(self, x):
        return self.function(self.linear(x))


def over(x):
    x.mul_(2).add_(x)
    return x.tanh_()


def signals(model, composite, form):
    x = torch.randn(2, 4, requires_grad=True)
    torch.compiler.reset()
    with (input_x_gradient(composite) if form == "gradient" else composite).context(model):
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        return [torch.autograd.grad(output, x, output.detach())[0] for output in (compiled(x), model(x))]


@pytest.mark.parametrize("form", ["gradient", "relevance"])
@pytest.mark.parametrize(
    "function", [over, lambda x: x.mT.mT * 2, lambda x: x.T.T, lambda x: x / x.square().sum().sqrt()]
)
def test_writes_and_attributes_of_tensors_when_compiled(function, form):
    torch.testing.assert_close(*signals(Written(function), AttnLRPComposite(), form))


@pytest.mark.parametrize("composite", [AttnLRPComposite, CPLRPComposite])
@pytest.mark.parametrize(
    "function", [lambda x: x.exp() / x.exp().sum(-1, True), torch.erfinv], ids=["exp/sum", "erfinv"]
)
def test_a_trace_refuses_what_it_cannot_tell(function, composite):
    with pytest.raises(RuntimeError, match=r"UnknownOperationError.*no rule is known for"):
        signals(Written(function), composite(), "gradient")


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


def with_functions_disabled(x):
    with torch._C.DisableTorchFunction():
        return x * x


#: What a trace does not show to the rules, with the name in the error.
UNSEEN = {
    "abs": lambda x: abs(x),
    "relu_": lambda x: torch.relu_(x.clone()),
    "leaky_relu_": lambda x: torch.nn.functional.leaky_relu_(x.clone()),
    "selu_": lambda x: torch.selu_(x.clone()),
    "exp_": lambda x: torch.exp_(x.clone()),
    "autograd function": Square.apply,
    "mul": with_functions_disabled,
}


class Followed(torch.nn.Module):
    """A function between two layers, the second of which may have a rule of its own."""

    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.function = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


@pytest.mark.parametrize("form", ["gradient", "relevance"])
@pytest.mark.parametrize("name", UNSEEN)
def test_what_a_trace_does_not_show_is_refused_by_its_line(name, form):
    with pytest.raises(RuntimeError, match=rf"UnknownOperationError: got [\s\S]*{name}[\s\S]*in the line"):
        signals(Followed(UNSEEN[name]), AttnLRPComposite(), form)


@pytest.mark.parametrize("name", [None, "last"])
def test_what_a_trace_does_not_show_is_refused_without_a_full_graph_and_beside_rules_of_layers(name):
    rules = [] if name is None else [(name, Gamma(0.1))]
    torch.compiler.reset()
    model, x = Followed(lambda x: abs(x)), torch.randn(2, 4, requires_grad=True)
    with (
        input_x_gradient(CPLRPComposite(name_map=rules)).context(model),
        pytest.raises(RuntimeError, match="got abs in the line"),
    ):
        torch.compile(model, backend="aot_eager")(x)


def at_a_break(function):
    """Return a function after which a compiler breaks its graph, by printing."""

    def broken(x):
        y = function(x)
        print(end="")
        return y

    return broken


@pytest.mark.parametrize("whole", [False, True], ids=["the model", "a function around it"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("form", ["gradient", "relevance"])
def test_a_model_that_breaks_the_graph_is_explained_as_it_was_written(form, nested, whole):
    x, pieces = torch.randn(2, 4, dtype=torch.float64, requires_grad=True), []

    def backend(graph, _):
        pieces.append(graph)
        return graph.forward

    for function in (torch.selu_, torch.exp_, lambda x: torch.nn.functional.leaky_relu_(x, 0.3), abs):
        model = Followed(at_a_break(lambda x, function=function: function(x.clone()))).double().eval()
        composite = AttnLRPComposite()
        with (input_x_gradient(composite) if form == "gradient" else composite).context(model):
            torch.compiler.reset()
            # what is around the model may be compiled
            run = torch.compile((lambda x, model=model: model(x) * 1) if whole else model, backend=backend)
            with torch._dynamo.config.patch(nested_graph_breaks=nested):
                outputs = run(x), model(x)
        got, expected = (torch.autograd.grad(output, x, torch.ones(2, 4).double())[0] for output in outputs)
        torch.testing.assert_close(got, expected)
        assert all(node.target is not torch._C._nn.linear for graph in pieces for node in graph.graph.nodes)


def test_what_no_rule_knows_is_refused_where_a_model_breaks_the_graph():
    torch.compiler.reset()
    x = torch.randn(2, 4, requires_grad=True)
    with (
        input_x_gradient(AttnLRPComposite(strict=True)).context(Followed(at_a_break(Square.apply))) as model,
        pytest.raises(UnknownOperationError, match="Square"),
    ):
        torch.compile(model, backend="eager")(x)


def test_what_is_plain_or_takes_no_relevance_may_be_hidden_from_a_trace():
    def function(x):
        mask = abs(x.detach()) > 0.1
        return torch.dropout_(x.clone(), 0.0, False) * mask

    torch.testing.assert_close(*signals(Followed(function), AttnLRPComposite(), "gradient"))
    # inside of a module with a rule of its own there is none to see anything
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), Followed(lambda x: abs(x)))
    torch.testing.assert_close(*signals(model, AttnLRPComposite(name_map=[("1", Identity())]), "gradient"))


def test_the_first_thing_that_a_thread_does_may_be_to_compile():
    # the thread's state has all of its entries from the start, or the compiler's guards see the first write add one
    with ThreadPoolExecutor(1) as pool:
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        torch.testing.assert_close(*pool.submit(signals, model, AttnLRPComposite(), "gradient").result())


@pytest.mark.parametrize("form", ["gradient", "relevance"])
def test_what_a_rule_keeps_is_not_written_over_when_compiled(form):
    def written(x):
        y = x * 2
        z = torch.nn.functional.gelu(y)
        # torch refuses to go back through this where it runs without a compiler
        y.mul_(3)
        return z

    model = Written(lambda x: torch.nn.functional.gelu(x * 2))
    x = torch.randn(2, 4, requires_grad=True)
    composite = input_x_gradient(AttnLRPComposite()) if form == "gradient" else AttnLRPComposite()
    torch.compiler.reset()
    with composite.context(model):
        output = model(x)
        (expected,) = torch.autograd.grad(output, x, output.detach())
        model.function = written
        output = torch.compile(model, backend="aot_eager", fullgraph=True)(x)
        torch.testing.assert_close(torch.autograd.grad(output, x, output.detach())[0], expected)
