"""The command ``zennit-attn``: explain texts and images with models of transformers.

Exit codes: 0 if all went well, 1 if some rows of a batch failed, 2 at wrong usage or an input that cannot be used.
What is said of errors is on stderr; stdout has results alone, with ``--json`` as one JSON object.

Nothing heavy is imported here, so that help and wrong usage are told at once: each command is a module of its own, with
a function ``run``, that is imported when it is called.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..errors import InputError
from ..escapes import escaped
from ..version import __version__
from .terminal import tell

DONE, SOME_FAILED, REFUSED, STOPPED = 0, 1, 2, 130
SUFFIXES = (".html", ".png", ".svg", ".pdf")
SAVED = (*SUFFIXES, ".json", ".safetensors")
#: Names that the commands know, too; there, they would take a second to import.
PRESETS = ("attnlrp", "cp_lrp", "gamma_vit", "libragrad", "relp")
DTYPES = ("float32", "float64", "bfloat16", "float16")
ENGINES = ("local", "ray")
STUDIES = ("context", "perturbation", "randomisation")
#: Options of ``explain`` of which one has to be there.
GIVEN = ("text", "image", "audio", "series", "user", "chat", "input")
EXAMPLES = """examples:
  zennit-attn explain --model gpt2 --text "Paris is the capital of" --out heatmap.html
  zennit-attn explain --model google/vit-base-patch16-224 --image cat.jpg --target "Egyptian cat" --out cat.png
  zennit-attn explain --model HuggingFaceTB/SmolLM2-135M-Instruct --user "Why is the sky blue?" --out why.html
  zennit-attn explain --model gpt2 --input texts.jsonl --out results    # {"text": "...", "target": "..."} a line
  zennit-attn show results --row 17
  zennit-attn virelay results --out project                             # of a folder of images
  zennit-attn units --model gpt2 --input texts.jsonl --out units --page transformer.h.5.head:1
  zennit-attn composites
  zennit-attn describe --model gpt2 --composite cp_lrp

completion (with the extra "completion"): eval "$(register-python-argcomplete zennit-attn)" in bash and zsh, and
register-python-argcomplete --shell fish zennit-attn | source in fish

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
    top = parser()
    if "_ARGCOMPLETE" in os.environ:
        # a shell asks how a line could go on
        import argcomplete

        argcomplete.autocomplete(top)
    given = sys.argv[1:] if arguments is None else list(arguments)
    if not given:
        top.print_help()
        return DONE
    args = top.parse_args(given)
    if args.command == "explain" and all(getattr(args, name) is None for name in GIVEN):
        top.error(f"explain got nothing to explain, expected one of {', '.join(f'--{name}' for name in GIVEN)}")
    try:
        return int(importlib.import_module(f".{args.command}", __package__).run(args))
    except InputError as error:
        tell(f"zennit-attn: error: {error}")
        return REFUSED
    except BrokenPipeError:
        # whoever reads the output has enough of it; nothing is left to be flushed at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        tell(f"zennit-attn: error: {error}; check the place, its permissions and its room")
        return REFUSED
    except KeyboardInterrupt:
        tell("zennit-attn: stopped; the same command goes on with a batch or a search where it stopped")
        return STOPPED


