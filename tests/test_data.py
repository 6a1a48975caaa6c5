"""Many rows: buckets against single explanations, files of every kind, parts that are there once, whatever dies."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter

import models
import numpy as np
import pytest
import readers
import torch
import transformers
from PIL import Image
from test_explainer import text_models, vision

from zennit_attn import AttnLRPComposite, Explainer, Explanation, cli
from zennit_attn.data import BatchExplainer, open_results
from zennit_attn.data.ranks import Rank, rank_of
from zennit_attn.data.sources import source_of
from zennit_attn.errors import InputError
from zennit_attn.explain.tasks import TASKS

AGREEMENT = "examples/models/agreement"
TEXTS = ["the keys", "the keys to the cabinet", "the author", "the doors near the old author of the keys", "the key"]
GIVEN = {
    "next token": {"text": ["The capital of France is", "Who is Clara?", "Bob has a dog! Is it true?"]},
    "masked token": {"text": ["Clara has a [MASK].", "[MASK] is in Rome, and it is high.", "a [MASK]"]},
    "text classification": {
        "text": ["Who is Clara?", "The Colosseum is in Rome."],
        "second": ["A goat", "Yes, it is."],
    },
    "token classification": {"text": ["Clara has a dog in Paris", "Bob has a goat", "Rome"]},
    "question answering": {
        "question": ["Who is Clara?", "Is it true?"],
        "text": ["Clara has a goat; Bob has a dog!", "Yes, it is. The Colosseum is in Rome."],
    },
    "similarity": {
        "text": ["Clara has a dog", "Is it true?"],
        "second": ["Bob has a goat", "The Colosseum is in Rome"],
    },
}


def rows_of(columns):
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def same(one, other):
    """Check that two explanations are of the same, to what other shapes round differently."""
    assert (one.label, one.task) == (other.label, other.task)
    assert one.value == pytest.approx(other.value, rel=1e-5, abs=1e-6)
    for part, alike in zip((*one.parts, one.answer), (*other.parts, other.answer), strict=True):
        if part is not None:
            assert part == alike
            np.testing.assert_allclose(part.relevance, alike.relevance, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("max_tokens", [1, 10_000], ids=["one by one", "all together"])
@pytest.mark.parametrize("name", list(GIVEN))
def test_rows_have_together_what_they_have_alone(name, max_tokens, monkeypatch):
    with torch.no_grad():
        model, tokenizer, _, _ = text_models()[name]
    explainer = Explainer(model, tokenizer)
    sizes = []
    explain = Explainer.explain
    monkeypatch.setattr(Explainer, "explain", lambda self, asked: sizes.append(len(asked)) or explain(self, asked))
    table = rows_of(GIVEN[name])
    found = BatchExplainer(explainer, max_tokens=max_tokens).explanations(table)
    # the first padded bucket is compared with a row by itself
    assert sizes == ([1] * len(table) if max_tokens == 1 else [len(table), 1])
    columns = next(columns for columns in explainer.task.columns if set(columns) == set(table[0]))
    for row, together in zip(table, found, strict=True):
        same(explainer(*(row[column] for column in columns)), together)


def test_targets_and_contrast_go_with_their_rows():
    explainer = Explainer(AGREEMENT)
    columns = {"text": TEXTS, "target": ["are", "is", None, "#161", None], "id": [3, 1, 4, 1, 5]}
    result = BatchExplainer(explainer, target="have", contrastive=True)(columns)
    assert result["id"] == columns["id"]
    assert result["explained"] == ["are", "is", "have", "are", "have"]
    for number, text in enumerate(TEXTS):
        alone = explainer(text, target=columns["target"][number] or "have", contrastive=True)
        np.testing.assert_allclose(result["relevance"][number], alone.relevance, rtol=1e-4, atol=1e-6)
        assert result["value"][number] == pytest.approx(alone.value, rel=1e-5)
        assert result["tokens"][number] == list(alone.tokens)


def test_answers_are_explained_together():
    with torch.no_grad():
        model, tokenizer, _, _ = text_models()["next token"]
    explainer = Explainer(model, tokenizer)
    chat = [{"role": "user", "content": "Who is Clara?"}]
    table = [
        {"messages": chat, "answer": "Clara has a goat."},
        {"messages": chat, "answer": "Yes, it is. It is true!"},
        {"messages": chat},
        {"text": "Who is Clara?"},
        {"text": "Answer.", "answer": "Rome", "documents": ["The Colosseum is in Rome.", "Bob has a dog!"]},
    ]
    found = BatchExplainer(explainer, max_tokens=10_000, max_new_tokens=5).explanations(table)
    same(found[0], explainer.answer(chat, table[0]["answer"], rows="answer"))
    same(found[1], explainer.answer(chat, table[1]["answer"], rows="answer"))
    same(found[2], explainer.answer(chat, max_new_tokens=5, rows="answer"))
    same(found[3], explainer("Who is Clara?"))
    same(found[4], explainer.answer("Answer.", "Rome", documents=table[4]["documents"], rows="answer"))
    by_sentence = BatchExplainer(explainer, rows="sentence").explanations(table[:2])
    assert [len(each.rows) for each in by_sentence] == [1, 2]
    same(by_sentence[1], explainer.answer(chat, table[1]["answer"]))


@pytest.mark.parametrize("name", ["image classification", "semantic segmentation", "object detection"])
def test_images_are_explained_together(name):
    with torch.no_grad():
        model, reader, target = vision(name)
    explainer = Explainer(model, reader)
    photos = [Image.fromarray(pixels(number)) for number in range(3)]
    found = BatchExplainer(explainer, max_tokens=10_000).explanations(
        [{"image": photo, "target": target} for photo in photos]
    )
    for photo, together in zip(photos, found, strict=True):
        same(explainer(photo, target=target), together)


def pixels(seed, size=(40, 50)):
    return np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)


class Unmasked(transformers.BertForSequenceClassification):
    """A model that reads its padding, too."""

    def forward(self, *args, attention_mask=None, **kwargs):
        return super().forward(*args, **kwargs)


# a model's task is read off its name
Unmasked.__name__ = "BertForSequenceClassification"


def test_models_that_read_padding_get_none():
    config = transformers.BertConfig(
        vocab_size=300, hidden_size=24, intermediate_size=48, num_attention_heads=2, num_hidden_layers=1
    )
    explainer = Explainer(models.scramble(Unmasked(config)).eval(), readers.word_pieces())
    batch = BatchExplainer(explainer, max_tokens=10_000)
    texts = ["Clara has a goat", "Is it true? Yes, it is.", "Bob has a goat"]
    found = batch.explanations([{"text": text} for text in texts])
    assert batch.pads is False
    for text, together in zip(texts, found, strict=True):
        same(explainer(text), together)


def test_a_row_that_cannot_be_explained_keeps_its_place():
    with torch.no_grad():
        model, tokenizer, _, _ = text_models()["text classification"]
    model.get_input_embeddings().weight.data[tokenizer.convert_tokens_to_ids("goat")] = float("nan")
    explainer = Explainer(model, tokenizer)
    texts = ["Clara has a dog", "Bob has a goat", "", "Is it true?", None]
    result = BatchExplainer(explainer, max_tokens=10_000)({"text": texts, "id": [*"abcde"]})
    assert [error is None for error in result["error"]] == [True, False, False, True, False]
    assert "not finite" in result["error"][1]
    assert "expected words" in result["error"][2]
    assert "expected the columns text, or text and second" in result["error"][4]
    assert result["relevance"][1] is None
    np.testing.assert_allclose(result["relevance"][3], explainer("Is it true?").relevance, rtol=1e-4, atol=1e-6)


def test_a_bucket_without_room_is_halved(monkeypatch):
    explainer = Explainer(AGREEMENT)
    explain, sizes = Explainer.explain, []

    def small(self, asked):
        sizes.append(len(asked))
        if sum(question.cost() for question in asked) > 8:
            raise InputError("out of memory") from torch.OutOfMemoryError("no room")
        return explain(self, asked)

    monkeypatch.setattr(Explainer, "explain", small)
    batch = BatchExplainer(explainer, max_tokens=10_000)
    result = batch({"text": TEXTS})
    assert [error is None for error in result["error"]] == [True, True, True, False, True]
    assert sizes[0] == 5
    assert batch.room < 10_000


def test_it_is_sent_to_other_processes_without_its_model():
    batch = BatchExplainer(AGREEMENT, "cp_lrp", 64)
    first = batch({"text": TEXTS})
    sent = pickle.dumps(batch)
    assert len(sent) < 2000
    again = pickle.loads(sent)({"text": TEXTS})
    for one, other in zip(first["relevance"], again["relevance"], strict=True):
        np.testing.assert_array_equal(one, other)


def test_columns_that_could_be_meant_as_others_are_refused():
    result = BatchExplainer(AGREEMENT)({"text": ["the keys"], "targets": ["are"]})
    assert "which is like 'target'" in result["error"][0]
    with pytest.raises(InputError, match="expected it to be made with them"):
        BatchExplainer(Explainer(AGREEMENT), "cp_lrp")
    with pytest.raises(InputError, match="max_tokens=0"):
        BatchExplainer(AGREEMENT, max_tokens=0)


def test_every_task_has_its_columns():
    assert {column for task in TASKS for columns in task.columns for column in columns} == {
        "text", "second", "question", "image", "texts", "audio", "series"
    }  # fmt: skip


# files


@pytest.fixture
def tables(tmp_path):
    """Return a function that writes rows as a file of a kind."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.csv
    import pyarrow.parquet

    def write(suffix, rows, name="rows"):
        file = tmp_path / f"{name}{suffix}"
        if suffix == ".jsonl":
            lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
            file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        elif suffix == ".txt":
            file.write_text("\n".join(row["text"] for row in rows), encoding="utf-8")
        elif suffix == ".csv":
            pyarrow.csv.write_csv(pa.Table.from_pylist(rows), file)
        elif suffix == ".parquet":
            pyarrow.parquet.write_table(pa.Table.from_pylist(rows), file, row_group_size=2)
        return file

    return write


