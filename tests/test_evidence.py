"""Studies of explanations: against scores done by hand, and the command that makes their tables."""

import json
import re
from collections import Counter

import numpy as np
import pytest
import readers
import sklearn.linear_model
import sklearn.preprocessing
import torch
import transformers
from PIL import Image
from scipy.stats import spearmanr
from test_explainer import text_models, vision

from zennit_attn import Explainer, cli, targets
from zennit_attn.data import BatchExplainer
from zennit_attn.errors import InputError
from zennit_attn.evaluation import METHODS, Fixed, Interval, Tokens, exact_occlusion, faithfulness
from zennit_attn.evidence import STUDIES, Contexts, Perturbed, Randomised, open_scores, passages
from zennit_attn.evidence import contexts as module
from zennit_attn.evidence.citing import context_cite
from zennit_attn.evidence.pages import page_of
from zennit_attn.evidence.passages import FEWEST, KINDS, MOST
from zennit_attn.evidence.tables import Scores, cell, markdown

ROW = {
    "sentences": ["The pet of Clara is a goat.", "The pet of Bob is a dog.", "The capital of France is Paris."],
    "question": "Question: What is the pet of Clara? Answer: The pet of Clara is a",
    "truth": 0,
}


def measured(study, explainer, rows):
    """Return the scores of rows."""
    return study.measure(BatchExplainer(explainer), rows)


@pytest.fixture(scope="module")
def explainer():
    model, tokenizer, _, _ = text_models()["next token"]
    # as a base model has it
    tokenizer.chat_template = None
    # float64, in which a longer batch gives what a shorter one does
    return Explainer(model.double(), tokenizer)


