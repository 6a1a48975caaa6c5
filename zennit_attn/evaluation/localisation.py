"""Localisation: whether relevance lies where a known truth is.

Every score is computed for each sample of a batch. Ties count as their expected value.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor


def flattened(relevance: Tensor, truth: Tensor, real: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return relevance, which is minus infinity in the padding, and truth as ``(batch, features)``, checked.

    Raises
    ------
    ValueError
        If shapes differ, relevance is not finite, or a sample has no truth, or one in its padding.
    """
    truth = truth != 0
    real = torch.ones_like(truth) if real is None else real != 0
    if not relevance.shape == truth.shape == real.shape:
        raise ValueError(
            f"got relevance of shape {tuple(relevance.shape)} and a truth of {tuple(truth.shape)}, expected the same: "
            "add up relevance over its channels first, relevance.sum(1)."
        )
    if not bool(relevance.isfinite().all()):
        raise ValueError("got relevance that is not finite, expected finite numbers")
    relevance, truth, real = relevance.flatten(1), truth.flatten(1), real.flatten(1)
    if bool((truth & ~real).any()) or not bool(truth.any(1).all()):
        raise ValueError("got a truth that is empty, or in the padding, expected a real feature in each sample")
    return relevance.masked_fill(~real, float("-inf")), truth


def scored(score: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Let a score of checked relevance and truth, both ``(batch, features)``, take them as they come."""

    @functools.wraps(score)
    def run(relevance: Tensor, truth: Tensor, real: Tensor | None = None) -> Tensor:
        return score(*flattened(relevance, truth, real))

    return run


@scored
def pointing_game(relevance: Tensor, truth: Tensor) -> Tensor:
    """Return whether the largest relevance is on the truth (Zhang et al., 2018).

    Parameters
    ----------
    relevance : torch.Tensor
        Relevance of tokens or pixels, of shape ``(batch, ...)``, without channels.
    truth : torch.Tensor
        Non-zero where relevance should be, of the same shape.
    real : torch.Tensor, optional
        Zero at padding, such as the attention mask, of the same shape.

    Returns
    -------
    torch.Tensor
        1 or 0 for each sample; of several largest ones, the share that is on the truth.

    Examples
    --------
    >>> import torch
    >>> from zennit_attn.evaluation import pointing_game
    >>> pointing_game(torch.tensor([[0.1, 0.9, 0.0]]), torch.tensor([[0, 1, 0]]))
    tensor([1.])
    """
    largest = relevance == relevance.amax(1, keepdim=True)
    return (largest & truth).sum(1) / largest.sum(1)


@scored
def relevance_mass_accuracy(relevance: Tensor, truth: Tensor) -> Tensor:
    """Return the share of the positive relevance that is on the truth (Arras et al., 2022).

    Parameters
    ----------
    relevance, truth, real
        See :func:`pointing_game`.

    Returns
    -------
    torch.Tensor
        From 0 to 1 for each sample, 0 where no relevance is positive.
    """
    gain = relevance.clamp(min=0)
    total = gain.sum(1)
    return torch.where(total > 0, (gain * truth).sum(1) / total.clamp(min=torch.finfo(total.dtype).tiny), 0.0)


@scored
def relevance_rank_accuracy(relevance: Tensor, truth: Tensor) -> Tensor:
    """Return the share of the K largest relevances that is on the truth, which has K features (Arras et al., 2022).

    Parameters
    ----------
    relevance, truth, real
        See :func:`pointing_game`.

    Returns
    -------
    torch.Tensor
        From 0 to 1 for each sample. Where the K-th largest relevance occurs several times, what is expected if these
        are ranked at random.
    """
    size = truth.sum(1, keepdim=True)
    last = relevance.sort(1, descending=True).values.gather(1, size - 1)
    above, tied = relevance > last, relevance == last
    room = size - above.sum(1, keepdim=True)
    expected = (tied & truth).sum(1, keepdim=True) * room / tied.sum(1, keepdim=True)
    return (((above & truth).sum(1, keepdim=True) + expected) / size).squeeze(1)


@scored
def reciprocal_rank(relevance: Tensor, truth: Tensor) -> Tensor:
    """Return one over the rank of the first feature of the truth; the mean over samples is the MRR.

    Parameters
    ----------
    relevance, truth, real
        See :func:`pointing_game`.

    Returns
    -------
    torch.Tensor
        From 0 to 1 for each sample. Features of the same relevance that are not of the truth count as half before it.
    """
    best = relevance.masked_fill(~truth, float("-inf")).amax(1, keepdim=True)
    return 1 / (1 + (relevance > best).sum(1) + ((relevance == best) & ~truth).sum(1) / 2)
