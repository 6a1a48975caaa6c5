"""Time and memory of explanations, as ratios to a plain forward and backward pass of the same frozen model.

Medians of interleaved runs: every round runs every variant once, so that what else the machine does hits all of them.
``python tests/benchmarks/explain.py --out docs/benchmarks.md`` writes the table; ``--device cuda`` for a GPU.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
import torchvision
import transformers
import zennit.rules
from torch.overrides import TorchFunctionMode

import zennit_attn
from zennit_attn import (
    AttnLRPComposite,
    CPLRPComposite,
    GammaViTComposite,
    InputXGradient,
    capture,
    input_x_gradient,
    rules,
    targets,
)

PLAIN = "plain forward + backward"
# layers and tokens
GROWTH = [(2, 128), (2, 512), (2, 2048), (2, 8192), (4, 512), (8, 512), (16, 512)]


def llama(width=768, layers=12, heads=12, hidden=2048, key_heads=None, vocabulary=1024, positions=16384):
    """Return a Llama with random weights."""
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads or heads,
        max_position_embeddings=positions,
    )
    return transformers.LlamaForCausalLM(config).eval().requires_grad_(False)


def vit(size="base"):
    """Return torchvision's ViT-B/16 or ViT-L/16 with random weights."""
    make = {"base": torchvision.models.vit_b_16, "large": torchvision.models.vit_l_16}[size]
    return make().eval().requires_grad_(False)


def gamma_by_zennit():
    """Return Gamma-ViT with zennit's own rules instead of the closed forms."""
    return CPLRPComposite(
        role_map=[
            ("patch_embedding", zennit.rules.Gamma(0.25)),
            (("mlp", "head"), zennit.rules.Gamma(0.05)),
        ]
    )


def step(model, x):
    """Run one forward and one backward pass to the input."""
    x = x.detach().requires_grad_()
    output = model(x) if x.dim() == 4 else model(inputs_embeds=x, use_cache=False, logits_to_keep=1).logits[:, -1]
    torch.autograd.grad(output.max(-1)[0].sum(), x)


