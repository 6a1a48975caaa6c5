"""``zennit-attn show``: an explanation that was saved, or a row of many, drawn again."""

from __future__ import annotations

import argparse

from ..data.index import index_page
from ..data.results import open_results
from ..errors import InputError
from ..explain import Explanation
from ..files import encoded, put
from .common import be_quiet
from .explain import check_place, show, written
from .parser import DONE
from .terminal import say, say_json

#: How many rows a page of a folder has.
FIRST = 100


def run(args: argparse.Namespace) -> int:
    """Print an explanation, and write it if there is somewhere to."""
    be_quiet()
    if args.out is not None:
        check_place(args.out)
    if args.file.is_dir() and args.row is None:
        return page(args)
    explanation = explanation_of(args)
    if args.out is not None:
        written(explanation, args)
    if args.json:
        say_json(explanation.to_dict())
        return DONE
    say(explanation.title())
    show(explanation, args)
    return DONE


def explanation_of(args: argparse.Namespace) -> Explanation:
    """Return the explanation of a file, or of a row of a folder."""
    if args.file.is_dir():
        return open_results(args.file, partial=True)[args.row]
    if args.row is not None:
        raise InputError(f"got --row for {str(args.file)!r}, expected a folder that explain --input wrote")
    return Explanation.load(args.file)


def page(args: argparse.Namespace) -> int:
    """Write a page of the first rows of a folder.

    Raises
    ------
    InputError
        If there is nowhere to write to, or other options than a page has.
    """
    out = args.file / "index.html" if args.out is None else args.out
    if out.suffix.lower() != ".html" or args.json or args.unit is not None:
        raise InputError("got a folder, of which there is a page in HTML; expected --row, or --out with .html alone")
    results = open_results(args.file, partial=True)
    there = [row for row in range(len(results)) if row // results.size in results.there]
    put(out, encoded(index_page(results, there[:FIRST])))
    say(f"written: {out}")
    return DONE
