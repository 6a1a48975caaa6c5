"""Layer rules against zennit's own: the closed forms, and any rule or composite of zennit in both forms."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
import zennit.rules
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from zennit.attribution import Gradient
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import (
    BetaSmooth,
    DeconvNet,
    EpsilonAlpha2Beta1,
    EpsilonAlpha2Beta1Flat,
    EpsilonGammaBox,
    EpsilonPlus,
    EpsilonPlusFlat,
    ExcitationBackprop,
    GuidedBackprop,
    LayerMapComposite,
    NameLayerMapComposite,
    NameMapComposite,
)
from zennit.core import Stabilizer
from zennit.layer import Sum

from zennit_attn import AttnLRPComposite, InputXGradient, input_x_gradient, rules

FORMS = ["relevance", "gradient"]
PROPERTY = settings(deadline=None, max_examples=60, derandomize=True, database=None)


def randn(*shape, seed=0):
    """Standard normal values, away from zero."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x + 0.05 * torch.where(x < 0, -1.0, 1.0)


def fill(module, seed=0, scale=1.0):
    """Give a module's parameters random values."""
    for number, parameter in enumerate(module.parameters()):
        parameter.data = scale * randn(*parameter.shape, seed=1000 * seed + number)
    return module.eval()


def on_root(rule):
    """A composite of zennit with one rule, for the module itself."""
    return NameMapComposite([(("",), rule)])


def zennit_relevance(module, composite, x, relevance):
    """What zennit itself says."""
    with Gradient(module, composite) as attributor:
        output, result = attributor(x.clone(), relevance)
    return output.detach(), result.detach()


def our_relevance(module, composite, x, relevance, form):
    """The same by this package: relevance, or input times gradient."""
    if form == "relevance":
        return zennit_relevance(module, composite, x, relevance)
    leaf = x.clone().requires_grad_()
    with input_x_gradient(composite).context(module):
        output = module(leaf)
        signal = torch.where(relevance == 0, relevance, relevance / output.detach())
        (gradient,) = torch.autograd.grad(output, leaf, signal)
    return output.detach(), x * gradient


def assert_relevance(actual, expected, relevance, tolerance=1e-9):
    """Compare relevance, relative to the largest that there is: what is zero may be a difference of two sums."""
    scale = max(float(expected.abs().max()), float(relevance.abs().max()), 1e-3)
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)


# --------------------------------------------------------------------------------------------------------------------
# Closed forms
# --------------------------------------------------------------------------------------------------------------------


def transformers_conv1d(size_in, size_out, bias):
    from transformers.pytorch_utils import Conv1D

    module = Conv1D(size_out, size_in).double()
    if not bias:
        module.bias = torch.nn.Parameter(torch.zeros_like(module.bias))
    return module


@st.composite
def linear_modules(draw):
    """A linear module of some kind, and the shape of an input for it."""
    bias, batch = draw(st.booleans()), draw(st.integers(1, 3))
    kind = draw(st.sampled_from(["linear", "transformers", "convolution", "transposed"]))
    if kind in ("linear", "transformers"):
        size_in, size_out = draw(st.integers(1, 6)), draw(st.integers(1, 6))
        between = draw(st.lists(st.integers(1, 3), max_size=2))
        if kind == "linear":
            return torch.nn.Linear(size_in, size_out, bias, dtype=torch.float64), (batch, *between, size_in)
        return transformers_conv1d(size_in, size_out, bias), (batch, *between, size_in)
    dims = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 2]))
    channels = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    stride = tuple(draw(st.integers(1, 2)) for _ in range(dims))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(dims))
    kernel = tuple(draw(st.sampled_from([1, 2, 3] if dims < 3 else [1, 2])) for _ in range(dims))
    sizes = tuple(d * (k - 1) + 1 + draw(st.integers(0, 2)) for d, k in zip(dilation, kernel, strict=True))
    settings = {"stride": stride, "dilation": dilation, "groups": groups, "bias": bias, "dtype": torch.float64}
    if kind == "transposed":
        settings["padding"] = tuple(draw(st.integers(0, min(1, d * (k - 1)))) for d, k in zip(dilation, kernel))  # noqa: B905
        settings["output_padding"] = tuple(
            draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
        )
        types = torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d
    else:
        types = torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d
        padding = draw(st.sampled_from(["none", "some", "same", "valid"]))
        settings["padding"] = {
            "none": 0,
            "some": tuple(draw(st.integers(0, 1)) for _ in range(dims)),
            "same": "same",
            "valid": "valid",
        }[padding]
        settings["padding_mode"] = draw(st.sampled_from(["zeros", "zeros", "circular", "replicate"]))
        if padding == "same":  # PyTorch has it for stride 1 only, and warns about even kernels
            settings["stride"], kernel = 1, tuple(k if k % 2 else 1 for k in kernel)
    shape = (channels[0], *sizes) if draw(st.booleans()) else (batch, channels[0], *sizes)
    return types[dims - 1](*channels, kernel, **settings), shape


@st.composite
def cases(draw):
    """A linear module with random parameters, an input with zeros, and the relevance of its output."""
    module, shape = draw(linear_modules())
    seed = draw(st.integers(0, 10_000))
    fill(module, seed, draw(st.sampled_from([0.1, 1.0])))
    x = randn(*shape, seed=seed + 1)
    signs = draw(st.sampled_from(["both", "positive", "negative"]))
    x = {"both": x, "positive": x.abs(), "negative": -x.abs()}[signs]
    zeros = draw(st.sampled_from([0.0, 0.3]))
    x = x * (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) >= zeros)
    with torch.no_grad():
        output = module(x)
    # relevance at an output of exactly zero has its own test
    return module, x, randn(*output.shape, seed=seed + 2) * (output != 0)


