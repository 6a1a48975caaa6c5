"""Log: the trials of a search in a file that several processes may add to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock  # a requirement of torch

from ..composites.configuration import made_with
from ..data.journal import append, complete_lines
from ..data.run import lock_of
from .leaderboard import Trial


class Log:
    """The trials of a study in a file, each a line of JSON, after one that says of which study.

    Parameters
    ----------
    path : pathlib.Path
        The file, which is made if need be. What is left of a line that was being written is cut off.
    identity : mapping
        Hashes of the study. Versions of the packages are noted beside them.

    Attributes
    ----------
    trials : list of Trial
        All of them, the default first.

    Raises
    ------
    ValueError
        If the file is of another study or of other versions of the packages, or cannot be read.
    """

    def __init__(self, path: Path, identity: Mapping[str, str]) -> None:
        self.path, self.trials = path, list[Trial]()
        self.wanted: dict[str, Any] = {**identity, "versions": made_with(None)}
        # a line that another process is writing looks like one that was cut off
        self.lock = FileLock(lock_of(path.parent, path.name))
        with self.lock:
            self.read()

    def read(self) -> None:
        """Take the trials that are in the file."""
        lines = complete_lines(self.path)
        if not lines:
            append(self.path, self.wanted)
            return
        place = str(self.path)
        try:
            head, *records = map(json.loads, lines)
            self.trials = [Trial(**record) for record in records]
            differs = [key for key, value in self.wanted.items() if head[key] != value]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"cannot read {place!r} ({error!r}); choose another folder, or delete it") from error
        if differs:
            raise ValueError(
                f"got the folder {str(self.path.parent)!r} with the log of a search that differs in its "
                f"{' and '.join(differs)}, expected the same, but for the number of trials: choose another folder, or "
                "delete that one"
            )
        numbers = [trial.number for trial in self.trials]
        if numbers != list(range(-1, len(numbers) - 1)):
            raise ValueError(
                f"got the trials {numbers} in {place!r}, expected each once, from -1 on: choose another folder, or "
                "delete it"
            )

    def add(self, trial: Trial) -> None:
        """Write a trial, unless another process has."""
        with self.lock:
            self.read()
            if trial.number + 1 == len(self.trials):
                append(self.path, asdict(trial))
                self.trials.append(trial)
