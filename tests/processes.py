"""One of two processes that share a small model: ``python processes.py FOLDER``, with RANK and WORLD_SIZE set.

The first writes ``found.json``: for each case the largest error, relative to the largest relevance of the model in one
process, or what was raised.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import transformers
import zennit.rules
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from zennit.attribution import Gradient

from zennit_attn import AttnLRPComposite, CPLRPComposite, InputXGradient, ModelAdapter, rules, targets
from zennit_attn.explain.loading import places_of

IDS = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]])
RULES = {
    "Gamma": rules.Gamma(0.25),
    "ZPlus": rules.ZPlus(),
    "AlphaBeta": rules.AlphaBeta(2, 1),
    "Epsilon": rules.Epsilon(1e-6),
    "zennit's Gamma": zennit.rules.Gamma(0.25),
    "zennit's ZPlus": zennit.rules.ZPlus(),
    "zennit's AlphaBeta": zennit.rules.AlphaBeta(2, 1),
    "zennit's Epsilon": zennit.rules.Epsilon(1e-6),
}
COMPOSITES = {
    "AttnLRP": AttnLRPComposite(strict=True),
    "CP-LRP": CPLRPComposite(strict=True),
    **{name: AttnLRPComposite(strict=True, layer_map=[(nn.Linear, rule)]) for name, rule in RULES.items()},
}
#: The largest logit is in the second half for one sample at least, see the test.
TARGETS = {
    "MaxLogit": targets.MaxLogit(),
    "Label": targets.Label([3, 30]),
    "Labels": targets.Labels([3, 30], [1, -1]),
    "Contrastive": targets.Contrastive(),
    "LogProb": targets.LogProb(),
    "Answer": targets.Answer([3, 30], targets.LogProb),
    "Each": targets.Each([targets.Label(3), targets.MaxLogit()]),
}


def llama():
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_attention_heads=4)).eval()


def fully_sharded(mesh, folder):
    model = llama()
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def tensor_parallel(mesh, folder, embeddings=None):
    """Share all of a model out by hand, its logits too: what it returns is a DTensor."""
    layer = {
        **{f"self_attn.{name}_proj": ColwiseParallel() for name in "qkv"},
        "self_attn.o_proj": RowwiseParallel(),
        "mlp.gate_proj": ColwiseParallel(),
        "mlp.up_proj": ColwiseParallel(),
        "mlp.down_proj": RowwiseParallel(),
    }
    plan = {f"model.layers.{number}.{name}": style for number in range(2) for name, style in layer.items()}
    by_rows = RowwiseParallel(input_layouts=Replicate())
    plan["lm_head"] = ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)
    return parallelize_module(llama(), mesh, {**plan, "model.embed_tokens": embeddings or by_rows})


def parts_of_logits(mesh, folder):
    plan = {"lm_head": ColwiseParallel(output_layouts=Shard(-1), use_local_output=True)}
    return parallelize_module(llama(), mesh, plan)


def by_columns(mesh, folder):
    return tensor_parallel(mesh, folder, ColwiseParallel(output_layouts=Replicate()))


def by_plan(mesh, folder):
    where = places_of(None, "auto", "llama")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **where).eval()


KINDS = {
    "FSDP2": fully_sharded,
    "tensor parallel": tensor_parallel,
    "by columns": by_columns,
    "tp_plan": by_plan,
    "part": parts_of_logits,
}


def gradient(model, composite, target):
    return InputXGradient(model, composite)(IDS, target)[1]


def relevance(model, composite, target):
    """Explain the same in the relevance form, by zennit's attributor."""
    adapter = ModelAdapter(model)
    with Gradient(adapter, composite) as attributor:
        return attributor(llama().get_input_embeddings()(IDS).detach(), target)[1]


def ledger(model, composite, target):
    found = InputXGradient(model, composite).ledger(IDS, target)
    return torch.tensor([found.explained, *found.inputs.values(), *found.by_kind().values()])


def cases(kind):
    """Return name, function, composite and target of each case."""
    label = targets.Label(7)
    if kind == "part":
        yield "MaxLogit", gradient, COMPOSITES["AttnLRP"], targets.MaxLogit()
        return
    for name, composite in COMPOSITES.items():
        yield name, gradient, composite, label
    if kind in ("FSDP2", "tensor parallel"):
        for name in ("AttnLRP", "zennit's Gamma"):
            yield f"{name}, relevance form", relevance, COMPOSITES[name], targets.MaxLogit()
    for name, target in TARGETS.items():
        yield name, gradient, COMPOSITES["AttnLRP"], target
    yield "ledger", ledger, COMPOSITES["AttnLRP"], label


def main(folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=int(os.environ["RANK"]), world_size=2)
    mesh, found, expected = init_device_mesh("cpu", (2,)), {}, {}
    for kind, make in KINDS.items():
        model = make(mesh, folder)
        for name, function, composite, target in cases(kind):
            if name not in expected:
                expected[name] = function(llama(), composite, target)
            try:
                got = function(model, composite, target)
                assert type(got) is torch.Tensor
                error = float((got - expected[name]).abs().max() / expected[name].abs().max())
            except Exception as raised:
                error = f"{type(raised).__name__}: {raised}"
            found[f"{kind}: {name}"] = error
    if dist.get_rank() == 0:
        (folder / "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
