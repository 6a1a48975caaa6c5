"""Relevance of weights: what passed through each, under the rules."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from zennit.core import Composite

from ..composites.registration import input_x_gradient
from ..composites.roles import is_linear
from ..engine.handles import Kept
from ..engine.linear import linear_kind
from ..errors import InputError
from ..hints import nearest
from ..latents import first_of, latents_of
from .conditional import CondAttribution
from .passes import passed
from .samples import size_of


@dataclass(frozen=True)
class WeightRelevance:
    """Relevance of the weights of a linear layer, summed over tokens and samples.

    Attributes
    ----------
    weights : torch.Tensor
        Of shape ``(outputs, inputs)``: what passed from each output to each input.
    bias : torch.Tensor or None
        What the bias kept, of shape ``(outputs,)``.
    heads : int or None
        How many heads the inputs are of, if the layer is the output projection of an attention.
    """

    weights: Tensor
    bias: Tensor | None
    heads: int | None

    @property
    def rows(self) -> Tensor:
        """Relevance of each output through its weights, of shape ``(outputs,)``."""
        return self.weights.sum(1)

    @property
    def columns(self) -> Tensor:
        """Relevance of each input, such as a neuron of a down projection, of shape ``(inputs,)``."""
        return self.weights.sum(0)

    def by_head(self) -> Tensor:
        """Return the relevance of each head, of shape ``(heads,)``.

        Raises
        ------
        InputError
            If the inputs are of no heads.
        """
        if self.heads is None:
            raise InputError("got a layer that is no output projection of an attention, expected one, such as o_proj.")
        return self.columns.unflatten(0, (self.heads, -1)).sum(-1)


def weight_relevance(
    model: torch.nn.Module,
    data: Tensor | Mapping[str, Any],
    target: Any,
    composite: Composite,
    modules: str | Sequence[str] = "*",
    output_key: str | None = None,
    argument: str | None = None,
) -> dict[str, WeightRelevance]:
    """Return the relevance of the weights of linear layers, ``R_W = W ⊙ ∂/∂W`` under the rules.

    With ``y = W x + b`` and the signal ``g`` at ``y`` it is ``R_W[j, i] = W[j, i] Σ_t g_tj x_ti``: the LRP-0 messages
    from ``j`` to ``i``, summed over tokens. Its columns add up to the relevance of the inputs, its rows to that of the
    outputs without the bias's share. Small sums are what structured pruning takes out first.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    data : torch.Tensor or mapping
        As for :class:`~zennit_attn.InputXGradient`.
    target : Target or sequence of int
        What is explained.
    composite : zennit.core.Composite
        Rules, with LRP-0 for these layers; they are converted to the gradient form.
    modules : str or sequence of str, optional
        Names of linear layers, or patterns of them; all that the forward calls by default.
    output_key, argument
        See :class:`~zennit_attn.InputXGradient`.

    Returns
    -------
    dict of str to WeightRelevance
        By module.

    Raises
    ------
    InputError
        If there is no such layer, or it has a rule under which relevance is not in proportion to ``W x``.

    Examples
    --------
    >>> import torch
    >>> from zennit_attn import CPLRPComposite
    >>> from zennit_attn.concepts import weight_relevance
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> found = weight_relevance(model, torch.ones(1, 3), [1], CPLRPComposite())
    >>> {name: tuple(value.weights.shape) for name, value in found.items()}
    {'0': (4, 3), '2': (2, 4)}
    """
    asking = CondAttribution(model, output_key, argument)
    patterns = [modules] if isinstance(modules, str) else list(modules)
    with input_x_gradient(composite).context(model):
        named = {name: module for name, module in model.named_modules() if is_matrix(module)}
        for pattern in patterns:
            if not fnmatch.filter(named, pattern):
                raise InputError(
                    f"modules got {pattern!r}, which fits no linear layer of {type(model).__name__}; "
                    + nearest(pattern, named)
                )
        taken: dict[str, list[tuple[Tensor, Tensor]]] = {}

        def take(name: str, _: Any, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.requires_grad and isinstance(first_of(args), Tensor):
                taken.setdefault(name, []).append((args[0].detach(), output))

        with Kept() as kept:
            for name in {name: None for pattern in patterns for name in fnmatch.filter(named, pattern)}:
                refuse_other_rules(name, named[name])
                kept.hook(named[name], partial(take, name))
            run = asking.run(data, (), "gradient")
        weights = asking.start(run, run.output, [{asking.MODEL_OUTPUT_NAME: target}] * size_of(data), None, True)
        calls = [(name, *call) for name, several in taken.items() for call in several]
        signals = passed(run.output, weights, [output for _, _, output in calls])
        heads = {latent.module: latent.units for latent in latents_of(model).values() if latent.kind == "head"}
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        for (name, x, _), signal in zip(calls, signals, strict=True):
            if signal is None:
                continue
            flat = signal.reshape(-1, signal.shape[-1]).detach()
            parts = flat.T @ x.reshape(-1, x.shape[-1]), flat.sum(0)
            sums[name] = tuple(map(torch.add, sums[name], parts)) if name in sums else parts  # type: ignore[assignment]
        found = {}
        for name, (products, of_bias) in sums.items():
            module: Any = named[name]
            weight = matrix_of(module)
            bias = None if module.bias is None else (module.bias * of_bias).detach()
            found[name] = WeightRelevance((weight * products).detach(), bias, heads.get(name))
    return found


def is_matrix(module: torch.nn.Module) -> bool:
    """Tell whether a module is a linear layer with a matrix that can be read."""
    return is_linear(module) and linear_kind(module) in ("linear", "transposed linear")


def matrix_of(module: Any) -> Tensor:
    """Return the matrix of a linear layer, of shape ``(outputs, inputs)``."""
    return module.weight.T if linear_kind(module) == "transposed linear" else module.weight


def refuse_other_rules(name: str, module: torch.nn.Module) -> None:
    """Raise InputError if a linear layer has another rule than LRP-0, which in the gradient form is none."""
    rule = getattr(vars(module).get("forward"), "rule", None)
    if rule is not None:
        raise InputError(
            f"{name!r} has the rule {type(rule).__name__}, under which relevance is not in proportion to W x; expected "
            "LRP-0, Epsilon(0), for layers of which the weights are explained."
        )
