"""Explain a language model whose logits are all negative, as those of GPT-2 are: plain, contrastive, and by CP-LRP.

Relevance adds up towards what is explained. A logit of -30 makes the relevance of words negative even if they speak
for the token, because the model says what it expects by differences of logits alone: a constant that is added to all
of them changes no probability. A contrastive target, the logit minus the mean of the N others (1, -1/N), has no such
constant, and its signs say again what speaks for the token.
"""

import argparse
from pathlib import Path

import language
import torch

from zennit_attn import AttnLRPComposite, CPLRPComposite, InputXGradient, heatmap, input_x_gradient, targets

TEXT = "The Eiffel Tower is the best-known building of"
SHIFT = 20.0


def shift(model, batch):
    """Take a constant from all logits of the next token, which changes no probability.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Model with an output layer of its own.
    batch : mapping
        What the logits are of.
    """
    with torch.no_grad():
        state = model.model(**batch).last_hidden_state[0, -1]
        # every row of the weight gets the same vector, the product of which with the last state is the constant
        model.lm_head.weight -= SHIFT * state / state.square().sum()


def main(arguments=None):
    """Explain the next token in four ways, print them, and draw them side by side."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", help="such as openai-community/gpt2 (default: a small stand-in)")
    parser.add_argument("--text", help="what the next token is explained of (default: on the Eiffel Tower)")
    parser.add_argument("--out", type=Path, default=Path("gpt2_contrastive.png"), help="default: %(default)s")
    args = parser.parse_args(arguments)

    language.say_which(args.model)
    model, tokenizer = language.load(args.model)
    batch = tokenizer(args.text or (TEXT if args.model else language.PREFIX), return_tensors="pt").to(model.device)
    if args.model is None:
        print(f"As its logits are not negative, {SHIFT:.0f} is taken from all of them: no probability changes.")
        shift(model, batch)
    attnlrp, cp_lrp = input_x_gradient(AttnLRPComposite()), input_x_gradient(CPLRPComposite())
    ways = {
        "AttnLRP, logit": (attnlrp, targets.MaxLogit()),
        "AttnLRP, contrastive": (attnlrp, targets.Contrastive()),
        "CP-LRP, logit": (cp_lrp, targets.MaxLogit()),
        "CP-LRP, contrastive": (cp_lrp, targets.Contrastive()),
    }
    rows = {}
    for name, (composite, target) in ways.items():
        with InputXGradient(model, composite) as attributor:
            output, relevance = attributor(batch, target)
        rows[name] = relevance[0]

    logits, ids = output.logits[0, -1].detach(), batch["input_ids"][0]
    answer = language.word(tokenizer, logits.argmax())
    print(
        f"Next token: {answer}, probability {logits.softmax(-1).max():.0%}; its logit is {logits.max():.1f}, the mean "
        f"of all is {logits.mean():.1f}"
    )
    for name, relevance in rows.items():
        first = language.word(tokenizer, ids[relevance.abs().argmax()])
        print(f"  {name}: sum {relevance.sum():+.2f}, most at {first} ({relevance[relevance.abs().argmax()]:+.2f})")
    print("The sign of the plain logit is that of its constant; the contrastive target has none.")
    title = f"Next token: {answer}, logit {logits.max():.1f}"
    heatmap.tokens(ids.tolist(), rows, tokenizer=tokenizer, shared=False, title=title).save(args.out)
    print(f"Heatmap: {args.out}")
    return rows


if __name__ == "__main__":
    main()
