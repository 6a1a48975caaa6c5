"""Tuning: search the parameters of a composite's rules for the best score, and keep the best as a composite file.

A TOML file says what is searched, and on what, see :mod:`zennit_attn.tuning.space` and
:mod:`zennit_attn.tuning.study`. Each choice of parameters is scored on the samples to tune on; the default and the best
alone on those to test on. Only one process searches into a folder: for several, give :meth:`Study.objective` to Optuna
or Ray.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]

from ..composites.configuration import made_with
from ..composites.transformer import TransformerComposite
from ..data.journal import append, complete_lines
from ..evaluation.intervals import bootstrap
from .leaderboard import Result, Trial, written
from .study import Study, read_study

LOG = "trials.jsonl"


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
        wanted = {**identity, "versions": made_with(None)}
        lines = complete_lines(path)
        if not lines:
            append(path, wanted)
            return
        try:
            head, *records = map(json.loads, lines)
            self.trials = [Trial(**record) for record in records]
            differs = [key for key, value in wanted.items() if head[key] != value]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"cannot read {str(path)!r} ({error!r}); choose another folder, or delete it") from error
        if differs:
            raise ValueError(
                f"got the folder {str(path.parent)!r} with the log of a search that differs in its "
                f"{' and '.join(differs)}, expected the same, but for the number of trials: choose another folder, or "
                "delete the log"
            )
        numbers = [trial.number for trial in self.trials]
        if numbers != list(range(-1, len(numbers) - 1)):
            raise ValueError(
                f"got the trials {numbers} in {str(path)!r}, expected each once, from -1 on: only one process may "
                "search into a folder; choose another folder, or delete it"
            )

    def add(self, trial: Trial) -> None:
        """Write a trial."""
        append(self.path, asdict(trial))
        self.trials.append(trial)


def tune(study: Study | str | Path, folder: str | Path, progress: bool = True, *, allow_code: bool = False) -> Result:
    """Search for the best parameters, and write what was found into a folder.

    Called again, it goes on where it was interrupted, and finds what it would have found without. The folder gets
    ``trials.jsonl`` (the log), ``leaderboard.csv``, ``parameters.png`` (score against each parameter),
    ``contact_sheet.png`` (the first samples to test on, by the default and the best) and ``winner.toml``, which
    :func:`zennit_attn.load_composite` reads.

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

    Returns
    -------
    Result
        The best composite, all trials, and the scores on the test samples.

    Raises
    ------
    ValueError
        If the folder has the log of another study or of other versions of the packages, or is in that of the images,
        or a score is not finite.
    ModuleNotFoundError
        If the study needs Optuna, and it is not there.
    """
    study = study if isinstance(study, Study) else read_study(study, allow_code=allow_code)
    folder = Path(folder)
    refuse_inside(study, folder)
    folder.mkdir(parents=True, exist_ok=True)
    log = Log(folder / LOG, study.identity())
    if not log.trials:
        log.add(try_out(study, study.space.default, -1, {}))
    search = {"grid": by_grid, "optuna": by_optuna}[study.method]
    with tqdm(search(study, log), total=study.trials, unit="trial", disable=None if progress else True) as bar:
        for _ in bar:
            bar.set_postfix_str(f"best {max(trial.score for trial in log.trials):.4g}")
    return written(study, log.trials[0], log.trials[1 : study.trials + 1], folder)


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


def try_out(study: Study, composite: TransformerComposite, number: int, parameters: dict[str, Any]) -> Trial:
    """Score a composite on the samples to tune on."""
    start = time.perf_counter()
    found = bootstrap(study.scores(composite, study.tune))
    return Trial(number, parameters, found.mean, found.low, found.high, time.perf_counter() - start)


def by_grid(study: Study, log: Log) -> Iterator[Trial]:
    """Try all combinations of values that the log does not have, and yield all trials."""
    for number, parameters in enumerate(study.space.grid()):
        if number + 1 == len(log.trials):
            log.add(try_out(study, study.space.composite(parameters), number, parameters))
        yield log.trials[number + 1]


def by_optuna(study: Study, log: Log) -> Iterator[Trial]:
    """Try what Optuna suggests from the trials in the log, and yield all trials."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("method='optuna' needs Optuna: pip install zennit-attn[tuning]") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search = optuna.create_study(direction="maximize")
    for number in range(study.trials):
        # seeded anew each time, so that what is suggested does not depend on where a search was interrupted
        search.sampler = optuna.samplers.TPESampler(seed=study.seed + number)
        is_known = number + 1 < len(log.trials)
        if is_known:
            search.enqueue_trial(log.trials[number + 1].parameters)
        asked = search.ask()
        parameters = study.space.suggest(asked)
        if not is_known:
            log.add(try_out(study, study.space.composite(parameters), number, parameters))
        search.tell(asked, log.trials[number + 1].score)
        yield log.trials[number + 1]
