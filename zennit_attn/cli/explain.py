"""``zennit-attn explain``: a text, an answer, an image, or many of them."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..explain import Explainer, Explanation
from ..explain.loading import refused
from ..explain.parts import Text
from ..explain.units import distinct
from ..targets import Contrastive
from . import many
from .common import be_quiet, device_map_of, settings_of
from .parser import DONE, SAVED
from .terminal import say, say_json, tell


def run(args: argparse.Namespace) -> int:
    """Explain one text, answer or image, or many."""
    be_quiet()
    if args.input is not None:
        return many.run(args)
    many.check_alone(args)
    check_together(args)
    check_out(args)
    args.text = [sys.stdin.read() if text == "-" else text for text in args.text or ()] or None
    pairs = [(model, composite) for model in args.model for composite in args.composite or [None]]
    explainers = [explainer_of(model, composite, args) for model, composite in pairs]
    found = [asked(explainer, args) for explainer in explainers]
    if args.tp_plan is not None and os.environ["RANK"] != "0":
        return DONE  # all processes explain the same, and one of them says it
    for explanation in found:
        for message in explanation.warnings:
            tell(f"zennit-attn: warning: {message}")
    if args.unit is not None:
        # before something is written, or said
        for explanation in found:
            explanation.text_part().units(args.unit)
    if len(found) > 1:
        return beside(explainers, found, args)
    (explainer,), (explanation,) = explainers, found
    if args.out is not None:
        written(explanation, args)
    if args.json:
        content = {
            **settings_of(explainer, args),
            "input": None if args.text is None and args.image is None else str(args.image or args.text[0]),
            **summary(explanation),
            **relevance_of(explanation, args),
            "picture": None if args.out is None else str(args.out),
            "warnings": list(explanation.warnings),
        }
        say_json(content)
        return DONE
    value = f"{explanation.value:+.4g}"
    if explanation.rows[0].logit is not None and len(explanation.rows) == 1:
        value = f"logit {explanation.rows[0].logit:+.4g}"
    if args.contrastive:
        value += f", {explanation.value:+.4g} above the mean of the others"
    say(f"{explanation.label!r}: {value} ({explainer.composite.preset}, {explainer.device})")
    show(explanation, args)
    return DONE


def explainer_of(model: str, composite: str | None, args: argparse.Namespace) -> Explainer:
    """Return a model, where the options say that it is."""
    places = device_map_of(args)
    options = {"tp_plan": args.tp_plan, "allow_pickle": args.allow_pickle}
    return Explainer(model, None, composite, args.device, args.dtype, places, **options)


def show(explanation: Explanation, args: argparse.Namespace) -> None:
    """Print what a terminal shows of an explanation, and what was written."""
    if isinstance(explanation.parts[0], Text):
        print(explanation.picture(unit=args.unit or "token"))
    if args.out is not None:
        say(f"written: {args.out}")


def written(explanation: Explanation, args: argparse.Namespace) -> None:
    """Write an explanation to where it is to go."""
    if args.unit is not None and args.out.suffix.lower() in (".png", ".svg", ".pdf"):
        explanation.picture(unit=args.unit).save(args.out)
    else:
        explanation.save(args.out)


def beside(explainers: list[Explainer], found: list[Explanation], args: argparse.Namespace) -> int:
    """Show explanations of several models or presets side by side."""
    if args.json or (args.out is not None and args.out.suffix.lower() in (".json", ".safetensors")):
        raise InputError("got several explanations, which are a picture; expected one --model and --composite for data")
    given = args.composite or [explainers[0].composite.preset]
    names = [f"{explainer.name} {given[number % len(given)]}" for number, explainer in enumerate(explainers)]
    picture = found[0].beside(*found[1:], unit=args.unit or "word", names=names)
    print(picture)
    if args.out is not None:
        picture.save(args.out)
        say(f"written: {args.out}")
    return DONE


def asked(explainer: Explainer, args: argparse.Namespace) -> Explanation:
    """Explain what the options ask for.

    Raises
    ------
    InputError
        If they do not go together, or do not fit the model.
    """
    texts = args.text or []
    messages = messages_of(args)
    if messages is not None or args.answer is not None:
        prompt = messages if messages is not None else args.audio or (texts[0] if len(texts) == 1 else None)
        if prompt is None:
            raise InputError(f"got {len(texts)} texts for an answer, expected one --text, or --user or --chat")
        if args.target is not None:
            raise InputError("got --target for an answer, expected none: all of its tokens are explained")
        names = distinct(path.name for path in args.document or ())
        documents = dict(zip(names, map(text_in, args.document or ()), strict=True))
        return explainer.answer(
            prompt,
            args.answer or None,
            documents=documents,
            image=args.image,
            max_new_tokens=args.max_new_tokens,
            target=Contrastive if args.contrastive else None,
        )
    given: list[Any] = texts
    if args.image is not None:
        reads = explainer.task.name == "image and text to text"
        given = [args.image, *(texts if reads else [texts] if texts else [])]
    elif args.audio is not None:
        given = [args.audio]
    elif args.series is not None:
        given = [series_in(args.series)]
    return explainer(*given, target=args.target, contrastive=args.contrastive)


def text_in(path: Path) -> str:
    """Return the text in a file.

    Raises
    ------
    InputError
        If it has none.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read --document {str(path)!r} ({error}); expected a text in UTF-8") from error


