"""Features that an evaluation removes from an input, and the logit that it then records.

Features are tokens, or patches of images; padding is none. What is removed first is decided elsewhere: see
:mod:`zennit_attn.evaluation.perturbation`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from ..adapters import explained, target_mask
from ..inputs import single_input
from ..targets import Target

Batch = Tensor | Mapping[str, Any]


class Fixed(Target):
    """Logits with weights of their own in each sample, which stay the same whatever the output is.

    A perturbed input is scored by what the model said about the original one: :meth:`of` fixes another target there.

    Parameters
    ----------
    shares : torch.Tensor
        Weights of the classes, of shape ``(batch, classes)``; or ``(batch, count, classes)``, with a position for each.
    position, attention_mask
        See :class:`zennit_attn.targets.Target`; of several positions, of shape ``(batch, count)``.

    Examples
    --------
    >>> import torch
    >>> from zennit_attn.evaluation import Fixed
    >>> from zennit_attn.targets import MaxLogit
    >>> fixed = Fixed.of(MaxLogit(), torch.tensor([[1.0, 3.0, 2.0]]))
    >>> fixed.score(torch.tensor([[9.0, 4.0, 0.0]]))
    tensor([4.])
    """

    #: A tensor, where it is given.
    position: Any

    def __init__(self, shares: Tensor, position: Any = None, attention_mask: Tensor | None = None) -> None:
        super().__init__(position, attention_mask)
        self.shares = shares

    @classmethod
    def of(cls, target: Target, output: Tensor, attention_mask: Tensor | None = None) -> Fixed:
        """Return a target as it is for an output of the model.

        Raises
        ------
        TypeError, ValueError
            If it is no target, or explains several positions in samples of a batch, each another number of them.
        """
        if not isinstance(target, Target):
            raise TypeError(f"got a target of type {type(target).__name__}, expected one of zennit_attn.targets")
        weights = target.weights(output.detach(), attention_mask)
        if weights.dim() < 3:
            return cls(weights.reshape(len(weights), -1))
        used = (weights != 0).any(-1)
        counts = used.sum(-1)
        if bool((counts > 1).any()):
            if bool((counts != counts[0]).any()):
                raise ValueError(f"got a target of {counts.tolist()} positions, expected as many in each sample")
            places = used.nonzero()[:, 1].unflatten(0, (len(used), -1))
            return cls(weights.gather(1, places[..., None].expand(-1, -1, weights.shape[-1])), places)
        places = used.int().argmax(-1)
        return cls(weights[torch.arange(len(weights), device=weights.device), places], places)

    def weights(self, output: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the weights, of the shape of the output."""
        if self.shares.dim() == 2:
            return super().weights(output, attention_mask)
        if output.dim() != 3 or len(output) != len(self.shares) or output.shape[-1] != self.shares.shape[-1]:
            raise ValueError(f"got weights of shape {tuple(self.shares.shape)} for logits of {tuple(output.shape)}")
        places = self.position.to(output.device) % output.shape[1]
        places = places[..., None].expand(-1, -1, output.shape[-1])
        return torch.zeros_like(output).scatter(1, places, self.shares.to(output))

    def of_classes(self, logits: Tensor) -> Tensor:
        """Return the weights of the classes."""
        if self.shares.shape != logits.shape:
            raise ValueError(f"got weights of shape {tuple(self.shares.shape)} for logits of {tuple(logits.shape)}")
        return self.shares.to(logits)

    def at(self, rows: Tensor) -> Fixed:
        """Return the target of some samples, given their indices."""
        places = self.position[rows] if isinstance(self.position, Tensor) else self.position
        return Fixed(self.shares[rows], places)

    def score(self, output: Tensor) -> Tensor:
        """Return the explained value of each sample, ``Σ w z``, of shape ``(batch,)``."""
        if self.shares.dim() == 3:
            return (self.weights(output) * output).sum((1, 2))
        if output.dim() == 1:
            output = output[:, None]
        if output.dim() == 3:
            output = output[torch.arange(len(output), device=output.device), self.places(output, self.attention_mask)]
        return (self.of_classes(output) * output).sum(-1)


