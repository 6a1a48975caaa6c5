"""What commands have in common: loading says nothing, and results tell what they depend on."""

from __future__ import annotations

import sys
import tomllib
from typing import Any

from transformers.utils import logging

from ..composites.configuration import to_toml
from ..composites.transformer import TransformerComposite


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
