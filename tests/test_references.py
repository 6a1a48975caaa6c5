"""Rows in which units are strongest, against all rows explained one by one; the same whatever is interrupted."""

import itertools
import json
import random
import re

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from test_data import pixels
from test_explainer import vision

from zennit_attn import AttnLRPComposite, Explainer, InputXGradient, cli, heatmap, targets
from zennit_attn.concepts import ActMax, CondAttribution, Features, RelMax, open_references, references, unit_page
from zennit_attn.concepts.showing import patch_at
from zennit_attn.concepts.tops import Top, merged
from zennit_attn.data import open_results
from zennit_attn.errors import InputError

from .test_latents import Autoencoder

AGREEMENT = "examples/models/agreement"
HEAD = "model.layers.1.head"
WORDS = "the keys to the old cabinet near my red door behind the author of these books".split()
#: How strong a value is, by sign.
STRENGTH = {"positive": lambda x: x, "negative": lambda x: -x, "both": abs}
KINDS = [RelMax, ActMax]


def texts(count=23):
    """Texts of 1 to 9 words, two of which are the same."""
    draw = random.Random(0)
    found = [" ".join(draw.choices(WORDS, k=draw.randint(1, 9))) for _ in range(count - 1)]
    return [*found, found[4]]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts()), encoding="utf-8")
    return path


def strongest(values, sign, count):
    """Of (score, row, position), those that count, the strongest first, by nothing but sorting."""
    strong = [(-STRENGTH[sign](score), row, position, score) for score, row, position in values]
    return [(row, position, score) for by, row, position, score in sorted(strong) if by < 0][:count]


def tuples(top, unit):
    values = zip(top.rows[unit].tolist(), top.positions[unit].tolist(), top.scores[unit].tolist(), strict=True)
    return [value for value in values if value[0] >= 0]


@pytest.mark.parametrize("sign", STRENGTH)
@pytest.mark.parametrize("count", [1, 3, 50])
def test_the_strongest_do_not_depend_on_the_order_that_they_come_in(sign, count):
    draw = torch.Generator().manual_seed(0)
    # small whole numbers: many are the same, and many zero
    scores = torch.randint(-2, 3, (40, 6), generator=draw).float()
    positions, rows = torch.randint(0, 9, (40, 6), generator=draw), torch.arange(40)
    empty = Top.empty(6, count, scores)
    chunks = [torch.arange(40)[start::4] for start in (2, 0, 3, 1)]
    one, parts = empty, []
    for chunk in chunks:
        one = one.joined(scores[chunk], rows[chunk], positions[chunk], sign)
        parts.append(empty.joined(scores[chunk], rows[chunk], positions[chunk], sign))
    whole = empty.joined(scores, rows, positions, sign)
    for top in (whole, one, merged(parts, sign), merged(parts[::-1], sign)):
        for unit in range(6):
            values = zip(scores[:, unit].tolist(), rows.tolist(), positions[:, unit].tolist(), strict=True)
            assert tuples(top, unit) == strongest(values, sign, count)


def one_by_one(kind, explainer, by, sign):
    """Return, by latent, (score, row, position) of each row for each unit."""
    attributor = InputXGradient(explainer.model, AttnLRPComposite(), latents=["head", "neuron"])
    found = {}
    for row, text in enumerate(texts()):
        batch = explainer.tokenizer(text, return_tensors="pt")
        if kind is RelMax:
            _, _, inner = attributor(batch, targets.MaxLogit())
        else:
            inner = attributor.activations(batch)
        for name, values in inner.items():
            for unit, column in enumerate(values[0].T.tolist()):
                at = max(range(len(column)), key=lambda place, column=column: STRENGTH[sign](column[place]))
                score = sum(column) if by == "sum" else column[at]
                found.setdefault((name, unit), []).append((score, row, at))
    return found


