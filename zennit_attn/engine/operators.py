"""Operator rules: what a module's own forward does with *functions*, looked up in a table *function -> rule*.

Each function of torch that can carry relevance is of one *kind* (:data:`~zennit_attn.engine.catalog.KINDS`). A
:class:`~zennit_attn.engine.policy.Policy` says how the kinds that need a rule are explained, and :func:`table` turns
both into rules for one of the two forms. A function that is in no kind is reported by
:func:`~zennit_attn.engine.basic.unknown`, never passed silently.

This module does not know modules: which policy holds where is decided by :mod:`zennit_attn.engine.mode`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .activations import activation, exponential, gated_unit, power
from .basic import Rule, asked, constant, plain, transformed, unknown
from .catalog import caches, functions, getter
from .functions import Enter, Leave, Snapshot
from .fused import opened
from .gates import SCALE, WEIGHT, mark, strength
from .no_grad import switch
from .norms import (
    added_division,
    batch_norm,
    division,
    group_norm,
    instance_norm,
    layer_norm,
    log_softmax,
    reversed_division,
    rms_norm,
    statistics,
    unit,
)
from .operands import Form, depends, operands, swap
from .policy import Policy
from .products import (
    added,
    carrying,
    elements,
    gate,
    selected,
    similarity,
    uniform,
    uniform_attention,
    value_attention,
    weighted_sum,
    weights,
)
from .recurrence import recurrence
from .reports import report_unseen
from .softmax import exponential_of, noting_logits, quotient, weighted, weighting
from .trace import unaccounted


def interpolation(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Leave it to autograd, unless the weight or the grid depends on the input."""
    first = 2 if getattr(function, "__name__", "").startswith("lerp") else 1
    rest = [*args[first:], *(kwargs[name] for name in ("weight", "grid") if name in kwargs)]
    return (unknown if any(map(depends, rest)) else plain)(function, args, kwargs)


