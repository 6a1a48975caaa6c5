"""Extras: libraries that a part of this room takes, and that are installed only where they are asked for."""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import InputError


def extra(module: str, what: str, name: str) -> Any:
    """Return a module of an extra.

    Parameters
    ----------
    module : str
        The module.
    what : str
        What takes it.
    name : str
        Name of the extra.

    Raises
    ------
    InputError
        If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"{what} takes {module.partition('.')[0]}, which is not installed ({error}): "
            f"pip install 'zennit-attn[{name}]'"
        ) from error
