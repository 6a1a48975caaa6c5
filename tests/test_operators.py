"""Operator rules against the oracle: each function that a forward may call, in both forms of the backward signal."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from zennit.attribution import Gradient
from zennit.composites import LayerMapComposite, NameMapComposite

from zennit_attn import AttnLRPComposite, CPLRPComposite, InputXGradient, input_x_gradient, register_operator
from zennit_attn.errors import UnknownOperationError, UnknownOperationWarning
from zennit_attn.rules import CPLRP, AttnLRP, Epsilon, Operators

from . import oracle

# single functions, some of which are a softmax or a sigmoid
pytestmark = pytest.mark.filterwarnings("ignore::zennit_attn.errors.ProbabilityWarning")

FORMS = ["relevance", "gradient"]
COMPOSITES = {"attnlrp": AttnLRPComposite, "cp": CPLRPComposite}


class Calls(torch.nn.Module):
    """A module whose forward is one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def randn(*shape, seed=0):
    """Standard normal values, away from zero, where a relevance cannot be written as a gradient."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x + 0.05 * torch.where(x < 0, -1.0, 1.0)


def tensors(*shapes, seed=0):
    return [randn(*shape, seed=100 * seed + number) for number, shape in enumerate(shapes)]


def relevance_like(output, seed=7):
    """Some relevance of an output; none where the output is exactly zero or infinite: there is nothing to explain."""
    explained = (output != 0) & output.isfinite()
    return randn(*output.shape, seed=seed) * explained


def signal_of(output, relevance, form):
    """What a backward pass starts with: the relevance, or the gradient ``R / z``."""
    if form == "relevance":
        return relevance
    return torch.where(relevance == 0, relevance, relevance / output.detach())


def relevance_of(value, signal, form):
    """The relevance of a tensor, given the backward signal at it."""
    if signal is None:
        return torch.zeros_like(value)
    return signal if form == "relevance" else value.detach() * signal


def explain(composite, module, inputs, relevance, form):
    """Return the relevance of each input, given that of the output."""
    plain = module(*(x.clone() for x in inputs))
    leaves = [x.clone().requires_grad_() for x in inputs]
    composite = input_x_gradient(composite) if form == "gradient" else composite
    with composite.context(module):
        output = module(*leaves)
        # rules change the backward pass only; some recompute a kernel in steps: 4 units in the last place
        torch.testing.assert_close(output.detach(), plain.detach(), rtol=1e-15, atol=1e-15)
        signals = torch.autograd.grad(output, leaves, signal_of(output, relevance, form), allow_unused=True)
    return [relevance_of(x, signal, form) for x, signal in zip(leaves, signals, strict=True)]


def assert_relevance(actual, expected, tolerance=1e-9):
    """Compare relevances, relative to the largest: single values may be sums that cancel."""
    for got, wanted in zip(actual, expected, strict=True):
        scale = max(1.0, float(wanted.abs().max()))
        torch.testing.assert_close(got, wanted, rtol=0, atol=tolerance * scale)


def check(function, inputs, rule, form, expected):
    """Compare a function under a rule with ``expected(relevance) -> relevance of each input``."""
    module = Calls(function)
    relevance = relevance_like(module(*(x.clone() for x in inputs)))
    actual = explain(COMPOSITES[rule](strict=True), module, inputs, relevance, form)
    assert_relevance(actual, expected(relevance))


# --------------------------------------------------------------------------------------------------------------------
# Matrix products (AttnLRP, prop. 3.3)
# --------------------------------------------------------------------------------------------------------------------

MATMULS = {
    "matmul": (torch.matmul, [(3, 4), (4, 2)]),
    "matmul-batched": (torch.matmul, [(2, 3, 4), (2, 4, 2)]),
    "matmul-broadcast": (torch.matmul, [(2, 1, 3, 4), (5, 4, 2)]),
    "matmul-broadcast-2d": (torch.matmul, [(2, 3, 4), (4, 2)]),
    "@": (lambda a, b: a @ b, [(2, 3, 4), (2, 4, 2)]),
    "method": (lambda a, b: a.matmul(b), [(2, 3, 4), (4, 2)]),
    "keywords": (lambda a, b: torch.matmul(input=a, other=b), [(2, 3, 4), (4, 2)]),
    "mm": (torch.mm, [(3, 4), (4, 2)]),
    "bmm": (torch.bmm, [(2, 3, 4), (2, 4, 2)]),
    "bmm-method": (lambda a, b: a.bmm(b), [(2, 3, 4), (2, 4, 2)]),
    "bmm-keyword": (lambda a, b: torch.bmm(a, mat2=b), [(2, 3, 4), (2, 4, 2)]),
    "einsum": (lambda a, b: torch.einsum("bij,bjk->bik", a, b), [(2, 3, 4), (2, 4, 2)]),
    "einsum-list": (lambda a, b: torch.einsum("bij,bjk->bik", [a, b]), [(2, 3, 4), (2, 4, 2)]),
    "linalg": (torch.linalg.matmul, [(2, 3, 4), (2, 4, 2)]),
    "multi_dot": (lambda a, b: torch.linalg.multi_dot([a, b]), [(3, 4), (4, 2)]),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", ["attnlrp", "cp"])
@pytest.mark.parametrize("name", MATMULS)
def test_matmul_shares_equally(name, rule, form, seed):
    function, shapes = MATMULS[name]
    a, b = tensors(*shapes, seed=seed)
    check(function, [a, b], rule, form, lambda relevance: oracle.matmul(a, b, relevance))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MATMULS)
def test_matmul_with_a_constant_is_linear(name, form):
    """One operand that does not depend on the input: LRP-0, all relevance to the other one."""
    function, shapes = MATMULS[name]
    a, b = tensors(*shapes)
    for place in (0, 1):

        def one_sided(x, place=place):
            return function(x, b) if place == 0 else function(a, x)

        def expected(relevance, place=place):
            return [2 * oracle.matmul(a, b, relevance)[place]]

        check(one_sided, [(a, b)[place]], "attnlrp", form, expected)


EINSUMS = {
    "mv": (torch.mv, "ij,j->i", [(3, 4), (4,)]),
    "matmul-vector": (torch.matmul, "bij,j->bi", [(2, 3, 4), (4,)]),
    "vector-matmul": (torch.matmul, "j,jk->k", [(4,), (4, 3)]),
    "dot": (torch.dot, "i,i->", [(4,), (4,)]),
    "inner": (torch.inner, "ij,kj->ik", [(3, 4), (2, 4)]),
    "outer": (torch.outer, "i,j->ij", [(3,), (4,)]),
    "ger": (torch.ger, "i,j->ij", [(3,), (4,)]),
    "tensordot": (lambda a, b: torch.tensordot(a, b, dims=([1], [0])), "ij,jkl->ikl", [(3, 4), (4, 2, 3)]),
    "attention-scores": (
        lambda q, k: torch.einsum("bqhd,bkhd->bhqk", q, k),
        "bqhd,bkhd->bhqk",
        [(2, 3, 2, 4), (2, 5, 2, 4)],
    ),
    "einsum-interleaved": (
        lambda a, b: torch.einsum(a, [0, 1], b, [1, 2], [0, 2]),
        "ij,jk->ik",
        [(3, 4), (4, 2)],
    ),
    "kron": (lambda a, b: torch.kron(a, b).view(3, 2, 4, 2), "ij,kl->ikjl", [(3, 4), (2, 2)]),
    "einsum-implicit": (lambda a, b: torch.einsum("ij,jk", a, b), "ij,jk->ik", [(3, 4), (4, 2)]),
    "einsum-elementwise": (lambda a, b: torch.einsum("ij,ij->ij", a, b), "ij,ij->ij", [(3, 4), (3, 4)]),
    "einsum-3": (lambda a, b, c: torch.einsum("ij,jk,kl->il", a, b, c), "ij,jk,kl->il", [(2, 3), (3, 4), (4, 2)]),
    "einsum-3-shared": (
        lambda a, b, c: torch.einsum("bi,bj,bk->bijk", a, b, c),
        "bi,bj,bk->bijk",
        [(2, 3), (2, 2), (2, 4)],
    ),
    "multi_dot-3": (
        lambda a, b, c: torch.linalg.multi_dot([a, b, c]),
        "ij,jk,kl->il",
        [(2, 3), (3, 4), (4, 2)],
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", EINSUMS)
def test_products_of_n_operands_share_equally(name, form):
    function, equation, shapes = EINSUMS[name]
    inputs = tensors(*shapes)
    check(function, inputs, "attnlrp", form, lambda relevance: oracle.einsum(equation, inputs, relevance))


@pytest.mark.parametrize("form", FORMS)
def test_einsum_shares_among_those_that_depend_on_the_input(form):
    a, b, c = tensors((2, 3), (3, 4), (4, 2))
    check(
        lambda x, y: torch.einsum("ij,jk,kl->il", x, b, y),
        [a, c],
        "attnlrp",
        form,
        lambda relevance: oracle.einsum("ij,jk,kl->il", [a, b, c], relevance, explained=(0, 2)),
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["matmul", "einsum", "product", "outer"])
def test_an_operand_that_is_there_twice_gets_both_shares(name, form):
    x = randn(3, 3)
    function, equation = {
        "matmul": (lambda x: x @ x, "ij,jk->ik"),
        "einsum": (lambda x: torch.einsum("ij,kj->ik", x, x), "ij,kj->ik"),
        "product": (lambda x: x * x, "ij,ij->ij"),
        "outer": (lambda x: torch.einsum("ij,kl->ijkl", x, x), "ij,kl->ijkl"),
    }[name]
    check(function, [x], "attnlrp", form, lambda relevance: [sum(oracle.einsum(equation, [x, x], relevance))])


@pytest.mark.parametrize("form", FORMS)
def test_bilinear_layer_shares_equally(form):
    a, b, weight = tensors((2, 3), (2, 4), (5, 3, 4))
    check(
        lambda x, y: F.bilinear(x, y, weight),
        [a, b],
        "attnlrp",
        form,
        lambda relevance: oracle.einsum("bi,bj,oij->bo", [a, b, weight], relevance, explained=(0, 1)),
    )


@pytest.mark.parametrize("form", FORMS)
def test_cross_product_shares_equally(form):
    a, b = tensors((2, 3), (2, 3))

    def expected(relevance):
        parity = torch.zeros(3, 3, 3, dtype=torch.float64)
        for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
            parity[i, j, k], parity[i, k, j] = 1, -1
        return oracle.einsum("nj,nk,ijk->ni", [a, b, parity], relevance, explained=(0, 1))

    check(lambda a, b: torch.linalg.cross(a, b), [a, b], "attnlrp", form, expected)


@pytest.mark.parametrize("form", FORMS)
def test_interpolation_by_a_weight_that_depends_on_the_input(form):
    """``lerp(a, b, w)`` is ``a + w (b - a)``, or ``(1 - w) a + w b``; it is reported, or shared as one of the two."""
    a, b, w = tensors((3, 4), (3, 4), (3, 4))
    module = Calls(torch.lerp)
    relevance = relevance_like(module(a, b, w))
    try:
        actual = explain(AttnLRPComposite(strict=True), module, [a, b, w], relevance, form)
    except UnknownOperationError:
        return
    # w stands in 1 - w as well, with a constant that may take a share: w alone cannot get more than the product
    total = torch.lerp(a, b, w)
    on_product = oracle.addition([a, w * (b - a)], relevance)[1]
    on_products = oracle.share(torch.stack([(1 - w) * a, w * b]), total, relevance)
    on_w = [on_product / 2, (on_products[1] - oracle.share(w * a, total, relevance)) / 2]
    assert any(torch.allclose(actual[2], wanted, rtol=1e-9, atol=1e-9) for wanted in on_w)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["linear", "linear-bias", "conv1d"])
def test_a_linear_function_whose_weight_depends_on_the_input_is_a_product(name, form):
    """``F.linear(x, w)`` is ``x @ w.T``: where both depend on the input, prop. 3.3 holds for it."""
    x, weight, bias = tensors((2, 3, 4), (5, 4), (5,))
    if name == "conv1d":
        pixels, kernel = x.transpose(1, 2).contiguous(), weight.unsqueeze(-1)
        check(
            F.conv1d,
            [pixels, kernel],
            "attnlrp",
            form,
            lambda relevance: [
                part.reshape(shape)
                for part, shape in zip(
                    oracle.einsum("nil,oi->nol", [pixels, weight], relevance), (pixels.shape, kernel.shape), strict=True
                )
            ],
        )
        return
    given_bias = bias if name == "linear-bias" else None

    def expected(relevance):
        if given_bias is None:
            return oracle.einsum("nli,oi->nlo", [x, weight], relevance)
        on_product, _ = oracle.addition([x @ weight.T, given_bias], relevance)
        return oracle.einsum("nli,oi->nlo", [x, weight], on_product)

    check(lambda x, w: F.linear(x, w, given_bias), [x, weight], "attnlrp", form, expected)


ADDED = {
    "addmm": (torch.addmm, "ij,jk->ik", [(3, 2), (3, 4), (4, 2)]),
    "addmm-method": (lambda c, a, b: c.addmm(a, b), "ij,jk->ik", [(3, 2), (3, 4), (4, 2)]),
    "addmm-broadcast": (torch.addmm, "ij,jk->ik", [(2,), (3, 4), (4, 2)]),
    "addmm-keywords": (lambda c, a, b: torch.addmm(c, mat1=a, mat2=b), "ij,jk->ik", [(3, 2), (3, 4), (4, 2)]),
    "addmm-all-keywords": (
        lambda c, a, b: torch.addmm(input=c, mat1=a, mat2=b),
        "ij,jk->ik",
        [(3, 2), (3, 4), (4, 2)],
    ),
    "addmm-scaled": (
        lambda c, a, b: torch.addmm(c, a, b, beta=0.5, alpha=-2.0),
        "ij,jk->ik",
        [(3, 2), (3, 4), (4, 2)],
    ),
    "baddbmm": (torch.baddbmm, "bij,bjk->bik", [(2, 3, 2), (2, 3, 4), (2, 4, 2)]),
    "baddbmm-scaled": (
        lambda c, a, b: torch.baddbmm(c, a, b, beta=0.5, alpha=-2.0),
        "bij,bjk->bik",
        [(2, 3, 2), (2, 3, 4), (2, 4, 2)],
    ),
    "baddbmm-keywords": (
        lambda c, a, b: c.baddbmm(batch1=a, batch2=b, beta=0.5),
        "bij,bjk->bik",
        [(2, 3, 2), (2, 3, 4), (2, 4, 2)],
    ),
    "baddbmm_": (lambda c, a, b: c.clone().baddbmm_(a, b), "bij,bjk->bik", [(2, 3, 2), (2, 3, 4), (2, 4, 2)]),
    "addbmm": (torch.addbmm, "bij,bjk->ik", [(3, 2), (2, 3, 4), (2, 4, 2)]),
    "addmv": (torch.addmv, "ij,j->i", [(3,), (3, 4), (4,)]),
    "addr": (torch.addr, "i,j->ij", [(3, 4), (3,), (4,)]),
    "addcmul": (torch.addcmul, "ij,ij->ij", [(3, 4), (3, 4), (3, 4)]),
    "addcmul-scaled": (lambda c, a, b: torch.addcmul(c, a, b, value=-2.0), "ij,ij->ij", [(3, 4), (3, 4), (3, 4)]),
    "addcmul_": (lambda c, a, b: c.clone().addcmul_(a, b, value=-2.0), "ij,ij->ij", [(3, 4), (3, 4), (3, 4)]),
}
SCALES = {"addmm-scaled": (0.5, -2.0), "baddbmm-scaled": (0.5, -2.0), "baddbmm-keywords": (0.5, 1.0)}
SCALES |= {"addcmul-scaled": (1.0, -2.0), "addcmul_": (1.0, -2.0)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("constant", [None, 0, 1, 2])
@pytest.mark.parametrize("name", ADDED)
def test_added_products_are_a_sum_and_a_product(name, constant, form):
    """``beta * c + alpha * a b``: LRP-0 through the sum, the uniform rule through the product."""
    function, equation, shapes = ADDED[name]
    inputs = tensors(*shapes)
    beta, alpha = SCALES.get(name, (1.0, 1.0))
    free = [place for place in range(3) if place != constant]

    def call(*given):
        given = iter(given)
        return function(*(inputs[place] if place == constant else next(given) for place in range(3)))

    def expected(relevance):
        summand, *factors = inputs
        total = torch.einsum(equation, *factors)
        on_summand, on_product = oracle.addition([beta * summand, alpha * total], relevance)
        dependent = [place - 1 for place in free if place]
        on_factors = oracle.einsum(equation, factors, on_product, dependent)
        found = {place + 1: part for place, part in zip(dependent, on_factors, strict=True)}
        return [on_summand if place == 0 else found[place] for place in free]

    check(call, [inputs[place] for place in free], "attnlrp", form, expected)


@pytest.mark.parametrize("form", FORMS)
def test_an_uninitialised_summand_that_is_switched_off(form):
    """``torch.baddbmm(torch.empty(...), q, k, beta=0)``, as several models write their scores."""
    a, b = tensors((2, 3, 4), (2, 4, 2))
    nothing = torch.full((1,), torch.nan, dtype=torch.float64)
    check(
        lambda a, b: torch.baddbmm(nothing, a, b, beta=0, alpha=0.5),
        [a, b],
        "attnlrp",
        form,
        lambda relevance: oracle.matmul(a, b, relevance),
    )


# --------------------------------------------------------------------------------------------------------------------
# Element-wise products (prop. 3.2), gates, division
# --------------------------------------------------------------------------------------------------------------------

PRODUCTS = {
    "*": lambda a, b: a * b,
    "mul": torch.mul,
    "multiply": torch.multiply,
    "method": lambda a, b: a.mul(b),
    "keyword": lambda a, b: a.mul(other=b),
    "mul_": lambda a, b: a.clone().mul_(b),
    "multiply_": lambda a, b: a.clone().multiply_(b),
}


def imul(a, b):
    a = a.clone()
    a *= b
    return a


PRODUCTS["*="] = imul


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", ["attnlrp", "cp"])
@pytest.mark.parametrize("shapes", [[(3, 4), (3, 4)], [(2, 3, 4), (4,)], [(2, 3, 4), (2, 1, 4)]], ids=str)
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_share_equally(name, shapes, rule, form):
    a, b = tensors(*shapes)
    check(PRODUCTS[name], [a, b], rule, form, lambda relevance: oracle.product(a, b, relevance))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", PRODUCTS)
def test_product_with_a_constant_is_linear(name, form):
    x, constant = tensors((3, 4), (4,))
    check(lambda x: PRODUCTS[name](x, constant), [x], "attnlrp", form, lambda relevance: [relevance])
    check(lambda x: PRODUCTS[name](x, -2.5), [x], "attnlrp", form, lambda relevance: [relevance])


GATED = {
    "silu": lambda g, u: F.silu(g) * u,
    "gate-second": lambda g, u: u * F.silu(g),
    "gelu": lambda g, u: F.gelu(g, approximate="tanh") * u,
    "relu": lambda g, u: F.relu(g) * u,
    "sigmoid": lambda g, u: torch.sigmoid(g) * u,
    "into-up": lambda g, u: u.clone().mul_(F.silu(g)),
    "silu-in-place": lambda g, u: F.silu(g.clone(), inplace=True) * u,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", ["attnlrp", "cp"])
@pytest.mark.parametrize("name", [*GATED, "into-gate", "packed"])
def test_gated_units(name, rule, form):
    """AttnLRP shares equally; in CP-LRP the gate is a constant."""
    gate, up = tensors((2, 3, 4), (2, 3, 4))
    if name == "packed":

        def packed(x):
            g, u = x.chunk(2, -1)
            return F.silu(g) * u

        def expected(relevance):
            return [torch.cat(oracle.gated(gate, up, relevance, rule), -1)]

        check(packed, [torch.cat([gate, up], -1)], rule, form, expected)
        return
    function = GATED.get(name, lambda g, u: F.silu(g).mul_(u))
    check(function, [gate, up], rule, form, lambda relevance: oracle.gated(gate, up, relevance, rule))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "move",
    [
        lambda gate: gate.clone(),
        lambda gate: gate.unsqueeze(0).squeeze(0),
        lambda gate: gate.transpose(0, 1).transpose(0, 1),
        lambda gate: gate.to(torch.float32).to(torch.float64),
        lambda gate: F.dropout(gate, 0.1, training=False),
        lambda gate: torch.nn.Dropout(0.1).eval()(gate),
        lambda gate: torch.cat(gate.chunk(2, -1), -1),
    ],
    ids=["clone", "squeeze", "transpose", "cast", "dropout", "dropout-module", "chunk-and-cat"],
)
def test_a_gate_that_is_moved_or_cast_is_still_the_gate(move, form):
    """CP-LRP: the factor that an activation produced is a constant, in whatever shape and type it comes."""
    gate, up = tensors((2, 3, 4), (2, 3, 4))
    module = Calls(lambda gate, up: move(torch.sigmoid(gate)) * up)
    relevance = relevance_like(module(gate, up))
    actual = explain(CPLRPComposite(strict=True), module, [gate, up], relevance, form)
    assert_relevance(actual, [torch.zeros_like(gate), relevance])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", ["attnlrp", "cp"])
@pytest.mark.parametrize("factor", [1.0, 1.702])
def test_a_manual_silu_gives_everything_to_its_input(factor, rule, form):
    x = randn(3, 4)
    check(lambda x: x * torch.sigmoid(factor * x), [x], rule, form, lambda relevance: [relevance])


def idiv(a, b):
    a = a.clone()
    a /= b
    return a


DIVISIONS = {
    "/": lambda a, b: a / b,
    "div": torch.div,
    "divide": torch.divide,
    "true_divide": torch.true_divide,
    "method": lambda a, b: a.div(b),
    "keyword": lambda a, b: a.div(other=b),
    "all-keywords": lambda a, b: torch.div(input=a, other=b),
    "div_": lambda a, b: a.clone().div_(b),
    "/=": idiv,
    "reciprocal": lambda a, b: a * torch.reciprocal(b),
    "one-over": lambda a, b: a * (1 / b),
    "rsqrt": lambda a, b: a * torch.rsqrt(b**2),
    "rsqrt-method": lambda a, b: a * b.square().rsqrt(),
    "rsqrt_": lambda a, b: a * (b * b).rsqrt_(),
    "over-sqrt": lambda a, b: a / torch.sqrt(b**2),
    "negative-power": lambda a, b: a * b.abs().pow(-0.5),
    "negative-power-operator": lambda a, b: a * (b * b) ** -0.5,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", ["attnlrp", "cp"])
@pytest.mark.parametrize("shapes", [[(3, 4), (3, 4)], [(2, 3, 4), (3, 1)]], ids=str)
@pytest.mark.parametrize("name", DIVISIONS)
def test_denominators_are_constants(name, shapes, rule, form):
    a, b = tensors(*shapes)
    check(DIVISIONS[name], [a, b], rule, form, lambda relevance: [relevance, torch.zeros_like(b)])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["x/norm", "x/std", "x/sum", "x/var", "normalize", "rms", "self", "vector_norm"])
def test_division_by_a_statistic_of_itself_is_linear(name, form):
    """What a tensor is divided by is a constant, so that its relevance passes as it is."""
    functions = {
        "x/norm": lambda x: x / x.norm(dim=-1, keepdim=True),
        "x/std": lambda x: x / x.std(-1, keepdim=True),
        "x/sum": lambda x: x / x.sum(-1, keepdim=True),
        "x/var": lambda x: x / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5),
        "normalize": lambda x: F.normalize(x, dim=-1),
        "rms": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5),
        "self": lambda x: x / (x.abs() + 1),
        "vector_norm": lambda x: x / torch.linalg.vector_norm(x, dim=-1, keepdim=True),
    }
    check(functions[name], [randn(2, 3, 4)], "attnlrp", form, lambda relevance: [relevance])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "arguments", [{}, {"dim": -1}, {"p": 1.0, "dim": 2}, {"p": 3, "dim": (1, 2)}, {"eps": 10.0}], ids=str
)
def test_normalize_is_linear(arguments, form):
    check(lambda x: F.normalize(x, **arguments), [randn(2, 3, 4)], "attnlrp", form, lambda relevance: [relevance])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["rdiv", "reciprocal", "rsqrt", "power"])
def test_a_reciprocal_passes_nothing_on(name, form):
    """All of the relevance goes to the numerator, here to a constant; the summand x gets its own."""
    x = randn(3, 4).abs()
    function = {
        "rdiv": lambda x: 2.0 / x,
        "reciprocal": torch.reciprocal,
        "rsqrt": torch.rsqrt,
        "power": lambda x: x**-2,
    }[name]
    constant = function(x)
    check(
        lambda x: function(x) + x,
        [x],
        "attnlrp",
        form,
        lambda relevance: [oracle.addition([x, constant], relevance)[0]],
    )


# --------------------------------------------------------------------------------------------------------------------
# Softmax and attention (prop. 3.1, 3.3; AH rule)
# --------------------------------------------------------------------------------------------------------------------

SOFTMAXES = {
    "F": lambda x, dim: F.softmax(x, dim),
    "F-keyword": lambda x, dim: F.softmax(x, dim=dim, dtype=torch.float64),
    "torch": lambda x, dim: torch.softmax(x, dim),
    "method": lambda x, dim: x.softmax(dim),
    "special": lambda x, dim: torch.special.softmax(x, dim),
    "module": lambda x, dim: torch.nn.Softmax(dim)(x),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dim", [-1, 0, 1])
@pytest.mark.parametrize("name", SOFTMAXES)
def test_softmax_is_its_taylor_expansion(name, dim, form):
    x = randn(2, 3, 4)
    check(lambda x: SOFTMAXES[name](x, dim), [x], "attnlrp", form, lambda r: [oracle.softmax(x, r, dim)])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SOFTMAXES)
def test_softmax_is_a_constant_in_cp_lrp(name, form):
    """The weights get nothing, whatever they are multiplied with."""
    x, v = tensors((3, 4), (4, 2))
    weights = torch.softmax(x, -1)

    def expected(relevance):
        return [torch.zeros_like(x), 2 * oracle.matmul(weights, v, relevance)[1]]

    check(lambda x, v: SOFTMAXES[name](x, -1) @ v, [x, v], "cp", form, expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["masked_fill", "masked_fill_", "added", "where", "finite"])
def test_masked_softmax(name, form):
    """Masked scores get none, and make nothing else infinite or NaN."""
    x = randn(4, 4)
    mask = torch.ones(4, 4).triu(1).bool()
    function = {
        "masked_fill": lambda x: F.softmax(x.masked_fill(mask, -torch.inf), -1),
        "masked_fill_": lambda x: F.softmax(x.clone().masked_fill_(mask, -torch.inf), -1),
        "added": lambda x: F.softmax(x + oracle.causal_mask(4), -1),
        "where": lambda x: F.softmax(torch.where(mask, -torch.inf, x), -1),
        "finite": lambda x: F.softmax(x.masked_fill(mask, torch.finfo(torch.float64).min), -1),
    }[name]
    masked = x + oracle.causal_mask(4)
    check(function, [x], "attnlrp", form, lambda relevance: [oracle.softmax(masked, relevance)])


def masks(kind, batch, length):
    """Additive mask of a kind, broadcastable to ``(batch, heads, length, length)``, None without one."""
    causal, padding = oracle.causal_mask(length), oracle.padding_mask([length - n for n in range(batch)], length)
    bias = randn(1, 1, length, length, seed=5)
    return {"none": None, "causal": causal, "padding": padding, "both": causal + padding, "bias": bias + causal}[kind]


def core(style, heads, scale):
    """Return ``(q, k, v, mask) -> output`` in one of the ways in which models write attention."""
    size = {} if scale is None else {"scale": scale}

    def sdpa(q, k, v, mask):
        grouped = {"enable_gqa": True} if k.shape[1] != heads else {}
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **grouped, **size)

    def sdpa_positional(q, k, v, mask):
        k, v = (side.repeat_interleave(heads // k.shape[1], 1) for side in (k, v))
        return F.scaled_dot_product_attention(q, k, v, mask, 0.0, False, **size)

    def sdpa_bool(q, k, v, mask):
        return sdpa(q, k, v, None if mask is None else mask == 0)

    def sdpa_keywords(q, k, v, mask):
        k, v = (side.repeat_interleave(heads // k.shape[1], 1) for side in (k, v))
        return F.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=mask, **size)

    def sdpa_is_causal(q, k, v, mask):
        k, v = (side.repeat_interleave(heads // k.shape[1], 1) for side in (k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, **size)

    def factor(q):
        return q.shape[-1] ** -0.5 if scale is None else scale

    def matmul(q, k, v, mask):
        k, v = (side.repeat_interleave(heads // k.shape[1], 1) for side in (k, v))
        scores = q @ k.transpose(-2, -1) * factor(q)
        return F.softmax(scores if mask is None else scores + mask, -1) @ v

    def expanded(q, k, v, mask):
        batch, kv_heads, length, width = k.shape
        k, v = (
            side[:, :, None].expand(batch, kv_heads, heads // kv_heads, length, width).reshape(q.shape)
            for side in (k, v)
        )
        scores = torch.matmul(q / factor(q) ** -1, k.mT)
        if mask is not None:
            scores = scores + mask
        return torch.matmul(torch.softmax(scores, dim=-1), v)

    def einsum(q, k, v, mask):
        q = q.unflatten(1, (k.shape[1], -1))
        scores = torch.einsum("bhgqd,bhkd->bhgqk", q, k).mul(factor(q))
        if mask is not None:
            scores += mask.unsqueeze(-3)
        return torch.einsum("bhgqk,bhkd->bhgqd", scores.softmax(-1), v).flatten(1, 2)

    def bmm(q, k, v, mask):
        shape = q.shape
        k, v = (side.repeat_interleave(heads // k.shape[1], 1).flatten(0, 1) for side in (k, v))
        scores = torch.bmm(q.flatten(0, 1), k.transpose(1, 2)).view(*shape[:2], shape[2], -1)
        scores = scores.mul_(factor(q))
        if mask is not None:
            scores = scores.add_(mask)
        return torch.bmm(F.softmax(scores, -1).flatten(0, 1), v).view(shape)

    def baddbmm(q, k, v, mask):
        shape = q.shape
        k, v = (side.repeat_interleave(heads // k.shape[1], 1).flatten(0, 1) for side in (k, v))
        bias = q.new_zeros(()) if mask is None else mask.expand(*shape[:3], k.shape[1]).flatten(0, 1)
        # an infinite summand of a sum with beta = 1, as in BLOOM and GPT-NeoX
        scores = torch.baddbmm(bias, q.flatten(0, 1), k.transpose(1, 2), beta=1.0, alpha=factor(q))
        return torch.bmm(scores.softmax(-1), v).view(shape)

    return locals()[style]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("constants", ["m", "qm", "km", "vm", "qkm", "qvm", "kvm", "q", "qk", ""])
def test_fused_attention_of_constants_equals_its_steps(constants, form):
    """Learned queries, keys or values take no part: what is fused gives the others what its steps give them."""
    given = dict(zip("qkv", tensors((2, 3, 4, 5), (2, 3, 4, 5), (2, 3, 4, 5)), strict=True))
    given["m"] = randn(2, 1, 4, 4, seed=9)
    fixed = {
        name: value for name, value in given.items() if name in constants or (name == "m" and "m" not in constants)
    }
    fixed = fixed if "m" not in constants else {name: value for name, value in fixed.items() if name != "m"}
    free = {name: value for name, value in given.items() if name not in fixed}
    explained_parts = []
    for style in ("sdpa", "matmul"):
        run = core(style, 3, None)

        def function(*inputs, run=run):
            return run(*({**fixed, **dict(zip(free, inputs, strict=True))}[name] for name in "qkvm"))

        module, inputs = Calls(function), list(free.values())
        relevance = relevance_like(module(*inputs))
        explained_parts.append(explain(AttnLRPComposite(strict=True), module, inputs, relevance, form))
    assert_relevance(*explained_parts)


def check_attention(style, sides, mask, rule, form, scale=None):
    """Compare attention of four heads with the relevance of its queries, keys and values by hand."""
    function = core(style, 4, scale)
    check(
        lambda q, k, v: function(q, k, v, mask),
        sides,
        rule,
        form,
        lambda relevance: oracle.attention(*sides, relevance, mask, scale, rule)[:3],
    )


STYLES = ["sdpa", "sdpa_positional", "sdpa_bool", "sdpa_keywords", "matmul", "expanded", "einsum", "bmm", "baddbmm"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", ["attnlrp", "cp"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("mask", ["none", "causal", "padding", "both", "bias"])
@pytest.mark.parametrize("style", STYLES)
def test_attention(style, mask, kv_heads, rule, form):
    if style == "sdpa_bool" and mask == "bias":
        pytest.skip("a boolean mask has no bias")
    given = masks(mask, 2, 3)
    for seed, scale in ((0, None), (1, 0.3)):
        sides = tensors((2, 4, 3, 2), (2, kv_heads, 3, 2), (2, kv_heads, 3, 2), seed=seed)
        check_attention(style, sides, given, rule, form, scale)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", ["attnlrp", "cp"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_attention_is_causal_by_its_argument(kv_heads, rule, form):
    sides = tensors((2, 4, 3, 2), (2, kv_heads, 3, 2), (2, kv_heads, 3, 2))
    check_attention("sdpa_is_causal", sides, oracle.causal_mask(3), rule, form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", ["attnlrp", "cp"])
@pytest.mark.parametrize("style", ["sdpa", "matmul", "baddbmm"])
def test_cross_attention(style, rule, form):
    """As many queries as the decoder has, as many keys as the encoder; values of another width."""
    sides = tensors((2, 4, 3, 2), (2, 4, 5, 2), (2, 4, 5, 2))
    mask = oracle.padding_mask([5, 3], 5)
    check_attention(style, sides, mask, rule, form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", ["attnlrp", "cp"])
@pytest.mark.parametrize("style", ["sdpa", "sdpa_bool"])
def test_left_padding_leaves_queries_without_a_key(style, rule, form):
    """A row in which everything is masked has an output of zero, no relevance, and gives none."""
    sides = tensors((2, 4, 4, 2), (2, 2, 4, 2), (2, 2, 4, 2))
    mask = oracle.causal_mask(4) + oracle.padding_mask([4, 2], 4, left=True)
    check_attention(style, sides, mask, rule, form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("style", ["sdpa", "sdpa_positional", "matmul"])
def test_a_mask_that_depends_on_the_input_gets_its_share(style, form):
    """A position bias computed from the input is a summand of the scores."""
    q, k, v, bias = tensors((2, 4, 3, 2), (2, 4, 3, 2), (2, 4, 3, 2), (2, 4, 3, 3))
    check(
        core(style, 4, None),
        [q, k, v, bias],
        "attnlrp",
        form,
        lambda relevance: oracle.attention(q, k, v, relevance, bias)[:4],
    )


class SelfAttention(torch.nn.Module):
    """Multi-head attention with linear projections, grouped or not."""

    def __init__(self, heads, kv_heads, width, bias, style, mask):
        super().__init__()
        self.heads, self.kv_heads, self.core, self.mask = heads, kv_heads, core(style, heads, None), mask
        self.q = torch.nn.Linear(heads * width, heads * width, bias)
        self.k = torch.nn.Linear(heads * width, kv_heads * width, bias)
        self.v = torch.nn.Linear(heads * width, kv_heads * width, bias)
        self.o = torch.nn.Linear(heads * width, heads * width, bias)

    def forward(self, x):
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (layer(x).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2) for layer in (self.k, self.v))
        self.mixed = self.core(q, k, v, self.mask)
        return self.o(self.mixed.transpose(1, 2).flatten(2))


def expected_self_attention(module, x, relevance, rule, epsilon):
    """Return the relevance of x and of the mixed values."""
    with torch.no_grad():
        flat = [layer(x) for layer in (module.q, module.k, module.v)]
        counts = module.heads, module.kv_heads, module.kv_heads
        q, k, v = (oracle.to_heads(part, count) for part, count in zip(flat, counts, strict=True))
        mixed = oracle.from_heads(oracle.attention_forward(q, k, v, module.mask)[0])
        on_mixed = oracle.to_heads(
            oracle.linear(mixed, module.o.weight, module.o.bias, relevance, epsilon), module.heads
        )
        on_heads = oracle.attention(q, k, v, on_mixed, module.mask, rule=rule)[:3]
        layers = zip((module.q, module.k, module.v), on_heads, strict=True)
        on_x = sum(oracle.linear(x, layer.weight, layer.bias, oracle.from_heads(on), epsilon) for layer, on in layers)
        return on_x, on_mixed


def carriers(rule, epsilon):
    """The same rules as a preset, and in zennit's own composites."""
    operators = {"attnlrp": AttnLRP, "cp": CPLRP}[rule](strict=True)
    linear = Epsilon(epsilon)
    return {
        "preset": COMPOSITES[rule](epsilon=epsilon, strict=True),
        "layer map": LayerMapComposite([((torch.nn.Linear,), linear), ((SelfAttention,), operators)]),
        "name map": NameMapComposite([(("q", "k", "v", "o"), linear), (("",), operators)]),
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("carrier", ["preset", "layer map", "name map"])
@pytest.mark.parametrize("rule", ["attnlrp", "cp"])
@pytest.mark.parametrize(("kv_heads", "bias"), [(4, True), (2, True), (2, False)])
@pytest.mark.parametrize(("style", "mask"), [("sdpa", "both"), ("matmul", "causal"), ("einsum", "none")])
def test_self_attention_with_projections(style, mask, kv_heads, bias, rule, carrier, form):
    """Attention and projections together, by each carrier of rules, through each attributor."""
    torch.manual_seed(3)
    module = SelfAttention(4, kv_heads, 2, bias, style, masks(mask, 2, 3)).double()
    x = randn(2, 3, 8)
    relevance = relevance_like(module(x).detach())
    composite = carriers(rule, 1e-3)[carrier]
    if form == "relevance":
        with Gradient(module, composite) as attributor:
            _, actual = attributor(x.clone(), relevance)
    else:
        with InputXGradient(module, input_x_gradient(composite)) as attributor:
            _, actual = attributor(x.clone(), relevance)
    assert_relevance([actual], [expected_self_attention(module, x, relevance, rule, 1e-3)[0]])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", ["attnlrp", "cp"])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("mask", ["none", "causal", "padding", "both"])
@pytest.mark.parametrize("bias", [True, False])
def test_fused_multi_head_attention_module(bias, mask, need_weights, rule, form):
    """:class:`torch.nn.MultiheadAttention`, by its projections and its product."""
    torch.manual_seed(2)
    fused = torch.nn.MultiheadAttention(8, 4, bias=bias, batch_first=True).double().eval()
    for parameter in fused.parameters():
        parameter.data = randn(*parameter.shape, seed=parameter.numel()) / 2
    causal = oracle.causal_mask(3) == -torch.inf if mask in ("causal", "both") else None
    padding = oracle.padding_mask([3, 2], 3).reshape(2, 3) == -torch.inf if mask in ("padding", "both") else None

    class Wrapper(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fused = fused

        def forward(self, x):
            return self.fused(x, x, x, key_padding_mask=padding, attn_mask=causal, need_weights=need_weights)[0]

    x, module = randn(2, 3, 8), Wrapper()
    relevance = relevance_like(module(x).detach())
    (actual,) = explain(COMPOSITES[rule](strict=True), module, [x], relevance, form)

    class Parts:
        """The same attention, with projections of its own, for the oracle."""

        heads = kv_heads = 4

    for name, weight in zip("qkv", fused.in_proj_weight.detach().chunk(3), strict=True):
        setattr(Parts, name, torch.nn.Linear(8, 8, bias, dtype=torch.float64))
        getattr(Parts, name).weight.data = weight
    if bias:
        for name, value in zip("qkv", fused.in_proj_bias.detach().chunk(3), strict=True):
            getattr(Parts, name).bias.data = value
    Parts.o, Parts.mask = fused.out_proj, masks(mask, 2, 3)
    assert_relevance([actual], [expected_self_attention(Parts, x, relevance, rule, 0.0)[0]])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("style", ["sdpa", "matmul", "einsum"])
def test_attention_in_half_precision(style, form):
    """Within 10 % by the norm of the difference: bfloat16 rounds to 0.4 %, and what the softmax passes on cancels."""
    q, k, v = (side.bfloat16() for side in tensors((2, 4, 6, 8), (2, 2, 6, 8), (2, 2, 6, 8)))
    mask = masks("both", 2, 6)
    function = core(style, 4, None)
    module = Calls(lambda q, k, v: function(q, k, v, mask.to(q.dtype)))
    leaves = [side.clone().requires_grad_() for side in (q, k, v)]
    with (input_x_gradient(AttnLRPComposite()) if form == "gradient" else AttnLRPComposite()).context(module):
        output = module(*leaves)
        # relevance in proportion to the output, as where a logit is explained: its gradient is bounded
        relevance = output.detach().double()
        signals = torch.autograd.grad(output, leaves, signal_of(output, relevance.bfloat16(), form))
    expected = oracle.attention(*(side.double() for side in (q, k, v)), relevance, mask)[:3]
    for leaf, signal, wanted in zip(leaves, signals, expected, strict=True):
        actual = relevance_of(leaf.double(), signal.double(), form)
        assert float((actual - wanted).norm() / wanted.norm()) < 0.1


# --------------------------------------------------------------------------------------------------------------------
# Normalisation (prop. 3.4)
# --------------------------------------------------------------------------------------------------------------------

AFFINE = ["none", "weight", "weight and bias"]


def affine_parameters(affine, *shape):
    weight, bias = tensors(shape, shape, seed=9)
    return None if affine == "none" else weight, bias if affine == "weight and bias" else None


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("affine", AFFINE)
@pytest.mark.parametrize(("shape", "normalised"), [((5, 4), (4,)), ((2, 3, 4), (4,)), ((2, 3, 4), (3, 4))], ids=str)
@pytest.mark.parametrize("name", ["F", "F-keywords", "torch", "module", "manual"])
def test_layer_norm(name, shape, normalised, affine, form):
    x = randn(*shape)
    weight, bias = affine_parameters(affine, *normalised)

    def manual(x):
        dims = tuple(range(-len(normalised), 0))
        deviation = x - x.mean(dims, keepdim=True)
        y = deviation / torch.sqrt(deviation.pow(2).mean(dims, keepdim=True) + 1e-3)
        y = y if weight is None else weight * y
        return y if bias is None else y + bias

    def layer(x):
        module = torch.nn.LayerNorm(normalised, 1e-3).double()
        module.weight.data = torch.ones(normalised).double() if weight is None else weight
        module.bias.data = torch.zeros(normalised).double() if bias is None else bias
        return module.requires_grad_(False)(x)

    function = {
        "F": lambda x: F.layer_norm(x, normalised, weight, bias, 1e-3),
        "F-keywords": lambda x: F.layer_norm(
            input=x, normalized_shape=list(normalised), weight=weight, bias=bias, eps=1e-3
        ),
        "torch": lambda x: torch.layer_norm(x, normalised, weight, bias, 1e-3),
        "module": layer,
        "manual": manual,
    }[name]
    if name == "manual":  # rounding in another order: 1e-12 is far above it, far below any wrong rule
        torch.testing.assert_close(function(x), F.layer_norm(x, normalised, weight, bias, 1e-3), rtol=0, atol=1e-12)
    check(function, [x], "attnlrp", form, lambda r: [oracle.layer_norm(x, normalised, weight, bias, r, 1e-3)])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("eps", [None, 1e-2])
@pytest.mark.parametrize("affine", AFFINE[:2])
@pytest.mark.parametrize(("shape", "normalised"), [((5, 4), (4,)), ((2, 3, 4), (3, 4))], ids=str)
@pytest.mark.parametrize("name", ["F", "torch", "module", "manual"])
def test_rms_norm(name, shape, normalised, affine, eps, form):
    x = randn(*shape)
    weight, _ = affine_parameters(affine, *normalised)
    used = torch.finfo(torch.float64).eps if eps is None else eps

    def manual(x):
        dims = tuple(range(-len(normalised), 0))
        y = x * torch.rsqrt(x.pow(2).mean(dims, keepdim=True) + used)
        return y if weight is None else weight * y

    def layer(x):
        module = torch.nn.RMSNorm(normalised, eps).double()
        module.weight.data = torch.ones(normalised).double() if weight is None else weight
        return module.requires_grad_(False)(x)

    function = {
        "F": lambda x: F.rms_norm(x, normalised, weight, eps),
        "torch": lambda x: torch.rms_norm(x, normalised, weight=weight, eps=eps),
        "module": layer,
        "manual": manual,
    }[name]
    check(function, [x], "attnlrp", form, lambda r: [oracle.rms_norm(x, normalised, weight, r, used)])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("affine", AFFINE)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("shape", [(2, 4, 3), (2, 4, 3, 2), (3, 8)], ids=str)
@pytest.mark.parametrize("name", ["F", "torch"])
def test_group_norm(name, shape, groups, affine, form):
    if shape == (3, 8) and groups == 4:
        pytest.skip("two values a group are always +1 and -1: the deviation is its own scale")
    x = randn(*shape)
    weight, bias = affine_parameters(affine, shape[1])
    function = {
        "F": lambda x: F.group_norm(x, groups, weight, bias, 1e-3),
        "torch": lambda x: torch.group_norm(x, groups, weight, bias, 1e-3),
    }[name]
    check(function, [x], "attnlrp", form, lambda r: [oracle.group_norm(x, groups, weight, bias, r, 1e-3)])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("affine", AFFINE)
@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 4, 2)], ids=str)
def test_instance_norm(shape, affine, form):
    x = randn(*shape)
    weight, bias = affine_parameters(affine, shape[1])
    check(
        lambda x: F.instance_norm(x, weight=weight, bias=bias, eps=1e-3),
        [x],
        "attnlrp",
        form,
        lambda relevance: [oracle.group_norm(x, shape[1], weight, bias, relevance, 1e-3)],
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["batch_norm", "instance_norm"])
def test_running_statistics_make_a_norm_affine(name, form):
    x = randn(2, 3, 4)
    weight, bias, mean, var = tensors((3,), (3,), (3,), (3,))
    function = {
        "batch_norm": lambda x: F.batch_norm(x, mean, var.abs(), weight, bias),
        "instance_norm": lambda x: F.instance_norm(x, mean, var.abs(), weight, bias, use_input_stats=False),
    }[name]
    check(function, [x], "attnlrp", form, lambda relevance: [oracle.affine(function, x, relevance)])


