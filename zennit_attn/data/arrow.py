"""Arrow: the library that reads and writes columns, an extra of this package."""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import InputError


def arrow(what: str) -> Any:
    """Return pyarrow, with its readers.

    Parameters
    ----------
    what : str
        What takes it.

    Raises
    ------
    InputError
        If it is not installed.
    """
    try:
        for name in ("csv", "parquet"):
            importlib.import_module(f"pyarrow.{name}")
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise InputError(
            f"{what} takes pyarrow, which is not installed ({error}): pip install 'zennit-attn[data]'"
        ) from error
