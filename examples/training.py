"""What the scripts share that train the models of the examples."""

import argparse
import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file


def options(description, steps, out):
    """Read the options of a script, and seed all random choices.

    Parameters
    ----------
    description : str
        Docstring of the script.
    steps : int
        Default of ``--steps``.
    out : pathlib.Path
        Default of ``--out``.

    Returns
    -------
    argparse.Namespace
        The options ``steps``, ``seed`` and ``out``.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--steps", type=int, default=steps, help="number of training batches (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batches (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=out, help="output folder (default: %(default)s)")
    args = parser.parse_args()
    # The order of floating-point sums, and so the weights, would depend on the number of threads.
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    return args


def fit(model, loss_of_batch, steps, learning_rate, weight_decay=0.05, max_norm=math.inf, note=lambda: ""):
    """Train a model by AdamW with one cycle of the learning rate, and print its size, and the loss now and then.

    Parameters
    ----------
    model : torch.nn.Module
        The model, trained in place.
    loss_of_batch : callable
        Draws a batch and returns its loss.
    steps : int
        Number of batches.
    learning_rate : float
        The largest one of the cycle.
    weight_decay : float, optional
        As in AdamW.
    max_norm : float, optional
        To which gradients are clipped.
    note : callable, optional
        Returns what is printed after the loss.
    """
    print(f"{sum(parameter.numel() for parameter in model.parameters())} parameters")
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    for step in range(1, steps + 1):
        model.train()
        loss = loss_of_batch()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        schedule.step()
        if step % 250 == 0:
            print(f"step {step:5d}  loss {loss.item():.4f}{note()}", flush=True)


@torch.no_grad()
def accuracy(model, inputs, labels):
    """Measure how often a classifier names the right class.

    Parameters
    ----------
    model : torch.nn.Module
        The model in evaluation mode.
    inputs : torch.Tensor
        Its inputs.
    labels : torch.Tensor
        The right classes.

    Returns
    -------
    float
        Share of the inputs classified correctly.
    """
    return (model(inputs).argmax(1) == labels).float().mean().item()


def save(model, config, path):
    """Save the weights, and what is needed to rebuild and feed the model.

    Parameters
    ----------
    model : torch.nn.Module
        The trained model.
    config : dict
        What is written beside the weights.
    path : pathlib.Path
        Output folder, made if missing.
    """
    path.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