def synchronize(device):
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(run, device):
    """Return the seconds that a call takes."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def interleaved(runs, device, rounds):
    """Return the median seconds of each of several calls, run in turns."""
    times = {name: [] for name in runs}
    for name, run in runs.items():
        run()
        del name
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(timed(run, device))
    return {name: statistics.median(values) for name, values in times.items()}


def variant(model, composite, x):
    """Return a call that explains inside of a context, timed without entering it."""
    if composite is None:
        return lambda: step(model, x)

    def run():
        with composite.context(model):
            step(model, x)

    return run


def within(model, composite, x, device, times):
    """Time one step inside of a context."""
    if composite is None:
        times.append(timed(lambda: step(model, x), device))
    else:
        with composite.context(model):
            times.append(timed(lambda: step(model, x), device))


def compare(model, x, composites, device, rounds):
    """Return the median seconds of a step under each composite, rounds interleaved."""
    times = {name: [] for name in composites}
    for number in range(rounds + 1):
        for name, composite in composites.items():
            values: list[float] = []
            within(model, composite, x, device, values)
            if number:
                times[name] += values
    return {name: statistics.median(values) for name, values in times.items()}


def peak(model, x, composite, device):
    """Return the bytes that a step takes at its peak, beyond what was there before."""
    run = variant(model, composite, x)
    gc.collect()
    if device.type == "cuda":
        run()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    return peak_resident(run)


def peak_resident(run):
    """Return how far the resident memory of this process rises during a call, sampled.

    The first call of a process: later ones find memory that is resident, and free.
    """

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    highest, done = [resident()], threading.Event()
    before = highest[0]

    def watch():
        while not done.is_set():
            highest[0] = max(highest[0], resident())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    done.set()
    watcher.join()
    return highest[0] - before


def measure_peaks(case, names, device):
    """Return the peak of each variant of a case, each in a process of its own."""
    found = {}
    for name in names:
        command = [sys.executable, __file__, "--device", device.type, "--peak", case, name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[name] = int(done.stdout.split()[-1])
    return found


def composites():
    """Return the composites that are compared."""
    return {
        PLAIN: None,
        "AttnLRP, gradient form": input_x_gradient(AttnLRPComposite()),
        "CP-LRP, gradient form": input_x_gradient(CPLRPComposite()),
        "AttnLRP, relevance form": AttnLRPComposite(),
    }


def vit_composites():
    """Return the composites that are compared on vision transformers."""
    return composites() | {
        "Gamma-ViT, gradient form": input_x_gradient(GammaViTComposite()),
        "Gamma-ViT, relevance form": GammaViTComposite(),
        "the same by zennit.rules": input_x_gradient(gamma_by_zennit()),
    }


def cases(device):
    """Return model, input and composites by name."""
    if device.type == "cuda":
        shapes = {f"Llama-8B-shaped, bf16, {length} tokens": length for length in (512, 2048, 8192)}
        found = {
            name: (lambda: llama(4096, 32, 32, 14336, 8, 128256), (1, length, 4096), composites, torch.bfloat16)
            for name, length in shapes.items()
        }
        return found | {"ViT-L/16, batch 64": (lambda: vit("large"), (64, 3, 224, 224), vit_composites, torch.float32)}
    return {
        "Llama-like, 768 x 12 layers, 512 tokens": (llama, (1, 512, 768), composites, torch.float32),
        "ViT-B/16, batch 4": (vit, (4, 3, 224, 224), vit_composites, torch.float32),
    }


def build(case, device):
    """Return a case's model, input and composites."""
    growing = {
        f"Llama-like, 256 x {layers} layers, {length} tokens": (
            lambda layers=layers: llama(256, layers, 8, 688),
            (1, length, 256),
            composites,
            torch.float32,
        )
        for layers, length in GROWTH
    }
    make, shape, choose, dtype = (cases(device) | growing)[case]
    with torch.device(device):
        torch.set_default_dtype(dtype)
        model, x = make(), torch.randn(shape)
        torch.set_default_dtype(torch.float32)
    return model, x, choose()


def whole_models(device, rounds):
    """Yield the rows on whole models: time and memory."""
    for case in cases(device):
        model, x, chosen = build(case, device)
        times = compare(model, x, chosen, device, rounds)
        del model, x
        gc.collect()
        peaks = measure_peaks(case, chosen, device)
        for name in chosen:
            time_ratio, peak_ratio = times[name] / times[PLAIN], peaks[name] / peaks[PLAIN]
            yield case, name, f"{time_ratio:.2f}", f"{peak_ratio:.2f}", f"{times[name] * 1e3:.0f} ms"
        row = measure_lxt(case, device, rounds)
        if row is not None:
            yield row


def measure_lxt(case, device, rounds):
    """Return how LXT compares on a case, as a row; None where it is not installed or does not know the model.

    It patches classes for the whole process: it has one of its own, in which the plain model runs before.
    """
    command = [sys.executable, __file__, "--device", device.type, "--rounds", str(rounds), "--lxt", case]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"LXT left out: {done.stderr.strip().splitlines()[-1]}", flush=True)
        return None
    plain, patched = map(float, done.stdout.split()[-2:])
    return case, "LXT, AttnLRP by its own forwards", f"{patched / plain:.2f}", "", f"{patched * 1e3:.0f} ms"


def run_lxt(case, device, rounds):
    """Print the median seconds of a plain step, and of one after LXT patched the model's classes."""
    from lxt.efficient import monkey_patch

    model, x, _ = build(case, device)
    runs = {"": lambda: step(model, x)}
    plain = interleaved(runs, device, rounds)[""]
    monkey_patch(sys.modules[type(model).__module__])
    print(plain, interleaved(runs, device, rounds)[""])