@pytest.mark.parametrize("form", FORMS)
def test_batch_statistics_are_refused(form):
    with pytest.raises(RuntimeError, match="eval"):
        check(lambda x: F.batch_norm(x, None, None, training=True), [randn(4, 3)], "attnlrp", form, lambda r: [r])


@pytest.mark.parametrize("form", FORMS)
def test_adaptive_norm_shares_between_scale_and_input(form):
    """``norm(x) * (1 + scale) + shift``, scale and shift from the input too: a product and two sums."""
    x, scale, shift = tensors((2, 3, 4), (2, 1, 4), (2, 1, 4))

    def expected(relevance):
        normal = F.layer_norm(x, (4,))
        on_product, on_shift = oracle.addition([normal * (1 + scale), shift], relevance)
        on_normal, on_factor = oracle.product(normal, 1 + scale, on_product)
        on_scale, _ = oracle.addition([scale, torch.ones_like(scale)], on_factor)
        return [oracle.layer_norm(x, (4,), None, None, on_normal), on_scale, on_shift]

    check(
        lambda x, scale, shift: F.layer_norm(x, (4,)) * (1 + scale) + shift,
        [x, scale, shift],
        "attnlrp",
        form,
        expected,
    )


# --------------------------------------------------------------------------------------------------------------------
# Activations (eq. 9)
# --------------------------------------------------------------------------------------------------------------------