@pytest.mark.parametrize("suffix", [".jsonl", ".txt", ".csv", ".parquet"])
def test_any_stretch_of_a_file_is_read(tables, suffix):
    rows = [{"text": text} for text in [*TEXTS, "one\u2028two", '"a, b"']]
    source = source_of(tables(suffix, rows))
    assert len(source) == len(rows)
    for start in range(len(rows)):
        for end in range(start + 1, len(rows) + 1):
            assert source.read(start, end) == rows[start:end]
    assert pickle.loads(pickle.dumps(source)).read(2, 4) == rows[2:4]
    digest = source.digest()
    assert source_of(tables(suffix, rows)).digest() == digest
    assert source_of(tables(suffix, rows[::-1])).digest() != digest


def test_folders_of_parquet_and_of_images(tables, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(3):
        tables(".parquet", [{"text": f"{number} {row}"} for row in range(3)], f"many/{number}")
    source = source_of(folder)
    assert [row["text"] for row in source.read(2, 7)] == ["0 2", "1 0", "1 1", "1 2", "2 0"]
    for name in ("b/2.png", "a/1.png", "0.png"):
        (tmp_path / "images" / name).parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(pixels(0)).save(tmp_path / "images" / name)
    os.mkfifo(tmp_path / "images" / "pipe.png")
    source = source_of(tmp_path / "images")
    assert source.read(0, 3) == [
        {"image": "0.png", "class": None},
        {"image": "a/1.png", "class": "a"},
        {"image": "b/2.png", "class": "b"},
    ]


def test_what_is_no_source_is_said(tmp_path):
    for name, content in (("a.docx", "x"), ("empty.jsonl", "")):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=r"expected \.parquet"):
            source_of(tmp_path / name)
    (tmp_path / "no.parquet").write_text("x")
    with pytest.raises(InputError, match="cannot read"):
        source_of(tmp_path / "no.parquet")


