"""Tuning: search the parameters of a composite's rules for the best score, and keep the best as a composite file.

A TOML file says what is searched, and on what, see :mod:`zennit_attn.tuning.space` and
:mod:`zennit_attn.tuning.study`. Each choice of parameters is scored on the samples to tune on; the default and the best
alone on those to test on.

What is tried next depends on the scores so far, and on nothing else. So processes that search into one folder go the
same way, and share out the scoring; each reads from the folder what the others have scored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock  # a requirement of torch
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from ..composites.configuration import made_with
from ..data.engines import side_by_side, workers_of
from ..data.run import Run, lock_of, noted
from ..evaluation.intervals import bootstrap
from .leaderboard import Result, Trial, best_of, written
from .log import Log
from .scoring import Scoring
from .study import Study, read_study

LOG, FORMAT = "trials.jsonl", "zennit-attn trial"
#: The number of the default, which is no trial.
DEFAULT = -1


class Search:
    """A search into a folder, which other processes may share.

    Parameters
    ----------
    study : Study
        What is searched.
    folder : pathlib.Path
        Where to; it is made if need be.

    Attributes
    ----------
    log : Log
        What was found so far.

    Raises
    ------
    ValueError
        If the folder has the log of another study or of other versions of the packages.
    """

    def __init__(self, study: Study, folder: Path) -> None:
        self.study, self.folder, self.identity = study, folder, study.identity()
        folder.mkdir(parents=True, exist_ok=True)
        self.log = Log(folder / LOG, self.identity)

    def follow(self, progress: bool) -> None:
        """Try all that is to be tried, and score the default and the best on the samples to test on."""
        self.logged(DEFAULT, self.scoring(DEFAULT, {}))
        trials = {"grid": by_grid, "optuna": by_optuna}[self.study.method](self)
        with tqdm(trials, total=self.study.trials, unit="trial", disable=None if progress else True) as bar:
            for _ in bar:
                bar.set_postfix_str(f"best {best_of(self.log.trials).score:.4g}")
        for trial in (self.default, best_of([self.default, *self.trials])):
            self.tested(trial)

    @property
    def default(self) -> Trial:
        """The trial of the default."""
        return self.log.trials[0]

    @property
    def trials(self) -> list[Trial]:
        """All others; the log may have more, of a search that was longer."""
        return self.log.trials[1 : self.study.trials + 1]

    def known(self, number: int) -> Trial | None:
        """Return a trial if the log has it."""
        return self.log.trials[number + 1] if number + 1 < len(self.log.trials) else None

    def parameters(self, number: int) -> dict[str, Any] | None:
        """Return what is tried in a trial, None if it has not begun."""
        known, file = self.known(number), self.place(number) / "run.json"
        if known is not None:
            return known.parameters
        return noted(file, FORMAT)["parameters"] if file.exists() else None

    def place(self, number: int, samples: str = "tune") -> Path:
        """Return where the scores of a trial are."""
        return self.folder / samples / ("default" if number == DEFAULT else str(number))

    def scoring(self, number: int, parameters: Mapping[str, Any], samples: str = "tune") -> Scoring:
        """Return what scores a choice of parameters, on the samples to ``"tune"`` or to ``"test"`` on."""
        study, given = self.study, getattr(self.study, samples)
        settings = {**self.identity, "versions": made_with(None), "parameters": dict(parameters)}
        run = Run(self.place(number, samples), settings, len(given), study.batch_size, FORMAT, ".json")
        composite = study.space.default if number == DEFAULT else study.space.composite(parameters)
        return Scoring(run, study, composite, given)

    def logged(self, number: int, scoring: Scoring) -> Trial:
        """Return a trial, which is in the log then."""
        known = self.known(number)
        if known is not None:
            return known
        scores, seconds = scoring.found()
        found = bootstrap(scores)
        trial = Trial(number, scoring.run.settings["parameters"], found.mean, found.low, found.high, seconds)
        self.log.add(trial)
        return trial

    def tested(self, trial: Trial) -> Tensor:
        """Return the scores of a trial on the samples to test on."""
        return self.scoring(trial.number, trial.parameters, "test").found()[0]


def tune(
    study: Study | str | Path,
    folder: str | Path,
    progress: bool = True,
    *,
    allow_code: bool = False,
    engine: str = "local",
    workers: int | None = None,
) -> Result:
    """Search for the best parameters, and write what was found into a folder.

    Called again, it goes on where it was interrupted, and finds what it would have found without. Called by several
    processes, they share the work, and each finds what one alone would have found. The folder gets ``trials.jsonl``
    (the log), ``leaderboard.csv``, ``parameters.png`` (score against each parameter), ``contact_sheet.png`` (the first
    samples to test on, by the default and the best) and ``winner.toml``, which :func:`zennit_attn.load_composite`
    reads; and in ``tune`` and ``test`` the score of each sample.

    Parameters
    ----------
    study : Study, str or pathlib.Path
        The study, or its file.
    folder : str or pathlib.Path
        Where to write; it is made if need be.
    progress : bool, optional
        Whether to show a bar on a terminal.
    allow_code : bool, optional
        Whether the file may name Python files, which are run.
    engine : str, optional
        Who scores: ``"local"``, this process, or ``"ray"``, workers of Ray on the cluster of ``RAY_ADDRESS`` or on this
        machine, each of which has the model once.
    workers : int, optional
        How many workers of Ray, by default one.

    Returns
    -------
    Result
        The best composite, all trials, and the scores on the test samples.

    Raises
    ------
    ValueError
        If the folder has the log of another study or of other versions of the packages, or is in that of the images,
        or a score is not finite; if there is no such engine.
    ModuleNotFoundError
        If the study needs Optuna, and it is not there.
    """
    helpers = workers_of(engine, workers)
    study = study if isinstance(study, Study) else read_study(study, allow_code=allow_code)
    folder = Path(folder)
    refuse_inside(study, folder)
    search = Search(study, folder)
    if helpers:
        # workers may have another working directory
        side_by_side(partial(assist, study, folder.resolve()), helpers, float(study.tune.target.shares.is_cuda))
    search.follow(progress)
    return written(study, search.default, search.trials, folder, search.tested)


def assist(study: Study, folder: Path) -> None:
    """Take part in a search into a folder."""
    Search(study, folder).follow(progress=False)


def refuse_inside(study: Study, folder: Path) -> None:
    """Raise ValueError if pictures that are written would be among the study's images the next time."""
    data = study.content.get("data", {}).get("folder")
    if study.path is None or data is None:
        return
    images, place = (study.path.parent / data).resolve(), folder.resolve()
    if images in (place, *place.parents):
        raise ValueError(
            f"got the folder {str(folder)!r} to write into, which is in the folder of the images, {str(images)!r}: "
            "expected another one, such as --out of the command"
        )