ACTIVATIONS = {
    "F.silu": F.silu,
    "F.gelu": F.gelu,
    "F.gelu-tanh": lambda x: F.gelu(x, approximate="tanh"),
    "torch.nn.GELU": lambda x: torch.nn.GELU("tanh")(x),
    "F.relu": F.relu,
    "torch.relu": torch.relu,
    "x.relu": lambda x: x.relu(),
    "F.relu6": F.relu6,
    "F.tanh": torch.tanh,
    "x.tanh": lambda x: x.tanh(),
    "sigmoid": torch.sigmoid,
    "F.sigmoid": lambda x: x.sigmoid(),
    "expit": torch.special.expit,
    "F.elu": F.elu,
    "F.elu-alpha": lambda x: F.elu(x, 0.3),
    "F.selu": F.selu,
    "F.celu": lambda x: F.celu(x, alpha=0.7),
    "F.leaky_relu": F.leaky_relu,
    "F.leaky_relu-slope": lambda x: F.leaky_relu(x, 0.2),
    "F.leaky_relu-keyword": lambda x: F.leaky_relu(x, negative_slope=0.2),
    "F.prelu": lambda x: F.prelu(x, torch.full((3,), 0.3, dtype=x.dtype)),
    "F.hardtanh": lambda x: F.hardtanh(x, -0.5, 0.7),
    "F.hardswish": F.hardswish,
    "F.hardsigmoid": F.hardsigmoid,
    "F.mish": F.mish,
    "F.softplus": F.softplus,
    "F.softplus-beta": lambda x: F.softplus(x, beta=2.0),
    "F.softsign": F.softsign,
    "F.tanhshrink": F.tanhshrink,
    "F.hardshrink": F.hardshrink,
    "F.softshrink": F.softshrink,
    "F.threshold": lambda x: F.threshold(x, 0.1, 2.0),
    "F.logsigmoid": F.logsigmoid,
    "erf": torch.erf,
    "square": torch.square,
    "x**2": lambda x: x**2,
    "x.pow(3)": lambda x: x.pow(3),
    "pow-keyword": lambda x: torch.pow(x, exponent=3),
    "abs": torch.abs,
    "sqrt": lambda x: torch.sqrt(x.abs()),
    "clamp": lambda x: x.clamp(-0.5, 0.7),
    "clip": lambda x: torch.clip(x, min=-0.5),
    "F.relu-inplace": lambda x: F.relu(x.clone(), inplace=True),
    "F.relu-inplace-positional": lambda x: F.relu(x.clone(), True),
    "F.silu-inplace": lambda x: F.silu(x.clone(), inplace=True),
    "F.elu-inplace": lambda x: F.elu(x.clone(), 0.3, True),
    "F.leaky_relu-inplace": lambda x: F.leaky_relu(x.clone(), 0.2, True),
    "F.hardtanh-inplace": lambda x: F.hardtanh(x.clone(), -0.5, 0.7, inplace=True),
    "F.hardswish-inplace": lambda x: F.hardswish(x.clone(), inplace=True),
    "F.mish-inplace": lambda x: F.mish(x.clone(), inplace=True),
    "F.selu-inplace": lambda x: F.selu(x.clone(), inplace=True),
    "F.threshold-inplace": lambda x: F.threshold(x.clone(), 0.1, 2.0, inplace=True),
    "torch.relu_": lambda x: torch.relu_(x.clone()),
    "F.relu_": lambda x: F.relu_(x.clone()),
    "x.relu_": lambda x: x.clone().relu_(),
    "x.tanh_": lambda x: x.clone().tanh_(),
    "x.sigmoid_": lambda x: x.clone().sigmoid_(),
    "F.leaky_relu_": lambda x: F.leaky_relu_(x.clone(), 0.2),
    "x.clamp_": lambda x: x.clone().clamp_(-0.5, 0.7),
    "x.pow_": lambda x: x.clone().pow_(2),
    "x.square_": lambda x: x.clone().square_(),
    "torch.nn.ReLU": lambda x: torch.nn.ReLU(inplace=True)(x.clone()),
    "torch.nn.SiLU": lambda x: torch.nn.SiLU(inplace=True)(x.clone()),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_pass_relevance_as_it_is(name, form):
    check(ACTIVATIONS[name], [randn(2, 3, 4)], "attnlrp", form, lambda relevance: [relevance])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["F.silu-inplace", "x.relu_", "F.leaky_relu-inplace", "x.tanh_", "F.elu-inplace"])
