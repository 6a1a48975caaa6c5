"""``zennit-attn virelay``: results of images, and their clusters, as a project of ViRelAy."""

from __future__ import annotations

import argparse

from ..data.results import open_results
from ..data.spray import CLUSTERS
from ..data.virelay import write_virelay
from .parser import DONE
from .terminal import say, say_json


def run(args: argparse.Namespace) -> int:
    """Write the project, and say what shows it."""
    clusters = CLUSTERS if args.clusters is None else args.clusters
    file = write_virelay(open_results(args.results), args.out, None, clusters, args.neighbours, args.seed)
    if args.json:
        say_json({"project": str(file)})
    else:
        say(f"written: {file}; python -m virelay {file} shows it, in an environment with virelay")
    return DONE
