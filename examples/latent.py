"""Trace relevance through a language model: layers, attention heads, and neurons, from one backward pass.

Inside of a composite's context the backward pass is the rule, and input times gradient is relevance at any tensor: of
what comes out of a layer, and of what goes into the last projection of attention (heads) and of an MLP (neurons).
"""

import argparse
from pathlib import Path

import language
import torch

from zennit_attn import AttnLRPComposite, ModelAdapter, heatmap, input_x_gradient
from zennit_attn.composites.roles import role

TEXT = "The Eiffel Tower is in Paris. The Colosseum is in"


def watch(model):
    """Collect inner tensors while a model runs.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Causal language model.

    Returns
    -------
    found : dict of str to list of torch.Tensor
        Filled by a forward pass: ``"layers"``, ``"heads"`` and ``"neurons"``, a tensor for each layer.
    handles : list
        Hooks to remove.
    """
    found, handles = {"layers": [], "heads": [], "neurons": []}, []
    count, width = model.config.num_hidden_layers, model.config.hidden_size

    def comes_out(_, args, output):
        found["layers"].append(output if isinstance(output, torch.Tensor) else output[0])

    def is_projected(_, args):
        found["heads"].append(args[0])

    def goes_into_mlp(_, args):
        # what is as wide as the layers goes into the first projections of the MLP
        if args[0].shape[-1] != width:
            found["neurons"].append(args[0])

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            handles += [layer.register_forward_hook(comes_out) for layer in module]
        if role(name, module) == "projection":
            handles.append(module.register_forward_pre_hook(is_projected))
        if role(name, module) == "mlp":
            handles.append(module.register_forward_pre_hook(goes_into_mlp))
    return found, handles


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
    adapter = ModelAdapter(model)
    embedded = adapter.embed(ids).requires_grad_()
    found, handles = watch(model)
    with input_x_gradient(AttnLRPComposite()).context(model):
        logits = adapter(embedded)[0, -1]
        inner = [embedded, *found["layers"], *found["heads"], *found["neurons"]]
        gradients = torch.autograd.grad(logits.max(), inner)
    for handle in handles:
        handle.remove()
    relevance = [(value * gradient)[0].detach() for value, gradient in zip(inner, gradients, strict=True)]
    count = len(found["layers"])
    layers, heads, neurons = relevance[: count + 1], relevance[count + 1 : 2 * count + 1], relevance[2 * count + 1 :]
    return (
        logits.detach(),
        torch.stack([layer.sum(-1) for layer in layers], 1),
        torch.stack([head.unflatten(-1, (model.config.num_attention_heads, -1)).sum((0, 2)) for head in heads]),
        torch.stack([layer.sum(0) for layer in neurons]),
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