def test_in_place_activations_write_where_they_should(name, form):
    """The tensor that is written to is the activated one from then on, also for those who hold a view of it."""
    x = randn(2, 3, 4)
    out_of_place = {
        "F.silu-inplace": F.silu,
        "x.relu_": F.relu,
        "F.leaky_relu-inplace": lambda x: F.leaky_relu(x, 0.2),
        "x.tanh_": torch.tanh,
        "F.elu-inplace": lambda x: F.elu(x, 0.3),
    }[name]

    def in_place(x):
        hidden = 2 * x
        before = hidden * 3
        {
            "F.silu-inplace": lambda: F.silu(hidden, inplace=True),
            "x.relu_": lambda: hidden.relu_(),
            "F.leaky_relu-inplace": lambda: F.leaky_relu(hidden, 0.2, True),
            "x.tanh_": lambda: hidden.tanh_(),
            "F.elu-inplace": lambda: F.elu(hidden, 0.3, True),
        }[name]()
        return hidden + before

    # the relevance of both summands passes on to x as it is
    torch.testing.assert_close(in_place(x), out_of_place(2 * x) + 6 * x, rtol=0, atol=1e-15)
    check(in_place, [x], "attnlrp", form, lambda r: [sum(oracle.addition([in_place(x) - 6 * x, 6 * x], r))])


