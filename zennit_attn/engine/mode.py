"""The mode that looks up every function which is called in a forward, and where it holds.

:func:`run_inside` turns :class:`OperatorMode` on for the extent of one forward, and
:func:`~zennit_attn.engine.state.shield` off, inside of a module that has a layer rule.

This module does not know any rule: see :mod:`zennit_attn.engine.operators` for the table.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import torch
import torch.utils.checkpoint
from torch._C._functorch import maybe_current_level
from torch.overrides import TorchFunctionMode

from .basic import asked, transformed, unknown
from .checkpoints import in_checkpoint, saving_hooks
from .graph import sequence_number, settle
from .operands import Form, operands
from .operators import PLAIN, find, numbered, refuse_unseen, table_of
from .policy import Policy
from .reports import report, report_cut
from .state import State, chosen_of, holders, holds_state, state
from .trace import account, mark_start


class _Nothing(dict[Any, Any]):
    """A table in which every function is plain."""

    def get(self, key: Any, default: Any = None) -> None:
        """Return None, whatever the default."""


class OperatorMode(TorchFunctionMode):
    """Look up each function in a table, while a module's forward runs.

    Parameters
    ----------
    policy : Policy
        How operators are explained.
    form : {"relevance", "gradient"}
        Form of the backward signal.
    strict : bool
        Raise at an unknown operation, instead of warning.
    root : torch.nn.Module
        Module of which the forward turned this mode on, for reports.
    """

    #: The table inside of a module that has a layer rule.
    nothing: Any = _Nothing()

    def __init__(self, policy: Policy, form: Form, strict: bool, root: torch.nn.Module) -> None:
        super().__init__()
        self.policy, self.form, self.strict, self.root = policy, form, strict, root
        #: What was computed of the input under ``torch.no_grad``, and whether there may be something.
        self.cuts: Any = None
        self.following = False
        #: Whether to follow every function, and whether a checkpoint that is known to run with rules is running.
        self.watching = self.rerunning = False
        #: How many functions were called, where the last one ended, and where there were nodes between two of them.
        self.count, self.ended = 0, 0
        self.gaps: list[tuple[int, int]] = []
        #: What is to be reported if the explained output turns out to depend on it.
        self.pending: list[Any] = []
        self.table: Any = self.table_for(policy)

    def table_for(self, policy: Policy) -> Any:
        """Return the table of a policy, in which :meth:`__torch_function__` looks."""
        return table_of(policy.key(self.form))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func`` by its rule."""
        if self.following:
            return self.follow(func, types, args, kwargs or {})
        rule = self.table.get(func, unknown)
        if rule is asked:
            return func(*args)
        self.count += 1
        start = sequence_number()
        if start != self.ended:
            self.gaps.append((self.ended, start))
        if rule is None:
            output = func(*args, **kwargs) if kwargs else func(*args)
            self.ended = sequence_number()
            return output
        if maybe_current_level() is not None:
            rule = transformed
        # a rule may call functions of its own that this sees
        self.ended = start
        output = rule(func, args, kwargs or {})
        self.ended = sequence_number()
        if saving_hooks(True) is not None and not self.rerunning and in_checkpoint() and operands(args, kwargs or {}):
            report(torch.utils.checkpoint.checkpoint, output)
        return output

    def follow(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Call ``func`` by its rule, and follow what is computed without a graph, for as long as there is something."""
        self.following = False
        output = OperatorMode.__torch_function__(self, func, types, args, kwargs)
        if self.table is not self.nothing and self.cuts.follow(func, args, kwargs, output):
            report_cut(func, args[0] if output is None and args else output)
        self.following = self.watching or bool(self.cuts.tensors) or not torch.is_grad_enabled()
        return output


class TracedMode(OperatorMode):
    """The same for a compiler, which traces what it sees: rules come by their number."""

    nothing = ""
    #: Whether an exponential was taken, of which a later quotient may be a softmax.
    has_exponentials = False

    def table_for(self, policy: Policy) -> str:
        """Return the name of a policy's table."""
        return policy.key(self.form)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func`` by its rule."""
        if self.table:
            refuse_unseen(self.table)
        number, start = find(self.table, func) if self.table else PLAIN, mark_start()
        if number == PLAIN:
            output = func(*args, **kwargs) if kwargs else func(*args)
        else:
            output = numbered[number](func, args, kwargs or {})
        account(start)
        return output


@holds_state
def run_inside(
    policy: Policy, form: Form, strict: bool, module: torch.nn.Module, forward: Any, args: Any, kwargs: Any
) -> Any:
    """Run a forward with operator rules on; those of the innermost module that has some decide.

    Raises
    ------
    RuntimeError
        If the forward around it runs in the other form: one graph has one form.
    """
    mode = state.mode
    if mode is None:
        if not torch.compiler.is_compiling() and maybe_current_level() is not None:
            raise RuntimeError(
                f"{type(module).__name__} got called inside of a transform of torch.func, which hides from the rules "
                "what depends on the input; expected torch.autograd.grad or backward."
            )
        kind = TracedMode if torch.compiler.is_compiling() else state.kind or OperatorMode
        try:
            # not `with ... as state.mode`, of which a compiler makes None
            mode = state.mode = kind(policy, form, strict, module)
            with mode:
                output = forward(*args, **kwargs)
            if torch.compiler.is_compiling():
                refuse_unseen(mode.table)
            settle(mode.pending, chosen_of(output), state.choose is not None)
            return output
        finally:
            state.mode = None
            if mode is not None and not torch.compiler.is_compiling():
                # torch turns a mode on again, some time, that was off for a moment when an interrupt came
                mode.table, mode.following = mode.nothing, False
    if mode.form != form:
        raise RuntimeError(
            f"{type(module).__name__} has operator rules in the {form} form, inside of a forward in the {mode.form} "
            "form; one graph has one form: convert the whole composite with input_x_gradient, not single hooks of it."
        )
    if torch.compiler.is_compiling():
        refuse_unseen(mode.table)
    before = mode.policy, mode.table
    mode.policy, mode.table = policy, mode.table_for(policy)
    try:
        output = forward(*args, **kwargs)
        if torch.compiler.is_compiling():
            refuse_unseen(mode.table)
        return output
    finally:
        mode.policy, mode.table = before


def heal() -> None:
    """Turn off what an interrupt left on in this thread: what nothing that is running turned on."""
    modes = torch._C._len_torch_function_stack()
    left = modes and isinstance(torch._C._get_function_stack_at(modes - 1), OperatorMode)
    if not left and all(value in (None, False) for value in vars(state).values()):
        return
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code in holders:
            return
        frame = frame.f_back
    while left:
        torch._C._pop_torch_function_stack()
        modes = torch._C._len_torch_function_stack()
        left = modes and isinstance(torch._C._get_function_stack_at(modes - 1), OperatorMode)
    vars(state).update(vars(State()))
