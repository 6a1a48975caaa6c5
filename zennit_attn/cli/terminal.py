"""What is printed: with an escape for what a terminal would obey and not show, whoever wrote it.

Names of files, models and classes, tokens, and messages of libraries are other people's texts. Pictures alone have
colours; they escape their words themselves.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from ..escapes import escape, escaped


def say(text: object) -> None:
    """Print a text as results are."""
    print(escaped(text))


def tell(text: object) -> None:
    """Print a text where errors go."""
    print(escaped(text), file=sys.stderr)


def say_json(content: Any) -> None:
    """Print what JSON has, with its own escapes."""
    text = json.dumps(content, ensure_ascii=False)
    print(re.sub(r"[^\x20-\x7e]", lambda found: found[0] if escape(found[0]) == found[0] else ascii_of(found[0]), text))


def ascii_of(letter: str) -> str:
    """Return a character as JSON has it in ASCII."""
    return json.dumps(letter)[1:-1]
