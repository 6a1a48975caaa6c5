"""Intervals: a mean over samples, and how far it may be from that of others of their kind."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(
    values: Tensor, confidence: float = 0.95, resamples: int = 2000, generator: torch.Generator | None = None
) -> Interval:
    """Return the mean over samples with a percentile bootstrap interval (Efron, 1979).

    Parameters
    ----------
    values : torch.Tensor
        A score of each sample, of shape ``(samples,)``.
    confidence : float, optional
        Probability of the interval.
    resamples : int, optional
        How often samples are drawn, with replacement.
    generator : torch.Generator, optional
        Source of the draws; by default one that always starts at the same state, so that methods on the same samples
        are drawn alike.

    Returns
    -------
    Interval
        Mean, and the ends of the interval.

    Raises
    ------
    ValueError
        If there are no values, or one is not finite.
    """
    if values.dim() != 1 or not len(values) or not bool(values.isfinite().all()):
        raise ValueError(f"got values of shape {tuple(values.shape)}, expected one finite score for each sample")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence got {confidence!r}, expected a number between 0 and 1")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    values = values.double().cpu()
    means = values[torch.randint(len(values), (resamples, len(values)), generator=generator)].mean(1)
    tail = (1 - confidence) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=means.dtype)).tolist()
    return Interval(float(values.mean()), low, high)


def paired(values: Tensor, others: Tensor, confidence: float = 0.95, resamples: int = 2000) -> Interval:
    """Return the mean difference of two scores of the same samples, with its bootstrap interval.

    What samples have in common, easy ones and hard ones, cancels: two means may be told apart by it whose own intervals
    overlap. They cannot be told apart where the interval holds zero.

    Parameters
    ----------
    values, others : torch.Tensor
        Two scores of each sample, of shape ``(samples,)``.
    confidence, resamples
        See :func:`bootstrap`.

    Returns
    -------
    Interval
        Of ``values - others``.

    Raises
    ------
    ValueError
        If they are not of the same samples.

    Examples
    --------
    >>> import torch
    >>> from zennit_attn.evaluation import paired
    >>> scores = torch.tensor([1.0, 5.0, 9.0])
    >>> str(paired(scores + 0.5, scores))
    '0.500 [0.500, 0.500]'
    """
    if values.shape != others.shape:
        raise ValueError(f"got {tuple(values.shape)} and {tuple(others.shape)} scores, expected those of one set")
    return bootstrap(values.double() - others.double(), confidence, resamples)
