"""Targets: what of a model's output is explained. Each is an ``attr_output`` for zennit's attributors and ours.

A target has weights ``w`` of the shape of the output ``z``; it explains ``Σ w z``. As a function of the output it
returns the relevance ``w * z`` that zennit's attributors start from; :class:`~zennit_attn.InputXGradient` starts from
``w`` itself. Both forms so explain the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .sharding import is_sharded, laid_out_as, whole

__all__ = ["Answer", "Contrastive", "Each", "Label", "Labels", "LogProb", "MaxLogit", "Target"]

Index = int | Sequence[int] | Tensor

#: Attribute of an output: the mask of its sequence, as :class:`~zennit_attn.ModelAdapter` sets it.
MASK = "_zennit_attn_mask"


class Target:
    """Base of the targets.

    Parameters
    ----------
    position : int, sequence of int or torch.Tensor, optional
        Position in the sequence, for outputs of shape ``(batch, positions, classes)``: one for all samples, or one
        for each, negative ones from the end. By default each sequence's last position that is not padding.
    attention_mask : torch.Tensor, optional
        Shape ``(batch, positions)``, zero where there is padding, on the left or on the right.
        :class:`~zennit_attn.InputXGradient` and :class:`~zennit_attn.ModelAdapter` take it from their batch if it is
        not given here.
    """

    def __init__(self, position: Index | None = None, attention_mask: Tensor | None = None) -> None:
        self.position, self.attention_mask = position, attention_mask

    #: Names of the constructor's arguments that come first, and of their attributes.
    given: ClassVar[dict[str, str]] = {}

    def __repr__(self) -> str:
        names = {**self.given, "position": "position", "attention_mask": "attention_mask"}
        values = {name: getattr(self, attribute) for name, attribute in names.items()}
        texts = [f"{name}={shown(value)}" for name, value in values.items() if value is not None]
        # the first argument goes without its name
        first = f"{next(iter(self.given), '')}="
        return f"{type(self).__name__}({', '.join(text.removeprefix(first) if self.given else text for text in texts)})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and repr(other) == repr(self)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __call__(self, output: Tensor) -> Tensor:
        """Return the relevance of the output, ``w * z``, of its shape."""
        mask, output = getattr(output, MASK, None), output.detach()
        return output * self.weights(output, mask)

    def weights(self, output: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the weights ``w``, of the shape of the output.

        Parameters
        ----------
        output : torch.Tensor
            Shape ``(batch,)``, ``(batch, classes)`` or ``(batch, positions, classes)``. Of logits that several
            processes share (a ``DTensor``), all are looked at; the weights are laid out as they are.
        attention_mask : torch.Tensor, optional
            Mask to use if the target has none of its own.

        Raises
        ------
        ValueError
            If a position, class or mask does not fit the output.
        """
        if is_sharded(output):
            return laid_out_as(self.weights(whole(output.detach()), attention_mask), output)
        if output.dim() == 1:
            # one value for each sample, as a regression has it
            return self.weights(output[:, None], attention_mask)[:, 0]
        if output.dim() not in (2, 3):
            raise ValueError(
                f"got an output of shape {tuple(output.shape)}, expected (batch, classes) or "
                "(batch, positions, classes); explain others with a function of the output as attr_output."
            )
        mask = attention_mask if self.attention_mask is None else self.attention_mask
        rows = torch.arange(len(output), device=output.device)
        weights = torch.zeros_like(output)
        if output.dim() == 2:
            if self.position is not None:
                raise ValueError(f"got position={self.position}, but the output has none: {tuple(output.shape)}")
            weights[:] = self.of_classes(output.detach())
        else:
            places = self.places(output, mask)
            weights[rows, places] = self.of_classes(output.detach()[rows, places])
        return weights

    def of_classes(self, logits: Tensor) -> Tensor:
        """Return the weights of the classes, given logits of shape ``(batch, classes)``."""
        raise NotImplementedError

    def places(self, output: Tensor, mask: Tensor | None) -> Tensor:
        """Return the position that is explained in each sample, shape ``(batch,)``."""
        batch, positions = output.shape[:2]
        if self.position is not None:
            return per_sample("position", self.position, batch, positions, output.device)
        if mask is None:
            return torch.full((batch,), positions - 1, device=output.device)
        if tuple(mask.shape) != (batch, positions):
            raise ValueError(
                f"got an attention_mask of shape {tuple(mask.shape)} for an output of shape {tuple(output.shape)}, "
                f"expected {(batch, positions)}: give the position, or the mask of the sequence that has logits."
            )
        mask = mask.to(output.device) != 0
        if not bool(mask.any(-1).all()):
            raise ValueError("got an attention_mask with a sequence of padding only, expected a token in each sequence")
        return positions - 1 - mask.flip(-1).int().argmax(-1)


