"""The command line: what it writes, what it says, and how it goes on after it was stopped."""

import configparser
import io
import json
import os
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import readers
import torch
import transformers
from PIL import Image

from zennit_attn import (
    AttnLRPComposite,
    CPLRPComposite,
    GammaViTComposite,
    InputXGradient,
    cli,
    input_x_gradient,
    targets,
)
from zennit_attn.explain import Explainer, loading

ROOT = Path(__file__).parent.parent
AGREEMENT = str(ROOT / "examples" / "models" / "agreement")
TEXT = "the keys to the old cabinet"
SMALL = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """Return the folder of a random vision transformer."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vit")
    names = {0: "cat", 1: "dog", 2: "hen"}
    config = transformers.ViTConfig(**SMALL, image_size=32, patch_size=8, id2label=names, initializer_range=0.2)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """Return the folder of a random classifier of texts."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bert")
    names = {0: "wrong", 1: "right"}
    config = transformers.BertConfig(**SMALL, vocab_size=205, id2label=names, initializer_range=0.2)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(AGREEMENT).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def image(tmp_path):
    """Return an image file."""
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    return tmp_path / "one.png"


def run(capsys, *arguments):
    """Return the exit code, stdout and stderr of a command."""
    code = cli.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def expected(model, composite, given, target):
    with InputXGradient(model, input_x_gradient(composite)) as attributor:
        return attributor(given, target)


def test_a_unit_that_is_none_is_said_before_anything_else(capsys, tmp_path):
    given = ["explain", "--model", AGREEMENT, "--text", TEXT, "--unit", "message", "--out", tmp_path / "x.html"]
    code, out, err = run(capsys, *given)
    assert (code, out) == (2, "")
    assert "got the unit 'message', expected one of ['token', 'word', 'sentence', 'line']" in err
    assert not (tmp_path / "x.html").exists()


@pytest.mark.parametrize(
    ("options", "composite", "target"),
    [
        ([], AttnLRPComposite(), targets.MaxLogit()),
        (["--target", "are"], AttnLRPComposite(), targets.Label(161)),
        (["--target", "#161", "--composite", "cp_lrp"], CPLRPComposite(), targets.Label(161)),
        (["--contrastive"], AttnLRPComposite(), targets.Contrastive()),
        (["--contrastive", "--target", "are"], AttnLRPComposite(), targets.Contrastive(161)),
    ],
)
def test_text(capsys, options, composite, target):
    code, out, _ = run(capsys, "explain", "--model", AGREEMENT, "--text", TEXT, "--json", *options)
    model = transformers.AutoModelForCausalLM.from_pretrained(AGREEMENT).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(AGREEMENT)
    output, relevance = expected(model, composite, tokenizer(TEXT, return_tensors="pt"), target)
    said = json.loads(out)
    assert code == 0
    torch.testing.assert_close(torch.tensor(said["relevance"]), relevance[0])
    logits = output.logits[0, -1].detach()
    index = getattr(target, "label", None) or int(logits.argmax())
    assert said["target"] == {"index": index, "label": tokenizer.decode([index])}
    assert said["logit"] == pytest.approx(float(logits[index]))
    others = (logits.sum() - logits[index]) / (len(logits) - 1)
    assert said["explained"] == pytest.approx(float(logits[index] - others * ("--contrastive" in options)), rel=1e-5)
    assert "".join(said["tokens"]).split() == TEXT.split()
    assert said["composite"]["preset"] == composite.preset
    assert said["versions"]["torch"] == torch.__version__.split("+")[0]


@pytest.mark.parametrize("suffix", ["html", "png", "svg", "pdf"])
def test_heatmap(tmp_path, capsys, suffix):
    file = tmp_path / f"heatmap.{suffix}"
    code, out, err = run(capsys, "explain", "--model", AGREEMENT, "--text", TEXT, "--target", "are", "--out", file)
    assert (code, err) == (0, "")
    assert "'are': logit +5.581" in out
    assert f"{TEXT}  [-1.79 to +1.79]" in out
    assert file.stat().st_size > 1000
    if suffix in ("html", "svg"):
        assert "cabinet" in file.read_text()


