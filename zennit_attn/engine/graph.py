"""The graph of a forward pass: what it holds that no rule saw.

A mode sees functions. What made a node without one (a script of torch.jit, another thread, an autograd function), and
what the graph ends in beside the input (a parameter that is in no list of the model), is found by walking the graph.
"""

from __future__ import annotations

import bisect
import functools
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .names import names_of
from .operands import Form, is_explained
from .reports import report, report_leaf, report_node, report_stale
from .state import state

#: Packages whose autograd functions are known: this one's rules, and what PyTorch's own functions are made of.
KNOWN_FUNCTIONS = ("zennit_attn", "torch")

#: Autograd functions of quantised linear layers, which pass back through the dequantised weights: linear in the input.
QUANTIZED_FUNCTIONS = (
    "bitsandbytes.autograd._functions.MatMul4Bit",
    "bitsandbytes.autograd._functions.MatMul8bitLt",
    "optimum.quanto.tensor.function.QuantizedLinearFunction",
    "optimum.quanto.tensor.weights.qbytes.WeightQBytesLinearFunction",
)

#: Nodes, by their names without "Backward0", that move relevance as autograd does in both forms.
ROUTING = frozenset(
    """
    Alias AsStrided Cat Clone ConstantPadNd Copy CopySlices Detach Diagonal Embedding Expand Flip Gather Index
    IndexSelect MaskedFill MaskedScatter Max Min Amax Amin Narrow Permute ReshapeAlias Reshape Roll Select Slice Split
    SplitWithSizes Squeeze Stack T ToCopy Transpose Tril Triu Unbind UnsafeSplit UnsafeView Unsqueeze View Where
    """.split()
)
#: Those that are linear in all tensors together, and those that are linear in each: plain in the gradient form.
LINEAR = frozenset("Add AvgPool1D AvgPool2D AvgPool3D Cumsum Mean Neg Nansum Sub Rsub Sum".split())
PRODUCTS = frozenset("Addmm Bmm Convolution Div Dot Linear MkldnnConvolution Mm Mul Mv".split())


#: Returns the number that the next node of the graph gets in this thread; called around every function.
sequence_number: Callable[[], int] = torch._C._autograd._get_sequence_nr


def nodes_of(values: Any, until: Iterable[Any] = (), stop: Callable[[Any], bool] = lambda node: False) -> Iterator[Any]:
    """Yield each node of the graph that values come from, down to others, which are left out."""
    seen: set[Any] = {None, *until}
    waiting: list[Any] = [value.grad_fn for value in tree_leaves(values) if isinstance(value, Tensor)]
    while waiting:
        node = waiting.pop()
        if node not in seen and not stop(node):
            seen.add(node)
            waiting.extend(before for before, _ in node.next_functions)
            yield node


def name_of_node(node: Any) -> str:
    """Return the name of a node without "Backward0"."""
    return re.sub(r"Backwards?\d*$", "", node.name().rpartition("::")[2])


def outputs_of(values: Any) -> list[Tensor]:
    """Return the tensors with a graph in what a model returned; objects are looked into where nothing else has one."""
    for _ in range(3):
        leaves = tree_leaves(values)
        found = [value for value in leaves if isinstance(value, Tensor) and value.grad_fn is not None]
        if found:
            return found
        closed = (Tensor, torch.nn.Module, type)
        values = [vars(value) for value in leaves if hasattr(value, "__dict__") and not isinstance(value, closed)]
    return []


def marks_behind(outputs: list[Tensor], marks: dict[Any, int]) -> dict[Any, int]:
    """Return, for each node of the graph that outputs come from, the marks of those that it comes from, as bits."""
    found: dict[Any, int] = {None: 0}
    waiting: list[Any] = [value.grad_fn for value in outputs]
    while waiting:
        node = waiting[-1]
        if node in found:
            waiting.pop()
            continue
        before = [other for other, _ in node.next_functions]
        missing = [other for other in before if other not in found]
        waiting.extend(missing)
        if not missing:
            found[node] = functools.reduce(operator.or_, (found[other] for other in before), marks.get(node, 0))
    return found


