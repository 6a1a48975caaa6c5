"""Train the small vision transformer on scikit-learn's digits and measure it on the test images.

The defaults reproduce ``examples/models/digits`` in a few minutes on one processor core.
"""

import argparse
import json
from pathlib import Path

import torch
from digits import IMAGE_SIZE, MAX_VALUE, MODEL_PATH, SPLIT_SEED, TEST_SHARE, load_data, preprocess
from safetensors.torch import save_file
from torch.nn import functional
from torchvision.models import VisionTransformer

MODEL_ARGUMENTS = {
    "image_size": IMAGE_SIZE,
    "patch_size": 4,
    "num_layers": 4,
    "num_heads": 4,
    "hidden_dim": 64,
    "mlp_dim": 128,
    "num_classes": 10,
}
BATCH_SIZE = 64
LEARNING_RATE = 2e-3
MAX_SHIFT = 0.15
MAX_SHEAR = 0.15


def augment(inputs, generator):
    """Shift and distort each image a little, at random.

    Parameters
    ----------
    inputs : torch.Tensor
        Preprocessed images.
    generator : torch.Generator
        Source of all random numbers.

    Returns
    -------
    torch.Tensor
        Images of the same shape.
    """
    noise = torch.rand(len(inputs), 2, 3, generator=generator) * 2 - 1
    maps = torch.eye(2, 3) + noise * torch.tensor([MAX_SHEAR, MAX_SHEAR, MAX_SHIFT])
    grid = functional.affine_grid(maps, inputs.shape, align_corners=False)
    return functional.grid_sample(inputs, grid, padding_mode="border", align_corners=False)


def train(model, data, steps, generator):
    """Train a model to classify.

    Parameters
    ----------
    model : torchvision.models.VisionTransformer
        The model, trained in place.
    data : digits.Digits
        The training images.
    steps : int
        Number of batches.
    generator : torch.Generator
        Source of the batches and their augmentation.
    """
    inputs = preprocess(data.images)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    model.train()
    for step in range(1, steps + 1):
        batch = torch.randint(len(inputs), (BATCH_SIZE,), generator=generator)
        loss = functional.cross_entropy(model(augment(inputs[batch], generator)), data.labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 250 == 0:
            print(f"step {step:5d}  loss {loss.item():.4f}", flush=True)


@torch.no_grad()
def accuracy(model, data):
    """Measure how often the model names the right digit.

    Parameters
    ----------
    model : torchvision.models.VisionTransformer
        The model in evaluation mode.
    data : digits.Digits
        The images and labels.

    Returns
    -------
    float
        Share of the images classified correctly.
    """
    return (model(preprocess(data.images)).argmax(1) == data.labels).float().mean().item()


def save(model, test_accuracy, path):
    """Save the weights, and what is needed to rebuild and feed the model.

    Parameters
    ----------
    model : torchvision.models.VisionTransformer
        The trained model.
    test_accuracy : float
        Share of the test images classified correctly.
    path : pathlib.Path
        Output folder, made if missing.
    """
    config = {
        "model": MODEL_ARGUMENTS,
        "preprocessing": {
            "image_size": IMAGE_SIZE,
            "interpolation": "bilinear",
            "channels": 3,
            "max_value": MAX_VALUE,
            "range": [-1, 1],
        },
        "split": {"test_share": TEST_SHARE, "seed": SPLIT_SEED, "stratified": True},
        "test_accuracy": round(test_accuracy, 4),
    }
    path.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def main():
    """Train, evaluate and save the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000, help="number of training batches (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batches (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=MODEL_PATH, help="output folder (default: %(default)s)")
    args = parser.parse_args()
    # The order of floating-point sums, and so the weights, would depend on the number of threads.
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    train_data, test_data = load_data()
    model = VisionTransformer(**MODEL_ARGUMENTS)
    print(f"{sum(parameter.numel() for parameter in model.parameters())} parameters")
    train(model, train_data, args.steps, torch.Generator().manual_seed(args.seed))
    model.eval()
    test_accuracy = accuracy(model, test_data)
    print(f"accuracy: {accuracy(model, train_data):.4f} (training), {test_accuracy:.4f} (test)")
    save(model, test_accuracy, args.out)


if __name__ == "__main__":
    main()
