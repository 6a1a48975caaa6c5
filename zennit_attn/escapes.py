"""Escapes: what stands for a character that cannot be seen, could reorder text, or is a terminal's command."""

from __future__ import annotations

import unicodedata

# joiners that shape the letters around them; other format characters could reorder or hide text
JOINERS = "\u200c\u200d"


def escape(letter: str) -> str:
    """Return a letter, or its escape sequence if it is a control, could reorder text, or is no character."""
    hidden = unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") or ord(letter) & 0xFFFE == 0xFFFE
    return letter.encode("unicode_escape").decode() if hidden and letter not in JOINERS else letter


def escaped(text: object) -> str:
    r"""Return a text with an escape for each such character, but for tabs and ends of lines.

    Examples
    --------
    >>> from zennit_attn.escapes import escaped
    >>> escaped("cat\x1b]0;title\x07.png")
    'cat\\x1b]0;title\\x07.png'
    """
    return "".join(letter if letter in "\n\t" else escape(letter) for letter in str(text))