def one_linear(device, rounds):
    """Yield the rows on one linear layer under γ."""
    linear = torch.nn.Linear(768, 3072).to(device).requires_grad_(False)
    x = torch.randn(8, 197, 768, device=device)
    signal = torch.randn(8, 197, 3072, device=device)

    def run(rule):
        def call():
            leaf = x.detach().requires_grad_()
            output = linear(leaf) if rule is None else wrapped(rule)(leaf)
            torch.autograd.grad(output, leaf, signal)

        def wrapped(rule):
            handles.append(rule.register(linear))
            return linear

        handles: list = []

        def once():
            call()
            while handles:
                handles.pop().remove()

        return once

    variants = {
        PLAIN: run(None),
        "zennit_attn.rules.Gamma, gradient form": run(input_x_gradient(rules.Gamma(0.05))),
        "zennit_attn.rules.Gamma, relevance form": run(rules.Gamma(0.05)),
        "zennit.rules.Gamma, gradient form": run(input_x_gradient(zennit.rules.Gamma(0.05))),
        "zennit.rules.Gamma, zennit's own hook": run(zennit.rules.Gamma(0.05)),
    }
    times = interleaved(variants, device, 4 * rounds)
    for name, value in times.items():
        yield "Linear 768 to 3072, 8 x 197 tokens", name, f"{value / times[PLAIN]:.2f}", "", f"{value * 1e3:.1f} ms"


class Nothing(TorchFunctionMode):
    """A mode that sees every function, as rules do, and does nothing: what no rules in Python can be faster than."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def small_models(device, rounds):
    """Yield the rows on a small model, where the overhead of Python rules, and on entering a context."""
    model = llama(64, 16, 4, 128).to(device)
    x = torch.randn(1, 16, 64, device=device)
    # matrices this small are not worth a second thread, and waiting for it would hide the overhead
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times = compare(model, x, composites(), device, 20 * rounds)
    attributor = InputXGradient(model, AttnLRPComposite(), targets.Label(0))
    captured = capture(attributor, {"inputs_embeds": x})

    def seen():
        with Nothing():
            step(model, x)

    found = interleaved(
        {
            PLAIN: lambda: step(model, x),
            "a mode that does nothing, as a floor": seen,
            "AttnLRP, captured": lambda: captured({"inputs_embeds": x}),
        },
        device,
        20 * rounds,
    )
    times |= {name: value / found[PLAIN] * times[PLAIN] for name, value in found.items() if name != PLAIN}
    torch.set_num_threads(threads)
    for name, value in times.items():
        case = "Llama-like, 64 x 16 layers, 16 tokens"
        yield case, name, f"{value / times[PLAIN]:.2f}", "", f"{value * 1e3:.1f} ms"
    model = llama(64, 32, 4, 128).to(device)
    composite = input_x_gradient(AttnLRPComposite())

    def enter_and_leave(rules):
        with rules.context(model):
            pass

    runs = {
        "entering and leaving the context": lambda: enter_and_leave(input_x_gradient(AttnLRPComposite())),
        "entering and leaving the context again": lambda: enter_and_leave(composite),
    }
    for name, value in interleaved(runs, device, 20 * rounds).items():
        yield "Llama-like, 32 layers", name, "", "", f"{value * 1e3:.1f} ms"


def growth(device, rounds):
    """Yield the rows on growing sequences and depth: time and memory beyond the model's own."""
    for layers, length in GROWTH:
        model = llama(256, layers, 8, 688).to(device)
        x = torch.randn(1, length, 256, device=device)
        composite = input_x_gradient(AttnLRPComposite())
        times = compare(model, x, {PLAIN: None, "AttnLRP": composite}, device, rounds)
        del model
        gc.collect()
        case = f"Llama-like, 256 x {layers} layers, {length} tokens"
        taken = measure_peaks(case, ["AttnLRP, gradient form"], device)["AttnLRP, gradient form"]
        ratio, milliseconds = times["AttnLRP"] / times[PLAIN], times["AttnLRP"] * 1e3
        yield case, "AttnLRP, gradient form", f"{ratio:.2f}", f"{taken / 2**20:.0f} MiB", f"{milliseconds:.0f} ms"


