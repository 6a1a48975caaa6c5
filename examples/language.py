"""What the examples on language models share: a model by its name, or the small one that comes with them."""

import importlib.util

import agreement
import smollm2
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

PREFIX = "the keys near the old cabinet behind my red door"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load(name, dtype=torch.float32, device_map="auto", **options):
    """Load a causal language model.

    Parameters
    ----------
    name : str or None
        Name on the hub or folder; ``"smollm2"`` is the model of ``smollm2.py``, None the small one next to this file.
    dtype : torch.dtype
        Of weights and activations; relevance is summed in float32 in any case.
    device_map : str
        As in ``from_pretrained``; without accelerate, which it needs, the model goes to a GPU if there is one.
    **options
        Further arguments of ``from_pretrained``.

    Returns
    -------
    model : transformers.PreTrainedModel
        The model in evaluation mode.
    tokenizer : transformers.PreTrainedTokenizerBase
        Its tokenizer.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    name = agreement.MODEL_PATH if name is None else smollm2.folder() if name == "smollm2" else name
    if importlib.util.find_spec("accelerate") is not None:
        options["device_map"] = device_map
    model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, attn_implementation="sdpa", **options).eval()
    if "device_map" not in options and torch.cuda.is_available():
        model = model.cuda()
    return model, AutoTokenizer.from_pretrained(name)


def say_which(name):
    """Say if the small model stands in for a real one."""
    if name is None:
        print("No --model: a small one stands in, which knows 205 words. --model smollm2 is a real one.")


def word(tokenizer, token):
    """Return the text of a token between quotation marks."""
    return f"“{tokenizer.decode([token]).strip()}”"