def test_passages_say_the_answer_once_and_are_balanced():
    found = list(passages(54 * 24))
    places = Counter((len(passage.sentences), passage.truth) for passage in found)
    for passage in found:
        assert sum(passage.answer in sentence for sentence in passage.sentences) == 1
        assert passage.answer in passage.sentences[passage.truth]
        assert passage.answer not in passage.question
        assert len(set(passage.sentences)) == len(passage.sentences)
    for size in range(FEWEST, MOST + 1):
        counts = [places[size, place] for place in range(size)]
        assert max(counts) - min(counts) <= 1 < min(counts)
    assert set(Counter(passage.kind for passage in found).values()) == {len(found) // len(KINDS)}
    assert list(passages(9)) == found[:9]
    assert [passage.row() for passage in passages(9, seed=1)] != [passage.row() for passage in found[:9]]


def test_tokens_of_a_context_are_of_their_sentences(explainer, monkeypatch):
    monkeypatch.setattr(module, "answer_of", lambda *_: [5])
    asked = module.asked_of(explainer, ROW)
    assert asked.sources == 3
    for number, sentence in enumerate(ROW["sentences"]):
        assert explainer.tokenizer.decode(asked.ids[asked.source == number]).strip() == sentence
    rest = explainer.tokenizer.decode(asked.without([True, False, True]))
    assert rest == f"<s> {ROW['sentences'][1]}\n{ROW['question']}"


def test_the_log_probability_of_what_is_left_of_a_context(explainer, monkeypatch):
    monkeypatch.setattr(module, "answer_of", lambda *_: [5, 9, 7])
    asked = module.asked_of(explainer, ROW)
    removed = np.array([[False] * 3, [True, False, False], [True, True, True], [True, False, False]])
    found = module.log_probability(explainer.model, asked, asked.answer, removed, 2)
    for gone, value in zip(removed, found, strict=True):
        ids = torch.cat([asked.without(gone.tolist()), torch.tensor(asked.answer)])[None]
        logits = explainer.model(input_ids=ids).logits[0].log_softmax(-1)
        expected = sum(logits[len(ids[0]) - 4 + place, token] for place, token in enumerate(asked.answer))
        assert value == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("answers", ["next", "whole"])
def test_scores_of_a_context_by_hand(explainer, answers):
    names = ["attnlrp", "attnlrp_without_sink", "contextcite_32"]
    study = Contexts(names, answers=answers, ablations=16)
    (found,) = measured(study, explainer, [ROW])
    asked = module.asked_of(explainer, ROW)
    answer = asked.answer if answers == "whole" else asked.answer[:1]
    assert len(answer) == 1 or answers == "whole"
    ids = torch.cat([asked.ids, torch.tensor(answer[:-1], dtype=torch.long)])[None]
    relevance = METHODS["attnlrp"](explainer.model, {"input_ids": ids}, targets.Answer(answer))[0, : len(asked.ids)]
    kept = study.subsets(16, 3, study.seed)

    def left(gone):
        return module.log_probability(explainer.model, asked, answer, np.array([gone]), 1)[0]

    for name in names[:2]:
        relevance = relevance.clone()
        if name == names[1]:
            relevance[0] = 0
        shares = np.array([float(relevance[asked.source == number].sum()) for number in range(3)])
        scores, order = found[name], (-shares).argsort()
        assert scores["sentence"] == (order[0] == 0)
        assert scores["MRR"] == pytest.approx(1 / (1 + list(order).index(0)))
        gain = shares.clip(min=0)
        assert scores["mass"] == pytest.approx(gain[0] / gain.sum() if gain.sum() else 0)
        inside = torch.where(asked.source >= 0, relevance, -torch.inf)
        assert scores["token"] == float(asked.source[inside.argmax()] == 0)
        most = np.arange(3) == order[0]
        assert scores["drop 1"] == pytest.approx(left([False] * 3) - left(most), rel=1e-6, abs=1e-9)
        # all three of three
        assert scores["drop 3"] == pytest.approx(left([False] * 3) - left([True] * 3), rel=1e-6, abs=1e-9)
        expected = spearmanr(kept @ shares, [left(~one) for one in kept]).statistic
        assert scores["LDS"] == pytest.approx(expected, abs=1e-6)
    assert "token" not in found[names[2]]
    assert set(found[names[2]]) == set(found[names[0]]) - {"token", "token mass"}


def test_context_cite_is_the_published_pipeline():
    generator = np.random.default_rng(0)
    kept = generator.random((64, 5)) < 0.5
    logits = kept @ np.array([3.0, 0.0, -1.0, 0.0, 0.5]) - 1 + generator.normal(0, 0.1, 64)
    pipeline = sklearn.pipeline.make_pipeline(
        sklearn.preprocessing.StandardScaler(), sklearn.linear_model.Lasso(alpha=0.01)
    )
    pipeline.fit(kept.astype(float), logits / 2)
    scaler, lasso = (step for _, step in pipeline.steps)
    found = context_cite(kept, -np.log1p(np.exp(-logits)), 2)
    np.testing.assert_allclose(found, lasso.coef_ / scaler.scale_ * 2, atol=1e-9)
    assert abs(found[0] - 3) < 0.2
    # a source that is always there, and a sure answer
    assert np.isfinite(context_cite(np.ones((4, 2), bool), np.zeros(4), 1)).all()


def test_only_right_answers_are_scored(explainer):
    said = explainer.tokenizer.decode(module.asked_of(explainer, ROW).answer).strip()
    found = measured(
        Contexts(["random"]),
        explainer,
        [{**ROW, "answer": said}, {**ROW, "answer": "unicorn"}, {"sentences": ["one"], "question": "?"}],
    )
    assert isinstance(found[0], dict)
    assert re.search("answered .*'unicorn'", str(found[1]))
    assert "at least two sentences" in str(found[2])


def test_scores_of_a_perturbation_are_those_of_the_library(explainer):
    text = {"text": "The capital of France is Paris. The Colosseum is in Rome."}
    study = Perturbed(["attnlrp", "random", "grad_cam"], steps=4, length=12, agreement=True, batch_size=5)
    (found,) = measured(study, explainer, [text])
    ids = explainer.tokenizer(text["text"], return_tensors="pt")["input_ids"][:, :12]
    batch, model = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, explainer.model
    keep = tuple(explainer.tokenizer.all_special_ids)
    relevance = METHODS["attnlrp"](model, batch, targets.MaxLogit())
    for fill in ("zero", "mean", "mask"):
        expected = faithfulness(model, batch, targets.MaxLogit(), relevance, Tokens(fill, keep), 4)
        assert found["attnlrp"][f"ΔA ({fill})"] == pytest.approx(float(expected), rel=1e-6)
    falls = exact_occlusion(model, batch, targets.MaxLogit(), Tokens("mask", keep))
    real = Tokens("mask", keep).real(batch)
    assert found["attnlrp"]["removal"] == pytest.approx(spearmanr(relevance[real], falls[real]).statistic, abs=1e-5)
    # what does not apply has no score, and says why
    assert set(found) == {"attnlrp", "random"}
    assert "explains images only" in study.refused["grad_cam"]


@pytest.mark.parametrize("task", ["similarity", "text classification"])
def test_encoders_are_perturbed_without_their_special_tokens(task):
    model, tokenizer, given, _ = text_models()[task]
    explainer = Explainer(model, tokenizer)
    row = dict(zip(("text", "second"), given, strict=False))
    names = ["gradient", "attnlrp", "input_x_gradient", "occlusion"]
    (found,) = measured(Perturbed(names, fills=["mask"], agreement=True), explainer, [row])
    assert set(found) == set(names)
    assert all(np.isfinite(value) for scores in found.values() for value in scores.values())
    # removal by zero embeddings is what zennit's Occlusion does
    (found,) = measured(Perturbed(["occlusion"], fills=["zero"], agreement=True), explainer, [row])
    assert found["occlusion"]["removal"] == pytest.approx(1, abs=1e-6)
    (found,) = measured(Perturbed(["gradient"], length=3), explainer, [row])
    assert "expected at most 3" in str(found)


def test_images_are_perturbed_by_their_patches(tmp_path):
    model, reader, _ = vision("image classification")
    explainer = Explainer(model, reader)
    pixels = torch.randint(0, 255, (32, 32, 3), dtype=torch.uint8).numpy()
    (found,) = measured(Perturbed(["attnlrp", "gradient"], steps=4), explainer, [{"image": pixels}])
    assert {name for name in found["attnlrp"] if name.startswith("ΔA")} == {"ΔA (zero)", "ΔA (mean)", "ΔA (blur)"}


def test_shuffled_blocks_change_relevance_and_leave_the_model(explainer):
    before = {name: value.clone() for name, value in explainer.model.state_dict().items()}
    rows = [{"text": "The capital of France is Paris."}, {"text": "Clara has a goat; Bob has a dog!"}, {"text": ""}]
    found = measured(Randomised(["attnlrp", "random"], length=8, depths=2), explainer, rows)
    for scores in found[:2]:
        assert scores["random"] == {"1/2": 1.0, "2/2": 1.0}
        assert list(scores["attnlrp"]) == ["1/2", "2/2"]
        assert max(scores["attnlrp"].values()) < 0.99
    (alone,) = measured(Randomised(["attnlrp"], length=8, depths=2), explainer, rows[1:2])
    assert alone["attnlrp"] == pytest.approx(found[1]["attnlrp"])
    for name, value in explainer.model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: Contexts(["attnlpr"]), "attnlrp"),
        (lambda: Contexts(["none.toml"]), "composite"),
        (lambda: Contexts(answers="all"), "'next' or 'whole'"),
        (lambda: Contexts(ablations=1), "at least 2"),
        (lambda: Perturbed(fills=["noise"]), "expected one of zero"),
        (lambda: Perturbed(steps=0), "at least 1 and 2"),
        (lambda: Randomised(depths=0), "at least 1"),
        (lambda: Perturbed().rows(3), "no --data"),
    ],
)
def test_what_a_study_does_not_know_is_an_error(call, match):
    with pytest.raises(InputError, match=match):
        call()


