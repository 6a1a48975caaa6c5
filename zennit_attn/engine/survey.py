"""Survey: when a model's forward is looked at for what no rule can see.

At the first forward of a model under a policy, at each that calls another number of functions or makes another number
of nodes than those before, at each that another thread had a part in, and under strict rules at each. How it is looked
at is in :mod:`zennit_attn.engine.graph`.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from .gates import SCALE, strength
from .graph import ROUTING, Spans, is_own, is_plain, look, name_of_node, nodes_of, outputs_of, sequence_number, settle
from .no_grad import follow_cuts
from .operands import Form
from .reports import advise_gradient_form, advise_logits, report_outside
from .state import chosen_of, state
from .threads import Alone

#: How many functions a forward called, how many nodes it made, and how many of these in the functions.
Kind = tuple[int, int, int]


class Kinds:
    """The kinds of forwards that were looked at: those that were followed function by function, and those to follow.

    What turns graphs off is not in the graph, and is found only by following.
    """

    def __init__(self) -> None:
        self.followed: set[Kind] = set()
        self.owed: set[Kind] = set()

    def add(self, kind: Kind, is_followed: bool) -> None:
        """Note that a forward of a kind was looked at."""
        if is_followed:
            self.followed.add(kind)
            self.owed.discard(kind)
        elif kind not in self.followed:
            self.owed.add(kind)


#: By model and policy.
_known: weakref.WeakKeyDictionary[torch.nn.Module, dict[str, Kinds]] = weakref.WeakKeyDictionary()


class Survey(threading.local):
    """The forwards of one model for as long as rules are registered on it.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    key : str
        Name of the policy and the form.
    form : {"relevance", "gradient"}
        Form of the backward signal.
    strict : bool
        Look at every forward.
    checkpoints : bool
        Whether the model's reentrant checkpoints are known to run with rules.
    """

    def __init__(self, model: torch.nn.Module, key: str, form: Form, strict: bool, checkpoints: bool) -> None:
        self.model, self.key, self.form, self.strict, self.checkpoints = model, key, form, strict, checkpoints
        self.known = _known.setdefault(model, {}).setdefault(key, Kinds())
        #: Whether the next forward is followed function by function.
        self.next = strict or not self.known.followed or bool(self.known.owed)
        #: Where the forwards made their nodes.
        self.forwards = Spans()

    def run(self, forward: Any, args: Any, kwargs: Any) -> Any:
        """Run a forward with its mode on, and look at what it made."""
        mode, following, alone = state.mode, self.next, Alone()
        if following:
            follow_cuts(everything=True)
        start = mode.ended = sequence_number()
        output = forward(*args, **kwargs)
        # before this module makes nodes of its own
        end = sequence_number()
        seen = Spans.between(start, end, [*mode.gaps, (mode.ended, end)])
        kind = mode.count, end - start, len(seen)
        self.forwards.add(start, end)
        if (
            not following
            and kind in self.known.followed
            and (alone or is_own(chosen_of(output), (args, kwargs), start, end))
        ):
            return output
        chosen = chosen_of(output)
        self.advise(chosen)
        # after functions, which are noted already: what has a name is reported by it
        is_graph = look(self.model, chosen, (args, kwargs), seen, self.checkpoints, self.form)
        if settle(mode.pending, chosen, state.choose is not None) or not is_graph:
            # which output is explained may be another one the next time
            self.next = True
        else:
            self.known.add(kind, following)
            self.next = self.strict or bool(self.known.owed)
        if state.choose is None:
            self.look_behind(output)
        return output

    def advise(self, output: Any) -> None:
        """Say what is computed by the rules, and is hardly what somebody wants to know."""
        values = [value for value in outputs_of(output) if value.dim()]
        function = probability(values[0]) if values else None
        if function is not None:
            advise_logits(self.model, function)
        if self.form == "relevance" and any(value.dtype == torch.float16 for value in values):
            advise_gradient_form(self.model)

    def look_behind(self, output: Any) -> None:
        """Report, in the backward pass, what was computed of an output after the forward, where no rules hold."""
        done: set[int] = set()

        def check(signal: Any) -> None:
            task = torch._C._current_graph_task_id()
            if task not in done:
                done.add(task)
                for roots in backward_passes():
                    for node in between(roots, self.forwards):
                        if not is_plain(node, "gradient"):
                            report_outside(self.model, node.name(), self.strict)

        for value in outputs_of(output):
            value.register_hook(check)


def probability(value: Tensor) -> str | None:
    """Return the function of logits that a tensor is a probability by, None if it is none."""
    if strength(value) == SCALE and bool(((value > 0) & (value < 1)).all()):
        return "sigmoid"
    node: Any = value.grad_fn
    while node is not None and name_of_node(node) in ROUTING | {"Leave"} and len(node.next_functions) == 1:
        node = node.next_functions[0][0]
    return "softmax" if node is not None and name_of_node(node) == "Softmax" else None


def backward_passes() -> Iterator[Any]:
    """Yield what each backward pass that is running was called with: the engine does not tell in its hooks."""
    for innermost in sys._current_frames().values():
        frame: FrameType | None = innermost
        while frame is not None:
            if frame.f_code is torch.autograd.graph._engine_run_backward.__code__:
                yield frame.f_locals["t_outputs"]
            frame = frame.f_back


def between(roots: Any, forwards: Spans) -> list[Any]:
    """Return the nodes on the way from what a backward pass begins with to what forwards made."""
    first = forwards.starts[0] if forwards.starts else 0

    def is_later(node: Any) -> bool:
        return node._sequence_nr() >= first and node._sequence_nr() not in forwards

    later = [node for node in nodes_of(roots, stop=lambda node: not is_later(node)) if not hasattr(node, "variable")]
    found: set[Any] = set()
    # what a node was made of was made before it
    for node in sorted(later, key=lambda node: int(node._sequence_nr())):
        if any(before is not None and (before in found or not is_later(before)) for before, _ in node.next_functions):
            found.add(node)
    return list(found)
