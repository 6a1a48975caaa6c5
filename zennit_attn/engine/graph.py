"""The graph of a forward pass: what it holds that no rule saw.

A mode sees functions. What made a node without one (a script of torch.jit, another thread, an autograd function), and
what the graph ends in beside the input (a parameter that is in no list of the model), is found by walking the graph.
"""

from __future__ import annotations

import bisect
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


def sequence_number() -> int:
    """Return the number that the next node of the graph gets in this thread."""
    return int(torch._C._autograd._get_sequence_nr())


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


def settle(pending: list[Any], output: Any) -> None:
    """Report what was noted in a forward, where an output depends on it.

    Parameters
    ----------
    pending : list of tuple
        Nodes, and what reports the function that made them; empty afterwards.
    output : Any
        What is explained of what the model returned.
    """
    if pending:
        on_path = set(nodes_of(output))
        for made, report_it in pending:
            if not on_path.isdisjoint(made):
                report_it()
        pending.clear()


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
    """

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []

    def add(self, start: int, end: int) -> None:
        """Add an interval that begins where the ones before have ended, or later."""
        if start < end:
            self.starts.append(start)
            self.ends.append(end)

    def __contains__(self, number: int) -> bool:
        place = bisect.bisect_right(self.starts, number) - 1
        return place >= 0 and number < self.ends[place]


def look(model: torch.nn.Module, output: Any, inputs: Any, spans: Spans | None, checkpoints: bool, form: Form) -> bool:
    """Report what is in the graph of an output and called no function that a mode saw.

    Parameters
    ----------
    model : torch.nn.Module
        Model that was run.
    output : Any
        What is explained of what the model returned.
    inputs : Any
        Its arguments; what lies before them is not the model's.
    spans : Spans or None
        Where functions that a mode saw made their nodes; None if that was not noted.
    checkpoints : bool
        Whether the model's reentrant checkpoints are known to run with rules.
    form : {"relevance", "gradient"}
        Form of the backward signal: in the gradient form a linear function is right as it is.

    Returns
    -------
    bool
        Whether there was a graph to look at.

    Raises
    ------
    UnknownOperationError
        If the composite is strict.
    """
    given = [value for value in tree_leaves(inputs) if isinstance(value, Tensor)]
    nodes = list(nodes_of(output, [value.grad_fn for value in given]))
    leaves = [node.variable for node in nodes if hasattr(node, "variable")]
    foreign = [leaf for leaf in leaves if not is_explained(leaf) and all(leaf is not value for value in given)]
    if state.choose is None and not any(value.requires_grad for value in given):
        # the input is a leaf that somebody put inside, as the embeddings of token ids
        foreign = [leaf for leaf in foreign if isinstance(leaf, torch.nn.Parameter) or name_of(model, leaf)]
    for leaf in foreign:
        report_foreign(model, leaf)
    # each thread counts for itself: of two nodes of one number, one is another thread's
    numbers = Counter(node._sequence_nr() for node in nodes)
    for node in nodes:
        function = getattr(type(node), "_forward_cls", None)
        if function is not None:
            if not is_known(function, checkpoints, form):
                report(function)
        elif spans is None or foreign or hasattr(node, "variable"):
            continue  # what was computed of a foreign leaf is reported by the leaf
        elif (node._sequence_nr() not in spans or numbers[node._sequence_nr()] > 1) and not is_plain(node, form):
            report_node(node.name())
    return bool(nodes)


def is_known(function: Any, checkpoints: bool, form: Form) -> bool:
    """Tell whether the backward pass of an autograd function is right as it is."""
    if function is torch.utils.checkpoint.CheckpointFunction:
        return checkpoints
    if form == "gradient" and f"{function.__module__}.{function.__qualname__}" in QUANTIZED_FUNCTIONS:
        return True
    return function.__module__.split(".")[0] in KNOWN_FUNCTIONS


def report_foreign(model: torch.nn.Module, leaf: Tensor) -> None:
    """Report a tensor that requires grad and is not the input, by the name under which the model has it."""
    for name, parameter in model.named_parameters():
        if parameter is leaf:
            report_stale(repr(name))
            return
    report_leaf(name_of(model, leaf) or f"a {type(leaf).__name__} of shape {tuple(leaf.shape)}")


def name_of(model: torch.nn.Module, tensor: Tensor) -> str | None:
    """Return the name under which a model has a tensor that is none of its parameters, None if it has not."""
    for module, name in names_of(model).items():
        places = {**module._buffers, **{key: value for key, value in vars(module).items() if key[:1] != "_"}}
        for key, value in places.items():
            if any(item is tensor for item in tree_leaves(value)):
                return repr(f"{name}.{key}".lstrip("."))
    return None
