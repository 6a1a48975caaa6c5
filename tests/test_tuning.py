"""Tuning: what is searched, the score, the log, the files, and Optuna in several processes."""

import copy
import csv
import functools
import importlib.util
import itertools
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import transformers
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from zennit.attribution import Gradient

from zennit_attn import GammaViTComposite, cli, load_composite, tuning
from zennit_attn.composites.configuration import to_toml
from zennit_attn.evaluation.baselines import lrp
from zennit_attn.evaluation.features import fix
from zennit_attn.evaluation.intervals import Interval
from zennit_attn.heatmap.ink import hexadecimal
from zennit_attn.rules import Epsilon, Gamma
from zennit_attn.targets import MaxLogit
from zennit_attn.tuning import Samples, Study, Trial
from zennit_attn.tuning.leaderboard import contact_sheet
from zennit_attn.tuning.log import Log
from zennit_attn.tuning.scatter import RED, scatter, ticks_of
from zennit_attn.tuning.search import Search
from zennit_attn.tuning.space import Space
from zennit_attn.tuning.study import SCORES

ROOT = Path(__file__).parent.parent
# studies here name a Python file, which is to be run
read_study = functools.partial(tuning.read_study, allow_code=True)
tune = functools.partial(tuning.tune, allow_code=True)
needs_optuna = pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="needs optuna")

TINY = """
from types import SimpleNamespace
import torch, torchvision

def load_model():
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(image_size=16, patch_size=4, num_layers=2, num_heads=2, hidden_dim=8,
                                                 mlp_dim=16, num_classes=3)
    torch.nn.init.normal_(model.heads.head.weight)
    return model.eval()

def load_data(split, count):
    generator = torch.Generator().manual_seed(("tune", "test").index(split))
    masks = torch.zeros(count, 16, 16, dtype=torch.bool)
    masks[:, 4:8, 4:8] = True
    images = torch.rand(count, 3, 16, 16, generator=generator)
    return SimpleNamespace(images=images, labels=torch.arange(count) % 3, masks=masks)

def preprocess(images):
    return images * 2 - 1
"""
STUDY = {
    "preset": "gamma_vit",
    "data": {"name": "tiny.py", "tune": 4, "test": 5, "target": "label"},
    "model": {"name": "tiny.py", "device": "cpu"},
    "score": {"steps": 4, "batch_size": 3},
    "search": {
        "parameters": {"linear_gamma": [0, 0.3, 3.0]},
        "role_map": [{"roles": ["qkv"], "rule": "Gamma", "parameters": {"gamma": [0.02, 0.5]}}],
    },
}
BOUNDS = {"low": 0.01, "high": 10, "log": True}


def toml_of(content):
    """Write tables of tables inline, which is as good as any other TOML."""

    def value(given):
        if isinstance(given, dict):
            return "{" + ", ".join(f'"{key}" = {value(item)}' for key, item in given.items()) + "}"
        return f"[{', '.join(map(value, given))}]" if isinstance(given, list) else json.dumps(given)

    return "\n".join(f"{key} = {value(item)}" for key, item in content.items())