# --------------------------------------------------------------------------------------------------------------------
# Linear and routing functions: LRP-0 with the function's own dense matrix
# --------------------------------------------------------------------------------------------------------------------


def set_item(x):
    y = x.clone()
    y[:, 1] = 2 * x[:, 0]
    return y


def set_constant(x):
    y = x * 2
    y[:, 1:, 0] = 3.0
    return y


def add_to_view(x):
    y = x.clone()
    y[:, 1:] += x[:, :-1]
    return y


def write_into_buffer(x):
    buffer = torch.zeros(2, 6, 4, dtype=x.dtype)
    buffer[:, :3] = x
    buffer[:, 3:] = -x
    return buffer


def split_and_join(x):
    first, second = x.split([1, 2], 1)
    return torch.cat([second, 2 * first, second], 1)


INDEX = torch.tensor([2, 0, 0, 1])

AFFINE_FUNCTIONS = {
    "add": lambda x: x + 2 * x.flip(1),
    "add-constant": lambda x: x + 1.5,
    "add-alpha": lambda x: torch.add(x, x.flip(-1), alpha=3),
    "sub": lambda x: x - 0.3 * x.roll(1, -1),
    "rsub": lambda x: 2.0 - x,
    "neg": lambda x: -x,
    "sum": lambda x: x.sum(-1),
    "mean": lambda x: x.mean((0, 2)),
    "cumsum": lambda x: x.cumsum(1),
    "diff": lambda x: x.diff(dim=-1),
    "cat": lambda x: torch.cat([x, 2 * x], -1),
    "stack": lambda x: torch.stack([x, x.flip(0)]),
    "split": split_and_join,
    "chunk": lambda x: torch.add(*x.chunk(2, -1)),
    "unbind": lambda x: x.unbind(1)[0] - x.unbind(1)[2],
    "tensor_split": lambda x: x.tensor_split(2, 1)[1],
    "unpack": lambda x: sum(row for row in x),
    "index": lambda x: x[:, INDEX],
    "slice": lambda x: x[:, ::2, 1:],
    "boolean-index": lambda x: x[:, torch.tensor([True, False, True])],
    "index_select": lambda x: x.index_select(1, INDEX),
    "gather": lambda x: x.gather(1, INDEX.expand(2, 1, 4)),
    "take_along_dim": lambda x: torch.take_along_dim(x, INDEX.expand(2, 1, 4), 1),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "repeat": lambda x: x.repeat(1, 2, 1),
    "expand": lambda x: x[:, :1].expand(2, 3, 4),
    "permute": lambda x: x.permute(2, 0, 1).reshape(4, 6),
    "T": lambda x: x.mT.contiguous().view(2, 12),
    "view-as": lambda x: x.flatten(1).view_as(torch.empty(2, 12)),
    "roll": lambda x: torch.roll(x, 1, 1),
    "flip": lambda x: x.flip(0, 2),
    "pad": lambda x: F.pad(x, (1, 2), value=0.5),
    "pad-circular": lambda x: F.pad(x, (1, 2), mode="circular"),
    "tril": lambda x: x.tril(),
    "masked_fill": lambda x: x.masked_fill(torch.tensor([True, False, False, True]), 2.0),
    "masked_fill-tensor": lambda x: x.masked_fill(torch.tensor([True, False, False, True]), torch.tensor(2.0)),
    "masked_fill_": lambda x: (2 * x).masked_fill_(torch.tensor([True, False, False, True]), 2.0),
    "masked_scatter": lambda x: torch.zeros_like(x).masked_scatter(torch.ones(2, 3, 4).tril().bool(), x),
    "where": lambda x: torch.where(torch.tensor([True, False, False, True]), x, 3 * x.flip(1)),
    "where-constant": lambda x: torch.where(torch.tensor([True, False, False, True]), x, 1.0),
    "index_add": lambda x: torch.zeros(2, 3, 4, dtype=x.dtype).index_add(1, INDEX[:3], x),
    "index_add-alpha": lambda x: x.index_add(1, INDEX[:2], x[:, :2], alpha=2.0),
    "index_add_": lambda x: x.clone().index_add_(1, INDEX[:2], 2 * x[:, :2]),
    "index_add_-into-zeros": lambda x: torch.zeros(2, 3, 4, dtype=x.dtype).index_add_(1, INDEX[:3], x),
    "scatter_add": lambda x: torch.zeros(2, 3, 4, dtype=x.dtype).scatter_add(1, INDEX[:3, None].expand(2, 3, 4), x),
    "scatter_add_": lambda x: x.clone().scatter_add_(1, INDEX[:3, None].expand(2, 3, 4), x),
    "scatter": lambda x: torch.ones(2, 3, 4, dtype=x.dtype).scatter(1, INDEX[:1, None].expand(2, 1, 4), x[:, :1]),
    "scatter_reduce-sum": lambda x: x.scatter_reduce(1, INDEX[:1, None].expand(2, 1, 4), 2 * x[:, :1], reduce="sum"),
    "index_copy": lambda x: x.index_copy(1, INDEX[:2], 2 * x[:, :2]),
    "index_put": lambda x: x.index_put((INDEX[1:2],), 2 * x[1:]),
    "index_put-accumulate": lambda x: x.index_put((INDEX[1:3],), 2 * x[:1].expand(2, 3, 4), accumulate=True),
    "index_put_-accumulate": lambda x: x.clone().index_put_((INDEX[1:3],), 2 * x[:1].expand(2, 3, 4), accumulate=True),
    "setitem": set_item,
    "setitem-constant": set_constant,
    "iadd-view": add_to_view,
    "buffer": write_into_buffer,
    "add_": lambda x: (2 * x).add_(x.flip(1), alpha=0.5),
    "sub_": lambda x: x.clone().sub_(0.3 * x.roll(1, -1)),
    "zero_": lambda x: x + x.clone().zero_(),
    "copy_": lambda x: torch.empty_like(x).copy_(3 * x),
    "linear": lambda x: F.linear(x, randn(5, 4, seed=1), randn(5, seed=2)),
    "conv1d": lambda x: F.conv1d(x, randn(2, 3, 2, seed=1), randn(2, seed=2)),
    "avg_pool1d": lambda x: F.avg_pool1d(x, 2),
    "adaptive_avg_pool1d": lambda x: F.adaptive_avg_pool1d(x, 2),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2.0, mode="linear"),
    "unfold": lambda x: x.unfold(-1, 2, 1),
    "lerp": lambda x: torch.lerp(x, x.flip(1), 0.3),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "to": lambda x: x.to(torch.float64).contiguous(),
    "diagonal": lambda x: x.diagonal(dim1=1, dim2=2),
    "complex-rotation": lambda x: torch.view_as_real(
        torch.view_as_complex(x.unflatten(-1, (2, 2))) * torch.polar(torch.ones(3, 2).double(), randn(3, 2, seed=3))
    ).flatten(-2),
    "fft": lambda x: torch.fft.irfft(torch.fft.rfft(x, dim=-1) * torch.tensor([1.0, 2.0, 0.5]), n=4, dim=-1),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", AFFINE_FUNCTIONS)