def accounted(device, rounds):
    """Yield the rows on the ledger, and on strict rules."""
    model = llama(256, 6, 8, 688).to(device)
    batch = {"inputs_embeds": torch.randn(1, 512, 256, device=device), "use_cache": False}
    plain, strict = (input_x_gradient(AttnLRPComposite(strict=strict)) for strict in (False, True))
    attributors = [InputXGradient(model, composite) for composite in (plain, strict)]

    def within_context(call, attributor):
        def run():
            with attributor:
                call(batch, targets.MaxLogit())

        return run

    runs = {
        "AttnLRP, attributor": within_context(attributors[0], attributors[0]),
        "the ledger": within_context(attributors[0].ledger, attributors[0]),
        "AttnLRP, strict": within_context(attributors[1], attributors[1]),
    }
    times = interleaved(runs, device, 3 * rounds)
    for name, value in times.items():
        ratio = value / times["AttnLRP, attributor"]
        yield "Llama-like, 256 x 6 layers, 512 tokens", name, f"{ratio:.2f}", "", f"{value * 1e3:.0f} ms"


def compiled(device, rounds):
    """Yield the rows on compiled models."""
    model = llama(256, 4, 8, 688).to(device)
    x = torch.randn(1, 256, 256, device=device)
    fast = torch.compile(model, fullgraph=True)
    composite = input_x_gradient(AttnLRPComposite())
    with composite.context(model):
        runs = {"AttnLRP, gradient form": lambda: step(model, x), "the same, compiled": lambda: step(fast, x)}
        times = interleaved(runs, device, 3 * rounds)
    for name, value in times.items():
        ratio = value / times["AttnLRP, gradient form"]
        yield "Llama-like, 256 x 4 layers, 256 tokens", name, f"{ratio:.2f}", "", f"{value * 1e3:.0f} ms"


SECTIONS = {
    "Whole models: time and peak memory, relative to plain": whole_models,
    "One linear layer under the γ rule, time relative to plain": one_linear,
    "Small models: Python's overhead": small_models,
    "Growth: time relative to plain, peak memory of a step": growth,
    "The ledger and strict rules: time relative to an attribution": accounted,
    "torch.compile, full graph: time relative to not compiled": compiled,
}


def machine(device):
    """Return what the figures were measured on and with."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    versions = {
        "zennit-attn": zennit_attn.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "torchvision": torchvision.__version__,
    }
    return f"{name}{threads}; " + ", ".join(f"{key} {value}" for key, value in versions.items())


def main():
    """Run the benchmarks and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of interleaved runs (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    parser.add_argument("--only", help="run only the sections of which the title contains this")
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "VARIANT"), help=argparse.SUPPRESS)
    parser.add_argument("--lxt", metavar="CASE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = torch.device(args.device)
    if args.lxt:
        run_lxt(args.lxt, device, args.rounds)
        return
    if args.peak:
        model, x, chosen = build(args.peak[0], device)
        print(peak(model, x, chosen[args.peak[1]], device))
        return
    lines = [
        "# Benchmarks",
        "",
        "Written by `python tests/benchmarks/explain.py --out docs/benchmarks.md`: medians of interleaved runs, with",
        f"{args.rounds} rounds, on a shared machine; ratios are what counts.",
        "",
        f"Machine and versions: {machine(device)}",
    ]
    for title, section in SECTIONS.items():
        if args.only and args.only not in title:
            continue
        lines += ["", f"## {title}", "", "| case | variant | time ratio | memory | time |", "|---|---|---|---|---|"]
        for row in section(device, args.rounds):
            lines.append("| " + " | ".join(row) + " |")
            print(lines[-1], flush=True)
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
