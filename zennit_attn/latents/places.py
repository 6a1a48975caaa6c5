"""Where a model has latents, which is read off the roles of its modules; what has no role has none.

See :func:`zennit_attn.composites.roles.role`.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from ..composites.roles import role
from ..engine.linear import linear_kind
from ..engine.names import modules_by_name
from .counts import experts_of, heads_of
from .experts import slots_of
from .latent import KINDS, Latent


def latents_of(model: torch.nn.Module) -> dict[str, Latent]:
    """Return the latents that a model has by itself, by name.

    Parameters
    ----------
    model : torch.nn.Module
        A transformer of transformers, timm or torchvision, or one with modules of the same names.

    Examples
    --------
    >>> import transformers
    >>> from zennit_attn.latents import latents_of
    >>> config = transformers.LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
    ...                                   num_attention_heads=2)
    >>> list(latents_of(transformers.LlamaForCausalLM(config)))[:3]
    ['model.layers.0.layer', 'model.layers.0.residual', 'model.layers.0.head']
    """
    named = modules_by_name(model)
    roles = {name: role(name, module) for name, module in named.items()}
    found: list[Latent] = []
    for layer, attentions in layers_of(named, roles).items():
        found += [Latent(joined(layer, kind), kind, layer, 1 if kind == "layer" else None) for kind in KINDS[:2]]
        projections = {name: place for name in attentions if (place := projection_of(name, roles)) is not None}
        heads = {
            attention: (projection, count, isinstance(named[attention], torch.nn.MultiheadAttention))
            for attention, projection in projections.items()
            if (count := heads_of(named[attention], sizes(named[projection])[0])) is not None
        }
        found += placed(layer, "head", heads)
        outward = [sizes(named[projection])[1] for projection in projections.values()]
        inside = [name for name in named if name.startswith(f"{layer}.".lstrip(".")) and name != layer]
        found += placed(layer, "neuron", {name: (name, None) for name in downward(named, roles, inside, outward)})
        experts = {name: experts_of(named[name]) for name in inside if slots_of(named[name])}
        found += placed(layer, "expert", {name: (name, count) for name, count in experts.items() if count is not None})
    return {latent.name: latent for latent in found}


def joined(*parts: str) -> str:
    """Return names with dots between them."""
    return ".".join(filter(None, parts))


def placed(layer: str, kind: str, places: dict[str, tuple[Any, ...]]) -> list[Latent]:
    """Return the latents of a kind in a layer: under its name if it has one of them, else under those of modules."""
    owner = {name: layer if len(places) == 1 else name for name in places}
    return [Latent(joined(owner[name], kind), kind, *place) for name, place in places.items()]


def layers_of(named: dict[str, torch.nn.Module], roles: dict[str, str | None]) -> dict[str, list[str]]:
    """Return the layers of a model, and the attention modules, or state spaces, of each.

    A layer is the innermost numbered module around an attention that has other matrices than the attention's; without
    attention, that around an MLP's linear layers.
    """
    mixers: list[str] = []
    for name, place in roles.items():
        # an attention inside of another is its part
        if place in ("attention", "state_space") and not any(name.startswith(f"{outer}.") for outer in mixers):
            mixers.append(name)
    found: dict[str, list[str]] = {}
    for mixer in mixers:
        around = numbered_around(mixer)
        layer = next((name for name in around if has_more(named[name], mixer[len(name) :].lstrip("."))), None)
        layer = layer if layer is not None else next(iter(around), None)
        if layer is not None:
            found.setdefault(layer, []).append(mixer)
    if not found:
        for name, place in roles.items():
            around = numbered_around(name) if place == "mlp" else []
            if around:
                found.setdefault(around[0], [])
    return found


def numbered_around(name: str) -> list[str]:
    """Return the names of the modules around one that are members of a list, the innermost first."""
    path = name.split(".")
    around = [".".join(path[:end]) for end in range(len(path) - 1, 0, -1)]
    return [outer for outer in around if re.search(r"\d", outer.rpartition(".")[2])]


def has_more(layer: torch.nn.Module, mixer: str) -> bool:
    """Tell whether a layer has matrices beside those of its attention."""
    return any(value.dim() > 1 and not key.startswith(f"{mixer}.") for key, value in layer.named_parameters())


def projection_of(attention: str, roles: dict[str, str | None]) -> str | None:
    """Return the name of an attention's output projection, which is its last one."""
    inside = [name for name, place in roles.items() if place == "projection" and name.startswith(f"{attention}.")]
    return inside[-1] if inside and roles[attention] == "attention" else None


def downward(
    named: dict[str, torch.nn.Module], roles: dict[str, str | None], inside: list[str], outward: list[int]
) -> list[str]:
    """Return the projections of a layer's MLPs that lead back to its width; those of single experts are left out."""
    linear = [name for name in inside if roles[name] == "mlp" and not re.search(r"(^|\.)experts?\.", name)]
    if not linear:
        return []
    width = outward[0] if outward else sizes(named[linear[0]])[0]
    back = [name for name in linear if sizes(named[name])[1] == width]
    narrowing = [name for name in back if sizes(named[name])[0] != width]
    return narrowing or back[-1:]


def sizes(module: Any) -> tuple[int, int]:
    """Return the widths of a linear layer's input and output."""
    if hasattr(module, "in_features"):
        return module.in_features, module.out_features
    rows, columns = module.weight.shape[:2]
    return (rows, columns) if linear_kind(module) == "transposed linear" else (columns, rows)