def compare(case, ours, theirs):
    module, x, relevance = case
    expected_output, expected = zennit_relevance(module, on_root(theirs), x, relevance)
    for form in FORMS:
        output, actual = our_relevance(module, on_root(ours), x, relevance, form)
        torch.testing.assert_close(output, expected_output, rtol=0, atol=0)
        assert_relevance(actual, expected, relevance)


ZERO = st.sampled_from([None, "bias", ["bias"]])


@PROPERTY
@given(case=cases(), epsilon=st.sampled_from([1e-6, 1e-3, 0.5]), zero=ZERO)
def test_epsilon_equals_zennits(case, epsilon, zero):
    compare(case, rules.Epsilon(epsilon, zero), zennit.rules.Epsilon(epsilon, zero))


@PROPERTY
@given(
    case=cases(),
    gamma=st.sampled_from([0.0, 0.05, 0.25, 1.0, 10.0, 1000.0]),
    stabilizer=st.sampled_from([1e-6, 0.1]),
    zero=ZERO,
)
def test_gamma_equals_zennits(case, gamma, stabilizer, zero):
    compare(case, rules.Gamma(gamma, stabilizer, zero), zennit.rules.Gamma(gamma, stabilizer, zero))


@PROPERTY
@given(case=cases(), stabilizer=st.sampled_from([1e-6, 0.1]), zero=ZERO)
def test_zplus_equals_zennits(case, stabilizer, zero):
    compare(case, rules.ZPlus(stabilizer, zero), zennit.rules.ZPlus(stabilizer, zero))


@PROPERTY
@given(case=cases(), beta=st.sampled_from([0.0, 0.5, 1.0, 3.0]), stabilizer=st.sampled_from([1e-6, 0.1]), zero=ZERO)
def test_alpha_beta_equals_zennits(case, beta, stabilizer, zero):
    compare(
        case,
        rules.AlphaBeta(1 + beta, beta, stabilizer, zero),
        zennit.rules.AlphaBeta(1 + beta, beta, stabilizer, zero),
    )


#: Each closed form, and zennit's rule of the same name, with the same arguments.
PAIRS = {
    "epsilon": lambda package, **known: package.Epsilon(**known),
    "gamma": lambda package, **known: package.Gamma(0.25, **known),
    "gamma-1000": lambda package, **known: package.Gamma(1000.0, **known),
    "zplus": lambda package, **known: package.ZPlus(**known),
    "alpha-beta": lambda package, **known: package.AlphaBeta(2.0, 1.0, **known),
}


@pytest.mark.parametrize("zero", ["weight", ["weight", "bias"], []], ids=str)
@pytest.mark.parametrize("name", PAIRS)
def test_zeroed_parameters(name, zero):
    module, x = fill(torch.nn.Linear(5, 4, dtype=torch.float64)), randn(3, 5)
    case = module, x, randn(3, 4, seed=1)
    compare(case, PAIRS[name](rules, zero_params=zero), PAIRS[name](zennit.rules, zero_params=zero))


