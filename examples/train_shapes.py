"""Train the small vision transformer on the generated shapes and measure it on the test pictures.

The defaults reproduce ``examples/models/shapes`` in about a quarter of an hour on one processor core.
"""

import torch
from shapes import IMAGE_SIZE, MODEL_PATH, TARGETS, load_data, preprocess
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

    def loss_of_batch():
        batch = torch.randint(len(images), (BATCH_SIZE,), generator=generator)
        output = model(preprocess(augment(images[batch] / 255, generator)))
        return functional.cross_entropy(output, labels[batch])

    def note():
        return f"  accuracy {accuracy(model.eval(), preprocess(tune.images), tune.labels):.4f}"

    fit(model, loss_of_batch, steps, LEARNING_RATE, max_norm=1.0, note=note)


def main():
    """Train, evaluate and save the model."""
    args = options(__doc__, 9000, MODEL_PATH)
    model = VisionTransformer(**MODEL_ARGUMENTS)
    train(model, args.steps, torch.Generator().manual_seed(args.seed))
    test = load_data("test", TEST_SIZE)
    tested = accuracy(model.eval(), preprocess(test.images), test.labels)
    print(f"accuracy: {tested:.4f} (test, {TEST_SIZE} pictures)")
    config = {
        "model": MODEL_ARGUMENTS,
        "preprocessing": {"image_size": IMAGE_SIZE, "range": [-1, 1]},
        "labels": TARGETS,
        "test_accuracy": round(tested, 4),
    }
    save(model, config, args.out)


if __name__ == "__main__":
    main()
