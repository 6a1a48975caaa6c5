"""Results: what conditional attribution returns, a row for each condition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class AttributionResults(NamedTuple):
    """What conditional attribution returns, a row for each condition.

    Attributes
    ----------
    heatmap : torch.Tensor
        Relevance of the input: of token ids ``(batch, tokens)``; of pixels summed over the colours.
    activations, relevances : dict of str to torch.Tensor
        Of each layer that was recorded or has a condition: its tensor, and the relevance at it, of a latent by unit.
    prediction : torch.Tensor
        The explained output, or the activation of the layer that was started at.
    """

    heatmap: Tensor
    activations: dict[str, Tensor]
    relevances: dict[str, Tensor]
    prediction: Tensor


def joined(parts: Sequence[AttributionResults], order: Sequence[int]) -> AttributionResults:
    """Return the rows of several results in the order of their conditions."""
    places = sorted(range(len(order)), key=order.__getitem__)

    def join(values: Sequence[Tensor]) -> Tensor:
        return values[0] if len(values) == 1 else torch.cat(list(values))[places]

    first = parts[0]
    return AttributionResults(
        join([part.heatmap for part in parts]),
        {name: join([part.activations[name] for part in parts]) for name in first.activations},
        {name: join([part.relevances[name] for part in parts]) for name in first.relevances},
        join([part.prediction for part in parts]),
    )
