"""What a random network is made of: operations on tensors of one shape, each with its rule from the papers.

An operation has a *reference*, how its values are computed by the book, its *relevance*, by :mod:`oracle`, and
*variants*, how people write it. The network runs a variant, the oracle never does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import oracle
import torch
import torch.nn.functional as F
from torch import nn

BATCH, TOKENS, WIDTH = SHAPE = (2, 3, 4)
PRESETS = ("attnlrp", "cp")


@dataclass(frozen=True)
class Operation:
    """An operation of one or several tensors."""

    inputs: int
    reference: Callable[..., Any]
    #: (module, values, value, relevance, preset) -> relevance of each input
    relevance: Callable[..., Any]
    variants: tuple[Callable[..., Any], ...]
    make: Callable[[], nn.Module] = nn.Module
    presets: tuple[str, ...] = PRESETS
    #: Computed where no rule can see it: it has to be reported.
    unseen: bool = False
    #: (module, values) -> where a value decides that rounding may change, such as a zero that is shared out.
    doubtful: Callable[..., Any] | None = None


class Constant(nn.Module):
    """A parameter of the shape of the values, far from zero, or another one."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        value = torch.rand(shape or SHAPE) + 0.5
        self.value = nn.Parameter(value * (torch.rand(value.shape) < 0.5).mul(2).sub(1))