STABILIZERS = {
    "clip": Stabilizer(0.5, clip=True),
    "norm-scale": Stabilizer(0.1, norm_scale=True),
    "norm-scale-clip": Stabilizer(0.1, clip=True, norm_scale=True),
    "norm-scale-dim": Stabilizer(0.1, norm_scale=True, dim=(0,)),
    "function": lambda value: value + 0.3 * torch.where(value < 0, -1.0, 1.0).to(value),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stabilizer", STABILIZERS)
@pytest.mark.parametrize("name", PAIRS)
def test_stabilizers_of_zennit(name, stabilizer, form):
    """Any stabilizer that zennit's rule takes, with the same result."""
    module, x, relevance = fill(torch.nn.Linear(5, 4, dtype=torch.float64)), randn(3, 5), randn(3, 4, seed=1)
    argument = "epsilon" if name == "epsilon" else "stabilizer"
    ours, theirs = (PAIRS[name](package, **{argument: STABILIZERS[stabilizer]}) for package in (rules, zennit.rules))
    _, expected = zennit_relevance(module, on_root(theirs), x, relevance)
    _, actual = our_relevance(module, on_root(ours), x, relevance, form)
    assert_relevance(actual, expected, relevance)


@pytest.mark.parametrize("name", PAIRS)
def test_relevance_at_an_output_of_exactly_zero(name):
    """A sample that is zero everywhere, without bias: zennit gives it relevance zero, in the relevance form."""
    module, x = fill(torch.nn.Linear(5, 4, bias=False, dtype=torch.float64)), randn(3, 5)
    x[1] = 0
    relevance = randn(3, 4, seed=1)
    _, expected = zennit_relevance(module, on_root(PAIRS[name](zennit.rules)), x, relevance)
    _, actual = our_relevance(module, on_root(PAIRS[name](rules)), x, relevance, "relevance")
    assert_relevance(actual, expected, relevance)


@pytest.mark.parametrize("name", ["epsilon", "zplus", "alpha-beta"])
def test_relevance_at_contributions_that_cancel_exactly(name):
    """``z = 0`` of contributions that are not: the stabilizer decides, and the result is large, but finite."""
    module = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)
    module.weight.data = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    x, relevance = torch.ones(1, 2, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    _, expected = zennit_relevance(module, on_root(PAIRS[name](zennit.rules)), x, relevance)
    assert expected.abs().max() > 0
    _, actual = our_relevance(module, on_root(PAIRS[name](rules)), x, relevance, "relevance")
    assert_relevance(actual, expected, relevance)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", PAIRS)
def test_output_size_of_a_transposed_convolution(name, form):
    """Asked for at the call: the same as the output padding that it amounts to."""
    asked = torch.nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, dtype=torch.float64)
    padded = torch.nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1, dtype=torch.float64)
    fill(asked), fill(padded)
    x = randn(2, 2, 3, 4)
    relevance = randn(2, 3, 6, 8, seed=1)
    _, expected = zennit_relevance(padded, on_root(PAIRS[name](zennit.rules)), x, relevance)

    class Asks(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = asked

        def forward(self, x):
            return self.layer(x, output_size=[6, 8])

    composite = NameMapComposite([(("layer",), PAIRS[name](rules))])
    _, actual = our_relevance(Asks(), composite, x, relevance, form)
    assert_relevance(actual, expected, relevance)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", PAIRS)
def test_call_by_keyword_only(name, form):
    """zennit's own hooks never fire there."""

    class ByKeyword(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = fill(torch.nn.Linear(5, 4, dtype=torch.float64))
            self.conv1d = fill(transformers_conv1d(4, 3, True))

        def forward(self, x):
            return self.conv1d(x=self.linear(input=x))

    module, x, relevance = ByKeyword(), randn(3, 5), randn(3, 3, seed=1)
    positional = torch.nn.Sequential(module.linear, module.conv1d)
    _, expected = zennit_relevance(
        positional, NameMapComposite([(("0", "1"), PAIRS[name](zennit.rules))]), x, relevance
    )
    composite = NameMapComposite([(("linear", "conv1d"), PAIRS[name](rules))])
    _, actual = our_relevance(module, composite, x, relevance, form)
    assert_relevance(actual, expected, relevance)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("activation", ["Pass", "none", "identity"])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", PAIRS)
def test_networks_with_activations(name, inplace, activation, form):
    """Closed forms, with ReLUs that may write in place into what the rule of the layer before computed."""
    if activation == "identity" and inplace:
        pytest.skip("the identity rule is for functions that do not write in place")
    network = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 3, padding=1, dtype=torch.float64),
        torch.nn.ReLU(inplace),
        torch.nn.Conv2d(3, 3, 2, stride=2, bias=False, dtype=torch.float64),
        torch.nn.ReLU(inplace),
        torch.nn.Flatten(),
        torch.nn.Linear(12, 3, dtype=torch.float64),
    )
    fill(network, scale=0.5)
    x = randn(2, 2, 4, 4)
    relevance = randn(2, 3, seed=1)
    linear = (torch.nn.Conv2d, torch.nn.Linear)
    # without a rule, the gradient of ReLU passes on relevance that is zero where its gradient is: the same
    theirs = LayerMapComposite([(linear, PAIRS[name](zennit.rules)), ((torch.nn.ReLU,), zennit.rules.Pass())])
    rule = {"Pass": zennit.rules.Pass(), "none": None, "identity": rules.Identity()}[activation]
    ours = LayerMapComposite([(linear, PAIRS[name](rules)), ((torch.nn.ReLU,), rule)])
    output, expected = zennit_relevance(network, theirs, x, relevance)
    actual_output, actual = our_relevance(network, ours, x, relevance, form)
    torch.testing.assert_close(actual_output, output, rtol=0, atol=0)
    assert_relevance(actual, expected, relevance)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", PAIRS)
