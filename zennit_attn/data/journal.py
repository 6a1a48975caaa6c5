"""Journal: a file of JSON lines that is appended to, and may have been interrupted at any byte.

This module does not know what a line means.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def complete_lines(path: Path) -> list[bytes]:
    """Return the lines of a journal, of which there may be none yet, and cut off what is left of an unfinished one.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    """
    # bytes: a line may have been cut in the middle of a letter
    text = path.read_bytes() if path.exists() else b""
    complete = text[: text.rfind(b"\n") + 1]
    if complete != text:
        # not written anew, so that nothing is lost if it is interrupted
        os.truncate(path, len(complete))
    # not splitlines: a text may hold other line separators
    return complete.split(b"\n")[:-1]


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as the last line, onto the disk."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
