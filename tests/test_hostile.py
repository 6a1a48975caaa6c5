"""Files and input that are broken or meant to do harm: each is right, or refused by words, and runs nothing."""

import contextlib
import errno
import io
import json
import os
import pickle
import re
import resource
import signal
import struct
import tracemalloc
import wave
import xml.etree.ElementTree
from pathlib import Path

import hostile
import models
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from test_explainer import text_models, vision

from zennit_attn import Explainer, Explanation, cli, load_composite
from zennit_attn.data import BatchExplainer, open_results
from zennit_attn.data.sources import LONGEST, source_of
from zennit_attn.errors import InputError
from zennit_attn.explain.images import FORMATS, image_of, suffixes
from zennit_attn.tuning import read_study

AGREEMENT = str(Path(__file__).parent.parent / "examples" / "models" / "agreement")
#: What a terminal would obey (ESC, and the one letter that stands for it and a bracket), and what turns text around.
COMMANDS = "\x1b]0;owned\x07\x9b31m\u202e"


def explain(*options):
    return cli.main(["explain", *(str(option) for option in options)])


class Runs:
    """What runs a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def vit(tmp_path_factory):
    """A folder of a tiny model for images."""
    folder = tmp_path_factory.mktemp("model") / "vit"
    with torch.no_grad():
        model, reader, _ = vision("image classification")
    model.save_pretrained(folder)
    reader.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def patience():
    """Fail if something waits for what never comes."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def reader():
    """What explains rows of texts."""
    return BatchExplainer(AGREEMENT)


# images


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", hostile.RIGHT)
def test_images_of_every_kind_are_right(name, tmp_path):
    content, expected, tolerance = hostile.RIGHT[name]
    (tmp_path / "image.png").write_bytes(content)
    with Image.open(tmp_path / "image.png") as opened:
        for given in (tmp_path / "image.png", str(tmp_path / "image.png"), content, opened):
            found = np.asarray(image_of(given)).astype(int)
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() <= tolerance


@pytest.mark.parametrize("warn", [True, False], ids=["warnings", "errors"])
@pytest.mark.parametrize("name", hostile.BAD)
def test_bad_images_are_refused(name, tmp_path, warn, recwarn):
    content, words = hostile.BAD[name]
    (tmp_path / "image.png").write_bytes(content)
    with contextlib.nullcontext() if not warn else pytest.MonkeyPatch.context() as patch:
        if warn:
            patch.setattr("warnings.filters", [("ignore", None, Warning, None, 0)])
        for given in (tmp_path / "image.png", content):
            with pytest.raises(InputError, match=words):
                image_of(given)


def test_no_format_starts_a_program(tmp_path, monkeypatch):
    for name in ("subprocess.Popen", "os.system", "os.posix_spawn"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("a program was started"))
    (tmp_path / "image.png").write_bytes(hostile.EPS)
    with pytest.raises(InputError, match="cannot identify"):
        image_of(tmp_path / "image.png")
    assert not {"EPS", "PDF", "WMF", "PSD"} & set(FORMATS)
    assert {".png", ".jpg", ".tiff"} <= suffixes()
    assert not {".eps", ".ps", ".pdf", ".wmf"} & suffixes()


@pytest.mark.parametrize("name", hostile.NO_FILES)
def test_what_is_no_file_is_not_waited_for(name, tmp_path):
    make, words = hostile.NO_FILES[name]
    make(tmp_path / "image.png")
    for given in (tmp_path / "image.png", str(tmp_path / "image.png")):
        with pytest.raises(InputError, match=words):
            image_of(given)
    with pytest.raises(InputError, match="a folder"):
        image_of(tmp_path)
    with pytest.raises(InputError, match="cannot read"):
        image_of("a\0b.png")
    with pytest.raises(InputError, match="cannot read"):
        image_of("a" * 5000)


