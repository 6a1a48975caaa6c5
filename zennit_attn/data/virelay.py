"""ViRelAy: results of images as the files of a project that ViRelAy shows, with their clusters by SpRAy."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..explain.explainer import CHOSEN
from .columns import patched
from .extras import extra
from .results import Results
from .spray import CLUSTERS, Array, Spray, fewest, spray

#: How many cells a side of an image has at most when it is clustered.
CELLS = 32
#: What a row is of that came from no folder.
NO_CLASS = "no class"
#: The category of all rows.
EVERY = "all"
#: Name of the analysis of images' relevance.
OF_IMAGES = "relevance"


@dataclass(frozen=True)
class Rows:
    """What is known of the rows that are shown.

    Attributes
    ----------
    number : list of int
        Which rows of the results they are.
    names : list of str
        Names of the classes, by their numbers.
    label, explained : list of int
        Number of the class that an image is of, and of that which was explained.
    logit : list of float
        Logit of what was explained.
    strategy : str
        Of which class relevance is: ``predicted_label`` or ``true_label``.
    """

    number: list[int]
    names: list[str]
    label: list[int]
    explained: list[int]
    logit: list[float]
    strategy: str


def write_virelay(
    results: Results,
    folder: str | os.PathLike[str],
    matrices: Mapping[str, Any] | None = None,
    clusters: Sequence[int] = CLUSTERS,
    neighbours: int = 10,
    seed: int = 0,
) -> Path:
    """Write results of images as a project of ViRelAy, which ``python -m virelay FOLDER/project.yaml`` shows.

    Rows that could not be explained are left out; ``row`` of ``input.h5`` has the numbers of the others. SpRAy is made
    of all of them, and of those of each class that was explained and has more rows than the largest number of clusters.
    For it, an image's relevance is summed over cells, so that a side has at most 32.

    Parameters
    ----------
    results : Results
        Of images, all of one size, each explained for one class.
    folder : str or path
        Where to write; it must not be there yet.
    matrices : mapping, optional
        Further analyses, by their names: a matrix of shape ``(rows of the results, values)`` each, such as relevance of
        heads. Rows that could not be explained may have anything.
    clusters, neighbours, seed
        See :func:`spray`.

    Returns
    -------
    pathlib.Path
        The file of the project.

    Raises
    ------
    InputError
        If results are not of images, of different sizes, of other classes than the predicted or the true ones, or too
        few for the clusters; if the folder is there; if h5py, PyYAML or CoRelAy are not installed.

    Examples
    --------
    >>> from zennit_attn.data import open_results, write_virelay
    >>> write_virelay(open_results("results"), "project")  # doctest: +SKIP
    """
    for module in ("h5py", "yaml", "corelay"):
        extra(module, "a project of ViRelAy", "virelay")
    folder = Path(folder)
    if folder.exists():
        raise InputError(f"got the folder {str(folder)!r}, which is there already; choose another one, or delete it")
    rows = rows_of(results)
    least = fewest(clusters)
    if len(rows.number) < least:
        raise InputError(
            f"got {len(rows.number)} explained rows, expected at least {least} for clusters={tuple(clusters)}; choose "
            f"fewer clusters, or explain more images"
        )
    chosen = chosen_of(matrices or {}, rows, len(results))
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        cells = write_arrays(results, rows, partial)
        for name, matrix in {OF_IMAGES: cells, **chosen}.items():
            found = {
                category: (index, spray(matrix[index], clusters, neighbours, seed))
                for category, index in categories_of(rows, least).items()
            }
            write_analysis(partial / file_of(name), found)
        write_texts(results, rows, [OF_IMAGES, *chosen], partial, folder.name)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder / "project.yaml"


def rows_of(results: Results) -> Rows:
    """Return what is known of the rows of results.

    Raises
    ------
    InputError
        If they are not of one class each, or of other classes than ViRelAy knows.
    """
    records = [record for record in results.records() if record["error"] is None]
    names: dict[int, str] = {}
    for record in records:
        index, name = record["index"], record["explained"]
        if index is None or names.setdefault(index, name) != name:
            raise InputError(
                f"row {record['row']}: got {name!r} of the index {index}, expected a class, each of one index: ViRelAy "
                "shows image classification"
            )
    numbers = {name: index for index, name in names.items()}
    true = [record.get("class") or NO_CLASS for record in records]
    for name in dict.fromkeys(true):
        # classes that were never explained have no index in the results
        numbers.setdefault(name, max(numbers.values(), default=-1) + 1)
    if max(numbers.values(), default=0) >= 2**16:
        raise InputError(f"got the class {max(numbers.values())}, expected at most {2**16 - 1}: ViRelAy has 16 bits")
    if all(json.loads(record["explanation"])["asked"]["target"] == CHOSEN for record in records):
        strategy = "predicted_label"
    elif all(name == record["explained"] for name, record in zip(true, records, strict=True)):
        strategy = "true_label"
    else:
        raise InputError(
            "got rows with a target that is neither the predicted class nor that of their folder, expected one of "
            "both, which is what ViRelAy knows; leave --target out"
        )
    every = [""] * (max(numbers.values(), default=-1) + 1)
    for name, index in numbers.items():
        every[index] = name
    return Rows(
        [record["row"] for record in records],
        every,
        [numbers[name] for name in true],
        [record["index"] for record in records],
        [record["logit"] for record in records],
        strategy,
    )


def chosen_of(matrices: Mapping[str, Any], rows: Rows, count: int) -> dict[str, Array]:
    """Return the rows of further matrices that are shown.

    Raises
    ------
    InputError
        If one has other rows, or a name that cannot be that of a file or of an address.
    """
    found = {}
    for name, matrix in matrices.items():
        if not name.isidentifier() or name == OF_IMAGES:
            raise InputError(
                f"got a matrix of the name {name!r}, expected letters, digits and _, and not {OF_IMAGES!r}: it becomes "
                "a part of an address"
            )
        matrix = np.asarray(matrix)
        if matrix.ndim != 2 or len(matrix) != count:
            raise InputError(f"got {name!r} of shape {matrix.shape}, expected ({count}, values): a row for each image")
        found[name] = matrix[rows.number]
    return found


def write_arrays(results: Results, rows: Rows, folder: Path) -> Array:
    """Write pixels and relevance of all rows, and return what is clustered.

    Raises
    ------
    InputError
        If a row has no image, or one of another size.
    """
    h5py = extra("h5py", "a project of ViRelAy", "virelay")
    labels, count = np.array(rows.label, np.uint16), len(rows.number)
    prediction = np.zeros((count, len(rows.names)), np.float32)
    prediction[np.arange(count), rows.explained] = rows.logit
    cells: list[Array] = []
    with h5py.File(folder / "input.h5", "w") as inputs, h5py.File(folder / "attribution.h5", "w") as attributions:
        for place, row in enumerate(rows.number):
            pixels, relevance = image_of(results, row)
            if not place:
                shape = pixels.shape
                kept = {"shape": (count, *shape), "chunks": (1, *shape), "compression": "gzip"}
                data = inputs.create_dataset("data", dtype=np.uint8, **kept)
                found = attributions.create_dataset("attribution", dtype=np.float32, **kept)
            if pixels.shape != shape:
                raise InputError(f"row {row}: got an image of {pixels.shape}, expected {shape} as the first one")
            # ViRelAy sums over channels, and fails to draw a single one
            data[place], found[place, 0] = pixels, relevance[0]
            cells.append(in_cells(relevance[0]).ravel())
        inputs["label"] = attributions["label"] = labels
        inputs["row"] = np.array(rows.number)
        attributions["prediction"] = prediction
    return np.stack(cells)


def image_of(results: Results, row: int) -> tuple[Array, Array]:
    """Return the pixels of a row, ``(3, height, width)`` in bytes, and its relevance, ``(1, height, width)``.

    Raises
    ------
    InputError
        If it is of something else, too.
    """
    arrays = results.arrays(row)
    if arrays.keys() != {"0.pixels", "0.relevance"} or len(arrays["0.relevance"]) != 1:
        raise InputError(f"row {row}: got {sorted(arrays) or 'no arrays'}, expected one image and its relevance")
    pixels = arrays["0.pixels"]
    return np.broadcast_to(pixels, (3, *pixels.shape[1:])), arrays["0.relevance"]


def in_cells(relevance: Array) -> Array:
    """Return relevance summed over the smallest cells that leave at most :data:`CELLS` a side, if any fit evenly."""
    height, width = relevance.shape
    sizes = (size for size in range(1, min(height, width) + 1) if height % size == width % size == 0)
    fitting = (size for size in sizes if max(height, width) <= size * CELLS)
    return patched(relevance.astype(np.float64), next(fitting, 1))


def categories_of(rows: Rows, least: int) -> dict[str, Array]:
    """Return the places of the rows of each category: all, and the explained classes with enough of them."""
    explained = np.array(rows.explained)
    each = {category(index): np.flatnonzero(explained == index) for index in np.unique(explained)}
    return {EVERY: np.arange(len(explained)), **{name: index for name, index in each.items() if len(index) >= least}}


def category(index: int) -> str:
    """Return what stands for a class where ViRelAy has the ids of WordNet."""
    return f"class-{index:05d}"


def file_of(name: str) -> str:
    """Return the file of an analysis."""
    return "analysis.h5" if name == OF_IMAGES else f"analysis-{name}.h5"


def write_analysis(file: Path, found: Mapping[str, tuple[Array, Spray]]) -> None:
    """Write embeddings and clusters of some categories."""
    h5py = extra("h5py", "a project of ViRelAy", "virelay")
    with h5py.File(file, "w") as content:
        for name, (index, made) in found.items():
            group = content.create_group(name)
            group["index"] = index.astype(np.uint32)
            group["embedding/spectral"] = made.spectral.astype(np.float32)
            # descending: the page draws the last one first, so that bar i is of column i
            group["embedding/spectral"].attrs["eigenvalue"] = made.eigenvalues[::-1].astype(np.float32)
            group["embedding/tsne"] = made.tsne.astype(np.float32)
            for count, clusters in made.clusters.items():
                group[f"cluster/kmeans-{count:02d}"] = clusters.astype(np.uint8 if count < 256 else np.uint16)


def write_texts(results: Results, rows: Rows, analyses: Sequence[str], folder: Path, name: str) -> None:
    """Write the names of classes, and the file of the project."""
    yaml = extra("yaml", "a project of ViRelAy", "virelay")
    labels = [
        {"index": index, "word_net_id": category(index), "name": label or f"class {index}"}
        for index, label in enumerate(rows.names)
    ]
    (folder / "label-map.json").write_text(json.dumps(labels, ensure_ascii=False, indent=1), encoding="utf-8")
    project = {
        "name": name,
        "model": str(results.about.get("model") or results.settings.get("model")),
        "label_map": "label-map.json",
        "dataset": {"name": str(results.settings["input"]).rpartition(" ")[0], "type": "hdf5", "path": "input.h5"},
        "attributions": {
            "attribution_method": str(results.about.get("preset", "LRP")),
            "attribution_strategy": rows.strategy,
            "sources": ["attribution.h5"],
        },
        "analyses": [{"analysis_method": method, "sources": [file_of(method)]} for method in analyses],
    }
    text = yaml.safe_dump({"project": project}, sort_keys=False, allow_unicode=True)
    (folder / "project.yaml").write_text(text, encoding="utf-8")
