"""The tensor of a latent in one forward pass: relevance by unit, and masks of units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import InputError
from .latent import Latent


@dataclass(frozen=True)
class Found:
    """The tensor of a latent in one forward pass.

    Attributes
    ----------
    latent : Latent
        The place.
    tensor : torch.Tensor
        Its tensor, in the graph.
    samples : int
        Size of the batch.
    index : torch.Tensor or None
        Of experts, which one made each part, of shape ``(tokens, parts)``, and their number is ``units`` of the latent.
    """

    latent: Latent
    tensor: Tensor
    samples: int
    index: Tensor | None = None

    def tidy(self, value: Tensor) -> Tensor:
        """Return a value of the tensor's shape by unit: ``(batch, tokens, units)``, of a layer ``(batch, tokens)``.

        What the tensor has of a unit in several elements is summed.
        """
        if value.dim() > self.tensor.dim():
            return torch.stack([self.tidy(part) for part in value])
        if self.index is not None:
            summed = value.new_zeros(len(self.index), int(self.latent.units or 0))
            return summed.scatter_add(1, self.index, value.sum(-1)).unflatten(0, (self.samples, -1))
        if self.latent.time_major:
            value = value.transpose(0, 1)
        units = value.shape[-1] if self.latent.units is None else self.latent.units
        value = value.reshape(self.samples, -1, units, value.shape[-1] // units).sum(-1)
        return value.squeeze(-1) if self.latent.kind in ("layer", "error") else value

    @property
    def units(self) -> int:
        """How many units it has."""
        return self.tensor.shape[-1] if self.latent.units is None else self.latent.units

    @property
    def width(self) -> int:
        """How many elements of the tensor are of one unit, at one token."""
        return self.tensor.shape[-1] if self.index is not None else self.tensor.shape[-1] // self.units

    def mask(self, kept: Tensor) -> Tensor:
        """Return what to multiply the signal at the tensor with, so that some units are left.

        Parameters
        ----------
        kept : torch.Tensor
            1 for each unit that is kept, 0 for the others, of shape ``(batch, units)``, or with the tokens between.
        """
        kept = kept.to(self.tensor)
        if self.index is not None:
            kept = kept[:, None] if kept.dim() == 2 else kept
            kept = kept.expand(self.samples, len(self.index) // self.samples, -1).flatten(0, 1)
            return kept.gather(1, self.index)[..., None]
        shape = list(self.tensor.shape)
        if self.latent.time_major:
            shape[:2] = shape[1::-1]
        kept = kept[:, None] if kept.dim() == 2 else kept
        tokens = self.tensor.numel() // (self.samples * shape[-1])
        kept = kept[..., None].expand(self.samples, tokens, self.units, self.width).reshape(shape)
        return kept.transpose(0, 1) if self.latent.time_major else kept


def found_of(latent: Latent, tensor: Tensor, shape: Sequence[int], index: Tensor | None) -> Found:
    """Return the tensor of a latent with what tells its samples.

    Raises
    ------
    InputError
        If its samples cannot be told apart.
    """
    samples, tokens = shape[0], shape[1] if len(shape) > 1 else 1
    is_turned = tensor.dim() == 3 and samples > 1 and tokens != samples and tensor.shape[:2] == (tokens, samples)
    latent = replace(latent, time_major=latent.time_major or is_turned)
    size = tensor.shape[1] if latent.time_major else tensor.shape[0]
    if size % samples:
        raise InputError(
            f"{latent.name} has a tensor of shape {tuple(tensor.shape)} for {samples} samples, which cannot be told "
            "apart in it; expected one sample at a time."
        )
    return Found(latent, tensor, samples, index)