def test_dtype_and_a_composite_of_ones_own(tmp_path, capsys):
    (tmp_path / "mine.toml").write_text('preset = "cp_lrp"\n[parameters]\nepsilon = 0.25\n')
    options = ["--composite", tmp_path / "mine.toml", "--dtype", "float64", "--json"]
    _, out, _ = run(capsys, "explain", "--model", AGREEMENT, "--text", TEXT, *options)
    assert json.loads(out)["composite"]["parameters"] == {"epsilon": 0.25, "strict": False}
    assert json.loads(out)["dtype"] == "float64"
    model = transformers.AutoModelForCausalLM.from_pretrained(AGREEMENT).double().eval()
    ids = transformers.AutoTokenizer.from_pretrained(AGREEMENT)(TEXT, return_tensors="pt")
    _, relevance = expected(model, CPLRPComposite(0.25), ids, targets.MaxLogit())
    torch.testing.assert_close(torch.tensor(json.loads(out)["relevance"], dtype=torch.float64), relevance[0])


def test_classifier_of_texts(capsys, bert):
    for target in ("right", "1"):
        _, out, _ = run(capsys, "explain", "--model", bert, "--text", TEXT, "--target", target, "--json")
        assert json.loads(out)["target"] == {"index": 1, "label": "right"}
    model = transformers.AutoModelForSequenceClassification.from_pretrained(bert).eval()
    ids = transformers.AutoTokenizer.from_pretrained(bert)(TEXT, return_tensors="pt")
    _, relevance = expected(model, AttnLRPComposite(), ids, targets.Label(1))
    torch.testing.assert_close(torch.tensor(json.loads(out)["relevance"]), relevance[0])


def test_image(tmp_path, capsys, vit, image):
    options = ["--target", "dog", "--json", "--out", tmp_path / "dog.png"]
    code, out, _ = run(capsys, "explain", "--model", vit, "--image", image, *options)
    model = transformers.AutoModelForImageClassification.from_pretrained(vit).eval()
    with Image.open(image) as opened:
        pixels = transformers.AutoImageProcessor.from_pretrained(vit)(images=opened, return_tensors="pt")
    output, relevance = expected(model, GammaViTComposite(), pixels, targets.Label(1))
    assert code == 0
    torch.testing.assert_close(torch.tensor(json.loads(out)["relevance"]), relevance[0].sum(0))
    assert json.loads(out)["logit"] == pytest.approx(output.logits[0, 1].item())
    with Image.open(tmp_path / "dog.png") as picture:
        assert picture.width > 500


def test_words_that_the_model_does_not_know_are_reported(tmp_path, capsys):
    _, _, err = run(capsys, "explain", "--model", AGREEMENT, "--text", "the zebra", "--out", tmp_path / "x.html")
    assert err == "zennit-attn: warning: the model does not know some of the words: it reads <unk> there\n"


def test_unknown_operations_are_reported(tmp_path, capsys, monkeypatch):
    class Custom(transformers.models.llama.modeling_llama.LlamaMLP):
        def forward(self, x):
            return super().forward(torch.special.i0(x))

    monkeypatch.setattr(transformers.models.llama.modeling_llama, "LlamaMLP", Custom)
    _, out, err = run(capsys, "explain", "--model", AGREEMENT, "--text", TEXT, "--json")
    assert "no rule is known for special_i0" in json.loads(out)["warnings"][0]
    assert "no rule is known for special_i0" in err


def test_too_little_memory_is_reported(capsys, monkeypatch):
    def too_large(*args):
        raise torch.OutOfMemoryError("tried to allocate 9 GiB\nmore of it")

    monkeypatch.setattr(InputXGradient, "__call__", too_large)
    code, _, err = run(capsys, "explain", "--model", AGREEMENT, "--text", TEXT, "--json")
    assert code == 2
    assert "cpu is out of memory (tried to allocate 9 GiB)" in err
    assert "the dtype bfloat16" in err


