"""The digits that come with scikit-learn, and the small vision transformer trained on them."""

from dataclasses import dataclass
from pathlib import Path

import shapes
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

MODEL_PATH = Path(__file__).resolve().parent / "models" / "digits"
IMAGE_SIZE = 32
MAX_VALUE = 16
TEST_SHARE = 0.25
SPLIT_SEED = 0


@dataclass(frozen=True)
class Digits:
    """One side of the split.

    Attributes
    ----------
    images : torch.Tensor
        Raw images of shape (count, 8, 8) with values from 0 to 16.
    labels : torch.Tensor
        The digits, of shape (count,).
    indices : torch.Tensor
        The place of each image in ``sklearn.datasets.load_digits()``, of shape (count,).
    """

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor


def load_data():
    """Load all digits with the fixed split, stratified by label.

    Returns
    -------
    train, test : Digits
        The two sides of the split.
    """
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)
    labels = torch.tensor(data.target)
    split = train_test_split(range(len(labels)), test_size=TEST_SHARE, stratify=data.target, random_state=SPLIT_SEED)
    train, test = (torch.tensor(indices) for indices in split)
    return Digits(images[train], labels[train], train), Digits(images[test], labels[test], test)


def preprocess(images):
    """Turn raw images into inputs of the model.

    Parameters
    ----------
    images : torch.Tensor
        Raw images of shape (count, 8, 8) with values from 0 to 16.

    Returns
    -------
    torch.Tensor
        Enlarged images of shape (count, 3, 32, 32), with three equal channels and values from -1 to 1.
    """
    scaled = images[:, None] / MAX_VALUE * 2 - 1
    enlarged = torch.nn.functional.interpolate(scaled, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")
    return enlarged.expand(-1, 3, -1, -1).contiguous()


def load_model(path=None):
    """Load the vision transformer.

    Parameters
    ----------
    path : str or pathlib.Path, optional
        Folder written by ``train_digits.py``; by default the one next to this file.

    Returns
    -------
    torchvision.models.VisionTransformer
        The model in evaluation mode.
    """
    # the same kind of network, in files of the same kind
    return shapes.load_model(MODEL_PATH if path is None else path)
