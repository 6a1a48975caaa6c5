"""Models that are larger than a device: weights that wait in a memory or on a disk, and models of several processes."""

import gc
import inspect
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from zennit.attribution import Gradient

from zennit_attn import (
    AttnLRPComposite,
    CPLRPComposite,
    Explainer,
    InputXGradient,
    ModelAdapter,
    input_x_gradient,
    targets,
)
from zennit_attn.cli import main
from zennit_attn.data import open_results
from zennit_attn.errors import InputError

from .forms import FORMS
from .processes import COMPOSITES, KINDS, RULES, TARGETS, llama

accelerate = pytest.importorskip("accelerate")
IDS = torch.tensor([[3, 1, 4, 1, 5]])


def close(got, expected):
    # the same operations in float32, on the same device, but for the order of sums
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


# several processes


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return what two processes on a CPU found, see processes.py."""
    folder = tmp_path_factory.mktemp("processes")
    llama().save_pretrained(folder)
    file = Path(__file__).parent / "processes.py"
    # the rendezvous is a file; transformers looks at the environment to tell how many there are
    given = {
        **os.environ,
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29511",
    }
    root = str(Path(__file__).parent.parent)
    given["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    processes = [
        subprocess.Popen(
            [sys.executable, str(file), str(folder)],
            env={**given, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in "01"
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    return json.loads((folder / "found.json").read_text())


REFUSED = ("Gamma", "ZPlus", "AlphaBeta")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "part"])
def test_a_model_of_two_processes_is_explained_as_in_one_or_refused_by_name(found, kind):
    # one of the two processes does not have the largest logit, so that its maximum is another one
    assert int(llama()(IDS).logits[0, -1].argmax()) >= 16
    for name in (*COMPOSITES, *TARGETS):
        got = found[f"{kind}: {name}"]
        if name in REFUSED:
            assert f"TypeError: {name} got Linear with a weight of type DTensor" in got
            assert "the rule of the same name of zennit.rules" in got
        else:
            assert isinstance(got, float), got
            assert got < 1e-5


@pytest.mark.parametrize("kind", ["FSDP2", "tensor parallel"])
@pytest.mark.parametrize("name", ["AttnLRP", "zennit's Gamma"])
def test_the_relevance_form_is_that_of_one_process(found, kind, name):
    assert found[f"{kind}: {name}, relevance form"] < 1e-5


def test_a_ledger_of_gathered_layers_is_that_of_one_process_and_of_shared_ones_refused(found):
    assert found["FSDP2: ledger"] < 1e-5
    for kind in ("tensor parallel", "by columns", "tp_plan"):
        assert "a ledger got model.embed_tokens.weight as a DTensor" in found[f"{kind}: ledger"]


def test_logits_of_a_part_of_the_vocabulary_are_refused(found):
    assert "got logits of 16 tokens in each process, of a vocabulary of 32" in found["part: MaxLogit"]


# weights that wait somewhere else


def on_disk(folder, layers=2, model=None):
    """Return a model with its layers on a disk, and all else in memory."""
    places = {name: "cpu" for name in ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")}
    places |= {f"model.layers.{number}": "disk" for number in range(layers)}
    model = llama() if model is None else model
    return accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=folder, force_hooks=True)


def whole_on_disk(folder):
    model = llama()
    accelerate.disk_offload(model, folder, "cpu")
    return model


OFFLOADED = {
    "cpu_offload": lambda folder: accelerate.cpu_offload(llama(), "cpu"),
    "disk_offload": whole_on_disk,
    "device_map": on_disk,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", OFFLOADED)
def test_offloaded_weights_are_explained_as_in_memory(kind, form, tmp_path):
    offloaded, plain = OFFLOADED[kind](tmp_path), llama()
    x = plain.get_input_embeddings()(IDS).detach()

    def explained(model, composite):
        if form == "gradient":
            return InputXGradient(model, composite)(IDS, targets.MaxLogit())[1]
        with Gradient(ModelAdapter(model), composite) as attributor:
            return attributor(x, targets.MaxLogit())[1]

    for composite in COMPOSITES.values():
        close(explained(offloaded, composite), explained(plain, composite))
    layer = offloaded.model.layers[0]
    assert all(parameter.is_meta and parameter.requires_grad for parameter in layer.parameters())


@pytest.mark.parametrize("rule", ["AttnLRP", *RULES])
def test_layers_that_wait_are_computed_again_and_few_are_in_memory_at_once(rule, tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 8}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_attention_heads=4)).eval()
    per_layer = sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    expected = InputXGradient(model, COMPOSITES[rule])(IDS, targets.Label(7))[1]
    model, loaded, most, calls = on_disk(tmp_path, 8, model), weakref.WeakSet(), [], []

    def look(module, args, output):
        # called with the weights, inside of what accelerate puts around the forward
        loaded.add(module.weight)
        most.append(sum(weight.numel() for weight in loaded))
        return output

    for layer in model.model.layers:
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                inside = module._old_forward

                def forward(x, module=module, inside=inside):
                    calls.append(module)
                    return look(module, x, inside(x))

                module._old_forward = forward
    gc.disable()  # what only the collector of cycles frees is memory that is used
    try:
        close(InputXGradient(model, COMPOSITES[rule])(IDS, targets.Label(7))[1], expected)
    finally:
        gc.enable()
    assert len(calls) >= 2 * 8 * 7  # each of seven layers is run twice at least
    # three whole layers, and what zennit's rules hold of a layer as they run it several times
    assert max(most) <= (4 if "zennit" in rule else 3) * per_layer
    assert all(parameter.is_meta for parameter in model.model.layers.parameters())


def test_a_ledger_of_offloaded_weights_is_that_of_weights_in_memory(tmp_path):
    config = transformers.GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    plain = InputXGradient(model, CPLRPComposite()).ledger(IDS, targets.Label(7))
    found = InputXGradient(accelerate.cpu_offload(model, "cpu"), CPLRPComposite()).ledger(IDS, targets.Label(7))
    assert found.by_kind().keys() == plain.by_kind().keys()
    close(torch.tensor(list(found.by_kind().values())), torch.tensor(list(plain.by_kind().values())))


def test_a_filled_cache_is_read_and_an_empty_one_is_not_filled_twice(tmp_path):
    offloaded, plain = on_disk(tmp_path), llama()

    def explained(model, **options):
        batch = {"input_ids": IDS, **options}
        return InputXGradient(model, AttnLRPComposite(strict=True))(batch, targets.Label(7))[1]

    close(explained(offloaded, use_cache=True), explained(plain, use_cache=True))
    with torch.no_grad():
        output = plain(IDS, use_cache=True)
    # transformers calls it by another name from 5.24 on
    name = "cache" if "cache" in inspect.signature(transformers.LlamaModel.forward).parameters else "past_key_values"
    filled = {name: output[name]}
    close(explained(offloaded, **filled), explained(plain, **filled))
    # generation inside of the context keeps its cache
    with input_x_gradient(AttnLRPComposite()).context(offloaded), torch.no_grad():
        again = offloaded.generate(IDS, max_new_tokens=4, do_sample=False)
    assert torch.equal(again, plain.generate(IDS, max_new_tokens=4, do_sample=False))


# by the front door


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a folder with a language model, and a file that says where its layers are."""
    folder = tmp_path_factory.mktemp("saved")
    tokenizer = transformers.AutoTokenizer.from_pretrained("examples/models/agreement")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=None, **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    places = {name: "cpu" for name in ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")}
    places |= {f"model.layers.{number}": "disk" for number in range(2)}
    (folder / "map.json").write_text(json.dumps(places))
    return folder


def test_an_explainer_of_a_model_on_a_disk_says_what_that_in_memory_does(saved):
    places = json.loads((saved / "map.json").read_text())
    plain, offloaded = Explainer(saved), Explainer(saved, device_map=places)
    assert offloaded.model.model.layers[0].mlp.up_proj.weight.is_meta
    text = "the dog near the cats"
    got, expected = offloaded(text), plain(text)
    close(torch.tensor(got.relevance), torch.tensor(expected.relevance))
    assert got.label == expected.label
    assert got.about["digest"] == expected.about["digest"]
    assert offloaded.answer(text, max_new_tokens=3).label == plain.answer(text, max_new_tokens=3).label


@pytest.mark.parametrize("given", ["auto", "file"])
def test_the_command_line_takes_a_device_map(saved, given, capsys):
    places = "auto" if given == "auto" else str(saved / "map.json")
    asked = ["explain", "--model", str(saved), "--text", "the dog near the cats", "--json"]
    assert main(asked) == 0
    expected = json.loads(capsys.readouterr().out)["relevance"]
    assert main([*asked, "--device-map", places]) == 0
    close(torch.tensor(json.loads(capsys.readouterr().out)["relevance"]), torch.tensor(expected))


def test_many_rows_of_a_model_on_a_disk_are_those_of_the_one_in_memory(saved, tmp_path):
    rows = tmp_path / "rows.jsonl"
    texts = ("the dog near the cats", "the keys", "the old keys to the cabinet by the books")
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    asked = ["explain", "--model", str(saved), "--input", str(rows), "--json"]
    assert main([*asked, "--out", str(tmp_path / "memory")]) == 0
    assert main([*asked, "--out", str(tmp_path / "disk"), "--device-map", str(saved / "map.json")]) == 0
    expected, got = (open_results(tmp_path / name) for name in ("memory", "disk"))
    assert len(got) == 3
    for row in range(3):
        assert got[row].label == expected[row].label
        close(torch.tensor(got[row].relevance), torch.tensor(expected[row].relevance))


def test_what_cannot_be_put_anywhere_is_refused(saved, monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(InputError, match="device_map and a tp_plan, expected one"):
        Explainer(saved, device_map="auto", tp_plan="auto")
    with pytest.raises(InputError, match="in a single process, expected several: torchrun"):
        Explainer(saved, tp_plan="auto")
    with pytest.raises(InputError, match="the tp_plan 'rows', expected 'auto'"):
        Explainer(saved, tp_plan="rows")
    with pytest.raises(InputError, match="expected a model of transformers"):
        Explainer("timm:vit_tiny_patch16_224", device_map="auto")
    with pytest.raises(InputError, match="for a loaded model, expected its name"):
        Explainer(llama(), device_map="auto")
    asked = ["explain", "--model", str(saved), "--text", "the dog", "--json"]
    for options, said in (
        (["--device-map", "nowhere.json"], "cannot read --device-map"),
        (["--device-map", "auto", "--dtype", "float32"], "--dtype with --device-map"),
    ):
        assert main([*asked, *options]) == 2
        assert said in capsys.readouterr().err