def series_in(path: Path) -> Any:
    """Return the series in a file: .npy, or a table of numbers with a row for each step.

    Raises
    ------
    InputError
        If it has none.
    """
    wanted = "expected .npy, or numbers with commas between, a row for each step"
    with refused(f"cannot read --series {str(path)!r}", wanted):
        if path.suffix.lower() == ".npy":
            return np.load(path, allow_pickle=False)
        return np.loadtxt(path, delimiter=",", ndmin=2)


def messages_of(args: argparse.Namespace) -> list[dict[str, Any]] | None:
    """Return the messages of a chat, None if there is none.

    Raises
    ------
    InputError
        If the file has no messages.
    """
    if args.chat is not None:
        try:
            content = json.loads(args.chat.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"cannot read --chat {str(args.chat)!r} ({error}); expected JSON in UTF-8") from error
        if not isinstance(content, list):
            raise InputError(f"got --chat with a {type(content).__name__}, expected a list of messages")
        return content
    if args.user is None:
        return None
    system = [] if args.system is None else [{"role": "system", "content": args.system}]
    return [*system, {"role": "user", "content": args.user}]


def relevance_of(explanation: Explanation, args: argparse.Namespace) -> dict[str, Any]:
    """Return tokens and relevance for JSON."""
    if args.unit is not None:
        return {"unit": args.unit, "relevance": explanation.by(args.unit)}
    is_text = isinstance(explanation.parts[0], Text)
    tokens = list(explanation.tokens) if is_text else None
    return {"tokens": tokens, "relevance": explanation.relevance.tolist()}


def check_together(args: argparse.Namespace) -> None:
    """Raise InputError if something is given that would not be used."""
    given = [name for name in ("text", "image", "audio", "series", "user", "chat") if getattr(args, name) is not None]
    if len(given) > 1 and (len(given) > 2 or "image" not in given or {"audio", "series"} & set(given)):
        raise InputError(
            f"got {' and '.join(f'--{name}' for name in given)}, expected one of them, or --image with a text"
        )
    if args.system is not None and args.user is None:
        raise InputError("got --system without --user, expected what the user says")
    answers = args.answer is not None or {"user", "chat"} & set(given)
    for name in ("document", "max_new_tokens"):
        if getattr(args, name) is not None and not answers:
            raise InputError(f"got --{name.replace('_', '-')} without an answer, expected --user, --chat or --answer")


def check_out(args: argparse.Namespace) -> None:
    """Raise InputError if there is nowhere to write to, before a model is loaded."""
    if args.out is None:
        if args.json or (args.image is None and args.audio is None and args.series is None):
            return  # a terminal shows texts, but no images
        raise InputError("got neither --out nor --json, expected a heatmap to write, such as --out heatmap.html")
    check_place(args.out)


def check_place(out: Path) -> None:
    """Raise InputError if a file cannot be written, or its name has no known end."""
    if out.suffix.lower() not in SAVED:
        raise InputError(f"got --out {str(out)!r}, expected a name that ends with {', '.join(SAVED)}")
    if not out.parent.is_dir():
        raise InputError(f"got --out {str(out)!r}, but there is no folder {str(out.parent)!r}; make it first")


def summary(explanation: Explanation) -> dict[str, Any]:
    """Return what is explained, for JSON."""
    return {
        "target": {"index": explanation.rows[0].index, "label": explanation.label},
        "logit": explanation.rows[0].logit,
        "explained": explanation.value,
    }
