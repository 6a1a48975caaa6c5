"""Explain what a vision transformer sees under many γ: one contact sheet, to choose from.

γ of the patch embedding is needed at the very end of the backward pass, so that one forward and one backward pass for
each γ of the linear layers is enough: what they pass back to the patches goes through the embedding under each γ.
"""

import argparse
from pathlib import Path

import torch
import torchvision
from PIL import Image
from tqdm import tqdm
from zennit.attribution import Gradient

from zennit_attn import GammaViTComposite, InputXGradient, heatmap, input_x_gradient, targets
from zennit_attn.rules import Gamma

CONV = (0.1, 0.25, 100.0)
LINEAR = (0.0, 0.01, 0.05, 0.1, 1.0)
#: Name of the patch embedding in torchvision's vision transformers.
PATCHES = "conv_proj"
MEAN, STD = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def load(name, weights, file):
    """Load a model and the image to explain.

    Parameters
    ----------
    name : str
        Model of torchvision, or ``"digits"``.
    weights : str or None
        Name of torchvision's weights, which are downloaded; None leaves the model random.
    file : pathlib.Path or None
        Image; by default a scan of a digit, which comes with scikit-learn.

    Returns
    -------
    model : torchvision.models.VisionTransformer
        The model in evaluation mode.
    pixels : torch.Tensor
        Its input, of shape (1, 3, height, width).
    picture : torch.Tensor
        The image from 0 to 1, of shape (3, height, width).
    """
    import digits

    if name == "digits":
        model, size = digits.load_model(), digits.IMAGE_SIZE
    else:
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=weights)
        size = model.image_size
        if weights is None:
            print(f"No --weights: {name} is random, and so is what it sees.")
            # torchvision begins with a head of zeros, which has nothing to explain
            torch.nn.init.normal_(model.heads.head.weight, std=0.02)
    if file is None:
        scan = digits.preprocess(digits.load_data()[1].images[:1])[0] / 2 + 0.5
        picture = torch.nn.functional.interpolate(scan[None], (size, size), mode="nearest")[0]
    else:
        picture = torchvision.transforms.functional.to_tensor(Image.open(file).convert("RGB"))
        picture = torchvision.transforms.functional.center_crop(
            torchvision.transforms.functional.resize(picture, size, antialias=True), size
        )
    pixels = picture * 2 - 1 if name == "digits" else (picture - MEAN) / STD
    return model.eval(), pixels[None], picture


def explain(model, pixels, target):
    """Explain an image under each pair of γ.

    Parameters
    ----------
    model : torchvision.models.VisionTransformer
        The model.
    pixels : torch.Tensor
        Its input, of shape (1, 3, height, width).
    target : zennit_attn.targets.Target
        What is explained.

    Returns
    -------
    list of list of torch.Tensor
        Relevance of the pixels, of shape (3, height, width): a row for each γ of :data:`CONV`, a column for each of
        :data:`LINEAR`.
    """
    grid = [[] for _ in CONV]
    patches = model.get_submodule(PATCHES)
    for gamma in tqdm(LINEAR, desc="passes", disable=None):
        composite = GammaViTComposite(linear_gamma=gamma, head_gamma=gamma)
        with InputXGradient(model, input_x_gradient(composite), modules=[PATCHES]) as attributor:
            _, _, inner = attributor(pixels, target)
        for row, conv_gamma in zip(grid, CONV, strict=True):
            handles = Gamma(conv_gamma).register(patches)
            try:
                _, relevance = Gradient(patches)(pixels, inner[PATCHES])
            finally:
                handles.remove()
            row.append(relevance[0])
    return grid


def main(arguments=None):
    """Explain an image under all γ, and draw the contact sheet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="digits", help="digits, vit_b_16, vit_l_16, ... (default: %(default)s)")
    parser.add_argument("--weights", help="of torchvision, downloaded: DEFAULT, IMAGENET1K_V1, ... (default: random)")
    parser.add_argument("--image", type=Path, help="image to explain (default: a scan of a digit)")
    parser.add_argument("--label", type=int, help="class to explain (default: that of the largest logit)")
    parser.add_argument("--out", type=Path, default=Path("vit_gamma.png"), help="default: %(default)s")
    args = parser.parse_args(arguments)

    model, pixels, picture = load(args.model, args.weights, args.image)
    with torch.no_grad():
        logits = model(pixels)[0]
    label = int(logits.argmax()) if args.label is None else args.label
    print(f"{args.model}: class {label}, logit {logits[label]:.2f}")
    grid = explain(model, pixels, targets.Label(label))
    rows, columns = [f"conv γ {gamma:g}" for gamma in CONV], [f"linear γ {gamma:g}" for gamma in LINEAR]
    labels = [[f"{conv:g} / {linear:g}" for linear in LINEAR] for conv in CONV]
    title = f"Relevance for class {label} of {args.model} under γ of convolution / linear layers"
    sheet = heatmap.images(grid, picture, rows=rows, columns=columns, labels=labels, shared=False, title=title)
    sheet.save(args.out)
    print(f"Contact sheet: {args.out}")
    return grid


if __name__ == "__main__":
    main()
