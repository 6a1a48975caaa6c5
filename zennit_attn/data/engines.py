"""Engines: what makes the parts of a run: this process, or workers of Ray on one machine or many."""

from __future__ import annotations

import logging
import os
import pickle
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import InputError
from ..hints import nearest
from .buckets import BatchExplainer
from .extras import extra
from .parts import Precision, write
from .run import Run
from .sources import Row, Source

ENGINES = ("local", "ray")
#: Seconds after which a part is looked at again that another process makes: at first, and at most.
HASTE, PATIENCE = 0.01, 0.5
#: How often a task of Ray is started again whose process died.
RETRIES = 3


@dataclass
class Work(ABC):
    """What is done part by part: what every engine calls, wherever it runs.

    Attributes
    ----------
    run : Run
        Where the parts go.
    """

    run: Run

    def make(self, part: int) -> Counter[str] | None:
        """Make a part; return how many rows are ``done`` and ``failed``, None if another process has it."""
        with self.run.claim(part) as is_own:
            if not is_own:
                return Counter(skipped=self.length(part)) if self.run.is_there(part) else None
            start, end = self.run.stretch(part)
            failed = self.complete(part, start, end)
            return Counter(done=end - start - failed, failed=failed)

    @abstractmethod
    def complete(self, part: int, start: int, end: int) -> int:
        """Make a part of the rows from a number to another one; return how many failed."""

    def length(self, part: int) -> int:
        """Return how many rows a part has."""
        start, end = self.run.stretch(part)
        return end - start


@dataclass
class Maker(Work):
    """Makes parts of the rows of a source.

    Attributes
    ----------
    source : Source
        Where rows come from.
    explain : BatchExplainer
        What explains them.
    precision : Precision, optional
        How relevance is kept.
    """

    source: Source
    explain: BatchExplainer
    precision: Precision = field(default_factory=Precision)

    def complete(self, part: int, start: int, end: int) -> int:
        """Make a part of the rows from a number to another one; return how many failed."""
        return self.fill(part, start, self.source.read(start, end))

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


def workers_of(engine: str | None, workers: int | None) -> int:
    """Return how many workers an engine has, 0 if that is this process.

    Parameters
    ----------
    engine : str or None
        ``"local"``, which is what None is, or ``"ray"``.
    workers : int or None
        How many of Ray, by default one.

    Raises
    ------
    InputError
        If there is no such engine, or workers are given to one that has none, or they are none.
    """
    if engine not in (None, *ENGINES):
        hint = nearest(str(engine), ENGINES)
        raise InputError(f"got the engine {engine!r}, expected one of {list(ENGINES)}; {hint}")
    if engine != "ray":
        if workers is not None:
            raise InputError("got --workers without --engine ray; start several processes, or use Ray")
        return 0
    if workers is not None and workers < 1:
        raise InputError(f"got --workers {workers}, expected at least 1")
    return 1 if workers is None else workers


def here(maker: Work, parts: Sequence[int]) -> Iterator[Counter[str]]:
    """Make parts in this process, and wait for those that others have begun; yield the counts of each."""
    waiting, pause = list(parts), HASTE
    while waiting:
        held = []
        for part in waiting:
            counts = maker.make(part)
            if counts is None:
                held.append(part)
            else:
                yield counts
        if held != waiting:
            waiting, pause = held, HASTE
            continue
        # one that dies lets go of its parts
        time.sleep(pause)
        pause = min(2 * pause, PATIENCE)


def with_ray(maker: Work, parts: Sequence[int], workers: int, gpus: float) -> Iterator[Counter[str]]:
    """Make parts by actors of Ray, each with a model of its own; one that dies is started again.

    Parameters
    ----------
    maker : Work
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
    with cluster(ray, workers):
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
        for row in made.iter_rows():
            yield Counter({name: int(row[name]) for name in ("done", "failed", "skipped") if row[name]})


def side_by_side(work: Callable[[], None], workers: int, gpus: float) -> None:
    """Do the same work several times at once by Ray, each time in a process of its own; one that dies is started again.

    The processes share it out among themselves, part by part. So if one fails, the others do what it has left.

    Parameters
    ----------
    work : callable
        The work, which can be pickled.
    workers : int
        How many times.
    gpus : float
        How many GPUs each has.

    Raises
    ------
    InputError
        If Ray is not installed.
    Exception
        What the first one raised, if all failed.
    """
    ray = extra("ray", "--engine ray", "ray")
    errors: list[Exception] = []
    with cluster(ray, workers):
        task = ray.remote(max_retries=RETRIES, num_gpus=gpus)(called)
        # Ray would tell of an error in reading it as one of its own
        given = ray.put(ray.cloudpickle.dumps(work))
        for each in [task.remote(given) for _ in range(workers)]:
            try:
                ray.get(each)
            except ray.exceptions.RayTaskError as error:
                # the text of that which has the traceback in it is long
                errors.append(error.cause)
            except ray.exceptions.RayError as error:
                died = f"a worker of Ray died {RETRIES + 1} times ({error})"
                errors.append(InputError(f"{died}, expected room for {workers} models; give fewer --workers"))
    if len(errors) == workers:
        raise errors[0]
    for found in errors:
        logging.getLogger(__name__).warning("a worker of Ray failed, and others did its work: %s", found)


def called(work: bytes) -> None:
    """Do a piece of work that was pickled."""
    pickle.loads(work)()


@contextmanager
def cluster(ray: Any, workers: int) -> Iterator[None]:
    """Have Ray started as long as this is open; leave it be if it was before."""
    is_own = not ray.is_initialized()
    if is_own:
        # workers that take all CPUs would leave none to what hands them their work
        ray.init(**local_cluster(workers))
    try:
        yield
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