def test_models_that_cannot_be_moved_are_reported(capsys, monkeypatch):
    def stays(*args):
        raise ValueError("`.to` is not supported for 4-bit models")

    monkeypatch.setattr(transformers.LlamaForCausalLM, "to", stays)
    code, _, err = run(capsys, "explain", "--model", AGREEMENT, "--text", TEXT, "--json", "--dtype", "bfloat16")
    assert code == 2
    assert "cannot put LlamaForCausalLM on cpu in bfloat16 (`.to` is not supported for 4-bit models)" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "no/such-model", "--text", "a"], "'no/such-model' and cannot load it"),
        (["--model", AGREEMENT, "--text", "keys " * 40], "40 tokens, expected at most 32"),
        (["--model", AGREEMENT, "--text", " "], "expected words"),
        (["--model", AGREEMENT, "--text", "keys", "--target", "aree"], "nearest: 'are'"),
        (["--model", AGREEMENT, "--text", "keys", "--target", "#205"], "an id below 205"),
        (["--model", AGREEMENT, "--text", "keys", "--composite", "cplrp"], "nearest: 'cp_lrp'"),
        (["--model", AGREEMENT, "--text", "keys", "--composite", "no.toml"], "No such file"),
        (["--model", AGREEMENT, "--text", "keys", "--composite", "gamma_vit"], "'patch_embedding'"),
        (["--model", AGREEMENT, "--text", "keys", "--device", "tpu"], "expected auto, cpu, cuda"),
        (["--model", AGREEMENT, "--text", "keys", "--device", "cuda:99"], "use the device cpu"),
        (["--model", AGREEMENT, "--image", "x.png"], "a LlamaForCausalLM; expected a text"),
        (["--model", AGREEMENT, "--input", "no.jsonl"], "cannot read --input"),
    ],
)
def test_what_cannot_be_used(tmp_path, capsys, options, message):
    code, out, err = run(capsys, "explain", *options, "--out", tmp_path / "x.html")
    assert (code, out) == (2, "")
    assert message in err
    # one line, and no traceback
    assert err.startswith("zennit-attn: error: ")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_images_that_cannot_be_used(tmp_path, capsys, vit, image):
    (tmp_path / "broken.png").write_bytes(image.read_bytes()[:200])
    out = ["--out", tmp_path / "x.png"]
    for options, message in [
        (["--image", tmp_path / "none.png"], "No such file"),
        (["--image", tmp_path / "broken.png"], "cannot read the image"),
        (["--image", image, "--target", "dgo"], "nearest: 'dog'"),
        (["--text", "a dog"], "expected an image"),
    ]:
        code, _, err = run(capsys, "explain", "--model", vit, *options, *out)
        assert (code, err.count("\n")) == (2, 1)
        assert message in err


def test_a_text_is_shown_in_the_terminal(capsys):
    code, out, _ = run(capsys, "explain", "--model", AGREEMENT, "--text", "the keys", "--target", "are")
    assert code == 0
    assert "keys" in out
    assert "written" not in out


def test_an_image_needs_a_file_for_its_heatmap(capsys):
    code, _, err = run(capsys, "explain", "--model", "no/such-model", "--image", "cat.png")
    assert code == 2
    assert "neither --out nor --json" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "x.txt"], ".html, .png, .svg, .pdf"),
        (["--out", "no/such/folder/x.html"], "there is no folder"),
    ],
)
def test_outputs_are_checked_before_a_model_is_loaded(capsys, options, message):
    code, _, err = run(capsys, "explain", "--model", "no/such-model", "--text", "a", *options)
    assert code == 2
    assert message in err


def test_models_of_other_kinds_are_refused(tmp_path, capsys):
    for architectures in (["BertForNextSentencePrediction"], None):
        transformers.BertConfig(**SMALL, architectures=architectures).save_pretrained(tmp_path)
        code, _, err = run(capsys, "explain", "--model", tmp_path, "--text", "a", "--json")
        assert code == 2
        assert "expected one for image and text to text, speech" in err


def test_wrong_usage_is_argparse_s(capsys):
    for arguments in (["explain"], ["explain", "--model", "x"], ["explian"]):
        with pytest.raises(SystemExit, match="2"):
            cli.main(arguments)
        assert "usage:" in capsys.readouterr().err


def test_composites(capsys):
    code, out, _ = run(capsys, "composites")
    assert code == 0
    assert "gamma_vit: γ rules for vision transformers" in out
    assert "    conv_gamma = 0.25" in out
    _, out, _ = run(capsys, "composites", "--json")
    assert json.loads(out)["gamma_vit"]["parameters"]["linear_gamma"] == 0.05
    assert list(json.loads(out)) == ["attnlrp", "cp_lrp", "gamma_vit", "relp", "libragrad"]