def test_what_cannot_be_told_from_the_best_is_bold():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(200, generator=generator).double() * 5
    noise = torch.randn(200, generator=generator).double() * 0.1
    # what does not apply to all rows cannot be compared: here to the better half
    better = base.clone()
    better[base < base.median()] = torch.nan
    values = {"attnlrp": base, "relp": base + noise - noise.mean() - 1e-3, "gradient": base - 0.5, "random": better}
    numbers = {(name, "x"): dict(enumerate(found.tolist())) for name, found in values.items()}
    numbers["occlusion", "x"] = {0: 1e9}
    scores = Scores({}, {**numbers, ("attnlrp", "seconds"): dict.fromkeys(range(200), 0.5)})
    assert scores.best("x") == "attnlrp"
    assert cell(scores, "random", "x") == cell(scores, "occlusion", "x") == "–"
    assert [cell(scores, name, "x").startswith("**") for name in ("attnlrp", "relp", "gradient")] == [True, True, False]
    # paired, though their own intervals overlap
    assert scores.interval("gradient", "x").high > scores.interval("attnlrp", "x").low
    assert scores.behind("gradient", "x") == Interval(*[pytest.approx(-0.5)] * 3)
    lines = markdown(scores, ["x"]).splitlines()
    assert lines[2].startswith("| AttnLRP | **")
    assert lines[2].endswith("| 0.50 |")
    assert lines[3].endswith("| – |")