def test_linear_and_routing_functions(name, form):
    function, x = AFFINE_FUNCTIONS[name], randn(2, 3, 4)
    check(function, [x], "attnlrp", form, lambda relevance: [oracle.affine(function, x, relevance)])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["amax", "max", "maximum", "topk", "sort", "max_pool1d"])
def test_selections_route_to_what_they_selected(name, form):
    x = randn(2, 3, 4)
    function = {
        "amax": lambda x: x.amax(-1),
        "max": lambda x: x.max(1).values,
        "maximum": lambda x: torch.maximum(x[:1], x[1:]),
        "topk": lambda x: x.topk(2, -1)[0],
        "sort": lambda x: x.sort(-1, descending=True)[0],
        "max_pool1d": lambda x: F.max_pool1d(x, 2),
    }[name]

    def expected(relevance):
        routed = torch.zeros_like(x)
        for place in itertools.product(*map(range, relevance.shape)):
            # values are distinct: the selected one is the one that equals the output
            routed[x == function(x)[place]] += relevance[place]
        return [routed]

    check(function, [x], "attnlrp", form, expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["min", "max", "method", "in place"])
def test_a_bound_that_depends_on_the_input_is_chosen(name, form):
    x, bound = tensors((2, 3), (2, 3))
    function = {
        "min": lambda x, bound: torch.clamp(x, min=bound),
        "max": lambda x, bound: torch.clamp(x, max=bound),
        "method": lambda x, bound: x.clamp_min(bound),
        "in place": lambda x, bound: (1 * x).clamp_(None, bound),
    }[name]

    def expected(relevance):
        own = function(x, bound) == x
        return [relevance * own, relevance * ~own]

    check(function, [x, bound], "attnlrp", form, expected)


DROPOUTS = {
    "module": lambda x: torch.nn.Dropout(0.5)(x),
    "function": lambda x: torch.dropout(x, 0.5, True),
    "of channels": lambda x: F.dropout1d(x, 0.5),
    "in place": lambda x: F.dropout(x.relu(), 0.5, True, True),
    "in place by name": lambda x: F.dropout(x * 1, 0.5, inplace=True),
    "written": lambda x: torch.dropout_(x * 1, 0.5, True),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", DROPOUTS)
def test_dropout_scales_no_relevance(name, form):
    def function(x):
        torch.manual_seed(0)
        return DROPOUTS[name](x)

    check(function, [randn(2, 3, 4)], "attnlrp", form, lambda relevance: [relevance])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("function", [torch.abs, abs, torch.Tensor.absolute])
def test_an_absolute_value_shares_by_the_squares_of_its_parts(function, form):
    x = randn(2, 3, 2)

    def expected(relevance):
        return [relevance[..., None] * x**2 / (x**2).sum(-1, keepdim=True)]

    check(lambda x: function(torch.view_as_complex(x)), [x], "attnlrp", form, expected)


# --------------------------------------------------------------------------------------------------------------------
# Values that are written over after the backward pass was prepared
# --------------------------------------------------------------------------------------------------------------------


def residual_in_place(x):
    hidden = 2 * x
    branch = hidden * torch.tensor([1.0, -2.0, 0.5, 3.0])
    hidden += 5 * branch
    return hidden


def written_after_product(a, b):
    left, right = 2 * a, 3 * b
    product = left * right
    left += 10.0
    right.mul_(4.0)
    return product


def written_after_matmul(a, b):
    left, right = 2 * a, 3 * b
    scores = left @ right.mT
    left.zero_()
    right += 7.0
    return scores


def written_output(a, b):
    product = a * b
    total = product.sum(-1)
    product += 100.0
    return total


def written_activation(a, b):
    hidden = 2 * a
    gate = F.silu(hidden)
    hidden.fill_(3.0)
    return gate * b


def written_softmax(a, b):
    weights = F.softmax(2 * a, -1)
    mixed = weights @ b.mT
    weights.zero_()
    return mixed


def written_through_view(a, b):
    left = 2 * a
    view = left.view(-1)
    product = left * b
    view += 10.0
    return product


def written_norm(a, b):
    hidden = 2 * a
    normal = F.layer_norm(hidden, (4,))
    hidden += b
    return normal


def written_by_setitem(a, b):
    left = 2 * a
    product = left * b
    left[:, 0] = 1.0
    left[0] *= 3.0
    return product


def written_after_sum(a, b):
    left, right = 2 * a, 3 * b
    total = left + right
    left.zero_()
    right *= -1.0
    return total


def written_after_cat(a, b):
    left, right = 2 * a, 3 * b
    joined = torch.cat([left, right]).cumsum(0)
    left.fill_(1.0)
    right += left
    return joined


def written_after_mean(a, b):
    hidden = a - b
    mean = hidden.mean(-1)
    hidden -= mean.unsqueeze(-1)
    return mean


def written_after_linear(a, b):
    hidden = 2 * a
    out = F.linear(hidden, WEIGHT)
    hidden += b
    out += 1.0
    return out


def written_after_index(a, b):
    hidden = 2 * a
    chosen = hidden[:, 1:] + b[:, 1:]
    hidden[:, 1:] = 0.0
    return chosen + hidden[:, 1:]


def written_out_of_a_matmul(a, b):
    scores = (a @ b.mT) * 0.5
    scaled = scores * 3.0
    scores.add_(oracle.causal_mask(3))
    return scaled


WEIGHT = randn(5, 4, seed=11)


def affine_relevance(function, a, b, relevance):
    """LRP-0 of an affine function of two tensors."""
    joined = oracle.affine(lambda x: function(*x.unbind(0)), torch.stack([a, b]), relevance)
    return list(joined.unbind(0))


def of_matmul(a, b, relevance):
    on_a, on_b = oracle.matmul(a, b.mT, relevance)
    return [on_a, on_b.mT]


def of_mixture(a, b, relevance):
    on_weights, on_b = oracle.matmul(torch.softmax(2 * a, -1), b.mT, relevance)
    return [oracle.softmax(2 * a, on_weights), on_b.mT]


def of_sum(a, b, relevance):
    return oracle.product(a, b, oracle.affine(lambda product: product.sum(-1), a * b, relevance))


def of_norm(a, b, relevance):
    return [oracle.layer_norm(2 * a, (4,), None, None, relevance), torch.zeros_like(b)]


#: What each function computes, written over later or not.
WRITTEN = {
    written_after_product: oracle.product,
    written_after_matmul: of_matmul,
    written_out_of_a_matmul: of_matmul,
    written_output: of_sum,
    written_activation: oracle.gated,
    written_softmax: of_mixture,
    written_through_view: oracle.product,
    written_norm: of_norm,
    written_by_setitem: oracle.product,
    written_after_sum: lambda a, b, r: affine_relevance(lambda a, b: 2 * a + 3 * b, a, b, r),
    written_after_cat: lambda a, b, r: affine_relevance(lambda a, b: torch.cat([2 * a, 3 * b]).cumsum(0), a, b, r),
    written_after_mean: lambda a, b, r: affine_relevance(lambda a, b: (a - b).mean(-1), a, b, r),
    written_after_linear: lambda a, b, r: affine_relevance(lambda a, b: F.linear(2 * a, WEIGHT) + 1.0, a, b, r),
    written_after_index: lambda a, b, r: affine_relevance(lambda a, b: 2 * a[:, 1:] + b[:, 1:], a, b, r),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("function", WRITTEN, ids=lambda function: function.__name__)
def test_later_writes_do_not_change_earlier_relevance(function, form):
    """Rules need values as they were. Where plain autograd refuses a backward pass for that, they may refuse it too."""
    a, b = tensors((3, 4), (3, 4))
    leaves = [x.clone().requires_grad_() for x in (a, b)]
    try:
        torch.autograd.grad(function(*leaves).sum(), leaves, allow_unused=True)
    except RuntimeError:
        refused = True
    else:
        refused = False

    def run():
        check(function, [a, b], "attnlrp", form, lambda relevance: WRITTEN[function](a, b, relevance))

    if not refused:
        return run()
    try:
        run()
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise


@pytest.mark.parametrize("form", FORMS)
def test_residual_that_is_added_in_place(form):
    x = randn(2, 3, 4)
    check(residual_in_place, [x], "attnlrp", form, lambda r: [oracle.affine(residual_in_place, x, r)])


@pytest.mark.parametrize("form", FORMS)
def test_mixture_of_experts_with_index_add(form):
    """Router weight times expert output, added up in place by index: a product for each expert, then a sum."""
    x, weights = tensors((4, 3), (4, 2))
    experts = tensors((3, 3), (3, 3), seed=4)
    chosen = [torch.tensor([0, 2, 3]), torch.tensor([1, 2])]

    def mixture(x, weights):
        result = torch.zeros_like(x)
        for number, (tokens, expert) in enumerate(zip(chosen, experts, strict=True)):
            result.index_add_(0, tokens, (x[tokens] @ expert) * weights[tokens, number, None])
        return result

    def expected(relevance):
        on_x, on_weights, total = torch.zeros_like(x), torch.zeros_like(weights), mixture(x, weights)
        for number, (tokens, expert) in enumerate(zip(chosen, experts, strict=True)):
            for token in tokens.tolist():
                out = x[token] @ expert
                part = oracle.share(out * weights[token, number], total[token], relevance[token])
                on_out, on_weight = oracle.product(out, weights[token, number].reshape(1), part)
                on_weights[token, number] += on_weight.sum()
                on_x[token] += oracle.linear(x[token], expert.T, None, on_out)
        return [on_x, on_weights]

    check(mixture, [x, weights], "attnlrp", form, expected)


# --------------------------------------------------------------------------------------------------------------------
# Whole blocks
# --------------------------------------------------------------------------------------------------------------------


class Llama(torch.nn.Module):
    """A toy of Llama's kind: no additive constant."""

    def __init__(self, heads, kv_heads, width, hidden, layers, seed):
        super().__init__()
        self.heads, self.kv_heads, size = heads, kv_heads, heads * width
        shapes = {"q": (size, size), "k": (kv_heads * width, size), "v": (kv_heads * width, size), "o": (size, size)}
        shapes |= {"gate": (hidden, size), "up": (hidden, size), "down": (size, hidden)}
        self.blocks = torch.nn.ModuleList(
            torch.nn.ModuleDict({name: torch.nn.Linear(*reversed(shape), bias=False) for name, shape in shapes.items()})
            for _ in range(layers)
        )
        for number, block in enumerate(self.blocks):
            for place, (name, shape) in enumerate(shapes.items()):
                block[name].weight.data = randn(*shape, seed=1000 * seed + 10 * number + place) / shape[1] ** 0.5
            for place, name in enumerate(("norm1", "norm2")):
                block[name] = torch.nn.RMSNorm(size, 1e-5, dtype=torch.float64)
                block[name].weight.data = 1 + 0.3 * randn(size, seed=1000 * seed + 10 * number + 8 + place)
        self.exposed = {}

    def rotate(self, x):
        length, half = x.shape[-2], x.shape[-1] // 2
        angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(half).double() / half)
        angles = torch.cat([angles, angles], -1)
        turned = torch.cat([-x[..., half:], x[..., :half]], -1)
        return x * angles.cos() + turned * angles.sin()

    def forward(self, x):
        for number, block in enumerate(self.blocks):
            n = block["norm1"](x)
            q = block["q"](n).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            k, v = (block[s](n).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2) for s in "kv")
            mixed = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True, enable_gqa=True)
            x = x + block["o"](mixed.transpose(1, 2).flatten(2))
            n = block["norm2"](x)
            x = x + block["down"](F.silu(block["gate"](n)) * block["up"](n))
            self.exposed[number] = x
        return x

    def oracles(self, rule, epsilon=0.0):
        """The oracle of each block."""
        return [
            oracle.LlamaBlock(
                {name: layer.weight.detach() for name, layer in block.items()},
                self.heads,
                self.kv_heads,
                epsilon=epsilon,
                rule=rule,
            )
            for block in self.blocks
        ]