def test_pixels_may_be_more_if_they_are_asked_for(monkeypatch):
    content = hostile.png(300, 300, 8, 0, bytes(301 * 300))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300 * 300 - 1)
    with pytest.raises(InputError, match=r"exceeds limit|expected at most 89999, which is PIL\.Image\.MAX"):
        image_of(content)
    for most in (300 * 300, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        assert image_of(content).size == (300, 300)


@pytest.mark.parametrize(
    "array",
    [
        np.full((4, 4), np.nan),
        np.full((4, 4), 1e9),
        np.full((4, 4), 300),
        np.full((4, 4), -1),
        np.full((4, 4), 1j),
        np.full((4, 4), "a"),
        np.full((4, 4), None),
        np.zeros((5, 5, 7)),
        np.zeros((0, 4)),
        torch.full((3, 4, 4), torch.nan),
    ],
    ids=lambda array: f"{array.dtype} {array.shape}",
)
def test_arrays_that_are_no_image_are_refused(array):
    with pytest.raises(InputError, match="as an image; expected integers from 0"):
        image_of(array)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_bytes_that_were_changed_are_an_image_or_refused(kind):
    whole = hostile.saved(Image.fromarray(hostile.COLOUR), kind)
    random = np.random.default_rng(0)
    for _ in range(100):
        content = bytearray(whole)
        for place in random.integers(0, min(len(whole), 200), random.integers(1, 8)):
            content[place] = random.integers(0, 256)
        with contextlib.suppress(InputError):
            assert image_of(bytes(content)).mode == "RGB"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_images_of_a_folder_are_errors_of_their_rows(vit, tmp_path, capsys):
    folder, out = tmp_path / "images", tmp_path / "out"
    (folder / "inside.png").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(hostile.PALETTE)
    for name, (make, _) in hostile.NO_FILES.items():
        make(folder / f"{name}.png")
    expected = {f"{name}.png": words for name, (_, words) in hostile.NO_FILES.items()}
    for name, (content, words) in hostile.BAD.items():
        (folder / f"{name}.png").write_bytes(content)
        expected[f"{name}.png"] = words
    (folder / "link out.png").symlink_to(tmp_path / "secret.png")
    expected["link out.png"] = "not in"
    for name in ("good.png", "gut ü 😀.png", "\x1b[31m\n.png", os.fsdecode(b"\xff.png"), "inside.png/it.png"):
        (folder / name).write_bytes(hostile.PALETTE)
        expected[name] = None
    (folder / "link inside.png").symlink_to(folder / "good.png")
    expected["link inside.png"] = None
    assert explain("--model", vit, "--input", folder, "--out", out) == 1
    results = open_results(out)
    found = dict(zip(results.column("image"), results.column("error"), strict=True))
    assert found.keys() == {name.encode("utf-8", "backslashreplace").decode() for name in expected}
    for name, words in expected.items():
        error = found[name.encode("utf-8", "backslashreplace").decode()]
        assert (error is None) is (words is None), (name, error)
        assert words is None or re.search(words, error), (name, error)
    said = capsys.readouterr()
    assert "6 done" in said.out
    assert "\x1b" not in said.out + said.err
    # what a link leads to is read where that was said
    assert explain("--model", vit, "--input", folder, "--out", tmp_path / "any", "--files-within", "/") == 1
    found = dict(
        zip(open_results(tmp_path / "any").column("image"), open_results(tmp_path / "any").column("error"), strict=True)
    )
    assert found["link out.png"] is None
    assert "a device" in found["a device.png"]


# rows

#: A line of JSON between two good ones, and by which words it is refused, if it is.
LINES = {
    "nothing": (b"", "not valid JSON"),
    "half an object": (b'{"text": "the', "not valid JSON"),
    "a list": (b"[1]", r"got '\[1\]', expected an object"),
    "a long text alone": (b'"' + b"x" * 10**6 + b'"', "expected an object"),
    "no UTF-8": (b'{"text": "\xff"}', "not valid JSON"),
    "lists in lists": (b"[" * 10**5, "not valid JSON"),
    "objects in objects": (b'{"text":' * 10**5, "not valid JSON"),
    "NaN": (b'{"text": NaN}', "expected words"),
    "an object as a text": (b'{"text": {"a": "the keys"}}', "expected words"),
    "an integer of 5000 digits": (b'{"text": "the keys", "id": ' + b"9" * 5000 + b"}", "not valid JSON"),
    "half a character": (b'{"text": "the \\ud800 keys"}', "half of a character"),
    "a line of 16 MiB": (b'{"text": "' + b"x" * LONGEST + b'"}', "bytes, expected at most 16777216"),
    "an empty text": (b'{"text": "\\u0000"}', None),
    "more words than there is room for": (b'{"text": "' + b"the " * 4000 + b'"}', "got a text of 40"),
    "the name of a result": (b'{"text": "the keys", "row": 9}', "which results have"),
    "a name like another": (b'{"text": "the keys", "targets": 9}', "which is like 'target'"),
    "a target that is an object": (b'{"text": "the keys", "target": {"a": 1}}', "target|cannot read the row"),
    "messages that are a text": (b'{"messages": "the keys"}', None),
    "messages that are numbers": (b'{"messages": [1]}', "got the message"),
    "messages of a program": (b'{"messages": [{"role": "user", "content": [{"type": "code"}]}]}', "got the part"),
    "documents that are a number": (b'{"text": "the keys", "documents": 5}', "."),
    "an answer that is a number": (b'{"text": "the keys", "answer": 5}', "."),
    "no columns": (b"{}", "nothing to explain"),
    # these are explained
    "an integer of 30 digits": (b'{"text": "the keys", "id": ' + b"9" * 30 + b"}", None),
    "an empty object": (b'{"text": "the keys", "meta": {}}', None),
    "lists in lists, to hand on": (b'{"text": "the keys", "meta": ' + b"[" * 300 + b"]" * 300 + b"}", None),
    "half a character, to hand on": (b'{"text": "the keys", "meta": "\\ud800", "\\udfff": 1}', None),
    "commands of a terminal": (b'{"text": "the keys \\u001b[31m", "\\u001b[0m": "\\u001b[0m"}', None),
}


def test_bad_lines_are_errors_of_their_rows(tmp_path, capsys):
    file, out = tmp_path / "rows.jsonl", tmp_path / "out"
    good = b'{"text": "the keys to the cabinet", "id": 7}'
    file.write_bytes(b"\n".join(line for bad, _ in LINES.values() for line in (good, bad)) + b"\n")
    assert explain("--model", AGREEMENT, "--input", file, "--out", out) == 1
    results = open_results(out)
    errors = results.column("error")
    assert results.column("row") == list(range(2 * len(LINES)))
    assert errors[::2] == [None] * len(LINES)
    for (name, (_, words)), error in zip(LINES.items(), errors[1::2], strict=True):
        assert (error is None) is (words is None), (name, error)
        assert words is None or re.search(words, error), (name, error)
        assert error is None or len(error) < 1000, name
    # other shapes are rounded differently
    assert results.column("value")[::2] == pytest.approx(
        [Explainer(AGREEMENT)("the keys to the cabinet").value] * len(LINES), rel=1e-5
    )
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert cli.main(["show", str(out)]) == 0
    assert "\x1b" not in (out / "index.html").read_text()


@pytest.mark.parametrize("name", LINES)
def test_a_bad_line_alone_is_no_harm(name, tmp_path, reader):
    bad, words = LINES[name]
    (tmp_path / "rows.jsonl").write_bytes(bad + b"\n")
    (row,) = source_of(tmp_path / "rows.jsonl").read(0, 1)
    (found,) = reader.explanations([row])
    assert isinstance(found, InputError) is (words is not None)


def test_memory_stays_however_long_a_line_is(tmp_path):
    file = tmp_path / "rows.jsonl"
    with file.open("wb") as opened:
        opened.write(b'{"text": "the keys"}\n')
        # 200 MB that are nowhere on the disk
        opened.truncate(opened.tell() + 200_000_000)
        opened.seek(0, os.SEEK_END)
        opened.write(b'\n{"text": "the key"}\n' * 2)
    tracemalloc.start()
    source = source_of(file)
    rows = source.read(0, len(source))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows[0] == {"text": "the keys"}
    assert "200000000 bytes" in str(rows[1]) or "200000001 bytes" in str(rows[1])
    assert rows[2] == {"text": "the key"}
    # blocks of 4 MiB, of which one is looked through for ends of lines
    assert peak < 40 * 2**20


def test_many_lines_are_read_where_they_are_asked_for(tmp_path):
    file = tmp_path / "rows.txt"
    file.write_bytes(b"the keys\n" * 500_000)
    source = source_of(file)
    tracemalloc.start()
    assert source.read(499_990, 500_000) == [{"text": "the keys"}] * 10
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


#: Values of the column ``image``, and by which words they are refused.
NAMES = {
    "above": ("../secret.png", "not in"),
    "above, from inside": ("inside/../../secret.png", "not in"),
    "absolute": ("/etc/passwd", "not in"),
    "a link out": ("link.png", "not in"),
    "a folder": (".", "a folder"),
    "a null": ("a\0b.png", "cannot read"),
    "a long one": ("a" * 5000, "cannot read"),
    "an address": ("https://example.com/image.png", "cannot read"),
    "data": ("data:image/png;base64,AAAA", "cannot read"),
    "a pipe": ("pipe.png", "a pipe"),
    "a number": (5, "got int"),
    "a list": ([], "got list"),
    "no bytes": ({"bytes": None, "path": None}, "got NoneType|nothing"),
    "bytes that are a text": ({"bytes": "../secret.png"}, "not in"),
    "bytes of nothing": ({"bytes": b"x"}, "cannot read"),
    "bytes of half an image": ({"bytes": hostile.truncated("PNG")}, "truncated"),
    "a path above": ({"path": "../secret.png"}, "not in"),
}


def test_rows_name_files_of_their_folder_alone(vit, tmp_path):
    folder = tmp_path / "rows"
    (folder / "inside").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(hostile.PALETTE)
    (folder / "good.png").write_bytes(hostile.PALETTE)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(folder / "pipe.png")
    good = [
        "good.png",
        "inside/../good.png",
        str(folder / "good.png"),
        {"bytes": hostile.PALETTE},
        tmp_path / "secret.png",
    ]
    explainer = Explainer(str(vit))
    asked = {"image": [*good, *(value for value, _ in NAMES.values())]}
    errors = BatchExplainer(explainer, folder=folder)(asked)["error"]
    # a path that is no text is the program's own
    assert errors[: len(good)] == [None] * len(good)
    for (name, (_, words)), error in zip(NAMES.items(), errors[len(good) :], strict=True):
        assert error is not None, name
        assert re.search(words, error), (name, error)
    names = {"image": ["../secret.png", "link.png", str(tmp_path / "secret.png")]}
    for within, expected in ((tmp_path, [True] * 3), ("/", [True] * 3), (folder, [False] * 3)):
        found = BatchExplainer(explainer, folder=folder, within=within)(names)["error"]
        assert [error is None for error in found] == expected


def test_messages_name_files_of_their_folder_alone(tmp_path):
    with torch.no_grad():
        model, tokenizer, _, _ = text_models()["next token"]
    (tmp_path / "rows").mkdir()
    (tmp_path / "secret.png").write_bytes(hostile.PALETTE)
    (tmp_path / "rows" / "good.png").write_bytes(hostile.PALETTE)
    batch = BatchExplainer(Explainer(model, tokenizer), folder=tmp_path / "rows")
    for name, words in (("../secret.png", "not in"), ("good.png", "it takes none")):
        content = [{"type": "text", "text": "Who?"}, {"type": "image", "image": name}]
        messages = [{"role": "user", "content": content}]
        (error,) = batch({"messages": [messages], "answer": ["Clara"]})["error"]
        assert words in error


@pytest.mark.parametrize("place", range(4, 1600, 97))
def test_parquet_that_was_changed_has_errors_of_its_rows(place, tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    file = tmp_path / "rows.parquet"
    texts = [f"the keys to the cabinet {number}" for number in range(100)]
    pyarrow.parquet.write_table(pa.table({"text": texts}), file, row_group_size=20, write_page_checksum=True)
    content = bytearray(file.read_bytes())
    content[place % len(content)] ^= 0xFF
    file.write_bytes(content)
    try:
        rows = source_of(file).read(0, 100)
    except InputError:
        return
    assert len(rows) == 100
    for row, text in zip(rows, texts, strict=True):
        # the names of columns have no checksum
        assert isinstance(row, InputError) or row.get("text", text) == text


def test_a_pipe_among_tables_is_refused(tmp_path):
    pytest.importorskip("pyarrow")
    os.mkfifo(tmp_path / "rows.parquet")
    with pytest.raises(InputError, match="a pipe"):
        source_of(tmp_path)
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(InputError, match=r"expected \.parquet"):
        source_of(tmp_path / "rows.jsonl")


def test_results_that_were_changed_are_refused(tmp_path, capsys):
    (tmp_path / "rows.txt").write_text("the keys\nthe key\n")
    out = tmp_path / "out"
    assert explain("--model", AGREEMENT, "--input", tmp_path / "rows.txt", "--out", out) == 0
    whole = {name: (out / name).read_bytes() for name in ("part-00000.parquet", "run.json", "about.json")}
    random = np.random.default_rng(0)
    for name, content in whole.items():
        for _ in range(40):
            changed = bytearray(content)
            for place in random.integers(0, len(changed), random.integers(1, 4)):
                changed[place] = random.integers(0, 256)
            (out / name).write_bytes(changed)
            assert cli.main(["show", str(out), "--row", "1"]) in (0, 2)
            shown = capsys.readouterr()
            assert "\x1b" not in shown.out + shown.err
        (out / name).write_bytes(content)
    assert cli.main(["show", str(out), "--row", "1"]) == 0


# audio and series


def sound(width=2, channels=1, rate=16_000, data=bytes(3200), frames=None):
    """Return a WAV file."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframesraw(data)
    whole = bytearray(content.getvalue())
    if frames is not None:
        struct.pack_into("<I", whole, 40, frames)
    return bytes(whole)


BAD_SOUNDS = {
    "nothing": (b"", "cannot read"),
    "no WAV": (b"RIFF" + bytes(40), "cannot read"),
    "24 bits": (sound(3), "24 bits"),
    "another rate": (sound(rate=8000), "8000 Hz, expected 16000"),
    "half a sample": (sound()[:-1], "cannot read"),
    "no samples": (sound(data=b""), "."),
    "no channels": (sound()[:22] + b"\0\0" + sound()[24:], "cannot read"),
    "floats": (sound()[:20] + b"\3\0" + sound()[22:], "cannot read"),
}


def test_bad_audio_is_refused(tmp_path):
    config = transformers.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=(8, 8),
        conv_kernel=(10, 3), conv_stride=(5, 2), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, classifier_proj_size=8, num_labels=2,
    )  # fmt: skip
    model = models.scramble(transformers.Wav2Vec2ForSequenceClassification(config)).eval()
    explainer = Explainer(model, transformers.Wav2Vec2FeatureExtractor())
    batch = BatchExplainer(explainer, folder=tmp_path)
    loud = (np.sin(np.arange(1600)) * 2**14).astype("<i2").tobytes()
    (tmp_path / "good.wav").write_bytes(sound(data=loud))
    # a header may promise more than there is
    (tmp_path / "promises.wav").write_bytes(sound(data=loud, frames=2**31))
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "zero.wav").symlink_to("/dev/zero")
    for name, (content, _) in BAD_SOUNDS.items():
        (tmp_path / f"{name}.wav").write_bytes(content)
    names = [f"{name}.wav" for name in ("good", "promises", "pipe", "zero", *BAD_SOUNDS)]
    errors = dict(zip(names, batch({"audio": names})["error"], strict=True))
    assert errors.pop("good.wav") is None
    assert errors.pop("promises.wav") is None
    words = {
        "pipe.wav": "a pipe",
        "zero.wav": "not in",
        **{f"{name}.wav": each for name, (_, each) in BAD_SOUNDS.items()},
    }
    for name, error in errors.items():
        assert error is not None, name
        assert re.search(words[name], error), (name, error)
    found = BatchExplainer(explainer)({"audio": [np.full(1600, np.nan), np.sin(np.arange(1600.0))]})["error"]
    assert "finite" in found[0]
    assert found[1] is None


def test_bad_series_are_refused(tmp_path, capsys):
    config = transformers.PatchTSTConfig(
        num_input_channels=1, context_length=16, patch_length=4, patch_stride=4, d_model=8, num_hidden_layers=1,
        num_attention_heads=2, ffn_dim=8, num_targets=2,
    )  # fmt: skip
    models.scramble(transformers.PatchTSTForClassification(config)).eval().save_pretrained(tmp_path / "model")
    good = np.sin(np.arange(16.0))
    bad = {
        "nan": np.where(good > 0.9, np.nan, good),
        "inf": np.full(16, np.inf),
        "text": np.array(["a"] * 16),
        "other": good[:5],
    }
    # a header that promises a petabyte, and one that ends too early
    with (tmp_path / "huge.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (10**14,)})
    np.save(tmp_path / "broken.npy", np.zeros(16))
    content = (tmp_path / "broken.npy").read_bytes()
    (tmp_path / "broken.npy").write_bytes(content.replace(b")", b" "))
    np.save(tmp_path / "pickle.npy", np.array([Runs(tmp_path / "ran")], dtype=object), allow_pickle=True)
    (tmp_path / "words.csv").write_text("a,b\nc,d\n")
    for name, values in bad.items():
        np.save(tmp_path / f"{name}.npy", values)
    np.save(tmp_path / "good.npy", good)
    command = ["--model", tmp_path / "model", "--json", "--series"]
    assert explain(*command, tmp_path / "good.npy") == 0
    for name in ("huge.npy", "broken.npy", "pickle.npy", "words.csv", *(f"{name}.npy" for name in bad)):
        assert explain(*command, tmp_path / name) == 2, name
        assert "zennit-attn: error: " in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    rows = [good, "abc", None, [[]], {"a": 1}, [1, [2]], list(bad["nan"])]
    errors = BatchExplainer(str(tmp_path / "model"))({"series": rows})["error"]
    assert [error is None for error in errors] == [True] + [False] * 6


# models


@pytest.fixture
def agreement(tmp_path):
    """A folder of a language model, and the model."""
    model = transformers.AutoModelForCausalLM.from_pretrained(AGREEMENT)
    transformers.AutoTokenizer.from_pretrained(AGREEMENT).save_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model", model


def test_weights_are_safetensors_unless_pickles_are_asked_for(agreement, tmp_path, capsys):
    folder, model = agreement
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"safetensors.*allow_pickle=True"):
        Explainer(str(folder))
    assert explain("--model", folder, "--text", "the keys") == 2
    assert "--allow-pickle" in capsys.readouterr().err
    found = Explainer(str(folder), allow_pickle=True)("the keys")
    np.testing.assert_array_equal(found.relevance, Explainer(AGREEMENT)("the keys").relevance)
    assert explain("--model", folder, "--text", "the keys", "--allow-pickle") == 0
    assert BatchExplainer(str(folder), allow_pickle=True)({"text": ["the keys"]})["error"] == [None]


@pytest.mark.parametrize("allow_pickle", [False, True])
def test_pickles_run_nothing(agreement, tmp_path, allow_pickle):
    folder, _ = agreement
    (folder / "model.safetensors").unlink()
    torch.save({"a": Runs(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot load it"):
        Explainer(str(folder), allow_pickle=allow_pickle)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["zip", "old", "plain"])
@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "torchvision:shufflenet_v2_x0_5"])
def test_files_of_weights_run_nothing(name, kind, tmp_path):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    if kind == "plain":
        (tmp_path / "weights.pth").write_bytes(pickle.dumps(Runs(tmp_path / "ran")))
    else:
        torch.save(
            {"a": Runs(tmp_path / "ran")}, tmp_path / "weights.pth", _use_new_zipfile_serialization=kind == "zip"
        )
    with pytest.raises(InputError, match="cannot load"):
        Explainer(f"{name}@{tmp_path / 'weights.pth'}")
    assert not (tmp_path / "ran").exists()


#: A Python file that leaves a folder behind where it is run.
CODE = "import os\nos.mkdir({marker!r})\nclass Config: pass\nclass Model: pass\nclass Reader: pass\n"
#: Which file of a model's folder names code, by which class.
NAMING = {
    "config.json": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
    "tokenizer_config.json": {"AutoTokenizer": ["code.Reader", "code.Reader"]},
}


@pytest.mark.parametrize("is_known", [True, False], ids=["of a known type", "of another type"])
@pytest.mark.parametrize("name", NAMING)
def test_code_of_a_model_is_never_run(agreement, tmp_path, name, is_known, monkeypatch, capsys):
    folder, _ = agreement
    content = json.loads((folder / name).read_text())
    content["auto_map"] = NAMING[name]
    if not is_known:
        content |= {"model_type": "unheard", "tokenizer_class": "Unheard"}
    (folder / name).write_text(json.dumps(content))
    (folder / "code.py").write_text(CODE.format(marker=str(tmp_path / "ran")))
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(CODE.format(marker=str(tmp_path / "ran")))
    # transformers would ask on the terminal
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    for command in (
        ["explain", "--text", "the keys"],
        ["describe"],
        ["explain", "--text", "the keys", "--allow-pickle"],
    ):
        code = cli.main([*command, "--model", str(folder)])
        # what transformers has itself needs no code
        assert code == 2 or is_known or name == "tokenizer_config.json"
    capsys.readouterr()
    with contextlib.suppress(InputError):
        Explainer(str(folder)).answer("the keys", max_new_tokens=2)
    assert not (tmp_path / "ran").exists()


def test_templates_of_chats_stay_in_their_sandbox():
    with torch.no_grad():
        model, tokenizer, _, _ = text_models()["next token"]
    tokenizer.chat_template = "{{ messages[0].__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(InputError):
        Explainer(model, tokenizer).answer([{"role": "user", "content": "Who?"}], "Clara")


# composites and studies

PRESETS = {
    "a rule of another module": 'preset = "attnlrp"\n[[name_map]]\nnames = ["*"]\nrule = "os.system"\n',
    "a rule that is a call": 'preset = "attnlrp"\n[[name_map]]\nnames = ["*"]\nrule = "__import__(\'os\').system"\n',
    "a base of rules": 'preset = "attnlrp"\n[[name_map]]\nnames = ["*"]\nrule = "zennit.rules.Hook"\n',
    "a canonizer of another module": 'preset = "attnlrp"\ncanonizers = ["os.system"]\n',
    "a canonizer that is none": 'preset = "attnlrp"\ncanonizers = ["__builtins__"]\n',
    "a preset that is a file": 'preset = "../../etc/passwd"\n',
    "a parameter that is code": 'preset = "gamma_vit"\n[parameters]\nconv_gamma = "__import__(\'os\')"\n',
    "a parameter that is a map": 'preset = "gamma_vit"\n[parameters]\nname_map = [1]\n',
    "an unknown key": 'preset = "attnlrp"\n__class__ = "x"\n',
    "lists in lists": 'preset = "attnlrp"\ncanonizers = ' + "[" * 5000 + "]" * 5000 + "\n",
    "no TOML": "import os\n",
    "nothing": "",
    "no UTF-8": "preset = \udcff",
}


@pytest.mark.parametrize("name", PRESETS)
def test_composites_run_nothing(name, tmp_path, capsys):
    file = tmp_path / "mine.toml"
    file.write_text(PRESETS[name], errors="surrogateescape")
    with pytest.raises((TypeError, ValueError)):
        load_composite(file)
    assert explain("--model", AGREEMENT, "--text", "the keys", "--composite", file) == 2
    assert "zennit-attn: error: the composite: " in capsys.readouterr().err


@pytest.mark.parametrize("table", ["model", "data"])
def test_studies_run_code_if_it_is_asked_for(table, tmp_path, capsys, vit):
    marker, study = tmp_path / "ran", tmp_path / "study.toml"
    (tmp_path / "code.py").write_text(CODE.format(marker=str(marker)))
    names = {"model": f'"{vit}"', "data": '"FakeData"', table: '"code.py"'}
    study.write_text(
        f'preset = "gamma_vit"\n[model]\nname = {names["model"]}\n[data]\nname = {names["data"]}\ntune = 2\ntest = 2\n'
        "[search.parameters]\nconv_gamma = [0.1, 1]\n"
    )
    with pytest.raises(ValueError, match=r"names Python code, which would be run: '.*code\.py'; expected --allow-code"):
        read_study(study)
    assert cli.main(["tune", str(study)]) == 2
    assert f"would be run: {str(tmp_path / 'code.py')!r}" in capsys.readouterr().err
    assert not marker.exists()
    assert cli.main(["tune", str(study), "--allow-code"]) == 2
    assert marker.exists()


# what is written


#: What files are full of, and how often the disk is written to before it is.
@pytest.mark.parametrize("kept", range(4))
def test_a_full_disk_loses_nothing_and_the_run_goes_on(kept, vit, tmp_path, monkeypatch, capsys):
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.png").write_bytes(hostile.PALETTE)
    command = ["--model", vit, "--input", folder, "--out", out, "--rows-per-part", 2]
    fsync, times = os.fsync, []

    def full(descriptor):
        times.append(descriptor)
        if len(times) > kept:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert explain(*command) == 2
        assert "No space left on device" in capsys.readouterr().err
    assert not [file for file in out.iterdir() if file.name.startswith(".") and file.name != ".locks"]
    assert explain(*command) == 0
    assert open_results(out).column("row") == [0, 1, 2, 3]


@pytest.mark.parametrize("suffix", [".json", ".safetensors", ".html", ".png", ".svg", ".pdf"])
def test_a_file_that_has_no_room_leaves_the_one_before(suffix, tmp_path):
    explanation, file = Explainer(AGREEMENT)("the keys to the cabinet"), tmp_path / f"why{suffix}"
    explanation.save(file)
    before = file.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            explanation.save(file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == [file.name]


def test_links_are_written_through(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "why.json").symlink_to(tmp_path / "there" / "it.json")
    explanation = Explainer(AGREEMENT)("the keys")
    explanation.save(tmp_path / "why.json")
    assert (tmp_path / "why.json").is_symlink()
    assert Explanation.load(tmp_path / "there" / "it.json").label == explanation.label


def test_folders_that_cannot_be_written_are_said(tmp_path, capsys, monkeypatch):
    (tmp_path / "rows.txt").write_text("the keys\n")
    command = ["--model", AGREEMENT, "--input", tmp_path / "rows.txt", "--out"]
    assert explain(*command, "/proc/nowhere/out") == 2
    assert "cannot make the folder --out" in capsys.readouterr().err
    assert explain("--model", AGREEMENT, "--text", "the keys", "--out", "/proc/why.html") == 2
    assert "zennit-attn: error: " in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert explain(*command, tmp_path / "file") == 2
    assert "cannot make the folder --out" in capsys.readouterr().err
    explain(*command, tmp_path / "out")
    capsys.readouterr()

    def read_only(self, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "mkdir", read_only)
    monkeypatch.setattr(Path, "open", read_only)
    assert explain(*command, tmp_path / "other") == 2
    assert "Read-only file system" in capsys.readouterr().err
    # what is there is read all the same
    monkeypatch.undo()
    (tmp_path / "out").chmod(0o555)
    assert cli.main(["show", str(tmp_path / "out"), "--row", "0"]) == 0


# what is printed, and drawn


HARM = "</script><script>alert(1)</script>&quot;<img src=x onerror=alert(1)> /JS (alert) %PDF " + COMMANDS


@pytest.fixture
def harmful(tmp_path):
    """A folder whose name, classes and words are meant to do harm, of a classifier of texts."""
    with torch.no_grad():
        model, tokenizer, _, _ = text_models()["text classification"]
    model.config.id2label = {number: f"{number} {HARM}" for number in range(model.config.num_labels)}
    folder = tmp_path / f"model {COMMANDS}"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def has_commands(text):
    """Tell whether a terminal would obey something of a text."""
    return any(letter in text for letter in COMMANDS if not letter.isascii() or not letter.isprintable())


def test_nothing_that_is_printed_is_a_command(harmful, tmp_path, capsys):
    text = f"Who is {COMMANDS} Clara?"
    file = tmp_path / f"rows {COMMANDS}.jsonl"
    file.write_text(json.dumps({"text": text, f"id {COMMANDS}": COMMANDS}) + f'\n"{COMMANDS}"\n')
    why, out = tmp_path / f"why {COMMANDS}.json", tmp_path / f"out {COMMANDS}"
    commands = [
        ["explain", "--model", harmful, "--text", text, "--out", why],
        ["explain", "--model", harmful, "--text", text, "--json"],
        ["explain", "--model", harmful, harmful, "--text", text],
        ["explain", "--model", harmful, "--text", text, "--unit", "word"],
        ["explain", "--model", harmful, "--text", text, "--target", COMMANDS],
        ["explain", "--model", harmful, "--text", text, "--composite", COMMANDS],
        ["explain", "--model", harmful, "--text", text, "--device", COMMANDS],
        ["explain", "--model", tmp_path / COMMANDS, "--text", text],
        ["explain", "--model", f"timm:{COMMANDS}", "--text", text],
        ["explain", "--model", f"torchvision:{COMMANDS}", "--text", text],
        ["explain", "--model", harmful, "--image", tmp_path / COMMANDS, "--json"],
        ["explain", "--model", harmful, "--input", file, "--out", out],
        ["show", why],
        ["show", why, "--json"],
        ["show", tmp_path / COMMANDS],
        ["show", out, "--row", "0"],
        ["show", out],
        ["describe", "--model", harmful],
        ["describe", "--model", harmful, "--json"],
        ["tune", tmp_path / COMMANDS],
        ["virelay", out, "--out", tmp_path / COMMANDS],
    ]
    for command in commands:
        assert cli.main([str(part) for part in command]) in (0, 1, 2)
        said = capsys.readouterr()
        assert said.out + said.err
        assert not has_commands(said.out + said.err), command
    with pytest.raises(SystemExit):
        cli.main(["explain", COMMANDS])
    assert not has_commands(capsys.readouterr().err)
    # JSON says the same by its own escapes
    assert cli.main([str(part) for part in commands[1]]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["target"]["label"].endswith(HARM)
    assert said["model"] == str(harmful)


@pytest.mark.filterwarnings("ignore::zennit_attn.errors.GlyphWarning")
@pytest.mark.parametrize("suffix", [".html", ".svg", ".pdf"])
def test_nothing_that_is_drawn_is_a_program(suffix, harmful, tmp_path):
    explanation = Explainer(str(harmful))(f"Who is {HARM}")
    file = tmp_path / f"why{suffix}"
    explanation.save(file)
    content = file.read_bytes()
    if suffix == ".pdf":
        assert not re.search(rb"/(JS|JavaScript|OpenAction|AA|Launch|URI)\b\s*[(/<\[]", content)
        return
    text = content.decode()
    assert "<script>alert" not in text
    assert "<img" not in text
    if suffix == ".svg":
        names = {element.tag.rpartition("}")[2] for element in xml.etree.ElementTree.fromstring(text).iter()}
        assert not {"script", "foreignObject", "a"} & names
        assert not re.search(r"\son\w+=", re.sub(r">[^<]*<", "><", text))


# what was saved


def test_explanations_that_were_changed_are_shown_or_refused(tmp_path, capsys):
    explanation = Explainer(AGREEMENT)("the keys to the cabinet")
    whole, file = explanation.to_dict(), tmp_path / "why.json"
    odd = [None, -1, 1e400, "", "x", [], {}, [[]], True, "\ud800", 10**30, COMMANDS]
    places = list(places_in(whole))
    random = np.random.default_rng(0)
    for _ in range(200):
        changed = json.loads(json.dumps(whole))
        place = places[random.integers(len(places))]
        holder = changed
        for step in place[:-1]:
            holder = holder[step]
        if random.random() < 0.2 and isinstance(holder, dict):
            del holder[place[-1]]
        else:
            holder[place[-1]] = odd[random.integers(len(odd))]
        file.write_text(json.dumps(changed))
        assert cli.main(["show", str(file)]) in (0, 2), place
        said = capsys.readouterr()
        assert not has_commands(said.out + said.err), place
    for content in (b"[" * 10**5, b"\xff", b"", b"null", b'{"parts": [[]]}'):
        file.write_bytes(content)
        assert cli.main(["show", str(file)]) == 2
    (tmp_path / "why.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    assert cli.main(["show", str(tmp_path / "why.safetensors")]) == 2


def places_in(content, place=()):
    """Yield where something is in what JSON has."""
    steps = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for step, value in steps:
        yield (*place, step)
        yield from places_in(value, (*place, step))