def shown(value: Any) -> str:
    """Return an argument as it could be typed in."""
    if isinstance(value, type):
        return value.__name__
    return f"torch.tensor({value.tolist()})" if isinstance(value, Tensor) else repr(value)


def per_sample(name: str, index: Index, batch: int, size: int, device: torch.device) -> Tensor:
    """Return an index for each sample, checked against a size."""
    if isinstance(index, str):
        raise TypeError(
            f"got {name}={index!r}, expected a number: model.config.label2id[{index!r}] of a class, or "
            f"tokenizer.convert_tokens_to_ids({index!r}) of a token."
        )
    values = torch.as_tensor(index, device=device)
    if values.dim() > 1 or (values.dim() == 1 and len(values) not in (1, batch)):
        raise ValueError(f"got {name} of shape {tuple(values.shape)}, expected one, or one for each of {batch} samples")
    values = values.expand(batch)
    if bool(((values < -size) | (values >= size)).any()):
        raise ValueError(f"got {name}={index}, expected {-size} to {size - 1}: the output has {size}")
    return values % size


class MaxLogit(Target):
    """The largest logit of each sample.

    Parameters
    ----------
    position, attention_mask
        See :class:`Target`.

    Examples
    --------
    >>> import torch
    >>> from zennit_attn.targets import MaxLogit
    >>> MaxLogit()(torch.tensor([[1.0, 3.0, 2.0]]))
    tensor([[0., 3., 0.]])
    """

    def of_classes(self, logits: Tensor) -> Tensor:
        """Return one at the largest logit."""
        return torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)


class Label(Target):
    """The logit of a class, or of a token, in each sample.

    Parameters
    ----------
    label : int, sequence of int or torch.Tensor
        The class: one for all samples, or one for each.
    position, attention_mask
        See :class:`Target`.
    """

    given = {"label": "label"}

    def __init__(self, label: Index, position: Index | None = None, attention_mask: Tensor | None = None) -> None:
        super().__init__(position, attention_mask)
        self.label = label

    def of_classes(self, logits: Tensor) -> Tensor:
        """Return one at the label."""
        labels = per_sample("label", self.label, len(logits), logits.shape[1], logits.device)
        return torch.zeros_like(logits).scatter_(1, labels[:, None], 1.0)


class Labels(Target):
    """The sum of several logits, each with a weight, the same in each sample.

    Parameters
    ----------
    labels : sequence of int
        Classes or tokens.
    weights : sequence of float, optional
        A weight for each of them, 1 by default; ``(1, -1)`` explains the difference of two logits.
    position, attention_mask
        See :class:`Target`.

    Raises
    ------
    ValueError
        If there is not one weight for each label.
    """

    given = {"labels": "labels", "weights": "shares"}

    def __init__(
        self,
        labels: Sequence[int],
        weights: Sequence[float] | None = None,
        position: Index | None = None,
        attention_mask: Tensor | None = None,
    ) -> None:
        super().__init__(position, attention_mask)
        self.labels, self.shares = list(labels), [1.0] * len(labels) if weights is None else list(weights)
        if len(self.labels) != len(self.shares):
            raise ValueError(f"got {len(self.shares)} weights for {len(self.labels)} labels, expected one for each")

    def of_classes(self, logits: Tensor) -> Tensor:
        """Return the weights at the labels."""
        weights = torch.zeros_like(logits)
        for label, share in zip(self.labels, self.shares, strict=True):
            weights[:, per_sample("label", label, 1, logits.shape[1], logits.device)] += share
        return weights


class Chosen(Target):
    """Base of the targets that set a class, or that of the largest logit, against others."""

    given = {"label": "label"}

    def __init__(
        self, label: Index | None = None, position: Index | None = None, attention_mask: Tensor | None = None
    ) -> None:
        super().__init__(position, attention_mask)
        self.label = label

    def alone(self) -> Target:
        """Return the target of the chosen class without the others."""
        if self.label is None:
            return MaxLogit(self.position, self.attention_mask)
        return Label(self.label, self.position, self.attention_mask)

    def chosen(self, logits: Tensor) -> Tensor:
        """Return one at the chosen class."""
        return self.alone().of_classes(logits)


class Contrastive(Chosen):
    """A logit against all others: weight 1 for the chosen one, ``-1/N`` for each of the N others.

    A constant added to all logits changes nothing that a language model says, and nothing here; the sign of a plain
    logit's explanation depends on it.

    Parameters
    ----------
    label : int, sequence of int or torch.Tensor, optional
        The chosen class: by default that of the largest logit.
    position, attention_mask
        See :class:`Target`.
    """

    def of_classes(self, logits: Tensor) -> Tensor:
        """Return 1 at the chosen class, ``-1/N`` elsewhere."""
        others = logits.shape[1] - 1
        if not others:
            raise ValueError("Contrastive got an output of one class, expected others to set it against: use MaxLogit")
        return self.chosen(logits) * (1 + 1 / others) - 1 / others


