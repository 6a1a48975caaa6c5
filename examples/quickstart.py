"""Explain what a language model and a vision transformer decided, print it, and draw it.

It explains the small models that come with the examples: which words of an English sentence decide the number of its
verb, and which parts of a scan make it a certain digit. For other models and inputs there is ``zennit-attn explain``.
"""

import argparse
import os
import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import agreement
import figures
import numpy as np
import torch
from transformers.utils.logging import disable_progress_bar

from zennit_attn import (
    AttnLRPComposite,
    CPLRPComposite,
    GammaViTComposite,
    InputXGradient,
    input_x_gradient,
    targets,
)
from zennit_attn.adapters import explained
from zennit_attn.heatmap.figure import Paint, amounts
from zennit_attn.heatmap.ink import BLACK, ink_on

METHODS = {"AttnLRP": AttnLRPComposite(), "CP-LRP": CPLRPComposite(), "Input x Gradient": None}
DTYPES = ("float32", "float64", "bfloat16", "float16")
# one sentence by hand, the others as they are drawn: none is chosen by what its explanation looks like
SEED, COMPARED = 0, 1
SENTENCE = agreement.Sentence("the keys to the old cabinet are lost .".split(), 1, 6, "are", "is", 1)
FIRST_SCANS = 4
# ink, from 0 to 1, from which on a dot of a scan counts as inked
INKED = 0.25


@dataclass(frozen=True)
class Explanation:
    """What is explained, and the relevance of each part of the input.

    Attributes
    ----------
    value : float
        The explained logit, or difference of logits.
    relevance : numpy.ndarray
        Relevance, of the shape of the tokens or of the pixels.
    """

    value: float
    relevance: np.ndarray

    @property
    def conserved(self):
        """How much of the explained value the relevance adds up to, in per cent."""
        # adding zero makes a negative zero positive
        return f"{round(100 * self.relevance.sum() / self.value) + 0.0:.0f} %" if self.value else "of zero"


def fail(message):
    """End the program with a message that says what to do."""
    raise SystemExit(f"{Path(sys.argv[0]).name}: error: {message}")


def explain(model, composite, batch, target):
    """Explain a target.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    composite : zennit.core.Composite or None
        Rules, in the relevance form; None for the plain gradient.
    batch : torch.Tensor or mapping
        Input of one sample.
    target : zennit_attn.targets.Target
        What is explained.

    Returns
    -------
    Explanation
        The relevance, and what it explains.
    """
    rules = None if composite is None else input_x_gradient(composite)
    with InputXGradient(model, rules) as attributor:
        output, relevance = attributor(batch, target)
    value = target(explained(output).detach()).double().sum().item()
    return Explanation(value, relevance[0].double().cpu().numpy())


def what_keeps_the_rest(composite):
    """Say in a sentence why relevance adds up to less or more than what is explained."""
    if composite is None:
        return "plain Input x Gradient is not made to add up to anything"
    if composite.preset == "attnlrp":
        return "by design the attention's softmax keeps a share, of either sign; so do additive constants, as biases"
    return "exact apart from additive constants (biases, position embeddings, class token), which keep the rest"


def number(value, scale):
    """Write a relevance with its sign, and at least two digits of the largest one that it stands beside."""
    return amounts(np.array([value]), scale)[0]


def colored(text, value, scale):
    """Put a text on the colour of a relevance, if it goes to a terminal."""
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        return text
    red, green, blue = Paint()(np.float64(value), -scale, scale).tolist()
    ink = 0 if ink_on((red, green, blue)) == BLACK else 231
    return f"\x1b[48;2;{red};{green};{blue}m\x1b[38;5;{ink}m{text}\x1b[0m"


def print_tokens(tokens, found):
    """Print a table: a row for each token, a column for each method.

    Parameters
    ----------
    tokens : list of str
        The tokens.
    found : dict of str to Explanation
        The explanation by each method.
    """
    width = max(map(len, (*tokens, "conserved")))
    scales = [np.abs(item.relevance).max(initial=0) for item in found.values()]
    print("  " + " ".ljust(width) + "".join(name.rjust(18) for name in found))
    for index, token in enumerate(tokens):
        cells = ""
        for item, scale in zip(found.values(), scales, strict=True):
            value = item.relevance[index]
            cells += " " * 8 + colored(number(value, scale).rjust(10), value, scale)
        print(f"  {token.ljust(width)}{cells}")
    sums = [number(item.relevance.sum(), scale) for item, scale in zip(found.values(), scales, strict=True)]
    print("  " + "sum".ljust(width) + "".join(text.rjust(18) for text in sums))
    print("  " + "conserved".ljust(width) + "".join(item.conserved.rjust(18) for item in found.values()) + "\n")


