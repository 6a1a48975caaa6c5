"""Check how one model is explained: strictly, conserving, in both forms, and the same by eager and fused attention."""

from __future__ import annotations

import re
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sweep.leaves import ConstantLeaves, Leaves
from zennit_attn import AttnLRPComposite, CPLRPComposite, input_x_gradient
from zennit_attn.errors import UnknownOperationError

#: Entries of an output, in the order in which they are tried; else the first floating-point tensor is explained.
EXPLAINED = ("logits", "logits_per_image", "itm_score", "start_logits", "prediction_logits")
#: What is compared beside the leak, and how a difference is told.
DIFFERENCES = {
    "forward": "the forward changes",
    "forms": "CP-LRP's forms differ",
    "attnlrp forms": "AttnLRP's forms differ",
    "eager": "eager and fused attention differ",
}


class Refused(Exception):
    """The package refused the model by its own word."""


def explained(output: Any) -> Tensor:
    """Return the logits of an output, those of the last position if there are several."""
    if not isinstance(output, Tensor):
        if isinstance(output, Mapping):
            first = [output[name] for name in EXPLAINED if isinstance(output.get(name), Tensor)]
            output = first or list(output.values())
        floating = [value for value in tree_leaves(output) if isinstance(value, Tensor) and value.is_floating_point()]
        output = next((value for value in floating if value.requires_grad), floating[0])
    output = output[:, -1] if output.dim() == 3 else output
    # the logits of tokens that a model never gives are constants
    return output.masked_fill(output == torch.finfo(output.dtype).min, 0.0)


def explain(
    model: Any,
    inputs: Any,
    composite: Any,
    index: int,
    form: str = "gradient",
    added: ConstantLeaves | None = None,
    noise: float = 0.0,
) -> tuple[list[Tensor], Tensor]:
    """Return the relevance of every leaf, then that of the constants that are ``added``; and the logits."""
    leaves = Leaves(model, inputs, noise)
    composite = input_x_gradient(composite) if form == "gradient" else composite
    with warnings.catch_warnings(), composite.context(model), added or nullcontext():
        warnings.simplefilter("ignore")
        logits = explained(leaves())
        sources = [*leaves.values, *(added.values if added else ())]
        chosen = logits.reshape(-1)[index]
        start = torch.ones_like(chosen) if form == "gradient" else chosen.detach()
        signals = torch.autograd.grad(chosen, sources, start, allow_unused=True)
    pairs = zip(sources, signals, strict=True)
    return [relevance_of(value.detach(), signal, form) for value, signal in pairs], logits.detach()


def relevance_of(value: Tensor, signal: Tensor | None, form: str) -> Tensor:
    """Return the relevance of a leaf, zero where it has no signal."""
    if signal is None:
        return torch.zeros_like(value)
    # a mask adds -inf, and has no signal
    return torch.where(signal == 0, signal, signal * value) if form == "gradient" else signal


def total(relevances: list[Tensor]) -> float:
    """Return the sum of all relevance."""
    return sum(float(relevance.double().sum()) for relevance in relevances)


