"""Engines: what makes the parts of a run: this process, or the actors of Ray on one machine or many."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import InputError
from .buckets import BatchExplainer
from .extras import extra
from .parts import Precision, write
from .run import Run
from .sources import Row, Source

#: Seconds after which a part is looked at again that another process makes.
PATIENCE = 0.5


@dataclass
class Maker:
    """Makes parts: what every engine calls, wherever it runs.

    Attributes
    ----------
    run : Run
        Where they go.
    source : Source
        Where rows come from.
    explain : BatchExplainer
        What explains them.
    precision : Precision, optional
        How relevance is kept.
    """

    run: Run
    source: Source
    explain: BatchExplainer
    precision: Precision = field(default_factory=Precision)

    def make(self, part: int) -> Counter[str] | None:
        """Make a part; return how many rows are ``done`` and ``failed``, None if another process has it."""
        with self.run.claim(part) as is_own:
            if not is_own:
                return Counter(skipped=self.length(part)) if self.run.is_there(part) else None
            start, end = self.run.stretch(part)
            failed = self.fill(part, start, self.source.read(start, end))
            return Counter(done=end - start - failed, failed=failed)

    def fill(self, part: int, start: int, table: Sequence[Row]) -> int:
        """Make a part of the rows from a number; return how many could not be explained."""
        found = self.explain.explanations(table)
        self.run.note("about.json", self.about())
        write(self.run.folder, part, start, table, found, self.precision_of())
        return sum(isinstance(each, InputError) for each in found)

    def about(self) -> dict[str, Any]:
        """Return what the model and its rules are; results of devices differ by rounding alone."""
        found = self.explain.explainer.about({}, self.explain.contrastive)
        return {key: value for key, value in found.items() if key != "device"}

    def precision_of(self) -> Precision:
        """Return how relevance is kept, in float64 if that is the model's dtype and nothing else was asked for."""
        is_double = self.about()["dtype"] == "float64" and self.precision.kind == "float32"
        return replace(self.precision, kind="float64") if is_double else self.precision

    def length(self, part: int) -> int:
        """Return how many rows a part has."""
        start, end = self.run.stretch(part)
        return end - start


def here(maker: Maker, parts: Sequence[int]) -> Iterator[Counter[str]]:
    """Make parts in this process, and wait for those that others have begun; yield the counts of each."""
    waiting = list(parts)
    while waiting:
        held = []
        for part in waiting:
            counts = maker.make(part)
            if counts is None:
                held.append(part)
            else:
                yield counts
        if held == waiting:
            # one that dies lets go of its parts
            time.sleep(PATIENCE)
        waiting = held


def with_ray(maker: Maker, parts: Sequence[int], workers: int, gpus: float) -> Iterator[Counter[str]]:
    """Make parts by actors of Ray, each with a model of its own; one that dies is started again.

    Parameters
    ----------
    maker : Maker
        What makes them.
    parts : sequence of int
        Which of them.
    workers : int
        How many actors.
    gpus : float
        How many GPUs each has.

    Raises
    ------
    InputError
        If Ray is not installed.
    """
    ray = extra("ray", "--engine ray", "ray")
    extra("ray.data", "--engine ray", "ray")
    is_own = not ray.is_initialized()
    if is_own:
        # actors that take all CPUs would leave none to what hands them their work
        ray.init(**local_cluster(workers))
    # progress is told by whoever called
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    table = ray.data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts))
    made = table.map_batches(
        Actor,
        fn_constructor_args=(maker,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_gpus=gpus,
    )
    try:
        for row in made.iter_rows():
            yield Counter({name: int(row[name]) for name in ("done", "failed", "skipped") if row[name]})
    finally:
        if is_own:
            ray.shutdown()


def local_cluster(workers: int) -> dict[str, Any]:
    """Return how Ray is started: on the cluster that there is, or on this machine."""
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": True, "logging_level": "error"}
    if "RAY_ADDRESS" in os.environ:
        return options
    return {**options, "num_cpus": workers + 1, "include_dashboard": False}


class Actor:
    """A process of Ray that makes one part after the other."""

    def __init__(self, maker: Maker) -> None:
        self.maker = maker

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Make the parts of a batch."""
        counts: Counter[str] = Counter()
        for found in here(self.maker, [int(part) for part in batch["part"]]):
            counts += found
        return {name: [counts[name]] for name in ("done", "failed", "skipped")}