def test_a_layer_with_a_rule_whose_output_is_written_to(name, form):
    """``hidden = layer(x); hidden += position``, as many a model does: the rule keeps what it needs."""

    class Writes(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = fill(torch.nn.Linear(5, 4, dtype=torch.float64), 1)
            self.second = fill(torch.nn.Linear(4, 3, dtype=torch.float64), 2)

        def forward(self, x):
            hidden = self.first(x)
            hidden += 1.0
            return self.second(hidden).mul_(2.0)

    class DoesNotWrite(Writes):
        def forward(self, x):
            return 2.0 * self.second(self.first(x) + 1.0)

    module, x, relevance = Writes(), randn(2, 5), randn(2, 3, seed=3)
    composite = AttnLRPComposite(layer_map=[(torch.nn.Linear, PAIRS[name](rules))], strict=True)
    _, expected = our_relevance(DoesNotWrite(), composite, x, relevance, form)
    _, actual = our_relevance(module, composite, x, relevance, form)
    assert_relevance(actual, expected, relevance)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("kind", ["linear", "convolution", "conv1d"])
def test_half_precision_is_finite_and_close(kind, name, form):
    """bfloat16 rounds to 0.4 %; with sums of 64 terms the difference stays below 5 % by its norm."""
    module = {
        "linear": lambda: torch.nn.Linear(64, 32),
        "convolution": lambda: torch.nn.Conv2d(16, 8, 2),
        "conv1d": lambda: transformers_conv1d(64, 32, True),
    }[kind]()
    fill(module, scale=0.3)
    x = randn(*((4, 16, 3, 3) if kind == "convolution" else (4, 64)), seed=5)
    x[0, 0] = 0
    module, x = module.bfloat16(), x.bfloat16()
    with torch.no_grad():
        relevance = module(x).float()  # as where logits are explained: no division by a small output
    single = copy.deepcopy(module).float()
    _, expected = our_relevance(single, on_root(PAIRS[name](rules)), x.float(), relevance, form)
    _, actual = our_relevance(module, on_root(PAIRS[name](rules)), x, relevance.bfloat16(), form)
    assert actual.dtype == torch.bfloat16
    assert actual.isfinite().all()
    assert float((actual.float() - expected).norm() / expected.norm()) < 0.05


class Created(TorchDispatchMode):
    """The memory of every tensor of a size that an operation makes, for as long as it lives."""

    def __init__(self, size):
        super().__init__()
        self.size, self.storages, self.count = size, [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if isinstance(output, torch.Tensor) and output.numel() == self.size:
            self.storages.append(StorageWeakRef(output.untyped_storage()))
            self.count += 1
        return output

    def alive(self, weights):
        """Return how many there are now, beside the weights themselves."""
        own = [StorageWeakRef(weight.untyped_storage()) for weight in weights]
        return sum(not storage.expired() and storage not in own for storage in self.storages)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["gamma", "zplus", "alpha-beta"])
def test_no_copy_of_a_weight_outlives_a_layers_own_pass(name, form):
    model = torch.nn.Sequential(*(torch.nn.Linear(13, 13, dtype=torch.float64) for _ in range(3)))
    weights = [layer.weight.requires_grad_(False) for layer in model]
    composite = LayerMapComposite([(torch.nn.Linear, PAIRS[name](rules))])
    composite = composite if form == "relevance" else input_x_gradient(composite)
    alive = []
    # shapes that no activation has
    x = randn(2, 13).requires_grad_()
    with composite.context(model), Created(13 * 13) as created:
        hidden = [x]
        for layer in model:
            hidden.append(layer(hidden[-1]))
            alive.append(created.alive(weights))
        for tensor in hidden[1:3]:
            tensor.register_hook(lambda gradient: alive.append(created.alive(weights)))
        hidden[-1].sum().backward()
        alive.append(created.alive(weights))
    # the rules do make copies, in each pass through each layer
    assert created.count >= 6
    assert alive == [0] * 6


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)], ids=str)
@pytest.mark.parametrize("name", PAIRS)
def test_contributions_of_one_sign(name, dtype, tolerance, form):
    """Outputs without any negative, or any positive, contribution, as after a ReLU: P or N is zero.

    What is computed as a difference is not exactly zero, and the stabilizer of 1e-6 does not hide that. The reference
    is zennit in float64; zennit's own error is 2e-7 in single precision, and 0.5 % in bfloat16.
    """
    module = fill(torch.nn.Linear(16, 8, bias=False, dtype=torch.float64))
    module.weight.data[:4] = module.weight.data[:4].abs()
    module.weight.data[6:] = -module.weight.data[6:].abs()
    x = randn(4, 16, seed=5).abs()
    relevance = module(x).detach()
    _, expected = zennit_relevance(module, on_root(PAIRS[name](zennit.rules)), x, relevance)
    low = relevance.to(dtype)
    _, actual = our_relevance(module.to(dtype), on_root(PAIRS[name](rules)), x.to(dtype), low, form)
    assert float((actual.double() - expected).norm() / expected.norm()) < tolerance


def test_what_is_not_a_linear_map_is_refused():
    class Scaled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    for module in (torch.nn.LayerNorm(4), Scaled(4, 4), torch.nn.Bilinear(2, 2, 2)):
        for rule in (rules.Gamma(), rules.ZPlus(), rules.AlphaBeta()):
            with (
                pytest.raises(TypeError, match=type(module).__name__),
                on_root(rule).context(module),
            ):
                pytest.fail("registered")


@pytest.mark.parametrize(("alpha", "beta"), [(2.0, 2.0), (-1.0, -2.0), (1.0, 1.0), (0.0, -1.0)])
def test_weights_that_are_none_are_refused(alpha, beta):
    with pytest.raises(ValueError, match="alpha"):
        rules.AlphaBeta(alpha, beta)


# --------------------------------------------------------------------------------------------------------------------
# Second order, and batches of backward passes
# --------------------------------------------------------------------------------------------------------------------


def stack_of(kind):
    """One linear layer, two of them, or convolutions."""
    if kind == "one":
        return fill(torch.nn.Linear(4, 3, dtype=torch.float64), 3)
    if kind == "two":
        layers = [torch.nn.Linear(4, 5, dtype=torch.float64), torch.nn.Linear(5, 3, dtype=torch.float64)]
    else:
        layers = [torch.nn.Conv1d(2, 3, 2, dtype=torch.float64), torch.nn.ConvTranspose1d(3, 2, 2, dtype=torch.float64)]
    return fill(torch.nn.Sequential(*layers), 3)


LINEAR = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.ConvTranspose1d)


