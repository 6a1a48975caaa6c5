"""What commands have in common: loading says nothing, and results tell what they depend on."""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..composites.configuration import made_with, to_toml
from ..composites.transformer import TransformerComposite
from ..errors import InputError
from ..explain import Explainer


def be_quiet() -> None:
    """Let transformers say nothing: what loading has to say is in the errors."""
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()


def content_of(composite: TransformerComposite) -> dict[str, Any]:
    """Return a composite as its file has it."""
    content = tomllib.loads(to_toml(composite))
    del content["made_with"]
    return content


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


def device_map_of(args: argparse.Namespace) -> Any:
    """Return the device map of the options, None if there is none.

    Raises
    ------
    InputError
        If its file has none, or a dtype is given with it.
    """
    places = args.device_map
    if places is not None and places != "auto":
        try:
            places = json.loads(Path(places).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"cannot read --device-map {places!r} ({error}); expected auto, or JSON") from error
    if (places is not None or args.tp_plan is not None) and args.dtype is not None:
        raise InputError("got --dtype with --device-map or --tp-plan, which keep the dtype of the file; expected none")
    return places
