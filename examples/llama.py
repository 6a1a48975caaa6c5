"""Explain which words of a long text a Llama takes its next token from.

With gradient checkpointing the memory grows by one hidden state a layer, not by all that a layer computes. Nothing is
patched, attention stays fused (SDPA), and the model stays in evaluation mode, so that no dropout changes the result.
"""

import argparse
from pathlib import Path

import language
import torch
from smollm2 import TEXT

from zennit_attn import AttnLRPComposite, InputXGradient, heatmap, input_x_gradient, targets


def checkpoint(model):
    """Compute each layer again in the backward pass, instead of keeping what it computed.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Model in evaluation mode.
    """
    # transformers before 5.2x has the second name
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    for layer in model.modules():
        if getattr(layer, "gradient_checkpointing", False):
            # transformers checkpoints in training mode; this flag is of the layer alone, not of dropouts inside of it
            layer.training = True


def main(arguments=None):
    """Explain the next token of a text, print the words that matter most, and draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--model",
        help="such as meta-llama/Llama-3.2-1B-Instruct, or smollm2 (default: a stand-in)",
    )
    parser.add_argument("--text", help="what the next token is explained of (default: on Mount Everest)")
    parser.add_argument("--dtype", choices=language.DTYPES, default="bfloat16", help="default: %(default)s")
    parser.add_argument("--device-map", default="auto", help="as in transformers (default: %(default)s)")
    parser.add_argument("--keep-layers", action="store_true", help="faster: no gradient checkpointing")
    parser.add_argument("--out", type=Path, default=Path("llama.png"), help="heatmap to write (default: %(default)s)")
    args = parser.parse_args(arguments)

    language.say_which(args.model)
    model, tokenizer = language.load(args.model, language.DTYPES[args.dtype], args.device_map)
    if not args.keep_layers:
        checkpoint(model)
    batch = tokenizer(args.text or (TEXT if args.model else language.PREFIX), return_tensors="pt").to(model.device)
    with InputXGradient(model, input_x_gradient(AttnLRPComposite())) as attributor:
        output, relevance = attributor({**batch, "use_cache": False}, targets.MaxLogit())

    logits, ids = output.logits[0, -1].detach().float(), batch["input_ids"][0]
    answer = language.word(tokenizer, logits.argmax())
    print(f"Next token: {answer}, logit {logits.max():.2f}, probability {logits.softmax(-1).max():.0%}")
    for place in relevance[0].abs().topk(min(8, len(ids))).indices.tolist():
        print(f"  {relevance[0, place]:+.3f} {language.word(tokenizer, ids[place])} (token {place})")
    title = f"Next token: {answer} (AttnLRP, {args.dtype}, {model.config._attn_implementation})"
    # the first token of a Llama is an attention sink, which would leave all others pale
    sink = [0] if int(ids[0]) in tokenizer.all_special_ids else []
    heatmap.tokens(ids.tolist(), relevance[0], tokenizer=tokenizer, skip=sink, title=title).save(args.out)
    print(f"Heatmap: {args.out}")
    if torch.cuda.is_available():
        print(f"Most memory in use: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    return relevance[0]


if __name__ == "__main__":
    main()