def assert_second_order(module, composite, x):
    """The derivative of ``Σ w x g(x)`` is that of the relevance: central differences, 1e-6 relative."""
    weight, chosen = randn(*x.shape, seed=6), randn(*module(x).shape, seed=7)

    def explained(x, create_graph=False):
        (gradient,) = torch.autograd.grad(module(x), x, chosen, create_graph=create_graph)
        return (weight * x * gradient).sum()

    with input_x_gradient(composite).context(module):
        leaf = x.clone().requires_grad_()
        (actual,) = torch.autograd.grad(explained(leaf, create_graph=True), leaf)
        expected, step = torch.zeros_like(x), 1e-5
        for place in range(x.numel()):
            shift = torch.zeros_like(x)
            shift.view(-1)[place] = step
            above, below = (explained((x + sign * shift).requires_grad_()).detach() for sign in (1, -1))
            expected.view(-1)[place] = (above - below) / (2 * step)
    # the differences are wrong by step² times a third derivative, and by rounding over step: 1e-10 each
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("name", PAIRS)
def test_second_order_gradients(name):
    """Of one layer: in a stack, second-order gradients go through the rules of the layers before, as zennit's do."""
    assert_second_order(stack_of("one"), LayerMapComposite([(LINEAR, PAIRS[name](rules))]), randn(2, 4, seed=5))


@pytest.mark.parametrize("name", PAIRS)
def test_second_order_gradients_of_zennits_rules(name):
    assert_second_order(stack_of("one"), on_root(PAIRS[name](zennit.rules)), randn(2, 4, seed=5))


def test_second_order_gradients_differ_from_those_of_a_frozen_ratio():
    """The test above would hold of a rule without second order, did the ratios not depend on the input."""
    module, x = stack_of("one"), randn(2, 4, seed=5).requires_grad_()
    with input_x_gradient(on_root(rules.Gamma(0.25))).context(module):
        (gradient,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), x)
    assert second.abs().max() > 1e-3


def test_the_relevance_form_has_no_second_order():
    module, x = stack_of("one"), randn(2, 4).requires_grad_()
    with on_root(rules.Gamma(0.25)).context(module), pytest.raises(RuntimeError, match="gradient form"):
        torch.autograd.grad(module(x).sum(), x, create_graph=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["one", "two", "convolutions"])
@pytest.mark.parametrize("name", PAIRS)
def test_batches_of_backward_passes_equal_a_loop(name, kind, form):
    module = stack_of(kind)
    x = (randn(2, 2, 4, seed=5) if kind == "convolutions" else randn(2, 4, seed=5)).requires_grad_()
    composite = LayerMapComposite([(LINEAR, PAIRS[name](rules))])
    with (input_x_gradient(composite) if form == "gradient" else composite).context(module):
        output = module(x)
        signals = randn(3, *output.shape, seed=8)
        (batched,) = torch.autograd.grad(output, x, signals, is_grads_batched=True, retain_graph=True)
        looped = [torch.autograd.grad(output, x, signal, retain_graph=True)[0] for signal in signals]
    # the same sums in another order
    torch.testing.assert_close(batched, torch.stack(looped), rtol=1e-12, atol=1e-12)


# --------------------------------------------------------------------------------------------------------------------
# Rules of zennit in both forms
# --------------------------------------------------------------------------------------------------------------------

ZENNIT = {
    "Epsilon": zennit.rules.Epsilon(1e-3),
    "Epsilon-0": zennit.rules.Epsilon(0.0),
    "Epsilon-zero-bias": zennit.rules.Epsilon(1e-3, zero_params="bias"),
    "Gamma": zennit.rules.Gamma(0.25),
    "ZPlus": zennit.rules.ZPlus(),
    "AlphaBeta": zennit.rules.AlphaBeta(2.0, 1.0),
    "ZBox": zennit.rules.ZBox(-3.0, 3.0),
    "Flat": zennit.rules.Flat(),
    "WSquare": zennit.rules.WSquare(),
    "Norm": zennit.rules.Norm(),
}

LAYERS = {
    "linear": (lambda: torch.nn.Linear(5, 4), (3, 5)),
    "convolution": (lambda: torch.nn.Conv2d(2, 4, 3, padding=1, stride=2), (2, 2, 5, 4)),
    "transposed": (lambda: torch.nn.ConvTranspose1d(2, 4, 3, stride=2), (2, 2, 4)),
    "conv1d": (lambda: transformers_conv1d(5, 4, True), (2, 3, 5)),
    "pooling": (lambda: torch.nn.AvgPool2d(2), (2, 2, 4, 4)),
}


def zennits_carriers(rule):
    """A rule of zennit in zennit's composite, and in a preset of this package."""
    return {"zennit": on_root(rule), "preset": AttnLRPComposite(name_map=[("", rule)])}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("carrier", ["zennit", "preset"])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", ZENNIT)
def test_rules_of_zennit_on_single_layers(name, layer, carrier, form):
    make, shape = LAYERS[layer]
    module, x = fill(make().double()), randn(*shape)
    relevance = randn(*module(x).shape, seed=1)
    if "zero" in name and layer == "pooling":
        pytest.skip("no bias")
    _, expected = zennit_relevance(module, on_root(ZENNIT[name]), x, relevance)
    _, actual = our_relevance(module, zennits_carriers(ZENNIT[name])[carrier], x, relevance, form)
    assert_relevance(actual, expected, relevance)


