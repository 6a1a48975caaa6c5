"""Results in ViRelAy: read and served by ViRelAy itself, in an environment of its own; and SpRAy by its definition."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from test_explainer import vision

from zennit_attn import AttnLRPComposite, InputXGradient, cli, targets
from zennit_attn.data import open_results, spray, write_virelay
from zennit_attn.data.virelay import in_cells
from zennit_attn.errors import InputError

VIRELAY = "virelay==0.6.1"
COUNT = 14
#: What ViRelAy's own classes read, as JSON.
READER = """
import json, sys
from virelay.model import Project

project = Project(sys.argv[1])
count = len(project.dataset)
samples = [project.get_sample(place) for place in range(count)]
attributions = [project.get_attribution(place) for place in range(count)]
analyses = []
for method in project.get_analysis_methods():
    for category in project.get_analysis_categories(method):
        for clustering in project.get_analysis_clustering_names(method):
            for embedding in project.get_analysis_embedding_names(method):
                found = project.get_analysis(method, category.name, clustering, embedding)
                analyses.append({
                    "method": method, "category": category.name, "title": category.human_readable_name,
                    "clustering": clustering, "embedding": embedding, "value": found.embedding.tolist(),
                    "clusters": found.clustering.tolist(), "index": found.attribution_indices.tolist(),
                    "eigenvalues": None if found.eigenvalues is None else found.eigenvalues.tolist(),
                })
for attribution in attributions:
    for color_map in ("gray-red", "black-green", "black-fire-red", "black-yellow", "blue-white-red", "jet"):
        attribution.render_heatmap(color_map)
print(json.dumps({
    "name": project.name, "model": project.model, "strategy": project.attribution_strategy,
    "pixels": [sample.data.tolist() for sample in samples],
    "classes": [[label.name for label in sample.labels] for sample in samples],
    "relevance": [attribution.data.tolist() for attribution in attributions],
    "prediction": [attribution.prediction.tolist() for attribution in attributions],
    "analyses": analyses,
}))
"""


@pytest.fixture(scope="module")
def virelay(tmp_path_factory):
    """Python of an environment with ViRelAy, which takes an older Pillow than this one."""
    folder = tmp_path_factory.mktemp("virelay")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    python = folder / "bin" / "python"
    for command in ([sys.executable, "-m", "venv", folder], [python, "-m", "pip", "install", "--quiet", VIRELAY]):
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            pytest.skip(f"cannot install {VIRELAY}: {done.stderr.strip().splitlines()[-1]}")
    return python


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a model, images of two classes and one that is none, and their results."""
    folder = tmp_path_factory.mktemp("made")
    with torch.no_grad():
        model, reader, _ = vision("image classification")
    model.save_pretrained(folder / "model")
    reader.save_pretrained(folder / "model")
    draw = np.random.default_rng(0)
    for number in range(COUNT):
        place = folder / "images" / ("hen" if number % 2 else "owl")
        place.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number:02d}.png")
    (folder / "images" / "bad.png").write_bytes(b"no image")
    command = ["explain", "--model", folder / "model", "--input", folder / "images", "--out", folder / "results"]
    assert cli.main([str(part) for part in command]) == 1
    return folder


def heads_of(made, results):
    """Return the relevance of heads of each row, with nothing for those that could not be explained."""
    model = transformers.AutoModelForImageClassification.from_pretrained(made / "model").eval()
    pixels = np.stack([results[row].parts[0].pixels for row in range(1, len(results))])
    with InputXGradient(model, AttnLRPComposite(), latents=["head"]) as attributor:
        batch = {"pixel_values": torch.tensor(pixels) * 2 - 1}
        inner = attributor(batch, targets.MaxLogit()).inner
    heads = torch.cat([value.sum(1) for value in inner.values()], 1).detach().numpy()
    return np.concatenate([np.full((1, heads.shape[1]), np.nan), heads])


@pytest.fixture(scope="module")
def project(made):
    results = open_results(made / "results")
    return write_virelay(results, made / "project", {"heads": heads_of(made, results)}, clusters=[2, 3])


