"""Passages of English that packages ship: scikit-learn's descriptions of data sets, and the reference of Python.

``python examples/prose.py --out prose.jsonl`` writes a passage a line, and ``--pairs`` pairs of neighbouring sentences.
"""

import argparse
import random
import re
from pathlib import Path
from pydoc_data.topics import topics

import sklearn.datasets

from zennit_attn.files import json_lines, put

#: A paragraph with none of these is prose, not a table, code or a list.
MARKUP = re.compile(r"[|<=>\\{}\[\]@#~^]|::|\.\.|http|--|\d \d|\w_|_\w")
#: Between two sentences.
SENTENCES = re.compile(r"(?<=[.!?]) (?=[A-Z])")
FEWEST = 30


def paragraphs():
    """Yield paragraphs of prose, without the marks of emphasis and code.

    Yields
    ------
    str
        At least thirty words, beginning with a sentence.
    """
    folder = Path(sklearn.datasets.__file__).parent / "descr"
    files = [file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.rst"))]
    for text in [*files, *(topics[name] for name in sorted(topics))]:
        for paragraph in re.split(r"\n\s*\n", text):
            words = re.sub(r"[`*\"“”]", "", " ".join(paragraph.split())).removeprefix("- ")
            if len(words.split()) >= FEWEST and words[0].isupper() and words[-1] == "." and not MARKUP.search(words):
                yield words


def sentences(paragraph):
    """Return the sentences of a paragraph.

    Parameters
    ----------
    paragraph : str
        The paragraph.

    Returns
    -------
    list of str
        Those of at least six words.
    """
    found = SENTENCES.split(paragraph)
    return [sentence for sentence in found if len(sentence.split()) >= 6]


def pieces(paragraph):
    """Yield pieces of a paragraph: as many sentences as have thirty words.

    Yields
    ------
    str
        A piece; what is left at the end is none.
    """
    piece = []
    for sentence in SENTENCES.split(paragraph):
        piece += sentence.split()
        if len(piece) >= FEWEST:
            yield " ".join(piece)
            piece = []


def passages(count, seed=0):
    """Return passages, from all over.

    Parameters
    ----------
    count : int
        How many.
    seed : int, optional
        Seed of the choice.

    Returns
    -------
    list of dict
        ``{"text": ...}``.
    """
    return [{"text": text} for text in random.Random(seed).sample(texts(), count)]


def others(than, seed=0):
    """Return all passages that are none of those of :func:`passages`.

    Parameters
    ----------
    than : int
        How many those are.
    seed : int, optional
        Their seed.

    Returns
    -------
    list of dict
        ``{"text": ...}``.
    """
    chosen = {row["text"] for row in passages(than, seed)}
    return [{"text": text} for text in texts() if text not in chosen]


def texts():
    """Return the texts of all passages."""
    return list(dict.fromkeys(piece for paragraph in paragraphs() for piece in pieces(paragraph)))


def pairs(count, seed=0):
    """Return pairs of neighbouring sentences.

    Parameters
    ----------
    count : int
        How many.
    seed : int, optional
        Seed of the choice.

    Returns
    -------
    list of dict
        ``{"text": ..., "second": ...}``.
    """
    found = [
        {"text": one, "second": other}
        for paragraph in dict.fromkeys(paragraphs())
        for one, other in zip(sentences(paragraph), sentences(paragraph)[1:], strict=False)
        if len(one.split()) <= 30 and len(other.split()) <= 30
    ]
    return random.Random(seed).sample(found, count)


def main(arguments=None):
    """Write passages or pairs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--count", type=int, default=200, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice (default: %(default)s)")
    parser.add_argument("--pairs", action="store_true", help="pairs of sentences instead of passages")
    parser.add_argument("--out", type=Path, default=Path("prose.jsonl"), help="file (default: %(default)s)")
    args = parser.parse_args(arguments)
    rows = (pairs if args.pairs else passages)(args.count, args.seed)
    put(args.out, json_lines(rows))
    return rows


if __name__ == "__main__":
    main()