def changed(content, **changes):
    """Return a study's content with other values, named by their path, such as data__tune."""
    content = copy.deepcopy(content)
    for path, value in changes.items():
        *tables, key = path.split("__")
        table = content
        for name in tables:
            table = table[name]
        table[key] = value
    return content


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a study with its Python file, and returns its path."""
    (tmp_path / "tiny.py").write_text(TINY)

    def write(content):
        path = tmp_path / "study.toml"
        path.write_text(toml_of(content))
        return path

    return write


def rows_of(path):
    """Return the rows of a leaderboard."""
    return list(csv.DictReader(path.read_text().splitlines()))


def area_by_hand(model, images, labels, composite, steps):
    """Return ΔA of each image by zennit's Gradient, patch by patch, for patches of 4 x 4 pixels."""
    inputs = images.clone().requires_grad_()
    with Gradient(model, composite) as attributor:
        _, relevance = attributor(inputs, lambda out: torch.eye(out.shape[1])[labels] * out)
    areas = []
    for image, values, label in zip(images, relevance.detach().sum(1), labels, strict=True):
        patches = sorted(itertools.product(range(0, 16, 4), repeat=2))
        order = sorted(patches, key=lambda place: -float(values[place[0] :, place[1] :][:4, :4].sum()))
        means = []
        for removed in (order[::-1], order):
            logits = []
            for count in range(0, len(order) + 1, len(order) // steps):
                perturbed = image.clone()
                for y, x in removed[:count]:
                    perturbed[:, y : y + 4, x : x + 4] = 0
                with torch.no_grad():
                    logits.append(float(model(perturbed[None])[0, label]))
            means.append(np.trapezoid(logits, dx=1 / steps))
        areas.append(means[0] - means[1])
    return torch.tensor(areas)


def test_the_objective_is_the_area_between_the_curves(write):
    study = read_study(write(STUDY))
    composite = GammaViTComposite(linear_gamma=0.3, role_map=[("qkv", Gamma(0.5))])
    labels = torch.arange(4) % 3
    expected = area_by_hand(study.model, study.tune.batch, labels, composite, 4)
    # sums in another order, in float32
    torch.testing.assert_close(study.scores(composite, study.tune), expected.float(), rtol=1e-4, atol=1e-5)
    objective = study.objective({"linear_gamma": 0.3, "qkv.gamma": 0.5})
    assert objective == pytest.approx(float(expected.mean()), rel=1e-4)


def test_a_grid_finds_what_brute_force_finds(write, tmp_path):
    result = tune(write(STUDY), tmp_path / "out")
    study = read_study(tmp_path / "study.toml")
    brute = {
        (linear, qkv): float(
            study.scores(GammaViTComposite(linear_gamma=linear, role_map=[("qkv", Gamma(qkv))]), study.tune).mean()
        )
        for linear in (0, 0.3, 3.0)
        for qkv in (0.02, 0.5)
    }
    best = max(brute, key=brute.get)
    assert brute[best] > result.default.score
    assert tuple(result.best.parameters.values()) == best
    assert [tuple(trial.parameters.values()) for trial in result.trials] == list(brute)
    assert [trial.score for trial in result.trials] == pytest.approx(list(brute.values()))

    rows = rows_of(tmp_path / "out/leaderboard.csv")
    assert [int(row["rank"]) for row in rows] == list(range(1, 8))
    assert [row["trial"] for row in rows].count("default") == 1
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    # only what was chosen, and what it is compared with, see the test samples
    assert [row["trial"] for row in rows if row["test"]] == [row["trial"] for row in rows if row["rank"] == "1"] + [
        "default"
    ]

    test = study.scores(result.composite, study.test)
    difference = test - study.scores(study.space.default, study.test)
    assert result.test_best.mean == pytest.approx(float(test.double().mean()))
    assert result.test_difference.mean == pytest.approx(float(difference.double().mean()))
    for name in ("parameters.png", "contact_sheet.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.width > 300


def test_the_winner_is_a_preset_with_its_provenance(write, tmp_path):
    result = tune(write(STUDY), tmp_path / "out")
    winner = tmp_path / "out/winner.toml"
    expected = GammaViTComposite(
        linear_gamma=result.best.parameters["linear_gamma"],
        role_map=[("qkv", Gamma(result.best.parameters["qkv.gamma"]))],
    )
    assert load_composite(winner) == result.composite == expected
    found = tomllib.loads(winner.read_text())["made_with"]
    assert found["torch"] == torch.__version__.split("+")[0]
    assert found["model"] == "tiny.py"
    assert (found["tuning"]["data"], found["tuning"]["target"], found["tuning"]["seed"]) == ("tiny.py", "label", 0)
    assert (found["tuning"]["tune_samples"], found["tuning"]["test_samples"]) == (4, 5)
    assert found["tuning"]["test_best"] == pytest.approx(
        [result.test_best.mean, result.test_best.low, result.test_best.high]
    )


def test_the_default_wins_where_nothing_is_better(write, tmp_path):
    # the same as the default, and so not better
    same = changed(STUDY, search={"parameters": {"linear_gamma": [0.05]}})
    result = tune(write(same), tmp_path / "out")
    assert result.best is result.default
    assert load_composite(tmp_path / "out/winner.toml") == GammaViTComposite()
    assert result.test_difference.mean == 0
    assert "nothing that was tried is better" in str(result)


def test_a_difference_is_said_for_what_it_is(write, tmp_path):
    result = tune(write(STUDY), tmp_path / "out")
    for low, high, remark in ((0.1, 0.3, "]"), (-0.1, 0.3, ", which may be chance"), (-0.3, -0.1, ", which is worse")):
        found = replace(result, test_difference=Interval((low + high) / 2, low, high))
        assert str(found).endswith(f"[{low:.3f}, {high:.3f}]{remark.removeprefix(']')}")


def test_the_space_is_what_files_say_in_their_words():
    content = {
        "preset": "gamma_vit",
        "parameters": {"conv_gamma": 0.7},
        "role_map": [{"roles": ["qkv"], "rule": "Epsilon", "parameters": {"epsilon": 0.1}}],
        "search": {
            "parameters": {"attention": ["cp", "attnlrp"]},
            "name_map": [{"names": ["*.mlp.0"], "rule": "AlphaBeta", "parameters": {"alpha": [2.0], "beta": 1.0}}],
            "role_map": [
                {"roles": ["mlp", "qkv"], "rule": "Gamma", "parameters": {"gamma": BOUNDS, "stabilizer": 1e-4}}
            ],
            "layer_map": [{"types": ["Linear"], "rule": "Epsilon", "parameters": {"epsilon": [0.5, 1]}}],
        },
    }
    space = Space(content)
    assert list(space.axes) == ["attention", "*.mlp.0.alpha", "mlp,qkv.gamma", "Linear.epsilon"]
    composite = space.composite(dict(zip(space.axes, ("attnlrp", 2.0, 0.3, 1), strict=True)))
    assert composite.conv_gamma == 0.7
    assert composite.attention == "attnlrp"
    # what is searched comes before what the file has
    assert [(keys, rule.parameters()) for keys, rule in composite.role_map] == [
        (("mlp", "qkv"), Gamma(0.3, 1e-4).parameters()),
        (("qkv",), Epsilon(0.1).parameters()),
    ]
    assert composite.layer_map[0][1].parameters()["epsilon"] == 1
    assert composite.name_map[0][1].parameters()["alpha"] == 2.0
    assert to_toml(space.default) == to_toml(GammaViTComposite(conv_gamma=0.7, role_map=[("qkv", Epsilon(0.1))]))


def token_samples(model, seed, count):
    """Return sequences of seven tokens, the first one with two of padding."""
    ids = torch.randint(2, 20, (count, 7), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    ids[0, 5:] = mask[0, 5:] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    return Samples(batch, fix(model, batch, MaxLogit()))


SIZES = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8, "vocab_size": 20}
TOKEN_MODELS = {
    "bert": lambda: transformers.BertForSequenceClassification(
        transformers.BertConfig(**SIZES, intermediate_size=16, initializer_range=0.5)
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**SIZES, n_positions=8, initializer_range=0.5, bos_token_id=0, eos_token_id=0)
    ),
}


@pytest.mark.parametrize(("kind", "linear", "fill"), [("bert", "Linear", 1), ("gpt2", "Conv1D", "zero")])
def test_tokens_are_tuned_in_python(tmp_path, kind, linear, fill):
    torch.manual_seed(0)
    model = TOKEN_MODELS[kind]().eval()
    entry = {"types": [linear], "rule": "Gamma", "parameters": {"gamma": [0.0, 0.5]}}
    content = {"preset": "attnlrp", "score": {"fill": fill}, "search": {"layer_map": [entry]}}
    tuned, tested = token_samples(model, 1, 3), token_samples(model, 2, 4)
    result = tune(Study(content, model, tuned, tested), tmp_path)

    relevance = lrp(result.composite)(model, tested.batch, tested.target)
    expected = [token_area(model, tested.batch, relevance, row, fill) for row in range(4)]
    # sums in another order, in float32
    assert result.test_best.mean == pytest.approx(np.mean(expected), rel=1e-4, abs=1e-5)
    assert load_composite(tmp_path / "winner.toml") == result.composite
    with pytest.raises(ValueError, match=r"got size=2 in \[score\] for tokens"):
        Study(changed(content, score__size=2), model, tuned, tested)


def token_area(model, batch, relevance, row, fill):
    """Return ΔA of a sequence, token by token, without its padding."""
    length = int(batch["attention_mask"][row].sum())
    ids = batch["input_ids"][row : row + 1, :length]

    def logits(removed):
        embeddings = model.get_input_embeddings()(ids).clone()
        replaced = 0.0 if fill == "zero" else model.get_input_embeddings().weight[fill]
        embeddings[:, removed] = replaced
        with torch.no_grad():
            found = model(inputs_embeds=embeddings).logits[0]
        return found if found.dim() == 1 else found[-1]

    order = np.argsort(-relevance[row, :length].numpy(), kind="stable")
    chosen = int(logits([]).argmax())
    areas = []
    for removed in (order[::-1], order):
        values = [float(logits(removed[:count].copy())[chosen]) for count in range(length + 1)]
        areas.append(np.trapezoid(values, dx=1 / length))
    return areas[0] - areas[1]


def test_a_contact_sheet_has_scores_and_one_scale(write, tmp_path):
    result = tune(write(STUDY), tmp_path / "out")
    study = read_study(tmp_path / "study.toml")
    scores = [study.scores(each, study.test) for each in (study.space.default, result.composite)]
    texts = [item.get_text() for item in contact_sheet(study, result, *scores).figure.texts]
    expected = [f"score {value:.2f}" for row in scores for value in row.tolist()]
    assert [text for text in texts if text.startswith("score")] == expected
    # a ± below a score would be read as its error
    assert not any("±" in text for text in texts)


class Stopped(BaseException):
    """What stops a search, as ctrl-c does."""


def stop_after(monkeypatch, count):
    """Let so many parts of scores be computed, and count them."""
    scores, calls = Study.scores, []

    def counted(self, composite, samples, start, end):
        calls.append(composite)
        if len(calls) > count:
            raise Stopped
        return scores(self, composite, samples, start, end)

    monkeypatch.setattr(Study, "scores", counted)
    return calls


def without_seconds(path):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows_of(path)]


