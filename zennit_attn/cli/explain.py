"""``zennit-attn explain``: a text, an image, or many of them."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ..composites.configuration import made_with
from ..data import batch
from ..errors import InputError
from ..explain.explainer import Explainer
from .common import be_quiet, content_of
from .parser import DONE, SOME_FAILED, SUFFIXES


def run(args: argparse.Namespace) -> int:
    """Explain one text or image, or many."""
    be_quiet()
    if args.input is not None:
        return explain_many(args)
    check_out(args)
    explainer = Explainer(args.model, args.composite, args.device, args.dtype)
    given = args.image if args.text is None else args.text
    explanation = explainer.explain(given, args.target, args.contrastive)
    for message in explanation.warnings:
        print(f"zennit-attn: warning: {message}", file=sys.stderr)
    value = f"logit {explanation.logit:+.4g}"
    if args.contrastive:
        value += f", {explanation.value:+.4g} above the mean of the others"
    picture = explanation.picture(f"{explanation.label.strip()!r}, {value}, {explainer.composite.preset}")
    if args.out is not None:
        picture.save(args.out)
    if args.json:
        found = {
            **settings_of(explainer, args),
            "input": str(given),
            **batch.summary(explanation),
            "tokens": explanation.words,
            "relevance": explanation.relevance.tolist(),
            "picture": None if args.out is None else str(args.out),
            "warnings": explanation.warnings,
        }
        print(json.dumps(found, ensure_ascii=False))
        return DONE
    print(f"{explanation.label!r}: {value} ({explainer.composite.preset}, {explainer.device})")
    if explanation.words is not None:
        print(picture)
    if args.out is not None:
        print(f"written: {args.out}")
    return DONE


def check_out(args: argparse.Namespace) -> None:
    """Raise InputError if there is nowhere to write to, before a model is loaded."""
    if args.format is not None:
        raise InputError(f"got --format {args.format} without --input; the end of --out says it")
    if args.out is None:
        if args.json or args.text is not None:
            return  # a terminal shows texts, but no images
        raise InputError("got neither --out nor --json, expected a heatmap to write, such as --out heatmap.html")
    if args.out.suffix.lower() not in SUFFIXES:
        raise InputError(f"got --out {str(args.out)!r}, expected a name that ends with {', '.join(SUFFIXES)}")
    if not args.out.parent.is_dir():
        raise InputError(f"got --out {str(args.out)!r}, but there is no folder {str(args.out.parent)!r}; make it first")


def explain_many(args: argparse.Namespace) -> int:
    """Explain the rows of a file or folder into a folder."""
    if args.out is None:
        raise InputError("got --input without --out, expected a folder for the results, such as --out results")
    if args.input.is_dir() and args.out.resolve() == args.input.resolve():
        raise InputError(f"got {str(args.out)!r} as --input and as --out, expected two folders")
    rows = batch.rows_of(args.input, args.target)
    explainer = Explainer(args.model, args.composite, args.device, args.dtype)
    suffix = args.format or "html"
    results = batch.Results(args.out, {**settings_of(explainer, args), "format": suffix})
    counts = batch.run(explainer, rows, results, args.contrastive, f".{suffix}")
    if args.json:
        print(json.dumps({"rows": len(rows), **counts, "results": str(results.file)}, ensure_ascii=False))
    else:
        print(", ".join(f"{count} {what}" for what, count in counts.items()) + f"; results: {results.file}")
    return SOME_FAILED if counts["failed"] else DONE


def settings_of(explainer: Explainer, args: argparse.Namespace) -> dict[str, Any]:
    """Return what an explanation depends on beside its input, for JSON."""
    return {
        "model": explainer.name,
        "composite": content_of(explainer.composite),
        "contrastive": args.contrastive,
        "device": str(explainer.device),
        "dtype": str(next(explainer.model.parameters()).dtype).removeprefix("torch."),
        "versions": made_with(None),
    }
