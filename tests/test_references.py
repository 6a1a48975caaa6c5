"""Rows in which units are strongest, against all rows explained one by one; the same whatever is interrupted."""

import itertools
import json
import random

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from test_data import pixels
from test_explainer import vision

from zennit_attn import AttnLRPComposite, Explainer, InputXGradient, targets
from zennit_attn.concepts import ActMax, Features, RelMax, open_references, references
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


def test_padding_does_not_count(tmp_path):
    explainer = Explainer(AGREEMENT, dtype="float64")
    short, long = "the keys", " ".join(WORDS)
    (tmp_path / "texts.txt").write_text(f"{short}\n{long}\n")
    together = ActMax(explainer, latents="layer", sign="both", max_tokens=10_000).run(
        tmp_path / "texts.txt", tmp_path / "out"
    )
    length = len(explainer.tokenizer(short)["input_ids"])
    for name in together.tops:
        assert next(each for each in together.of(name, 0) if each.row == 0).position < length


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
