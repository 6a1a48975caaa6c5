"""Trace relevance through a language model: layers, attention heads, and neurons, from one backward pass.

Layers, heads and neurons are latents, which have one name in every architecture: ``model.layers.3.head`` is what goes
into the last projection of the attention, by head, and ``model.layers.3.neuron`` what goes into that of the MLP.
"""

import argparse
from pathlib import Path

import language
import torch

from zennit_attn import AttnLRPComposite, InputXGradient, heatmap, targets

TEXT = "The Eiffel Tower is in Paris. The Colosseum is in"


def trace(model, ids):
    """Explain the largest logit of the next token.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Causal language model.
    ids : torch.Tensor
        Tokens, of shape (1, tokens).

    Returns
    -------
    logits : torch.Tensor
        Of the next token.
    layers, heads, neurons : torch.Tensor
        Relevance of the tokens, before the first layer and after each (tokens, layers + 1), of the heads (layers,
        heads), and of the neurons (layers, neurons), summed over tokens.
    """
    attributor = InputXGradient(model, AttnLRPComposite(), latents=["layer", "head", "neuron"])
    output, relevance, found = attributor(ids, targets.MaxLogit())
    layers, heads, neurons = (
        [value[0] for name, value in found.items() if name.endswith(f".{kind}")] for kind in ("layer", "head", "neuron")
    )
    return (
        output.logits[0, -1].detach(),
        torch.stack([relevance[0], *layers], 1),
        torch.stack([head.sum(0) for head in heads]),
        torch.stack([neuron.sum(0) for neuron in neurons]),
    )


def main(arguments=None):
    """Trace the next token of a text, print the neurons that matter most, and draw layers and heads."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", help="such as Qwen/Qwen3-0.6B, or smollm2 (default: a stand-in)")
    parser.add_argument("--text", help="what the next token is explained of (default: on the Colosseum)")
    parser.add_argument("--top", type=int, default=8, help="how many neurons to print (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("latent"), help="folder of the pictures (default: latent)")
    args = parser.parse_args(arguments)

    language.say_which(args.model)
    model, tokenizer = language.load(args.model)
    ids = tokenizer(args.text or (TEXT if args.model else language.PREFIX), return_tensors="pt")["input_ids"].to(
        model.device
    )
    logits, layers, heads, neurons = trace(model, ids)

    answer = language.word(tokenizer, logits.argmax())
    print(f"Next token: {answer}, logit {logits.max():.2f}. The neurons of the largest relevance:")
    for place in neurons.flatten().abs().topk(args.top).indices.tolist():
        layer, neuron = divmod(place, neurons.shape[1])
        print(f"  {neurons[layer, neuron]:+.3f} layer {layer}, neuron {neuron}")
    args.out.mkdir(parents=True, exist_ok=True)
    words = heatmap.clean_tokens(tokenizer.convert_ids_to_tokens(ids[0]), tokenizer)
    names, title = ["input", *range(len(heads))], f"Why {answer}?"
    axes = {"row_title": "token", "column_title": "after layer"}
    heatmap.trace(layers, words, names, **axes, title=title).save(args.out / "layers.png")
    axes = {"row_title": "layer", "column_title": "head"}
    heatmap.trace(heads, **axes, title=title).save(args.out / "heads.png")
    print(f"Pictures: {args.out / 'layers.png'}, {args.out / 'heads.png'}")
    return layers, heads, neurons


if __name__ == "__main__":
    main()