def test_virelay_reads_what_results_have(made, project, virelay):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [virelay, "-c", READER, project], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    results = open_results(made / "results")
    rows = range(1, COUNT + 1)
    assert (found["name"], found["model"], found["strategy"]) == ("project", str(made / "model"), "predicted_label")
    assert found["classes"] == [[results.record(row)["class"]] for row in rows]
    assert {name for (name,) in found["classes"]} == {"hen", "owl"}
    for place, row in enumerate(rows):
        arrays = results.arrays(row)
        # the page has channels last
        assert (np.array(found["pixels"][place]) == np.moveaxis(arrays["0.pixels"], 0, 2)).all()
        relevance = np.array(found["relevance"][place])
        assert relevance.shape == (32, 32, 3)
        assert (relevance.sum(2) == arrays["0.relevance"][0]).all()
        assert np.abs(relevance).max() > 0
        record, prediction = results.record(row), found["prediction"][place]
        assert prediction[record["index"]] == np.float32(record["logit"])
        assert np.count_nonzero(prediction) == 1

    explained = np.array(results.column("index")[1:])
    heads = heads_of(made, results)[1:]
    cells = np.stack([results.arrays(row)["0.relevance"][0].ravel() for row in rows])
    assert {analysis["method"] for analysis in found["analyses"]} == {"relevance", "heads"}
    titles = {analysis["category"]: analysis["title"] for analysis in found["analyses"]}
    names = dict(zip(explained.tolist(), results.column("explained")[1:], strict=True))
    enough = [index for index in names if (explained == index).sum() >= 4]
    assert enough
    assert titles == {"all": "", **{f"class-{index:05d}": names[index] for index in enough}}
    for analysis in found["analyses"]:
        number = analysis["category"].removeprefix("class-")
        index = np.arange(COUNT) if number == "all" else np.flatnonzero(explained == int(number))
        assert analysis["index"] == index.tolist()
        wanted = spray({"relevance": cells, "heads": heads}[analysis["method"]][index], [2, 3])
        count = int(analysis["clustering"].removeprefix("kmeans-"))
        assert analysis["clusters"] == wanted.clusters[count].tolist()
        assert (analysis["value"] == getattr(wanted, analysis["embedding"]).astype(np.float32)).all()
        # the page draws the last one first
        has = wanted.eigenvalues[::-1].astype(np.float32).tolist() if analysis["embedding"] == "spectral" else None
        assert analysis["eigenvalues"] == has


