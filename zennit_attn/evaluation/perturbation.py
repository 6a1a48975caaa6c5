"""Perturbation curves: how the explained value falls while an input loses its features, and ΔA between two of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..hints import nearest
from ..targets import Target
from .features import Batch, Patches, Tokens, fix, run, select

ORDERS = ("morf", "lerf", "random")


@dataclass(frozen=True)
class Curve:
    """How the explained value falls while more and more of the input is removed.

    Attributes
    ----------
    fractions : torch.Tensor
        Share of the features that are removed, from 0 to 1, of shape ``(batch, steps + 1)``.
    values : torch.Tensor
        Explained value, of the same shape.
    """

    fractions: Tensor
    values: Tensor

    @property
    def area(self) -> Tensor:
        """Area under the curve of each sample, by the trapezoidal rule, of shape ``(batch,)``."""
        return torch.trapezoid(self.values, self.fractions)


def perturbation_curve(
    model: torch.nn.Module,
    batch: Batch,
    target: Target,
    relevance: Tensor,
    features: Tokens | Patches,
    order: str = "morf",
    steps: int | None = None,
    batch_size: int = 128,
    generator: torch.Generator | None = None,
) -> Curve:
    """Remove features in the order of their relevance, and record the explained value (Samek et al., 2017).

    Features of equal relevance are removed in the same order in ``"morf"`` and ``"lerf"``.

    Parameters
    ----------
    model : torch.nn.Module
        Model in evaluation mode.
    batch : torch.Tensor or mapping
        Images, or a mapping with token ids, as for :class:`~zennit_attn.InputXGradient`.
    target : zennit_attn.targets.Target
        What was explained; the logit that it names for the batch as it is, is recorded.
    relevance : torch.Tensor
        Shape ``(batch, positions)``, ``(batch, height, width)`` or ``(batch, channels, height, width)``.
    features : Tokens or Patches
        What is removed, and what it becomes.
    order : {"morf", "lerf", "random"}, optional
        Most relevant first (default), least relevant first, or at random.
    steps : int, optional
        Number of steps, in each of which about the same number of features is removed: by default the largest number of
        features that a sample has, so that they are removed one by one.
    batch_size : int, optional
        Number of perturbed inputs in one forward pass.
    generator : torch.Generator, optional
        Source of the random order.

    Returns
    -------
    Curve
        Share of the features removed, and explained value.

    Raises
    ------
    ValueError
        If an argument does not fit, or relevance is not finite.

    Examples
    --------
    >>> import torch
    >>> from zennit_attn.evaluation import Patches, perturbation_curve
    >>> from zennit_attn.targets import Label
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 1, bias=False)).eval()
    >>> model[1].weight.data = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    >>> image = torch.ones(1, 1, 2, 2)
    >>> relevance = model[1].weight.detach().reshape(1, 2, 2)
    >>> perturbation_curve(model, image, Label(0), relevance, Patches(1)).values
    tensor([[10.,  6.,  3.,  1.,  0.]])
    """
    real = features.real(batch)
    ranks = ranking(features.pool(relevance), real, order, generator)
    return curves(model, batch, target, ranks[None], real, features, steps, batch_size)[0]


def curves(
    model: torch.nn.Module,
    batch: Batch,
    target: Target,
    ranks: Tensor,
    real: Tensor,
    features: Tokens | Patches,
    steps: int | None = None,
    batch_size: int = 128,
) -> list[Curve]:
    """Return a curve for each order in which features are removed; what several orders leave is computed once.

    Parameters
    ----------
    model, batch, target, features, steps, batch_size
        See :func:`perturbation_curve`.
    ranks : torch.Tensor
        See :func:`ranking`, of shape ``(orders, batch, features)``.
    real : torch.Tensor
        Which features there are, of shape ``(batch, features)``.
    """
    sizes = real.sum(1)
    steps = int(sizes.max()) if steps is None else steps
    if steps < 1 or bool((sizes < 1).any()):
        raise ValueError(f"got {steps} steps and {sizes.tolist()} features to remove, expected at least 1 of each")
    # rounded to the nearest whole number, in whole numbers
    counts = (2 * torch.arange(steps + 1, device=sizes.device) * sizes[:, None] + steps) // (2 * steps)
    removed = ranks[:, :, None] < counts[..., None]
    rows = torch.arange(len(sizes), device=sizes.device)[:, None].expand(*removed.shape[:3])
    each, places = torch.cat([rows[..., None], removed], -1).flatten(0, 2).unique(dim=0, return_inverse=True)
    values = values_without(model, batch, target, features, each[:, 0], each[:, 1:].bool(), batch_size)
    fractions = counts / sizes[:, None]
    return [Curve(fractions, found) for found in values[places].unflatten(0, removed.shape[:3])]


def ranking(relevance: Tensor, real: Tensor, order: str, generator: torch.Generator | None = None) -> Tensor:
    """Return at which place each feature is removed, of shape ``(batch, features)``; those that are not real come last.

    Raises
    ------
    ValueError
        If relevance is not finite, or of another shape, or the order is unknown.
    """
    if relevance.shape != real.shape:
        raise ValueError(f"got relevance of {tuple(relevance.shape)} features, expected {tuple(real.shape)}")
    if not bool(relevance.isfinite().all()):
        raise ValueError("got relevance that is not finite, expected finite numbers")
    if order not in ORDERS:
        raise ValueError(f"order got {order!r}, expected one of {ORDERS}; {nearest(order, ORDERS)}")
    if order == "random":
        relevance = torch.rand(relevance.shape, generator=generator).to(real.device)
    key = relevance if order == "lerf" else -relevance
    key = key.masked_fill(~real, float("inf"))
    return key.argsort(dim=1, stable=True).argsort(dim=1)


@torch.no_grad()
def values_without(
    model: torch.nn.Module,
    batch: Batch,
    target: Target,
    features: Tokens | Patches,
    rows: Tensor,
    removed: Tensor,
    batch_size: int = 128,
) -> Tensor:
    """Return the explained value of samples without some of their features.

    Parameters
    ----------
    model, batch, target, features, batch_size
        See :func:`perturbation_curve`.
    rows : torch.Tensor
        Index of a sample for each value, of shape ``(count,)``.
    removed : torch.Tensor
        Which of its features are removed, of shape ``(count, features)``.

    Returns
    -------
    torch.Tensor
        Shape ``(count,)``, in float32 or better.
    """
    fixed = fix(model, batch, target)
    values = []
    for part in torch.arange(len(rows), device=rows.device).split(batch_size):
        perturbed = features.apply(model, select(batch, rows[part]), removed[part])
        values.append(fixed.at(rows[part]).score(run(model, perturbed)))
    joined = torch.cat(values)
    return joined if joined.dtype == torch.float64 else joined.float()


def faithfulness(
    model: torch.nn.Module,
    batch: Batch,
    target: Target,
    relevance: Tensor,
    features: Tokens | Patches,
    steps: int | None = None,
    batch_size: int = 128,
) -> Tensor:
    """Return ΔA, the area between the curves of least and most relevant first (Achtibat et al., ICML 2024).

    The higher, the better; a random order has 0 on average, a constant relevance exactly 0.

    Parameters
    ----------
    model, batch, target, relevance, features, steps, batch_size
        See :func:`perturbation_curve`.

    Returns
    -------
    torch.Tensor
        ΔA of each sample, in units of the explained value, of shape ``(batch,)``.
    """
    morf, lerf = areas(model, batch, target, [relevance], features, steps, batch_size)[0]
    return lerf - morf


def areas(
    model: torch.nn.Module,
    batch: Batch,
    target: Target,
    relevances: Sequence[Tensor],
    features: Tokens | Patches,
    steps: int | None = None,
    batch_size: int = 128,
) -> Tensor:
    """Return the areas under the curves of most and of least relevant first, of several relevances.

    Parameters
    ----------
    model, batch, target, features, steps, batch_size
        See :func:`perturbation_curve`.
    relevances : sequence of torch.Tensor
        Each as there. What their curves have in common, such as their ends, is computed once.

    Returns
    -------
    torch.Tensor
        Shape ``(relevances, 2, batch)``, in units of the explained value.
    """
    real = features.real(batch)
    pooled = [features.pool(relevance) for relevance in relevances]
    ranks = torch.stack([ranking(values, real, order) for values in pooled for order in ("morf", "lerf")])
    found = curves(model, batch, target, ranks, real, features, steps, batch_size)
    return torch.stack([curve.area for curve in found]).unflatten(0, (-1, 2))
