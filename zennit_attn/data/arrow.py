"""Arrow: the library that reads and writes columns, an extra of this package."""

from __future__ import annotations

from typing import Any

from .extras import extra


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
    for name in ("csv", "parquet"):
        extra(f"pyarrow.{name}", what, "data")
    return extra("pyarrow", what, "data")