class Parser(argparse.ArgumentParser):
    """A parser that does not print what a terminal would obey."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and leave."""
        super().error(escaped(message))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = Parser(
        "zennit-attn",
        description="Explain what a transformer said: the relevance of every token or pixel.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"zennit-attn {__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_explain(commands.add_parser("explain", help="explain a text, an answer, an image, or many of them"))
    shown = commands.add_parser("show", help="draw an explanation again that was saved as .json or .safetensors")
    shown.add_argument("file", type=Path, metavar="FILE", help="the explanation, or the folder of --input's results")
    shown.add_argument("--row", type=int, metavar="N", help="which row of a folder (default: a page of the first 100)")
    add_drawing(shown)
    page = commands.add_parser("virelay", help="write results of images, and their clusters, as a project of ViRelAy")
    page.add_argument("results", type=Path, metavar="FOLDER", help="the folder of --input's results")
    page.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the project's, which is made")
    page.add_argument("--clusters", type=int, nargs="+", metavar="K", help="into how many (default: 2 3 4 5 6)")
    page.add_argument("--neighbours", type=int, default=10, metavar="N", help="of a row in SpRAy's graph (default: 10)")
    page.add_argument("--seed", type=int, default=0, metavar="N", help="of what is random in it (default: 0)")
    add_units(commands.add_parser("units", help="find the rows in which each unit of a model is most relevant"))
    commands.add_parser("composites", help="list the presets and their parameters")
    described = commands.add_parser("describe", help="print module, role and rule of a model; loads no weights")
    add_model(described)
    add_evaluate(commands.add_parser("evaluate", help="measure how good explanations are, on your model and data"))
    tuned = commands.add_parser("tune", help="search for the best parameters of rules, as a TOML file says")
    tuned.add_argument("study", type=Path, metavar="FILE.toml", help="the study, see docs/tuning.md")
    tuned.add_argument("--out", type=Path, metavar="FOLDER", help="where to write (default: the file without .toml)")
    tuned.add_argument("--allow-code", action="store_true", help="run the Python files that the study names")
    add_workers(tuned)
    for name, command in commands.choices.items():
        command.set_defaults(command=name)
        command.description = command.description or f"{command.prog}: see zennit-attn --help for examples."
        command.add_argument("--json", action="store_true", help="print JSON on stdout")
    return top


def add_evaluate(command: argparse.ArgumentParser) -> None:
    """Add the options of ``evaluate``."""
    command.description = "Measure explanations of a model: a table with intervals, and a page; goes on where it was."
    command.add_argument("--model", required=True, metavar="NAME_OR_PATH", help="as for explain")
    command.add_argument(
        "--study",
        required=True,
        choices=STUDIES,
        help="context: which sentence an answer is read from; perturbation: what happens without what is relevant; "
        "randomisation: whether relevance follows the weights",
    )
    command.add_argument("--data", type=Path, metavar="FILE", help="rows, as --input of explain (context has its own)")
    command.add_argument("--samples", type=int, metavar="N", help="how many rows (default: all; of its own 100)")
    command.add_argument("--methods", nargs="+", metavar="NAME_OR_FILE", help="methods, or composites' TOML files")
    command.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where to write")
    command.add_argument("--answers", choices=("next", "whole"), help="context: what is explained (default: next)")
    command.add_argument("--ablations", type=int, metavar="N", help="context: subsets that LDS looks at (default: 32)")
    command.add_argument("--steps", type=int, metavar="N", help="perturbation: steps of a curve (default: 8)")
    command.add_argument("--length", type=int, metavar="N", help="tokens of a text that are read (default: 48)")
    command.add_argument("--fills", nargs="+", metavar="FILL", help="perturbation: zero, mean, mask or blur")
    command.add_argument("--agreement", action="store_true", default=None, help="perturbation: remove single ones, too")
    command.add_argument("--depths", type=int, metavar="N", help="randomisation: points of the curve (default: 6)")
    command.add_argument("--score-dtype", choices=DTYPES, help="of the forward passes that scores take")
    command.add_argument("--batch-size", type=int, default=16, metavar="N", help="inputs scored at once (default: 16)")
    command.add_argument("--rows-per-part", type=int, default=8, metavar="N", help="of what is written (default: 8)")
    command.add_argument("--device", default="auto", help="as for explain")
    command.add_argument("--files-within", type=Path, metavar="FOLDER", help="as for explain")
    add_engine(command)


def add_model(command: argparse.ArgumentParser, several: bool = False) -> None:
    """Add the options of a model and its rules; of several, if they can be shown side by side."""
    many: dict[str, Any] = {"nargs": "+"} if several else {}
    command.add_argument(
        "--model",
        required=True,
        metavar="NAME_OR_PATH",
        help="on the Hugging Face hub, a folder, timm:NAME or torchvision:NAME",
        **many,
    )
    command.add_argument(
        "--composite",
        metavar="NAME_OR_FILE",
        help=f"{', '.join(PRESETS)} or a TOML file (default: attnlrp; gamma_vit for image classifiers)",
        **many,
    )


def add_drawing(command: argparse.ArgumentParser, many: bool = False) -> None:
    """Add the options of what is drawn and written, of one explanation or of many."""
    command.add_argument(
        "--unit", metavar="UNIT", help="draw and print words, sentences, lines, messages or documents, not tokens"
    )
    command.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help=f"what to write: {', '.join(SAVED)}{'; with --input a folder' if many else ''}",
    )


def add_engine(command: Any) -> None:
    """Add the options of what works on many rows, and of a process's share of them."""
    command.add_argument(
        "--shard",
        metavar="I/N",
        help="the share of this process, from 1/N to N/N (default: as torchrun and SLURM tell it)",
    )
    add_workers(command)


def add_workers(command: Any) -> None:
    """Add the options of who works."""
    command.add_argument("--engine", choices=ENGINES, help="local (default), or ray, on its cluster or on this machine")
    command.add_argument("--workers", type=int, metavar="N", help="how many workers Ray starts (default: 1)")


def add_explain(command: argparse.ArgumentParser) -> None:
    """Add the options of ``explain``."""
    command.description = (
        "Explain the next token or the whole answer of a language model, or what another model made of its input."
    )
    add_model(command, several=True)
    given = command.add_argument_group("what is given")
    given.add_argument(
        "--text",
        action="append",
        help="the text, or - for stdin; two for a pair, such as a question and a text; with --image, what it may show",
    )
    given.add_argument("--image", type=Path, metavar="FILE", help="the image")
    given.add_argument("--audio", type=Path, metavar="FILE.wav", help="the audio")
    given.add_argument("--series", type=Path, metavar="FILE", help="the series: .npy, or .csv with a row for each step")
    given.add_argument("--user", metavar="TEXT", help="what a user says to a chat model, whose answer is explained")
    given.add_argument("--system", metavar="TEXT", help="what the model is told before that")
    given.add_argument(
        "--chat", type=Path, metavar="FILE.json", help='messages of a chat: [{"role": "user", "content": "..."}]'
    )
    given.add_argument(
        "--document", type=Path, action="append", metavar="FILE", help="a text that the model is to answer from"
    )
    given.add_argument(
        "--answer",
        nargs="?",
        const="",
        metavar="TEXT",
        help="the answer that is explained; without a text the model makes it, as it does with --user and --chat",
    )
    given.add_argument("--max-new-tokens", type=int, metavar="N", help="how long an answer is made (default: 64)")
    given.add_argument(
        "--input",
        type=Path,
        metavar="FILE",
        help='many rows: .jsonl as {"text": "...", "target": "..."} or {"image": "FILE"}, .parquet or .csv with such '
        "columns, .txt with a text in each line, or a folder of images; --out is a folder then",
    )
    many = add_many(command)
    many.add_argument("--float16", action="store_true", help="keep relevance in half precision")
    many.add_argument("--patches", type=int, metavar="SIZE", help="keep the sums over patches of an image")
    add_asked(command)
    command.add_argument(
        "--tp-plan", choices=("auto",), help="larger models: share the layers out among the processes of torchrun"
    )
    add_drawing(command, many=True)


def add_many(command: argparse.ArgumentParser) -> Any:
    """Add the options of many rows, and return their group."""
    many = command.add_argument_group("many rows")
    many.add_argument(
        "--files-within",
        type=Path,
        metavar="FOLDER",
        help="rows may name files in this folder, wherever links lead to (default: that of --input; / for any)",
    )
    many.add_argument("--max-tokens", type=int, metavar="N", help="how many are explained together (default: 512)")
    many.add_argument("--rows-per-part", type=int, metavar="N", help="rows of a file of results (default: 256)")
    add_engine(many)
    return many


def add_asked(command: argparse.ArgumentParser) -> None:
    """Add the options of what is explained, and where."""
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
        "--allow-pickle", action="store_true", help="load weights that are no safetensors: pickles, by torch alone"
    )
    command.add_argument(
        "--device-map",
        metavar="auto|FILE.json",
        help='larger models: where each module is, {"model.layers.0": "disk", ...}, as accelerate takes it',
    )


