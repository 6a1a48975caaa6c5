"""Ranks: which share of the work a process has, of several that were started for one input."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import InputError

#: Variables that tell a process its place: that of torchrun, of srun, and of a job array, counted from 0.
VARIABLES = (
    ("RANK", "WORLD_SIZE", None),
    ("SLURM_PROCID", "SLURM_NTASKS", None),
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"),
)
#: Variables that tell which device of its machine a process has.
LOCAL = ("LOCAL_RANK", "SLURM_LOCALID")


@dataclass(frozen=True)
class Rank:
    """A process among others.

    Attributes
    ----------
    index, count : int
        Which it is, from 0, of how many.
    local : int or None
        Which device of its machine is its own; None if it was not told.
    """

    index: int = 0
    count: int = 1
    local: int | None = None

    def has(self, part: int) -> bool:
        """Tell whether a part is its own."""
        return part % self.count == self.index


def rank_of(shard: str | None, environment: Mapping[str, str] = os.environ) -> Rank:
    """Return the place of this process: as it was told, else as its environment has it.

    Parameters
    ----------
    shard : str, optional
        ``"I/N"``: the I-th of N, from ``1/N`` to ``N/N``.
    environment : mapping, optional
        Variables of torchrun, of SLURM's tasks and job arrays.

    Raises
    ------
    InputError
        If it is none.
    """
    device = next((environment[name] for name in LOCAL if name in environment), None)
    local = None if device is None else number_in(device, "a device")
    if shard is not None:
        found = re.fullmatch(r"(\d+)/(\d+)", shard)
        index, count = (int(number) for number in found.groups()) if found else (0, 0)
        if not 1 <= index <= count:
            raise InputError(f"got --shard {shard!r}, expected I/N from 1/N to N/N, such as 3/64")
        return Rank(index - 1, count, local)
    for place, size, first in VARIABLES:
        if place in environment and size in environment:
            index, count = number_in(environment[place], place), number_in(environment[size], size)
            index -= number_in(environment.get(first, "0"), first) if first else 0
            if not 0 <= index < count:
                raise InputError(f"got {place}={environment[place]} of {size}={count}, expected 0 to {count - 1}")
            return Rank(index, count, local)
    return Rank(local=local)


def number_in(text: str, name: str) -> int:
    """Return the number in a variable.

    Raises
    ------
    InputError
        If it is none.
    """
    if not text.strip().isdigit():
        raise InputError(f"got {name}={text!r}, expected a number")
    return int(text)
