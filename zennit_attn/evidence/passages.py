"""Passages: texts of simple facts of one kind, one of which answers a question, made at random.

Which sentence the answer is read from is known, since no other says it, and nobody could guess it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

NAMES = "Clara Tom Anna Peter Mary John Lucy Paul Emma Jack Rosa Hugo Alice Simon Nora Oscar".split()
#: Kinds of facts: who or what they are about, what is said of each, the fact, the question, and how an answer begins.
KINDS: dict[str, tuple[list[str], list[str], str, str, str]] = {
    "pet": (
        NAMES,
        "goat dog cat horse rabbit parrot duck hamster turtle pig cow sheep".split(),
        "The pet of {who} is a {what}.",
        "What is the pet of {who}?",
        "The pet of {who} is a",
    ),
    "city": (
        NAMES,
        "Paris London Rome Berlin Madrid Vienna Tokyo Lisbon Cairo Moscow Dublin Athens".split(),
        "The home town of {who} is {what}.",
        "What is the home town of {who}?",
        "The home town of {who} is",
    ),
    "colour": (
        "kitchen bathroom garage office library cellar attic garden hall bedroom stable barn".split(),
        "red blue green yellow white black brown purple orange pink grey gold".split(),
        "The door of the {who} is {what}.",
        "What colour is the door of the {who}?",
        "The door of the {who} is",
    ),
    "job": (
        NAMES,
        "teacher doctor farmer lawyer baker painter nurse pilot singer writer soldier judge".split(),
        "{who} works as a {what}.",
        "What does {who} do for a living?",
        "{who} works as a",
    ),
    "drink": (
        NAMES,
        "coffee tea water milk juice wine beer lemonade cocoa soup cider soda".split(),
        "In the morning {who} drinks {what}.",
        "What does {who} drink in the morning?",
        "In the morning {who} drinks",
    ),
    "month": (
        "market concert meeting lecture race party dinner play match parade auction wedding".split(),
        "January February March April May June July August September October November December".split(),
        "The {who} takes place in {what}.",
        "In which month does the {who} take place?",
        "The {who} takes place in",
    ),
}
FEWEST, MOST = 4, 12


@dataclass(frozen=True)
class Passage:
    """Sentences, a question, and where its answer is.

    Attributes
    ----------
    sentences : list of str
        The facts.
    question : str
        The question, and how its answer begins.
    answer : str
        The word that comes next.
    truth : int
        Which sentence says it.
    kind : str
        Kind of the facts, one of :data:`KINDS`.
    """

    sentences: list[str]
    question: str
    answer: str
    truth: int
    kind: str

    def row(self) -> dict[str, Any]:
        """Return it as a row of a data set."""
        return dict(vars(self))


def passages(count: int, seed: int = 0) -> Iterator[Passage]:
    """Yield passages of 4 to 12 sentences; kinds, lengths and places of the answer are balanced.

    Parameters
    ----------
    count : int
        How many.
    seed : int, optional
        Seed of what is drawn.

    Examples
    --------
    >>> from zennit_attn.evidence.passages import passages
    >>> passage = next(passages(1))
    >>> passage.answer in passage.sentences[passage.truth]
    True
    """
    generator = random.Random(seed)
    kinds = list(KINDS)
    places: dict[int, list[int]] = {}
    for number in range(count):
        kind = kinds[number % len(kinds)]
        size = FEWEST + number // len(kinds) % (MOST - FEWEST + 1)
        # the place of the answer goes through all sentences, in another order each time
        places[size] = places.get(size) or generator.sample(range(size), size)
        truth = places[size].pop()
        subjects, values, fact, question, beginning = KINDS[kind]
        who, what = generator.sample(subjects, size), generator.sample(values, size)
        asked = f"Question: {question} Answer: {beginning}".format(who=who[truth])
        sentences = [fact.format(who=one, what=other) for one, other in zip(who, what, strict=True)]
        yield Passage(sentences, asked, what[truth], truth, kind)
