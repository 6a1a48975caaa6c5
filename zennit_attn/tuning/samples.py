"""Samples: the model of a study and what it explains: images, from folders, datasets of torchvision, or Python.

They are split into one set to tune on and one to test on, which share none. A model or a dataset whose name ends with
``.py`` is a Python file, which is run if that was asked for. Models of transformers may be downloaded by name; datasets
are not, unless their arguments say so.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from ..composites.configuration import require_known
from ..evaluation.features import Batch, Fixed, fix, select
from ..explain import Explainer
from ..explain.images import image_of, suffixes
from ..explain.loading import device_of
from ..hints import nearest
from ..inputs import single_input
from ..targets import Label, MaxLogit

SPLITS = ("tune", "test")
DATA_KEYS = ("folder", "name", "root", "arguments", *SPLITS, "seed", "target")
MODEL_KEYS = ("name", "device")
# of the forward passes that only look at the output
CHUNK = 64


@dataclass(frozen=True)
class Samples:
    """Inputs of a model, and what is explained of each.

    Attributes
    ----------
    batch : torch.Tensor or mapping
        All inputs, as the model takes them.
    target : zennit_attn.evaluation.Fixed
        What is explained.
    truth : torch.Tensor, optional
        Where relevance should be, of the shape of the pixels or tokens.
    keep : tuple of int, optional
        Ids of tokens that are not removed, such as those that a tokenizer adds.

    Raises
    ------
    ValueError
        If these are not of the same number of samples.
    """

    batch: Batch
    target: Fixed
    truth: Tensor | None = None
    keep: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        count = len(single_input(self.batch)[1])
        if len(self) != count or (self.truth is not None and len(self.truth) != count):
            masks = "no" if self.truth is None else len(self.truth)
            raise ValueError(f"got {count} inputs, {len(self)} targets and {masks} masks, expected one for each input")

    def __len__(self) -> int:
        return len(self.target.shares)

    def digests(self) -> list[str]:
        """Return a hash of each input."""
        return [digest([value]) for value in single_input(self.batch)[1]]

    def tensors(self) -> list[Tensor]:
        """Return all that a score depends on: inputs with their masks, targets and truth."""
        inputs = [self.batch] if isinstance(self.batch, Tensor) else list(self.batch.values())
        others = [self.target.shares, self.target.position, self.truth]
        known = [value for value in inputs if isinstance(value, Tensor)]
        return known + [torch.as_tensor(value) for value in others if value is not None]


@dataclass(frozen=True)
class Subject:
    """A model that is explained.

    Attributes
    ----------
    model : torch.nn.Module
        The model in evaluation mode.
    prepare : callable
        Makes the model's input of images.
    name : str
        What it is called.
    explainer : Explainer or None
        What reads other inputs of it, if it was loaded by its name.
    """

    model: torch.nn.Module
    prepare: Callable[[Any], Batch]
    name: str
    explainer: Explainer | None = None


@dataclass(frozen=True)
class Pictures:
    """Images before they are prepared, with what is known of them.

    Attributes
    ----------
    images : sequence of PIL.Image.Image, or torch.Tensor
        The images, tensors with values from 0 to 1.
    labels, masks : torch.Tensor, optional
        Class of each, and where its cause is.

    Raises
    ------
    ValueError
        If there is not one label for each image.
    """

    images: Any
    labels: Tensor | None = None
    masks: Tensor | None = None

    def __post_init__(self) -> None:
        if self.labels is not None and len(self.labels) != len(self.images):
            raise ValueError(f"got {len(self.labels)} labels for {len(self.images)} images, expected one for each")


def digest(tensors: Sequence[Tensor]) -> str:
    """Return the SHA-256 of tensors, their types and shapes."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def model_digest(model: torch.nn.Module) -> str:
    """Return the SHA-256 of a model's parameters and buffers."""
    return digest([*model.parameters(), *model.buffers()])


def refuse_overlap(tune: Samples, test: Samples, source: str) -> None:
    """Raise ValueError if an input is in both sets."""
    known = {value: index for index, value in enumerate(tune.digests())}
    shared = [(known[value], index) for index, value in enumerate(test.digests()) if value in known]
    if shared:
        raise ValueError(
            f"{source} got {len(shared)} inputs that are in both sets, the first one as number {shared[0][0]} to tune "
            f"on and number {shared[0][1]} to test on; expected none: remove copies, or choose another seed"
        )


def refuse_code(tables: Sequence[Mapping[str, Any]], folder: Path, source: str) -> None:
    """Raise ValueError if tables of a study name Python files."""
    names = [str(table["name"]) for table in tables if is_code(table.get("name"))]
    if names:
        files = " and ".join(repr(str((folder / name).resolve())) for name in dict.fromkeys(names))
        raise ValueError(
            f"{source} names Python code, which would be run: {files}; expected --allow-code, in Python "
            "allow_code=True, if that is meant"
        )


