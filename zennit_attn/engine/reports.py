"""Reports: what the rules do not know is said once for each place, or is an error under strict rules.

This module does not decide what is unknown: see :mod:`zennit_attn.engine.basic` and :mod:`zennit_attn.engine.graph`.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from ..errors import (
    CutOffError,
    CutOffWarning,
    PrecisionWarning,
    ProbabilityWarning,
    UnknownOperationError,
    UnknownOperationWarning,
)
from .names import names_of
from .state import state

_reported: weakref.WeakKeyDictionary[torch.nn.Module, set[tuple[str, ...]]] = weakref.WeakKeyDictionary()


def innermost() -> torch.nn.Module | None:
    """Return the innermost module in which the code is running."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_locals.get("self")
        if isinstance(module, torch.nn.Module):
            return module
        frame = frame.f_back
    return None


def place() -> tuple[str, str]:
    """Return the dotted name and the type of the innermost module in which the code is running."""
    module = innermost()
    if module is None:
        return "", "no module"
    root = None if state.mode is None else state.mode.root
    names = {} if root is None else {child: name or "the model itself" for child, name in names_of(root).items()}
    return names.get(module, "a module outside of the model"), type(module).__name__


def report(function: Any, made: Any = None) -> None:
    """Report an operation that has no rule, once for each place.

    Parameters
    ----------
    function : Any
        A function of torch, or an autograd function.
    made : Any, optional
        What it returned, or its node: reported if the explained output depends on it. None is known to be on the path.

    Raises
    ------
    UnknownOperationError
        If the composite is strict.
    """
    advice = "register a rule with zennit_attn.register_operator"
    if isinstance(function, type):
        # no rule can look up an autograd function
        advice = "put a function in its place with zennit_attn.FunctionCanonizer"
    report_here(
        function,
        "no rule is known for {function}, called in {name!r} ({kind}): got an operation on the relevance path "
        "that is neither ruled, linear nor routing, and what it passes back is the plain gradient. "
        f"Give the module a layer rule (for example zennit.rules.Pass for an element-wise function), or {advice}.",
        UnknownOperationError,
        UnknownOperationWarning,
        made,
    )


def report_cut(function: Any, made: Any) -> None:
    """Report an operation that takes what was computed of the input under ``torch.no_grad``, once for each place.

    Raises
    ------
    CutOffError
        If the composite is strict.
    """
    report_here(
        function,
        "{function}, called in {name!r} ({kind}), got something that the model computed of its input under "
        "torch.no_grad, and the relevance that goes there is lost; expected a model that computes it with a graph. "
        "Change the setting by which it does not, or explain what it computed as an input of its own.",
        CutOffError,
        CutOffWarning,
        made,
    )


def report_node(node: Any) -> None:
    """Report a node of the graph that was made where no rule could see the function.

    Raises
    ------
    UnknownOperationError
        If the composite is strict.
    """
    report_here(
        node.name(),
        "the graph of {kind} has a {function} that no function made which the rules saw: got something computed in a "
        "function of torch.jit, in another thread, with torch functions disabled, or before the context, and what it "
        "passes back is the plain gradient. Expected functions of torch, called in the forward itself.",
        UnknownOperationError,
        UnknownOperationWarning,
        node,
    )


def report_unseen(title: str) -> None:
    """Refuse a function that a compiler traced without showing it to the rules.

    Raises
    ------
    UnknownOperationError
        Always.
    """
    raise UnknownOperationError(
        f"got {title}, which torch.compile does not show to the rules, so that it would pass back the plain "
        "gradient; expected a function that it shows, such as a method (x.abs() for abs(x), x.relu_() for "
        "torch.relu_(x)): change the line, or explain the model without compiling it."
    )


def report_leaf(title: str, node: Any) -> None:
    """Report a tensor that requires grad, and is neither the input nor a parameter that the context froze.

    Raises
    ------
    UnknownOperationError
        If the composite is strict.
    """
    report_here(
        title,
        "the graph of {kind} ends in {function}, which requires grad and is neither its input nor one of its "
        "parameters: got something that the rules take for an input, and that gets a share of the relevance. "
        "Expected constants: set requires_grad_(False) on it, or make it a parameter of a module of the model.",
        UnknownOperationError,
        UnknownOperationWarning,
        node,
    )


def report_shift(made: Any) -> None:
    """Report a softmax that is written out with a detached maximum, in the relevance form.

    Raises
    ------
    UnknownOperationError
        If the composite is strict.
    """
    report_here(
        "exp(a - max) / sum",
        "{function}, called in {name!r} ({kind}), is a softmax with a maximum that is detached: at the maximum the "
        "difference is exactly zero, and its share is lost in the relevance form; expected the gradient form "
        "(zennit_attn.input_x_gradient), torch.softmax, or a maximum that is not detached.",
        UnknownOperationError,
        UnknownOperationWarning,
        made,
    )


