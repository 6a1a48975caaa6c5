"""Tuning on texts: samples of a file are what each row asks alone, padded, with the scores of evidence."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from zennit_attn import AttnLRPComposite, Explainer, cli, load_composite
from zennit_attn.data import BatchExplainer
from zennit_attn.evidence import Perturbed
from zennit_attn.rules import Gamma
from zennit_attn.tuning import read_study, texts

MODEL = Path(__file__).parent.parent / "examples" / "models" / "agreement"
WORDS = "the old keys to the cabinet by the blue books were young near cats under a green window again".split()
ROWS = [{"text": " ".join(WORDS[start : start + count])} for start in range(5) for count in range(4, 9)]
STUDY = """
preset = "attnlrp"

[model]
name = "{model}"
device = "cpu"

[data]
texts = "texts.jsonl"
length = 8
tune = 6
test = 7

[score]
fill = "{fill}"
steps = 3
batch_size = 4

[[search.role_map]]
roles = ["mlp"]
rule = "Gamma"
parameters = {{gamma = [0.1, 1.0]}}
"""


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a study with its rows, and returns its path."""

    def write(fill="mask", rows=ROWS, **changes):
        (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        text = STUDY.format(model=MODEL, fill=fill)
        for old, new in changes.items():
            text = text.replace(f"{old} = ", f"{new} = ")
        path = tmp_path / "study.toml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("fill", ["zero", "mean", "mask"])
def test_scores_of_padded_texts_are_those_of_each_alone(write, fill):
    study = read_study(write(fill))
    ids, mask = study.test.batch["input_ids"], study.test.batch["attention_mask"]
    lengths = mask.sum(1).tolist()
    assert ids.shape[1] == 8
    assert min(lengths) < 8
    measured = Perturbed(["attnlrp"], steps=3, length=8, fills=[fill])
    explainer = Explainer(MODEL, composite="attnlrp", device="cpu")
    found = measured.measure(
        BatchExplainer(explainer),
        [{"text": explainer.tokenizer.decode(row[:length])} for row, length in zip(ids, lengths, strict=True)],
    )
    alone = torch.tensor([each["attnlrp"][f"ΔA ({fill})"] for each in found])
    # the float32 of passes of other shapes
    torch.testing.assert_close(study.scores(AttnLRPComposite(), study.test), alone, rtol=1e-4, atol=1e-4)


def test_labels_of_texts_are_explained(write):
    rows = [{**row, "target": word} for row, word in zip(ROWS, ["is", "are"] * len(ROWS), strict=False)]
    study = read_study(write(rows=rows))
    tokenizer = Explainer(MODEL, device="cpu").tokenizer
    labels = study.tune.target.shares.nonzero()[:, 1]
    assert set(tokenizer.convert_ids_to_tokens(labels)) == {"is", "are"}
    # where the logit of each text is that says what comes next
    assert study.tune.target.position.tolist() == (study.tune.batch["attention_mask"].sum(1) - 1).tolist()


def test_a_language_model_is_tuned_on_texts(write, tmp_path, capsys):
    assert cli.main(["tune", str(write()), "--out", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["trials"] == 2
    composite = load_composite(tmp_path / "out" / "winner.toml")
    rules = [rule for _, rule in composite.role_map]
    expected = found["best"]["parameters"]
    assert ([rule.gamma for rule in rules if isinstance(rule, Gamma)] or [None]) == [expected.get("mlp.gamma")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": "tset"}, "tset"),
        ({"tune": "target"}, "target"),
        ({"texts": "folder", "length": "seed"}, "which is for next token; expected texts"),
        ({"rows": [{"text": WORDS[0]}] * 3}, "got 3 texts, expected 6 to tune and 7 to test"),
        ({"rows": [{"txt": "the keys"}] * 20}, "txt"),
    ],
)
def test_what_is_wrong_with_texts_is_said(write, tmp_path, changes, message):
    path = write(**changes)
    if "texts" in changes:
        (tmp_path / "texts.jsonl").unlink()
        (tmp_path / "texts.jsonl").mkdir()
        for number in range(13):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "texts.jsonl" / f"{number}.png")
    with pytest.raises((ValueError, TypeError), match=message):
        read_study(path)


def test_texts_that_padding_changes_are_refused(write, monkeypatch):
    def padded(batches, padding):
        found = collated(batches, padding)
        # as a model does that has no mask
        return {"input_ids": found["input_ids"].flip(1)}

    collated = texts.collated
    monkeypatch.setattr(texts, "collated", padded)
    with pytest.raises(ValueError, match="padding changes the output"):
        read_study(write())
