"""Train the small vision transformer on the generated shapes and measure it on the test pictures.

The defaults reproduce ``examples/models/shapes`` in about a quarter of an hour on one processor core.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from shapes import IMAGE_SIZE, MODEL_PATH, TARGETS, load_data, preprocess
from torch.nn import functional
from torchvision.models import VisionTransformer

MODEL_ARGUMENTS = {
    "image_size": IMAGE_SIZE,
    "patch_size": 4,
    "num_layers": 4,
    "num_heads": 4,
    "hidden_dim": 64,
    "mlp_dim": 128,
    "num_classes": len(TARGETS),
}
BATCH_SIZE = 64
LEARNING_RATE = 1.5e-3
TRAIN_SIZE, TUNE_SIZE, TEST_SIZE = 80000, 1000, 4000
# pictures drawn at a time, of which only bytes are kept
CHUNK = 10000


def training_data():
    """Draw the training pictures, some of which have no distractors: they let the model find out what matters.

    Returns
    -------
    images : torch.Tensor
        Pictures with values from 0 to 255, of type uint8.
    labels : torch.Tensor
        Their labels.
    """
    images, labels = [], []
    for start in range(0, TRAIN_SIZE, CHUNK):
        data = load_data("train", CHUNK, fewest=0, start=start)
        images.append((data.images * 255).round().to(torch.uint8))
        labels.append(data.labels)
    return torch.cat(images), torch.cat(labels)


def augment(images, generator):
    """Mirror and recolour a batch, each picture alike: what it shows stays what it is.

    Parameters
    ----------
    images : torch.Tensor
        Pictures of shape (count, 3, height, width).
    generator : torch.Generator
        Source of all random numbers.

    Returns
    -------
    torch.Tensor
        Pictures of the same shape.
    """
    mirrored = torch.rand((), generator=generator) < 0.5
    images = images.flip(3) if mirrored else images
    return images[:, torch.randperm(3, generator=generator)]


def train(model, steps, generator):
    """Train a model to classify.

    Parameters
    ----------
    model : torchvision.models.VisionTransformer
        The model, trained in place.
    steps : int
        Number of batches.
    generator : torch.Generator
        Source of the batches and their augmentation.
    """
    images, labels = training_data()
    tune = load_data("tune", TUNE_SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    for step in range(1, steps + 1):
        model.train()
        batch = torch.randint(len(images), (BATCH_SIZE,), generator=generator)
        output = model(preprocess(augment(images[batch] / 255, generator)))
        loss = functional.cross_entropy(output, labels[batch])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 250 == 0:
            print(f"step {step:5d}  loss {loss.item():.4f}  accuracy {accuracy(model.eval(), tune):.4f}", flush=True)


@torch.no_grad()
def accuracy(model, data):
    """Measure how often the model names the right shape.

    Parameters
    ----------
    model : torchvision.models.VisionTransformer
        The model in evaluation mode.
    data : shapes.Shapes
        The pictures and labels.

    Returns
    -------
    float
        Share of the pictures classified correctly.
    """
    return (model(preprocess(data.images)).argmax(1) == data.labels).float().mean().item()


def save(model, test_accuracy, path):
    """Save the weights, and what is needed to rebuild and feed the model.

    Parameters
    ----------
    model : torchvision.models.VisionTransformer
        The trained model.
    test_accuracy : float
        Share of the test pictures classified correctly.
    path : pathlib.Path
        Output folder, made if missing.
    """
    config = {
        "model": MODEL_ARGUMENTS,
        "preprocessing": {"image_size": IMAGE_SIZE, "range": [-1, 1]},
        "labels": TARGETS,
        "test_accuracy": round(test_accuracy, 4),
    }
    path.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def main():
    """Train, evaluate and save the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=9000, help="number of training batches (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batches (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=MODEL_PATH, help="output folder (default: %(default)s)")
    args = parser.parse_args()
    # The order of floating-point sums, and so the weights, would depend on the number of threads.
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    model = VisionTransformer(**MODEL_ARGUMENTS)
    print(f"{sum(parameter.numel() for parameter in model.parameters())} parameters")
    train(model, args.steps, torch.Generator().manual_seed(args.seed))
    test_accuracy = accuracy(model.eval(), load_data("test", TEST_SIZE))
    print(f"accuracy: {test_accuracy:.4f} (test, {TEST_SIZE} pictures)")
    save(model, test_accuracy, args.out)


if __name__ == "__main__":
    main()
