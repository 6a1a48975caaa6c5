"""``zennit-attn tune``: the search for the best parameters of rules."""

from __future__ import annotations

import argparse

from ..tuning.search import main
from .common import be_quiet


def run(args: argparse.Namespace) -> int:
    """Search as a file says."""
    be_quiet()
    return main(args.study, args.out, args.json)
