"""Questions: what a model is asked, alone or with others of its kind in one forward and backward pass.

Samples of several lengths are padded at their end, and everything is cut back to its own length before a target or a
person sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..adapters import target_mask
from ..errors import InputError
from ..targets import Each, Target
from .explanation import Explanation

#: Arguments that hold tokens, which are padded with the tokenizer's own; what goes with them is padded with zeros.
IDS = ("input_ids", "other_ids")
MASKS = {"input_ids": "attention_mask", "other_ids": "other_mask"}


@dataclass(frozen=True)
class Question:
    """One thing that a model is asked.

    Attributes
    ----------
    batch : dict
        The model's arguments, of one sample.
    arguments : tuple of str
        Which of them are explained.
    target : Target
        What is explained of the output.
    finish : callable
        ``(output, relevance by argument) -> Explanation``, of one sample.
    last : int
        How many positions at the end of the output the target looks at; 0 for all of the output.

    Raises
    ------
    InputError
        If what is explained has a NaN or an infinite value.
    """

    batch: dict[str, Any]
    arguments: tuple[str, ...]
    target: Target
    finish: Callable[[Tensor, dict[str, Tensor]], Explanation]
    last: int = 0

    def __post_init__(self) -> None:
        for name in self.arguments:
            value = self.batch.get(name)
            # together with others, such a sample would be explained as if it were zeros
            if isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
                count = int((~value.isfinite()).sum())
                raise InputError(f"got {name} with {count} values that are not finite, expected numbers")

    def length(self) -> int:
        """Return the number of tokens that the output has positions for, 0 if there are none."""
        is_read = self.is_of_tokens("input_ids") and not self.is_decoded()
        return int(self.batch["input_ids"].shape[1]) if is_read else 0

    def lengths(self) -> tuple[int, ...]:
        """Return the number of tokens of each of its texts."""
        return tuple(int(self.batch[name].shape[1]) for name in IDS if self.is_of_tokens(name))

    def is_decoded(self) -> bool:
        """Tell whether the output is of a decoder's tokens."""
        return "decoder_input_ids" in self.batch

    def is_of_tokens(self, name: str) -> bool:
        """Tell whether an argument is a sequence that a mask tells the end of."""
        return is_sequence(self.batch.get(name)) and MASKS.get(name) in self.batch

    def cost(self) -> int:
        """Return how much room it takes, in tokens; 256 pixels or samples count as one."""
        sizes = {name: value.numel() for name, value in self.batch.items() if isinstance(value, Tensor)}
        return sum(sizes[name] if name in IDS else -(-sizes[name] // 256) for name in self.arguments)

    def kind(self) -> Any:
        """Return what questions have to have in common to be asked together; None for one that is asked alone."""
        if isinstance(self.target, Each) or self.is_decoded():
            return None
        padded = {name for name in IDS if self.is_of_tokens(name)}
        found: list[Any] = [self.arguments, bool(self.last)]
        for name, value in self.batch.items():
            if not isinstance(value, Tensor):
                found.append((name, repr(value)))
            elif value.dim() == 0 or len(value) != 1:
                return None
            else:
                is_padded = bool(padded) and is_sequence(value)
                found.append((name, value.dtype, None if is_padded else value.shape))
        return tuple(found)


def is_sequence(value: Any) -> bool:
    """Tell whether an argument has a number for each token of one sample."""
    return isinstance(value, Tensor) and value.dim() == 2 and not value.is_floating_point()


def collated(batches: Sequence[Mapping[str, Any]], padding: int) -> dict[str, Any]:
    """Return the arguments of several samples of one kind as one batch.

    Parameters
    ----------
    batches : sequence of mapping
        Those of each.
    padding : int
        The token that stands where there is none.
    """
    first = batches[0]
    if len(batches) == 1:
        return dict(first)
    batch: dict[str, Any] = {}
    for name, value in first.items():
        rows = [each[name] for each in batches]
        if not isinstance(value, Tensor):
            batch[name] = value
        elif is_sequence(value):
            longest, filler = max(row.shape[1] for row in rows), padding if name in IDS else 0
            missing = [longest - row.shape[1] for row in rows]
            batch[name] = torch.cat(
                [
                    torch.nn.functional.pad(row, (0, count), value=filler)
                    for row, count in zip(rows, missing, strict=True)
                ]
            )
        else:
            batch[name] = torch.cat(rows)
    return batch


class OfEach(Target):
    """A target of its own for each sample of a batch, which sees the sample as if it were alone.

    Parameters
    ----------
    questions : sequence of Question
        The samples.
    model : torch.nn.Module
        The model, which tells whose mask the output has.
    batch : mapping
        What it is called with.
    """

    given = {"questions": "questions"}

    def __init__(self, questions: Sequence[Question], model: torch.nn.Module, batch: Mapping[str, Any]) -> None:
        super().__init__()
        self.questions, self.mask = list(questions), target_mask(model, batch)
        self.lengths = [question.length() for question in questions]

    def piece(self, output: Tensor, sample: int) -> Tensor:
        """Return the output of one sample, without what is of padding."""
        row, length, longest = output[sample : sample + 1], self.lengths[sample], max(self.lengths)
        if not length or output.dim() != 3:
            return row
        last = self.questions[sample].last
        if last:
            # the model may have been asked for some of the last positions only
            end = length - longest + output.shape[1]
            return row[:, end - last : end]
        return row[:, :length] if output.shape[1] == longest else row

    def relevance(self, found: Mapping[str, Tensor], sample: int) -> dict[str, Tensor]:
        """Return the relevance of one sample's arguments, without that of padding."""
        question = self.questions[sample]
        if len(self.questions) == 1:
            # an argument may have several rows then, such as the texts that an image may show
            return dict(found)
        own = {name: values[sample : sample + 1] for name, values in found.items()}
        return {
            name: values[:, : question.batch[name].shape[1]] if question.is_of_tokens(name) else values
            for name, values in own.items()
        }

    def weights(self, output: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the weights of each sample, zero at padding."""
        weights = torch.zeros_like(output)
        for sample in range(len(self.questions)):
            self.piece(weights, sample)[:] = self.of_sample(output, sample)
        return weights

    def of_sample(self, output: Tensor, sample: int) -> Tensor:
        """Return the weights of one sample, of the shape of its piece of the output."""
        question, length = self.questions[sample], self.lengths[sample]
        mask = None
        if self.mask is not None and not question.last:
            mask = self.mask[sample : sample + 1]
            mask = mask[:, :length] if length and mask.shape[1] == max(self.lengths) else mask
        return question.target.weights(self.piece(output.detach(), sample), mask)


def kept(questions: Sequence[Question]) -> int:
    """Return how many positions at the end of the output are looked at, 0 for all."""
    lengths = [question.length() for question in questions]
    if not all(question.last and length for question, length in zip(questions, lengths, strict=True)):
        return 0
    return max(max(lengths) - length + question.last for question, length in zip(questions, lengths, strict=True))
