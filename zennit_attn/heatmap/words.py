"""Tokens: the strings of a tokenizer as readable words.

WordPiece (``##ing``), SentencePiece (``▁the``, ``<0x0A>``), byte-level BPE (``Ġthe``, bytes of an emoji spread over
several tokens) and ``</w>`` suffixes are read, and words without any of these are left alone. What a tokenizer's
normaliser removed, as case or accents, stays removed.
"""

from __future__ import annotations

import re
import unicodedata
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..escapes import escape

# a token in brackets is one of a tokenizer's own; DeepSeek's have SentencePiece's sign in a byte-level vocabulary
SPECIAL = re.compile(r"<[^<>\s]+>|\[[A-Z_]+\d*\]")
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SUFFIX, SPACE = "</w>", "▁"


def byte_alphabet() -> dict[str, int]:
    """Return the letters that byte-level BPE writes bytes with: printable ones as they are, the others from U+0100."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in kept]
    return {chr(byte): byte for byte in kept} | {chr(256 + index): byte for index, byte in enumerate(others)}


ALPHABET = byte_alphabet()
_conventions: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def clean_tokens(tokens: Sequence[Any], tokenizer: Any = None) -> list[str]:
    r"""Return the text of each token, with a space before each word.

    Parameters
    ----------
    tokens : sequence of str, or ids
        What ``tokenizer.convert_ids_to_tokens`` gives, words, or ids if there is a tokenizer.
    tokenizer : transformers.PreTrainedTokenizerBase, optional
        Its vocabulary tells the convention; by default the tokens do, which is enough unless they are very few.

    Returns
    -------
    list of str
        As many as there are tokens. Joined they are the text. A character of which several tokens have bytes is in
        the first of them, and the others are empty; bytes that are no text are written as ``<0xF0>``.

    Raises
    ------
    TypeError
        If there are ids and no tokenizer.

    Examples
    --------
    >>> from zennit_attn.heatmap.words import clean_tokens
    >>> clean_tokens(["the", "play", "##ing", "dog"])
    [' the', ' play', 'ing', ' dog']
    >>> clean_tokens(["Hi", "ĠðŁĺ", "Ģ", "Ċ"])
    ['Hi', ' 😀', '', '\n']
    """
    tokens = strings(tokens, tokenizer)
    kind = convention(tokens) if tokenizer is None else convention_of(tokenizer)
    if kind == "words":
        # some have their spaces already
        return tokens if any(token[:1].isspace() for token in tokens) else [f" {token}" for token in tokens]
    if kind == "wordpiece":
        return [token[2:] if is_continued(token) else f" {token}" for token in tokens]
    if kind == "suffix":
        bodies = [token.removesuffix(SUFFIX) for token in tokens]
        ends = [True, *(token.endswith(SUFFIX) or is_special(token) for token in tokens)]
        bodies = joined([letters(body) for body in bodies]) if is_byte_level(bodies) else bodies
        return [" " * end + body for end, body in zip(ends, bodies, strict=False)]
    return joined([letters(token) if kind == "bytes" else piece(token) for token in tokens])


def strings(tokens: Sequence[Any], tokenizer: Any) -> list[str]:
    """Return tokens as strings."""
    tokens = tokens.tolist() if hasattr(tokens, "tolist") else list(tokens)
    if all(isinstance(token, str) for token in tokens):
        return tokens
    if tokenizer is None or not all(isinstance(token, int) for token in tokens):
        other = next(token for token in tokens if not isinstance(token, str))
        raise TypeError(
            f"got a token of type {type(other).__name__}, expected str: give tokenizer.convert_ids_to_tokens(ids), or "
            "the ids of one sequence and the tokenizer."
        )
    return list(tokenizer.convert_ids_to_tokens(tokens))


def convention_of(tokenizer: Any) -> str:
    """Return how a tokenizer's tokens are written, for which its vocabulary is looked at once."""
    if tokenizer not in _conventions:
        _conventions[tokenizer] = convention(list(tokenizer.get_vocab()))
    return _conventions[tokenizer]


def convention(tokens: Sequence[str]) -> str:
    """Return how tokens are written: "sentencepiece", "bytes", "suffix", "wordpiece", or "words" for none of these."""
    plain = [token for token in tokens if not is_special(token)]
    counts = {
        "sentencepiece": sum(SPACE in token or BYTE.fullmatch(token) is not None for token in plain),
        "bytes": sum(any(letter in "ĠĊ" for letter in token) and set(token) <= ALPHABET.keys() for token in plain),
        "suffix": sum(token.endswith(SUFFIX) for token in plain),
        "wordpiece": sum(map(is_continued, plain)),
    }
    kind = max(counts, key=counts.__getitem__)
    if counts[kind]:
        return kind
    return "bytes" if is_byte_level(plain) else "words"


