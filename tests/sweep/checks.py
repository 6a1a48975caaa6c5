"""Check how one model is explained: strictly, conserving, in both forms, and the same by eager and fused attention.

Nothing here knows an architecture. Constants are recognised by their names, see :data:`CONSTANTS`.
"""

from __future__ import annotations

import re
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from zennit_attn import AttnLRPComposite, CPLRPComposite, input_x_gradient
from zennit_attn.scope import UnknownOperationError

#: Entries of an output, in the order in which they are tried; else the first floating-point tensor is explained.
EXPLAINED = ("logits", "logits_per_image", "itm_score", "start_logits", "prediction_logits")

#: Names of parameters, buffers and tensor attributes that are added to what depends on the input.
CONSTANTS = re.compile(
    r"bias|position|pos_emb|pos_embed|^wpe|(^|\.)pe$|token_type|segment_emb|cls_token|class_emb|class_token|mask_token"
    r"|masked_spec_embed|dist_token|distillation|reg_token|register_tokens|storage_tokens|query_tokens|latents|image_newline|image_begin|image_end|image_sep|latent_query"
    r"|view_sep|prompt|probe$|running_mean|type_embed|(^|\.)cls$|ngram_embeddings"
)
#: Embeddings that are no inputs: their values are constants, or only weights of an attention.
NO_INPUT = re.compile(r"bias|position|wpe|token_type|segment|relative|pos_emb|type_embed|rel_", re.IGNORECASE)


ADDITIONS = {
    getattr(space, name)
    for space, names in (
        (torch, ("add", "sub", "subtract", "rsub")),
        (Tensor, ("add", "add_", "__add__", "__radd__", "__iadd__", "sub", "sub_", "__sub__", "__rsub__", "__isub__")),
    )
    for name in names
}


#: Names of floating-point arguments that are explained: others are coordinates.
EXPLAINABLE = re.compile(r"^input|pixel|feat|values|embeds|^x$|audio")


#: What else is compared, and how it is told.
DIFFERENCES = {
    "forward": "the forward changes",
    "forms": "CP-LRP's forms differ",
    "attnlrp forms": "AttnLRP's forms differ",
    "eager": "eager and fused attention differ",
}
JOININGS = {torch.cat, torch.concat, torch.concatenate, torch.stack, torch.hstack, torch.vstack}


class Refused(Exception):
    """Strict mode refused the model."""


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

    A ``(up + 1)`` in a model's forward gets its share of the relevance, and no parameter that could be zeroed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Tensor] = []

    def leaf(self, constant: Any, other: Tensor) -> Tensor:
        """Return a leaf of a constant, of the type of what it is joined with."""
        self.values.append(torch.as_tensor(constant).to(other.dtype, copy=True).requires_grad_())
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
        return func(*args, **(kwargs or {}))


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
    """

    def __init__(self, model: torch.nn.Module, inputs: Mapping[str, Any]) -> None:
        self.model, self.inputs = model, inputs
        self.values: list[Tensor] = []
        self.names: list[str] = []

    def leaf(self, value: Any) -> Any:
        """Return a copy of a leaf made of a tensor."""
        if not is_floating(value) or not value.numel():
            return value
        self.values.append(value.detach().clone().requires_grad_())
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


def explained(output: Any) -> Tensor:
    """Return the logits of an output, those of the last position if there are several."""
    if not isinstance(output, Tensor):
        if isinstance(output, Mapping):
            first = [output[name] for name in EXPLAINED if isinstance(output.get(name), Tensor)]
            output = first or list(output.values())
        floating = [value for value in tree_leaves(output) if isinstance(value, Tensor) and value.is_floating_point()]
        output = next((value for value in floating if value.requires_grad), floating[0])
    return output[:, -1] if output.dim() == 3 else output


def explain(
    model: Any, inputs: Any, composite: Any, index: int, form: str, added: ConstantLeaves | None = None
) -> tuple[list[Tensor], Tensor]:
    """Return the relevance of every leaf, then of constants that a forward adds, if they are asked for; and the logits."""
    leaves = Leaves(model, inputs)
    composite = input_x_gradient(composite) if form == "gradient" else composite
    with warnings.catch_warnings(), composite.context(model), added or nullcontext():
        warnings.simplefilter("ignore")
        logits = explained(leaves())
        sources = [*leaves.values, *(added.values if added else ())]
        chosen = logits.reshape(-1)[index]
        start = torch.ones_like(chosen) if form == "gradient" else chosen.detach()
        signals = torch.autograd.grad(chosen, sources, start, allow_unused=True)
    relevances = [
        torch.zeros_like(value) if signal is None else signal * value.detach() if form == "gradient" else signal
        for value, signal in zip(sources, signals, strict=True)
    ]
    # masks of -inf have no signal, and no relevance
    return [value.detach().nan_to_num(0.0) if added else value for value in relevances], logits.detach()


def total(relevances: list[Tensor]) -> float:
    """Return the sum of all relevance."""
    return sum(float(relevance.double().sum()) for relevance in relevances)


def difference(got: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest difference of two explanations, relative to the largest relevance."""
    largest = max(float(value.abs().max()) for value in expected)
    return max(float((a - b).abs().max()) for a, b in zip(got, expected, strict=True)) / largest


