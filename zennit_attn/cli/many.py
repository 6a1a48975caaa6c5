"""Many rows: ``zennit-attn explain --input``, by this process or by others."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from ..composites.configuration import made_with
from ..data.buckets import BatchExplainer
from ..data.engines import Maker, here, with_ray, workers_of
from ..data.parts import Precision
from ..data.ranks import Rank, rank_of
from ..data.results import open_results
from ..data.run import Run
from ..data.sources import Source, source_of
from ..errors import InputError
from ..explain import loading
from .common import content_of, device_map_of
from .parser import DONE, SOME_FAILED
from .terminal import say, say_json, tell

#: Options that are of many rows alone.
OPTIONS = ("files_within", "max_tokens", "rows_per_part", "shard", "engine", "workers", "float16", "patches")
#: How many errors are printed; how many rows a part has, and tokens a bucket, if nothing is said.
SHOWN, ROWS, TOKENS = 10, 256, 512


def check_alone(args: argparse.Namespace) -> None:
    """Raise InputError if one row got an option of many."""
    for name in OPTIONS:
        if getattr(args, name):
            raise InputError(f"got --{name.replace('_', '-')} without --input, expected it with many rows")


def run(args: argparse.Namespace) -> int:
    """Explain the rows of a file or folder into a folder."""
    if len(args.model) > 1 or len(args.composite or ()) > 1:
        raise InputError("got several models or composites with --input, expected one of each")
    check_places(args)
    rank, source = rank_of(args.shard), source_of(args.input)
    place = Run(args.out, settings_of(args, source), len(source), args.rows_per_part or ROWS)
    explain = BatchExplainer(args.model[0], (args.composite or [None])[0], **asked(args, rank, source))
    maker = Maker(place, source, explain, Precision("float16" if args.float16 else "float32", args.patches))
    counts = filled(args, maker, rank)
    summarise(args, counts, maker, open_results(place.folder, partial=True).errors() if counts["failed"] else {})
    return SOME_FAILED if counts["failed"] else DONE


def check_places(args: argparse.Namespace) -> None:
    """Raise InputError if there is nowhere to write to, or a model is to be shared out."""
    if args.out is None:
        raise InputError("got --input without --out, expected a folder for the results, such as --out results")
    if args.input.is_dir() and args.out.resolve() == args.input.resolve():
        raise InputError(f"got {str(args.out)!r} as --input and as --out, expected two folders")
    if args.tp_plan is not None:
        raise InputError("got --tp-plan with --input, expected one input: give --device-map, or a part to each process")


def asked(args: argparse.Namespace, rank: Rank, source: Source) -> dict[str, Any]:
    """Return what is asked of each row, and by which means."""
    return {
        "max_tokens": TOKENS if args.max_tokens is None else args.max_tokens,
        "target": args.target,
        "contrastive": args.contrastive,
        "max_new_tokens": args.max_new_tokens,
        "folder": source.folder,
        "within": args.files_within,
        "allow_pickle": args.allow_pickle,
        "device": device_of(args.device, rank),
        "dtype": args.dtype,
        "device_map": device_map_of(args),
    }


def filled(args: argparse.Namespace, maker: Maker, rank: Rank) -> Counter[str]:
    """Make the parts of this process, and return how many rows are ``done``, ``skipped`` and ``failed``."""
    place = maker.run
    own = [part for part in range(place.parts) if rank.has(part)]
    missing = [part for part in own if not place.is_there(part)]
    counts = Counter(skipped=sum(map(maker.length, set(own) - set(missing))))
    bar = tqdm(total=sum(map(maker.length, own)), initial=counts["skipped"], unit="row", disable=None)
    # engines have their say on stdout
    with bar, contextlib.redirect_stdout(sys.stderr):
        for made in engine_of(args, maker, missing):
            counts += made
            bar.update(sum(made.values()))
    return counts


def engine_of(args: argparse.Namespace, maker: Maker, parts: list[int]) -> Iterator[Counter[str]]:
    """Return what makes the parts."""
    workers = workers_of(args.engine, args.workers)
    if not workers:
        return here(maker, parts)
    is_on_gpu = loading.device_of(args.device).type == "cuda"
    return with_ray(maker, parts, workers, float(is_on_gpu)) if parts else iter(())


def device_of(name: str, rank: Rank) -> str:
    """Return the device of a process: its own of several, unless one was named."""
    if name in ("auto", "cuda") and rank.local is not None and torch.cuda.device_count() > 1:
        return f"cuda:{rank.local % torch.cuda.device_count()}"
    return name


def settings_of(args: argparse.Namespace, source: Source) -> dict[str, Any]:
    """Return what results depend on that is known before a model is loaded."""
    composite = (args.composite or [None])[0]
    return {
        "model": args.model[0],
        "composite": None if composite is None else content_of(loading.composite_of(composite)),
        "target": args.target,
        "contrastive": args.contrastive,
        "max_new_tokens": args.max_new_tokens,
        "dtype": args.dtype,
        "precision": "float16" if args.float16 else "float32",
        "patches": args.patches,
        "input": f"{source.path.name} {source.digest()}",
        "versions": made_with(None),
    }


def summarise(args: argparse.Namespace, counts: Counter[str], maker: Maker, errors: Mapping[int, str]) -> None:
    """Print what was done, and the first of what could not be."""
    said, folder = {name: counts[name] for name in ("done", "skipped", "failed")}, maker.run.folder
    if args.json:
        say_json({"rows": maker.run.rows, **said, "results": str(folder)})
    else:
        say(", ".join(f"{count} {what}" for what, count in said.items()) + f"; results: {folder}")
    for row in list(errors)[:SHOWN]:
        tell(f"row {row}: {errors[row]}")
    if len(errors) > SHOWN:
        tell(f"and {len(errors) - SHOWN} others, in the column error")