def is_special(token: str) -> bool:
    """Tell whether a token is one of a tokenizer's own, as ``<s>`` or ``[CLS]``."""
    return SPECIAL.fullmatch(token) is not None and not BYTE.fullmatch(token)


def is_continued(token: str) -> bool:
    """Tell whether a token continues a word in WordPiece; ``###`` is a heading."""
    return token.startswith("##") and token.strip("#") != ""


def is_byte_level(tokens: Sequence[str]) -> bool:
    """Tell whether letters beyond ASCII are bytes of UTF-8; text of Latin letters hardly ever is."""
    text = "".join(tokens)
    if text.isascii() or not set(text) <= ALPHABET.keys():
        return False
    try:
        letters(text).decode()
    except UnicodeDecodeError:
        return False
    return True


def letters(token: str) -> bytes:
    """Return the bytes of a token of byte-level BPE; added tokens are plain text."""
    return bytes(ALPHABET[letter] for letter in token) if set(token) <= ALPHABET.keys() else encoded(token)


def piece(token: str) -> bytes:
    """Return the bytes of a token of SentencePiece."""
    byte = BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else encoded(token if is_special(token) else token.replace(SPACE, " "))


def encoded(text: str) -> bytes:
    """Return the bytes of a text, also of half a character, which becomes bytes that are no text."""
    return text.encode(errors="surrogatepass")


def joined(chunks: Sequence[bytes]) -> list[str]:
    """Return the text of chunks of UTF-8, each character in the chunk where it begins."""
    owners = [index for index, chunk in enumerate(chunks) for _ in chunk]
    words, place = [""] * len(chunks), 0
    for letter in b"".join(chunks).decode(errors="surrogateescape"):
        # a byte that is no text comes as a surrogate, whose last eight bits it is
        known = unicodedata.category(letter) != "Cs"
        words[owners[place]] += letter if known else f"<0x{ord(letter) & 0xFF:02X}>"
        place += len(letter.encode(errors="surrogateescape"))
    return words


def word_starts(words: Sequence[str]) -> list[int]:
    """Return the indices of tokens that begin a word: after white space, and before and after special tokens.

    Examples
    --------
    >>> from zennit_attn.heatmap.words import word_starts
    >>> word_starts([" play", "ing", " dog"])
    [0, 2]
    """
    starts = []
    for index, word in enumerate(words):
        before = words[index - 1] if index else " "
        if word[:1].isspace() or before[-1:].isspace() or is_special(word) or is_special(before.strip()):
            starts.append(index)
    return starts


def merge(words: Sequence[str], relevance: np.ndarray[Any, Any]) -> tuple[list[str], np.ndarray[Any, Any]]:
    """Return whole words, and the sum of the relevance of their tokens.

    Parameters
    ----------
    words : sequence of str
        What :func:`clean_tokens` returns. What no space separates, as Chinese, is one word.
    relevance : numpy.ndarray
        Shape ``(..., tokens)``.

    Returns
    -------
    words : list of str
        Fewer, or as many.
    relevance : numpy.ndarray
        Shape ``(..., words)``.

    Examples
    --------
    >>> import numpy as np
    >>> from zennit_attn.heatmap.words import merge
    >>> merge([" play", "ing", " dog"], np.array([1.0, 2.0, 3.0]))
    ([' playing', ' dog'], array([3., 3.]))
    """
    starts = word_starts(words)
    ends = [*starts[1:], len(words)]
    whole = ["".join(words[start:end]) for start, end in zip(starts, ends, strict=True)]
    return whole, np.add.reduceat(relevance, starts, axis=-1)


def visible(word: str) -> str:
    r"""Return a word as it is to be drawn: without the space before it, and with an escape for what cannot be seen.

    Examples
    --------
    >>> from zennit_attn.heatmap.words import visible
    >>> [visible(word) for word in (" the", "  ", "\n", "\x1b[0m", "")]
    ['the', '··', '\\n', '\\x1b[0m', '']
    """
    body = word if word.strip(" ") == "" else word.removeprefix(" ")
    blank = len(body) - len(body.lstrip(" "))
    return "·" * blank + "".join(map(escape, body[blank:]))
