"""An error or an interrupt at any line of an explanation leaves a model, and the thread, as they were."""

import copy
import gc
import random
import sys
import warnings
import weakref

import models
import pytest
import torch
import zennit
import zennit.rules
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
from torch import nn

import zennit_attn
from zennit_attn import AttnLRPComposite, CPLRPComposite, Explainer, InputXGradient, input_x_gradient, release, targets
from zennit_attn.composites import claims
from zennit_attn.engine import handles
from zennit_attn.engine.state import state
from zennit_attn.rules import Gamma

ROOMS = tuple(module.__path__[0] for module in (zennit_attn, zennit))
IDS = torch.tensor([[3, 1, 4, 1, 5]])


class Stop(Exception):
    """An error of nobody's."""


class At:
    """Raise something at the n-th line that is run inside of the package or of zennit, or count the lines."""

    def __init__(self, number, error):
        self.left, self.error, self.count = number, error, 0

    def __enter__(self):
        sys.settrace(self.enter)
        return self

    def __exit__(self, *error):
        sys.settrace(None)

    def enter(self, frame, event, arg):
        return self.line if frame.f_code.co_filename.startswith(ROOMS) else None

    def line(self, frame, event, arg):
        if event == "line":
            self.count += 1
            if self.count == self.left:
                sys.settrace(None)
                raise self.error
        return self.line


def state_of(model):
    """Everything of a model, of this thread and of the package that may be left changed."""
    return {
        "weights": {key: (value.data_ptr(), value.sum().item()) for key, value in model.state_dict().items()},
        "parameters": [(name, id(value), value.requires_grad) for name, value in model.named_parameters()],
        "modules": [(name, id(module), module.training) for name, module in model.named_modules()],
        "attributes": [
            {key: value for key, value in vars(module).items() if not isinstance(value, dict)}
            for module in model.modules()
        ],
        "dicts": [
            {key: list(value) for key, value in vars(module).items() if isinstance(value, dict)}
            for module in model.modules()
        ],
        "thread": dict(vars(state)),
        "functions": torch._C._len_torch_function_stack(),
        "is seen": torch._C._is_torch_function_enabled(),
        "gradients": torch.is_grad_enabled(),
        "claims": len(claims._claims),
        "held": len(handles.FrozenHandle.holding),
        "warnings": (warnings.showwarning, list(warnings.filters)),
    }


def close(got, expected):
    # the same computation once more
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def simple():
    """Rules of zennit, a fused attention to be unfused, and everything that is collected inside."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0).double().eval()
    composite = AttnLRPComposite(layer_map=[("Linear", zennit.rules.Gamma(0.1))], strict=True)
    x = torch.randn(1, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def explain():
        with InputXGradient(model, composite, lambda output: output, modules="linear1") as attributor:
            return attributor(x)[1]

    return model, explain


def llama():
    """Token ids, latents, a ledger, and an attributor that is not open."""
    model = models.llama().double().eval()
    composite = input_x_gradient(AttnLRPComposite(layer_map=[("Linear", Gamma(0.1))]))
    attributor = InputXGradient(model, composite, targets.Label(2), latents="neuron")

    def explain():
        attributor.ledger(IDS)
        return attributor(IDS)[1]

    return model, explain


def compiled():
    """A model that was compiled in place."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.LayerNorm(8), nn.Linear(8, 2)).double().eval()
    model.compile(backend="aot_eager")

    def explain():
        with CPLRPComposite().context(model):
            x = torch.ones(1, 4, dtype=torch.float64).requires_grad_()
            return torch.autograd.grad(model(x)[0, 1], x)[0]

    return model, explain


def one_call():
    """An Explainer."""
    explainer = Explainer("examples/models/agreement")

    def explain():
        return torch.as_tensor(explainer("the keys to the old cabinet").parts[0].relevance)

    return explainer.model, explain


CASES = {case.__name__: case for case in (simple, llama, compiled, one_call)}
#: 500 points in all, of each kind.
POINTS = {"simple": 200, "llama": 50, "compiled": 200, "one_call": 50}


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_nothing_is_left_of_an_explanation_that_stops_at_any_line(name, error, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    model, explain = CASES[name]()
    expected = explain()
    before = state_of(model)
    with At(0, error) as lines:
        explain()
    numbers = random.Random(0).sample(range(1, lines.count + 1), POINTS[name])
    left = []
    for number in sorted(numbers):
        try:
            with At(number, error):
                explain()
        except BaseException:
            pass
        if state_of(model) != before:
            left.append(number)
            release(model)
    assert left == []
    copy.deepcopy(model)
    close(explain(), expected)


def test_a_model_that_was_left_with_rules_is_released():
    model, explain = llama()
    expected, before = explain(), state_of(model)
    composite = input_x_gradient(CPLRPComposite())
    composite.register(model)
    with pytest.raises(RuntimeError, match=r"zennit_attn\.release"):
        explain()
    release(model)
    composite.remove()
    assert state_of(model) == before
    close(explain(), expected)


def test_a_thread_in_which_something_was_left_on_is_healed():
    _, explain = llama()
    expected = explain()
    state.shielded = True
    close(explain(), expected)
    assert not state.shielded


@pytest.mark.parametrize("change", ["put on", "taken off", "put on and off"])
@pytest.mark.parametrize("frozen", [False, True])
def test_hooks_of_accelerate_that_come_or_go_inside(change, frozen):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 2)).requires_grad_(not frozen)
    if change == "taken off":
        add_hook_to_module(model[0], AlignDevicesHook(io_same_device=True))
    with AttnLRPComposite(layer_map=[("Linear", Gamma(0.1))]).context(model):
        if change != "taken off":
            add_hook_to_module(model[0], AlignDevicesHook(io_same_device=True))
        if change != "put on":
            remove_hook_from_module(model[0])
    assert all(parameter.requires_grad != frozen for parameter in model.parameters())
    names = {key for module in model.modules() for key in vars(module) if "forward" in key and "hooks" not in key}
    # what accelerate took off leaves the forward of the class on the instance
    assert names == {"put on": {"forward", "_old_forward"}, "taken off": {"forward"}, "put on and off": set()}[change]
    twin = copy.deepcopy(model)
    close(twin(torch.ones(1, 4)), model(torch.ones(1, 4)))
    remove_hook_from_module(model[0])
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.zero_()
    close(model(torch.ones(1, 4))[0], model[2].bias)


def test_parameters_that_are_replaced_inside_require_grad_as_those_before():
    model = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 2))
    model[2].requires_grad_(False)
    with AttnLRPComposite().context(model):
        for layer in (model[0], model[2]):
            layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, True, False, False]


def test_a_thousand_cycles_leak_nothing():
    model = nn.Sequential(nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 2))
    before, kinds = state_of(model), (handles.ForwardHandle, handles.FrozenHandle, claims.Claim, handles.WatchingHook)
    attributor = InputXGradient(model, input_x_gradient(AttnLRPComposite()), targets.Label(0))

    def alive():
        gc.collect()
        found = gc.get_objects()
        return len(found), sum(type(value) in kinds for value in found)

    for _ in range(10):
        attributor(torch.ones(1, 4))
    start = alive()
    for _ in range(1000):
        output = attributor(torch.ones(1, 4))[0]
    last = weakref.ref(output)
    del output
    end = alive()
    assert last() is None
    assert end[1] == start[1] == 0
    # what torch and pytest keep of their own, less than one object in ten cycles
    assert end[0] - start[0] < 100
    assert state_of(model) == before