PLAIN = {
    "Pass": zennit.rules.Pass(),
    "ReLUDeconvNet": zennit.rules.ReLUDeconvNet(),
    "ReLUGuidedBackprop": zennit.rules.ReLUGuidedBackprop(),
    "ReLUBetaSmooth": zennit.rules.ReLUBetaSmooth(5.0),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("carrier", ["zennit", "preset"])
@pytest.mark.parametrize("name", PLAIN)
def test_plain_hooks_of_zennit_on_activations(name, carrier, inplace, form):
    """Relevance of both signs at outputs that are not zero, as it can be written as a gradient."""
    for make in (torch.nn.ReLU, torch.nn.SiLU):
        module, x = make(inplace), randn(3, 5)
        relevance = randn(3, 5, seed=1) * (make()(x) != 0)
        # zennit's own hook, which runs where nothing is converted, keeps an input that is written over in place
        reference = make(inplace) if (carrier, form) == ("zennit", "relevance") else make()
        _, expected = zennit_relevance(reference, on_root(PLAIN[name]), x, relevance)
        _, actual = our_relevance(module, zennits_carriers(PLAIN[name])[carrier], x, relevance, form)
        assert_relevance(actual, expected, relevance)


class ConvNet(torch.nn.Module):
    """A small network with the layers that zennit's composites know."""

    def __init__(self, batch_norm=False, inplace=False):
        super().__init__()
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3, padding=1),
            *([torch.nn.BatchNorm2d(4)] if batch_norm else []),
            torch.nn.ReLU(inplace),
            torch.nn.Conv2d(4, 5, 3),
            torch.nn.ReLU(inplace),
            torch.nn.AvgPool2d(2),
        )
        self.classifier = torch.nn.Sequential(torch.nn.Linear(20, 8), torch.nn.ReLU(inplace), torch.nn.Linear(8, 3))
        fill(self.double(), scale=0.4)
        for module in self.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_var = 1 + randn(4, seed=4).abs()
                module.running_mean = randn(4, seed=5)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", ["first", "everywhere"])
@pytest.mark.parametrize("name", ZENNIT)
def test_rules_of_zennit_in_a_network(name, place, form):
    """In the first layer; everywhere, but for the rules that give relevance to inputs that are exactly zero."""
    if place == "everywhere" and name in ("ZBox", "Flat", "WSquare"):
        pytest.skip("relevance at an activation of exactly zero cannot be written as a gradient")
    network, x, relevance = ConvNet(), randn(2, 3, 6, 6), randn(2, 3, seed=1)
    fallback = ZENNIT[name] if place == "everywhere" else zennit.rules.Epsilon(1e-3)
    composite = NameLayerMapComposite(
        [(("features.0",), ZENNIT[name])],
        [
            ((torch.nn.Conv2d, torch.nn.Linear), fallback),
            ((torch.nn.ReLU,), zennit.rules.Pass()),
            ((torch.nn.AvgPool2d,), zennit.rules.Norm()),
        ],
    )
    _, expected = zennit_relevance(network, composite, x, relevance)
    _, actual = our_relevance(network, composite, x, relevance, form)
    assert_relevance(actual, expected, relevance)


BOX = {"low": -3.0, "high": 3.0}
COMPOSITES = {
    "EpsilonPlus": EpsilonPlus,
    "EpsilonAlpha2Beta1": EpsilonAlpha2Beta1,
    "EpsilonPlusFlat": EpsilonPlusFlat,
    "EpsilonAlpha2Beta1Flat": EpsilonAlpha2Beta1Flat,
    "EpsilonGammaBox": lambda **known: EpsilonGammaBox(**BOX, **known),
    "ExcitationBackprop": ExcitationBackprop,
}


@pytest.mark.parametrize("attributor", ["context", "InputXGradient"])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("name", COMPOSITES)
def test_composites_of_zennit(name, batch_norm, inplace, attributor):
    """zennit's own presets, canonizers included; what they leave without a rule is the gradient in both."""
    if name == "ExcitationBackprop" and batch_norm:
        pytest.skip("it has no rule for the merged batch norm, which scales by 1 / sqrt(1 + eps) in zennit")
    network, x, relevance = ConvNet(batch_norm, inplace), randn(2, 3, 6, 6), randn(2, 3, seed=1)
    composite = COMPOSITES[name](canonizers=[SequentialMergeBatchNorm()] if batch_norm else [])
    plain = network(x).detach()
    try:
        output, expected = zennit_relevance(network, composite, x, relevance)
    except ValueError as error:
        # zennit merges a batch norm by setting its eps to zero, which torch 2.11 does not take
        pytest.skip(str(error))
    if attributor == "context":
        actual_output, actual = our_relevance(network, composite, x, relevance, "gradient")
    else:
        with InputXGradient(network, input_x_gradient(composite)) as attribute:
            actual_output, actual = attribute(x, relevance)
    torch.testing.assert_close(actual_output.detach(), output, rtol=0, atol=0)
    assert_relevance(actual, expected, relevance)
    # and the canonizer has put everything back
    torch.testing.assert_close(network(x).detach(), plain, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["GuidedBackprop", "DeconvNet", "BetaSmooth"])
def test_gradient_composites_of_zennit(name):
    """Composites with rules for ReLUs only pass on plain gradients elsewhere: there is nothing to convert."""
    network = ConvNet()
    composite = input_x_gradient(
        {"GuidedBackprop": GuidedBackprop, "DeconvNet": DeconvNet, "BetaSmooth": BetaSmooth}[name]()
    )
    with pytest.raises(ValueError, match=r"modified gradients[\s\S]*features\.0"):
        composite.register(network)
    assert not composite.handles


# --------------------------------------------------------------------------------------------------------------------
# Calls that zennit's hooks do not see, or see wrongly
# --------------------------------------------------------------------------------------------------------------------