def by_grid(search: Search) -> Iterator[Trial]:
    """Try all combinations of values that the log does not have, and yield all trials."""
    # no trial waits for the scores of another one: what other processes have begun is left to them until the end
    begun = deque[tuple[int, Scoring]]()
    for number, parameters in enumerate(search.study.space.grid()):
        known = search.known(number)
        if known is not None:
            yield known
            continue
        begun.append((number, search.scoring(number, parameters)))
        begun[-1][1].attempt()
        while begun and begun[0][1].attempt():
            yield search.logged(*begun.popleft())
    for each in begun:
        yield search.logged(*each)


def by_optuna(search: Search) -> Iterator[Trial]:
    """Try what Optuna suggests from the trials in the log, and yield all trials."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("method='optuna' needs Optuna: pip install zennit-attn[tuning]") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study, adviser = search.study, optuna.create_study(direction="maximize")
    for number in range(study.trials):
        # seeded anew each time, so that what is suggested does not depend on where a search was interrupted
        adviser.sampler = optuna.samplers.TPESampler(seed=study.seed + number)
        # processors differ in the last digit of a suggestion: the first process to ask decides for all
        with FileLock(lock_of(search.folder, "ask")):
            known = search.parameters(number)
            if known is not None:
                adviser.enqueue_trial(known)
            asked = adviser.ask()
            scoring = search.scoring(number, study.space.suggest(asked))
        trial = search.logged(number, scoring)
        adviser.tell(asked, trial.score)
        yield trial
