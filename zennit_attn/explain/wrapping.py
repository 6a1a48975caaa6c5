"""Wrapping: models whose answer is in several tensors, or in none, as functions that return what is explained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Wrapped(torch.nn.Module):
    """Base of functions of a model: its modules have the names here that they have in the model.

    A child would have its own name before theirs, and patterns that are written for the model would fit nothing.
    """

    model: Any

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "model", model)
        self._modules, self._parameters, self._buffers = model._modules, model._parameters, model._buffers
        self.config, self.training = getattr(model, "config", None), model.training

    def get_input_embeddings(self) -> torch.nn.Module:
        """Return the table of the model's tokens."""
        table: torch.nn.Module = self.model.get_input_embeddings()
        return table


class SpanModel(Wrapped):
    """A model that finds a span, as a function that returns the logits of its first and its last token."""

    def forward(self, **batch: Any) -> Tensor:
        """Return logits of shape ``(batch, positions, 2)``."""
        output = self.model(**batch)
        return torch.stack([output.start_logits, output.end_logits], -1)


class Similarity(Wrapped):
    """An encoder as a function of two texts: the cosine of their mean hidden states, over what is no padding."""

    def encoded(self, mask: Tensor, **tokens: Any) -> Tensor:
        """Return the mean of the hidden states of a text."""
        hidden = self.model(**tokens, attention_mask=mask).last_hidden_state
        return (hidden * mask[..., None]).sum(1) / mask.sum(-1, keepdim=True)

    def forward(self, other_ids: Tensor, attention_mask: Tensor, other_mask: Tensor, **tokens: Any) -> Tensor:
        """Return the similarity of each pair, shape ``(batch,)``, given ``input_ids`` or ``inputs_embeds``, too."""
        first, second = self.encoded(attention_mask, **tokens), self.encoded(other_mask, input_ids=other_ids)
        return torch.nn.functional.cosine_similarity(first, second)
