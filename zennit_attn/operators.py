"""Operator rules: what a module's own forward does with *functions*, looked up in a table *function -> rule*.

Each function of torch that can carry relevance is of one *kind* (:data:`~zennit_attn.catalog.KINDS`). A
:class:`Policy` says how the kinds that need a rule are explained, and :func:`table` turns both into rules for one of
the two forms. A function that is in no kind is reported by :func:`unknown`, never passed silently.

This module does not know modules: which policy holds where is decided by :mod:`zennit_attn.scope`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .catalog import caches, functions, getter
from .functions import Enter, Leave, Normalize, Route, Scale, ScaleEach, Slope, Snapshot

Form = Literal["relevance", "gradient"]
Rule = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]

#: Attribute of a tensor that an activation produced: the gate, should it become a factor of a product.
GATE = "_zennit_attn_gate"


@dataclass(frozen=True)
class Policy:
    """How the operators inside a module are explained.

    Parameters
    ----------
    attention : {"uniform", "value", "gradient"}
        Softmax attention. ``"uniform"`` (AttnLRP, Achtibat et al. 2024, eq. 7, prop. 3.1 and 3.3): relevance through
        query, key and value. ``"value"`` (CP-LRP, Ali et al. 2022): attention weights are constants.
    product : {"uniform", "gate", "gradient"}
        Products of tensors that depend on the input. ``"uniform"`` (AttnLRP, prop. 3.2): equal shares. ``"gate"``
        (CP-LRP): the factor that an activation produced is a constant; equal shares where there is none.
    norm : {"constant", "gradient"}
        Normalisation statistics, denominators, reciprocals. ``"constant"`` is the LN rule (Ali et al. 2022).
    activation : {"identity", "gradient"}
        Element-wise functions. ``"identity"`` (AttnLRP, eq. 9) passes relevance on.

    Notes
    -----
    ``"gradient"`` leaves a kind to plain autograd: Input x Gradient, which does not conserve.
    """

    attention: Literal["uniform", "value", "gradient"] = "uniform"
    product: Literal["uniform", "gate", "gradient"] = "uniform"
    norm: Literal["constant", "gradient"] = "constant"
    activation: Literal["identity", "gradient"] = "identity"

    def key(self, form: Form) -> str:
        """Return the name of the table of this policy in a form, see :func:`find`."""
        return f"{self.attention} {self.product} {self.norm} {self.activation} {form}"

    @classmethod
    def choices(cls) -> dict[str, tuple[str, ...]]:
        """Return the valid choices of each field."""
        hints = inspect.get_annotations(cls, eval_str=True)
        return {name: get_args(hints[name]) for name in cls.__dataclass_fields__}


# --------------------------------------------------------------------------------------------------------------------
# Rules in the gradient form. Each takes the function and its arguments, and calls it.
# --------------------------------------------------------------------------------------------------------------------


def depends(value: Any) -> bool:
    """Tell whether a value is a tensor that depends on the explained input.

    Parameters are frozen while a composite is registered, so that ``requires_grad`` is exactly this test.
    """
    return isinstance(value, Tensor) and value.requires_grad


def operands(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the arguments that depend on the explained input, those inside of lists too."""
    found: list[Tensor] = []
    # called for each product of a model: plain loops are what is fast here
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            if value.requires_grad:
                found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(filter(depends, value))
    return found


