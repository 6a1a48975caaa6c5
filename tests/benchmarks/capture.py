"""Time of captured explanations, as they are and compiled, as ratios to plain passes, eager and by ``torch.compile``.

Medians of interleaved runs, as those of ``explain.py``: every round runs every variant once. All have the same input,
and explain the largest logit; the attributor that is not captured registers its rules in each call.
``python tests/benchmarks/capture.py`` prints the table; ``--device cuda`` for a GPU. What is compiled takes a C++
compiler, and for a GPU Triton.
"""

from __future__ import annotations

import argparse
import gc
import sys
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent))

from explain import PLAIN, interleaved, llama, machine

from zennit_attn import AttnLRPComposite, InputXGradient, capture, targets

SHAPES = ("64x4x16", "256x4x128")


def bert(width, layers, positions):
    """Return a BERT that classifies, with random weights."""
    config = transformers.BertConfig(
        vocab_size=1024,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=positions,
    )
    return transformers.BertForSequenceClassification(config).eval().requires_grad_(False)


MODELS = {
    "Llama": lambda width, layers, tokens: llama(width, layers, 4, 4 * width, positions=tokens),
    "BERT": bert,
}


def step(model, batch):
    """Run one forward and one backward pass to the input."""
    x = batch["inputs_embeds"].detach().requires_grad_()
    logits = model(**{**batch, "inputs_embeds": x}).logits
    # a language model has logits for each token
    last = logits if logits.dim() == 2 else logits[:, -1]
    torch.autograd.grad(last.max(-1)[0].sum(), x)


def variants(model, batch):
    """Return a call for each variant."""
    fast = torch.compile(model, fullgraph=True)
    attributor = InputXGradient(model, AttnLRPComposite(), targets.MaxLogit())
    captured = capture(attributor, batch)
    by_inductor = capture(attributor, batch, backend="inductor")
    return {
        PLAIN: lambda: step(model, batch),
        "plain, compiled": lambda: step(fast, batch),
        "AttnLRP": lambda: attributor(batch),
        "AttnLRP, captured": lambda: captured(batch),
        "AttnLRP, captured and compiled": lambda: by_inductor(batch),
    }


def rows(device, shapes, rounds):
    """Yield the rows: each time, and as a ratio to plain passes, eager and compiled."""
    for shape in shapes:
        width, layers, tokens = map(int, shape.split("x"))
        for kind, make in MODELS.items():
            torch.manual_seed(0)
            model = make(width, layers, tokens).to(device)
            batch = {"inputs_embeds": torch.randn(1, tokens, width, device=device)}
            if kind == "Llama":
                batch["use_cache"] = False
            torch.compiler.reset()
            times = interleaved(variants(model, batch), device, rounds)
            for name, value in times.items():
                ratios = [f"{value / times[base]:.2f}" for base in (PLAIN, "plain, compiled")]
                yield f"{kind}, {width} x {layers} layers, {tokens} tokens", name, *ratios, f"{value * 1e3:.2f} ms"
            del model
            gc.collect()


def main():
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=50, help="rounds of interleaved runs (default: %(default)s)")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="WIDTHxLAYERSxTOKENS", help="of the models")
    args = parser.parse_args()
    device = torch.device(args.device)
    print(f"{machine(device)}\n")
    print("| case | variant | to plain, eager | to plain, compiled | time |\n|---|---|---:|---:|---:|")
    for row in rows(device, args.shapes, args.rounds):
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