class LogProb(Chosen):
    """The logarithm of a class's probability: weights ``e_k - p``, the gradient of ``log_softmax(z)_k``.

    What is shared out is ``z_k - Σ p z = log p_k + H(p)``, the log-probability plus the entropy: of a sure choice the
    log-probability itself. Where a model is sure, ``e_k - p`` is near zero, and so is all relevance.

    Parameters
    ----------
    label : int, sequence of int or torch.Tensor, optional
        The class: by default that of the largest logit.
    position, attention_mask
        See :class:`Target`.

    Examples
    --------
    >>> import torch
    >>> from zennit_attn.targets import LogProb
    >>> LogProb(0).weights(torch.tensor([[0.0, 0.0]]))
    tensor([[ 0.5000, -0.5000]])
    """

    def of_classes(self, logits: Tensor) -> Tensor:
        """Return one at the class, less the probabilities."""
        return self.chosen(logits) - logits.softmax(-1)


class Answer(Target):
    """The tokens of an answer, each at the position that predicts it: the sum of what a target explains of each.

    Parameters
    ----------
    tokens : sequence of int
        The answer's tokens. The logits that predict them are the output's last positions, as a language model gives
        them for the prompt and the answer without its last token.
    kind : type of Target, optional
        What is explained of each token: :class:`Label` (default), :class:`Contrastive` or :class:`LogProb`.
    among : sequence of int, optional
        Which of the tokens are explained, counted from 0: those of a sentence, for example. By default all of them.

    Raises
    ------
    ValueError
        If there is no token, or none of a number.

    Examples
    --------
    >>> import torch
    >>> from zennit_attn.targets import Answer
    >>> Answer([2, 0])(torch.tensor([[[9.0, 9.0, 9.0], [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]))
    tensor([[[0., 0., 0.],
             [0., 0., 3.],
             [4., 0., 0.]]])
    """

    given = {"tokens": "tokens", "kind": "kind", "among": "among"}

    def __init__(self, tokens: Sequence[int], kind: type[Any] = Label, among: Sequence[int] | None = None) -> None:
        super().__init__()
        self.tokens, self.kind, self.among = list(map(int, tokens)), kind, None if among is None else list(among)
        if not self.tokens:
            raise ValueError("got an answer without tokens, expected at least one")
        for number in self.among or ():
            if not 0 <= number < len(self.tokens):
                raise ValueError(f"got among={self.among}, expected numbers from 0 to {len(self.tokens) - 1}")

    def weights(self, output: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the weights of each token at the position that predicts it.

        Raises
        ------
        ValueError
            If the output has fewer positions than the answer has tokens.
        """
        if output.dim() != 3 or output.shape[1] < len(self.tokens):
            raise ValueError(
                f"got an output of shape {tuple(output.shape)} for an answer of {len(self.tokens)} tokens, expected "
                "(batch, positions, classes) with a position for each: that of the prompt's last token and on."
            )
        if is_sharded(output):
            return laid_out_as(self.weights(whole(output.detach()), attention_mask), output)
        among = range(len(self.tokens)) if self.among is None else self.among
        first = output.shape[1] - len(self.tokens)
        weights = torch.zeros_like(output)
        for number in among:
            weights[:, first + number] = self.of_token(number, output.detach()[:, first + number])
        return weights

    def of_token(self, number: int, logits: Tensor) -> Tensor:
        """Return the weights of one token, given the logits that predict it, of shape ``(batch, classes)``."""
        weights: Tensor = self.kind(self.tokens[number]).of_classes(logits)
        return weights


class Each(Target):
    """Several targets of one forward pass, explained by a backward pass each, or one for some of them together.

    :class:`~zennit_attn.InputXGradient` returns relevance with the targets as its first dimension.

    Parameters
    ----------
    targets : sequence of Target
        The targets.
    chunk : int, optional
        How many backward passes run as one (default 1). It takes the memory of as many signals; on a CPU it is hardly
        faster, on a GPU it may be.

    Raises
    ------
    ValueError
        If there are no targets, or no such chunks.
    """

    given = {"targets": "targets", "chunk": "chunk"}

    def __init__(self, targets: Sequence[Target], chunk: int = 1) -> None:
        super().__init__()
        self.targets, self.chunk = list(targets), chunk
        if not self.targets or chunk < 1:
            raise ValueError(f"got {len(self.targets)} targets in chunks of {chunk}, expected at least one of each")

    def weights(self, output: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the weights of each target, of shape ``(targets, *output.shape)``."""
        return torch.stack([target.weights(output, attention_mask) for target in self.targets])


def __dir__() -> list[str]:
    return sorted(__all__)
