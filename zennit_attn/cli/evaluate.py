"""``zennit-attn evaluate``: how good explanations of a model are, on one's own data."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import Any

from ..composites.configuration import made_with
from ..data.buckets import BatchExplainer
from ..data.ranks import rank_of
from ..data.run import Run
from ..data.sources import source_of
from ..errors import InputError
from ..evidence import STUDIES, Study, open_scores
from ..evidence.making import Measuring
from ..evidence.pages import page_of
from ..evidence.tables import markdown
from ..files import encoded, json_lines, put
from .common import be_quiet
from .many import device_of, filled
from .parser import DONE
from .terminal import say, say_json, tell

#: Options of single studies, which the others do not have.
OWN = ("answers", "steps", "length", "fills", "agreement", "ablations", "depths")


def run(args: argparse.Namespace) -> int:
    """Measure methods on the rows of a data set, into a folder."""
    be_quiet()
    study = study_of(args)
    args.out.mkdir(parents=True, exist_ok=True)
    source = source_of(args.data or rows_of(study, args.samples or 100, args.out / "rows.jsonl"))
    count = min(len(source), args.samples or len(source))
    place = Run(args.out, settings_of(args, study, source.digest()), count, args.rows_per_part)
    rank = rank_of(args.shard)
    explain = BatchExplainer(
        args.model, folder=source.folder, within=args.files_within, device=device_of(args.device, rank)
    )
    counts = filled(args, Measuring(place, source, explain, study=study), rank)
    scores = open_scores(args.out)
    if not scores.values:
        errors = list(dict.fromkeys(scores.errors.values()))
        raise InputError(f"no row of {counts.total()} could be measured: {errors[:3]}")
    there = {score for _, score in scores.values}
    shown = {name: meaning for name, meaning in study.scores.items() if name in there}
    table = markdown(scores, list(shown))
    for name in study.methods:
        if name not in scores.methods:
            tell(f"{name} has no score: {study.refused.get(name, 'it does not apply')}")
    put(args.out / "table.md", encoded(table + "\n"))
    put(args.out / "page.html", encoded(page_of(scores, shown, study.axis)))
    if args.json:
        say_json({"rows": scores.rows, "measured": scores.rows - len(scores.errors), "results": str(args.out)})
    else:
        say(table)
        say(f"{scores.rows - len(scores.errors)} of {scores.rows} rows measured; page: {args.out / 'page.html'}")
    return DONE


def rows_of(study: Study, count: int, file: Path) -> Path:
    """Write the rows of a study's own, unless they are there, and return where.

    Raises
    ------
    InputError
        If there are others, which another process may be reading.
    """
    content = json_lines(study.rows(count))
    if not file.exists():
        put(file, content)
    elif file.read_bytes() != content:
        raise InputError(f"got a folder with other rows than {count} of the study {study.name!r}; choose another --out")
    return file


def study_of(args: argparse.Namespace) -> Study:
    """Return the study of the options.

    Raises
    ------
    InputError
        If an option is not one of the study.
    """
    kind = STUDIES[args.study]
    known = inspect.signature(kind).parameters
    given = {name: getattr(args, name) for name in OWN if getattr(args, name) is not None}
    for name in given:
        if name not in known:
            raise InputError(f"got --{name} for the study {args.study!r}, expected it with another study")
    return kind(args.methods, args.score_dtype, args.batch_size, **given)


def settings_of(args: argparse.Namespace, study: Study, digest: str) -> dict[str, Any]:
    """Return what scores depend on."""
    return {
        "model": args.model,
        "study": study.name,
        **study.settings(),
        "input": f"{args.data.name if args.data else 'rows.jsonl'} {digest}",
        "versions": made_with(None),
    }