def words_of(tokenizer, ids):
    """Return the text of each token, without the spaces around it."""
    texts = [tokenizer.decode([token]) for token in ids.tolist()]
    return [text.strip() or repr(text)[1:-1] for text in texts]


def size_of(model):
    """Describe a model in a few words."""
    count = sum(parameter.numel() for parameter in model.parameters())
    return f"{type(model).__name__} with {count:,} parameters"


def explain_sentence(model, tokenizer, item):
    """Explain the verb of a sentence by each method, and print it.

    Parameters
    ----------
    model, tokenizer
        The language model.
    item : agreement.Sentence
        The sentence.

    Returns
    -------
    list of figures.Words
        A row for each method.
    """
    batch = tokenizer(item.prefix, return_tensors="pt").to(model.device)
    target = targets.Labels(tokenizer.convert_tokens_to_ids([item.correct, item.wrong]), [1, -1])
    found = {name: explain(model, composite, batch, target) for name, composite in METHODS.items()}
    tokens = words_of(tokenizer, batch["input_ids"][0])
    # the tokenizer may put tokens of its own before the words
    subject = item.subject + len(tokens) - item.verb
    value = f"{item.correct} - {item.wrong} = {found['AttnLRP'].value:+.2f}"
    print(f'\n"{item.prefix}" -> {value}, attractors: {item.attractors}')
    print_tokens(tokens, found)
    ranks = {name: 1 + int((one.relevance > one.relevance[subject]).sum()) for name, one in found.items()}
    print(f"  rank of the subject {tokens[subject]!r}: " + ", ".join(f"{ranks[name]} ({name})" for name in ranks))
    return [
        figures.Words(name, f"{value},  conserved: {one.conserved}", tokens, one.relevance, subject)
        for name, one in found.items()
    ]


def explain_sentences(args):
    """Explain the verbs of sentences with more and more attractors.

    Parameters
    ----------
    args : argparse.Namespace
        Device and dtype.

    Returns
    -------
    list of figures.Section
        The sentences by one method, and one sentence by all methods.
    """
    model, tokenizer = agreement.load_model()
    place(model, args)
    print(f"Which words decide the verb? {size_of(model)}; logit of the right verb minus that of the wrong one.")
    rng = random.Random(SEED)
    drawn = [agreement.sentences(rng, 1, held_out=True, attractors=count)[0] for count in (0, 2, 3)]
    items = [drawn[0], SENTENCE, *drawn[1:]]
    rows = [explain_sentence(model, tokenizer, item) for item in items]
    print("\nWhat is conserved: the sum of the relevance, in per cent of the explained value.")
    for name, composite in METHODS.items():
        print(f"  {name}: {what_keeps_the_rest(composite)}.")
    by_attractors = [
        replace(row[0], title=f"{item.attractors} attractor{'s' * (item.attractors != 1)}")
        for item, row in zip(items, rows, strict=True)
    ]
    compared = f'"{SENTENCE.prefix}" -> {SENTENCE.correct}, not {SENTENCE.wrong}.'
    return [
        figures.Section("A language model: why this verb?", caption_of(by_attractors), by_attractors),
        figures.Section("Three methods on one sentence", compared, rows[COMPARED]),
    ]


def caption_of(rows):
    """Say what the rows of the sentences show, and how often the subject comes first."""
    first = sum(row.relevance.argmax() == row.outlined for row in rows)
    of_nouns = sum(first_of_nouns(row) for row in rows)
    return (
        "AttnLRP relevance of each word, for the right verb's logit minus the wrong one's. Attractors are nouns of "
        "the other number between subject and verb. The subject is outlined: of all nouns it has the largest relevance "
        f"in {of_nouns} of {len(rows)} sentences, of all tokens in {first}. None of the sentences was in the training."
    )


def first_of_nouns(row):
    """Tell whether the outlined noun has the largest relevance of all nouns in a row."""
    nouns = {form for pair in agreement.NOUNS for form in pair}
    others = [value for token, value in zip(row.tokens, row.relevance, strict=True) if token in nouns]
    return row.relevance[row.outlined] == max(others)