# folders of results


def explain(*options):
    return cli.main(["explain", *(str(option) for option in options)])


def test_a_folder_gives_explanations_back(tables, tmp_path, capsys):
    rows = [{"text": text, "id": number, "label": "x"} for number, text in enumerate(TEXTS)]
    rows.insert(2, "nonsense")
    out = tmp_path / "out"
    assert explain("--model", AGREEMENT, "--input", tables(".jsonl", rows), "--out", out, "--rows-per-part", 2) == 1
    said = capsys.readouterr()
    assert said.out == f"5 done, 0 skipped, 1 failed; results: {out}\n"
    assert "row 2: the line is not valid JSON" in said.err
    results = open_results(out)
    assert len(results) == 6
    assert results.column("id") == [0, 1, None, 2, 3, 4]
    assert list(results.errors()) == [2]
    explainer = Explainer(AGREEMENT)
    for row, text in zip([0, 1, 3, 4, 5], TEXTS, strict=True):
        same(results[row], explainer(text))
        assert results[row].by("word") == pytest.approx(explainer(text).by("word"), rel=1e-4, abs=1e-6)
        assert results[row].about["digest"] == explainer(text).about["digest"]
        assert results.record(row)["relevance"] == results[row].relevance.tolist()
    with pytest.raises(InputError, match="the row could not be explained: the line"):
        results[2]
    with pytest.raises(InputError, match="expected 0 to 5"):
        results[6]
    with pytest.raises(InputError, match="got the column 'values', expected one of"):
        results.column("values")
    assert cli.main(["show", str(out), "--row", "1"]) == 0
    assert "the keys to the cabinet" in capsys.readouterr().out
    assert cli.main(["show", str(out)]) == 0
    page = (out / "index.html").read_text()
    assert 'id="row-5"' in page
    assert "the line is not valid JSON" in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_images_keep_their_relevance_and_their_pixels(tmp_path, capsys):
    with torch.no_grad():
        model, reader, _ = vision("image classification")
    model.save_pretrained(tmp_path / "vit")
    reader.save_pretrained(tmp_path / "vit")
    (tmp_path / "images" / "hen").mkdir(parents=True)
    for number in range(3):
        Image.fromarray(pixels(number)).save(tmp_path / "images" / "hen" / f"{number}.png")
    (tmp_path / "images" / "bad.png").write_bytes(b"no image")
    command = ["--model", tmp_path / "vit", "--input", tmp_path / "images", "--out"]
    assert explain(*command, tmp_path / "whole") == 1
    assert explain(*command, tmp_path / "patches", "--patches", 8, "--float16") == 1
    explainer = Explainer(str(tmp_path / "vit"))
    whole, patches = open_results(tmp_path / "whole"), open_results(tmp_path / "patches")
    assert whole.column("class") == [None, "hen", "hen", "hen"]
    assert "cannot read the image" in whole.errors()[0]
    for row in (1, 2, 3):
        alone = explainer(tmp_path / "images" / "hen" / f"{row - 1}.png")
        found, small = whole[row], patches[row]
        same(found, alone)
        # bytes: half of one 255th
        np.testing.assert_allclose(found.parts[0].pixels, alone.parts[0].pixels, atol=0.5 / 255 + 1e-6)
        sums = alone.relevance.reshape(4, 8, 4, 8).sum((1, 3))
        # half precision has 11 bits
        np.testing.assert_allclose(small.relevance, sums, rtol=2**-10, atol=1e-5)
        assert small.matrix.dtype == np.float16
        small.picture()
    assert cli.main(["show", str(tmp_path / "whole"), "--row", "2", "--out", str(tmp_path / "two.png")]) == 0


