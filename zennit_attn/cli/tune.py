"""``zennit-attn tune``: the search for the best parameters of rules."""

from __future__ import annotations

import argparse
import contextlib
import sys
from dataclasses import asdict

import torch

from ..data.ranks import rank_of
from ..errors import InputError
from ..tuning.leaderboard import WINNER
from ..tuning.search import tune
from .common import be_quiet
from .many import device_of
from .parser import DONE
from .terminal import say, say_json


def run(args: argparse.Namespace) -> int:
    """Search as a file says, and print what was found.

    Raises
    ------
    InputError
        If the file, or what it names, cannot be used.
    """
    be_quiet()
    folder = args.study.with_suffix("") if args.out is None else args.out
    # all of the work is the share of each process, but its GPU is its own
    own = device_of("cuda", rank_of("1/1"))
    if own != "cuda":
        # what a study calls cuda, or auto
        torch.cuda.set_device(own)
    try:
        # engines have their say on stdout
        with contextlib.redirect_stdout(sys.stderr):
            result = tune(
                args.study, folder, allow_code=args.allow_code, engine=args.engine or "local", workers=args.workers
            )
    except (ImportError, FileNotFoundError, TypeError, ValueError) as error:
        raise InputError(str(error)) from error
    if args.json:
        names = ("test_default", "test_best", "test_difference")
        found = {"best": asdict(result.best), **{name: asdict(getattr(result, name)) for name in names}}
        say_json({**found, "trials": len(result.trials), "winner": str(folder / WINNER)})
        return DONE
    chosen = ", ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in result.best.parameters.items()
    )
    say(f"best of {len(result.trials)} trials: {chosen or 'the default'}")
    say(result)
    say(f"written: {folder / WINNER}")
    return DONE
