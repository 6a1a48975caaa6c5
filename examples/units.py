"""Look inside of a language model: what its heads and neurons are for, and which of them made an answer.

Writes a page for each of the most relevant units, with the texts in which it is most relevant (``RelMax``), and the
attribution graph of one text: which unit by which units, down to the tokens.
"""

import argparse
import json
import random
from pathlib import Path

import agreement
import language

from zennit_attn import Explainer, targets
from zennit_attn.concepts import RelMax, attribution_graph, unit_page

CAPITALS = "France Italy Spain Germany Russia China Japan Egypt Greece Poland Austria Ireland Norway Portugal".split()
OPPOSITES = "hot big good black up left fast old open rich true happy strong early".split()
NUMBERS = "one two three four five six seven eight".split()
TEXT = "The Eiffel Tower is in Paris. The Colosseum is in"


def texts(is_small):
    """Return the texts to look through: held-out sentences of the small model, or what a real one may know."""
    if is_small:
        return [each.prefix for each in agreement.sentences(random.Random(0), 200, held_out=True)]
    found = [f"The capital of {country} is" for country in CAPITALS]
    found += [f"Hot is to cold as {word} is to" for word in OPPOSITES]
    return found + [f"{', '.join(NUMBERS[start : start + 4])}," for start in range(5)]


def strongest(references, count):
    """Return the units whose strongest texts have the largest relevance, as (latent, unit)."""
    means = {
        (name, unit): mean
        for name, top in references.tops.items()
        for unit, mean in enumerate(top.scores.mean(1).tolist())
    }
    return sorted(means, key=means.get, reverse=True)[:count]


def main(arguments=None):
    """Look through texts, and write pages of units and the graph of one answer."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", help="such as Qwen/Qwen3-0.6B, or smollm2 (default: a stand-in)")
    parser.add_argument("--text", help="what the graph is of (default: on the Colosseum)")
    parser.add_argument("--layers", type=int, default=3, help="how many of the last layers (default: %(default)s)")
    parser.add_argument("--pages", type=int, default=3, help="how many units have a page (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("units"), help="folder to write into (default: units)")
    args = parser.parse_args(arguments)

    language.say_which(args.model)
    model, tokenizer = language.load(args.model)
    explainer = Explainer(model, tokenizer)
    last = model.config.num_hidden_layers
    latents = [f"model.layers.{layer}.{kind}" for layer in range(last)[-args.layers :] for kind in ("head", "neuron")]

    args.out.mkdir(parents=True, exist_ok=True)
    rows = args.out / "texts.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(args.model is None)))
    references = RelMax(explainer, latents=latents).run(rows, args.out / "references")
    for latent, unit in strongest(references, args.pages):
        page = args.out / f"{latent}-{unit}.html"
        page.write_text(unit_page(references, latent, unit, explainer, rows), encoding="utf-8")
        print(f"{page}: most relevant in row {references.of(latent, unit)[0].row}")

    text = args.text or (TEXT if args.model else language.PREFIX)
    batch = tokenizer(text, return_tensors="pt").to(model.device)
    answer = language.word(tokenizer, model(**batch).logits[0, -1].argmax())
    words = [word.strip() for word in explainer.tokenizer.batch_decode(batch["input_ids"][0][:, None])]
    graph = attribution_graph(
        model, batch, targets.MaxLogit(), explainer.composite, latents, tokens=words, answer=answer, least=0.002
    )
    graph.save(args.out / "graph.json")
    graph.picture(f"Why {answer}?").save(args.out / "graph.png", dpi=150)
    below = [graph.nodes[edge.lower] for edge in graph.below(0)]
    first = next(node for node in below if not node.rest)
    print(f"{args.out / 'graph.png'}: {answer} has most from {first.label} of {first.place}")
    return references, graph


if __name__ == "__main__":
    main()
