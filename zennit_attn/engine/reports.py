"""Reports: what the rules do not know is said once for each place, or is an error under strict rules.

This module does not decide what is unknown: see :mod:`zennit_attn.engine.basic` and :mod:`zennit_attn.engine.graph`.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from types import FrameType
from typing import Any

import torch

from ..errors import CutOffError, CutOffWarning, UnknownOperationError, UnknownOperationWarning
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
    names = {} if root is None else {child: name or "the model itself" for name, child in root.named_modules()}
    return names.get(module, "a module outside of the model"), type(module).__name__


def report(function: Any) -> None:
    """Report an operation that has no rule, once for each place.

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
    )


def report_cut(function: Any) -> None:
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
    )


def report_here(function: Any, message: str, error: type[Exception], warning: type[Warning]) -> None:
    """Report a function and the place of its call, which the message has as fields, once for both."""
    name, kind = place()
    title = str(getattr(function, "__qualname__", None) or getattr(function, "__name__", repr(function)))
    message = message.format(function=title, name=name, kind=kind)
    if state.mode is None:
        raise error(message)
    report_once(state.mode.root, (title, name), message, error, warning, state.mode.strict)


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


def report_stale(parameter: str) -> None:
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
    )
