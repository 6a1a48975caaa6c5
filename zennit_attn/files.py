"""Files: what may be read, and what is written as a whole or not at all.

This module does not know what a file means.
"""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .errors import InputError

#: What is at a path that is no file.
KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def check_file(path: Path) -> None:
    """Raise InputError if there is no file at a path: pipes, sockets and devices would be waited for, or never end."""
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    # a name that no file can have, as one with a null, is a ValueError
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {str(path)!r} ({error}); expected a file") from error
    if kind != stat.S_IFREG:
        raise InputError(f"got {str(path)!r}, which is {KINDS.get(kind, 'no file')}; expected a file")


def encoded(text: str) -> bytes:
    """Return a text in UTF-8, halves of characters as escapes: no file has those, but names and JSON may."""
    return text.encode("utf-8", "backslashreplace")


def json_lines(rows: Iterable[Any]) -> bytes:
    """Return rows as JSON, a line each."""
    return encoded("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def put(path: Path, content: bytes | memoryview) -> None:
    """Write a file, which is there as a whole or not at all, whatever happens: what was there before stays until then.

    Parameters
    ----------
    path : pathlib.Path
        The file. Where it is a link, what it leads to is written.
    content : bytes
        What it has.

    Raises
    ------
    OSError
        If there is no room for it, or it must not be written there.
    """
    path = path.resolve()
    # of this thread alone, and no longer than a name may be
    draft = path.with_name(f".{path.name[:32]}.{os.getpid()}.{threading.get_ident()}")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