def settle(pending: list[Any], output: Any, is_explained: bool) -> bool:
    """Report what was noted in a forward, where what is explained depends on it.

    Where nobody says which of several outputs is explained, a backward pass does: what only some of them depend on is
    reported as soon as it gets to one of these, before it gets to any input.

    Parameters
    ----------
    pending : list of tuple
        Nodes, and what reports the function that made them; empty afterwards.
    output : Any
        What the model returned, or what is explained of it.
    is_explained : bool
        Whether it is what is explained.

    Returns
    -------
    bool
        Whether something waits for a backward pass.
    """
    if not pending:
        return False
    outputs, noted = outputs_of(output), list(pending)
    pending.clear()
    marks: dict[Any, int] = {}
    for number, (nodes, _) in enumerate(noted):
        for node in nodes:
            marks[node] = marks.get(node, 0) | 1 << number
    behind = marks_behind(outputs, marks)
    found = [behind[value.grad_fn] for value in outputs]
    some = functools.reduce(operator.or_, found, 0)
    certain = some if is_explained else functools.reduce(operator.and_, found, some)
    for number, (_, report_it) in enumerate(noted):
        if certain >> number & 1:
            report_it()
    for value, bits in zip(outputs, found, strict=True):
        later = [report_it for number, (_, report_it) in enumerate(noted) if (bits & ~certain) >> number & 1]
        if later:
            value.register_hook(functools.partial(report_reached, later))
    return bool(some & ~certain)


def report_reached(reports: list[Callable[[], None]], signal: Tensor | None) -> None:
    """Report what an output depends on, in a backward pass that gets to it; autograd gives None where it does not."""
    if signal is not None:
        for report_it in reports:
            report_it()


def is_constant(node: Any) -> bool:
    """Tell whether a node is that of a parameter, as it is or moved: one that requires grad is reported as a leaf."""
    while node is not None and name_of_node(node) in ROUTING and len(node.next_functions) == 1:
        node = node.next_functions[0][0]
    return node is None or isinstance(getattr(node, "variable", None), torch.nn.Parameter)


def is_plain(node: Any, form: Form) -> bool:
    """Tell whether what autograd does at a node is what the rules would do."""
    name = name_of_node(node)
    operands = [not is_constant(before) for before, _ in node.next_functions]
    if name == "CopySlices":
        # what was written into a view may be a product of both
        return sum(operands) == 1
    if name in ROUTING:
        return True
    if form == "relevance" or (name == "Div" and any(operands[1:])):
        return False
    return name in LINEAR or (name in PRODUCTS and sum(operands) == 1)


class Spans:
    """Intervals of sequence numbers: those of the nodes that are accounted for.

    Examples
    --------
    >>> from zennit_attn.engine.graph import Spans
    >>> spans = Spans()
    >>> spans.add(3, 5)
    >>> [number in spans for number in (2, 3, 5)]
    [False, True, False]
    >>> len(spans)
    2
    """

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []

    def add(self, start: int, end: int) -> None:
        """Add an interval that begins where the ones before have ended, or later."""
        if start < end:
            self.starts.append(start)
            self.ends.append(end)

    @classmethod
    def between(cls, start: int, end: int, gaps: Iterable[tuple[int, int]]) -> Spans:
        """Return an interval without its gaps."""
        spans = cls()
        for first, last in gaps:
            spans.add(start, first)
            start = last
        spans.add(start, end)
        return spans

    def __len__(self) -> int:
        """Return how many numbers are in them."""
        return sum(self.ends) - sum(self.starts)

    def __contains__(self, number: int) -> bool:
        place = bisect.bisect_right(self.starts, number) - 1
        return place >= 0 and number < self.ends[place]