def report_outside(model: torch.nn.Module, node: str, strict: bool) -> None:
    """Report what was computed of a model's output after its forward, where no rules hold.

    Raises
    ------
    UnknownOperationError
        If the composite is strict.
    """
    report_once(
        model,
        ("outside", node),
        f"a {node} was computed of the output of {type(model).__name__} after its forward, where its rules do not "
        "hold: got a plain gradient there; expected a logit, or a sum of logits. Put a module around the model whose "
        "forward computes what is to be explained, and the composite on it.",
        UnknownOperationError,
        UnknownOperationWarning,
        strict,
    )


def report_call(model: torch.nn.Module, strict: bool) -> None:
    """Report a model whose class has a ``__call__`` of its own, around which no rules hold.

    Raises
    ------
    UnknownOperationError
        If the composite is strict.
    """
    kind = type(model)
    if str(kind.__call__.__module__).split(".")[0] != "torch":
        report_once(
            model,
            ("call",),
            f"{kind.__name__} has a __call__ of its own, and no rules hold for what it does around the forward: got "
            "what may be a plain gradient there; expected it in the forward. Put a module around the model whose "
            "forward calls it, such as torch.nn.Sequential(model), and the composite on that.",
            UnknownOperationError,
            UnknownOperationWarning,
            strict,
        )


def advise_logits(model: torch.nn.Module, function: str) -> None:
    """Say once that a model's output is a probability."""
    report_once(
        model,
        ("probability",),
        f"got an output of {type(model).__name__} that is the {function} of its logits: what is shared out is the "
        "probability, which the other classes have a part in, and which hardly depends on the input where it is near "
        "1; expected logits. Take the last layer away, for example with torch.nn.Identity() in its place.",
        ProbabilityWarning,
        ProbabilityWarning,
        strict=False,
    )


def advise_gradient_form(model: torch.nn.Module) -> None:
    """Say once that the relevance form has no room in float16."""
    report_once(
        model,
        ("float16",),
        f"got {type(model).__name__} in float16 in the relevance form, in which relevance below 6e-8 is lost, as that "
        "of single pixels is (6 % to 15 % of an image's were off); expected the gradient form "
        "(zennit_attn.input_x_gradient, which InputXGradient takes by itself), bfloat16 or float32.",
        PrecisionWarning,
        PrecisionWarning,
        strict=False,
    )


def report_here(function: Any, message: str, error: type[Exception], warning: type[Warning], made: Any = None) -> None:
    """Report a function and the place of its call, which the message has as fields, once for both.

    What it made (tensors, or a node) is waited for, if that is known: a loss beside the logits is not on the path to
    what is explained.
    """
    mode = state.mode
    if torch.compiler.is_compiling():
        # a compiler traces neither the search for the place nor a warning
        raise error(message.format(function=title_of(function), name="a compiled model", kind="torch.compile"))
    name, kind = place()
    title = title_of(function)
    message = message.format(function=title, name=name, kind=kind)
    if mode is None:
        raise error(message)

    if not mode.strict and (title, name) in _reported.get(mode.root, ()):
        return
    # knows no mode, which knows the graph: it may wait for a backward pass
    now = partial(report_once, mode.root, (title, name), message, error, warning, mode.strict)
    if hasattr(made, "next_functions"):
        nodes = [made]
    else:
        nodes = [value.grad_fn for value in tree_leaves(made) if isinstance(value, torch.Tensor) and value.grad_fn]
    if not nodes:
        now()
    else:
        mode.pending.append((nodes, now))


# a compiler takes the name as a constant, instead of tracing how it is found
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def title_of(function: Any) -> str:
    """Return the name of a function, that by which it can be registered where it has one."""
    if isinstance(function, str):
        return function
    if isinstance(function, torch._ops.OpOverload):
        function = function.overloadpacket
    if isinstance(function, torch._ops.OpOverloadPacket):
        return "torch.ops." + function._qualified_op_name.replace("::", ".")
    return str(getattr(function, "__qualname__", None) or getattr(function, "__name__", repr(function)))


def report_once(
    model: torch.nn.Module,
    key: tuple[str, ...],
    message: str,
    error: type[Exception],
    warning: type[Warning],
    strict: bool,
) -> None:
    """Raise an error if the composite is strict, else warn, once for each model and key."""
    if strict:
        raise error(message)
    known = _reported.setdefault(model, set())
    if key not in known:
        known.add(key)
        warnings.warn(message, warning, stacklevel=2)


def report_stale(parameter: str, node: Any) -> None:
    """Report that a forward used what was computed of a parameter, given by its name, before it was frozen.

    Raises
    ------
    UnknownOperationError
        If the composite is strict.
    """
    report_here(
        parameter,
        "got a tensor that the model computed of its parameter {function} before the context and kept, which requires "
        "grad, and which the rules take for something that depends on the input; expected none: run the model under "
        "torch.no_grad before the context, or make it compute the tensor again.",
        UnknownOperationError,
        UnknownOperationWarning,
        node,
    )
