"""Measure how good the explanations of all methods are on real models and on those of the examples; write the tables.

``python examples/evaluate.py --work evaluation --out docs/evaluation.md`` takes a quarter of an hour on one processor core
for the small models, and hours for the real ones (see ``evidence.py``); it goes on where it was. KernelSHAP needs
captum (``pip install zennit-attn[evaluation]``).
"""

import argparse
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import agreement
import digits
import evidence
import shapes
import torch
from tqdm import tqdm

from zennit_attn.evaluation import (
    METHODS,
    TITLES,
    Fixed,
    Patches,
    Tokens,
    pointing_game,
    rank_correlation,
    reciprocal_rank,
    relevance_mass_accuracy,
    relevance_rank_accuracy,
    select,
)
from zennit_attn.evaluation.perturbation import areas
from zennit_attn.evaluation.sanity import exact_occlusion
from zennit_attn.evidence import Scores
from zennit_attn.evidence.tables import markdown

CHUNK = 50
STEPS = 16
SEED = 0
HEADER = """# Evaluation

How good explanations are, on real models and on the small ones of the examples. The same tables for your own model and data
are one command, which goes on where it was stopped, is shared out as `explain --input` is ([Many rows](data.md)), and writes
`table.md` and a page, `page.html`:

```shell
zennit-attn evaluate --model examples/models/agreement --study perturbation --data examples/texts.jsonl --out scores
```

| study | what it asks | rows |
|---|---|---|
| `context` | which sentence a language model read its own right answer from | its own, or `{{"sentences": [...], "question": "...", "answer": "...", "truth": 0}}` |
| `perturbation` | what is left of the explained value without what is relevant, for texts, pairs and images | as of `explain --input` |
| `randomisation` | whether relevance follows the weights, as they are shuffled from the output on | as of `explain --input` |

`--methods` takes names of `zennit_attn.evaluation.METHODS` and TOML files of composites, `--score-dtype bfloat16` halves the time of
scores, and `--help` has the rest. `zennit_attn.evidence.open_scores(folder)` has each score of each row.

This page is written by `python examples/evaluate.py --work evaluation --out docs/evaluation.md`. Each score is a mean over samples with its 95 %
confidence interval (bootstrap over samples). Bold is the best of a column, and what cannot be told from it by the
paired bootstrap of the difference. A dash says that a method does not apply.

- **ΔA** is the area between the curves of least and most relevant first (AttnLRP paper), in units of the explained
  logit: how much longer the logit lasts if what a method calls irrelevant is removed first. What is removed becomes
  what the brackets say. **MoRF** and **LeRF** are the areas themselves, most and least relevant first.
- **Pointing game**: is the largest relevance on the cause? **Mass**: share of the positive relevance that is on it.
  **Rank**: share of the K largest on it, if it has K features. **MRR**: mean of 1 / rank of the cause.
- **Occlusion** is the rank correlation with the fall of the logit when each feature alone is removed.
- **Seconds** are the median a sample, on one thread of a processor; of the small models the mean in batches of {chunk}.

"""
WHY = """## Where LRP is not first

- **ContextCite** foretells better what an answer does without some of the sentences, and puts more on the right one. It is fitted to
  that, on random halves of them, which is how LDS is measured, too. More forward passes than 32 add little. Which sentence it is,
  LRP says as well, from one backward pass.
- **Single words of pairs**: when each is removed alone, RelP agrees a little better than AttnLRP; when more and more are, it is
  behind.
- **A zero embedding**: LibraGrad cannot be told from AttnLRP on natural text, and is behind with fills that are nearer to text. On
  digits Integrated Gradients leads where patches become zero, which is its own baseline.
- **Other rules** do not mend it: ε gains nothing that can be told from chance, and γ loses. **Other targets** neither: on 60
  other passages, by hand, ΔA (mask) of the logit is 2.86 by the logit itself, 2.05 by the log-probability (difference −0.81
  [−1.63, 0.08]) and 2.24 by the logit beside the mean of all others (−0.61 [−0.97, −0.27]).
- **The first token** often has the most relevance by CP-LRP and LibraGrad, as by gradients times attention: attention rests
  there that looks at nothing. Leave it out of them; AttnLRP hardly needs that.
"""
SMALL = """## Small models

Patches are those of the model: γ in its patch embedding moves relevance only inside of a patch, and cannot show here.
"""