@pytest.mark.parametrize("method", ["grid", pytest.param("optuna", marks=needs_optuna)])
def test_an_interrupted_search_goes_on(write, tmp_path, monkeypatch, method):
    content = changed(STUDY, search__method=method)
    if method == "optuna":
        # more than the ten that its sampler draws at random
        content = changed(content, search__trials=13, search__parameters__linear_gamma=BOUNDS)
    path, count = write(content), 13 if method == "optuna" else 6
    whole = tune(path, tmp_path / "whole")
    # the default and all but two trials, each in two parts, and one part of the last but one
    stop_after(monkeypatch, 2 * (count - 1) + 1)
    with pytest.raises(Stopped):
        tune(path, tmp_path / "parts")
    monkeypatch.undo()
    with (tmp_path / "parts/trials.jsonl").open("a") as log:
        log.write('{"number": 4, "param')
    calls = stop_after(monkeypatch, 100)
    parts = tune(path, tmp_path / "parts")
    # three parts of two trials, and the default and the best on the test samples
    assert len(calls) == 3 + 4
    assert [trial.parameters for trial in parts.trials] == [trial.parameters for trial in whole.trials]
    for name in ("whole", "parts"):
        assert len((tmp_path / name / "trials.jsonl").read_text().splitlines()) == count + 2
    assert without_seconds(tmp_path / "parts/leaderboard.csv") == without_seconds(tmp_path / "whole/leaderboard.csv")