def test_images_are_looked_for_beside_their_list(tables, tmp_path, capsys):
    with torch.no_grad():
        model, reader, _ = vision("image classification")
    model.save_pretrained(tmp_path / "vit")
    reader.save_pretrained(tmp_path / "vit")
    Image.fromarray(pixels(0)).save(tmp_path / "one.png")
    content = (tmp_path / "one.png").read_bytes()
    file = tables(".jsonl", [{"image": "one.png", "target": "hen"}, {"text": "no image"}])
    assert explain("--model", tmp_path / "vit", "--input", file, "--out", tmp_path / "out") == 1
    assert "row 1: got text for image classification, expected the columns image" in capsys.readouterr().err
    assert open_results(tmp_path / "out").column("explained") == ["hen", None]
    # as data sets hold them
    held = BatchExplainer(str(tmp_path / "vit"))({"image": [{"bytes": content, "path": None}], "target": ["hen"]})
    assert held["error"] == [None]
    np.testing.assert_allclose(held["relevance"][0], open_results(tmp_path / "out")[0].relevance, rtol=1e-4, atol=1e-6)
    assert explain("--model", tmp_path / "vit", "--input", tmp_path, "--out", tmp_path) == 2
    assert "expected two folders" in capsys.readouterr().err


def test_answers_come_back_with_their_rows(tables, tmp_path):
    with torch.no_grad():
        model, tokenizer, _, _ = text_models()["next token"]
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"messages": [{"role": "user", "content": "Who is Clara?"}], "answer": "Clara has a goat."}]
    assert explain("--model", tmp_path / "model", "--input", tables(".jsonl", rows), "--out", tmp_path / "out") == 0
    again = open_results(tmp_path / "out")[0]
    same(again, Explainer(str(tmp_path / "model")).answer(rows[0]["messages"], rows[0]["answer"], rows="answer"))
    assert set(again.by("message")) == {"user", "elsewhere"} | set(again.by("message"))