def test_scores_along_an_axis_are_drawn_as_curves():
    values = {
        (method, score): {0: value, 1: value + 0.1}
        for value, score in enumerate(("1/2", "2/2"))
        for method in ("attnlrp", "gradient")
    }
    values["relp", "1/2"] = {0: 1.0, 1: 2.0}
    page = page_of(Scores({"model": "m", "study": "s"}, values, rows=2), {"1/2": "a", "2/2": "b"}, "share")
    # a band for each method that has all of the scores
    assert len(re.findall(r"PolyCollection_\d", page)) == 2
    assert page_of(Scores({"model": "m", "study": "s"}, values, rows=2), {"1/2": "a"}).count("PolyCollection") == 0


def saved(tmp_path):
    """Return the folder of a tiny language model."""
    model, tokenizer, _, _ = text_models()["next token"]
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_the_command_goes_on_where_it_was(tmp_path, capsys):
    data = tmp_path / "texts.jsonl"
    texts = [
        "The capital of France is Paris.",
        "Clara has a goat; Bob has a dog!",
        "中文分词测试，很好。",
        "8,320 m is high.",
    ]
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, ""]), encoding="utf-8")
    command = ["evaluate", "--model", saved(tmp_path), "--study", "perturbation", "--data", str(data)]
    command += ["--methods", "attnlrp", "gradient", "random", "--steps", "2", "--rows-per-part", "2", "--length", "8"]
    command += ["--fills", "zero", "--out", str(tmp_path / "out")]
    assert cli.main([*command, "--shard", "1/2"]) == 0
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 2
    written = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.parquet")}
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert "of 5 rows measured" in shown
    for name, when in written.items():
        assert (tmp_path / "out" / name).stat().st_mtime_ns == when
    scores = open_scores(tmp_path / "out")
    assert scores.rows == 5
    assert scores.of("attnlrp", "ΔA (zero)").shape == (5 - len(scores.errors),)
    assert (tmp_path / "out" / "table.md").read_text(encoding="utf-8").strip() in shown
    page = (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "AttnLRP" in page
    # nothing is asked for but by the names of the picture's vocabulary
    assert not re.search(r"(src|href)=.http|url\(http|@import", page)
    assert cli.main([*command[:-1], str(tmp_path / "out"), "--steps", "3"]) == 2
    assert "steps=2" in capsys.readouterr().err


def test_the_command_makes_passages_of_its_own(tmp_path, capsys):
    out = tmp_path / "out"
    command = ["evaluate", "--model", saved(tmp_path), "--study", "context", "--samples", "3", "--out", str(out)]
    # a model of random weights answers nothing rightly
    assert cli.main(command) == 2
    assert "answered" in capsys.readouterr().err
    assert len((out / "rows.jsonl").read_text(encoding="utf-8").splitlines()) == 3
    assert cli.main([*command, "--steps", "3"]) == 2
    assert "--steps for the study 'context'" in capsys.readouterr().err


def test_studies_by_name_are_those_of_the_command():
    assert tuple(STUDIES) == cli.parser.STUDIES


def test_weights_of_several_positions_are_explained_as_they_are(explainer):
    ids = torch.tensor([[3, 17, 4, 9, 11]])
    fixed = Fixed.of(targets.Answer([5, 9]), explainer.model(input_ids=ids).logits)
    for name in ("attnlrp", "gradient", "gradient_attention_rollout"):
        found = METHODS[name](explainer.model, {"input_ids": ids}, fixed)
        torch.testing.assert_close(found, METHODS[name](explainer.model, {"input_ids": ids}, targets.Answer([5, 9])))


def test_random_relevance_is_another_for_another_text():
    ids = torch.tensor([[3, 1, 4, 1], [3, 1, 4, 2]])
    both = METHODS["random"](None, {"input_ids": ids}, targets.MaxLogit())
    assert not torch.equal(both[0], both[1])
    torch.testing.assert_close(METHODS["random"](None, {"input_ids": ids[1:]}, targets.MaxLogit())[0], both[1])


def test_a_low_score_is_the_best_where_it_is_a_good_one():
    values = {("random", "x"): {0: 1.0, 1: 1.0}, ("attnlrp", "x"): {0: 0.1, 1: 0.2}, ("relp", "x"): {0: -0.7, 1: -0.9}}
    scores = Scores({"lower": True}, values)
    assert scores.best("x") == "attnlrp"
    assert cell(scores, "attnlrp", "x").startswith("**")
    # an order that is turned round is no better than one that stays
    for method in ("random", "relp"):
        assert not cell(scores, method, "x").startswith("**")
    assert scores.behind("relp", "x") == Interval(*[pytest.approx(value) for value in (-0.65, -0.7, -0.6)])
    # a score that rows have which are none of another method's
    assert Scores({}, {("random", "x"): {0: 1.0}, ("attnlrp", "x"): {1: 1.0}}).best("x") is None


def test_what_is_wrong_with_a_row_is_said_of_that_row(explainer):
    rows = [{**ROW, "truth": 7}, {**ROW, "sentences": [1, 2]}, {**ROW, "question": None}, ROW]
    found = measured(Contexts(["contextcite_32"], ablations=4), explainer, rows)
    assert ["truth=7" in str(found[0]), "sentences" in str(found[1]), "question" in str(found[2])] == [True] * 3
    assert list(found[3]) == ["contextcite_32"]
    text = {"text": "The capital of France is Paris. The Colosseum is in Rome.", "target": "#7"}
    (cut,) = measured(Perturbed(["random"], length=4), explainer, [text])
    assert "expected at most 4" in str(cut)
    (blurred,) = measured(Perturbed(["random"], fills=["blur"]), explainer, [{"text": "Rome is old."}])
    assert "for texts" in str(blurred)
    (short,) = measured(Perturbed(["random"], fills=["mask"]), explainer, [{"text": "R"}])
    assert isinstance(short, InputError)
    with pytest.raises(InputError, match="batch_size"):
        Perturbed(batch_size=0)


def test_the_first_token_is_left_out_in_every_study(explainer):
    row = {"text": "The capital of France is Paris."}
    (found,) = measured(Randomised(["attnlrp", "attnlrp_without_sink"], length=8, depths=1), explainer, [row])
    assert found["attnlrp"] != found["attnlrp_without_sink"]
    model, reader, _ = vision("image classification")
    study = Perturbed(["attnlrp", "attnlrp_without_sink"], steps=2, fills=["zero"])
    pixels = torch.randint(0, 255, (32, 32, 3), dtype=torch.uint8).numpy()
    assert list(measured(study, Explainer(model, reader), [{"image": pixels}])[0]) == ["attnlrp"]
    assert "images have no first" in study.refused["attnlrp_without_sink"]


def test_images_of_rows_are_those_of_their_folder(tmp_path, capsys):
    model, reader, _ = vision("image classification")
    model.save_pretrained(tmp_path / "model")
    reader.save_pretrained(tmp_path / "model")
    for place in ("data", "secret"):
        (tmp_path / place).mkdir()
        Image.fromarray(readers.photo()).save(tmp_path / place / "a.png")
    rows = [{"image": "a.png"}, {"image": str(tmp_path / "secret" / "a.png")}]
    (tmp_path / "data" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["evaluate", "--model", str(tmp_path / "model"), "--study", "perturbation", "--methods", "gradient"]
    command += ["--data", str(tmp_path / "data" / "rows.jsonl"), "--steps", "2", "--fills", "zero", "--out"]
    assert cli.main([*command, str(tmp_path / "out")]) == 0
    assert "1 of 2 rows measured" in capsys.readouterr().out
    assert "--files-within" in open_scores(tmp_path / "out").errors[1]


def test_other_rules_or_weights_are_not_gone_on_with(tmp_path, capsys):
    data, rules = tmp_path / "texts.jsonl", tmp_path / "rules.toml"
    data.write_text('{"text": "The capital of France is Paris."}\n' * 2)
    rules.write_text('preset = "attnlrp"\n')
    folder = saved(tmp_path)
    command = ["evaluate", "--model", folder, "--study", "perturbation", "--data", str(data), "--methods", str(rules)]
    command += ["--steps", "2", "--rows-per-part", "1", "--fills", "zero", "--out", str(tmp_path / "out")]
    assert cli.main([*command, "--shard", "1/2"]) == 0
    rules.write_text('preset = "cp_lrp"\n')
    assert cli.main(command) == 2
    assert "composites=" in capsys.readouterr().err
    rules.write_text('preset = "attnlrp"\n')
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    model.lm_head.weight.data *= 2
    model.save_pretrained(folder)
    assert cli.main(command) == 2
    assert "digest=" in capsys.readouterr().err