def difference(got: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest difference of two explanations, relative to the largest relevance."""
    largest = max(float(value.abs().max()) for value in expected)
    return max(float((a - b).abs().max()) for a, b in zip(got, expected, strict=True)) / (largest or 1.0)


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
    """Turn what strict mode, or the package by its own word, refuses into :class:`Refused`.

    Raises
    ------
    Refused
        With the operation and the module, or the message.
    """
    try:
        yield
    except UnknownOperationError as error:
        found = re.search(r"no rule is known for (\S+), called in '(.*?)' \((\w+)\)", str(error))
        raise Refused("{} in {} ({})".format(*found.groups()) if found else str(error)) from error
    except (RuntimeError, ValueError, TypeError) as error:
        # its messages say what it expected; an error without that is none that it raised on purpose
        frames = traceback.extract_tb(error.__traceback__)
        if "zennit_attn" not in frames[-1].filename or "expected" not in str(error):
            raise
        raise Refused(str(error)) from error


def check(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return what explanations of a model do: status, leak, its limit, differences and a note.

    Parameters
    ----------
    model : torch.nn.Module
        Model in eval mode, in float64 or float32, without additive constants; it is changed.
    inputs : dict
        Arguments of its forward, floating-point ones of its type.

    Raises
    ------
    Refused
        If the package refuses the model.
    """
    model.requires_grad_(False)
    leaves = Leaves(model, inputs)
    plain = explained(leaves())
    obstacle = obstacle_of(plain)
    if obstacle:
        return {"status": "cannot be built", "note": obstacle}
    limit = 1e-4 if computes_in_float32(plain) else 1e-6
    if next(model.parameters()).dtype == torch.float32:
        limit = 1e-3
    index, plain = int(plain.abs().argmax()), plain.detach()
    with refusals():
        result, relevance = check_conservation(model, inputs, plain, index)
        result |= check_forms(model, inputs, index, relevance)
    unused = [name for name, value in zip(leaves.names, relevance, strict=False) if not bool(value.any())]
    return verdict(result | {"limit": limit}, unused)


def obstacle_of(logits: Tensor) -> str | None:
    """Return why there is nothing to explain, None if there is something."""
    if not logits.requires_grad:
        return "its output does not depend on floating-point inputs"
    if not bool(logits.isfinite().all()):
        return "its random weights give outputs that are not finite"
    if not bool(logits.any()):
        return "without additive constants its logits are exactly zero"
    return None


def check_conservation(model: Any, inputs: Any, plain: Tensor, index: int) -> tuple[dict[str, float], list[Tensor]]:
    """Return leak, shares of constants, and change of the forward under CP-LRP; and the relevance of the inputs."""
    composite = CPLRPComposite(strict=True)
    relevance, logits = explain(model, inputs, composite, index)
    shares, expansions = constant_shares(model, inputs, composite, index, len(relevance))
    logit = float(plain.reshape(-1)[index])
    result = {
        "leak": abs(total(relevance) + total(shares) + total(expansions) - logit) / abs(logit),
        "constants": abs(total(shares) / logit),
        "expansions": abs(total(expansions) / logit),
        "forward": difference([logits], [plain]),
    }
    return result, relevance


def constant_shares(
    model: Any, inputs: Any, composite: Any, index: int, count: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the relevance of what a forward adds, and what expansions keep; there are ``count`` inputs."""
    added, again = ConstantLeaves(), ConstantLeaves()
    everything = explain(model, inputs, composite, index, added=added)[0]
    # what changes with the input is none, but was cut off from it
    explain(model, inputs, composite, index, added=again, noise=1e-6)
    pairs = zip(everything[count:], added.values, again.values, strict=False)
    return [share for share, before, after in pairs if torch.equal(before, after)], added.expansions


def check_forms(model: Any, inputs: Any, index: int, relevance: list[Tensor]) -> dict[str, float]:
    """Return the differences between the forms, and between eager and fused attention."""
    other = explain(model, inputs, CPLRPComposite(strict=True), index, "relevance")[0]
    composite = AttnLRPComposite(strict=True)
    gradient, fused = explain(model, inputs, composite, index)
    result = {
        "forms": difference(other, relevance),
        "attnlrp forms": difference(explain(model, inputs, composite, index, "relevance")[0], gradient),
    }
    if getattr(getattr(model, "config", None), "_attn_implementation", None) == "sdpa":
        # eager attention has its softmax in float32: how much such rounding changes depends on the model
        rounded = explain(model, inputs, composite, index, noise=torch.finfo(torch.float32).eps)[0]
        result["rounding"] = difference(rounded, gradient)
        model.set_attn_implementation("eager")
        logits = explained(Leaves(model, inputs)()).detach()
        result["eager forward"] = difference([logits], [fused])
        if bool(logits.isfinite().all()):
            result["eager"] = difference(explain(model, inputs, composite, index)[0], gradient)
    return result


def verdict(result: dict[str, Any], unused: list[str]) -> dict[str, Any]:
    """Return the result with its status, and a note on what is not as it should be."""
    limit = result["limit"]
    notes = [f"{', '.join(unused)} get no relevance"] if unused else []
    limits = dict.fromkeys(DIFFERENCES, limit) | {"eager": max(limit, 10 * result.get("rounding", 0.0))}
    wrong = {name for name in DIFFERENCES if result.get(name, 0.0) > limits[name]}
    if not result.get("eager forward", 0.0) <= limit:
        notes.append("its own eager and fused forwards differ")
        wrong.discard("eager")
    notes += [f"{text} by {result[name]:.0e}" for name, text in DIFFERENCES.items() if name in wrong]
    status = "leaks" if not result["leak"] <= limit else "disagrees" if wrong else "conserves"
    return {**result, "status": status, "note": "; ".join(notes)}
