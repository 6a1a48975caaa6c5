"""Scoring: the scores of one composite, part by part, which several processes may share out among themselves.

A part has as many samples as are explained at once, and is there as a whole or not at all, as those of
:mod:`zennit_attn.data.run` are. So the scores are the same to the last bit, whoever made which part.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..composites.transformer import TransformerComposite
from ..data.engines import Work, here
from ..errors import InputError
from ..files import encoded, put
from .samples import Samples
from .study import Study


@dataclass
class Scoring(Work):
    """The scores of a composite.

    Attributes
    ----------
    study : Study
        What scores.
    composite : TransformerComposite
        What is scored.
    samples : Samples
        On what.
    """

    study: Study
    composite: TransformerComposite
    samples: Samples

    def complete(self, part: int, start: int, end: int) -> int:
        """Score the samples from a number to another one; none fails."""
        begin = time.perf_counter()
        scores = self.study.scores(self.composite, self.samples, start, end)
        # numbers in JSON have all of their digits
        record = {"scores": scores.tolist(), "seconds": time.perf_counter() - begin}
        put(self.run.file(part), encoded(json.dumps(record)))
        return 0

    def attempt(self) -> bool:
        """Make the parts that no other process has begun; tell whether all are there."""
        missing = [part for part in range(self.run.parts) if not self.run.is_there(part)]
        return all([self.make(part) is not None for part in missing])

    def found(self) -> tuple[Tensor, float]:
        """Return the score of each sample, and how many seconds all of them took, once all are there."""
        for _ in here(self, range(self.run.parts)):
            pass
        records = [self.read(part) for part in range(self.run.parts)]
        scores = [score for record in records for score in record["scores"]]
        return torch.tensor(scores, dtype=torch.float64), sum(record["seconds"] for record in records)

    def read(self, part: int) -> dict[str, Any]:
        """Return what a part has.

        Raises
        ------
        InputError
            If it is no part.
        """
        file = self.run.file(part)
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            return {"scores": [float(score) for score in found["scores"]], "seconds": float(found["seconds"])}
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"cannot read {str(file)!r} ({error!r}); delete it, and it is made again") from error