def test_describe_needs_no_weights(tmp_path, capsys, vit):
    config = transformers.AutoConfig.from_pretrained(vit)
    config.save_pretrained(tmp_path)
    code, out, _ = run(capsys, "describe", "--model", tmp_path)
    model = transformers.AutoModelForImageClassification.from_pretrained(vit)
    assert code == 0
    assert out == GammaViTComposite().describe(model) + "\n"
    _, out, _ = run(capsys, "describe", "--model", tmp_path, "--composite", "cp_lrp", "--json")
    modules = json.loads(out)["modules"]
    assert modules[0] == {"module": "", "role": None, "rule": "CPLRP", "parameters": {"strict": False}}
    assert {module["role"] for module in modules[1:]} == {"patch_embedding", "qkv", "projection", "mlp", "head"}


def test_a_study_that_is_not_there(capsys, tmp_path):
    code, _, error = run(capsys, "tune", tmp_path / "none.toml")
    assert code == 2
    assert "none.toml" in error


def test_the_entry_point_is_installed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    name, target = setup["options.entry_points"]["console_scripts"].strip().split(" = ")
    assert name == "zennit-attn"
    assert pkgutil.resolve_name(target) is cli.main


def test_as_a_program():
    program = shutil.which("zennit-attn")
    command = [program] if program else [sys.executable, "-m", "zennit_attn"]
    done = subprocess.run([*command, "composites", "--json"], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "attnlrp" in json.loads(done.stdout)


LIGHT = [
    (["--help"], 0),
    ([], 0),
    (["--version"], 0),
    (["explain", "--help"], 0),
    (["explain", "--model", "gpt2"], 2),
    (["explain", "--model", "gpt2", "--text", "a", "--dtype", "float8"], 2),
    (["none"], 2),
]


@pytest.mark.parametrize(("arguments", "code"), LIGHT, ids=lambda value: str(value))
def test_help_and_wrong_usage_import_nothing_heavy(arguments, code):
    program = (
        "import sys, zennit_attn.cli\n"
        "try: code = zennit_attn.cli.main(sys.argv[1:])\n"
        "except SystemExit as exit: code = exit.code\n"
        "heavy = {'torch', 'numpy', 'transformers', 'zennit', 'matplotlib', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "sys.exit(code)"
    )
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == code, done.stderr


def test_the_names_that_the_parser_knows_are_those_of_the_package():
    from zennit_attn.cli import parser
    from zennit_attn.composites import PRESETS
    from zennit_attn.data import engines

    assert set(parser.PRESETS) == set(PRESETS)
    assert parser.DTYPES == loading.DTYPES
    assert parser.ENGINES == engines.ENGINES


def test_without_a_command_there_is_help(capsys):
    assert cli.main([]) == 0
    assert "usage: zennit-attn" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "expected"), [("zennit-attn desc", {"describe "}), ("zennit-attn explain --dty", {"--dtype "})]
)
def test_shells_complete(tmp_path, line, expected):
    pytest.importorskip("argcomplete")
    environment = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "0",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "out"),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    subprocess.run([sys.executable, "-m", "zennit_attn"], env=environment, cwd=ROOT, check=False, capture_output=True)
    assert set((tmp_path / "out").read_text().split("\n")) == expected


@pytest.fixture
def chat(tmp_path):
    """Return the folder of a tiny chat model."""
    tokenizer = readers.byte_level()
    sizes = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**sizes, num_hidden_layers=2, bos_token_id=0, eos_token_id=2)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "chat")
    tokenizer.save_pretrained(tmp_path / "chat")
    return tmp_path / "chat"