def test_a_run_goes_on_and_refuses_another_input_or_setting(tables, tmp_path, capsys, monkeypatch):
    file, out = tables(".jsonl", [{"text": text} for text in TEXTS]), tmp_path / "out"
    command = ["--model", AGREEMENT, "--input", file, "--out", out, "--rows-per-part", 2]
    explained = []
    explanations = BatchExplainer.explanations

    def interrupted(self, table):
        explained.append(len(table))
        if len(explained) == 2:
            raise KeyboardInterrupt
        return explanations(self, table)

    monkeypatch.setattr(BatchExplainer, "explanations", interrupted)
    assert explain(*command) == 130
    with pytest.raises(InputError, match="with 1 of 3 parts"):
        open_results(out)
    assert len(open_results(out, partial=True).column("value")) == 2
    # what a process leaves that is killed while it writes
    (out / ".part-00001.parquet.1").write_bytes(b"half")
    assert explain(*command) == 0
    assert explained == [2, 2, 2, 1]
    assert capsys.readouterr().out == f"3 done, 2 skipped, 0 failed; results: {out}\n"
    # all is there: no model is loaded
    monkeypatch.setattr(Explainer, "__init__", None)
    assert explain(*command) == 0
    assert capsys.readouterr().out == f"0 done, 5 skipped, 0 failed; results: {out}\n"
    for options in (["--contrastive"], ["--composite", "cp_lrp"], ["--target", "are"], ["--float16"]):
        assert explain(*command, *options) == 2
        assert "has results of a run with" in capsys.readouterr().err
    tables(".jsonl", [{"text": text} for text in TEXTS[::-1]])
    assert explain(*command) == 2
    assert "with input='rows.jsonl" in capsys.readouterr().err


