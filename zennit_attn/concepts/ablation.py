"""Ablation: a model without some of its heads, neurons and weights, to see what they were needed for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..engine.handles import Kept
from ..engine.linear import linear_kind, linear_map
from ..errors import InputError
from ..hints import nearest
from ..latents import WRITERS, Latent, latents_of, sizes
from .weights import is_matrix, matrix_of

#: Units by the name of a latent.
Units = Mapping[str, Sequence[int]]


@contextmanager
def ablated(model: torch.nn.Module, units: Units | Sequence[Units]) -> Iterator[None]:
    """Set heads and neurons of a model to zero, at all tokens, for the time of a ``with`` statement.

    Parameters
    ----------
    model : torch.nn.Module
        The model; its weights stay as they are.
    units : mapping of str to sequence of int, or sequence of these
        Units by latent, such as ``{"model.layers.3.head": [0, 5]}``: of all samples, or one mapping for each sample of
        the batches to come.

    Raises
    ------
    InputError
        If there is no such latent or unit, or a batch has another number of samples.

    Examples
    --------
    >>> import torch, transformers
    >>> from zennit_attn.concepts import ablated
    >>> config = transformers.LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
    ...                                   num_attention_heads=2)
    >>> model = transformers.LlamaForCausalLM(config).eval()
    >>> with ablated(model, {"model.layers.0.head": [1], "model.layers.0.neuron": [0, 7]}):
    ...     logits = model(torch.tensor([[3, 1, 4]])).logits
    """
    each = [units] if isinstance(units, Mapping) else list(units)
    known = latents_of(model)

    def without(latent: Latent, kept: Tensor, module: Any, args: Any) -> Any:
        value = args[0]
        if len(kept) not in (1, len(value)):
            raise InputError(
                f"{latent.module!r} got a tensor of shape {tuple(value.shape)}, expected {len(kept)} samples, as units "
                "of so many were given."
            )
        shape = len(kept), *[1] * (value.dim() - 2), value.shape[-1]
        return (value * kept.to(value).repeat_interleave(value.shape[-1] // kept.shape[1], 1).view(shape), *args[1:])

    with Kept() as handles:
        for name in dict.fromkeys(name for some in each for name in some):
            latent = writer_of(model, known, name)
            kept = torch.ones(len(each), units_of(model, latent))
            for row, some in enumerate(each):
                for unit in some.get(name, ()):
                    if not -kept.shape[1] <= unit < kept.shape[1]:
                        raise InputError(f"got unit {unit} of {name!r}, which has {kept.shape[1]} of them.")
                    kept[row, unit] = 0
            handles.hook(model.get_submodule(latent.module), partial(without, latent, kept), before=True)
        yield


@contextmanager
def pruned(model: torch.nn.Module, scores: Mapping[str, Tensor], share: float) -> Iterator[None]:
    """Set what has the least score to zero, for the time of a ``with`` statement: of each name the same share.

    Parameters
    ----------
    model : torch.nn.Module
        The model; its weights stay as they are.
    scores : mapping of str to torch.Tensor
        How much each matters, the magnitude of its relevance, for example. By latent, of heads or neurons: of shape
        ``(units,)``. By linear layer, such as ``"model.layers.3.mlp.up_proj"``: of shape ``(outputs,)`` for its rows,
        each with its bias, or ``(outputs, inputs)`` for its weights.
    share : float
        Which share goes, from 0 to 1.

    Raises
    ------
    InputError
        If there is no such latent or layer, the scores are not one for each unit, row or weight, or the share is none.
    """
    if not 0 <= share <= 1:
        raise InputError(f"share got {share!r}, expected a number from 0 to 1.")
    known, layers, least = latents_of(model), dict(model.named_modules()), {}
    with Kept() as handles:
        for name, values in scores.items():
            module = layers.get(name)
            if module is not None and name not in known and is_matrix(module):
                thin(handles, name, module, values, share)
            else:
                check_scores(name, values, ((units_of(model, writer_of(model, known, name)),),), "units")
                least[name] = least_of(values, share).nonzero()[:, 0].tolist()
        with ablated(model, least):
            yield


def thin(handles: Kept, name: str, module: Any, values: Tensor, share: float) -> None:
    """Put around a linear layer what leaves out the rows, or the weights, of least score."""
    matrix = matrix_of(module)
    shape = tuple(matrix.shape)
    check_scores(name, values, (shape[:1], shape), "rows or weights")
    kept = ~least_of(values, share).to(matrix.device)
    if values.dim() == 1:
        handles.hook(module, partial(without_rows, kept))
    else:
        handles.forward(module, partial(without_weights, module, kept))


def check_scores(name: str, values: Tensor, shapes: Sequence[tuple[int, ...]], things: str) -> None:
    """Raise InputError if there is not one score for each of what a name has."""
    if tuple(values.shape) not in shapes or bool(values.isnan().any()):
        raise InputError(
            f"got scores of shape {tuple(values.shape)} for {name!r}, expected a number for each of its {things}: "
            f"{' or '.join(map(str, shapes))}."
        )


def least_of(values: Tensor, share: float) -> Tensor:
    """Return which values are the least ones, as many as a share of them."""
    least = torch.zeros(values.numel(), dtype=torch.bool)
    least[values.detach().flatten().argsort()[: round(share * values.numel())].cpu()] = True
    return least.view(values.shape)


def without_rows(kept: Tensor, module: Any, args: Any, output: Tensor) -> Tensor:
    """Return the output of a linear layer without some of its rows, and their bias."""
    return output * kept.to(output)


def without_weights(module: Any, kept: Tensor, forward: Any, args: Any, kwargs: Any) -> Tensor:
    """Return the output of a linear layer without some of its weights."""
    value = args[0] if args else kwargs["input"]
    of_weight = kept.T if linear_kind(module) == "transposed linear" else kept
    return linear_map(module, value, module.weight * of_weight.to(module.weight), bias=module.bias)


def writer_of(model: torch.nn.Module, known: Mapping[str, Latent], name: str) -> Latent:
    """Return the latent of a name, of heads or neurons that a module reads which is called.

    Raises
    ------
    InputError
        If there is none.
    """
    latent = known.get(name)
    if latent is None or latent.kind not in WRITERS:
        choices = [other.name for other in known.values() if other.kind in WRITERS]
        raise InputError(f"got {name!r}, expected the name of a latent of {WRITERS}; {nearest(name, choices)}")
    if latent.time_major:
        raise InputError(
            f"got {name!r} of a torch.nn.MultiheadAttention, which does not call its projection; expected an attention "
            "of modules, as timm and transformers have them."
        )
    return latent


def units_of(model: torch.nn.Module, latent: Latent) -> int:
    """Return how many units a latent of heads or neurons has."""
    return sizes(model.get_submodule(latent.module))[0] if latent.units is None else latent.units
