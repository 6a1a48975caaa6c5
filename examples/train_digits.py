"""Train the small vision transformer on scikit-learn's digits and measure it on the test images.

The defaults reproduce ``examples/models/digits`` in a few minutes on one processor core.
"""

import torch
from digits import IMAGE_SIZE, MAX_VALUE, MODEL_PATH, SPLIT_SEED, TEST_SHARE, load_data, preprocess
from torch.nn import functional
from torchvision.models import VisionTransformer
from training import accuracy, fit, options, save

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

    def loss_of_batch():
        batch = torch.randint(len(inputs), (BATCH_SIZE,), generator=generator)
        return functional.cross_entropy(model(augment(inputs[batch], generator)), data.labels[batch])

    fit(model, loss_of_batch, steps, LEARNING_RATE)


def main():
    """Train, evaluate and save the model."""
    args = options(__doc__, 2000, MODEL_PATH)
    train_data, test_data = load_data()
    model = VisionTransformer(**MODEL_ARGUMENTS)
    train(model, train_data, args.steps, torch.Generator().manual_seed(args.seed))
    model.eval()
    trained, tested = (accuracy(model, preprocess(data.images), data.labels) for data in (train_data, test_data))
    print(f"accuracy: {trained:.4f} (training), {tested:.4f} (test)")
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
        "test_accuracy": round(tested, 4),
    }
    save(model, config, args.out)


if __name__ == "__main__":
    main()