def run(model: torch.nn.Module, batch: Batch) -> Tensor:
    """Return the logits of a batch.

    Raises
    ------
    ValueError
        If the model is in training mode, in which it answers differently every time.
    """
    if model.training:
        raise ValueError(f"got {type(model).__name__} in training mode, expected model.eval()")
    return explained(model(**batch) if isinstance(batch, Mapping) else model(batch))


def fix(model: torch.nn.Module, batch: Batch, target: Target) -> Fixed:
    """Return a target as it is for a batch, see :meth:`Fixed.of`; one that has weights at positions stays as it is."""
    if isinstance(target, Fixed) and target.position is not None:
        return target
    with torch.no_grad():
        return Fixed.of(target, run(model, batch), target_mask(model, single_input(batch)[2]))


def select(batch: Batch, rows: Tensor) -> Batch:
    """Return some samples of a batch, given their indices, which may repeat."""
    if isinstance(batch, Tensor):
        return batch[rows]
    size = len(single_input(batch)[1])
    return {
        key: value[rows] if isinstance(value, Tensor) and value.dim() and len(value) == size else value
        for key, value in batch.items()
    }


@dataclass(frozen=True)
class Tokens:
    """Tokens as what is perturbed, of a batch with ``input_ids``.

    Parameters
    ----------
    fill : {"zero", "mean", "mask"} or int, optional
        What a removed token becomes: a zero embedding (default); the mean of all embeddings; nothing that another token
        attends to, by the attention mask; or the token of this id, such as ``tokenizer.pad_token_id`` or
        ``tokenizer.mask_token_id``. Only ``"mask"`` changes the attention mask; the last token, which has to attend to
        something, is not removed then. Models that count positions by the attention mask, as OPT and BLOOM do, move the
        others closer together.
    keep : tuple of int, optional
        Ids that are never removed, such as those of the special tokens that a tokenizer adds.

    Raises
    ------
    ValueError
        If the fill is none of these.
    """

    fill: str | int = "zero"
    keep: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        number = isinstance(self.fill, Integral) and not isinstance(self.fill, bool) and self.fill >= 0
        if not number and self.fill not in ("zero", "mean", "mask"):
            raise ValueError(f"fill got {self.fill!r}, expected 'zero', 'mean', 'mask', or the id of a token")

    def ids(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """Return the token ids of a batch, and its other arguments."""
        name, ids, rest = single_input(batch)
        if name != "input_ids":
            raise ValueError(f"got a batch with {name or 'a tensor'}, expected input_ids: use Patches for images")
        return ids, rest

    def real(self, batch: Batch) -> Tensor:
        """Return which tokens may be removed: neither padding nor kept; of shape ``(batch, positions)``."""
        ids, rest = self.ids(batch)
        mask = rest.get("attention_mask")
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask != 0
        if self.fill == "mask":
            # the last one that is real
            last = real.shape[1] - 1 - real.flip(1).int().argmax(1)
            real = real & (torch.arange(real.shape[1], device=real.device) != last[:, None])
        return real & ~torch.isin(ids, torch.tensor(self.keep, dtype=ids.dtype, device=ids.device))

    def pool(self, relevance: Tensor) -> Tensor:
        """Return the relevance of tokens, which is what it is already."""
        if relevance.dim() != 2:
            raise ValueError(f"got relevance of shape {tuple(relevance.shape)}, expected (batch, positions)")
        return relevance

    def apply(self, model: Any, batch: Batch, removed: Tensor) -> Batch:
        """Return a batch without the removed tokens, given a mask of shape ``(batch, positions)``."""
        ids, rest = self.ids(batch)
        if self.fill == "mask":
            mask = rest.get("attention_mask")
            mask = torch.ones_like(ids) if mask is None else mask
            return {**rest, "input_ids": ids, "attention_mask": mask.masked_fill(removed, 0)}
        if self.fill not in ("zero", "mean"):
            return {**rest, "input_ids": ids.masked_fill(removed, int(self.fill))}
        table = model.get_input_embeddings()
        values = table(ids)
        filling = torch.zeros_like(values[0, 0]) if self.fill == "zero" else table.weight.mean(0).to(values)
        return {**rest, "inputs_embeds": torch.where(removed[..., None], filling, values)}


@dataclass(frozen=True)
class Patches:
    """Square patches of images as what is perturbed.

    Parameters
    ----------
    size : int
        Side of a patch in pixels, a divisor of both sides of the image.
    fill : float or {"mean", "blur"}, optional
        What a removed patch becomes: a number (default 0, which is grey for inputs from -1 to 1), the image's mean in
        each channel, or its own content, blurred with a standard deviation of half a patch.

    Raises
    ------
    ValueError
        If an argument is none of these.
    """

    size: int
    fill: float | str = 0.0

    def __post_init__(self) -> None:
        number = isinstance(self.fill, Real) and not isinstance(self.fill, bool) and math.isfinite(self.fill)
        if not number and self.fill not in ("mean", "blur"):
            raise ValueError(f"fill got {self.fill!r}, expected a finite number, 'mean' or 'blur'")
        if self.size < 1:
            raise ValueError(f"size got {self.size!r}, expected at least 1 pixel")

    def images(self, batch: Batch) -> tuple[str | None, Tensor, dict[str, Any]]:
        """Return the name of the images in a batch, the images, and the other arguments."""
        name, images, rest = single_input(batch)
        if images.dim() != 4:
            raise ValueError(f"got {name or 'an input'} of shape {tuple(images.shape)}, expected images: use Tokens")
        return name, images, rest

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Return the number of patches along each side, given images or relevance."""
        height, width = images.shape[-2:]
        if height % self.size or width % self.size:
            raise ValueError(f"size got {self.size}, expected a divisor of both sides of {height} x {width} pixels")
        return height // self.size, width // self.size

    def real(self, batch: Batch) -> Tensor:
        """Return which patches may be removed, which is all; of shape ``(batch, patches)``."""
        images = self.images(batch)[1]
        rows, columns = self.grid(images)
        return torch.ones(len(images), rows * columns, dtype=torch.bool, device=images.device)

    def pool(self, relevance: Tensor) -> Tensor:
        """Return relevance of pixels, with or without channels, added up over patches, row by row."""
        if relevance.dim() not in (3, 4):
            raise ValueError(f"got relevance of shape {tuple(relevance.shape)}, expected (batch, height, width)")
        rows, columns = self.grid(relevance)
        summed = relevance.sum(1) if relevance.dim() == 4 else relevance
        return summed.reshape(-1, rows, self.size, columns, self.size).sum((2, 4)).flatten(1)

    def spread(self, values: Tensor, like: Tensor) -> Tensor:
        """Return values of patches at each of their pixels, of shape ``(batch, height, width)``."""
        grid = values.unflatten(1, self.grid(like))
        return grid.repeat_interleave(self.size, 1).repeat_interleave(self.size, 2)

    def filling(self, images: Tensor) -> Tensor:
        """Return what removed pixels become, of a shape that expands to that of the images."""
        if self.fill == "mean":
            return images.mean((2, 3), keepdim=True)
        if self.fill != "blur":
            return images.new_full((1, 1, 1, 1), float(self.fill))
        # the blur reaches two standard deviations to each side, over which the image is reflected
        if self.size >= min(images.shape[-2:]):
            raise ValueError(f"size got {self.size} with fill='blur', expected less than a side of the image")
        return gaussian_blur(images, [2 * self.size + 1] * 2, [self.size / 2] * 2)

    def apply(self, model: Any, batch: Batch, removed: Tensor) -> Batch:
        """Return a batch without the removed patches, given a mask of shape ``(batch, patches)``."""
        name, images, rest = self.images(batch)
        perturbed = torch.where(self.spread(removed, images)[:, None], self.filling(images), images)
        return perturbed if name is None else {**rest, name: perturbed}
