"""The trace of a compiler: what it holds that no function made which the rules saw.

A compiler does not show every function to a mode that it traces: not Python's ``abs``, not what writes in place and is
called by its name (``torch.relu_``), no autograd function, and nothing where torch functions are disabled. Each of them
is a node of the graph that it writes.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


class Account:
    """What is known of the nodes of one graph: all that were looked at, and those of them that no rule saw."""

    def __init__(self) -> None:
        self.known: set[torch.fx.Node] = set()
        self.unseen: dict[torch.fx.Node, None] = {}
        #: The nodes that were the last ones when somebody asked; a compiler changes their names.
        self.starts: list[torch.fx.Node | None] = []

    def look(self, graph: torch.fx.Graph, start: int | None = None) -> None:
        """Look at the new nodes of a graph, the last first: those after a start that is given were seen."""
        seen = start is not None
        for node in reversed(graph.nodes):
            seen = seen and node is not self.starts[start or 0]
            if not seen and node in self.known:
                break
            self.known.add(node)
            if not seen:
                self.unseen[node] = None
            else:
                # part of what a layer's rule does, of which the functions inside were looked at by themselves
                self.unseen.pop(node, None)


#: Of each graph that is or was written.
_accounts: weakref.WeakKeyDictionary[torch.fx.Graph, Account] = weakref.WeakKeyDictionary()


def current_graph() -> torch.fx.Graph:
    """Return the graph that is being written in this thread."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    graph: torch.fx.Graph = InstructionTranslator.current_tx().output.graph
    return graph


# a compiler calls these while it traces, instead of tracing them, and takes what they return as constants
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def mark_start() -> int:
    """Note which node was written last, and return the number under which that is noted."""
    graph = current_graph()
    starts = _accounts.setdefault(graph, Account()).starts
    starts.append(next(iter(reversed(graph.nodes)), None))
    return len(starts) - 1


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def account(start: int) -> bool:
    """Note that what was written after a start is what the rules made of something that they saw."""
    graph = current_graph()
    _accounts.setdefault(graph, Account()).look(graph, start)
    return True


def unaccounted() -> Iterator[tuple[Any, str]]:
    """Yield each function that wrote a node unseen where something depends on the input, and its name; once."""
    graph = current_graph()
    found = _accounts.setdefault(graph, Account())
    found.look(graph)
    while found.unseen:
        node, _ = found.unseen.popitem()
        # entries of what returned several tensors are no function's
        is_called = node.op in ("call_function", "call_method") and node.target is not operator.getitem
        if is_called and is_on_path(node) and any(map(is_on_path, node.all_input_nodes)):
            function = getattr(Tensor, str(node.target), None) if node.op == "call_method" else node.target
            yield function, title_of_node(node)


def is_on_path(node: torch.fx.Node) -> bool:
    """Tell whether a node has a tensor with a graph."""
    values = tree_leaves(node.meta.get("example_value"))
    return any(isinstance(value, Tensor) and value.requires_grad for value in values)


def title_of_node(node: torch.fx.Node) -> str:
    """Return the name of a node's function, and the line of code that called it."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    if name == "autograd_function_apply":
        name = "an autograd function"
    lines = [line.strip() for line in (node.stack_trace or "").splitlines() if set(line) - set(" ^~")]
    return f"{name} in the line {lines[-1]!r}" if lines else name