@needs_optuna
def test_more_trials_may_be_added(write, tmp_path):
    content = changed(STUDY, search__method="optuna", search__trials=2)
    first = tune(write(content), tmp_path / "out")
    more = tune(write(changed(content, search__trials=4)), tmp_path / "out")
    assert more.trials[:2] == first.trials
    assert len(more.trials) == 4


# notes who made a part, waits at its first until two have made one; if one is to die, it does so within its second part
NOTING = """
import os, pathlib, signal, time
from zennit_attn.tuning import Study

def noted(self, *given):
    folder = pathlib.Path(__file__).parent
    made = folder / "made.txt"
    if (folder / "one_dies").exists() and str(os.getpid()) in made.read_text().split():
        try:
            (folder / "one_dies").rename(folder / "died")
        except FileNotFoundError:
            pass  # the other one was first
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    found = scores(self, *given)
    with made.open("a") as file:
        file.write(f"{os.getpid()}\\n")
    end = time.monotonic() + 60
    while len(set(made.read_text().split())) < 2 and time.monotonic() < end:
        time.sleep(0.02)
    return found

scores = Study.scores
# the file is run once for the model, and once for the data
if scores.__name__ != "noted":
    Study.scores = noted
"""


@pytest.fixture(params=["grid", pytest.param("optuna", marks=needs_optuna)])
def shared(request, write, tmp_path):
    """Search alone, and let it be known who makes which part from then on."""
    content = changed(STUDY, search__method=request.param)
    if request.param == "optuna":
        # more than the ten that its sampler draws at random
        content = changed(content, search__trials=12, search__parameters__linear_gamma=BOUNDS)
    path = write(content)
    alone = tune(path, tmp_path / "alone")
    assert alone.best is not alone.default
    (tmp_path / "tiny.py").write_text(TINY + NOTING)
    (tmp_path / "made.txt").touch()
    return path


