"""Tops: of many values of each unit the strongest few, in an order that does not depend on that of the values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError

#: How strong a value is, by the sign that is asked for; what is not above zero does not count.
SIGNS: dict[str, Callable[[Tensor], Tensor]] = {"positive": lambda x: x, "negative": lambda x: -x, "both": torch.abs}
#: What stands for no row and no position.
NONE = -1


def strength(values: Tensor, sign: str) -> Tensor:
    """Return how strong values are, zero for those that do not count."""
    return SIGNS[sign](values).clamp(min=0)


@dataclass(frozen=True)
class Top:
    """The strongest values of each unit, the first the strongest; of equal ones that of the lower row.

    Attributes
    ----------
    scores : torch.Tensor
        Of shape ``(units, count)``, zero where there are no more.
    rows, positions : torch.Tensor
        Where they are, of the same shape; -1 where there are no more.
    """

    scores: Tensor
    rows: Tensor
    positions: Tensor

    @classmethod
    def empty(cls, units: int, count: int, like: Tensor) -> Top:
        """Return the strongest of no values."""
        nowhere = torch.full((units, count), NONE, device=like.device)
        return cls(torch.zeros(units, count, device=like.device, dtype=like.dtype), nowhere, nowhere)

    def joined(self, scores: Tensor, rows: Tensor, positions: Tensor, sign: str) -> Top:
        """Return the strongest of these and of values of other rows.

        Parameters
        ----------
        scores, positions : torch.Tensor
            Of shape ``(rows, units)``: a value of each row.
        rows : torch.Tensor
            Their numbers, of shape ``(rows,)``, the lowest first.
        sign : {"positive", "negative", "both"}
            Which values count.
        """
        count, strong = self.scores.shape[1], strength(scores, sign)
        # most units have nothing among many rows that is as strong as what they have
        touched = strong.amax(0) >= strength(self.scores[:, -1], sign)
        touched &= strong.amax(0) > 0
        some, size = strong[:, touched], min(count, len(scores))
        best, chosen = some.topk(size, dim=0)
        # of equal values topk takes any: where not all of them have room, the first are looked for
        unclear = ((some >= best[-1]).sum(0) > size) & (best[-1] > 0)
        if bool(unclear.any()):
            chosen[:, unclear] = some[:, unclear].sort(dim=0, descending=True, stable=True).indices[:size]
        found = Top(
            torch.cat([self.scores[touched], scores[:, touched].gather(0, chosen).T], 1),
            torch.cat([self.rows[touched], rows[chosen].T], 1),
            torch.cat([self.positions[touched], positions[:, touched].gather(0, chosen).T], 1),
        ).ordered(count, sign)
        every = Top(self.scores.clone(), self.rows.clone(), self.positions.clone())
        every.scores[touched], every.rows[touched], every.positions[touched] = found.scores, found.rows, found.positions
        return every

    def ordered(self, count: int, sign: str) -> Top:
        """Return the strongest of these, in order."""
        strong = strength(self.scores, sign)
        order = self.rows.sort(dim=1).indices
        order = order.gather(1, strong.gather(1, order).sort(dim=1, descending=True, stable=True).indices)[:, :count]
        there = strong.gather(1, order) > 0
        return Top(
            self.scores.gather(1, order) * there,
            self.rows.gather(1, order).masked_fill(~there, NONE),
            self.positions.gather(1, order).masked_fill(~there, NONE),
        )

    def cpu(self) -> Top:
        """Return the same on the CPU."""
        return Top(self.scores.cpu(), self.rows.cpu(), self.positions.cpu())


def merged(tops: Sequence[Top], sign: str) -> Top:
    """Return the strongest of several, which have no row in common.

    Raises
    ------
    InputError
        If they are of other numbers of units or values.
    """
    shapes = {tuple(top.scores.shape) for top in tops}
    if len(shapes) > 1:
        raise InputError(f"got the strongest of {sorted(shapes)} units and values, expected as many in all parts")
    joined = (torch.cat([getattr(top, name) for top in tops], 1) for name in ("scores", "rows", "positions"))
    return Top(*joined).ordered(tops[0].scores.shape[1], sign)