def explain_digits(args):
    """Explain how scans are read: the first ones of the test set, and the least certain one for two digits.

    Parameters
    ----------
    args : argparse.Namespace
        Device and dtype.

    Returns
    -------
    list of figures.Section
        One section, or none without scikit-learn.
    """
    try:
        import digits
    except ModuleNotFoundError as error:
        print(f"\nNo digits, because {error.name} is missing: pip install scikit-learn, or zennit-attn[examples]")
        return []
    model = place(digits.load_model(), args)
    _, test = digits.load_data()
    pixels = digits.preprocess(test.images).to(args.device, next(model.parameters()).dtype)
    with torch.no_grad():
        shares = model(pixels).float().softmax(-1).cpu()
    # the reading of the first scans, and two readings of the scan that the model is least sure about
    unsure = int(shares.max(-1).values.argmin())
    chosen = [(index, int(shares[index].argmax())) for index in range(FIRST_SCANS)]
    chosen += [(unsure, label) for label in shares[unsure].topk(2).indices.tolist()]
    print(f"\nWhich parts of a scan make it a digit? {size_of(model)}, Gamma rules.")
    content = [
        digit_panel(model, pixels[[index]], test.images[index] / digits.MAX_VALUE, label, shares[index, label].item())
        for index, label in chosen
    ]
    print(f"  Gamma rules: {what_keeps_the_rest(GammaViTComposite())}.")
    caption = (
        f"The first {FIRST_SCANS} scans of the test set, then the least certain one as each of its two likeliest digits"
        ", with its probability. Right: relevance of the pixels (GammaViTComposite), added up over the 8 x 8 "
        "dots of the scan; a line runs around the inked dots."
    )
    return [figures.Section("A vision transformer: why this digit?", caption, content)]


def digit_panel(model, pixels, scan, label, share):
    """Explain a scan for one digit, and print what came out.

    Parameters
    ----------
    model : torchvision.models.VisionTransformer
        The vision transformer.
    pixels : torch.Tensor
        Its input, of shape (1, 3, 32, 32).
    scan : torch.Tensor
        Ink from 0 to 1, of shape (8, 8).
    label : int
        The digit.
    share : float
        The model's probability of it.

    Returns
    -------
    figures.Panel
        The scan and the relevance of its dots.
    """
    found = explain(model, GammaViTComposite(), pixels, targets.Label(label))
    dots, inked = cells(found.relevance, scan.shape[0]), (scan > INKED).numpy()
    gain = dots.clip(min=0)
    print(
        f"  read as {label} ({share:.0%}): logit {found.value:.2f}, conserved {found.conserved}; ink covers "
        f"{inked.mean():.0%} of the scan and has {gain[inked].sum() / gain.sum():.0%} of the positive relevance"
    )
    note = f"logit {found.value:.2f},  conserved: {found.conserved}"
    return figures.Panel(f"{label}  ({share:.0%})", note, 1 - scan.numpy(), dots, inked)


def cells(relevance, count):
    """Add up the relevance of pixels, of shape (channels, height, width), over cells of at most a count a side."""
    summed = torch.from_numpy(relevance).sum(0)
    sides = [min(count, side) for side in summed.shape]
    mean = torch.nn.functional.adaptive_avg_pool2d(summed[None], sides)[0]
    return (mean * summed.numel() / mean.numel()).numpy()


def place(model, args):
    """Move a model to the chosen device and dtype."""
    return model.to(args.device, args.dtype) if args.dtype else model.to(args.device)


def parsed(arguments=None):
    """Read the command line.

    Parameters
    ----------
    arguments : list of str, optional
        By default those of the program.

    Returns
    -------
    argparse.Namespace
        The options, with torch's device and dtype.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="default: the model's own")
    parser.add_argument("--out", type=Path, default=Path("quickstart.png"), help="PNG to write (default: %(default)s)")
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here; use --device cpu")
    args.dtype = getattr(torch, args.dtype) if args.dtype else None
    return args


def main():
    """Explain, print, and draw."""
    args = parsed()
    disable_progress_bar()
    sections = explain_sentences(args) + explain_digits(args)
    scale = "The colours are symmetric about zero; max is the largest |relevance| of each row or picture."
    page = figures.draw_page("zennit-attn: what decided?", scale, sections)
    try:
        page.savefig(args.out, dpi=200, format="png")
    except OSError as error:
        fail(f"cannot write {str(args.out)!r} ({error}); choose another --out")
    print(f"\nThe same as a picture: {args.out}")


if __name__ == "__main__":
    main()