def swap(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``change`` to the tensors that depend on the input in a value, a list or a tuple."""
    if isinstance(value, (list, tuple)):
        values = [change(item) if depends(item) else item for item in value]
        return type(value)(*values) if hasattr(value, "_fields") else type(value)(values)
    return change(value) if depends(value) else value


def swap_call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], change: Callable[[Tensor], Tensor]) -> Any:
    """Call ``function`` with ``change`` applied to each argument that depends on the input."""
    return function(*(swap(value, change) for value in args), **{key: swap(kwargs[key], change) for key in kwargs})


def plain(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Leave a linear operation to autograd."""
    return function(*args, **kwargs)


def constant(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Treat statistics and reciprocals as constants."""
    if len(args) == 1 and not kwargs:
        return function(swap(args[0], Tensor.detach))
    return swap_call(function, args, kwargs, Tensor.detach)


def statistics(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Treat the first of two statistics as a constant: the mean that comes with it is linear."""
    spread, mean = function(*args, **kwargs)
    return spread.detach(), mean


def uniform(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Give each of the N operands that depend on the input the N-th part (AttnLRP, prop. 3.2 and 3.3)."""
    if len(args) == 2 and not kwargs and isinstance(args[0], Tensor):
        # nearly every product of a forward, and small models feel each line
        count = depends(args[0]) + depends(args[1])
    else:
        count = len(operands(args, kwargs))
    output = function(*args, **kwargs)
    return output if count < 2 else Scale.apply(output, 1 / count)


def mark(output: Any) -> Any:
    """Mark what an activation produced, see :data:`GATE`."""
    for value in output if isinstance(output, (list, tuple)) else (output,):
        if isinstance(value, Tensor):
            setattr(value, GATE, True)
    return output


def carried(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Leave routing to autograd; a gate that is moved or cast stays one."""
    output = function(*args, **kwargs)
    moved = args[0] if args and isinstance(args[0], (list, tuple)) else args[:1]
    return mark(output) if moved and all(depends(value) and hasattr(value, GATE) for value in moved) else output


def gate(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Take the factor that an activation produced as a constant: the other one gets everything (CP-LRP)."""
    gates = [getattr(value, GATE, False) for value in operands(args, kwargs)]
    if len(gates) == 2 and gates.count(True) == 1:
        return swap_call(function, args, kwargs, lambda value: value.detach() if hasattr(value, GATE) else value)
    return uniform(function, args, kwargs)


def halved(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], places: slice, *others: str) -> Any:
    """Call a function of a product and a summand: the factors, if both depend on the input, get half each.

    Factors are the arguments at ``places``, and those given by any name that is not in ``others``.
    """
    named = {name: value for name, value in kwargs.items() if name not in others}
    if sum(map(depends, (*args[places], *named.values()))) < 2:
        return function(*args, **kwargs)
    half = partial(swap, change=lambda value: Scale.apply(value, 0.5))
    shared = list(args)
    shared[places] = map(half, args[places])
    return function(*shared, **{**kwargs, **{name: half(value) for name, value in named.items()}})


def added(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Share the product in ``input + a * b`` uniformly; the sum is linear."""
    return halved(function, args, kwargs, slice(1, None), "input")


def weighted_sum(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Share ``W x`` uniformly where the weight depends on the input, too; the bias is added."""
    if len(args) > 1 and not depends(args[1]):
        return function(*args, **kwargs)
    return halved(function, args, kwargs, slice(2), "bias")


def interpolation(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Leave it to autograd, unless the weight or the grid depends on the input."""
    first = 1 if getattr(function, "__name__", "") == "grid_sample" else 2
    rest = [*args[first:], *(kwargs[name] for name in ("weight", "grid") if name in kwargs)]
    return (unknown if any(map(depends, rest)) else plain)(function, args, kwargs)


def reduction(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Leave sums, means and extrema to autograd; a product is not known."""
    return (unknown if "prod" in (*args, *kwargs.values()) else plain)(function, args, kwargs)


def division(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Take the denominator as a constant (LN rule)."""
    if "other" in kwargs:
        return function(*args, **{**kwargs, "other": swap(kwargs["other"], Tensor.detach)})
    return function(args[0], *(swap(value, Tensor.detach) for value in args[1:]), **kwargs)


def reversed_division(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Divide ``other / input``, called as a method of the denominator."""
    return function(swap(args[0], Tensor.detach), *args[1:], **kwargs)


def unit(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Divide by a norm, which is a constant: ``torch.nn.functional.normalize``."""

    def run(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None) -> Tensor:
        return input / input.detach().norm(p, dim, keepdim=True).clamp_min(eps).expand_as(input)

    return run(*args, **kwargs)


def power(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str, form: Form) -> Any:
    """Take ``x ** n`` as a reciprocal for negative n, as an element-wise function otherwise."""
    exponent = kwargs.get("exponent", args[1] if len(args) > 1 else None)
    if isinstance(exponent, Tensor) and exponent.requires_grad:
        return unknown(function, args, kwargs)
    if not isinstance(exponent, (int, float)):
        return activation(function, args, kwargs, name, form)
    if exponent < 0:
        return constant(function, args, kwargs)
    if form == "relevance" or exponent == 0:
        return activation(function, args, kwargs, name, form)
    if exponent == 2 and name == "pow" and args:
        # how torch computes a square; the slope is the factor that keeps the graph out
        return mark(args[0] * args[0].detach()) if depends(args[0]) else function(*args, **kwargs)
    # the slope x ** (n - 1) is the derivative over n
    output = function(*args, **kwargs)
    return mark(Scale.apply(output, 1 / exponent)) if depends(output) else output


def uniform_attention(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Give half to the value, a quarter each to query and key (AttnLRP, prop. 3.1 and 3.3)."""
    sides, rest, kwargs = attention_arguments(args, kwargs)
    # of the half that goes to the scores, query and key share; a mask that depends on the input is added to them
    factors = {place: factor for place, factor in enumerate((0.25, 0.25, 0.5, 0.5)) if depends(sides[place])}
    if factors:
        # one node for all: small models feel each
        scaled = ScaleEach.apply(tuple(factors.values()), *(sides[place] for place in factors))
        for place, side in zip(factors, scaled, strict=True):
            sides[place] = side
    return function(*sides, *rest, **kwargs)


def value_attention(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Give everything to the value (CP-LRP, AH rule)."""
    (query, key, value, mask), rest, kwargs = attention_arguments(args, kwargs)
    return function(query.detach(), key.detach(), value, swap(mask, Tensor.detach), *rest, **kwargs)


def attention_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], tuple[Any, ...], Any]:
    """Split the arguments of fused attention into query, key, value and mask, more positional ones, and the others."""
    kwargs = dict(kwargs)
    sides = list(args[:4])
    sides += [kwargs.pop(name, None) for name in ("query", "key", "value", "attn_mask")[len(sides) :]]
    return sides, args[4:], kwargs


# --------------------------------------------------------------------------------------------------------------------
# Element-wise functions
# --------------------------------------------------------------------------------------------------------------------


def ratio(function: Callable[[Tensor], Tensor], input: Tensor) -> Tensor:
    """Return ``f(x) / x``, in float32 or better; zero where x is exactly zero and carries no relevance."""
    wide = input if input.dtype in (torch.float32, torch.float64) else input.float()
    return torch.where(wide == 0, torch.zeros_like(wide), function(wide) / wide).to(input.dtype)


def gelu_slope(input: Tensor, approximate: str = "none") -> Tensor:
    """Return the slope of GELU: the normal distribution function, or its tanh approximation."""
    if approximate == "none":
        return 0.5 * (1 + torch.erf(input * math.sqrt(0.5)))
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (input + 0.044715 * input**3)))


#: Slopes in closed form; every other element-wise function has :func:`ratio`.
SLOPES: dict[str, Callable[..., Tensor]] = {
    "silu": torch.sigmoid,
    "gelu": gelu_slope,
    "mish": lambda input: torch.tanh(F.softplus(input)),
    "softsign": lambda input: 1 / (1 + input.abs()),
    "hardswish": F.hardsigmoid,
    "square": lambda input: input,
    # piecewise linear through zero: the slope is the derivative
    "relu": lambda input: (input > 0).to(input.dtype),
    "leaky_relu": lambda input, negative_slope=0.01: (
        (input > 0).to(input.dtype) * (1 - negative_slope) + negative_slope
    ),
}


def elementwise(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Split the input of an element-wise function from its other arguments, without the order to write in place."""
    kwargs = dict(kwargs)
    if args:
        input, args = args[0], args[1:]
    else:
        input = kwargs.pop("input")
    kwargs.pop("inplace", None)
    # torch.nn.functional writes `inplace` last in every signature that has it
    if args and isinstance(args[-1], bool):
        args = args[:-1]
    return input, args, kwargs


def activation_call(
    form: Form, function: Callable[[Tensor], Tensor], input: Tensor, slope: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Call an element-wise function with the identity rule as its backward pass (AttnLRP, eq. 9).

    Parameters
    ----------
    form : {"relevance", "gradient"}
        In the relevance form relevance passes as it is, in the gradient form it is times the slope ``f(x) / x``.
    function : callable
        ``f``, of the input alone.
    input : torch.Tensor
        ``x``.
    slope : callable, optional
        The slope in closed form.
    """
    if not depends(input):
        return function(input)
    if form == "relevance":
        return mark(Route.apply(input, function))
    return mark(Slope.apply(input, function, partial(ratio, function) if slope is None else slope))


def activation(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str, form: Form) -> Any:
    """Pass relevance on through an element-wise function of torch."""
    input, args, kwargs = elementwise(function, args, kwargs)
    slope = SLOPES.get(name)
    if slope is not None and (args or kwargs):
        # the slope takes the function's own arguments, by position or by name
        slope = partial(lambda closed, x: closed(x, *args, **kwargs), slope)
    return activation_call(form, lambda x: function(x, *args, **kwargs), input, slope)


# --------------------------------------------------------------------------------------------------------------------
# Normalisation layers
# --------------------------------------------------------------------------------------------------------------------


def wide(input: Tensor) -> Tensor:
    """Return the input in float32 or better, as the kernels compute statistics."""
    return input if input.dtype == torch.float64 else input.float()


def layer_norm(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Take the standard deviation as a constant; mean and affine are linear (LN rule; AttnLRP, prop. 3.4)."""

    def run(
        input: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        cudnn_enable: bool = True,
    ) -> Any:
        if not depends(input):
            return function(*args, **kwargs)
        dims = tuple(range(-len(normalized_shape), 0))
        with torch.no_grad():
            tensors: tuple[Any, ...] = (input, weight, bias)
            if torch.is_autocast_enabled(input.device.type):
                # autocast takes layer_norm to float32, but not the kernel that it calls
                tensors = tuple(None if value is None else value.float() for value in tensors)
            # that kernel also returns the statistics
            output, _, rstd = torch.native_layer_norm(tensors[0], tuple(normalized_shape), tensors[1], tensors[2], eps)
        return Normalize.apply(input, output, rstd, weight, lambda signal: signal - signal.mean(dims, keepdim=True))

    return run(*args, **kwargs)


def rms_norm(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Take the root mean square as a constant (LN rule)."""

    def run(
        input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
    ) -> Any:
        if not depends(input):
            return function(*args, **kwargs)
        dims = tuple(range(-len(normalized_shape), 0))
        with torch.no_grad():
            output = function(*args, **kwargs)
            smallest = torch.finfo(input.dtype).eps if eps is None else eps
            rstd = torch.rsqrt(wide(input).square().mean(dims, keepdim=True) + smallest)
        return Normalize.apply(input, output, rstd, weight, None)

    return run(*args, **kwargs)


def group_norm(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Take the standard deviation of groups of channels as a constant (LN rule)."""

    def run(
        input: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        cudnn_enabled: bool = True,
    ) -> Any:
        return grouped(function, args, kwargs, input, num_groups, weight, eps)

    return run(*args, **kwargs)


def instance_norm(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Take the standard deviation of each channel as a constant (LN rule)."""

    def run(
        input: Tensor,
        running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        use_input_stats: bool = True,
        momentum: float = 0.1,
        eps: float = 1e-5,
        cudnn_enabled: bool = True,
    ) -> Any:
        if not use_input_stats:
            return function(*args, **kwargs)
        return grouped(function, args, kwargs, input, input.shape[1], weight, eps)

    # torch.instance_norm has weight and bias before the running statistics
    ordered = (args[0], *args[3:5], *args[1:3], *args[5:]) if function is torch.instance_norm else args
    return run(*ordered, **kwargs)


def grouped(
    function: Any, args: Any, kwargs: Any, input: Tensor, groups: int, weight: Tensor | None, eps: float
) -> Any:
    """Normalise groups of channels of ``(batch, channels, ...)`` by the LN rule."""
    if not depends(input):
        return function(*args, **kwargs)
    per_channel = (1, input.shape[1], *(1,) * (input.ndim - 2))
    with torch.no_grad():
        output = function(*args, **kwargs)
        parts = wide(input).reshape(input.shape[0], groups, -1)
        rstd = torch.rsqrt(parts.var(-1, unbiased=False, keepdim=True) + eps).expand_as(parts)
        rstd = rstd[:, :, : input.shape[1] // groups].reshape(input.shape[0], *per_channel[1:])

    def center(signal: Tensor) -> Tensor:
        parts = signal.reshape(signal.shape[0], groups, -1)
        return (parts - parts.mean(-1, keepdim=True)).reshape(signal.shape)

    weight = None if weight is None else weight.reshape(per_channel)
    return Normalize.apply(input, output, rstd, weight, center)


def batch_norm(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Take running statistics as a linear map; with the batch's own statistics there is no rule."""
    # the sixth argument of both torch.batch_norm and torch.nn.functional.batch_norm
    training = kwargs.get("training", args[5] if len(args) > 5 else False)
    if training and operands(args, kwargs):
        raise RuntimeError(
            "batch_norm with the statistics of the batch (training mode) mixes the samples that it explains; "
            "expected running statistics: call model.eval() before the explanation."
        )
    return function(*args, **kwargs)


def refuse(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Raise at ``torch.nn.MultiheadAttention``, an opaque call of which no rule can see the inside."""
    raise RuntimeError(
        "torch.nn.functional.multi_head_attention_forward hides its projections from every rule; expected a model "
        "without it: pass canonizers=[zennit_attn.MultiheadAttentionCanonizer()] to the composite, as the presets do."
    )


def unknown(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function that is in no kind; report it where it carries relevance from an argument to its output."""
    output = function(*args, **kwargs)
    if operands(args, kwargs) and operands((output,), {}):
        from .scope import report  # the report needs modules and strictness, which this table does not know

        report(function)
    return output


# --------------------------------------------------------------------------------------------------------------------
# The table
# --------------------------------------------------------------------------------------------------------------------


def rules_by_kind(policy: Policy) -> dict[str, Callable[..., Any]]:
    """Return the rule of each kind that is not plain, in the gradient form."""
    chosen: dict[str, Callable[..., Any]] = {
        "batch norm": batch_norm,
        "interpolation": interpolation,
        "reduction": reduction,
        "fused attention module": refuse,
        "softmax": {"uniform": plain, "value": constant, "gradient": plain}[policy.attention],
        "attention": {"uniform": uniform_attention, "value": value_attention, "gradient": plain}[policy.attention],
        "product": {"uniform": uniform, "gate": gate, "gradient": plain}[policy.product],
    }
    if policy.product != "gradient":
        chosen |= {"matmul": uniform, "added product": added, "weighted sum": weighted_sum}
    if policy.product == "gate":
        chosen["routing"] = carried
    if policy.norm == "constant":
        chosen |= {"division": division, "reversed division": reversed_division, "reciprocal": constant}
        chosen |= {
            "statistic": constant,
            "statistic and mean": statistics,
            "unit": unit,
            "layer norm": layer_norm,
            "rms norm": rms_norm,
        }
        chosen |= {"group norm": group_norm, "instance norm": instance_norm}
    if policy.activation == "identity":
        chosen |= {"activation": activation, "power": power}
    return {kind: rule for kind, rule in chosen.items() if rule is not plain}


def in_relevance_form(rule: Rule) -> Rule:
    """Put a rule of the gradient form between two changes of form: ``x * vjp(R / z)``."""

    def converted(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not operands(args, kwargs):
            return rule(function, args, kwargs)

        def enter(value: Tensor) -> Tensor:
            entered = Enter.apply(value)
            return mark(entered) if hasattr(value, GATE) else entered

        args = tuple(swap(value, enter) for value in args)
        kwargs = {key: swap(value, enter) for key, value in kwargs.items()}
        return swap(rule(function, args, kwargs), Leave.apply)

    return converted


def in_place(rule: Rule, function: Callable[..., Any]) -> Rule:
    """Run the rule of the out-of-place function on a copy, then write the result to where it belongs."""

    def written(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if rule in (uniform, gate) and len(operands(args, kwargs)) < 2:
            return original(*args, **kwargs)
        target = args[0]
        value = mark(target.clone()) if hasattr(target, GATE) else target.clone()
        output = rule(function, (value, *args[1:]), kwargs)
        Snapshot.protect(target)
        if depends(target) and not depends(output):
            # what is written is a constant: so is what it is written to
            return target.detach_().copy_(output)
        target.copy_(output)
        return mark(target) if hasattr(output, GATE) else target

    return written


def overwriting(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Write in place, after the values that the backward pass needs are safe."""
    Snapshot.protect(args[0])
    return function(*args, **kwargs)


def writes(rule: Rule) -> Rule:
    """Run an element-wise rule that may be told to write in place (``torch.nn.functional.relu(x, inplace=True)``)."""

    def run(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get("inplace") or (len(args) > 1 and args[-1] is True):
            return in_place(rule, function)(function, args, kwargs)
        return rule(function, args, kwargs)

    return run


def table(policy: Policy, form: Form) -> dict[Callable[..., Any], Rule | None]:
    """Return the rule of every known function in a form; None stands for plain autograd.

    Parameters
    ----------
    policy : Policy
        How the kinds that need a rule are explained.
    form : {"relevance", "gradient"}
        Form of the backward signal.

    Returns
    -------
    dict
        Function to rule. :func:`unknown` is the rule of what is not in it.
    """
    chosen = rules_by_kind(policy)
    entries: dict[Callable[..., Any], Rule | None] = {}
    for function, (kind, name, writing) in functions().items():
        entries[function] = _entry(chosen.get(kind), kind, name, writing, form)
    for attribute in vars(torch._C.TensorBase).values():
        if inspect.isdatadescriptor(attribute):
            entries.setdefault(getter(attribute), None)
    return entries


def transformed(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Report what a transform such as ``torch.vmap`` runs on the relevance path, of which the tensors hide that."""
    output = function(*args, **kwargs)
    for value in args:
        while isinstance(value, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(value):
            value = torch._C._functorch.get_unwrapped(value)
        if depends(value):
            from .scope import report

            report(function)
            break
    return output


#: Tables by :meth:`Policy.key`, and rules by a number, for compilers.
_tables: dict[str, dict[Callable[..., Any], Rule | None]] = {}
numbered: list[Rule] = [unknown, transformed]
PLAIN, UNKNOWN, TRANSFORMED = -1, 0, 1
_numbers = {id(unknown): UNKNOWN, id(transformed): TRANSFORMED}
caches.append(_tables.clear)


def table_of(key: str) -> dict[Callable[..., Any], Rule | None]:
    """Return the table of a :meth:`Policy.key`."""
    if key not in _tables:
        *choices, form = key.split()
        _tables[key] = table(Policy(*choices), form)  # type: ignore[arg-type]
        for rule in filter(None, _tables[key].values()):
            if id(rule) not in _numbers:
                _numbers[id(rule)] = len(numbered)
                numbered.append(rule)
    return _tables[key]


# a compiler takes the number as a constant, instead of tracing the table
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def find(key: str, function: Callable[..., Any]) -> int:
    """Return the number of a function's rule in the table of a key; :data:`PLAIN` stands for plain autograd."""
    rule = table_of(key).get(function, unknown)
    if rule is None:
        return PLAIN
    return _numbers[id(rule)] if torch._C._functorch.maybe_current_level() is None else TRANSFORMED


def _entry(rule: Callable[..., Any] | None, kind: str, name: str, writing: bool, form: Form) -> Rule | None:
    """Return the rule of one function, given the rule of its kind in the gradient form."""
    if kind == "routing":
        return overwriting if writing and form == "relevance" else rule
    if rule in (activation, power):
        rule = writes(partial(rule, name=name, form=form))
    elif form == "relevance":
        rule = in_relevance_form(plain if rule is None else rule)
    if rule is None:
        return None
    if form == "gradient" and kind in ("division", "added product"):
        return rule  # these change operands only, and what is written is right under plain autograd
    if writing:
        return in_place(rule, getattr(torch.Tensor, name, None) or getattr(torch, name, None) or getattr(F, name))
    return rule
