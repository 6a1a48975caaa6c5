"""What is on in this thread: the mode that looks functions up, what shields from it, what records.

This module does not know what a mode does: see :mod:`zennit_attn.engine.mode`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any, TypeVar

import torch
from zennit.core import Hook

from .policy import Policy
from .trace import account, mark_start


class State(threading.local):
    """What is on in this thread."""

    def __init__(self) -> None:
        # in each thread, rather than in the class: a compiler would see the first write add an entry
        self.mode: Any = None
        self.shielded = False
        self.recorder: Any = None
        self.fired: set[int] | None = None
        self.kind: Any = None
        #: Chooses what is explained of what the model returns, where something knows it.
        self.choose: Any = None


state = State()

F = TypeVar("F", bound=Callable[..., Any])
#: The functions that run something with this state, see :func:`holds_state`.
holders: set[CodeType] = set()


def holds_state(function: F) -> F:
    """Note that for as long as a function runs, what is on in its thread may be on."""
    holders.add(function.__code__)
    return function


@contextmanager
def record_with(recorder: Any, kind: type[Any]) -> Iterator[None]:
    """Let a recorder see the calls of functions and of modules with a layer rule, see :mod:`zennit_attn.ledger`."""
    try:
        state.recorder, state.kind = recorder, kind
        yield
    finally:
        state.recorder, state.kind = None, None


def recorder() -> Any:
    """Return what records, None at most times."""
    return state.recorder


@contextmanager
def watch_rules() -> Iterator[set[int]]:
    """Collect the ids of the rules that are applied in this thread."""
    before, fired = state.fired, set[int]()
    try:
        state.fired = fired
        yield fired
    finally:
        state.fired = before


@contextmanager
def explaining(choose: Callable[[Any], Any]) -> Iterator[None]:
    """Tell what is explained of what a model returns: nothing else has to be known to the rules."""
    before = state.choose
    try:
        state.choose = choose
        yield
    finally:
        state.choose = before


def chosen_of(output: Any) -> Any:
    """Return what is explained of what a model returned, all of it where nothing tells."""
    return output if state.choose is None else state.choose(output)


def applied(rule: Hook) -> None:
    """Note that a rule is applied."""
    if state.fired is not None:
        state.fired.add(id(rule))


def enclosing_policy() -> Policy | None:
    """Return the policy that holds around the call, None outside of every forward with operator rules."""
    return None if state.mode is None else state.mode.policy


@contextmanager
def shield() -> Iterator[None]:
    """Intercept nothing: the module inside has a rule of its own."""
    mode, before = state.mode, state.shielded
    table = None if mode is None else mode.table
    start = mark_start() if torch.compiler.is_compiling() else 0
    try:
        state.shielded = True
        if mode is not None:
            mode.table = mode.nothing
        yield
    finally:
        if torch.compiler.is_compiling():
            account(start)
        state.shielded = before
        if mode is not None:
            mode.table = table


def is_shielded() -> bool:
    """Tell whether the call is inside of a module that has a layer rule."""
    return state.shielded