def computes_in_float32(logits: Tensor) -> bool:
    """Tell whether a node of a float64 graph is of a smaller type, so that its rounding is to be expected."""
    seen, waiting = set(), [logits.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if any(data is not None and data.dtype in (torch.float32, torch.complex64) for data in node._input_metadata):
            return True
        waiting.extend(before for before, _ in node.next_functions)
    return False


@contextmanager
def refusals() -> Iterator[None]:
    """Turn what strict mode, or the package by its own word, refuses into :class:`Refused`."""
    try:
        yield
    except UnknownOperationError as error:
        found = re.search(r"no rule is known for (\S+), called in '(.*?)' \((\w+)\)", str(error))
        raise Refused("{0} in {1} ({2})".format(*found.groups()) if found else str(error)) from error
    except (RuntimeError, ValueError, TypeError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        if "zennit_attn" not in frames[-1].filename or "expected" not in str(error):
            raise
        raise Refused(str(error)) from error


def check(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return what explanations of a model do, a dict with status, leak, limit and notes.

    Parameters
    ----------
    model : torch.nn.Module
        Model in eval mode, in float64 or float32; it is changed.
    inputs : dict
        Arguments of its forward, floating-point ones of its type.
    """
    model.requires_grad_(False)
    single = next(model.parameters()).dtype == torch.float32
    leaves = Leaves(model, inputs)
    plain = explained(leaves())
    if not plain.requires_grad:
        return {"status": "cannot be built", "note": "its output does not depend on floating-point inputs"}
    if not bool(plain.isfinite().all()):
        return {"status": "cannot be built", "note": "its random weights give outputs that are not finite"}
    limit = 1e-3 if single else 1e-4 if computes_in_float32(plain) else 1e-6
    index, plain = int(plain.abs().argmax()), plain.detach()
    if float(plain.abs().max()) == 0:
        return {"status": "cannot be built", "note": "without additive constants its logits are exactly zero"}
    with refusals():
        added = ConstantLeaves()
        everything, logits = explain(model, inputs, CPLRPComposite(strict=True), index, "gradient", added)
        relevance = explain(model, inputs, CPLRPComposite(strict=True), index, "gradient")[0]
    logit = float(logits.reshape(-1)[index])
    result = {
        "leak": abs(total(everything) - logit) / abs(logit),
        "constants": abs(total(everything[len(relevance) :]) / logit),
        "limit": limit,
        "logit": logit,
        "forward": float((logits - plain).abs().max() / plain.abs().max()),
    }
    unused = [name for name, value in zip(leaves.names, relevance, strict=False) if not bool(value.any())]
    if unused:
        result["note"] = f"{', '.join(unused)} get no relevance"
    with refusals():
        other = explain(model, inputs, CPLRPComposite(strict=True), index, "relevance")[0]
        result["forms"] = difference(other, relevance)
        result |= check_attnlrp(model, inputs, index)
    if result.get("eager forward", 0) > limit:
        result["eager"] = 0.0
        result["note"] = "; ".join(filter(None, (result.get("note"), "its own eager and fused forwards differ")))
    wrong = [name for name in ("forward", "forms", "attnlrp forms", "eager") if result.get(name, 0) > limit]
    result["status"] = "leaks" if result["leak"] > limit else "disagrees" if wrong else "conserves"
    if wrong:
        described = "; ".join(f"{DIFFERENCES[name]} by {result[name]:.0e}" for name in wrong)
        result["note"] = "; ".join(filter(None, (result.get("note"), described)))
    return result


def check_attnlrp(model: Any, inputs: Any, index: int) -> dict[str, float]:
    """Return the differences of AttnLRP between its forms, and between eager and fused attention."""
    gradient, fused = explain(model, inputs, AttnLRPComposite(strict=True), index, "gradient")
    relevance = explain(model, inputs, AttnLRPComposite(strict=True), index, "relevance")[0]
    result = {"attnlrp forms": difference(relevance, gradient)}
    implementation = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if implementation == "sdpa":
        model.set_attn_implementation("eager")
        eager, logits = explain(model, inputs, AttnLRPComposite(strict=True), index, "gradient")
        result["eager"] = difference(eager, gradient)
        result["eager forward"] = difference([logits], [fused])
    return result
