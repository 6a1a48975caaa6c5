"""Explain a language model with weights of 8 and of 4 bits, and compare with the model as it is.

Weights are quantised as the model is loaded. AttnLRP leaves linear layers to autograd, which takes the relevance back
through the weights as the backend dequantises them; activations are in ``--dtype``, sums of relevance in float32.
"""

import argparse
import logging
from pathlib import Path

import language
import torch
from transformers import BitsAndBytesConfig, TorchAoConfig

from zennit_attn import AttnLRPComposite, InputXGradient, heatmap, input_x_gradient, targets

#: Weights that share a scale, of torchao's 4 bits.
GROUP = 32


def quantization(backend, bits, dtype):
    """Return how weights are quantised.

    Parameters
    ----------
    backend : str
        ``"torchao"`` (integers) or ``"bitsandbytes"`` (LLM.int8, which rounds activations, too; NF4 in 4 bits).
    bits : int
        8 or 4.
    dtype : torch.dtype
        In which products are computed.

    Returns
    -------
    transformers.TorchAoConfig or transformers.BitsAndBytesConfig
        Argument of ``from_pretrained``.
    """
    if backend == "bitsandbytes":
        # it says for each layer that LLM.int8 rounds in float16
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        if bits == 8:
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup

    if bits == 8:
        return TorchAoConfig(Int8WeightOnlyConfig())
    return TorchAoConfig(IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(GROUP)))


def explain(model, batch, target):
    """Return the relevance of the tokens, and the logits of the last position."""
    with InputXGradient(model, input_x_gradient(AttnLRPComposite())) as attributor:
        output, relevance = attributor(batch.to(model.device), target)
    return relevance[0].cpu(), output.logits[0, -1].detach().float().cpu()


def main(arguments=None):
    """Explain the same token with weights of several widths, print how far they agree, and draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", help="such as meta-llama/Llama-3.2-1B-Instruct (default: a small stand-in)")
    parser.add_argument("--text", default=language.PREFIX, help="what the next token is explained of")
    parser.add_argument("--bits", type=int, nargs="+", choices=(8, 4), default=[8, 4], help="default: 8 4")
    parser.add_argument("--backend", choices=("torchao", "bitsandbytes"), default="torchao", help="default: torchao")
    parser.add_argument("--dtype", choices=language.DTYPES, default="bfloat16", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("quantized.png"), help="heatmap (default: %(default)s)")
    args = parser.parse_args(arguments)

    if args.backend == "bitsandbytes" and 4 in args.bits and args.model is None:
        parser.error(
            "the small model has layers of 96 inputs, which bitsandbytes stores wrongly in blocks of 64 on a CPU; "
            "expected a --model of multiples of 64, --bits 8, or --backend torchao"
        )

    language.say_which(args.model)
    dtype = language.DTYPES[args.dtype]
    model, tokenizer = language.load(args.model, dtype)
    batch = tokenizer(args.text, return_tensors="pt")
    expected, logits = explain(model, batch, targets.MaxLogit())
    token = int(logits.argmax())
    print(f"Next token: {language.word(tokenizer, token)}; logit {logits[token]:.3f} in {args.dtype}")
    del model

    rows = {args.dtype: expected}
    for bits in args.bits:
        model, _ = language.load(args.model, dtype, quantization_config=quantization(args.backend, bits, dtype))
        relevance, logits = explain(model, batch, targets.Label(token))
        del model
        off = float((relevance - expected).abs().max() / expected.abs().max())
        cosine = float(torch.nn.functional.cosine_similarity(relevance, expected, dim=0))
        same = "the same" if relevance.argmax() == expected.argmax() else "another"
        print(f"{bits} bits: logit {logits[token]:.3f}; {same} token comes first")
        print(f"  relevance is off by at most {off:.1%} of the largest, cosine {cosine:.4f}")
        rows[f"{bits} bits"] = relevance
    title = f"Why {language.word(tokenizer, token)}? Weights of fewer bits ({args.backend})"
    ids = batch["input_ids"][0].tolist()
    heatmap.tokens(ids, rows, tokenizer=tokenizer, title=title).save(args.out)
    print(f"Heatmap: {args.out}")
    return rows


if __name__ == "__main__":
    main()
