"""Generated English sentences on subject-verb agreement, and the small language model trained on them.

The verb of a sentence agrees with its subject, not with the nouns in between: "the keys to the old cabinet are lost ."
A noun between subject and verb whose number differs from the subject's is an *attractor*.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL_PATH = Path(__file__).resolve().parent / "models" / "agreement"
MAX_PHRASES = 3
ATTRACTOR_RATE = 0.5
# a determiner before every noun would let the model read the number of a noun at its determiner's position
DETERMINER_RATE = 0.7
HELD_OUT_SHARE = 10

SPECIAL_TOKENS = ["<pad>", "<s>", "</s>", "<unk>"]


def _pairs(text):
    return [tuple(pair.split("/")) for pair in text.split()]


NOUNS = _pairs("""
    key/keys cabinet/cabinets door/doors window/windows table/tables chair/chairs lamp/lamps book/books
    letter/letters picture/pictures box/boxes bottle/bottles glass/glasses cup/cups plate/plates knife/knives
    clock/clocks coat/coats shoe/shoes basket/baskets dog/dogs cat/cats horse/horses bird/birds mouse/mice cow/cows
    author/authors teacher/teachers doctor/doctors farmer/farmers pilot/pilots student/students child/children
    woman/women man/men friend/friends neighbour/neighbours guard/guards house/houses garden/gardens tree/trees
    flower/flowers bridge/bridges car/cars boat/boats train/trains road/roads village/villages hill/hills tower/towers
""")
# None of these tells singular from plural, so that only the noun does.
DETERMINERS = "the my your his her our their".split()
PREPOSITIONS = """
    to near behind of beside with by above below under opposite before beyond from around without
""".split()
ADJECTIVES = """
    old new small large red green blue white black heavy clean dirty quiet strange famous young tall cheap pretty
    broken empty dark bright simple
""".split()
PREDICATES = ADJECTIVES + "lost gone safe ready missing late important dangerous".split()

# Pairs of verb forms (singular, plural), each group with the words that may follow it.
VERB_GROUPS = [
    (_pairs("is/are was/were"), PREDICATES),
    (_pairs("seems/seem looks/look remains/remain appears/appear"), PREDICATES),
    (_pairs("has/have"), "vanished arrived changed moved fallen disappeared".split()),
    (_pairs("needs/need deserves/deserve gets/get"), "help attention care protection praise".split()),
    (_pairs("waits/wait falls/fall returns/return stands/stand"), "again often here there today alone".split()),
]


def vocabulary():
    """List all tokens, the special ones first.

    Returns
    -------
    list of str
        The tokens without repetition, each at its index in the model's vocabulary.
    """
    words = [*SPECIAL_TOKENS, ".", *DETERMINERS, *PREPOSITIONS, *PREDICATES]
    words += [form for pair in NOUNS for form in pair]
    for verbs, complements in VERB_GROUPS:
        words += [form for pair in verbs for form in pair] + complements
    return list(dict.fromkeys(words))


@dataclass(frozen=True)
class Sentence:
    """A sentence together with what matters for the agreement of its verb.

    Attributes
    ----------
    words : list of str
        The whole sentence, with the final full stop.
    subject : int
        Index of the subject noun in `words`.
    verb : int
        Index of the verb in `words`.
    correct : str
        The verb, in the number of the subject.
    wrong : str
        The same verb in the other number.
    attractors : int
        How many nouns between subject and verb differ in number from the subject.
    """

    words: list[str]
    subject: int
    verb: int
    correct: str
    wrong: str
    attractors: int

    @property
    def text(self):
        """The whole sentence as a string."""
        return " ".join(self.words)

    @property
    def prefix(self):
        """The words before the verb as a string."""
        return " ".join(self.words[: self.verb])


def _noun_phrase(rng, number):
    determiner = "the" if rng.random() < 0.6 else rng.choice(DETERMINERS)
    adjectives = rng.sample(ADJECTIVES, rng.choice([0, 0, 0, 1, 1, 2]))
    lead = [determiner] if rng.random() >= 1 - DETERMINER_RATE else []
    return [*lead, *adjectives, rng.choice(NOUNS)[number]]


def sentence(rng, attractors=None):
    """Draw a sentence.

    Parameters
    ----------
    rng : random.Random
        Source of all random choices.
    attractors : int, optional
        Number of prepositional phrases between subject and verb, each with an attractor. By default both the number
        of phrases (0 to 3) and whether the noun of each is an attractor (most are) are random.

    Returns
    -------
    Sentence
        The sentence and its annotation.
    """
    number = rng.randrange(2)
    if attractors is None:
        differs = [rng.random() < ATTRACTOR_RATE for _ in range(rng.randint(0, MAX_PHRASES))]
    else:
        differs = [True] * attractors
    words = _noun_phrase(rng, number)
    subject = len(words) - 1
    for other in differs:
        words += [rng.choice(PREPOSITIONS), *_noun_phrase(rng, 1 - number if other else number)]
    verbs, complements = rng.choice(VERB_GROUPS)
    forms = rng.choice(verbs)
    verb = len(words)
    words += [forms[number], rng.choice(complements), "."]
    return Sentence(words, subject, verb, forms[number], forms[1 - number], sum(differs))


def is_held_out(prefix):
    """Tell whether sentences with this prefix are kept from training.

    The words of a held-out prefix may begin the longer prefix of a training sentence, but no verb follows them there.

    Parameters
    ----------
    prefix : str
        All words before the verb, separated by single spaces.

    Returns
    -------
    bool
        True for about one prefix in `HELD_OUT_SHARE`, always the same ones.
    """
    # Python's own hash of a string changes from process to process.
    digest = hashlib.sha256(prefix.encode()).digest()
    # 7 is the remainder of "the keys to the old cabinet", so that this example is a held-out one.
    return int.from_bytes(digest[:8], "big") % HELD_OUT_SHARE == 7


def sentences(rng, count, held_out=False, attractors=None):
    """Draw sentences from one side of the split.

    Parameters
    ----------
    rng : random.Random
        Source of all random choices.
    count : int
        Number of sentences.
    held_out : bool, optional
        Whether to draw held-out sentences instead of training sentences.
    attractors : int, optional
        As for `sentence`.

    Returns
    -------
    list of Sentence
        The sentences, in the order in which they were drawn.
    """
    drawn = []
    while len(drawn) < count:
        candidate = sentence(rng, attractors)
        if is_held_out(candidate.prefix) == held_out:
            drawn.append(candidate)
    return drawn


def load_model(path=None):
    """Load the language model and its tokenizer.

    Parameters
    ----------
    path : str or pathlib.Path, optional
        Folder written by ``train_agreement.py``; by default the one next to this file.

    Returns
    -------
    model : transformers.LlamaForCausalLM
        The model in evaluation mode.
    tokenizer : transformers.PreTrainedTokenizerFast
        The word-level tokenizer, which prepends ``<s>``.
    """
    path = MODEL_PATH if path is None else path
    return AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
