"""The graph of a forward pass: what it holds that called no function which a mode could look up."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils.checkpoint
from torch.utils._pytree import tree_leaves

from .operands import Form
from .reports import report, report_stale
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


def report_functions(output: Any, inputs: Any, checkpoints: bool, form: Form) -> bool:
    """Report every autograd function with a backward pass of its own, and every parameter, that the output comes from.

    They call no function that a mode could look up: fused kernels, and what was written as
    :class:`torch.autograd.Function`.

    Parameters
    ----------
    output : Any
        What the model returned.
    inputs : Any
        Its arguments; what lies before them is not the model's.
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
    given = [value for value in tree_leaves(inputs) if isinstance(value, torch.Tensor)]
    own = {} if state.mode is None else {id(value): name for name, value in state.mode.root.named_parameters()}
    own = {key: name for key, name in own.items() if key not in map(id, given)}
    seen: set[Any] = {value.grad_fn for value in given}
    waiting: list[Any] = [
        value.grad_fn for value in tree_leaves(output) if isinstance(value, torch.Tensor) and value.grad_fn
    ]
    has_graph = bool(waiting)
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting.extend(before for before, _ in node.next_functions)
        function = getattr(type(node), "_forward_cls", None)
        if function is None:
            leaf = id(getattr(node, "variable", None))
            if leaf in own:
                report_stale(own[leaf])
            continue
        known = function.__module__.split(".")[0] in KNOWN_FUNCTIONS
        known |= form == "gradient" and f"{function.__module__}.{function.__qualname__}" in QUANTIZED_FUNCTIONS
        if not known or (function is torch.utils.checkpoint.CheckpointFunction and not checkpoints):
            report(function)
    return has_graph
