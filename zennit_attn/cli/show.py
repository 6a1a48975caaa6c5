"""``zennit-attn show``: an explanation that was saved, drawn again."""

from __future__ import annotations

import argparse
import json

from ..explain import Explanation
from .common import be_quiet
from .explain import check_place, show, written
from .parser import DONE


def run(args: argparse.Namespace) -> int:
    """Print an explanation, and write it if there is somewhere to."""
    be_quiet()
    if args.out is not None:
        check_place(args.out)
    explanation = Explanation.load(args.file)
    if args.out is not None:
        written(explanation, args)
    if args.json:
        print(json.dumps(explanation.to_dict(), ensure_ascii=False))
        return DONE
    print(explanation.title())
    show(explanation, args)
    return DONE