def reduction(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Leave sums, means and extrema to autograd; a product is not known."""
    return (unknown if "prod" in (*args, *kwargs.values()) else plain)(function, args, kwargs)


def rules_by_kind(policy: Policy) -> dict[str, Callable[..., Any]]:
    """Return the rule of each kind that is not plain, in the gradient form."""
    chosen: dict[str, Callable[..., Any]] = {
        "batch norm": batch_norm,
        "interpolation": interpolation,
        "reduction": reduction,
        "fused attention module": opened,
        "recurrence": recurrence,
        "softmax": constant if policy.attention == "value" else plain,
        "attention": {"uniform": uniform_attention, "value": value_attention, "gradient": plain}[policy.attention],
        "product": {"uniform": uniform, "gate": gate, "gradient": plain}[policy.product],
    }
    if policy.product != "gradient":
        chosen |= {"matmul": uniform, "added product": added, "weighted sum": weighted_sum}
        chosen |= {"product of elements": elements, "similarity": similarity}
    if policy.norm == "constant":
        chosen |= {"division": division, "reversed division": reversed_division, "reciprocal": constant}
        chosen |= {"added division": added_division, "statistic": constant, "statistic and mean": statistics}
        chosen |= {"unit": unit, "layer norm": layer_norm, "rms norm": rms_norm, "log softmax": log_softmax}
        chosen |= {"group norm": group_norm, "instance norm": instance_norm}
    if policy.activation == "identity":
        chosen |= {"activation": activation, "step size": activation, "power": power}
        chosen["gated unit"] = partial(gated_unit, product=chosen["product"])
    if policy.product == "gate" or (policy.product == "uniform" and policy.attention == "value"):
        # weights and decays are constants in matrix products, too; what other activations produced is none
        least = SCALE if policy.product == "gate" else WEIGHT
        chosen |= {"matmul": partial(gate, least=least), "added product": partial(added, least=least)}
        chosen |= {"weighted sum": partial(weighted_sum, least=least)}
        if policy.attention == "value":
            chosen["softmax"] = weights
        if policy.product == "gate":
            chosen["exponential"] = exponential
        else:
            chosen["product"] = partial(gate, least=least)
        chosen |= carried(chosen)
    if policy.attention == "gradient" and policy.product != "gradient":
        # eager attention's products are attention's
        chosen |= {kind: weighted(chosen[kind], plain) for kind in ("matmul", "added product")}
        chosen |= {"softmax": weighting(plain, 1.0), **carried(chosen)}
    if policy.attention == "uniform" and policy.product == "gradient":
        chosen |= {"matmul": weighted(plain, uniform), "added product": weighted(plain, added)}
        chosen |= {"softmax": weighting(plain, 0.5), **carried(chosen)}
    if policy.norm == "constant":
        chosen["division"] = quotient(chosen["division"], chosen["softmax"])
    if policy.scan == "constant":
        chosen |= {"exponential": constant, "step size": constant, "split": selected}
    return {kind: rule for kind, rule in chosen.items() if rule is not plain}


def carried(chosen: dict[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Return the rules of functions of which the output is a gate if their arguments are."""
    found = {kind: carrying(chosen.get(kind, plain)) for kind in ("joining", "linear")}
    of_first = ("routing", "split", "dropout", "division")
    return found | {kind: carrying(chosen.get(kind, plain), slice(1)) for kind in of_first}


def in_relevance_form(rule: Rule) -> Rule:
    """Put a rule of the gradient form between two changes of form: ``x * vjp(R / z)``."""

    def converted(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not operands(args, kwargs):
            return rule(function, args, kwargs)

        def enter(value: Tensor) -> Tensor:
            return mark(Enter.apply(value), strength(value))

        def leave(value: Tensor) -> Tensor:
            return mark(Leave.apply(value), strength(value))

        args = tuple(swap(value, enter) for value in args)
        kwargs = {key: swap(value, enter) for key, value in kwargs.items()}
        return swap(rule(function, args, kwargs), leave)

    return converted


def in_place(rule: Rule, function: Callable[..., Any]) -> Rule:
    """Run the rule of the out-of-place function on a copy, then write the result to where it belongs."""

    def written(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if getattr(rule, "func", rule) in (uniform, gate) and len(operands(args, kwargs)) < 2:
            return original(*args, **kwargs)
        target = args[0]
        value = mark(target.clone(), strength(target))
        output = rule(function, (value, *args[1:]), kwargs)
        Snapshot.protect(target)
        if depends(target) and not depends(output):
            # what is written is a constant: so is what it is written to
            return target.detach_().copy_(output)
        target.copy_(output)
        return mark(target, strength(output))

    return written


def overwriting(rule: Rule) -> Rule:
    """Write in place, after the values that the backward pass needs are safe."""

    def written(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        Snapshot.protect(args[0])
        return rule(function, args, kwargs)

    return written


def writes(rule: Rule) -> Rule:
    """Run an element-wise rule that may be told to write in place (``torch.nn.functional.relu(x, inplace=True)``)."""

    def run(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get("inplace") or (len(args) > 1 and args[-1] is True):
            return in_place(rule, function)(function, args, kwargs)
        return rule(function, args, kwargs)

    return run


def scaling(rule: Rule, converted: Rule) -> Rule:
    """Run dropout by its rule in the relevance form, in which what it scales in training mode is not plain autograd."""

    def run(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        training = kwargs.get("training", kwargs.get("train", args[2] if len(args) > 2 else None))
        if training is False:
            return rule(function, args, kwargs)
        written = kwargs.get("inplace") or args[3:4] == (True,)
        args, kwargs = args[:3], {key: value for key, value in kwargs.items() if key != "inplace"}
        return (in_place(converted, function) if written else converted)(function, args, kwargs)

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
        rule = kind if callable(kind) else chosen.get(kind)
        entries[function] = _entry(rule, kind, name, writing, form)
    for function, (kind, _, writing) in functions().items():
        if kind == "log softmax":
            entries[function] = noting_logits(entries[function] or plain)
        if kind == "exponential" and policy.scan != "constant":
            entries[function] = exponential_of(entries[function] or plain, entries[torch.softmax] or plain, writing)
    entries[torch._C._set_grad_enabled] = switch
    for attribute in vars(torch._C.TensorBase).values():
        if inspect.isdatadescriptor(attribute):
            entries.setdefault(getter(attribute), asked)
    return entries


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
    # a compiler knows by itself what has no graph
    if rule is None or rule is switch or rule is asked:
        return PLAIN
    return _numbers[id(rule)] if torch._C._functorch.maybe_current_level() is None else TRANSFORMED


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def refuse_unseen(key: str) -> bool:
    """Raise if a compiler's trace has a function by now that no rule saw, and that has one in the table of a key.

    Raises
    ------
    UnknownOperationError
        Strict or not, and right here: what is raised in code that is traced only ends the trace.
    """
    for function, title in unaccounted():
        if table_of(key).get(function, unknown) is not None:
            report_unseen(title)
    return True


def _entry(rule: Callable[..., Any] | None, kind: Any, name: str, writing: bool, form: Form) -> Rule | None:
    """Return the rule of one function, given the rule of its kind in the gradient form."""
    if rule in (opened, recurrence):
        return rule
    if kind in ("routing", "joining", "split"):
        return overwriting(rule or plain) if writing and form == "relevance" else rule
    if kind == "dropout" and form == "relevance" and not writing:
        return scaling(rule or plain, in_relevance_form(rule or plain))
    if rule in (activation, power):
        rule = writes(partial(rule, name=name, form=form))
    elif form == "relevance":
        rule = in_relevance_form(plain if rule is None else rule)
    if rule is None:
        return None
    if form == "gradient" and kind in ("linear", "division", "added product"):
        return rule  # these change operands only, and what is written is right under plain autograd
    if writing:
        return in_place(rule, getattr(torch.Tensor, name, None) or getattr(torch, name, None) or getattr(F, name))
    return rule