class GPT(torch.nn.Module):
    """A block of GPT-2's kind, with biases."""

    def __init__(self, heads, width, seed):
        super().__init__()
        self.heads, size = heads, heads * width
        self.norm1, self.norm2 = (torch.nn.LayerNorm(size) for _ in range(2))
        self.qkv, self.o = torch.nn.Linear(size, 3 * size), torch.nn.Linear(size, size)
        self.fc, self.down = torch.nn.Linear(size, 3 * size), torch.nn.Linear(3 * size, size)
        self.double()
        for number, parameter in enumerate(self.parameters()):
            parameter.data = randn(*parameter.shape, seed=100 * seed + number) / parameter.shape[-1] ** 0.5

    def forward(self, x):
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        scores = q @ k.mT / q.shape[-1] ** 0.5
        seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        scores = torch.where(seen, scores, torch.finfo(scores.dtype).min)
        x = x + self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.fc(self.norm2(x)), approximate="tanh"))

    def oracles(self, rule, epsilon=0.0):
        """The oracle of the block."""
        p = {}
        for name, layer in self.named_children():
            p[name], p[f"{name}_bias"] = layer.weight.detach(), layer.bias.detach()
        return [oracle.GPTBlock(p, self.heads, epsilon=epsilon, rule=rule)]


def run_oracles(blocks, x, relevance):
    """Return what went in, what came out, what was kept, and the relevance behind each block."""
    for block in blocks:
        x = block.forward(x)
    behind, kept = [], 0.0
    for block in reversed(blocks):
        behind.insert(0, relevance)
        relevance, lost = block.relevance(relevance)
        kept += lost
    return x, relevance, kept, behind


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("epsilon", [0.0, 1e-3])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", ["attnlrp", "cp"])
@pytest.mark.parametrize("kind", ["llama", "gpt"])
def test_whole_blocks_written_out_by_hand(kind, rule, form, epsilon, seed):
    model = Llama(4, 2, 4, 12, 2, seed) if kind == "llama" else GPT(2, 4, seed)
    x = randn(2, 5, model.heads * 4, seed=seed)
    plain = model(x).detach()
    relevance = relevance_like(plain)
    expected_output, expected, _, _ = run_oracles(model.oracles(rule, epsilon), x, relevance)
    # both compute the same function, in another order
    torch.testing.assert_close(plain, expected_output, rtol=0, atol=1e-12)
    actual = explain(COMPOSITES[rule](epsilon=epsilon, strict=True), model, [x], relevance, form)
    assert_relevance(actual, [expected])


SHAPES = st.tuples(
    st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2), (3, 1)]),  # heads, heads of keys and values
    st.sampled_from([2, 4]),
    st.integers(1, 6),
    st.integers(1, 3),
    st.integers(0, 10_000),
)
PROPERTY = settings(deadline=None, max_examples=25, derandomize=True, database=None)


def toy(shape):
    (heads, kv_heads), width, length, layers, seed = shape
    model = Llama(heads, kv_heads, width, 6, layers, seed)
    x = randn(2, length, heads * width, seed=seed)
    return model, x, relevance_like(model(x).detach(), seed=seed + 1)


@pytest.mark.parametrize("form", FORMS)
@PROPERTY
@given(shape=SHAPES)
def test_cp_lrp_conserves(shape, form):
    """Without additive constants nothing is lost: 1e-9, relative to all relevance that there is."""
    model, x, relevance = toy(shape)
    (actual,) = explain(CPLRPComposite(strict=True), model, [x], relevance, form)
    scale = float(actual.abs().sum() + relevance.abs().sum())
    assert abs(float(actual.sum() - relevance.sum())) <= 1e-9 * scale


@pytest.mark.parametrize("form", FORMS)
@PROPERTY
@given(shape=SHAPES)
def test_attnlrp_loses_exactly_what_the_softmax_keeps(shape, form):
    model, x, relevance = toy(shape)
    (actual,) = explain(AttnLRPComposite(strict=True), model, [x], relevance, form)
    _, _, kept, _ = run_oracles(model.oracles("attnlrp"), x, relevance)
    scale = float(actual.abs().sum() + relevance.abs().sum()) + abs(kept)
    assert abs(float(actual.sum()) + kept - float(relevance.sum())) <= 1e-9 * scale


def test_the_softmax_keeps_something():
    """The property above would hold of a rule that keeps nothing, were nothing kept."""
    model, x, relevance = toy(((2, 2), 4, 5, 2, 3))
    _, _, kept, _ = run_oracles(model.oracles("attnlrp"), x, relevance)
    assert abs(kept) > 1e-3 * float(relevance.abs().sum())


# --------------------------------------------------------------------------------------------------------------------
# The signal at inner tensors
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", ["attnlrp", "cp"])
def test_retained_gradients_are_relevances(rule, form):
    """``.grad`` of an inner tensor is its relevance; input times ``.grad`` in the gradient form."""
    model = Llama(4, 2, 2, 6, 3, 5)
    x = randn(2, 4, 8)
    relevance = relevance_like(model(x).detach())
    _, _, _, behind = run_oracles(model.oracles(rule), x, relevance)
    composite = COMPOSITES[rule](strict=True)
    with (input_x_gradient(composite) if form == "gradient" else composite).context(model):
        output = model(x.clone().requires_grad_())
        for inner in model.exposed.values():
            inner.retain_grad()
        output.backward(signal_of(output, relevance, form))
    actual = [relevance_of(inner, inner.grad, form) for inner in model.exposed.values()]
    assert_relevance(actual, behind)


class Exposes(torch.nn.Module):
    """A head of attention that keeps what it computes."""

    def forward(self, q, k, v):
        self.scores = q @ k.mT
        self.weights = F.softmax(self.scores, -1)
        self.mixed = self.weights @ v
        self.gate = torch.sigmoid(self.mixed)
        self.gated = self.gate * v
        self.normal = F.layer_norm(self.gated, self.gated.shape[-1:])
        for inner in (self.scores, self.weights, self.mixed, self.gate, self.gated, self.normal):
            inner.retain_grad()
        return self.normal


@pytest.mark.parametrize("form", FORMS)
def test_retained_gradients_at_operators(form):
    q, k, v = tensors((3, 4), (3, 4), (3, 4))
    module = Exposes()
    with (input_x_gradient(AttnLRPComposite()) if form == "gradient" else AttnLRPComposite()).context(module):
        output = module(*(x.clone().requires_grad_() for x in (q, k, v)))
        relevance = relevance_like(output.detach())
        output.backward(signal_of(output, relevance, form))
    weights = torch.softmax(q @ k.mT, -1)
    mixed = weights @ v
    gate = torch.sigmoid(mixed)
    on_gated = oracle.layer_norm(gate * v, (4,), None, None, relevance)
    on_gate, _ = oracle.product(gate, v, on_gated)
    on_mixed = oracle.activation(on_gate)
    on_weights, _ = oracle.matmul(weights, v, on_mixed)
    on_scores = oracle.softmax(q @ k.mT, on_weights)
    expected = {"normal": relevance, "gated": on_gated, "gate": on_gate, "mixed": on_mixed}
    expected |= {"weights": on_weights, "scores": on_scores}
    for name, wanted in expected.items():
        inner = getattr(module, name)
        assert_relevance([relevance_of(inner, inner.grad, form)], [wanted])


# --------------------------------------------------------------------------------------------------------------------
# Choices of a policy, and where it holds
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("attention", ["uniform", "value"])
@pytest.mark.parametrize("product", ["uniform", "gate"])
def test_choices_can_be_mixed(attention, product, form):
    """Attention of one paper, gates of the other."""
    q, k, v, g = tensors((2, 3, 4), (2, 3, 4), (2, 3, 4), (2, 3, 4))

    def call(q, k, v, g):
        return F.scaled_dot_product_attention(q, k, v) * F.silu(g)

    def expected(relevance):
        heads = [side.unsqueeze(1) for side in (q, k, v)]
        mixed = oracle.attention_forward(*heads)[0].squeeze(1)
        on_g, on_mixed = oracle.gated(g, mixed, relevance, {"uniform": "attnlrp", "gate": "cp"}[product])
        rule = {"uniform": "attnlrp", "value": "cp"}[attention]
        return [*(on.squeeze(1) for on in oracle.attention(*heads, on_mixed.unsqueeze(1), rule=rule)[:3]), on_g]

    operators = Operators(attention, product, "constant", "identity", strict=True)
    module = Calls(call)
    relevance = relevance_like(module(q, k, v, g))
    composite = LayerMapComposite([((Calls,), operators)])
    assert_relevance(explain(composite, module, [q, k, v, g], relevance, form), expected(relevance))