def is_code(name: Any) -> bool:
    """Tell whether a name is that of a Python file."""
    return isinstance(name, str) and name.endswith(".py")


class AsWritten(SourceFileLoader):
    """Reads a Python file as it is: Python's own cache takes one of the same size and second for the one before."""

    def path_stats(self, path: Any) -> Any:
        """Raise OSError, which is how a loader says that it has no cache."""
        raise OSError


def python_module(name: str, folder: Path) -> Any:
    """Run a Python file, and return it as a module; it may import others of its folder.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    path = (folder / name).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"got the name {name!r}, but there is no file {path.name!r} in {str(path.parent)!r}")
    title = f"zennit_attn_study_{path.stem}"
    spec = importlib.util.spec_from_file_location(title, path, loader=AsWritten(title, str(path)))
    if spec is None or spec.loader is None:
        raise ImportError(f"got the name {name!r}, which Python cannot import")
    # dataclasses look for their module there
    module = sys.modules[title] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def function_of(module: Any, name: str) -> Callable[..., Any]:
    """Return a function of a Python file that a study names, or raise ValueError if it has none."""
    if not callable(getattr(module, name, None)):
        raise ValueError(f"got the file {Path(module.__file__).name!r}, expected a function {name} in it")
    found: Callable[..., Any] = getattr(module, name)
    return found


def read_subject(table: Mapping[str, Any], preset: str, folder: Path, source: str) -> Subject:
    """Return the model that a study names.

    Parameters
    ----------
    table : mapping
        ``name``: a model on the hub or a folder, which transformers loads, or a Python file with ``load_model()`` and
        ``preprocess(images)``; and ``device``, by default a GPU if there is one.
    preset : str
        Preset by which it will be explained.
    folder : pathlib.Path
        Where a Python file or a folder is looked for.
    source : str
        The study, for errors.

    Raises
    ------
    ValueError, FileNotFoundError
        If there is no such model.
    """
    require_known("key of [model]", table, MODEL_KEYS, source)
    name, device = (table.get(key, default) for key, default in zip(MODEL_KEYS, (None, "auto"), strict=True))
    if not isinstance(name, str) or not isinstance(device, str):
        raise TypeError(f"{source} got [model] with name={name!r}, device={device!r}, expected texts")
    if is_code(name):
        module, place = python_module(name, folder), device_of(device)
        preprocess = function_of(module, "preprocess")
        return Subject(
            function_of(module, "load_model")().to(place), lambda images: preprocess(stacked(images)).to(place), name
        )
    explainer = Explainer(str(folder / name) if (folder / name).is_dir() else name, composite=preset, device=device)
    dtype = next(explainer.model.parameters()).dtype

    def prepare(images: Any) -> Batch:
        if explainer.task.name != "image classification":
            raise ValueError(
                f"{source} got images for the model {name!r}, which is for {explainer.task.name}; expected texts in "
                "[data], or use Python"
            )
        pictures = [image if isinstance(image, Image.Image) else to_pil_image(image) for image in images]
        return dict(explainer.reader(images=pictures, return_tensors="pt").to(explainer.device, dtype))

    return Subject(explainer.wrapped, prepare, name, explainer)


def stacked(images: Any) -> Tensor:
    """Return images as one tensor with values from 0 to 1, or raise ValueError if their sizes differ."""
    if isinstance(images, Tensor):
        return images
    tensors = [pil_to_tensor(image.convert("RGB")) / 255 for image in images]
    sizes = {tuple(tensor.shape[1:]) for tensor in tensors}
    if len(sizes) != 1:
        raise ValueError(f"got images of sizes {sorted(sizes)}, expected one: a Python file's model does not resize")
    return torch.stack(tensors)


def read_samples(table: Mapping[str, Any], subject: Subject, folder: Path, source: str) -> tuple[Samples, Samples]:
    """Return the samples to tune on, and those to test on.

    Parameters
    ----------
    table : mapping
        Either ``folder``, which has images in it or below it, or ``name``: a dataset of torchvision (with ``root`` and
        ``arguments``, such as ``{train = false}``), or a Python file with ``load_data(split, count)``, which returns
        ``images``, ``labels`` and perhaps ``masks``. The numbers ``tune`` and ``test``; the ``seed`` of the split, by
        default 0; the ``target``, ``"largest"`` (default) or ``"label"``.
    subject : Subject
        The model.
    folder : pathlib.Path
        Where files are looked for.
    source : str
        The study, for errors.

    Raises
    ------
    ValueError, TypeError
        If there are too few images, or labels do not fit.
    """
    require_known("key of [data]", table, DATA_KEYS, source)
    counts = [whole(table, name, source) for name in SPLITS]
    target = table.get("target", "largest")
    if target not in ("largest", "label"):
        raise ValueError(f"{source} got target={target!r} in [data], expected 'largest' or 'label'")
    parts = [samples_of(pictures, subject, target, source) for pictures in read_pictures(table, counts, folder, source)]
    for part, name, count in zip(parts, SPLITS, counts, strict=True):
        if len(part) != count:
            raise ValueError(f"{source} got {len(part)} samples to {name}, expected {count}")
    return parts[0], parts[1]


def split(size: int, counts: Sequence[int], seed: int, got: str) -> tuple[list[int], list[int]]:
    """Return which of some samples are to tune on, and which to test on, or raise ValueError if they are too few."""
    if size < sum(counts):
        raise ValueError(f"{got}, expected {counts[0]} to tune and {counts[1]} to test")
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()
    return order[: counts[0]], order[counts[0] : sum(counts)]


def whole(table: Mapping[str, Any], name: str, source: str, default: Any = None, least: int = 1) -> int:
    """Return a whole number of a table.

    Raises
    ------
    TypeError, ValueError
        If it is none, or too small.
    """
    value = table.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{source} got {name}={value!r}, expected a whole number")
    if value < least:
        raise ValueError(f"{source} got {name}={value!r}, expected at least {least}")
    return value


def read_pictures(table: Mapping[str, Any], counts: list[int], folder: Path, source: str) -> list[Pictures]:
    """Return the images to tune on, and those to test on, see :func:`read_samples`."""
    given = [key for key in ("folder", "name") if isinstance(table.get(key), str)]
    if len(given) != 1:
        raise ValueError(f"{source} got [data] with {sorted(table)}, expected either a folder or a name, as a text")
    if given == ["name"] and is_code(table["name"]):
        load_data = function_of(python_module(table["name"], folder), "load_data")
        found = [load_data(name, count) for name, count in zip(SPLITS, counts, strict=True)]
        return [Pictures(item.images, item.labels, getattr(item, "masks", None)) for item in found]
    items: Any = files_of(folder / table["folder"]) if given == ["folder"] else dataset_of(table, folder, source)
    chosen = split(len(items), counts, whole(table, "seed", source, 0, 0), f"{source} got {len(items)} images")
    if given == ["folder"]:
        return [Pictures([image_of(items[index]) for index in part]) for part in chosen]
    pairs = [[items[index] for index in part] for part in chosen]
    return [Pictures([image for image, _ in part], torch.tensor([label for _, label in part])) for part in pairs]


def files_of(folder: Path) -> list[Path]:
    """Return the images in a folder and below it, in the order of their names."""
    if not folder.is_dir():
        raise FileNotFoundError(f"got the folder {str(folder)!r}, which there is not")
    found = (file for file in folder.rglob("*") if file.suffix.lower() in suffixes())
    return sorted(file for file in found if not file.is_dir())


def dataset_of(table: Mapping[str, Any], folder: Path, source: str) -> Any:
    """Return a dataset of torchvision."""
    kinds: dict[str, Any] = {
        name: kind
        for name, kind in vars(torchvision.datasets).items()
        if inspect.isclass(kind) and issubclass(kind, torchvision.datasets.VisionDataset)
    }
    name, root = table["name"], table.get("root", ".")
    if name not in kinds:
        raise ValueError(
            f"{source} got the dataset {name!r}, expected a Python file, or a dataset of torchvision; "
            + nearest(name, kinds)
        )
    return kinds[name](root=str(folder / root), **table.get("arguments", {}))


def samples_of(pictures: Pictures, subject: Subject, target: str, source: str) -> Samples:
    """Return images as samples of a model."""
    if target == "label" and pictures.labels is None:
        raise ValueError(f"{source} got target='label' for data without labels, expected target='largest'")
    if target == "label" and int(torch.as_tensor(pictures.labels).min()) < 0:
        # as an index, -1 is the last class
        raise ValueError(f"{source} got target='label' for data with the label -1 or less, expected classes from 0 on")
    batch = subject.prepare(pictures.images)
    device = single_input(batch)[1].device
    shares = []
    for rows in torch.arange(len(pictures.images), device=device).split(CHUNK):
        chosen = MaxLogit() if target == "largest" else Label(torch.as_tensor(pictures.labels)[rows.cpu()])
        shares.append(fix(subject.model, select(batch, rows), chosen).shares)
    truth = None if pictures.masks is None else pictures.masks.to(device)
    return Samples(batch, Fixed(torch.cat(shares)), truth)
