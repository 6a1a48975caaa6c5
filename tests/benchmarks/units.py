"""Measure what it costs to look for the rows of units, and to make a graph, beside plain explanations of the same rows.

``python tests/benchmarks/units.py`` prints a table in Markdown, in a minute or two: processor time and the largest
memory, each in a process of its own, as ratios to those of ``BatchExplainer`` (rows) and of one explanation (graphs).
The model is SmolLM2-135M-Instruct, the rows are of 3 to 60 words.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORDS = "the a of keys door tower river city king old new green is was by under and then it runs 7 over".split()
#: What is measured: its name, and what it is beside.
CASES = {
    "plain": None,
    "RelMax, heads": "plain",
    "RelMax, heads and neurons": "plain",
    "ActMax, heads and neurons": "plain",
    "one explanation": None,
    "graph of 8 places, 3 units each": "one explanation",
}


def texts(count):
    """Return texts of 3 to 60 words."""
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randint(3, 60))) for _ in range(count)]


def measure(case, count):
    """Do one case, and return processor time and memory."""
    import resource
    import time

    sys.path.insert(0, str(ROOT / "examples"))
    import smollm2

    from zennit_attn import Explainer, targets
    from zennit_attn.concepts import ActMax, RelMax, attribution_graph
    from zennit_attn.data import BatchExplainer

    model, tokenizer = smollm2.load()
    explainer = Explainer(model, tokenizer)
    rows = [{"text": text} for text in texts(count)]
    batch = tokenizer(smollm2.TEXT, return_tensors="pt")

    kinds = {"RelMax, heads": (RelMax, "head"), "RelMax, heads and neurons": (RelMax, ("head", "neuron"))}
    kinds["ActMax, heads and neurons"] = ActMax, ("head", "neuron")
    explainer("the first call is slower")
    start = time.process_time()
    if case == "plain":
        BatchExplainer(explainer).explanations(rows)
    elif case in kinds:
        kind, latents = kinds[case]
        kind(explainer, latents=latents).tops(rows)
    elif case == "one explanation":
        explainer(smollm2.TEXT)
    else:
        latents = [f"model.layers.{layer}.{kind}" for layer in range(26, 30) for kind in ("head", "neuron")]
        attribution_graph(model, batch, targets.MaxLogit(), explainer.composite, latents)
    return time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(args.case, args.rows)))
        return
    found = {}
    print("| | seconds | times | MiB | times |\n| --- |" + " ---: |" * 4)
    for case, beside in CASES.items():
        command = [sys.executable, __file__, "--rows", str(args.rows), "--case", case]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        seconds, memory = found[case] = json.loads(said.splitlines()[-1])
        pairs = zip(found[case], found.get(beside, ()), strict=False)
        ratios = [f"{own / plain:.2f}" for own, plain in pairs] or ["", ""]
        print(f"| {case} | {seconds:.1f} | {ratios[0]} | {memory:.0f} | {ratios[1]} |", flush=True)


if __name__ == "__main__":
    main()