def test_gradient_everywhere_is_input_times_gradient():
    """``"gradient"`` leaves each kind to plain autograd."""
    q, k, v = tensors((3, 4), (3, 4), (3, 4))

    def call(q, k, v):
        return F.layer_norm(F.silu(F.softmax(q @ k.mT, -1) @ v) * v / k.norm(), (4,))

    operators = Operators("gradient", "gradient", "gradient", "gradient", strict=True)
    module = Calls(call)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    output = call(*leaves)
    relevance = relevance_like(output.detach())
    gradients = torch.autograd.grad(output, leaves, relevance / output.detach())
    expected = [(x * gradient).detach() for x, gradient in zip(leaves, gradients, strict=True)]
    composite = LayerMapComposite([((Calls,), operators)])
    for form in FORMS:
        assert_relevance(explain(composite, module, [q, k, v], relevance, form), expected)


class Outer(torch.nn.Module):
    """A product of a product: the inner one is of another module."""

    def __init__(self):
        super().__init__()
        self.inner = Calls(lambda a, b: F.silu(a) * b)

    def forward(self, a, b):
        return F.silu(b) * self.inner(a, b)


@pytest.mark.parametrize("form", FORMS)
def test_the_innermost_module_decides(form):
    a, b = tensors((3, 4), (3, 4))
    module = Outer()
    relevance = relevance_like(module(a, b))
    composite = NameMapComposite([(("",), AttnLRP(strict=True)), (("inner",), Operators(product="gate"))])
    on_outer_gate, on_inner = oracle.gated(b, F.silu(a) * b, relevance)
    on_a, on_b = oracle.gated(a, b, on_inner, "cp")
    actual = explain(composite, module, [a, b], relevance, form)
    assert_relevance(actual, [on_a, on_b + on_outer_gate])


def test_after_the_context_everything_is_as_before():
    model = Llama(2, 1, 2, 6, 1, 0)
    x = randn(1, 3, 4).requires_grad_()

    def gradient():
        output = model(x)
        return torch.autograd.grad(output.sum(), [x, *model.parameters()])

    before = gradient()
    for composite in (AttnLRPComposite(), input_x_gradient(CPLRPComposite())):
        with composite.context(model):
            model(x)
        with pytest.raises(ZeroDivisionError), composite.context(model):
            raise ZeroDivisionError
        torch.testing.assert_close(gradient(), before, rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_a_backward_pass_after_the_context_gives_the_same_relevance(form):
    model = Llama(2, 1, 2, 6, 1, 0)
    x = randn(1, 3, 4)
    relevance = relevance_like(model(x).detach())
    (expected,) = explain(AttnLRPComposite(), model, [x], relevance, form)
    leaf = x.clone().requires_grad_()
    with (input_x_gradient(AttnLRPComposite()) if form == "gradient" else AttnLRPComposite()).context(model):
        output = model(leaf)
    (signal,) = torch.autograd.grad(output, leaf, signal_of(output, relevance, form))
    # the same computation: equal to the last bit
    torch.testing.assert_close(relevance_of(leaf, signal, form), expected, rtol=0, atol=0)


# --------------------------------------------------------------------------------------------------------------------
# Operations that nobody knows
# --------------------------------------------------------------------------------------------------------------------


def overridable(function):
    """A function that reaches operator rules, and that nobody has registered yet, so that no test changes another."""

    def wave(*inputs):
        if torch.overrides.has_torch_function(inputs):
            return torch.overrides.handle_torch_function(wave, inputs, *inputs)
        return function(*inputs)

    return wave


class Waves(torch.nn.Module):
    """An operation without a rule, deep inside of a model."""

    def __init__(self, function=torch.sin):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4).double(), Calls(function)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("function", "name"), [(torch.sin, "sin"), (torch.cos, "cos"), (torch.i0, "i0")])
def test_unknown_operations_are_reported(function, name, form):
    model = Waves(function)
    x = randn(2, 4).requires_grad_()
    composite = AttnLRPComposite()
    with (input_x_gradient(composite) if form == "gradient" else composite).context(model):
        with pytest.warns(UnknownOperationWarning, match=rf"{name}[\s\S]*layers\.1[\s\S]*Calls") as record:
            model(x)
        assert len(record) == 1
        model(x)  # once for each place: a second warning would be an error


class Square(torch.autograd.Function):
    """An operation with a backward pass of its own, as fused kernels bring it along."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "function",
    [
        torch.lgamma,
        lambda x: x.digamma(),
        lambda x: x.logcumsumexp(-1),
        lambda x: x**x,
        lambda x: torch.ops.aten.sin(x),
        lambda x: torch.vmap(torch.sin)(x),
        lambda x: torch.fft.rfft(x).tanh().real,
        lambda x: F.prelu(x, x[0]),
        lambda x: torch.div(x, 0.5, rounding_mode="floor"),
        lambda x: F.layer_norm(x, (4,), weight=x[0]),
        lambda x: F.layer_norm(x, (4,), bias=x[0]),
        lambda x: F.rms_norm(x, (4,), weight=x[0]),
        lambda x: F.group_norm(x, 2, weight=x[0]),
        lambda x: F.instance_norm(x[None], weight=x[:, 0]),
        lambda x: F.batch_norm(x, x[0].detach(), x[0].detach() ** 2, bias=x[0]),
        Square.apply,
    ],
    ids=(
        "lgamma digamma logcumsumexp power torch.ops vmap complex prelu rounded layer_norm_weight layer_norm_bias "
        "rms_norm group_norm instance_norm batch_norm autograd.Function"
    ).split(),
)
def test_nothing_without_a_rule_passes_unnoticed(function, form):
    model = Waves(function)
    model.layers[0] = torch.nn.Softplus()
    strict = AttnLRPComposite(strict=True)
    with (
        (input_x_gradient(strict) if form == "gradient" else strict).context(model),
        # a function of autograd is found in the graph, which does not know the module
        pytest.raises(UnknownOperationError, match=r"layers\.1|Square"),
    ):
        model(randn(2, 4).requires_grad_())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("composite", [AttnLRPComposite, CPLRPComposite])
def test_unknown_operations_are_errors_when_strict(composite, form):
    model = Waves()
    strict = composite(strict=True)
    with (
        (input_x_gradient(strict) if form == "gradient" else strict).context(model),
        pytest.raises(UnknownOperationError, match=r"sin[\s\S]*layers\.1[\s\S]*Calls"),
    ):
        model(randn(2, 4).requires_grad_())


def test_unknown_methods_are_reported_too():
    model = Waves(lambda x: x.cos())
    with (
        AttnLRPComposite(strict=True).context(model),
        pytest.raises(UnknownOperationError, match=r"cos[\s\S]*layers\.1"),
    ):
        model(randn(2, 4).requires_grad_())


def test_another_model_is_reported_anew():
    for _ in range(2):
        model = Waves()
        with AttnLRPComposite().context(model), pytest.warns(UnknownOperationWarning, match="sin"):
            model(randn(2, 4).requires_grad_())


def test_what_does_not_depend_on_the_input_is_not_reported():
    """Position embeddings are full of sine and cosine; comparisons carry no relevance."""

    def call(x):
        positions = torch.arange(4).double()
        return torch.where(x > x.argmax(-1, keepdim=True), x, x * positions.cos()) + positions.sin().exp()

    x, positions = randn(2, 4), torch.arange(4).double()
    taken = x > x.argmax(-1, keepdim=True)

    def affine_here(x):
        return torch.where(taken, x, x * positions.cos()) + positions.sin().exp()

    check(call, [x], "attnlrp", "gradient", lambda relevance: [oracle.affine(affine_here, x, relevance)])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("function", [overridable(torch.sin), torch.special.bessel_j0], ids=["own", "of torch"])
def test_registered_operators_are_not_reported(function, form):
    register_operator(function, "activation")
    model = Waves(function)
    x = randn(2, 4)
    relevance = relevance_like(model(x).detach())
    layer = model.layers[0]
    actual = explain(AttnLRPComposite(strict=True), model, [x], relevance, form)
    expected = oracle.linear(x, layer.weight.detach(), layer.bias.detach(), oracle.activation(relevance))
    assert_relevance(actual, [expected])


@pytest.mark.parametrize("form", FORMS)
def test_registered_products_share_equally(form):
    function = overridable(torch.hypot)
    register_operator(function, "product")
    a, b = tensors((3, 4), (3, 4))

    def expected(relevance):
        output = torch.hypot(a, b)
        # half of input times gradient: d hypot / da = a / hypot
        return [relevance / 2 * a * a / output**2, relevance / 2 * b * b / output**2]

    check(function, [a, b], "attnlrp", form, expected)


def test_a_registration_holds_for_later_contexts_of_the_same_composite():
    function = overridable(torch.sin)
    composite, model = AttnLRPComposite(strict=True), Waves(function)
    x = randn(2, 4).requires_grad_()
    with composite.context(model), pytest.raises(UnknownOperationError, match=r"wave[\s\S]*layers\.1"):
        model(x)
    register_operator(function, "activation")
    with composite.context(model):
        model(x)


def test_registering_a_kind_that_there_is_not_names_those_that_there_are():
    with pytest.raises(ValueError, match="linear"):
        register_operator(torch.sin, "wave")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.sin(), "never reaches __torch_function__"),
        (torch.nn.SiLU, "never reaches __torch_function__"),
        (torch.softmax, "of the kind 'softmax'"),
    ],
)
def test_a_registration_that_would_change_nothing_or_other_models_is_refused(function, message):
    with pytest.raises(ValueError, match=message):
        register_operator(function, "activation")


@pytest.mark.parametrize("function", [torch.var_mean, torch.std_mean])
@pytest.mark.parametrize("form", FORMS)
def test_a_mean_that_comes_with_a_statistic_is_linear(function, form):
    class Centred(torch.nn.Module):
        def forward(self, x):
            spread, mean = function(x, -1, keepdim=True)
            return (x - mean) / (spread + 1)

    x, relevance = randn(3, 5), randn(3, 5, seed=1)
    _, mean = function(x, -1, keepdim=True)
    share = relevance / (x - mean)
    expected = x * (share - share.mean(-1, keepdim=True))
    leaf = x.clone().requires_grad_()
    composite = CPLRPComposite(strict=True)
    with (input_x_gradient(composite) if form == "gradient" else composite).context(Centred()) as model:
        output = model(leaf)
        start = relevance / output.detach() if form == "gradient" else relevance
        (signal,) = torch.autograd.grad(output, leaf, start)
    # a sum of a handful of terms in float64
    torch.testing.assert_close(x * signal if form == "gradient" else signal, expected, rtol=1e-9, atol=1e-9)


def test_a_power_is_a_gate_in_both_forms():
    class Squared(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.up = (torch.nn.Linear(5, 4, bias=False, dtype=torch.float64) for _ in range(2))

        def forward(self, x):
            return F.relu(self.gate(x)).pow(2) * self.up(x) + self.gate(x) ** 3 * self.up(x)

    model, x, found = Squared(), randn(3, 5), []
    for form in FORMS:
        leaf = x.clone().requires_grad_()
        composite = CPLRPComposite(strict=True)
        with (input_x_gradient(composite) if form == "gradient" else composite).context(model):
            output = model(leaf)
            (signal,) = (
                torch.autograd.grad(output.sum(), leaf)
                if form == "gradient"
                else torch.autograd.grad(output, leaf, output)
            )
        found.append(x * signal if form == "gradient" else signal)
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_a_power_of_a_number_is_a_constant_where_its_exponent_is(form):
    """Rates of positions, as ALiBi and XLNet compute them."""
    (x,) = tensors((3, 4))
    check(lambda x: x * torch.pow(2, torch.arange(4.0, dtype=x.dtype)), [x], "cp", form, lambda relevance: [relevance])
