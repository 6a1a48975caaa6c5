"""``zennit-attn units``: the rows of a data set in which units of a model are strongest, and pages of them."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..concepts.maxima import ActMax, RelMax
from ..concepts.references import FORMAT, Maker, References, fold, open_references
from ..concepts.showing import unit_page
from ..data.ranks import rank_of
from ..data.run import Run
from ..data.sources import source_of
from ..errors import InputError
from ..explain import Explainer
from ..files import encoded, put
from . import many
from .common import be_quiet
from .parser import DONE, SOME_FAILED
from .terminal import say


def run(args: argparse.Namespace) -> int:
    """Look through the rows, and write pages."""
    be_quiet()
    many.check_places(args)
    pages = [named(text) for text in args.page]
    rank, source = rank_of(args.shard), source_of(args.input)
    kind = ActMax if args.activation else RelMax
    options = many.asked(args, rank, source)
    explain = kind(args.model, args.composite, args.latents, args.count, args.by, args.sign, **options)
    place = Run(args.out, explain.settings(source), len(source), args.rows_per_part or many.ROWS, FORMAT)
    maker = Maker(place, source, explain)
    counts = many.filled(args, maker, rank)
    fold(place, 1)
    is_done = all(map(place.is_there, range(place.parts)))
    found = open_references(place.folder) if is_done else None
    many.summarise(args, counts, maker, found.errors() if found is not None else {})
    if pages:
        write(pages, found, explain.explainer, args)
    return SOME_FAILED if counts["failed"] else DONE


def named(text: str) -> tuple[str, int]:
    """Return the latent and the unit of an option.

    Raises
    ------
    InputError
        If it names none.
    """
    latent, _, unit = text.rpartition(":")
    if not latent or not unit.isdigit():
        raise InputError(f"got --page {text!r}, expected LATENT:UNIT, such as model.layers.1.head:2")
    return latent, int(unit)


def write(
    pages: list[tuple[str, int]], found: References | None, explainer: Explainer, args: argparse.Namespace
) -> None:
    """Write pages of units beside their references.

    Raises
    ------
    InputError
        If other processes have not done their rows yet.
    """
    if found is None:
        raise InputError("got --page, for which rows of other processes are missing; run the same again when they end")
    for latent, unit in pages:
        page = unit_page(
            found, latent, unit, explainer, args.input, (), args.target, args.contrastive, args.files_within
        )
        file = Path(args.out) / f"{latent}-{unit}.html"
        put(file, encoded(page))
        if not args.json:
            say(f"written: {file}")
