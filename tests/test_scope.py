"""The context holds for one model instance, and leaves no trace."""

import copy

import models
import pytest
import torch
import torch.utils.checkpoint
import zennit.canonizers
import zennit.rules
from zennit.composites import EpsilonPlus
from zennit.core import Composite

from zennit_attn import AttnLRPComposite, CPLRPComposite, GammaViTComposite, InputXGradient, input_x_gradient
from zennit_attn.errors import UnknownOperationError, UnknownOperationWarning
from zennit_attn.rules import CPLRP, AttnLRP, Gamma, Operators

MAKERS = {"llama": models.llama, "gpt2": models.gpt2, "torchvision_vit": models.torchvision_vit}


def build(name):
    model = MAKERS[name]().double().eval()
    shape = (2, 3, 32, 32) if "vit" in name else (2, models.POSITIONS, models.WIDTH)
    return model, torch.randn(shape, dtype=torch.float64)


def gradient(model, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(models.logits_of(model, x).max(-1)[0].sum(), x)[0]


def state(model):
    """Everything of a model that a context might leave changed."""
    config = getattr(model, "config", None)
    return {
        "state_dict": {key: (value.data_ptr(), value.clone()) for key, value in model.state_dict().items()},
        "parameters": [(name, id(value), value.requires_grad) for name, value in model.named_parameters()],
        "modules": [(name, id(module), module.training) for name, module in model.named_modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "hooks": [
            (list(module._forward_hooks), list(module._forward_pre_hooks), list(module._backward_hooks))
            for module in model.modules()
        ],
        "classes": [type(module).forward for module in model.modules()],
        "config": None if config is None else (config.to_dict(), config._attn_implementation),
    }


def assert_same_state(got, expected):
    for key, value in expected["state_dict"].items():
        assert got["state_dict"][key][0] == value[0]
        assert torch.equal(got["state_dict"][key][1], value[1])
    assert {**got, "state_dict": None} == {**expected, "state_dict": None}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("form", ["relevance", "gradient"])
@pytest.mark.parametrize("name", MAKERS)
def test_nothing_is_left_after_the_context(name, form, fails):
    model, x = build(name)
    next(model.parameters()).requires_grad_(False)
    before, plain = state(model), gradient(model, x)
    composite = GammaViTComposite() if "vit" in name else AttnLRPComposite(layer_map=[("Linear", Gamma(0.1))])
    if name == "gpt2":
        composite = AttnLRPComposite(layer_map=[("Conv1D", Gamma(0.1))])
    composite = input_x_gradient(composite) if form == "gradient" else composite
    if fails:
        with pytest.raises((RuntimeError, AssertionError)), composite.context(model):
            models.logits_of(model, x[..., :-1])
    else:
        with composite.context(model):
            assert not torch.allclose(gradient(model, x), plain)
    assert_same_state(state(model), before)
    assert torch.equal(gradient(model, x), plain)


@pytest.mark.parametrize("form", ["relevance", "gradient"])
@pytest.mark.parametrize("name", MAKERS)
def test_a_second_instance_is_not_changed(name, form):
    model, x = build(name)
    other = copy.deepcopy(model)
    plain = gradient(other, x)
    composite = AttnLRPComposite()
    with (input_x_gradient(composite) if form == "gradient" else composite).context(model):
        assert torch.equal(gradient(other, x), plain)
        assert not torch.allclose(gradient(model, x), plain)
        assert torch.equal(gradient(other, x), plain)


def test_switching_composites_in_one_process():
    model, x = build("llama")
    plain = gradient(model, x)
    attnlrp, cp = input_x_gradient(AttnLRPComposite()), input_x_gradient(CPLRPComposite())
    found = []
    for composite in (attnlrp, cp, attnlrp, cp):
        with composite.context(model):
            found.append(gradient(model, x))
        assert torch.equal(gradient(model, x), plain)
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize("form", ["relevance", "gradient"])
@pytest.mark.parametrize("name", MAKERS)
def test_backward_after_the_context_gives_the_same(name, form):
    model, x = build(name)
    composite = GammaViTComposite() if "vit" in name else AttnLRPComposite()
    composite = input_x_gradient(composite) if form == "gradient" else composite
    leaf = x.clone().requires_grad_()
    with composite.context(model):
        logits = models.logits_of(model, leaf)
        start = logits.detach() * (logits == logits.max(-1, keepdim=True)[0])
        (inside,) = torch.autograd.grad(logits, leaf, start, retain_graph=True)
    (outside,) = torch.autograd.grad(logits, leaf, start)
    assert torch.equal(inside, outside)


def test_backward_inside_of_the_forward_is_not_swallowed():
    class Inner(torch.nn.Module):
        def forward(self, x):
            y = x * x
            (inner,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
            return y + 0 * inner

    x = torch.tensor([1.0, 2.0], requires_grad=True)
    with input_x_gradient(AttnLRPComposite(strict=True)).context(Inner()) as model:
        (signal,) = torch.autograd.grad(model(x).sum(), x)
    assert torch.equal(signal, x.detach())


def test_entering_twice_is_an_error():
    model, x = build("llama")
    composite = input_x_gradient(AttnLRPComposite())
    with composite.context(model):
        expected = gradient(model, x)
        with pytest.raises(RuntimeError, match="registered already"):
            composite.register(model)
        # and the context is still whole
        assert torch.equal(gradient(model, x), expected)
    assert not torch.allclose(gradient(model, x), expected)


def test_copying_an_explained_model_is_an_error():
    # the copy's forward would be that of the original
    model, _ = build("llama")
    with AttnLRPComposite().context(model), pytest.raises(RuntimeError, match="copy"):
        copy.deepcopy(model)
    copy.deepcopy(model)


@pytest.mark.parametrize("inner", [CPLRPComposite(), EpsilonPlus(), input_x_gradient(EpsilonPlus())])
def test_nesting_two_composites_is_an_error(inner):
    model, x = build("llama")

    def nest():
        with AttnLRPComposite().context(model), inner.context(model):
            gradient(model, x)

    with pytest.raises(RuntimeError, match="cannot be nested"):
        nest()
    nested_the_other_way = AttnLRPComposite()
    with inner.context(model), pytest.raises(RuntimeError, match="cannot be nested"):
        nested_the_other_way.register(model)
    assert torch.equal(gradient(model, x), gradient(copy.deepcopy(model), x))


def test_a_composite_on_a_part_of_an_explained_model_is_an_error():
    model, _ = build("llama")
    with AttnLRPComposite().context(model), pytest.raises(RuntimeError, match="cannot be nested"):
        CPLRPComposite().register(model.model.layers[1])


def test_one_form_in_one_graph():
    model, x = build("llama")
    rule = input_x_gradient(AttnLRP())

    def mapping(ctx, name, module):
        return {"": AttnLRP(), "model.layers.0.mlp": rule}.get(name)

    with Composite(mapping).context(model), pytest.raises(RuntimeError, match="one graph has one form"):
        models.logits_of(model, x.requires_grad_())


def test_inactive_is_refused():
    with pytest.raises(RuntimeError, match="act in the forward"):
        AttnLRPComposite().inactive()


@pytest.mark.parametrize("form", ["relevance", "gradient"])
def test_the_innermost_module_with_rules_decides(form):
    model, x = build("llama")
    uniform, _ = models.explain(model, AttnLRPComposite(), x, form)
    value, _ = models.explain(model, CPLRPComposite(), x, form)
    by_type, _ = models.explain(
        model, AttnLRPComposite(layer_map=[("LlamaAttention", Operators(attention="value"))]), x, form
    )
    by_name, _ = models.explain(
        model, AttnLRPComposite(name_map=[("model.layers.*.self_attn", Operators(attention="value"))]), x, form
    )
    by_role, _ = models.explain(
        model, AttnLRPComposite(role_map=[("attention", Operators(attention="value"))]), x, form
    )
    both, _ = models.explain(
        model,
        AttnLRPComposite(role_map=[("attention", CPLRP())], layer_map=[("LlamaMLP", Operators(product="gate"))]),
        x,
        form,
    )
    assert torch.equal(by_type, by_name)
    assert torch.equal(by_type, by_role)
    assert not torch.allclose(by_type, uniform)
    assert not torch.allclose(by_type, value)
    torch.testing.assert_close(both, value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("form", ["relevance", "gradient"])
def test_several_targets_from_one_forward(form, batched):
    model, x = build("llama")
    composite = AttnLRPComposite(layer_map=[("LlamaMLP", AttnLRP()), ("Linear", zennit.rules.Gamma(0.1))])
    composite = input_x_gradient(composite) if form == "gradient" else composite
    labels = (3, 17, 41)

    def start(logits, label):
        weights = torch.nn.functional.one_hot(torch.tensor([label] * len(logits)), models.VOCABULARY).to(logits)
        return weights if form == "gradient" else weights * logits.detach()

    alone = []
    with composite.context(model):
        for label in labels:
            leaf = x.clone().requires_grad_()
            logits = models.logits_of(model, leaf)
            alone.append(torch.autograd.grad(logits, leaf, start(logits, label))[0])
        leaf = x.clone().requires_grad_()
        logits = models.logits_of(model, leaf)
        starts = torch.stack([start(logits, label) for label in labels])
        if batched:
            (together,) = torch.autograd.grad(logits, leaf, starts, is_grads_batched=True)
        else:
            together = torch.stack([torch.autograd.grad(logits, leaf, row, retain_graph=True)[0] for row in starts])
    # float32 islands of RMSNorm, batched or not
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-6, atol=1e-12)


def test_second_order_gradients():
    # fused attention kernels have no second derivative
    model, x = models.gpt2("eager").double().eval(), torch.randn(2, models.POSITIONS, models.WIDTH, dtype=torch.float64)
    composite = input_x_gradient(AttnLRPComposite())
    direction = torch.randn_like(x)

    def relevance(x, **more):
        with composite.context(model):
            logits = models.logits_of(model, x)[:, 5].sum()
            (signal,) = torch.autograd.grad(logits, x, **more)
        return (x * signal * direction).sum()

    leaf = x.clone().requires_grad_()
    (second,) = torch.autograd.grad(relevance(leaf, create_graph=True), leaf)
    assert second.isfinite().all()
    # it is not the gradient alone that depends on x
    (first,) = torch.autograd.grad(
        (leaf * torch.autograd.grad(models.logits_of(model, leaf)[:, 5].sum(), leaf)[0] * direction).sum(), leaf
    )
    assert not torch.allclose(second, first)


def test_second_order_in_the_relevance_form_is_an_error():
    model, x = build("llama")
    leaf = x.clone().requires_grad_()
    with AttnLRPComposite().context(model):
        logits = models.logits_of(model, leaf)
        with pytest.raises(RuntimeError, match="gradient form"):
            torch.autograd.grad(logits, leaf, logits, create_graph=True)


@pytest.mark.filterwarnings("ignore:.*use_cache.*")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("form", ["relevance", "gradient"])
@pytest.mark.parametrize("rule", [None, Gamma(0.1), zennit.rules.Gamma(0.1)])
def test_gradient_checkpointing(form, reentrant, rule):
    model, x = build("llama")
    composite = AttnLRPComposite(layer_map=[("Linear", rule)] if rule else None)
    expected, _ = models.explain(model, composite, x, form, use_cache=False)
    # transformers before 5.2x calls it gradient_checkpointing_enable
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    # on each layer, on the model before transformers 4.5x
    checkpointed = [module for module in model.modules() if hasattr(module, "_gradient_checkpointing_func")]
    for module in checkpointed:
        # it takes effect in training mode only; what is inside, dropout among it, stays in eval mode
        module.training = True
    own = [module._gradient_checkpointing_func for module in checkpointed]
    x = x.clone().requires_grad_()
    converted = input_x_gradient(composite) if form == "gradient" else composite

    def relevance(inside):
        with converted.context(model):
            largest = models.logits_of(model, x, use_cache=False).max(-1)[0]
            start = torch.ones_like(largest) if form == "gradient" else largest.detach()
            if inside:
                largest.backward(start)
        if not inside:
            largest.backward(start)
        return x.detach() * x.grad if form == "gradient" else x.grad

    torch.testing.assert_close(relevance(True), expected, rtol=1e-6, atol=1e-12)
    assert own == [module._gradient_checkpointing_func for module in checkpointed]
    with pytest.raises(RuntimeError, match="inside of the context"):
        relevance(False)


@pytest.mark.parametrize("name", MAKERS)
def test_frozen_models_stay_frozen(name):
    model, x = build(name)
    model.requires_grad_(False)
    with AttnLRPComposite().context(model):
        gradient(model, x)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_kernels_that_no_rule_sees_are_refused():
    model, _ = build("llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="sdpa"):
        AttnLRPComposite().register(model)
    assert "forward" not in vars(model)


@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_scripts_are_refused():
    model = torch.nn.Sequential(torch.jit.script(torch.nn.ReLU()))
    with pytest.raises(ValueError, match="'0' is a script"):
        AttnLRPComposite().register(model)
    assert "forward" not in vars(model)


def test_what_a_tracer_wrote_is_explained_as_its_original():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)

        def forward(self, x):
            return torch.nn.functional.silu(self.first(x)) * self.second(x)

    model, x = Model(), torch.randn(2, 3)
    composite = AttnLRPComposite(strict=True)
    expected, _ = models.explain(model, composite, x)
    relevance, _ = models.explain(torch.fx.symbolic_trace(model), composite, x)
    torch.testing.assert_close(relevance, expected)


def test_relevance_that_is_not_finite_raises():
    model, x = build("torchvision_vit")
    models.scramble(model)
    x[:, :, :8] = 0
    composite = input_x_gradient(AttnLRPComposite(role_map=[("patch_embedding", zennit.rules.Flat())]))
    with pytest.raises(RuntimeError, match="exactly zero"):
        InputXGradient(model, composite, lambda output: output)(x)


def test_a_transform_around_the_model_is_an_error():
    model, x = build("llama")
    with input_x_gradient(AttnLRPComposite()).context(model), pytest.raises(RuntimeError, match=r"torch\.func"):
        torch.func.grad(lambda x: models.logits_of(model, x)[0, 3])(x)


class Hidden(torch.autograd.Function):
    """An operation that no mode sees."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


def test_hidden_functions_are_reported_after_a_forward_without_a_graph():
    class Model(torch.nn.Module):
        def forward(self, x):
            return Hidden.apply(x)

    model, x = Model(), torch.randn(3)
    with input_x_gradient(AttnLRPComposite()).context(model):
        with torch.no_grad():
            model(x)
        with pytest.warns(UnknownOperationWarning, match="Hidden"):
            model(x.requires_grad_())


def test_reentrant_checkpoints_that_run_without_rules_are_reported():
    class Model(torch.nn.Module):
        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(lambda x: x * x, x, use_reentrant=True)

    with (
        input_x_gradient(AttnLRPComposite(strict=True)).context(Model()) as model,
        pytest.raises(UnknownOperationError, match="Checkpoint"),
    ):
        model(torch.randn(3, requires_grad=True))


@pytest.mark.skipif(torch.__version__ < "2.7", reason="torch does not tell that a checkpoint is running")
def test_checkpoints_that_keep_tensors_of_no_rule_are_reported():
    class Model(torch.nn.Module):
        def forward(self, x):
            # computed again, the hyperbolic tangent keeps its output where the rule needs the input
            return torch.utils.checkpoint.checkpoint(torch.tanh, x, use_reentrant=False)

    with (
        input_x_gradient(AttnLRPComposite(strict=True)).context(Model()) as model,
        pytest.raises(UnknownOperationError, match="checkpoint"),
    ):
        model(torch.randn(3, requires_grad=True))


def test_what_was_computed_of_a_parameter_before_the_context_is_reported():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.kept = torch.nn.Parameter(torch.rand(3)), None

        def forward(self, x):
            if self.kept is None:
                self.kept = self.scale.exp()
            return x * self.kept

    model, x = Model(), torch.randn(3, requires_grad=True)
    with torch.no_grad():
        model(x)
    with AttnLRPComposite(strict=True).context(model):
        model(x)
    # a model is looked at once
    model = Model()
    model(x)
    with (
        AttnLRPComposite().context(model),
        pytest.warns(UnknownOperationWarning, match="'scale' before the context"),
    ):
        model(x)


def test_parameters_that_are_thawed_inside_of_the_context_are_an_error():
    model, x = build("llama")
    with AttnLRPComposite().context(model):
        model.lm_head.weight.requires_grad_(True)
        with pytest.raises(RuntimeError, match=r"lm_head\.weight"):
            models.logits_of(model, x)


def test_parameters_of_a_functional_call_have_to_be_frozen():
    model, x = torch.nn.Sequential(torch.nn.Linear(3, 3)), torch.randn(2, 3, requires_grad=True)
    given = {name: value.detach().clone() for name, value in model.named_parameters()}
    with AttnLRPComposite().context(model):
        torch.func.functional_call(model, given, (x,))
        given["0.weight"].requires_grad_()
        with pytest.raises(RuntimeError, match=r"'0\.weight' requires grad"):
            torch.func.functional_call(model, given, (x,))


def test_a_module_that_is_put_in_inside_of_the_context_is_an_error():
    model, x = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(3, 3))), torch.randn(2, 3, requires_grad=True)
    with AttnLRPComposite().context(model):
        model[0].append(torch.nn.ReLU())
        model(x)
        model[0][0] = torch.nn.Linear(3, 3)
        with pytest.raises(RuntimeError, match=r"Linear was put in as '0\.0'"):
            model(x)


@pytest.mark.parametrize("form", ["relevance", "gradient"])
def test_gradients_can_be_retained_at_a_gate(form):
    model, x = build("llama")
    composite = CPLRPComposite(strict=True)
    gates = []

    def keep(module, args, output):
        output.retain_grad()
        gates.append(output)

    model.model.layers[0].mlp.act_fn.register_forward_hook(keep)
    expected, _ = models.explain(model, composite, x, form)
    assert expected.abs().max() > 0
    # a gate is a constant under CP-LRP
    assert gates[0].grad is None or float(gates[0].grad.abs().max()) == 0


def test_describing_a_model_inside_of_its_context():
    model, x = build("torchvision_vit")
    composite = input_x_gradient(GammaViTComposite())
    before = composite.describe(model)
    with composite.context(model):
        expected = gradient(model, x)
        assert composite.describe(model) == before
        assert torch.equal(gradient(model, x), expected)
    assert [name for name, _ in model.named_modules() if name.endswith(".query")] == []


def test_a_canonizer_that_fails_leaves_the_model_as_it_was():
    class Fails(zennit.canonizers.Canonizer):
        def apply(self, root_module):
            raise KeyError("no")

        def register(self):
            """Nothing to do."""

        def remove(self):
            """Nothing to do."""

    model, _ = build("torchvision_vit")
    before = state(model)
    composite = GammaViTComposite(canonizers=[Fails()])
    for use in (composite.describe, composite.register):
        with pytest.raises(KeyError):
            use(model)
        assert_same_state(state(model), before)