def test_answers_of_a_chat(tmp_path, capsys, chat):
    (tmp_path / "a.txt").write_text("Clara has a goat.", encoding="utf-8")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who is Clara?"}]
    (tmp_path / "chat.json").write_text(json.dumps(messages), encoding="utf-8")
    given = ["--document", tmp_path / "a.txt", "--answer", "Clara has a goat.", "--unit", "document", "--json"]
    base = ["explain", "--model", chat]
    _, one, _ = run(capsys, *base, "--chat", tmp_path / "chat.json", *given)
    _, other, _ = run(capsys, *base, "--system", "Be brief.", "--user", "Who is Clara?", *given)
    assert json.loads(one)["relevance"] == json.loads(other)["relevance"]
    expected = Explainer(str(chat)).answer(messages, "Clara has a goat.", documents={"a.txt": "Clara has a goat."})
    assert json.loads(one)["relevance"] == pytest.approx(expected.by("document"))
    _, contrastive, _ = run(capsys, *base, "--user", "Who is Clara?", "--answer", "a", "--contrastive", "--json")
    assert json.loads(contrastive)["explained"] == pytest.approx(
        Explainer(str(chat)).answer(messages[1:], "a", target=targets.Contrastive).value
    )
    # without a text the model answers
    code, out, _ = run(capsys, *base, "--user", "Who is Clara?", "--max-new-tokens", "3")
    assert (code, "attnlrp" in out) == (0, True)


def test_a_saved_explanation_is_shown_again(tmp_path, capsys, chat):
    base = ["explain", "--model", chat, "--user", "Who is Clara?", "--answer", "Clara has a goat."]
    for name in ("why.json", "why.safetensors"):
        assert run(capsys, *base, "--out", tmp_path / name)[0] == 0
        code, out, err = run(capsys, "show", tmp_path / name, "--unit", "word", "--out", tmp_path / "again.png")
        assert (code, err) == (0, "")
        assert "Clara" in out
        assert (tmp_path / "again.png").exists()
        assert json.loads(run(capsys, "show", tmp_path / name, "--json")[1])["task"] == "answer"
    code, _, err = run(capsys, "show", tmp_path / "again.png")
    assert (code, "cannot read" in err) == (2, True)


def test_presets_and_models_side_by_side(tmp_path, capsys):
    command = ["explain", "--model", AGREEMENT, "--text", TEXT, "--composite", "attnlrp", "cp_lrp"]
    code, out, _ = run(capsys, *command, "--out", tmp_path / "both.png")
    assert code == 0
    assert "attnlrp: the keys" in out
    assert "cp_lrp: the keys" in out
    code, _, err = run(capsys, *command, "--json")
    assert (code, "which are a picture" in err) == (2, True)


def test_texts_from_a_pipe_and_pairs(capsys, monkeypatch, bert):
    monkeypatch.setattr(sys, "stdin", io.StringIO(TEXT))
    _, piped, _ = run(capsys, "explain", "--model", AGREEMENT, "--text", "-", "--json")
    _, given, _ = run(capsys, "explain", "--model", AGREEMENT, "--text", TEXT, "--json")
    assert json.loads(piped)["relevance"] == json.loads(given)["relevance"]
    _, out, _ = run(capsys, "explain", "--model", bert, "--text", "the keys", "--text", "the cabinet", "--json")
    assert "".join(json.loads(out)["tokens"]).split() == ["the", "keys", "the", "cabinet"]


def test_what_does_not_go_together_is_said(tmp_path, capsys, chat):
    (tmp_path / "chat.json").write_text("{}", encoding="utf-8")
    (tmp_path / "empty.json").write_text("[]", encoding="utf-8")
    (tmp_path / "x.bin").write_bytes(b"\xff\xfe\x00")
    for options, message in [
        (["--text", "a", "--text", "b", "--answer", "c"], "got 2 texts for an answer"),
        (["--user", "a", "--target", "b"], "got --target for an answer"),
        (["--text", "a", "--system", "b"], "got --system without --user"),
        (["--chat", tmp_path / "chat.json"], "expected a list of messages"),
        (["--chat", tmp_path / "none.json"], "cannot read --chat"),
        (["--text", "a", "--user", "b"], "got --text and --user"),
        (["--text", "a", "--document", tmp_path / "chat.json"], "got --document without an answer"),
        (["--text", "a", "--max-new-tokens", "3"], "got --max-new-tokens without an answer"),
        (["--user", "a", "--max-new-tokens", "-3"], "expected at least 1"),
        (["--user", "a", "--answer", "b", "--document", tmp_path / "x.bin"], "expected a text in UTF-8"),
        (["--chat", tmp_path / "empty.json"], "got no messages"),
        (["--text", "a", "--out", tmp_path / "x.gif"], "expected a name that ends with"),
    ]:
        code, _, err = run(capsys, "explain", "--model", chat, *options)
        assert (code, message in err) == (2, True), err