def test_another_model_under_the_same_name_is_refused(tables, tmp_path, capsys):
    model = transformers.AutoModelForCausalLM.from_pretrained(AGREEMENT)
    tokenizer = transformers.AutoTokenizer.from_pretrained(AGREEMENT)
    tokenizer.save_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    file = tables(".jsonl", [{"text": text} for text in TEXTS])
    command = ["--model", tmp_path / "model", "--input", file, "--out", tmp_path / "out", "--rows-per-part", 3]
    assert explain(*command) == 0
    (tmp_path / "out" / "part-00001.parquet").unlink()
    model.lm_head.weight.data += 1
    model.save_pretrained(tmp_path / "model")
    assert explain(*command) == 2
    assert "with digest=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shard", "environment", "expected"),
    [
        (None, {}, Rank(0, 1)),
        ("3/64", {"RANK": "7", "WORLD_SIZE": "8"}, Rank(2, 64)),
        (None, {"RANK": "7", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "SLURM_PROCID": "1"}, Rank(7, 8, 3)),
        (None, {"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, Rank(1, 4, 0)),
        (
            None,
            {"SLURM_ARRAY_TASK_ID": "12", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "10"},
            Rank(2, 4),
        ),
    ],
)
def test_a_process_knows_its_share(shard, environment, expected):
    assert rank_of(shard, environment) == expected


@pytest.mark.parametrize("shard", ["0/4", "5/4", "1", "a/b", "1/0"])
def test_shares_that_are_none_are_refused(shard):
    with pytest.raises(InputError, match="from 1/N to N/N"):
        rank_of(shard, {})
    with pytest.raises(InputError, match="expected 0 to 3"):
        rank_of(None, {"RANK": "4", "WORLD_SIZE": "4"})


def test_options_of_many_rows_are_refused_for_one(capsys):
    assert explain("--model", AGREEMENT, "--text", "the keys", "--shard", "1/2") == 2
    assert "got --shard without --input" in capsys.readouterr().err


def started(file, out, *options):
    command = [sys.executable, "-m", "zennit_attn", "explain", "--model", AGREEMENT, "--input", file, "--out", out]
    # not so many threads as there are processors, each
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "--rows-per-part", "20", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def some_there(out, count):
    for _ in range(600):
        if len(list(out.glob("part-*.parquet"))) >= count:
            return
        time.sleep(0.1)
    raise AssertionError("nothing was written within a minute")


def complete(out, count):
    """Check that every row is there once, in its place."""
    ids = open_results(out).column("id")
    assert ids == list(range(count))
    assert max(Counter(ids).values()) == 1


@pytest.fixture
def many(tables):
    return tables(".jsonl", [{"text": TEXTS[number % 5], "id": number} for number in range(400)])


def test_two_processes_do_no_row_twice_and_one_goes_on_for_the_other(many, tmp_path):
    out = tmp_path / "out"
    first, second = started(many, out), started(many, out)
    some_there(out, 3)
    first.send_signal(signal.SIGKILL)
    assert second.wait(120) == 0
    first.communicate()
    said = second.communicate()[0]
    done, skipped = (int(part.split()[0]) for part in said.split(",")[:2])
    # what it skipped is what the first one had done
    assert done + skipped == 400
    complete(out, 400)


def test_an_actor_of_ray_that_dies_is_started_again(many, tmp_path):
    pytest.importorskip("ray")
    out = tmp_path / "out"
    running = started(many, out, "--engine", "ray", "--workers", "2", "--json")
    some_there(out, 2)
    own = subprocess.run(["pgrep", "-f", "ray::MapWorker"], capture_output=True, text=True, check=True).stdout.split()
    os.kill(int(own[0]), signal.SIGKILL)
    said, errors = running.communicate(timeout=180)
    assert running.returncode == 0, errors
    assert json.loads(said)["failed"] == 0
    complete(out, 400)


def test_what_is_read_is_what_was_saved(tables, tmp_path):
    file = tables(".parquet", [{"text": text} for text in TEXTS])
    assert explain("--model", AGREEMENT, "--input", file, "--out", tmp_path / "out", "--dtype", "float64") == 0
    results = open_results(tmp_path / "out")
    assert results[0].matrix.dtype == np.float64
    alone = Explainer(AGREEMENT, None, AttnLRPComposite(), dtype="float64")(TEXTS[1])
    np.testing.assert_allclose(results[1].relevance, alone.relevance, rtol=1e-12)
    results[1].save(tmp_path / "one.json")
    same(Explanation.load(tmp_path / "one.json"), results[1])