class Positional(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = fill(torch.nn.Linear(5, 4, dtype=torch.float64), 1)
        self.outer = fill(torch.nn.Linear(4, 3, dtype=torch.float64), 2)

    def forward(self, x):
        return self.outer(self.inner(x))


class ByKeyword(Positional):
    def forward(self, x):
        return self.outer(input=self.inner(input=x))


GENERIC = [name for name in ZENNIT if name not in ("Epsilon-0",)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", GENERIC)
def test_calls_by_keyword_only(name, form):
    x, relevance = randn(3, 5), randn(3, 3, seed=1)
    theirs = LayerMapComposite([((torch.nn.Linear,), ZENNIT[name])])
    _, expected = zennit_relevance(Positional(), theirs, x, relevance)
    ours = AttnLRPComposite(layer_map=[(torch.nn.Linear, ZENNIT[name])])
    _, actual = our_relevance(ByKeyword(), ours, x, relevance, form)
    assert_relevance(actual, expected, relevance)
    if form == "gradient":  # a converted composite of zennit's own, too
        _, actual = our_relevance(ByKeyword(), theirs, x, relevance, form)
        assert_relevance(actual, expected, relevance)


class Add(torch.nn.Module):
    """A module of several inputs."""

    def forward(self, a, b, scale=1.0, keep=None):
        return a + scale * b if keep is None else (a + scale * b) * keep


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("by", ["position", "keyword", "mixed"])
def test_a_module_of_several_inputs(by, form):
    """The same as zennit's Sum of the stacked inputs, under the Norm rule."""
    a, b, relevance = randn(3, 5), randn(3, 5, seed=1), randn(3, 5, seed=2)
    rule = zennit.rules.Norm(1e-3)
    _, expected = zennit_relevance(Sum(dim=-1), on_root(rule), torch.stack([a, b], -1), relevance)
    module = Add()
    composite = AttnLRPComposite(name_map=[("", rule)])
    leaves = [x.clone().requires_grad_() for x in (a, b)]
    with (input_x_gradient(composite) if form == "gradient" else composite).context(module):
        output = {
            "position": lambda: module(*leaves),
            "keyword": lambda: module(a=leaves[0], b=leaves[1]),
            "mixed": lambda: module(leaves[0], b=leaves[1], keep=None),
        }[by]()
        signal = relevance / output.detach() if form == "gradient" else relevance
        signals = torch.autograd.grad(output, leaves, signal)
    for place, (leaf, received) in enumerate(zip(leaves, signals, strict=True)):
        actual = leaf.detach() * received if form == "gradient" else received
        assert_relevance(actual, expected[..., place], relevance)


@pytest.mark.parametrize("form", FORMS)
def test_an_input_that_does_not_depend_on_what_is_explained_is_a_constant(form):
    a, b, relevance = randn(3, 5), randn(3, 5, seed=1), randn(3, 5, seed=2)
    module, composite = Add(), AttnLRPComposite(name_map=[("", zennit.rules.Norm(1e-3))])
    leaf = b.clone().requires_grad_()
    with (input_x_gradient(composite) if form == "gradient" else composite).context(module):
        output = module(a, leaf, scale=2.0, keep=torch.ones(5, dtype=torch.float64))
        signal = relevance / output.detach() if form == "gradient" else relevance
        (received,) = torch.autograd.grad(output, leaf, signal)
    total = a + 2 * b
    expected = 2 * b / (total + 1e-3 * total.sign()) * relevance
    assert_relevance(b * received if form == "gradient" else received, expected, relevance)


class Nested(torch.nn.Linear):
    """A linear layer with two outputs, in some structure."""

    def __init__(self, structure):
        super().__init__(5, 4, dtype=torch.float64)
        self.structure = structure

    def forward(self, x):
        y = F.linear(x, self.weight, self.bias)
        first, second = y[..., :2], y[..., 2:]
        if self.structure == "tuple":
            return first, second
        if self.structure == "list":
            return [first, None, second]
        if self.structure == "dict":
            return {"first": first, "nested": (second, torch.tensor([1, 2]))}
        from transformers.modeling_outputs import BaseModelOutput

        return BaseModelOutput(last_hidden_state=first, hidden_states=(second,))


def unpack(output):
    """Return the two outputs."""
    if isinstance(output, tuple):
        return output
    if isinstance(output, list):
        return output[0], output[2]
    if "first" in output:
        return output["first"], output["nested"][0]
    return output.last_hidden_state, output.hidden_states[0]


class Reads(torch.nn.Module):
    def __init__(self, structure):
        super().__init__()
        self.inner = fill(Nested(structure), 1)

    def forward(self, x):
        return torch.cat(unpack(self.inner(x)), -1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("structure", ["tuple", "list", "dict", "ModelOutput"])
@pytest.mark.parametrize("name", [name for name in ZENNIT if name not in ("Epsilon-0", "ZBox")])
def test_outputs_of_any_structure(name, structure, form):
    """Several tensors in a tuple, a dict or a ModelOutput: together, what the one layer would give."""
    module, x, relevance = Reads(structure), randn(3, 5), randn(3, 4, seed=2)
    linear = torch.nn.Linear(5, 4, dtype=torch.float64)
    linear.load_state_dict(module.inner.state_dict())
    _, expected = zennit_relevance(linear, on_root(ZENNIT[name]), x, relevance)
    composite = AttnLRPComposite(name_map=[("inner", ZENNIT[name])])
    output, actual = our_relevance(module, composite, x, relevance, form)
    torch.testing.assert_close(output, linear(x).detach(), rtol=0, atol=0)
    assert_relevance(actual, expected, relevance)


class Twice(torch.nn.Module):
    """One layer, called twice in a forward."""

    def __init__(self):
        super().__init__()
        self.layer = fill(torch.nn.Linear(4, 4, dtype=torch.float64), 1)
        self.act = torch.nn.ReLU()

    def forward(self, x):
        return self.act(self.layer(self.act(self.layer(x))))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("source", ["zennit", "closed"])
@pytest.mark.parametrize("name", ["Epsilon", "Gamma", "ZPlus", "AlphaBeta", "Norm"])
def test_a_module_that_is_called_twice(name, source, form):
    """The same as in a network of two layers that share their parameters."""
    if name == "Norm" and source == "closed":
        pytest.skip("no closed form")
    module, x = Twice(), randn(3, 4)
    relevance = randn(3, 4, seed=1) * (module(x) != 0)
    unrolled = torch.nn.Sequential(module.layer, torch.nn.ReLU(), copy.deepcopy(module.layer), torch.nn.ReLU())
    activation = ((torch.nn.ReLU,), zennit.rules.Pass())
    theirs = LayerMapComposite([((torch.nn.Linear,), ZENNIT[name]), activation])
    closed = {
        "Epsilon": lambda: rules.Epsilon(1e-3),
        "Gamma": lambda: rules.Gamma(0.25),
        "ZPlus": rules.ZPlus,
        "AlphaBeta": rules.AlphaBeta,
    }
    rule = ZENNIT[name] if source == "zennit" else closed[name]()
    ours = AttnLRPComposite(layer_map=[(torch.nn.Linear, rule), (torch.nn.ReLU, zennit.rules.Pass())])
    _, expected = zennit_relevance(unrolled, theirs, x, relevance)
    _, actual = our_relevance(module, ours, x, relevance, form)
    assert_relevance(actual, expected, relevance)


@pytest.mark.parametrize("form", FORMS)
def test_one_rule_on_many_modules_keeps_them_apart(form):
    """One instance of a rule, for layers of different shapes, two backward passes interleaved."""
    module, composite = Positional(), AttnLRPComposite(layer_map=[(torch.nn.Linear, zennit.rules.Gamma(0.25))])
    theirs = LayerMapComposite([((torch.nn.Linear,), zennit.rules.Gamma(0.25))])
    inputs, relevance = [randn(3, 5, seed=seed) for seed in (0, 1)], randn(3, 3, seed=2)
    expected = [zennit_relevance(Positional(), theirs, x, relevance)[1] for x in inputs]
    leaves = [x.clone().requires_grad_() for x in inputs]
    with (input_x_gradient(composite) if form == "gradient" else composite).context(module):
        outputs = [module(leaf) for leaf in leaves]
        for leaf, output, wanted in zip(leaves, outputs, expected, strict=True):
            signal = relevance / output.detach() if form == "gradient" else relevance
            (received,) = torch.autograd.grad(output, leaf, signal)
            assert_relevance(leaf.detach() * received if form == "gradient" else received, wanted, relevance)


HIDDEN = {
    "parametrized": lambda: torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 3)),
    "weight_norm": lambda: torch.nn.utils.weight_norm(torch.nn.Linear(3, 3)),
    "spectral_norm": lambda: torch.nn.utils.spectral_norm(torch.nn.Linear(3, 3)),
    "inner": lambda: torch.nn.Sequential(torch.nn.Linear(3, 3)),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("name", HIDDEN)
def test_rules_that_cannot_modify_the_weight_are_refused(name):
    model, x = torch.nn.Sequential(HIDDEN[name]()), torch.ones(1, 3, requires_grad=True)
    for composite in (
        input_x_gradient(NameMapComposite([(["0"], zennit.rules.Gamma())])),
        AttnLRPComposite(name_map=[("0", zennit.rules.ZPlus())]),
        AttnLRPComposite(name_map=[("0", zennit.rules.Epsilon(zero_params="bias"))]),
    ):
        with pytest.raises(TypeError, match="makes its weight of other parameters"):
            composite.register(model)
    with AttnLRPComposite(name_map=[("0", zennit.rules.Epsilon())]).context(model):
        model(x)


def test_hooks_with_a_way_of_their_own_are_refused():
    class Own(zennit.rules.Pass):
        def register(self, module):
            return super().register(module)

    with pytest.raises(TypeError, match="register"):
        input_x_gradient(Own())


@pytest.mark.parametrize("given", [3, "Epsilon", zennit.rules.Epsilon, None], ids=str)
def test_what_is_no_rule_is_refused(given):
    with pytest.raises(TypeError, match="expected"):
        input_x_gradient(given)


def test_conversion_leaves_the_original_as_it_is():
    """The rule and the composite given still work in the relevance form, with zennit's own attributor."""
    composite = EpsilonPlus()
    network, x, relevance = ConvNet(), randn(2, 3, 6, 6), randn(2, 3, seed=1)
    _, before = zennit_relevance(network, composite, x, relevance)
    input_x_gradient(composite)
    our_relevance(network, composite, x, relevance, "gradient")
    _, after = zennit_relevance(network, composite, x, relevance)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert not any(math.isnan(value) for value in after.flatten().tolist())


@pytest.mark.parametrize("norm", [torch.nn.LayerNorm(4), torch.nn.RMSNorm(4), torch.nn.GroupNorm(2, 4)])
def test_a_rule_of_signs_on_a_norm_is_refused(norm):
    composite = AttnLRPComposite(layer_map=[(type(norm), zennit.rules.Gamma(0.1))])
    with pytest.raises(TypeError, match="not linear in its input"), composite.context(torch.nn.Sequential(norm)):
        pass
