"""Peak memory of an explanation of a model that waits on a disk: with layers that are computed again, and without.

``python tests/benchmarks/larger.py`` prints a table, in about a minute. Each row is a process of its own, which
explains a tiny model first, so that what libraries load once is not counted; the peak is the largest resident memory
after that (Linux tells it). The weights are 257 MB in 16 layers of 16 MB.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from torch import nn

import zennit_attn.rules.operators
from zennit_attn import AttnLRPComposite, InputXGradient, rules, targets

LAYERS = 16
IDS = torch.tensor([[3, 1, 4, 1, 5]])
RULES = ("AttnLRP", "Gamma", "ZPlus")


def llama(width, layers):
    """Return a model with random weights."""
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=8
    )
    return transformers.LlamaForCausalLM(config).eval()


def status(name):
    """Return a line of the process's status, in MB."""
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def measure(folder, rule, place, again):
    """Explain once; return the growth of resident memory at its peak, in MB."""
    import accelerate

    layer_map = [] if rule == "AttnLRP" else [(nn.Linear, getattr(rules, rule)())]
    composite = AttnLRPComposite(strict=True, layer_map=layer_map)
    InputXGradient(accelerate.cpu_offload(llama(64, 1), "cpu"), composite)(IDS, targets.Label(7))
    if not again:
        zennit_attn.rules.operators.offloaded_layers = lambda model: []
    places = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    places |= {f"model.layers.{number}": place for number in range(LAYERS)}
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    with tempfile.TemporaryDirectory() as offload:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, device_map=places, offload_folder=offload)
        InputXGradient(model.eval(), composite)(IDS, targets.Label(7))
    return status("VmHWM") - before


def main():
    """Print the table, or one number of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--row", nargs=4, metavar=("FOLDER", "RULE", "PLACE", "AGAIN"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        folder, rule, place, again = args.row
        print(measure(folder, rule, place, again == "again"))
        return
    print("| rule | in memory | on a disk, layers kept | on a disk, layers computed again |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        llama(512, LAYERS).save_pretrained(folder, max_shard_size="5MB")
        for rule in RULES:
            cells = []
            for place, again in (("cpu", "kept"), ("disk", "kept"), ("disk", "again")):
                row = [sys.executable, __file__, "--row", folder, rule, place, again]
                output = subprocess.run(row, check=True, capture_output=True, text=True).stdout
                cells.append(f"{float(output.split()[-1]):.0f} MB")
            print("|", " | ".join((rule, *cells)), "|", flush=True)


if __name__ == "__main__":
    main()
