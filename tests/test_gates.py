"""Gates, exponentials and state spaces: which factor of a product is a constant, against the oracle."""

import pytest
import torch
import torch.nn.functional as F
import transformers
from zennit.composites import NameMapComposite

from zennit_attn import AttnLRPComposite, CPLRPComposite, input_x_gradient, register_operator
from zennit_attn.composites import TransformerComposite
from zennit_attn.rules import Operators, SelectiveScan

from . import oracle
from .models import WIDTH, explain, relative_error
from .test_operators import COMPOSITES, FORMS, Calls, assert_relevance, check, randn, relevance_like, tensors
from .test_operators import explain as explain_module

# single functions, some of which are a softmax or a sigmoid
pytestmark = pytest.mark.filterwarnings("ignore::zennit_attn.errors.ProbabilityWarning")

BOTH = ["attnlrp", "cp"]


def nothing(value):
    return torch.zeros_like(value)


# --------------------------------------------------------------------------------------------------------------------
# Which factor is the gate
# --------------------------------------------------------------------------------------------------------------------


def set_everything(target, value):
    target[:] = value
    return target


SCALES = {
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "softplus": F.softplus,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "hand-written softmax": lambda b: b.exp() / b.exp().sum(-1, keepdim=True),
    "renormalised": lambda b: (b.sigmoid() / b.sigmoid().sum(-1, keepdim=True)) * 2.5,
    "one minus": lambda b: 1 - b.sigmoid(),
    "negative": lambda b: -b.exp(),
    "root": lambda b: torch.sqrt(1 + b.exp()),
    "cast": lambda b: b.sigmoid().type_as(b).expand_as(b),
    "a power": lambda b: b.sigmoid() ** 3,
    "scattered": lambda b: torch.zeros_like(b).scatter_(1, torch.arange(4).expand(3, 4), b.sigmoid()),
    "written": lambda b: torch.zeros_like(b).index_copy_(1, torch.arange(4), b.sigmoid()),
    "set": lambda b: set_everything(torch.zeros_like(b), b.sigmoid()),
    "by name": lambda b: torch.where(b > 9, input=b.exp(), other=b.sigmoid()),
    "renormalised by another": lambda b: b.sigmoid() / b.norm(dim=-1, keepdim=True),
    "in place": lambda b: b.sigmoid().add_(1e-3).mul_(2.0),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", ["linear", "relu", "tanh", "silu"])
@pytest.mark.parametrize("name", SCALES)
def test_a_scale_is_the_gate_whatever_the_other_factor_is(name, value, form):
    a, b = tensors((3, 4), (3, 4))
    activate = {"linear": lambda a: a * 3.0, "relu": F.relu, "tanh": torch.tanh, "silu": F.silu}[value]
    # relevance passes through the activation as it is
    check(lambda a, b: activate(a) * SCALES[name](b), [a, b], "cp", form, lambda relevance: [relevance, nothing(b)])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gates", [(F.relu, F.relu), (torch.tanh, F.silu), (torch.sigmoid, torch.sigmoid)])
def test_gates_of_one_degree_share_equally(gates, form):
    a, b = tensors((3, 4), (3, 4))
    check(
        lambda a, b: gates[0](a) * gates[1](b),
        [a.abs(), b.abs()],
        "cp",
        form,
        lambda relevance: oracle.product(a, b, relevance),
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_gate_that_something_is_added_to_in_place_is_none(form):
    def function(a, b, c):
        hidden = F.relu(a) * 1.0
        hidden += b
        return hidden * c

    a, b, c = tensors((3, 4), (3, 4), (3, 4))

    def expected(relevance):
        first, last = oracle.product(F.relu(a) + b, c, relevance)
        return [*oracle.addition([F.relu(a), b], first), last]

    check(function, [a, b, c], "cp", form, expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: set_everything(a.sigmoid(), b),
        lambda a, b: torch.add(a.sigmoid() * 0, other=b),
        lambda a, b: b.clamp(-50, 50),
    ],
    ids=["written over", "added by name", "clamped"],
)
def test_what_is_no_gate_gets_everything(function, form):
    a, b, c = tensors((3, 4), (3, 4), (3, 4))
    expected = [nothing(a), None, nothing(c)]
    check(
        lambda a, b, c: function(a, b) * torch.relu(c.abs()),
        [a, b, c],
        "cp",
        form,
        lambda relevance: [expected[0], relevance, expected[2]],
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("multiply", [torch.matmul, torch.bmm, lambda a, b: torch.einsum("bij,bjk->bik", a, b)])
def test_weights_in_a_matrix_product_are_constants(multiply, form):
    """Attention that is written by hand, with a sigmoid or with exponentials (CP-LRP, AH rule)."""
    scores, value = tensors((2, 3, 4), (2, 4, 5))

    def expected(relevance):
        return [nothing(scores), 2 * oracle.matmul(torch.sigmoid(scores), value, relevance)[1]]

    check(lambda scores, value: multiply(scores.sigmoid(), value), [scores, value], "cp", form, expected)


@pytest.mark.parametrize("form", FORMS)
def test_features_in_a_matrix_product_are_no_constants(form):
    query, key = tensors((2, 3, 4), (2, 4, 5))
    q, k = F.relu(query) + 0.1, F.relu(key) + 0.1

    def expected(relevance):
        # what is added keeps its share
        at_q, at_k = oracle.matmul(q, k, relevance)
        return [
            oracle.addition([F.relu(query), torch.full_like(query, 0.1)], at_q)[0],
            oracle.addition([F.relu(key), torch.full_like(key, 0.1)], at_k)[0],
        ]

    check(lambda q, k: (F.relu(q) + 0.1) @ (F.relu(k) + 0.1), [query, key], "cp", form, expected)


HEADS = torch.tensor([[1.0, -0.5, 0.2], [0.3, 0.8, 0.1]], dtype=torch.float64)
#: What attention does with its softmax before it weights the values with it; scores are of shape (1, 3, 4, 4).
WEIGHTED = {
    "plain": lambda w, v: w @ v,
    "talking heads": lambda w, v: torch.einsum("bhij,gh->bgij", w, HEADS) @ v[:, :2],
    "talking heads, listed": lambda w, v: torch.einsum("bhij,gh->bgij", [w, HEADS]) @ v[:, :2],
    "talking heads, linear": lambda w, v: F.linear(w.permute(0, 2, 3, 1), HEADS).permute(0, 3, 1, 2) @ v[:, :2],
    "masked and renormalised": lambda w, v: (w.tril() + 1e-9) / (w.tril() + 1e-9).sum(-1, keepdim=True) @ v,
    "of a gate": lambda w, v: w @ torch.sigmoid(v),
    "added": lambda w, v: torch.baddbmm(torch.zeros(3, 4, 2, dtype=v.dtype), w[0], v[0])[None],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("product", ["gate", "uniform"])
@pytest.mark.parametrize("name", WEIGHTED)
def test_a_softmax_that_weights_is_a_constant(name, product, form):
    scores, values = tensors((1, 3, 4, 4), (1, 3, 4, 2))
    module = Calls(lambda s, v: WEIGHTED[name](torch.softmax(s, -1), v))
    relevance = relevance_like(module(scores, values))
    composite = TransformerComposite(Operators("value", product, "constant", "identity", strict=True))
    at_scores, at_values = explain_module(composite, module, [scores, values], relevance, form)
    assert not at_scores.any()
    # the sum is linear in the values: everything arrives, and what is added is too small to see
    torch.testing.assert_close(at_values.sum(), relevance.sum(), rtol=1e-7, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_a_softmax_that_weights_nothing_has_its_share(form):
    """A head in the middle of an encoder, which feeds back what it reads: no attention."""
    (x,) = tensors((3, 4))
    weight = randn(4, 4, seed=5)

    def expected(relevance):
        at_x, at_fed = oracle.addition([x, F.softmax(x, -1) @ weight.T], relevance)
        return [at_x + oracle.softmax(x, oracle.linear(F.softmax(x, -1), weight, None, at_fed))]

    check(lambda x: x + F.linear(F.softmax(x, -1), weight), [x], "cp", form, expected)


@pytest.mark.parametrize("rule", BOTH)
def test_a_scale_of_exactly_zero_passes_nothing_on_in_both_forms(rule):
    """A squeeze-and-excitation block of dead ReLUs: the layer below could not divide by its output of zero."""
    layer = torch.nn.Linear(4, 4, bias=False).double().requires_grad_(False)
    module = torch.nn.Sequential(Calls(lambda x: x * torch.sigmoid(layer(F.relu(-x.abs())))))
    x = randn(2, 4)
    relevance = relevance_like(module(x))
    explained = [explain_module(COMPOSITES[rule](strict=True), module, [x], relevance, form) for form in FORMS]
    assert_relevance(*explained)
    assert_relevance(explained[0], [relevance / 2 if rule == "attnlrp" else relevance])


# --------------------------------------------------------------------------------------------------------------------
# Functions that are made of several operations
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dim", [-1, 1])
@pytest.mark.parametrize("rule", BOTH)
def test_gated_linear_units(rule, dim, form):
    x = randn(2, 6, 4)

    def expected(relevance):
        value, gate = (relevance / 2, relevance / 2) if rule == "attnlrp" else (relevance, nothing(relevance))
        return [torch.cat([value, gate], dim)]

    check(lambda x: F.glu(x, dim), [x], rule, form, expected)


def test_gated_linear_units_keep_their_value():
    x = randn(2, 6).float().requires_grad_()
    module = torch.nn.GLU()
    plain = module(x.detach())
    with input_x_gradient(CPLRPComposite(strict=True)).context(module):
        assert torch.equal(module(x), plain)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", BOTH)
@pytest.mark.parametrize("function", [torch.exp, torch.exp2])
def test_exponentials_pass_on_what_their_taylor_expansion_gives(function, rule, form):
    x = randn(3, 4)
    # f(x) = 2 ** x: x f'(x) / f(x) = x log 2
    slope = 1.0 if function is torch.exp else torch.tensor(2.0).double().log()
    check(function, [x], rule, form, lambda relevance: [x * slope * relevance])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", BOTH)
@pytest.mark.parametrize("function", [lambda x: F.log_softmax(x, -1), lambda x: x.log_softmax(dim=-1)])
def test_the_normaliser_of_a_log_softmax_is_a_constant(function, rule, form):
    x = randn(3, 4)
    constant = F.log_softmax(x, -1) - x
    check(function, [x], rule, form, lambda relevance: [oracle.addition([x, constant], relevance)[0]])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", BOTH)
def test_logsumexp_is_a_constant(rule, form):
    x = randn(3, 4)
    constant = torch.logsumexp(x, -1, keepdim=True)
    check(
        lambda x: x - torch.logsumexp(x, -1, keepdim=True),
        [x],
        rule,
        form,
        lambda relevance: [oracle.addition([x, -constant.expand_as(x)], relevance)[0]],
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", BOTH)
def test_products_of_elements_share_equally(rule, form):
    x = randn(3, 4)
    check(lambda x: x.prod(1), [x], rule, form, lambda relevance: [relevance[:, None].expand(3, 4) / 4])
    check(lambda x: torch.prod(x, dim=0, keepdim=True), [x], rule, form, lambda relevance: [relevance.expand(3, 4) / 3])
    check(lambda x: torch.prod(x), [x], rule, form, lambda relevance: [relevance.expand(3, 4) / 12])

    def expected(relevance):
        parts = [[relevance[row, n] / (n + 1) for n in range(4)] for row in range(3)]
        return [torch.tensor([[sum(parts[row][place:]) for place in range(4)] for row in range(3)]).double()]

    check(lambda x: torch.cumprod(x, 1), [x], rule, form, expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", BOTH)
def test_the_norms_of_a_cosine_similarity_are_constants(rule, form):
    a, b = tensors((3, 4), (3, 4))

    def expected(relevance):
        given = oracle.share(a * b, (a * b).sum(1, keepdim=True), relevance[:, None])
        return [given / 2, given / 2]

    check(lambda a, b: F.cosine_similarity(a, b, dim=1), [a, b], rule, form, expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", BOTH)
def test_the_denominator_of_an_added_division_is_a_constant(rule, form):
    a, b, c = tensors((3, 4), (3, 4), (3, 4))
    for function in (lambda a, b, c: torch.addcdiv(a, b, c), lambda a, b, c: a.addcdiv(b, tensor2=c)):
        check(function, [a, b, c], rule, form, lambda relevance: [*oracle.addition([a, b / c], relevance), nothing(c)])


@pytest.mark.parametrize("form", FORMS)
def test_batch_norm_of_one_sample_and_a_strided_gradient(form):
    """PyTorch's own backward pass is wrong there on a CPU (2.15: an error of 3)."""
    norm = torch.nn.BatchNorm2d(8).double().eval()
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
        tensor.copy_(randn(8, seed=3))
    norm.running_var.copy_(randn(8, seed=4).square())
    x, mix = randn(1, 8, 3, 3), randn(8, 5, seed=1)
    module = torch.nn.Sequential(norm, Calls(lambda x: x.flatten(2).transpose(1, 2) @ mix))
    relevance = relevance_like(module(x))
    (actual,) = explain_module(CPLRPComposite(strict=True), module, [x], relevance, form)

    def by_hand(x):
        shape = (1, 8, 1, 1)
        scale = norm.weight.reshape(shape) / (norm.running_var.reshape(shape) + norm.eps).sqrt()
        normed = (x - norm.running_mean.reshape(shape)) * scale + norm.bias.reshape(shape)
        return normed.permute(0, 2, 3, 1).reshape(1, 9, 8) @ mix

    with torch.no_grad():
        assert_relevance([actual], [oracle.affine(by_hand, x, relevance)])


# --------------------------------------------------------------------------------------------------------------------
# Selective state spaces (MambaLRP, Jafari et al. 2024)
# --------------------------------------------------------------------------------------------------------------------


def mamba(kind):
    sizes = {"vocab_size": 64, "hidden_size": WIDTH, "num_hidden_layers": 2, "state_size": 4}
    if kind == "mamba":
        return transformers.MambaForCausalLM(transformers.MambaConfig(**sizes, time_step_rank=3))
    config = transformers.Mamba2Config(**sizes, num_heads=12, head_dim=8, n_groups=2, chunk_size=4)
    return transformers.Mamba2ForCausalLM(config)


def mamba_by_hand(model, x):
    """A Mamba of transformers as MambaLRP writes it: parameters of the scan detached, SiLU and gate by their rules."""
    for block in model.backbone.layers:
        x = x + mixer_by_hand(block.mixer, norm_by_hand(block.norm, x))
    return model.lm_head(norm_by_hand(model.backbone.norm_f, x))


def norm_by_hand(norm, x):
    rstd = (x.detach().square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
    return norm.weight * x * rstd


def silu_by_hand(x):
    return x * x.detach().sigmoid()


def mixer_by_hand(mixer, x):
    hidden, gate = mixer.in_proj(x).chunk(2, -1)
    hidden = silu_by_hand(mixer.conv1d(hidden.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
    with torch.no_grad():
        steps, b, c = mixer.x_proj(hidden).split([mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size], -1)
        steps = F.softplus(mixer.dt_proj(steps))
        decay = torch.exp(steps[..., None] * -mixer.A_log.exp())
    state, outputs = 0, []
    for t in range(x.shape[1]):
        state = decay[:, t] * state + steps[:, t, :, None] * b[:, t, None] * hidden[:, t, :, None]
        outputs.append((state * c[:, t, None]).sum(-1) + mixer.D * hidden[:, t])
    output, gate = torch.stack(outputs, 1), silu_by_hand(gate)
    product = output * gate
    return mixer.out_proj(product / 2 + product.detach() / 2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("preset", [AttnLRPComposite, CPLRPComposite])
def test_mamba_equals_mambalrp(preset, form):
    model = mamba("mamba").double().eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    x = randn(1, 6, WIDTH)
    leaf = x.clone().requires_grad_()
    logit = mamba_by_hand(model, leaf)[:, -1].max()
    (gradient,) = torch.autograd.grad(logit, leaf)
    relevance, output = explain(model, preset(strict=True), x, form)
    # transformers computes decays and logits in float32
    torch.testing.assert_close(output[0].double(), logit.detach(), rtol=1e-5, atol=0)
    assert relative_error(relevance, x * gradient) < 1e-5


class Scan(torch.nn.Module):
    """The last step of a selective state space."""

    def forward(self, x):
        state, b, c = torch.split(x, [2, 3, 3], -1)
        return (state[:, :, None] * b[:, None] * F.softplus(c)[:, None]).sum(-1)


@pytest.mark.parametrize("form", FORMS)
def test_what_a_selective_state_space_splits_off_is_constant(form):
    x = randn(2, 8)
    relevance = relevance_like(Scan()(x))
    composite = NameMapComposite([(("",), SelectiveScan(strict=True))])
    (actual,) = explain_module(composite, Scan(), [x], relevance, form)
    assert_relevance([actual], [torch.cat([relevance, torch.zeros(2, 6)], -1)])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_state_spaces_conserve(kind, form):
    model = mamba(kind).double().eval()
    for name, parameter in model.named_parameters():
        # the bias of the step sizes is part of a constant
        if name.endswith("bias") and "dt" not in name:
            torch.nn.init.zeros_(parameter)
    relevance, logit = explain(model, CPLRPComposite(strict=True), randn(2, 6, WIDTH), form)
    # transformers computes decays and logits in float32
    torch.testing.assert_close(relevance.sum((1, 2)), logit.double(), rtol=1e-5, atol=0)


# --------------------------------------------------------------------------------------------------------------------
# Rules of one's own
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", BOTH)
def test_a_decorated_rule_is_one_in_both_forms(rule, form):
    def smaller(*inputs):
        """A function of its own, so that no other test sees the rule."""
        if torch.overrides.has_torch_function(inputs):
            return torch.overrides.handle_torch_function(smaller, inputs, *inputs)
        return torch.hypot(*inputs)

    @register_operator(smaller)
    def squares(function, args, kwargs):
        value = function(*(argument.detach() for argument in args))
        return sum(argument * (argument.detach() / value) for argument in args)

    assert squares.__name__ == "squares"
    a, b = tensors((3, 4), (3, 4))

    def expected(relevance):
        return [relevance * a**2 / (a**2 + b**2), relevance * b**2 / (a**2 + b**2)]

    check(smaller, [a, b], rule, form, expected)