@pytest.mark.parametrize("max_tokens", [1, 10_000], ids=["one by one", "all together"])
@pytest.mark.parametrize(
    ("kind", "by", "sign"), [(RelMax, "max", "positive"), (RelMax, "sum", "negative"), (ActMax, "max", "both")]
)
def test_the_strongest_rows_are_those_of_all_rows_explained_alone(file, tmp_path, kind, by, sign, max_tokens):
    explainer = Explainer(AGREEMENT, dtype="float64")
    found = kind(explainer, count=4, by=by, sign=sign, max_tokens=max_tokens).run(file, tmp_path / "out", 10)
    expected = one_by_one(kind, explainer, by, sign)
    assert found.errors() == {}
    compared = 0
    for name, top in found.tops.items():
        for unit in range(len(top.scores)):
            wanted = strongest(expected[name, unit], sign, 4)
            got = found.of(name, unit)
            scale = max((abs(score) for _, _, score in wanted), default=0)
            # sums of another order, and RMSNorm in float32
            assert [each.score for each in got] == pytest.approx([each[2] for each in wanted], abs=1e-5 * scale)
            if all(abs(one[2] - two[2]) > 1e-4 * scale for one, two in itertools.pairwise(wanted)):
                assert [each[:2] for each in got[:3]] == [each[:2] for each in wanted[:3]]
                compared += 1
    assert compared > 100


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", ["max", "sum"])
def test_padding_does_not_count(tmp_path, kind, by):
    explainer = Explainer(AGREEMENT, dtype="float64")
    rows = [{"text": text} for text in ("the keys", " ".join(WORDS))]
    alone, together = (
        kind(explainer, latents="layer", by=by, sign="both", max_tokens=tokens) for tokens in (1, 10_000)
    )
    expected, found = alone.tops(rows)[0], together.tops(rows)[0]
    # rows of several lengths were put together, and were found to agree
    assert together.pads
    length = len(explainer.tokenizer("the keys")["input_ids"])
    for name, top in found.items():
        torch.testing.assert_close(top.scores, expected[name].scores, rtol=1e-5, atol=1e-8)
        assert int(top.positions[top.rows == 0].max()) < length


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_an_interrupt_and_one_process_find_the_same(file, tmp_path, kind, monkeypatch):
    explainer = Explainer(AGREEMENT)

    def find(folder, shard=None, **options):
        return kind(explainer, latents=["head", "layer"], count=3, **options).run(file, tmp_path / folder, 4, shard)

    one = find("one")
    monkeypatch.setattr(references, "LOOSE", 2)
    assert find("two", "2/2") is None
    assert find("two", "1/2") is not None
    # stopped after the second part, between its file and what tells that it is there
    put, written = references.put, []

    def interrupted(path, content):
        written.append(path)
        if len([path for path in written if path.suffix == ".parquet"]) == 2:
            raise KeyboardInterrupt
        put(path, content)

    monkeypatch.setattr(references, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        find("three")
    with pytest.raises(InputError, match="with 1 of 6 parts"):
        open_references(tmp_path / "three")
    monkeypatch.setattr(references, "put", put)
    find("three")
    files = [load_file(tmp_path / folder / "top.safetensors") for folder in ("one", "two", "three")]
    for other in files[1:]:
        assert other.keys() == files[0].keys()
        for key, value in files[0].items():
            assert torch.equal(other[key], value)
    assert not list((tmp_path / "two").glob("part-*.safetensors"))
    # nothing is looked at again, and nothing counted twice
    monkeypatch.setattr(kind, "ask", None)
    assert find("three").of(HEAD, 0) == one.of(HEAD, 0)


def test_a_fold_that_was_interrupted_counts_no_part_twice(file, tmp_path, monkeypatch):
    explainer = Explainer(AGREEMENT)
    unlink = references.Path.unlink
    kept = lambda path, **options: path.suffix == ".safetensors" or unlink(path, **options)  # noqa: E731
    monkeypatch.setattr(references.Path, "unlink", kept)
    found = RelMax(explainer, latents="head", count=3).run(file, tmp_path / "out", 4)
    assert len(list((tmp_path / "out").glob("part-*.safetensors"))) == 6
    monkeypatch.undo()
    again = RelMax(explainer, latents="head", count=3).run(file, tmp_path / "out", 4)
    assert not list((tmp_path / "out").glob("part-*.safetensors"))
    for name in found.tops:
        for unit in range(4):
            rows = [each.row for each in again.of(name, unit)]
            assert len(set(rows)) == len(rows)
            assert found.of(name, unit) == again.of(name, unit)


def test_features_of_an_autoencoder_and_rows_that_cannot_be_read(file, tmp_path):
    explainer = Explainer(AGREEMENT)
    features = Features("model.layers.1", Autoencoder(count=9, width=explainer.model.config.hidden_size))
    with file.open("a") as lines:
        lines.write('{"text": ""}\nnonsense\n')
    found = RelMax(explainer, latents=[features, "*.1.residual"], count=2).run(file, tmp_path / "out")
    assert list(found.errors()) == [23, 24]
    assert len(found.tops[features.name].scores) == 9
    assert len(found.tops["model.layers.1.residual"].scores) == explainer.model.config.hidden_size


def test_images_have_patches_as_positions(tmp_path):
    with torch.no_grad():
        model, reader, _ = vision("image classification")
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.fromarray(pixels(number)).save(tmp_path / "images" / f"{number}.png")
    found = RelMax(Explainer(model, reader), latents="head", count=2).run(tmp_path / "images", tmp_path / "out")
    (name, *_) = found.tops
    assert 0 <= found.of(name, 0)[0].position <= 16


def test_what_does_not_fit_is_refused(file, tmp_path):
    explainer = Explainer(AGREEMENT)
    found = RelMax(explainer, latents="head", count=2).run(file, tmp_path / "out")
    with pytest.raises(InputError, match="with count=2, this one has 3"):
        RelMax(explainer, latents="head", count=3).run(file, tmp_path / "out")
    with pytest.raises(InputError, match="with of='relevance'"):
        ActMax(explainer, latents="head", count=2).run(file, tmp_path / "out")
    with pytest.raises(InputError, match="choose another folder"):
        open_results(tmp_path / "out")
    with pytest.raises(InputError, match="got the unit 4"):
        found.of(HEAD, 4)
    with pytest.raises(InputError, match="nearest: 'model"):
        found.of("model.layers.1.heads", 0)
    with pytest.raises(InputError, match="expected one of"):
        RelMax(explainer, by="mean")
    with pytest.raises(InputError, match="at least one of each"):
        RelMax(explainer, count=0)


def test_models_that_call_their_layers_twice_are_refused(tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"text": "a goat", "second": "a dog"}\n')
    from test_explainer import text_models

    with torch.no_grad():
        model, tokenizer, _, _ = text_models()["similarity"]
    found = RelMax(Explainer(model, tokenizer), latents="head").run(tmp_path / "pairs.jsonl", tmp_path / "out")
    assert "called several times" in found.errors()[0]


def test_one_question_may_have_several_tokens_explained():
    with torch.no_grad():
        config = transformers.LlamaConfig(
            vocab_size=205, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
        )
        model = transformers.LlamaForCausalLM(config).eval()
    explainer = Explainer(model, transformers.AutoTokenizer.from_pretrained(AGREEMENT))
    row = {"text": "the keys", "answer": "are here"}
    whole, by_token = (RelMax(explainer, latents="head", rows=rows).tops([row])[0] for rows in ("answer", "token"))
    for name, top in whole.items():
        torch.testing.assert_close(by_token[name].scores, top.scores, rtol=1e-4, atol=1e-6)


# pages, and the command


def test_a_page_shows_what_the_unit_saw_in_its_rows(tmp_path):
    explainer = Explainer(AGREEMENT)
    rows = [{"text": text, "target": "are"} for text in ("the keys to the cabinet", "the author of the books")]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = RelMax(explainer, latents="head").run(file, tmp_path / "out")
    name, unit = "model.layers.2.head", 2
    page = unit_page(found, name, unit, explainer, file)
    assert "<script" not in page
    assert "://" not in page
    assert page.count("<article") == len(found.of(name, unit)) > 0
    assert page.count("prefers-color-scheme: dark") == 2
    first = found.of(name, unit)[0]
    tokens = explainer.tokenizer(rows[first.row]["text"], return_tensors="pt")
    words = rows[first.row]["text"].split()
    (are,) = explainer.tokenizer.convert_tokens_to_ids(["are"])
    heat = CondAttribution(explainer.model)(tokens, [{name: [unit], "y": [are]}], AttnLRPComposite()).heatmap[0]
    card = page[page.index("<article") : page.index("</article")]
    assert f"row {first.row}</bdi>" in card
    shown = re.findall(r'<span(?: class="([^"]*)")? title="([^"]*)">([^<]*)</span>', card)
    assert [word for *_, word in shown] == words
    values = [float(value.replace("\u2212", "-")) for _, value, _ in shown]
    # six digits, of float32 in which the logits of all positions are computed or those of the last one
    assert values == pytest.approx(heat.tolist(), rel=1e-4, abs=1e-5 * float(heat.abs().max()))
    assert [place for place, (kind, *_) in enumerate(shown) if "marked" in kind] == [first.position]
    assert float(heat.abs().max()) > 1e-3


def test_a_page_of_images_marks_a_patch(tmp_path):
    with torch.no_grad():
        model, reader, _ = vision("image classification")
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.fromarray(pixels(number)).save(tmp_path / "images" / f"{number}.png")
    explainer = Explainer(model, reader)
    found = ActMax(explainer, latents="neuron", count=2, sign="both").run(tmp_path / "images", tmp_path / "out")
    (name, *_) = found.tops
    unit = next(unit for unit in range(9) if found.of(name, unit)[0].position > 0)
    page = unit_page(found, name, unit, explainer, tmp_path / "images")
    # images of 32 pixels in patches of 8, behind a class token
    row, column = divmod(found.of(name, unit)[0].position - 1, 4)
    assert page.count(f'style="left:{25 * column}%;top:{25 * row}%;width:25%;height:25%"') >= 2
    assert page.count("data:image/png;base64,") == 4


def test_patches_are_where_the_grid_is():
    # 4 x 2 patches of 8 pixels in an image of 16 x 32
    assert patch_at(0, 8, (16, 32), 8) == [0, 0, 8, 8]
    assert patch_at(5, 8, (16, 32), 8) == [8, 8, 8, 8]
    # behind a class token and four registers
    assert patch_at(5, 13, (16, 32), 8) == [0, 0, 8, 8]
    assert patch_at(4, 13, (16, 32), 8) is None
    # fewer tokens than patches are of something else
    assert patch_at(1, 7, (16, 32), 8) is None
    assert patch_at(1, 8, (16, 32), None) is None


def test_pages_are_of_the_model_and_the_rows_that_were_looked_through(file, tmp_path):
    explainer = Explainer(AGREEMENT)
    found = RelMax(explainer, latents="head", count=2).run(file, tmp_path / "out")
    with pytest.raises(InputError, match="with composite="):
        unit_page(found, HEAD, 0, Explainer(AGREEMENT, composite="cp_lrp"), file)
    file.write_text('{"text": "the keys"}\n')
    with pytest.raises(InputError, match="with input="):
        unit_page(found, HEAD, 0, explainer, file)


def test_what_pages_show_is_text_and_no_html(tmp_path):
    text = {"text": "<b> & \x00", "tokens": [[0, 3], [4, 5], [6, 7]], "relevance": [0.5, -1.0, 0.0], "marked": 1}
    data = {"title": "<i>", "facts": {"a<": "<u>"}, "mark": "<s>", "samples": []}
    sample = {"title": "<q>", "score": 1.0, "note": "<p>", "text": text}
    page = heatmap.samples({**data, "samples": [sample]})
    for tag in ("<b>", "<i>", "<u>", "<s>", "<q>", "\x00"):
        assert tag not in page
    assert 'class="n50 marked" title="−1">&amp;</span>' in page
    for change, match in (
        ({"text": {**text, "marked": 3}}, "mark at 3"),
        ({"text": {**text, "relevance": [1.0]}}, "number for each token"),
        ({"text": text, "score": None}, "float"),
    ):
        with pytest.raises((ValueError, TypeError), match=match):
            heatmap.samples({**data, "samples": [{**sample, **change}]})
    with pytest.raises(ValueError, match="expected 'text' or 'image'"):
        heatmap.samples({**data, "samples": [{"title": "", "score": 1.0}]})
    with pytest.raises(ValueError, match="no samples"):
        heatmap.samples(data)
    image = {"src": "http://x", "relevance": [[1.0]], "marked": None}
    with pytest.raises(ValueError, match="the page loads nothing"):
        heatmap.samples({**data, "samples": [{"title": "", "score": 1.0, "image": image}]})


def test_the_command_finds_shows_and_goes_on(file, tmp_path, capsys, monkeypatch):
    command = ["units", "--model", AGREEMENT, "--input", str(file), "--out", str(tmp_path / "out"), "--count", "3"]
    command += ["--rows-per-part", "10", "--latents", "head"]
    assert cli.main([*command, "--shard", "2/2"]) == 0
    assert cli.main([*command, "--shard", "2/2", "--page", f"{HEAD}:1"]) == 2
    said = capsys.readouterr()
    assert "10 done, 0 skipped, 0 failed" in said.out
    assert "rows of other processes are missing" in said.err
    assert cli.main([*command, "--page", f"{HEAD}:1"]) == 0
    page = tmp_path / "out" / f"{HEAD}-1.html"
    assert f"13 done, 10 skipped, 0 failed; results: {tmp_path / 'out'}\nwritten: {page}" in capsys.readouterr().out
    assert page.read_text().count("<article") == 3
    same = RelMax(Explainer(AGREEMENT), latents="head", count=3).run(file, tmp_path / "other", 10)
    assert open_references(tmp_path / "out").of(HEAD, 1) == same.of(HEAD, 1)
    # all is there: no model is loaded
    monkeypatch.setattr(Explainer, "__init__", None)
    assert cli.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == 23
    for options, match in (
        (["--activation"], "of='relevance'"),
        (["--page", "head"], "expected LATENT:UNIT"),
        (["--workers", "2"], "without --engine ray"),
    ):
        assert cli.main([*command, *options]) == 2
        assert match in capsys.readouterr().err