@dataclass(frozen=True)
class Case:
    """A model, what it is asked, and what is known about the answers.

    Attributes
    ----------
    title, text : str
        Heading, and what has to be known to read the table.
    model : torch.nn.Module
        The model.
    batch : torch.Tensor or dict
        All samples.
    target : zennit_attn.evaluation.Fixed
        What is explained in each of them.
    features : dict of str to Tokens or Patches
        What is removed, by the name of what it becomes; occlusion takes the first.
    truth : torch.Tensor, optional
        Where relevance should be, of the shape of the tokens or the pixels.
    scores : dict of str to callable, optional
        Scores against the truth, of :mod:`zennit_attn.evaluation`.
    groups : dict of str to torch.Tensor, optional
        Some samples, for each of which the pointing game is shown by itself.
    """

    title: str
    text: str
    model: torch.nn.Module
    batch: object
    target: Fixed
    features: dict
    truth: torch.Tensor | None = None
    scores: dict = field(default_factory=dict)
    groups: dict = field(default_factory=dict)


def sentences_case(count):
    """Return the language model and held-out sentences, as many with each number of attractors.

    Parameters
    ----------
    count : int
        Number of sentences.

    Returns
    -------
    Case
        The logit of the right verb minus that of the wrong one; the cause is the subject.
    """
    model, tokenizer = agreement.load_model()
    rng, numbers = random.Random(SEED), range(agreement.MAX_PHRASES + 1)
    items = [
        item
        for number in numbers
        for item in agreement.sentences(rng, count // len(numbers), held_out=True, attractors=number)
    ]
    batch = dict(tokenizer([item.prefix for item in items], padding=True, return_tensors="pt"))
    shares = torch.zeros(len(items), len(tokenizer))
    truth = torch.zeros_like(batch["input_ids"])
    for row, item in enumerate(items):
        shares[row, tokenizer.convert_tokens_to_ids([item.correct, item.wrong])] = torch.tensor([1.0, -1.0])
        # the tokenizer may put tokens of its own before the words
        truth[row, item.subject + int(batch["attention_mask"][row].sum()) - item.verb] = 1
    attractors = torch.tensor([item.attractors for item in items])
    text = (
        f"Which word decides the number of the verb? {len(items)} held-out sentences with 0 to 3 attractors, the logit "
        "of the right verb minus that of the wrong one; the cause is the subject noun. The γ composites are for vision "
        "transformers only."
    )
    return Case(
        "A language model: subject-verb agreement",
        text,
        model,
        batch,
        Fixed(shares),
        # the embedding of <pad> is zero, too
        {"zero": Tokens()},
        truth,
        {"pointing game": pointing_game, "MRR": reciprocal_rank, "mass": relevance_mass_accuracy},
        {f"pointing, {number} attractors": attractors == number for number in numbers},
    )


def digits_case(count):
    """Return the vision transformer of the digits, and its test images.

    Parameters
    ----------
    count : int
        Number of images at most.

    Returns
    -------
    Case
        The logit of the true digit; what causes it is not known.
    """
    _, test = digits.load_data()
    images, labels = digits.preprocess(test.images[:count]), test.labels[:count]
    text = f"{len(images)} test images, the logit of the true class; patches of 4 x 4 pixels."
    return Case(
        "A vision transformer: digits",
        text,
        digits.load_model(),
        images,
        Fixed(torch.nn.functional.one_hot(labels, 10).float()),
        {"zero": Patches(4), "mean": Patches(4, "mean"), "no ink": Patches(4, -1.0)},
    )


def shapes_case(count):
    """Return the vision transformer of the shapes, and test pictures.

    Parameters
    ----------
    count : int
        Number of pictures.

    Returns
    -------
    Case
        The logit of the true shape; the cause is the target's mask.
    """
    data = shapes.load_data("test", count)
    text = (
        f"{count} test pictures of one target among distractors, the logit of the true class; patches of 4 x 4 pixels. "
        f"The cause is the target, {data.masks.float().mean():.1%} of the pixels."
    )
    return Case(
        "A vision transformer: a shape among distractors",
        text,
        shapes.load_model(),
        shapes.preprocess(data.images),
        Fixed(torch.nn.functional.one_hot(data.labels, len(shapes.TARGETS)).float()),
        {"zero": Patches(4), "mean": Patches(4, "mean"), "blur": Patches(4, "blur")},
        data.masks,
        {"pointing game": pointing_game, "mass": relevance_mass_accuracy, "rank": relevance_rank_accuracy},
    )


def measure(case, rows, found, refused):
    """Compute all scores of all methods on some samples.

    Parameters
    ----------
    case : Case
        Model and samples.
    rows : torch.Tensor
        Numbers of the samples.
    found : zennit_attn.evidence.Scores
        Where scores are noted; ``seconds`` is the time that the explanation of a sample takes.
    refused : dict
        Where it is noted which methods do not apply, and why.
    """
    batch, target = select(case.batch, rows), case.target.at(rows)
    relevances = {}
    for name in TITLES:
        start = time.perf_counter()
        try:
            relevances[name] = METHODS[name](case.model, batch, target)
        except (ModuleNotFoundError, ValueError) as error:
            refused[name] = str(error)
            continue
        note(found, name, "seconds", rows, torch.full((len(rows),), (time.perf_counter() - start) / len(rows)))
    for fill, features in case.features.items():
        # tokens one by one
        steps = STEPS if isinstance(features, Patches) else None
        both = areas(case.model, batch, target, list(relevances.values()), features, steps)
        for name, (morf, lerf) in zip(relevances, both, strict=True):
            note(found, name, f"ΔA ({fill})", rows, lerf - morf)
    first = next(iter(case.features.values()))
    real, falls = first.real(batch), exact_occlusion(case.model, batch, target, first)
    for name, relevance in relevances.items():
        note(found, name, "occlusion", rows, rank_correlation(first.pool(relevance), falls, real))
        summed = relevance.sum(1) if relevance.dim() == 4 else relevance
        for title, score in case.scores.items():
            note(found, name, title, rows, score(summed, case.truth[rows], real if isinstance(first, Tokens) else None))


def note(found, method, score, rows, values):
    """Add the score of some samples to those found."""
    found.values.setdefault((method, score), {}).update(zip(rows.tolist(), values.tolist(), strict=True))


def evaluate(case):
    """Measure all methods on a case.

    Parameters
    ----------
    case : Case
        Model and samples.

    Returns
    -------
    str
        A section in Markdown.
    """
    print(case.title, flush=True)
    found, refused = Scores({}), {}
    for rows in tqdm(torch.arange(len(case.target.shares)).split(CHUNK)):
        measure(case, rows, found, refused)
    for name, why in refused.items():
        print(f"  {name} does not apply: {why}", flush=True)
    columns = dict.fromkeys(score for _, score in found.values if score != "seconds")
    for name, chosen in case.groups.items():
        for method in found.methods:
            values = found.values[method, "pointing game"]
            found.values[method, name] = {row: value for row, value in values.items() if chosen[row]}
        columns[name] = None
    return f"### {case.title}\n\n{case.text} {evidence.made()}\n\n{markdown(found, list(columns))}\n"


CASES = {"sentences": (sentences_case, 600), "digits": (digits_case, 450), "shapes": (shapes_case, 300)}


def section(name, samples, work):
    """Return the section of a case, as it was measured before if there is a folder of what was.

    Parameters
    ----------
    name : str
        One of :data:`CASES`, or of :data:`evidence.CASES`.
    samples : int or None
        Number of samples of a small model.
    work : pathlib.Path or None
        The folder.

    Returns
    -------
    str
        In Markdown.
    """
    file = None if work is None else work / f"{name}.md"
    if file is not None and file.exists():
        return file.read_text(encoding="utf-8")
    if name in evidence.CASES:
        text = evidence.section(name, work or Path("evaluation"))
    else:
        make, count = CASES[name]
        text = evaluate(make(samples or count))
    if file is not None:
        work.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return text


def main():
    """Measure everything, and write the tables."""
    every = [*evidence.CASES, *CASES]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=every, default=every, help="models (default: all)")
    parser.add_argument("--samples", type=int, help="number of samples of each small model (default: as documented)")
    parser.add_argument("--work", type=Path, help="folder of what is measured, to be gone on with")
    parser.add_argument("--out", type=Path, help="Markdown file (default: none)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sections = {name: section(name, args.samples, args.work) for name in every if name in args.cases}
    header = HEADER.format(chunk=CHUNK)
    real = [text for name, text in sections.items() if name in evidence.CASES]
    small = [text for name, text in sections.items() if name in CASES]
    page = "\n".join([header, *real, *([WHY] if real else []), *([SMALL] if small else []), *small])
    if args.out is not None:
        args.out.write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
