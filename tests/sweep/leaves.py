"""Inputs and constants of any model: as leaves of a graph, or set to zero.

Nothing here knows an architecture. Constants that are parameters are recognised by their names, those that a forward
adds by watching it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from zennit_attn.engine.operands import explained_leaf

#: Names of parameters, buffers and tensor attributes that are added to what depends on the input.
CONSTANTS = re.compile(
    r"bias[^.]*$|position|pos_emb|pos_embed|^wpe|(^|\.)pe$|token_type|type_embed|segment_emb|ngram_embeddings|running_mean"
    r"|(cls|class|mask|dist|reg|register|storage|query)_tokens?|(^|\.)cls$|class_emb|distillation|masked_spec_embed"
    r"|image_(newline|begin|end|sep)|view_sep|latents|latent_query|prompt|probe$|\.query$"
    r"|query_\d+_resolution"
)
#: Embeddings that are no inputs: their values are constants, or only weights of an attention.
NO_INPUT = re.compile(r"bias|position|wpe|token_type|segment|relative|pos_emb|type_embed|rel_", re.IGNORECASE)
#: Names of floating-point arguments that are explained: others are coordinates.
EXPLAINABLE = re.compile(r"^input|pixel|feat|values|embeds|patches|^x$|audio|state|noise")

#: Functions that add a constant, or put one beside something else.
ADDITIONS = {
    getattr(space, name)
    for space, names in (
        (torch, ("add", "sub", "subtract", "rsub")),
        (Tensor, ("add", "add_", "__add__", "__radd__", "__iadd__", "sub", "sub_", "__sub__", "__rsub__", "__isub__")),
    )
    for name in names
}
#: Functions that are explained by their Taylor expansion.
EXPANDED = {torch.exp, Tensor.exp, torch.softmax, Tensor.softmax, torch.nn.functional.softmax, torch.special.softmax}
JOININGS = {torch.cat, torch.concat, torch.concatenate, torch.stack, torch.hstack, torch.vstack}


def randomise(model: torch.nn.Module) -> None:
    """Give parameters values that let a forgotten one be seen: not constant, and not so small that all is linear."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        data = parameter.data
        if not data.is_floating_point() or not data.numel():
            continue
        noise = torch.randn(data.shape, generator=generator).to(data.dtype)
        if not data.isfinite().all():
            data.copy_(noise * 0.1)
        if data.ndim >= 2 and "A_log" not in name:
            wanted = max(data[0].numel() if data.ndim != 3 else max(data.shape[1:]), 1) ** -0.5
            if data.std() < wanted:
                data.copy_(noise * wanted)
        elif data.numel() > 1 and data.max() == data.min():
            data.add_(0.1 * noise)
        elif data.numel() == 1 and data == 0:
            data.fill_(0.3)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            module.running_var.uniform_(0.5, 1.5, generator=generator)


def zero_constants(model: torch.nn.Module) -> None:
    """Set every additive constant of a model to zero."""
    for name, module in model.named_modules():
        own = {**module._parameters, **module._buffers}
        own.update({key: value for key, value in vars(module).items() if isinstance(value, Tensor)})
        for key, tensor in own.items():
            if tensor is None or not tensor.is_floating_point() or "inv_freq" in key:
                continue
            # the name of the innermost module counts: that of a whole model may be anything
            if CONSTANTS.search(f"{name.rsplit('.', 1)[-1]}.{key}"):
                tensor.data.zero_()


def is_floating(value: Any) -> bool:
    """Tell whether a value is a floating-point tensor."""
    return isinstance(value, Tensor) and value.is_floating_point()


def call(model: torch.nn.Module, inputs: dict[str, Any]) -> Any:
    """Call a model with keyword arguments, or with one tensor that has no name."""
    return model(inputs["x"]) if set(inputs) == {"x"} else model(**inputs)


def embeds(module: torch.nn.Module) -> bool:
    """Tell whether a module of another kind, a quantised one for instance, is a table that is looked up."""
    named = type(module).__name__.endswith("Embedding") and next(module.children(), None) is None
    weight = getattr(module, "weight", None)
    return named and isinstance(weight, Tensor) and weight.dim() == 2


