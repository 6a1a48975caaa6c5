"""Write the pictures of ``shapes.py`` as a folder of images, and their vision transformer as one of transformers.

``python examples/shapes_folder.py --out shapes`` makes ``shapes/images``, with a folder for each class, and
``shapes/model``, for all that takes a folder of images and a model by its name.
"""

import argparse
import json
from pathlib import Path

import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from shapes import MODEL_PATH, TARGETS, load_data, load_model

#: Names of torchvision's vision transformer, and those of files of transformers' one, in the order of replacement.
NAMES = (
    ("encoder.layers.encoder_layer_", "vit.encoder.layer."),
    ("conv_proj", "vit.embeddings.patch_embeddings.projection"),
    ("class_token", "vit.embeddings.cls_token"),
    ("encoder.pos_embedding", "vit.embeddings.position_embeddings"),
    ("encoder.ln", "vit.layernorm"),
    ("heads.head", "classifier"),
    ("ln_1", "layernorm_before"),
    ("ln_2", "layernorm_after"),
    ("self_attention.out_proj", "attention.output.dense"),
    ("mlp.0", "intermediate.dense"),
    ("mlp.3", "output.dense"),
)
PROJECTIONS = ("query", "key", "value")


def renamed(state):
    """Return weights of torchvision's vision transformer under the names of transformers.

    Parameters
    ----------
    state : dict
        Name to weight.

    Returns
    -------
    dict
        The same weights; those of query, key and value are three.
    """
    found = {}
    for name, weight in state.items():
        for old, new in NAMES:
            name = name.replace(old, new)
        start, joined, kind = name.partition("self_attention.in_proj_")
        parts = zip(PROJECTIONS, weight.chunk(3), strict=True) if joined else ()
        found |= {f"{start}attention.attention.{part}.{kind}": value.contiguous() for part, value in parts}
        if not joined:
            found[name] = weight
    return found


def write_model(folder):
    """Write the vision transformer, and what reads its images.

    Parameters
    ----------
    folder : pathlib.Path
        Where to.
    """
    sizes = json.loads((MODEL_PATH / "config.json").read_text())["model"]
    config = transformers.ViTConfig(
        hidden_size=sizes["hidden_dim"],
        num_hidden_layers=sizes["num_layers"],
        num_attention_heads=sizes["num_heads"],
        intermediate_size=sizes["mlp_dim"],
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        layer_norm_eps=1e-6,
        id2label=dict(enumerate(TARGETS)),
        label2id={name: index for index, name in enumerate(TARGETS)},
        architectures=["ViTForImageClassification"],
    )
    config.save_pretrained(folder)
    save_file(renamed(load_model().state_dict()), folder / "model.safetensors", {"format": "pt"})
    size = {"height": sizes["image_size"], "width": sizes["image_size"]}
    transformers.ViTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)


def write_images(folder, count):
    """Write pictures of the split ``test``, each into the folder of its class.

    Parameters
    ----------
    folder : pathlib.Path
        Where to.
    count : int
        How many.
    """
    data = load_data("test", count)
    for name in TARGETS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    pixels = (data.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for number, (picture, label) in enumerate(zip(pixels, data.labels.tolist(), strict=True)):
        Image.fromarray(picture).save(folder / TARGETS[label] / f"{number:04d}.png")


def main():
    """Write images and model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("shapes"), help="the folder")
    parser.add_argument("--images", type=int, default=96, help="how many")
    args = parser.parse_args()
    write_model(args.out / "model")
    write_images(args.out / "images", args.images)
    print(f"written: {args.out}/model and {args.images} pictures in {args.out}/images")


if __name__ == "__main__":
    main()
