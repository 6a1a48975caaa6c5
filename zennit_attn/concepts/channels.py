"""Concepts: which elements of a tensor are one unit, and what of a signal is left where only some units are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..latents import Found

#: Modules of which the output has the channels behind the batch, and those that have them last.
_SECOND = ("_ConvNd", "_NormBase", "GroupNorm")
_LAST = ("Linear", "Conv1D", "LayerNorm", "Embedding")


class ChannelConcept:
    """The channels of a tensor, along the axis that has them.

    Parameters
    ----------
    axis : int, optional
        The axis: 1 (default) behind the batch, as convolutions have it, -1 for the last one, as in transformers.

    Examples
    --------
    >>> import torch
    >>> from zennit_attn.concepts import ChannelConcept
    >>> ChannelConcept(axis=-1).mask(0, [2])(torch.ones(2, 1, 3))
    tensor([[[0., 0., 1.]],
    <BLANKLINE>
            [[1., 1., 1.]]])
    """

    def __init__(self, axis: int = 1) -> None:
        self.axis = axis

    def __repr__(self) -> str:
        return f"ChannelConcept(axis={self.axis})"

    def mask(self, batch_id: int, concept_ids: Sequence[int], layer_name: str = "") -> Callable[[Tensor], Tensor]:
        """Return what leaves some channels of one sample's signal, and other samples as they are.

        Parameters
        ----------
        batch_id : int
            The sample.
        concept_ids : sequence of int
            The channels that are kept.
        layer_name : str, optional
            Name for errors.
        """
        return lambda signal: signal * self.of_samples(signal, {batch_id: concept_ids}, layer_name)

    def of_samples(self, signal: Tensor, kept: Mapping[int, Sequence[int]], layer_name: str = "") -> Tensor:
        """Return the mask of several samples at once, of the signal's shape but for the axes that have one value."""
        shape = [1] * signal.dim()
        shape[0], shape[self.axis] = len(signal), signal.shape[self.axis]
        return kept_units(kept, len(signal), signal.shape[self.axis], layer_name).to(signal).reshape(shape)

    def attribute(self, relevance: Tensor, abs_norm: bool = True) -> Tensor:
        """Return the relevance of each channel, of shape ``(batch, channels)``.

        Parameters
        ----------
        relevance : torch.Tensor
            Of the layer's shape.
        abs_norm : bool, optional
            Divide by the sum of the channels' magnitudes, as in zennit-crp (default).
        """
        summed = relevance.movedim(self.axis, 1).flatten(2).sum(-1) if relevance.dim() > 2 else relevance
        if not abs_norm:
            return summed
        total = summed.abs().sum(-1, keepdim=True)
        return summed / torch.where(total == 0, torch.ones_like(total), total)


def kept_units(kept: Mapping[int, Sequence[int]], samples: int, units: int, name: str) -> Tensor:
    """Return 1 for the units that are kept, of shape ``(samples, units)``; samples without a condition keep all.

    Raises
    ------
    InputError
        If there is no such unit.
    """
    mask = torch.ones(samples, units)
    for sample, chosen in kept.items():
        wrong = [unit for unit in chosen if not -units <= unit < units]
        if wrong:
            raise InputError(f"a condition got {wrong} of {name!r}, expected numbers from 0 to {units - 1}.")
        mask[sample] = 0
        mask[sample, list(chosen)] = 1
    return mask


def concept_of(name: str, module: torch.nn.Module, tensor: Tensor) -> ChannelConcept:
    """Return the concept of a module's output.

    Raises
    ------
    InputError
        If neither the module's type nor the shape tells where the channels are.
    """
    kinds = {kind.__name__ for kind in type(module).__mro__}
    if not kinds.isdisjoint(_SECOND) or tensor.dim() == 2:
        return ChannelConcept(1)
    if not kinds.isdisjoint(_LAST) or type(module).__name__.endswith("RMSNorm"):
        return ChannelConcept(-1)
    raise InputError(
        f"a condition got {name!r}, a {type(module).__name__} with an output of shape {tuple(tensor.shape)}; expected "
        f"mask_map={{{name!r}: ChannelConcept(axis=1)}}, or axis=-1: where its channels are. Heads, neurons and "
        "features are latents, which know their units."
    )


#: What a mask may be given by: a concept, or what zennit-crp calls a mask function.
Given = Any


def mask_of(
    name: str, found: Found | None, module: torch.nn.Module, given: Given, kept: Mapping[int, Sequence[int]]
) -> Callable[[Tensor], Tensor]:
    """Return what leaves the chosen units of a signal, in the samples that have a condition on it.

    Parameters
    ----------
    name : str
        Name in the condition.
    found : Found or None
        The latent, if it is one.
    module : torch.nn.Module
        The module that has the tensor.
    given : object or None
        A concept, or a function ``(batch_id, concept_ids, layer_name) -> (signal -> signal)``; None is what the module
        or the latent tells.
    kept : mapping of int to sequence of int
        Units by sample.
    """

    def run(signal: Tensor) -> Tensor:
        if given is None and found is not None:
            return signal * found.mask(kept_units(kept, found.samples, found.units, name))
        concept = concept_of(name, module, signal) if given is None else given
        if isinstance(concept, ChannelConcept):
            return signal * concept.of_samples(signal, kept, name)
        make: Any = getattr(concept, "mask", concept)
        # such functions may write into what they are given
        signal = signal.clone()
        for sample, chosen in kept.items():
            signal = make(sample, chosen, name)(signal)
        return signal

    return run