def is_own(output: Any, inputs: Any, start: int, end: int) -> bool:
    """Tell whether this thread made all of a graph, from inputs to an output, in an interval of its numbers."""
    given = [value.grad_fn for value in tree_leaves(inputs) if isinstance(value, Tensor)]
    nodes = nodes_of(outputs_of(output), given)
    numbers = [node._sequence_nr() for node in nodes if not hasattr(node, "variable")]
    return len(set(numbers)) == len(numbers) and all(start <= number < end for number in numbers)


def look(model: torch.nn.Module, output: Any, inputs: Any, spans: Spans, checkpoints: bool, form: Form) -> bool:
    """Note what is in the graph of an output and called no function that a mode saw, for :func:`settle` to report.

    Parameters
    ----------
    model : torch.nn.Module
        Model that was run.
    output : Any
        What is explained of what the model returned.
    inputs : Any
        Its arguments; what lies before them is not the model's.
    spans : Spans
        Where functions that a mode saw made their nodes.
    checkpoints : bool
        Whether the model's reentrant checkpoints are known to run with rules.
    form : {"relevance", "gradient"}
        Form of the backward signal: in the gradient form a linear function is right as it is.

    Returns
    -------
    bool
        Whether there was a graph to look at.
    """
    outputs = outputs_of(output)
    given = [value for value in tree_leaves(inputs) if isinstance(value, Tensor)]
    nodes = list(nodes_of(outputs, [value.grad_fn for value in given]))
    leaves = {node: node.variable for node in nodes if hasattr(node, "variable")}
    foreign = [node for node, leaf in leaves.items() if not is_explained(leaf) and all(leaf is not v for v in given)]
    if state.choose is None and not any(value.requires_grad for value in given):
        # the input is a leaf that somebody put inside, as the embeddings of token ids
        foreign = [
            node for node in foreign if isinstance(leaves[node], torch.nn.Parameter) or name_of(model, leaves[node])
        ]
    for node in foreign:
        report_foreign(model, node)
    # what was computed of a foreign leaf is reported by the leaf
    of_foreign = marks_behind(outputs, dict.fromkeys(foreign, 1)) if foreign else {}
    # each thread counts for itself: of two nodes of one number, one is another thread's
    numbers = Counter(node._sequence_nr() for node in nodes)
    for node in nodes:
        function = getattr(type(node), "_forward_cls", None)
        if function is not None:
            if not is_known(function, checkpoints, form):
                report(function, node)
        elif of_foreign.get(node) or node in leaves:
            continue
        elif (node._sequence_nr() not in spans or numbers[node._sequence_nr()] > 1) and not is_plain(node, form):
            report_node(node)
    return bool(nodes)


def is_known(function: Any, checkpoints: bool, form: Form) -> bool:
    """Tell whether the backward pass of an autograd function is right as it is."""
    if function is torch.utils.checkpoint.CheckpointFunction:
        return checkpoints
    if form == "gradient" and f"{function.__module__}.{function.__qualname__}" in QUANTIZED_FUNCTIONS:
        return True
    return function.__module__.split(".")[0] in KNOWN_FUNCTIONS


def report_foreign(model: torch.nn.Module, node: Any) -> None:
    """Report a tensor that requires grad and is not the input, by the name under which the model has it."""
    leaf = node.variable
    for name, parameter in model.named_parameters():
        if parameter is leaf:
            report_stale(repr(name), node)
            return
    report_leaf(name_of(model, leaf) or f"a {type(leaf).__name__} of shape {tuple(leaf.shape)}", node)


def name_of(model: torch.nn.Module, tensor: Tensor) -> str | None:
    """Return the name under which a model has a tensor that is none of its parameters, None if it has not."""
    for module, name in names_of(model).items():
        places = {**module._buffers, **{key: value for key, value in vars(module).items() if key[:1] != "_"}}
        for key, value in places.items():
            if any(item is tensor for item in tree_leaves(value)):
                return repr(f"{name}.{key}".lstrip("."))
    return None