def add_units(command: argparse.ArgumentParser) -> None:
    """Add the options of ``units``."""
    command.description = (
        "Look through many rows for those in which each unit of a model is most relevant, or most active, and write "
        "pages of units."
    )
    add_model(command)
    command.add_argument(
        "--input", type=Path, required=True, metavar="FILE", help="the rows, as for explain --input, or images' folder"
    )
    command.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="what is filled, and gone on with")
    command.add_argument(
        "--latents",
        nargs="+",
        default=["head", "neuron"],
        metavar="NAME",
        help="which units: head, neuron, residual, layer, expert, names or patterns (default: head neuron)",
    )
    command.add_argument("--count", type=int, default=8, metavar="N", help="how many rows of each unit (default: 8)")
    command.add_argument(
        "--by", choices=("max", "sum"), default="max", help="the strongest position of a row (default), or their sum"
    )
    command.add_argument(
        "--sign", choices=("positive", "negative", "both"), default="positive", help="which values (default: positive)"
    )
    command.add_argument("--activation", action="store_true", help="look for activation, not for relevance")
    command.add_argument(
        "--page", nargs="+", default=[], metavar="LATENT:UNIT", help="write pages, such as of model.layers.1.head:2"
    )
    command.add_argument("--max-new-tokens", type=int, metavar="N", help="how long an answer is made (default: 64)")
    add_many(command)
    add_asked(command)
    # many rows are not shared out by layers
    command.set_defaults(tp_plan=None)