def test_virelay_serves_the_project(project, virelay):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [virelay, "-m", "virelay", project, "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)

    def asked(path):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            return answer.headers.get_content_type(), answer.read()

    try:
        for _ in range(200):
            assert server.poll() is None
            try:
                asked("/api/projects")
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        about = json.loads(asked("/api/projects/0")[1])
        assert [method["name"] for method in about["analysisMethods"]] == ["relevance", "heads"]
        assert asked("/")[0] == "text/html"
        assert asked("/api/projects/0/dataset/3/image")[0] == "image/jpeg"
        for mode in ("attribution", "overlay"):
            path = f"/api/projects/0/attributions/3/heatmap?imageMode={mode}&colorMap=gray-red"
            assert asked(path)[0] == "image/jpeg"
        path = "/api/projects/0/analyses/heads?category=all&clustering=kmeans-02&embedding=spectral"
        assert len(json.loads(asked(path)[1])["embedding"]) == COUNT
    finally:
        server.terminate()
        server.wait(20)


def test_the_command(made, tmp_path, capsys):
    command = ["virelay", str(made / "results"), "--out", str(tmp_path / "project"), "--clusters", "2", "--json"]
    assert cli.main(command) == 0
    assert json.loads(capsys.readouterr().out) == {"project": str(tmp_path / "project" / "project.yaml")}
    assert sorted(path.name for path in (tmp_path / "project").iterdir()) == [
        "analysis.h5", "attribution.h5", "input.h5", "label-map.json", "project.yaml"
    ]  # fmt: skip
    assert cli.main(command) == 2
    assert "there already" in capsys.readouterr().err


def test_relevance_of_the_true_class(made, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    (images / "hen").symlink_to(made / "images" / "hen")
    command = ["explain", "--model", str(made / "model"), "--input", str(images), "--target", "hen"]
    command += ["--files-within", str(made)]
    assert cli.main([*command, "--out", str(tmp_path / "results")]) == 0
    file = write_virelay(open_results(tmp_path / "results"), tmp_path / "project", clusters=[2])
    assert "attribution_strategy: true_label" in file.read_text()
    (images / "owl").symlink_to(made / "images" / "owl")
    assert cli.main([*command, "--out", str(tmp_path / "others")]) == 0
    with pytest.raises(InputError, match="neither the predicted class nor that of their folder"):
        write_virelay(open_results(tmp_path / "others"), tmp_path / "wrong", clusters=[2])


def test_what_cannot_be_shown_is_refused_and_leaves_nothing(made, tmp_path, monkeypatch):
    results = open_results(made / "results")
    out = tmp_path / "out"
    good = np.eye(COUNT + 1)
    wrong = good.copy()
    wrong[4, 4] = np.nan
    for options, message in (
        ({"clusters": [2, COUNT]}, f"got {COUNT} explained rows, expected at least {COUNT + 1}"),
        ({"clusters": []}, "expected different numbers from 2"),
        ({"clusters": [1]}, "expected different numbers from 2"),
        ({"matrices": {"heads": good[1:]}}, "a row for each image"),
        ({"matrices": {"a/b": good}}, "becomes a part of an address"),
        ({"matrices": {"heads": wrong}, "clusters": [2]}, "NaN"),
        ({"neighbours": 0, "clusters": [2]}, "neighbours=0"),
    ):
        with pytest.raises(InputError, match=message):
            write_virelay(results, out, **options)
        assert list(tmp_path.iterdir()) == []
    command = ["explain", "--model", "examples/models/agreement", "--input", "examples/texts.jsonl"]
    assert cli.main([*command, "--out", str(tmp_path / "texts")]) == 0
    with pytest.raises(InputError, match="expected"):
        write_virelay(open_results(tmp_path / "texts"), out, clusters=[2])
    for module in ("h5py", "yaml", "corelay"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            with pytest.raises(InputError, match=r"pip install 'zennit-attn\[virelay\]'"):
                write_virelay(results, out)
    assert [path.name for path in tmp_path.iterdir()] == ["texts"]


def test_cells_keep_the_sum():
    relevance = np.random.default_rng(0).normal(size=(224, 112)).astype(np.float32)
    assert in_cells(relevance).shape == (32, 16)
    # 49 summands of float32 in float64
    np.testing.assert_allclose(in_cells(relevance)[3, 5], relevance[21:28, 35:42].sum(dtype=np.float64), rtol=1e-12)
    assert in_cells(relevance[:37, :41]).shape == (37, 41)


# --------------------------------------------------------------------------------------------------------------------
# SpRAy
# --------------------------------------------------------------------------------------------------------------------


def groups(count=12, noise=0.1):
    """Return rows around three directions, of any lengths, and of which each is."""
    draw = np.random.default_rng(1)
    own = np.repeat(np.arange(3), count)
    rows = np.eye(5)[own] + noise * draw.random((3 * count, 5))
    return rows * draw.uniform(0.1, 10, (3 * count, 1)), own


def laplacian(rows, neighbours):
    """Return 1 - D^-1/2 A D^-1/2 of the symmetric graph of nearest neighbours, by its definition."""
    rows = rows / np.abs(rows).sum(1, keepdims=True)
    graph = np.zeros((len(rows), len(rows)))
    for one, row in enumerate(rows):
        distances = [(np.linalg.norm(row - other), two) for two, other in enumerate(rows) if two != one]
        for _, two in sorted(distances)[:neighbours]:
            graph[one, two] += 0.5
            graph[two, one] += 0.5
    root = np.diag(graph.sum(1) ** -0.5)
    return np.eye(len(rows)) - root @ graph @ root


@pytest.mark.parametrize("noise", [0.1, 3.0], ids=["in three parts", "in one"])
def test_spray_is_what_its_definition_says(noise):
    rows, own = groups(noise=noise)
    found = spray(rows, [2, 3], neighbours=5)
    values, vectors = np.linalg.eigh(laplacian(rows, 5))
    count = len(found.eigenvalues)
    assert count == 32
    # float64, to the accuracy of ARPACK
    np.testing.assert_allclose(found.eigenvalues, values[:count], atol=1e-10)
    # a space, since the vectors of equal values are any basis of it
    np.testing.assert_allclose(
        found.spectral[:, :3] @ found.spectral[:, :3].T, vectors[:, :3] @ vectors[:, :3].T, atol=1e-8
    )
    assert found.tsne.shape == (36, 2)
    if noise < 1:
        # as many zeros as parts
        assert (found.eigenvalues[:3] < 1e-10).all()
        assert found.eigenvalues[3] > 0.05
        together = found.clusters[3][:, None] == found.clusters[3]
        assert (together == (own[:, None] == own)).all()
    again = spray(rows * 3, [2, 3], neighbours=5)
    assert (again.clusters[3] == found.clusters[3]).all()
    # 1 / 3 is rounded
    np.testing.assert_allclose(again.eigenvalues, found.eigenvalues, atol=1e-10)


def test_rows_without_relevance_and_rows_that_are_the_same():
    rows = np.concatenate([np.zeros((3, 4)), np.ones((3, 4)), np.random.default_rng(0).random((6, 4))])
    found = spray(rows, [2], neighbours=50)
    assert np.isfinite(found.spectral).all()
    assert np.isfinite(found.tsne).all()


@pytest.mark.parametrize("rows", [np.zeros(8), np.zeros((2, 8)), np.full((8, 2), np.inf)], ids=str)
def test_spray_takes_a_matrix_of_numbers(rows):
    with pytest.raises(InputError, match="expected"):
        spray(rows, [2])
