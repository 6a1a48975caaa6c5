"""The command ``zennit-attn``: explain texts and images with models of transformers.

Exit codes: 0 if all went well, 1 if some rows of a batch failed, 2 at wrong usage or an input that cannot be used.
What is said of errors is on stderr; stdout has results alone, with ``--json`` as one JSON object.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..composites.configuration import PRESETS, made_with, to_toml
from ..composites.parameters import parameters_of
from ..composites.transformer import TransformerComposite
from ..data import batch
from ..errors import InputError
from ..explain.explainer import DTYPES, Explainer, check_composite, composite_of, empty_model, loader_of
from ..tuning.search import main as tune_main
from ..version import __version__

DONE, SOME_FAILED, REFUSED, STOPPED = 0, 1, 2, 130
SUFFIXES = (".html", ".png", ".svg", ".pdf")
EXAMPLES = """examples:
  zennit-attn explain --model gpt2 --text "Paris is the capital of" --out heatmap.html
  zennit-attn explain --model google/vit-base-patch16-224 --image cat.jpg --target "Egyptian cat" --out cat.png
  zennit-attn explain --model gpt2 --input texts.jsonl --out results    # {"text": "...", "target": "..."} a line
  zennit-attn composites
  zennit-attn describe --model gpt2 --composite cp_lrp

exit codes: 0 all went well, 1 some rows of a batch failed, 2 wrong usage or an input that cannot be used
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    arguments : sequence of str, optional
        Arguments; by default those of the program.

    Returns
    -------
    int
        The exit code.

    Raises
    ------
    SystemExit
        By argparse, at ``--help`` and at wrong usage.

    Examples
    --------
    >>> from zennit_attn.cli import main
    >>> main(["composites", "--json"])  # doctest: +ELLIPSIS
    {...}
    0
    """
    args = parser().parse_args(arguments)
    # what loading has to say is in the errors
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        return int(args.command(args))
    except InputError as error:
        print(f"zennit-attn: error: {error}", file=sys.stderr)
        return REFUSED
    except BrokenPipeError:
        # whoever reads the output has enough of it; nothing is left to be flushed at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        print(f"zennit-attn: error: {error}; check the place, its permissions and its room", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print(
            "zennit-attn: stopped; the same command goes on with a batch or a search where it stopped", file=sys.stderr
        )
        return STOPPED


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(
        "zennit-attn",
        description="Explain what a transformer said: the relevance of every token or pixel.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"zennit-attn {__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_explain(commands.add_parser("explain", help="explain a text, an image, or many of them"))
    listed = commands.add_parser("composites", help="list the presets and their parameters")
    listed.set_defaults(command=list_composites)
    described = commands.add_parser("describe", help="print module, role and rule of a model; loads no weights")
    add_model(described)
    described.set_defaults(command=describe)
    tuned = commands.add_parser("tune", help="search for the best parameters of rules, as a TOML file says")
    tuned.add_argument("study", type=Path, metavar="FILE.toml", help="the study, see docs/tuning.md")
    tuned.add_argument("--out", type=Path, metavar="FOLDER", help="where to write (default: the file without .toml)")
    tuned.set_defaults(command=lambda args: tune_main(args.study, args.out, args.json))
    for command in commands.choices.values():
        command.description = command.description or f"{command.prog}: see zennit-attn --help for examples."
        command.add_argument("--json", action="store_true", help="print JSON on stdout")
    return top


def add_model(command: argparse.ArgumentParser) -> None:
    """Add the options of a model and its rules."""
    command.add_argument("--model", required=True, metavar="NAME_OR_PATH", help="on the Hugging Face hub, or a folder")
    command.add_argument(
        "--composite",
        metavar="NAME_OR_FILE",
        help=f"{', '.join(PRESETS)} or a TOML file (default: attnlrp for texts, gamma_vit for images)",
    )


def add_explain(command: argparse.ArgumentParser) -> None:
    """Add the options of ``explain``."""
    command.description = (
        "Explain the next token of a causal language model, or the class that a text or image classifier chose."
    )
    add_model(command)
    given = command.add_mutually_exclusive_group(required=True)
    given.add_argument("--text", help="the text")
    given.add_argument("--image", type=Path, metavar="FILE", help="the image")
    given.add_argument(
        "--input",
        type=Path,
        metavar="FILE.jsonl",
        help='many: a line each, as {"text": "...", "target": "..."} or {"image": "FILE"}; or a folder of images',
    )
    command.add_argument(
        "--target",
        metavar="TOKEN_OR_CLASS",
        help="word, # and the id of a token, or name or number of a class (default: that of the largest logit)",
    )
    command.add_argument(
        "--contrastive", action="store_true", help="explain the logit minus the mean of all others, not the logit alone"
    )
    command.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)")
    command.add_argument("--dtype", choices=DTYPES, help="default: that of the loaded model")
    command.add_argument(
        "--out", type=Path, metavar="FILE", help="heatmap to write, as .html, .png, .svg or .pdf; with --input a folder"
    )
    command.add_argument(
        "--format", choices=[suffix[1:] for suffix in SUFFIXES], help="of the heatmaps of --input (default: html)"
    )
    command.set_defaults(command=explain)


def explain(args: argparse.Namespace) -> int:
    """Explain one text or image, or many."""
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


def content_of(composite: TransformerComposite) -> dict[str, Any]:
    """Return a composite as its file has it."""
    content = tomllib.loads(to_toml(composite))
    del content["made_with"]
    return content


def list_composites(args: argparse.Namespace) -> int:
    """Print the presets and their parameters."""
    presets = {name: (inspect.getdoc(kind) or "").split("\n")[0] for name, kind in PRESETS.items()}
    if args.json:
        found = {
            name: {"description": text, "parameters": PRESETS[name]().parameters()} for name, text in presets.items()
        }
        print(json.dumps(found, ensure_ascii=False))
        return DONE
    for name, text in presets.items():
        print(f"{name}: {text}")
        for key, value in PRESETS[name]().parameters().items():
            print(f"    {key} = {json.dumps(value)}")
    print('\nTo change a parameter: --composite mine.toml, a file that begins with preset = "gamma_vit", followed by')
    print("[parameters] and a line such as conv_gamma = 0.1 below it.")
    return DONE


def describe(args: argparse.Namespace) -> int:
    """Print which rule each module has."""
    model = empty_model(args.model)
    is_visual = "ImageClassification" in loader_of(model.config, args.model).__name__
    composite = composite_of(args.composite or ("gamma_vit" if is_visual else "attnlrp"))
    check_composite(composite, model)
    if not args.json:
        print(composite.describe(model))
        return DONE
    found = [
        {"module": name, "role": place, "rule": type(rule).__name__, "parameters": parameters_of(rule)}
        for name, place, rule in composite.assignments(model)
    ]
    print(json.dumps({"model": args.model, "composite": content_of(composite), "modules": found}, ensure_ascii=False))
    return DONE


if __name__ == "__main__":
    sys.exit(main())