class ConstantLeaves(TorchFunctionMode):
    """Make a leaf of every constant that is added to, or joined with, something that depends on the input.

    A ``(up + 1)`` in a model's forward gets its share of the relevance, and no parameter that could be zeroed. So does
    the bias of the Taylor expansion of ``exp`` and of a softmax, which is a constant of no place in the forward: what
    it keeps of the relevance is seen in the backward pass of the gradient form.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Tensor] = []
        self.expansions: list[Tensor] = []

    def leaf(self, constant: Any, other: Tensor) -> Tensor:
        """Return a leaf of a constant, of the type of what it is joined with."""
        self.values.append(explained_leaf(torch.as_tensor(constant).to(other.dtype, copy=True)))
        return self.values[-1]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in ADDITIONS and len(args) == 2 and depends(args[0]) != depends(args[1]):
            place = 0 if depends(args[1]) else 1
            # a constant that is written into stays what it is
            if place == 1 or not func.__name__.endswith(("add_", "__iadd__")):
                leaf = self.leaf(args[place], args[1 - place])
                args = (leaf, args[1]) if place == 0 else (args[0], leaf)
        elif func in JOININGS and args and any(map(depends, args[0])):
            first = next(filter(depends, args[0]))
            args = ([value if depends(value) else self.leaf(value, first) for value in args[0]], *args[1:])
        output = func(*args, **(kwargs or {}))
        if func in EXPANDED and depends(output):
            value, *rest = args
            value = value.detach()
            output.register_hook(lambda signal: self.expand(func, value, rest, kwargs or {}, signal))
        return output

    def expand(self, func: Any, value: Tensor, rest: list[Any], kwargs: dict[str, Any], signal: Tensor) -> None:
        """Note what a function's Taylor expansion keeps: the relevance of its output minus that of its argument."""
        with torch._C.DisableTorchFunction(), torch.enable_grad():
            value.requires_grad_()
            output = func(value, *rest, **kwargs)
            (gradient,) = torch.autograd.grad(output, value, signal.to(output.dtype))
            # a mask is -inf, and has no signal
            passed = torch.where(gradient == 0, gradient, gradient * value)
            self.expansions.append((signal * output).sum().detach() - passed.sum().detach())


def depends(value: Any) -> bool:
    """Tell whether a value depends on the input of a frozen model."""
    return isinstance(value, Tensor) and value.requires_grad


class Leaves:
    """Every input of a model as a leaf: its floating-point arguments, and the embeddings of its token ids.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    inputs : mapping
        Its arguments.
    noise : float, optional
        Standard deviation of what each leaf is changed by, relative to its values.
    """

    def __init__(self, model: torch.nn.Module, inputs: Mapping[str, Any], noise: float = 0.0) -> None:
        self.model, self.inputs, self.noise = model, inputs, noise
        self.values: list[Tensor] = []
        self.names: list[str] = []

    def leaf(self, value: Any) -> Any:
        """Return a copy of a leaf made of a tensor."""
        if not is_floating(value) or not value.numel():
            return value
        value = value.detach()
        changed = value + self.noise * value * torch.randn_like(value) if self.noise else value.clone()
        self.values.append(explained_leaf(changed))
        return self.values[-1].clone()

    def __call__(self) -> Any:
        """Run the model on its leaves."""
        self.values.clear()
        handles = [
            module.register_forward_hook(lambda _, args, output: tree_map(self.leaf, output), prepend=True)
            for name, module in self.model.named_modules()
            if (isinstance(module, torch.nn.Embedding) or embeds(module)) and not NO_INPUT.search(name)
        ]
        inputs = dict(self.inputs)
        self.names = [name for name, value in inputs.items() if EXPLAINABLE.search(name) and is_floating(value)]
        inputs.update((name, self.leaf(inputs[name])) for name in self.names)
        try:
            return call(self.model, inputs)
        finally:
            for handle in handles:
                handle.remove()
