"""Generated pictures of shapes, each with a known cause of its label, and the small vision transformer trained on them.

Every picture has exactly one *target*: a disc, square, triangle or star, which is the label. The *distractors* around
it are of other kinds (ring, cross, bar, hook), in the same colours and sizes, and never say anything about the label;
neither does the textured background. So what decides the label lies inside of the target's mask.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torchvision.models import VisionTransformer

MODEL_PATH = Path(__file__).resolve().parent / "models" / "shapes"
IMAGE_SIZE = 36
TARGETS = ("disc", "square", "triangle", "star")
DISTRACTORS = ("ring", "cross", "bar", "hook")
FEWEST_DISTRACTORS, MOST_DISTRACTORS = 2, 3
SMALLEST_RADIUS, LARGEST_RADIUS = 5.0, 6.5
LARGEST_TURN = 0.4
# shapes of any colour are brighter than the background, of any other colour
BACKGROUND, FOREGROUND = (0.1, 0.4), (0.6, 1.0)
# drawn larger and scaled down, for smooth edges
OVERSAMPLING = 4
#: First part of the seed of every picture of a split: the splits share none.
SPLITS = {"train": 0, "tune": 1, "test": 2}


@dataclass(frozen=True)
class Shapes:
    """Some pictures of a split.

    Attributes
    ----------
    images : torch.Tensor
        Pictures of shape (count, 3, 36, 36) with values from 0 to 1.
    labels : torch.Tensor
        Index of the target's kind in `TARGETS`, of shape (count,).
    masks : torch.Tensor
        True wherever the target covers any of a pixel, of shape (count, 36, 36).
    """

    images: torch.Tensor
    labels: torch.Tensor
    masks: torch.Tensor


def outline(kind):
    """Return the polygons of a shape, the last of them a hole if it is a ring.

    Parameters
    ----------
    kind : str
        One of `TARGETS` or `DISTRACTORS`.

    Returns
    -------
    list of numpy.ndarray
        Corners, of shape (corners, 2), within the unit circle.
    """

    def corners(count, radius=1.0):
        # the first one is at the top
        angles = np.arange(count) * 2 * np.pi / count - np.pi / 2
        return np.stack([np.cos(angles), np.sin(angles)], 1) * np.resize(radius, count)[:, None]

    bar = np.array([(-0.95, -0.3), (0.95, -0.3), (0.95, 0.3), (-0.95, 0.3)])
    return {
        "disc": [corners(36, 0.9)],
        "square": [corners(4)],
        "triangle": [corners(3)],
        "star": [corners(10, (1.0, 0.42))],
        "ring": [corners(36, 0.95), corners(36, 0.5)],
        "cross": [bar, bar[:, ::-1]],
        "bar": [bar],
        "hook": [bar - (0, 0.4), bar[:, ::-1] * (1, 0.75) - (0.6, -0.1)],
    }[kind]


def coverage(kind, center, radius, angle):
    """Draw a shape.

    Parameters
    ----------
    kind : str
        One of `TARGETS` or `DISTRACTORS`.
    center : numpy.ndarray
        Its place (x, y) in pixels.
    radius, angle : float
        Its size in pixels, and by how much it is turned, in radians.

    Returns
    -------
    numpy.ndarray
        How much of each pixel it covers, from 0 to 1, of shape (36, 36).
    """
    side = IMAGE_SIZE * OVERSAMPLING
    canvas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    for index, polygon in enumerate(outline(kind)):
        points = (polygon @ turn * radius + center) * OVERSAMPLING
        draw.polygon([tuple(point) for point in points.tolist()], 0 if kind == "ring" and index else 255)
    return np.asarray(canvas.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX), dtype=np.float32) / 255


def background(rng):
    """Draw a texture: waves of random direction, length and colour, and noise.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all random choices.

    Returns
    -------
    numpy.ndarray
        Values around a random colour, of shape (3, 36, 36).
    """
    x, y = np.meshgrid(*[np.arange(IMAGE_SIZE)] * 2)
    texture = np.tile(rng.uniform(*BACKGROUND, (3, 1, 1)), (1, IMAGE_SIZE, IMAGE_SIZE))
    for _ in range(3):
        direction, length, phase = rng.uniform(0, 2 * np.pi), rng.uniform(4, 20), rng.uniform(0, 2 * np.pi)
        wave = np.sin((x * np.cos(direction) + y * np.sin(direction)) * 2 * np.pi / length + phase)
        texture += rng.uniform(-0.07, 0.07, 3)[:, None, None] * wave
    return texture + rng.normal(0, 0.03, texture.shape)


def place(rng, taken):
    """Draw a size, and a place for it where no other shape is.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all random choices.
    taken : list of tuple
        Centers and radii of the shapes there are.

    Returns
    -------
    center : numpy.ndarray
        Place in pixels.
    radius : float
        Size in pixels.
    """
    while True:
        radius = rng.uniform(SMALLEST_RADIUS, LARGEST_RADIUS)
        center = rng.uniform(radius, IMAGE_SIZE - radius, 2)
        if all(np.linalg.norm(center - other) > radius + size + 0.5 for other, size in taken):
            return center, radius


def picture(rng, fewest=FEWEST_DISTRACTORS):
    """Draw a picture.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all random choices.
    fewest : int, optional
        The smallest number of distractors.

    Returns
    -------
    image : numpy.ndarray
        Values from 0 to 1, of shape (3, 36, 36).
    label : int
        Index of the target's kind in `TARGETS`.
    mask : numpy.ndarray
        True wherever the target covers any of a pixel, of shape (36, 36).
    """
    image = background(rng)
    label = int(rng.integers(len(TARGETS)))
    count = rng.integers(fewest, MOST_DISTRACTORS + 1)
    taken, mask = [], None
    for kind in (TARGETS[label], *rng.choice(DISTRACTORS, count)):
        taken.append(place(rng, taken))
        covered = coverage(kind, *taken[-1], rng.uniform(-LARGEST_TURN, LARGEST_TURN))
        image += covered * (rng.uniform(*FOREGROUND, (3, 1, 1)) - image)
        # the target is drawn first
        mask = covered > 0 if mask is None else mask
    return image.clip(0, 1).astype(np.float32), label, mask


def load_data(split, count, fewest=FEWEST_DISTRACTORS, start=0):
    """Draw pictures of a split.

    Parameters
    ----------
    split : {"train", "tune", "test"}
        The split.
    count : int
        Number of pictures. Each has a number, and is the same whatever the count.
    fewest : int, optional
        The smallest number of distractors.
    start : int, optional
        Number of the first picture.

    Returns
    -------
    Shapes
        The pictures, with labels and masks.
    """
    drawn = [picture(np.random.default_rng((SPLITS[split], index)), fewest) for index in range(start, start + count)]
    images, labels, masks = zip(*drawn, strict=True)
    return Shapes(torch.tensor(np.stack(images)), torch.tensor(labels), torch.tensor(np.stack(masks)))


def preprocess(images):
    """Turn pictures into inputs of the model.

    Parameters
    ----------
    images : torch.Tensor
        Pictures with values from 0 to 1.

    Returns
    -------
    torch.Tensor
        Pictures of the same shape, with values from -1 to 1.
    """
    return images * 2 - 1


def load_model(path=None):
    """Load the vision transformer.

    Parameters
    ----------
    path : str or pathlib.Path, optional
        Folder written by ``train_shapes.py``; by default the one next to this file.

    Returns
    -------
    torchvision.models.VisionTransformer
        The model in evaluation mode.
    """
    path = MODEL_PATH if path is None else Path(path)
    config = json.loads((path / "config.json").read_text())
    model = VisionTransformer(**config["model"])
    model.load_state_dict(load_file(path / "model.safetensors"))
    return model.eval()