def on(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn a function of tensors into one that has a module first."""
    return lambda module, *values: function(*values)


# linear maps


def of_linear(module: Any, values: Any, value: Any, relevance: Any, preset: str) -> Any:
    return (oracle.linear(values[0], module.weight, module.bias, relevance),)


def by_addmm(module: Any, x: Any) -> Any:
    bias = module.bias if module.bias is not None else x.new_zeros(WIDTH)
    return torch.addmm(bias, x.flatten(0, 1), module.weight.t()).unflatten(0, (BATCH, TOKENS))


def by_einsum(module: Any, x: Any) -> Any:
    value = torch.einsum("bnd,ed->bne", x, module.weight)
    return value if module.bias is None else value + module.bias


def by_weight(module: Any, x: Any) -> Any:
    value = x @ module.weight.mT
    return value if module.bias is None else value.add_(module.bias)


LINEAR = Operation(
    1,
    lambda module, x: x @ module.weight.T + (0 if module.bias is None else module.bias),
    of_linear,
    (
        lambda module, x: module(x),
        lambda module, x: F.linear(x, module.weight, module.bias),
        lambda module, x: module(x.view(-1, WIDTH)).view(SHAPE) if x.is_contiguous() else module(x),
        by_addmm,
        by_einsum,
        by_weight,
    ),
    lambda: nn.Linear(WIDTH, WIDTH, bias=bool(torch.rand(()) < 0.5)),
)


def affine(function: Callable[..., Any], *variants: Callable[..., Any], make: Any = nn.Module) -> Operation:
    """Return the operation of an affine function of one tensor."""

    def relevance(module: Any, values: Any, value: Any, relevance: Any, preset: str) -> Any:
        return (oracle.affine(lambda x: function(module, x), values[0], relevance),)

    return Operation(1, function, relevance, (function, *variants), make)


CONVOLUTION = affine(lambda module, x: module(x), make=lambda: nn.Conv1d(TOKENS, TOKENS, 3, padding=1))
POOLING = affine(
    on(lambda x: F.avg_pool1d(x, 3, 1, 1)), lambda _, x: torch.nn.AvgPool1d(3, stride=1, padding=1).forward(x)
)
CENTRING = affine(
    on(lambda x: x - 0.5 * x.mean(-1, keepdim=True)),
    lambda _, x: torch.sub(x, x.mean(dim=-1, keepdim=True), alpha=0.5),
    lambda _, x: x.clone().sub_(x.sum(-1, keepdim=True) / (2 * WIDTH)),
)
CENTRING = replace(CENTRING, doubtful=on(lambda x: x.mean(-1)))
SUMMING = affine(on(lambda x: x.cumsum(1)), lambda _, x: torch.tril(torch.ones(TOKENS, TOKENS).to(x)) @ x)
SCALING = affine(
    lambda module, x: x * module.value / 3,
    lambda module, x: x.mul(module.value).div(3),
    lambda module, x: torch.addcmul(torch.zeros_like(x), x, module.value, value=1 / 3),
    lambda module, x: x.clone().mul_(module.value) / torch.tensor(3.0).to(x),
    make=Constant,
)


# sums


def of_sum(terms: Callable[..., Any]) -> Callable[..., Any]:
    def relevance(module: Any, values: Any, value: Any, relevance: Any, preset: str) -> Any:
        return oracle.addition(terms(module, *values), relevance)[: len(values)]

    return relevance


def add_to_a_slice(module: Any, a: Any, b: Any) -> Any:
    value = a.clone()
    value[..., :2] += b[..., :2]
    value[..., 2:].add_(b[..., 2:])
    return value


ADDITION = Operation(
    2,
    on(lambda a, b: a + b),
    of_sum(lambda _, a, b: [a, b]),
    (
        on(lambda a, b: a + b),
        on(lambda a, b: torch.add(input=a, other=b)),
        on(lambda a, b: a.clone().add_(b)),
        on(lambda a, b: torch.stack([a, b]).sum(0)),
        on(lambda a, b: sum([a, b])),
        on(lambda a, b: a - (-b)),
        on(lambda a, b: torch.lerp(a, b, 0.5) * 2),
        add_to_a_slice,
    ),
)
DIFFERENCE = Operation(
    2,
    on(lambda a, b: a - 2 * b),
    of_sum(lambda _, a, b: [a, -2 * b]),
    (
        on(lambda a, b: a - 2 * b),
        on(lambda a, b: torch.sub(a, b, alpha=2)),
        on(lambda a, b: torch.rsub(b, a, alpha=2)),
        on(lambda a, b: a.clone().sub_(b, alpha=2)),
        on(lambda a, b: b.mul(-2).add_(a)),
    ),
)
SHIFT = Operation(
    1,
    lambda module, a: a + module.value,
    of_sum(lambda module, a: [a, module.value]),
    (
        lambda module, a: a + module.value,
        lambda module, a: a.clone().add_(module.value),
        lambda module, a: a + a.detach() * 0 + module.value,
    ),
    Constant,
)
DETACHED = Operation(
    2,
    on(lambda a, b: a + b),
    lambda module, values, value, relevance, preset: (
        oracle.addition(list(values), relevance)[0],
        torch.zeros_like(values[1]),
    ),
    (on(lambda a, b: a + b.detach()), on(lambda a, b: a + b.clone().detach_()), on(lambda a, b: a + b.data)),
)


# products


def write_product(module: Any, a: Any, b: Any) -> Any:
    value = a.clone()
    value[:, 0].mul_(b[:, 0])
    value[:, 1:] *= b[:, 1:]
    return value


PRODUCT = Operation(
    2,
    on(lambda a, b: a * b),
    lambda module, values, value, relevance, preset: oracle.product(*values, relevance),
    (
        on(lambda a, b: a * b),
        on(lambda a, b: torch.multiply(a, b)),
        on(lambda a, b: a.clone().mul_(b)),
        on(lambda a, b: torch.einsum("bnd,bnd->bnd", a, b)),
        on(lambda a, b: torch.addcmul(torch.zeros_like(a), a, b)),
        on(lambda a, b: torch.stack([a, b]).prod(0)),
        write_product,
    ),
    presets=("attnlrp",),
)


def of_matmul(values: Any, relevance: Any) -> Any:
    a, b = values
    padded = torch.cat([relevance, relevance.new_zeros(BATCH, WIDTH - TOKENS, WIDTH)], 1)
    on_left, on_right = oracle.matmul(a.mT, b, padded)
    return on_left.mT, on_right


# the product is (batch, width, width): the first rows of it
MATMUL = Operation(
    2,
    on(lambda a, b: (a.mT @ b)[:, :TOKENS]),
    lambda module, values, value, relevance, preset: of_matmul(values, relevance),
    (
        on(lambda a, b: (a.mT @ b)[:, :TOKENS]),
        on(lambda a, b: torch.bmm(a.transpose(1, 2), b).narrow(1, 0, TOKENS)),
        on(lambda a, b: torch.einsum("bni,bnj->bij", a, b)[:, :TOKENS]),
        on(lambda a, b: torch.baddbmm(torch.zeros(WIDTH, WIDTH).to(a), a.mT, b)[:, :TOKENS]),
        on(lambda a, b: torch.stack([x.t().mm(y) for x, y in zip(a, b, strict=True)])[:, :TOKENS]),
    ),
    presets=("attnlrp",),
)


# attention


def heads(x: Any) -> Any:
    return x.unflatten(-1, (2, WIDTH // 2)).transpose(1, 2)


def mask_of(module: Any) -> Any:
    return oracle.causal_mask(TOKENS) if module.causal else torch.zeros(TOKENS, TOKENS, dtype=torch.float64)


class Causal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.causal = bool(torch.rand(()) < 0.5)


def attention(weights: Callable[..., Any]) -> Callable[..., Any]:
    """Return eager attention with a way to write its softmax."""

    def run(module: Any, q: Any, k: Any, v: Any) -> Any:
        q, k, v = map(heads, (q, k, v))
        scores = q @ k.mT * q.shape[-1] ** -0.5
        return (weights(scores, mask_of(module)) @ v).transpose(1, 2).flatten(2)

    return run


def fused(module: Any, q: Any, k: Any, v: Any) -> Any:
    return F.scaled_dot_product_attention(*map(heads, (q, k, v)), attn_mask=mask_of(module)).transpose(1, 2).flatten(2)


def by_bmm(module: Any, q: Any, k: Any, v: Any) -> Any:
    q, k, v = (heads(x).reshape(2 * BATCH, TOKENS, -1) for x in (q, k, v))
    scores = torch.baddbmm(mask_of(module), q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5)
    mixed = torch.bmm(F.dropout(F.softmax(scores, dim=-1), 0.1, training=False), v)
    return mixed.view(BATCH, 2, TOKENS, -1).transpose(1, 2).reshape(SHAPE)


def quotient(scores: Any, mask: Any) -> Any:
    e = (scores + mask).exp()
    return e / e.sum(-1, keepdim=True)


def shifted_quotient(scores: Any, mask: Any) -> Any:
    scores = scores.masked_fill(mask < 0, -math.inf)
    e = (scores - scores.amax(-1, keepdim=True)).exp().clone()
    return e.div_(e.sum(-1, keepdim=True))


def of_attention(module: Any, values: Any, value: Any, relevance: Any, preset: str) -> Any:
    sides = [oracle.to_heads(x, 2) for x in values]
    return map(
        oracle.from_heads, oracle.attention(*sides, oracle.to_heads(relevance, 2), mask_of(module), rule=preset)[:3]
    )


ATTENTION = Operation(
    3,
    lambda module, q, k, v: oracle.from_heads(
        oracle.attention_forward(*(oracle.to_heads(x, 2) for x in (q, k, v)), mask_of(module))[0]
    ),
    of_attention,
    (
        fused,
        by_bmm,
        attention(lambda scores, mask: torch.softmax(scores + mask, -1)),
        attention(lambda scores, mask: scores.masked_fill(mask < 0, -math.inf).softmax(-1)),
        attention(lambda scores, mask: (scores + mask).log_softmax(-1).exp()),
        attention(quotient),
        attention(shifted_quotient),
    ),
    Causal,
)


# norms


def written_layer_norm(module: Any, x: Any) -> Any:
    centred = x - x.mean(-1, keepdim=True)
    return module.weight * centred / (centred.pow(2).mean(-1, keepdim=True) + module.eps).sqrt() + module.bias


def in_place_layer_norm(module: Any, x: Any) -> Any:
    centred = x - x.mean(-1, keepdim=True)
    normal = centred.clone().mul_(torch.rsqrt(centred.square().mean(-1, keepdim=True) + module.eps))
    return normal.mul_(module.weight).add_(module.bias)


def by_var(module: Any, x: Any) -> Any:
    var, mean = torch.var_mean(x, -1, keepdim=True, unbiased=False)
    return torch.div(x - mean, torch.sqrt(var + module.eps)).mul(module.weight) + module.bias


def random_norm(norm: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        module = norm()
        for parameter in module.parameters():
            nn.init.uniform_(parameter, 0.5, 1.5)
        return module

    return make


LAYER_NORM = Operation(
    1,
    lambda module, x: oracle.norm(x, module.weight, module.bias, module.eps),
    lambda module, values, value, relevance, preset: (
        oracle.layer_norm(values[0], (WIDTH,), module.weight, module.bias, relevance, module.eps),
    ),
    (
        lambda module, x: module(x),
        lambda module, x: F.layer_norm(x, (WIDTH,), module.weight, module.bias, module.eps),
        written_layer_norm,
        in_place_layer_norm,
        by_var,
    ),
    random_norm(lambda: nn.LayerNorm(WIDTH)),
    doubtful=on(lambda x: x - x.mean(-1, keepdim=True)),
)
RMS_NORM = Operation(
    1,
    lambda module, x: oracle.rms(x, module.weight, module.eps),
    lambda module, values, value, relevance, preset: (
        oracle.rms_norm(values[0], (WIDTH,), module.weight, relevance, module.eps),
    ),
    (
        lambda module, x: module(x),
        lambda module, x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.eps) * module.weight,
        lambda module, x: module.weight * (x / (x.square().mean(-1, True) + module.eps).sqrt()),
        lambda module, x: x.clone().div_(((x * x).mean(-1, True) + module.eps) ** 0.5).mul_(module.weight),
    ),
    random_norm(lambda: nn.RMSNorm(WIDTH, eps=1e-5)),
)
GROUP_NORM = Operation(
    1,
    lambda module, x: F.group_norm(x, module.num_groups, module.weight, module.bias, module.eps),
    lambda module, values, value, relevance, preset: (
        oracle.group_norm(values[0], module.num_groups, module.weight, module.bias, relevance, module.eps),
    ),
    (
        lambda module, x: module(x),
        lambda module, x: F.group_norm(x, module.num_groups, module.weight, module.bias, module.eps),
    ),
    random_norm(lambda: nn.GroupNorm(1 if torch.rand(()) < 0.5 else TOKENS, TOKENS)),
    doubtful=lambda module, x: F.group_norm(x, module.num_groups),
)
DIVISION = Operation(
    2,
    on(lambda a, b: a / (b.abs() + 1)),
    lambda module, values, value, relevance, preset: (relevance, torch.zeros_like(relevance)),
    (
        on(lambda a, b: a / (b.abs() + 1)),
        on(lambda a, b: torch.div(a, other=b.abs() + 1)),
        on(lambda a, b: a.clone().div_(1 + b.abs())),
        on(lambda a, b: a * (b.abs() + 1).reciprocal()),
        on(lambda a, b: a * (b.abs() + 1).pow(-1)),
    ),
)


# element-wise functions


def element_wise(*variants: Callable[..., Any]) -> Operation:
    """Return the operation of a function of each element, which passes relevance on as it is."""
    functions = tuple(map(on, variants))
    return Operation(1, functions[0], lambda module, values, value, relevance, preset: (relevance,), functions)


def in_place_on_halves(name: str) -> Callable[..., Any]:
    def run(x: Any) -> Any:
        value = x.clone()
        for half in (value[..., :2], value[..., 2:]):
            getattr(half, name)()
        return value

    return run


ACTIVATIONS = (
    element_wise(F.gelu, lambda x: nn.GELU()(x)),
    element_wise(F.silu, lambda x: F.silu(x.clone(), inplace=True)),
    element_wise(torch.tanh, torch.Tensor.tanh, lambda x: x.clone().tanh_(), in_place_on_halves("tanh_")),
    element_wise(torch.relu, lambda x: nn.ReLU(inplace=True)(x.clone()), in_place_on_halves("relu_")),
    element_wise(lambda x: F.leaky_relu(x, 0.2), lambda x: F.leaky_relu(x.clone(), 0.2, inplace=True)),
    element_wise(F.mish, lambda x: nn.Mish(inplace=True)(x.clone())),
    element_wise(F.elu, lambda x: F.elu(x.clone(), inplace=True)),
    element_wise(torch.square, lambda x: x**2, lambda x: x.pow(2), lambda x: x.clone().pow_(2)),
    element_wise(torch.abs, torch.Tensor.abs, lambda x: x.clone().abs_()),
    # wide, as a norm of elements that are all bounded alike has exact zeros, at which the forms differ
    element_wise(lambda x: x.clamp(-4, 4), lambda x: x.clone().clamp_(-4, 4), lambda x: torch.clip(x, -4, 4)),
    element_wise(lambda x: torch.remainder(x, 1.5), lambda x: x % 1.5, lambda x: x.clone().remainder_(1.5)),
)


def of_gated(module: Any, values: Any, value: Any, relevance: Any, preset: str) -> Any:
    gate, up = (values[0] @ layer.weight.T for layer in (module.gate, module.up))
    on_gate, on_up = oracle.gated(gate, up, relevance, preset)
    return (
        oracle.linear(values[0], module.gate.weight, None, on_gate)
        + oracle.linear(values[0], module.up.weight, None, on_up),
    )


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))


GATED = Operation(
    1,
    lambda module, x: oracle.silu(x @ module.gate.weight.T) * (x @ module.up.weight.T),
    of_gated,
    (
        lambda module, x: F.silu(module.gate(x)) * module.up(x),
        lambda module, x: module.up(x) * F.silu(module.gate(x)),
        lambda module, x: module.up(x).clone().mul_(F.silu(module.gate(x), inplace=True)),
        lambda module, x: (
            F.silu((both := F.linear(x, torch.cat([module.gate.weight, module.up.weight]))).chunk(2, -1)[0])
            * both.split(WIDTH, -1)[1]
        ),
    ),
    Gated,
)


# routing


def routing(inputs: int, *variants: Callable[..., Any]) -> Operation:
    """Return the operation of a function that moves elements, by its effect on their numbers."""
    functions = tuple(map(on, variants))
    size = math.prod(SHAPE)

    def relevance(module: Any, values: Any, value: Any, relevance: Any, preset: str) -> Any:
        numbers = [torch.arange(size).reshape(SHAPE).double() + place * size for place in range(inputs)]
        found = torch.zeros(inputs * size, dtype=torch.float64)
        for number, share in zip(functions[0](None, *numbers).flatten(), relevance.flatten(), strict=True):
            found[int(number)] += share
        return found.reshape(inputs, *SHAPE).unbind(0)

    return Operation(inputs, functions[0], relevance, functions)


def turned(x: Any) -> Any:
    value = torch.empty_like(x)
    value[..., 1:] = x[..., :-1]
    value[..., 0] = x[..., -1]
    return value


def tokens_swapped(a: Any, b: Any) -> Any:
    value = a.clone()
    value[:, 1] = b[:, 1]
    return value


PLACES = torch.tensor([2, 0, 1])
MASK = torch.tensor([True, False, True, True])
MOVES = (
    routing(1, lambda x: x.roll(1, -1), turned, lambda x: torch.cat([x[..., -1:], x[..., :-1]], -1)),
    routing(1, lambda x: x.flip(-1), lambda x: x[..., [3, 2, 1, 0]], lambda x: torch.flip(x, (2,))),
    routing(
        1,
        lambda x: x[:, PLACES],
        lambda x: x.index_select(1, PLACES),
        lambda x: torch.stack([x[:, p] for p in (2, 0, 1)], 1),
    ),
    routing(1, lambda x: x.mT.reshape(SHAPE), lambda x: x.transpose(1, 2).contiguous().view(SHAPE)),
    routing(
        1,
        lambda x: x[:, :1].expand(SHAPE),
        lambda x: x[:, :1].repeat(1, TOKENS, 1),
        lambda x: x[:, 0][:, None].tile(1, 3, 1),
    ),
    routing(
        1,
        lambda x: x,
        lambda x: x.clone(),
        lambda x: x.to(torch.float64),
        lambda x: x.view_as(x),
        lambda x: x.double().type_as(x),
    ),
    routing(
        2,
        lambda a, b: torch.where(MASK, a, b),
        lambda a, b: b.masked_scatter(MASK.expand(SHAPE), a[..., MASK]),
        lambda a, b: torch.where(~MASK, b, a),
    ),
    routing(
        2,
        lambda a, b: torch.cat([a[..., :2], b[..., 2:]], -1),
        lambda a, b: torch.hstack([a[..., :2].mT, b[..., 2:].mT]).mT,
    ),
    routing(
        2,
        tokens_swapped,
        lambda a, b: a.index_copy(1, torch.tensor([1]), b[:, 1:2]),
        lambda a, b: a.slice_scatter(b[:, 1:2], 1, 1, 2),
    ),
)


def of_choice(choose: Callable[..., Any]) -> Callable[..., Any]:
    def relevance(module: Any, values: Any, value: Any, relevance: Any, preset: str) -> Any:
        chosen = choose(*values)
        return relevance * chosen, relevance * ~chosen

    return relevance


MAXIMUM = Operation(
    2,
    on(torch.maximum),
    of_choice(lambda a, b: a > b),
    (
        on(torch.maximum),
        on(torch.max),
        on(lambda a, b: torch.stack([a, b]).amax(0)),
        on(lambda a, b: torch.where(a > b, a, b)),
    ),
    doubtful=on(torch.sub),
)


def of_sorted(module: Any, values: Any, value: Any, relevance: Any, preset: str) -> Any:
    found = torch.zeros_like(relevance)
    return (found.scatter_add(-1, values[0].argsort(-1), relevance),)


SORTED = Operation(
    1,
    on(lambda x: x.sort(-1)[0]),
    of_sorted,
    (
        on(lambda x: x.sort(-1).values),
        on(lambda x: x.topk(WIDTH)[0].flip(-1)),
        on(lambda x: x.gather(-1, x.argsort(-1))),
    ),
    doubtful=on(lambda x: x.sort(-1)[0].diff(dim=-1)),
)


# what is written over a value that others have read


def overwriting(operation: Operation, function: Callable[..., Any]) -> Operation:
    """Return an operation that writes its result over its first input."""
    return replace(operation, variants=(function,))


def write_over(module: Any, a: Any, b: Any) -> Any:
    a[:, 1] = b[:, 1]
    return a


OVERWRITES = (
    overwriting(ACTIVATIONS[2], on(torch.Tensor.tanh_)),
    overwriting(ACTIVATIONS[7], on(lambda x: x.pow_(2))),
    overwriting(ADDITION, on(lambda a, b: a.add_(b))),
    overwriting(DIFFERENCE, on(lambda a, b: a.sub_(b, alpha=2))),
    overwriting(DIVISION, on(lambda a, b: a.div_(b.abs() + 1))),
    overwriting(SHIFT, lambda module, a: a.add_(module.value)),
    overwriting(SCALING, lambda module, a: a.mul_(module.value).div_(3)),
    overwriting(PRODUCT, on(lambda a, b: a.mul_(b))),
    overwriting(MOVES[8], write_over),
)


# what no rule can see


POOL = ThreadPoolExecutor(1)


def disabled(module: Any, a: Any, b: Any) -> Any:
    with torch._C.DisableTorchFunction():
        return a * b


class Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Any, b: Any) -> Any:
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        a, b = ctx.saved_tensors
        return gradient * b, gradient * a


LEARNED = [torch.ones(WIDTH, dtype=torch.float64, requires_grad=True)]
UNSEEN = Operation(
    2,
    on(lambda a, b: a * b),
    PRODUCT.relevance,
    (
        disabled,
        on(lambda a, b: POOL.submit(torch.mul, a, b).result()),
        on(Hidden.apply),
        on(lambda a, b: a * LEARNED[0] + b),
        on(lambda a, b: torch.erfinv(a.tanh() / 2) + b),
    ),
    unseen=True,
)

OPERATIONS = (
    *(LINEAR,) * 4,
    CONVOLUTION,
    POOLING,
    CENTRING,
    SUMMING,
    SCALING,
    *(ADDITION,) * 4,
    DIFFERENCE,
    SHIFT,
    DETACHED,
    *(PRODUCT,) * 3,
    MATMUL,
    *(ATTENTION,) * 3,
    LAYER_NORM,
    RMS_NORM,
    GROUP_NORM,
    DIVISION,
    *ACTIVATIONS,
    *(GATED,) * 2,
    *MOVES,
    MAXIMUM,
    SORTED,
)

#: Where one of these is exactly zero though its terms are not, the forms differ by design: there is nothing to share.
SUMS = (LINEAR, CONVOLUTION, POOLING, SUMMING, CENTRING, ADDITION, DIFFERENCE, SHIFT, DETACHED, LAYER_NORM, GROUP_NORM)