def started(path, *options):
    command = [sys.executable, "-m", "zennit_attn", "tune", path, "--allow-code", "--out", path.parent / "out"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    return subprocess.Popen(
        [*command, *options], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def log_of(folder):
    """Return the lines of a log but for the seconds."""
    records = map(json.loads, lines_of(folder / "trials.jsonl"))
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def check_shared(folder, processes):
    """Check that every part was made once, by so many processes, and that what was found is what one alone finds."""
    made = Counter((folder / "made.txt").read_text().split())
    assert len(made) == processes, made
    # the default, the trials, and both on the test samples, each in two parts
    parts = list((folder / "out").glob("*/*/part-*.json"))
    assert made.total() == len(parts) == 2 * (len(log_of(folder / "alone")) - 1 + 2)
    assert log_of(folder / "out") == log_of(folder / "alone")
    assert (folder / "out/winner.toml").read_text() == (folder / "alone/winner.toml").read_text()
    assert without_seconds(folder / "out/leaderboard.csv") == without_seconds(folder / "alone/leaderboard.csv")
    # what a trial took is what its parts took, whoever made them
    seconds = [json.loads(file.read_text())["seconds"] for file in (folder / "out/tune/0").glob("part-*.json")]
    assert json.loads(lines_of(folder / "out/trials.jsonl")[2])["seconds"] == pytest.approx(sum(seconds))


def test_two_processes_share_a_search(shared, tmp_path):
    both = [started(shared), started(shared)]
    said = [each.communicate(timeout=180) for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    check_shared(tmp_path, 2)
    assert said[0][0] == said[1][0]


@pytest.mark.parametrize("shared", [pytest.param("optuna", marks=needs_optuna)], indirect=True)
def test_one_process_goes_on_for_another_that_dies(shared, tmp_path):
    (tmp_path / "one_dies").touch()
    both = [started(shared), started(shared)]
    said = [each.communicate(timeout=180) for each in both]
    assert sorted(each.returncode for each in both) == [-9, 0], said
    check_shared(tmp_path, 2)


@pytest.mark.parametrize("shared", ["grid"], indirect=True)
def test_workers_of_ray_share_a_search_and_one_that_dies_is_started_again(shared, tmp_path):
    pytest.importorskip("ray")
    (tmp_path / "one_dies").touch()
    running = started(shared, "--engine", "ray", "--workers", "2")
    said = running.communicate(timeout=180)
    assert running.returncode == 0, said
    assert (tmp_path / "died").exists()
    made = Counter((tmp_path / "made.txt").read_text().split())
    # the third is who was started for the one that died, if anything was left
    check_shared(tmp_path, len(made))
    assert len(made) in (2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "rya"}, "the engine 'rya', expected one of .*nearest: 'ray'"),
        ({"workers": 2}, "got --workers without --engine ray"),
        ({"engine": "ray", "workers": 0}, "got --workers 0, expected at least 1"),
    ],
)
def test_engines_are_those_of_many_rows(write, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        tune(write(STUDY), tmp_path / "out", **options)


def test_a_grid_does_not_wait_for_a_part_of_another_process(write, tmp_path):
    path = write(STUDY)
    alone = tune(path, tmp_path / "alone")
    out = tmp_path / "out"
    other = Search(read_study(path), out)
    scoring = other.scoring(0, alone.trials[0].parameters)
    with ThreadPoolExecutor(1) as pool:
        with scoring.run.claim(0):
            found = pool.submit(tune, path, out)
            for _ in range(600):
                if len(list(out.glob("tune/*/part-*.json"))) == 2 * 7 - 1:
                    break
                time.sleep(0.1)
            # all but that part is there, and trials are in the log in their order
            assert [trial["number"] for trial in log_of(out)[1:]] == [-1]
        assert [trial.score for trial in found.result(60).trials] == [trial.score for trial in alone.trials]


@needs_optuna
def test_the_first_process_to_ask_decides_what_is_tried(write, tmp_path):
    path = write(changed(STUDY, search__method="optuna", search__trials=2, search__parameters__linear_gamma=BOUNDS))
    first = tune(path, tmp_path / "first").trials[0].parameters
    # as the logarithm of another processor would have it
    other = {**first, "linear_gamma": float(np.nextafter(first["linear_gamma"], 1))}
    Search(read_study(path), tmp_path / "out").scoring(0, other)
    assert tune(path, tmp_path / "out").trials[0].parameters == other != first


def test_a_part_that_cannot_be_read_is_named(write, tmp_path):
    tune(write(STUDY), tmp_path / "out")
    part = tmp_path / "out/test/default/part-00001.json"
    part.write_text("{}")
    with pytest.raises(ValueError, match=r"cannot read .*part-00001.json.*delete it, and it is made again"):
        tune(tmp_path / "study.toml", tmp_path / "out")
    part.unlink()
    tune(tmp_path / "study.toml", tmp_path / "out")


def test_each_process_of_a_machine_has_its_own_gpu(write, tmp_path, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert cli.main(["tune", str(write(STUDY)), "--allow-code", "--out", str(tmp_path / "out")]) == 0
    assert chosen == ["cuda:3"]


WORKER = """
import os, sys, optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from zennit_attn.tuning import read_study

def work(path, log, trials):
    study = read_study(path, allow_code=True)
    def objective(trial):
        trial.set_user_attr("process", os.getpid())
        return study.objective(study.space.suggest(trial))
    shared = optuna.create_study(study_name="shared", storage=JournalStorage(JournalFileBackend(log)),
                                 direction="maximize", load_if_exists=True)
    shared.optimize(objective, n_trials=trials)
    return study, shared

if __name__ == "__main__":
    work(sys.argv[1], sys.argv[2], 3)
"""


@needs_optuna
def test_optuna_drives_the_objective_in_two_processes(write, tmp_path):
    path = str(write(changed(STUDY, search__method="optuna", search__parameters__linear_gamma=BOUNDS)))
    log = str(tmp_path / "journal.log")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", WORKER, path, log]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as other:
        # this process is the second one
        here = {"__name__": "worker"}
        exec(WORKER, here)
        study, shared = here["work"](path, log, 3)
        error = other.communicate(timeout=120)[1]
    assert other.returncode == 0, error
    assert len(shared.trials) == 6
    assert {trial.user_attrs["process"] for trial in shared.trials} == {other.pid, os.getpid()}
    for trial in shared.trials:
        # the same arithmetic in another process, perhaps on another number of threads
        assert trial.value == pytest.approx(study.objective(trial.params), rel=1e-4)


def test_the_objective_goes_to_another_process(write, tmp_path):
    # a class of the file's own, which another process can only have from the file
    own = TINY.replace("torch.manual_seed(0)\n", "torch.manual_seed(0)\n    class Own(torch.nn.Sequential): pass\n")
    own = own.replace("return model.eval()", "return Own(model).eval()")
    assert own.count("Own") == 2
    read = read_study(write(STUDY))
    made = Study(STUDY, read.model, read.tune, read.test)
    (tmp_path / "tiny.py").write_text(own)
    objectives = [made.objective, read_study(tmp_path / "study.toml").objective]
    choice = {"linear_gamma": 0.3, "qkv.gamma": 0.5}
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.starmap(apply, [(objective, choice) for objective in objectives])
    # the same arithmetic in another process, perhaps on another number of threads
    assert found == pytest.approx([objective(choice) for objective in objectives], rel=1e-4)


def apply(objective, parameters):
    return objective(parameters)


def test_threads_do_not_disturb_each_other(write):
    study = read_study(write(STUDY))
    choices = list(study.space.grid())
    expected = [study.objective(choice) for choice in choices]
    with ThreadPoolExecutor(3) as pool:
        # the same arithmetic, perhaps on another number of threads
        assert list(pool.map(study.objective, choices)) == pytest.approx(expected, rel=1e-4)


def test_a_study_that_has_changed_does_not_go_to_another_process(write, tmp_path):
    sent = pickle.dumps(read_study(write(STUDY)).objective)
    write(changed(STUDY, score__steps=8))
    with pytest.raises(ValueError, match="differs in its study from what another process read"):
        pickle.loads(sent)


HEAD = {"roles": ["head"], "rule": "Epsilon"}


def gamma_of(roles):
    return {"roles": roles, "rule": "Gamma", "parameters": {"gamma": [0.1, 1.0]}}


WRONG = [
    ({"serch": {}}, "nearest: 'search'"),
    ({"search": {}}, "search without parameters"),
    ({"search__methods": "grid"}, "nearest: 'method'"),
    ({"search__method": "random"}, r"expected one of \('grid', 'optuna'\)"),
    ({"search__trials": 3}, "which tries all values"),
    ({"search__parameters": {"linear_gamma": BOUNDS}}, "method='optuna'"),
    ({"search__parameters": {"linear_gama": [1]}}, "nearest: 'linear_gamma'"),
    ({"search__parameters": {"linear_gamma": []}}, "at least one value, each once"),
    ({"search__parameters": {"linear_gamma": [1, 0.5, 1]}}, "at least one value, each once"),
    ({"search__parameters": {"linear_gamma": [0.1, -1]}}, "at least 0"),
    ({"search__parameters": {"linear_gamma": 0.1}}, "a list of values"),
    ({"search__parameters": {"linear_gamma": {"low": 1, "high": 1}}}, "expected low < high"),
    ({"search__parameters": {"linear_gamma": {"low": 0, "high": 1, "log": True}}}, "with log, 0 < low"),
    ({"search__parameters": {"linear_gamma": {"low": 0.1, "top": 1}}}, "expected one of"),
    ({"search__parameters": {"linear_gamma": {"low": 0.1}}}, "finite numbers as low and high"),
    ({"search__parameters": {"linear_gamma": {"low": False, "high": True}}}, "finite numbers as low and high"),
    ({"search__role_map": [{"roles": ["qvk"], "rule": "Gamma", "parameters": {"gamma": [1]}}]}, "nearest: 'qkv'"),
    ({"search__role_map": [{"roles": ["qkv"], "rule": "Gama", "parameters": {"gamma": [1]}}]}, "Gamma"),
    ({"search__role_map": [{"roles": ["qkv"], "rule": "Gamma", "parameters": {"gamma": 1}}]}, "nothing to search"),
    ({"search__role_map": STUDY["search"]["role_map"] * 2}, "each parameter once"),
    (
        {"search__role_map": [gamma_of(["qkv", "projection"]), gamma_of(["qkv"])]},
        r"'qkv.gamma' in \[search\], which changes no rule",
    ),
    (
        {"search__parameters__head_gamma": [0, 1], "role_map": [HEAD]},
        r"'head_gamma' in \[search\], which changes no rule",
    ),
    ({"search__name_map": [{"names": ["*.mpl"], "rule": "Gamma", "parameters": {"gamma": [1]}}]}, "fits no module"),
    ({"score__name": "delta_aria"}, "nearest: 'delta_area'"),
    ({"score__fill": "gray"}, "expected a finite number, 'mean' or 'blur'"),
    ({"score__fill": [0.5]}, "expected a finite number, 'mean' or 'blur'"),
    ({"score__fill": True}, "expected a finite number, 'mean' or 'blur'"),
    ({"score__fill": "blur", "score__size": 16}, "less than a side of the image"),
    ({"score__size": 5}, "expected a divisor"),
    ({"search__method": "optuna", "search__seed": 2**32}, r"expected less than 2\*\*32"),
    ({"score__steps": 2.5}, "expected a whole number"),
    ({"data__tune": 0}, "at least 1"),
    ({"data__target": "best"}, "'largest' or 'label'"),
    ({"data__folder": "here"}, "either a folder or a name"),
    ({"data__name": "CIFAR11"}, "nearest: 'CIFAR10'"),
    ({"model__name": "other.py"}, "there is no file 'other.py'"),
    ({"model__size": 3}, "expected one of"),
    ({"made_with": {}}, "expected one of"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_what_is_wrong_in_a_file_is_said(write, tmp_path, changes, message):
    with pytest.raises((TypeError, ValueError, FileNotFoundError), match=message):
        tune(write(changed(STUDY, **changes)), tmp_path / "out")


def test_no_sample_is_in_both_sets(write):
    study = read_study(write(STUDY))
    with pytest.raises(ValueError, match="4 inputs that are in both sets"):
        Study(STUDY, study.model, study.tune, study.tune)


def test_a_log_belongs_to_one_study(write, tmp_path):
    tune(write(STUDY), tmp_path / "out")
    with pytest.raises(ValueError, match="differs in its study,"):
        tune(write(changed(STUDY, score__steps=8)), tmp_path / "out")
    # the same file, with other weights, written in the same second
    times = (tmp_path / "tiny.py").stat()
    (tmp_path / "tiny.py").write_text(TINY.replace("manual_seed(0)", "manual_seed(1)"))
    os.utime(tmp_path / "tiny.py", (times.st_atime, times.st_mtime))
    with pytest.raises(ValueError, match="differs in its model,"):
        tune(write(STUDY), tmp_path / "out")
    (tmp_path / "out/trials.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="cannot read"):
        tune(write(STUDY), tmp_path / "out")


@pytest.mark.parametrize("change", ["labels", "masks"])
def test_a_log_belongs_to_labels_and_masks(write, tmp_path, change):
    old = {"labels": "torch.arange(count) % 3", "masks": "masks[:, 4:8, 4:8]"}[change]
    new = {"labels": "torch.arange(1, count + 1) % 3", "masks": "masks[:, 8:, 4:8]"}[change]
    assert old in TINY
    before = read_study(write(STUDY)).identity()
    (tmp_path / "tiny.py").write_text(TINY.replace(old, new))
    after = read_study(tmp_path / "study.toml").identity()
    assert {key for key in before if before[key] != after[key]} == {"data"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("torch.arange(count) % 3", "torch.arange(count + 1) % 3", "5 labels for 4 images"),
        ("torch.arange(count) % 3", "torch.arange(count) - 1", "label -1 or less"),
        ("torch.arange(count) % 3", "torch.arange(count) + 7", "the output has 3"),
        ("torch.zeros(count,", "torch.zeros(count + 1,", "4 inputs, 4 targets and 5 masks"),
    ],
)
def test_labels_and_masks_that_do_not_fit_are_refused(write, tmp_path, old, new, message):
    path = write(STUDY)
    (tmp_path / "tiny.py").write_text(TINY.replace(old, new))
    with pytest.raises(ValueError, match=message):
        read_study(path)


def lines_of(path):
    return path.read_text(encoding="utf-8").splitlines(keepends=True)


def test_a_log_belongs_to_one_set_of_versions(write, tmp_path):
    tune(write(STUDY), tmp_path / "out")
    head, *trials = lines_of(tmp_path / "out/trials.jsonl")
    other = head.replace(f'"torch": "{torch.__version__.split("+")[0]}', '"torch": "1.0')
    assert other != head
    (tmp_path / "out/trials.jsonl").write_text("".join([other, *trials]))
    with pytest.raises(ValueError, match="differs in its versions,"):
        tune(tmp_path / "study.toml", tmp_path / "out")


def test_a_log_has_each_trial_once(write, tmp_path):
    tune(write(STUDY), tmp_path / "out")
    lines = lines_of(tmp_path / "out/trials.jsonl")
    (tmp_path / "out/trials.jsonl").write_text("".join([*lines[:4], *lines[3:]]))
    with pytest.raises(ValueError, match=r"got the trials \[-1, 0, 1, 1, 2"):
        tune(tmp_path / "study.toml", tmp_path / "out")


def test_a_line_that_was_cut_within_a_letter_is_cut_off(tmp_path):
    path = tmp_path / "trials.jsonl"
    log = Log(path, {"study": "é"})
    log.add(Trial(-1, {}, 1.0, 0.5, 1.5, 0.1))
    whole = path.read_bytes()
    path.write_bytes(whole + '{"number": 0, "parameters": {"é'.encode()[:-1])
    assert Log(path, {"study": "é"}).trials == log.trials
    assert path.read_bytes() == whole


def test_a_score_that_is_not_finite_stops_the_search(write, tmp_path, monkeypatch):
    monkeypatch.setitem(SCORES, "delta_area", lambda given: given.relevance.new_full((len(given.relevance),), np.nan))
    with pytest.raises(ValueError, match="not finite for 3 of 3 samples"):
        tune(write(STUDY), tmp_path / "out")
    assert len((tmp_path / "out/trials.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("parameters", [{"linear_gamma": 1}, {"linear_gamma": 1, "qkv.gamma": 1, "qkv.gama": 1}])
def test_the_objective_wants_its_parameters(write, parameters):
    with pytest.raises(ValueError, match=r"'qkv.gamma' is missing|'qkv.gama' is not searched, nearest: 'qkv.gamma'"):
        read_study(write(STUDY)).objective(parameters)


@pytest.mark.parametrize("score", ["relevance_mass", "pointing_game", "relevance_rank", "occlusion"])
def test_other_scores(write, score):
    study = read_study(write(changed(STUDY, score__name=score)))
    found = study.scores(study.space.default, study.tune)
    assert found.shape == (4,)
    assert -1 <= float(found.min()) <= float(found.max()) <= 1


@pytest.fixture
def saved_vit(tmp_path):
    """Save a model of transformers and a folder of images in two classes, and return the study of them."""
    sizes = {"image_size": 16, "patch_size": 8, "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = transformers.ViTConfig(**sizes, num_hidden_layers=1, num_labels=2)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
    rng = np.random.default_rng(0)
    for index in range(8):
        folder = tmp_path / "images" / f"class{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    data = {"folder": "images", "tune": 3, "test": 4}
    return changed(STUDY, model={"name": "vit", "device": "cpu"}, data=data, score={"steps": 2})


def test_a_folder_of_images_and_a_model_of_transformers(saved_vit, write, tmp_path, capsys):
    path = write(saved_vit)
    study = read_study(path)
    pixels = [part.batch["pixel_values"] for part in (study.tune, study.test)]
    assert [len(part) for part in pixels] == [3, 4]
    with torch.no_grad():
        largest = study.model(pixels[0]).logits.argmax(1)
    assert torch.equal(study.tune.target.shares.argmax(1), largest)
    # each image once
    assert len({image.numpy().tobytes() for image in torch.cat(pixels)}) == 7
    other = read_study(write(changed(saved_vit, data__seed=1)))
    assert not torch.equal(other.tune.batch["pixel_values"], pixels[0])

    assert cli.main(["tune", str(write(saved_vit))]) == 0
    printed = capsys.readouterr().out
    assert "best of 6 trials" in printed
    assert "on the test samples" in printed
    assert cli.main(["tune", str(path), "--out", str(tmp_path / "study"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert load_composite(found["winner"]).linear_gamma == found["best"]["parameters"].get("linear_gamma", 0.05)
    assert cli.main(["tune", str(write(changed(saved_vit, data__test=6)))]) == 2
    assert "8 images, expected 3 to tune and 6 to test" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["images", "images/class0/out"])
def test_pictures_are_not_written_among_the_images(saved_vit, write, tmp_path, place):
    with pytest.raises(ValueError, match="is in the folder of the images"):
        tune(write(saved_vit), tmp_path / place)
    assert not list((tmp_path / "images").rglob("*.jsonl"))


def test_copies_of_an_image_are_found(saved_vit, write, tmp_path):
    for file in (tmp_path / "images/class0").iterdir():
        (tmp_path / "images/class1" / f"copy{file.name}").write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="in both sets"):
        read_study(write(changed(saved_vit, data__tune=6, data__test=6)))


def test_a_dataset_of_torchvision(saved_vit, write, tmp_path):
    data = {"name": "ImageFolder", "root": "images", "tune": 3, "test": 4, "target": "label"}
    study = read_study(write(changed(saved_vit, data=data)))
    images = torchvision.datasets.ImageFolder(tmp_path / "images")
    processor = transformers.ViTImageProcessor.from_pretrained(tmp_path / "vit")
    expected = {
        processor(images=image, return_tensors="np")["pixel_values"].tobytes(): label for image, label in images
    }
    for part in (study.tune, study.test):
        for pixels, shares in zip(part.batch["pixel_values"], part.target.shares, strict=True):
            assert shares.argmax() == expected[pixels.numpy().tobytes()]


@given(st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=5))
def test_ticks_are_around_all_values(values):
    ticks = ticks_of(values)
    assert 2 <= len(ticks) <= 7
    # steps are sums of a rounded step
    slack = 1e-9 * max(map(abs, ticks))
    assert ticks[0] - slack <= min(values)
    assert max(values) <= ticks[-1] + slack
    steps = np.diff(ticks)
    np.testing.assert_allclose(steps, steps[0], atol=slack)


def test_dots_are_where_scores_are():
    space = Space(
        changed(STUDY, search__parameters={"linear_gamma": BOUNDS, "head_gamma": [0, 1]}, search__role_map=[])
    )
    choices = [{"linear_gamma": value, "head_gamma": int(value > 1)} for value in (0.01, 0.1, 1.0, 10.0)]
    scores = [0.2, 0.5, 0.3, 0.4]
    picture = scatter(list(space.axes.values()), choices, scores, 0.35)
    panel = picture.figure.axes[0]
    trials, best, default = panel.lines
    assert trials.get_xydata().tolist() == [
        [choice["linear_gamma"], score] for choice, score in zip(choices, scores, strict=True)
    ]
    assert (best.get_xydata().tolist(), best.get_color()) == ([[0.1, 0.5]], hexadecimal(RED))
    assert set(default.get_ydata()) == {0.35}
    # the axis is logarithmic: the two in the middle are as far from each other as thirds of the panel
    placed = panel.transData.transform(trials.get_xydata())
    assert np.diff(placed[:, 0]) == pytest.approx(np.diff(placed[:2, 0])[0])
    np.testing.assert_allclose(np.diff(placed[:, 1]) / (placed[1, 1] - placed[0, 1]), [1, -2 / 3, 1 / 3])
    left, right = panel.get_window_extent().intervalx
    assert left - 1e-6 <= placed[:, 0].min() < placed[:, 0].max() <= right + 1e-6


def test_the_study_of_the_shapes_can_be_read_and_its_winner_loads():
    content = tomllib.loads((ROOT / "examples/tune_shapes.toml").read_text())
    space = Space(content)
    winner = ROOT / "examples/tuned/winner.toml"
    found = tomllib.loads(winner.read_text())["made_with"]["tuning"]
    best = rows_of(ROOT / "examples/tuned/leaderboard.csv")[0]
    parameters = {name: best[name] if name == "attention" else float(best[name]) for name in space.axes}
    assert load_composite(winner) == space.composite(parameters)
    assert float(best["score"]) == pytest.approx(found["tune_best"], rel=1e-5)
    assert found["test_difference"][1] > 0


def test_a_python_file_may_import_others_of_its_folder(write, tmp_path):
    (tmp_path / "tiny.py").rename(tmp_path / "tiny_parts.py")
    (tmp_path / "tiny.py").write_text("from tiny_parts import load_data, load_model, preprocess\n")
    before = list(sys.path)
    assert len(read_study(write(STUDY)).tune) == STUDY["data"]["tune"]
    assert sys.path == before
