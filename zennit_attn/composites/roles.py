"""The role of a module in a transformer, read off its name and type.

The same rule for *the MLP's linear layers* means the same modules in every library, where the same rule for
:class:`torch.nn.Linear` does not: one library hides its projections, another one does not.

This module does not know architectures: a module of which the place gives no role away has none.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from ..engine.linear import linear_kind

#: The roles, in the order in which a signal meets them.
ROLES = ("patch_embedding", "attention", "qkv", "projection", "state_space", "mlp", "head")

_PROJECTIONS = r"([qkv]|qk|kv|qkv|query|key|value|query_key_value|in|c_attn|w[qkv]|wqkv)"
_QKV = re.compile(rf"^(to_)?{_PROJECTIONS}(_?(proj|lin|linear|attn))?$", re.IGNORECASE)
_ATTENTION = re.compile(r"(^|_)(attn|attention|selfattention|encdecattention|crossattention)", re.IGNORECASE)
_PATCH = re.compile(r"patch|conv_proj", re.IGNORECASE)
_HEAD = re.compile(
    r"^(heads?|classifiers?|score|lm_head|fc|cls|pre_classifier|pooler|qa_outputs|(visual|text)_projection|head_dist)$"
    r"|_classifier$"
)


def role(name: str, module: torch.nn.Module) -> str | None:
    """Return the role of a module in its transformer.

    Parameters
    ----------
    name : str
        Dotted name of the module in its model.
    module : torch.nn.Module
        The module.

    Returns
    -------
    str or None
        One of :data:`ROLES`: ``"patch_embedding"`` (of pixels), ``"attention"`` (the whole block), ``"qkv"`` (its
        query, key and value projections), ``"projection"`` (its output projection), ``"state_space"`` (a selective
        state space, such as Mamba's mixer), ``"mlp"`` (linear layers of a block outside of attention), ``"head"``
        (linear layers after the blocks); None for other modules.

    Examples
    --------
    >>> import torch
    >>> from zennit_attn.composites.roles import role
    >>> role("encoder.layers.3.mlp.fc1", torch.nn.Linear(2, 2))
    'mlp'
    """
    *path, leaf = name.split(".")
    if not is_linear(module):
        if hasattr(module, "A_log") and hasattr(module, "D"):
            return "state_space"
        return "attention" if _is_attention(leaf, module) else None
    if any(_PATCH.search(part) for part in (*path, leaf)) or _looks_at_patches(module):
        return "patch_embedding"
    if not isinstance(module, torch.nn.Linear) and linear_kind(module) != "transposed linear":
        return None
    if any(_ATTENTION.search(part) for part in path):
        return "qkv" if _QKV.match(leaf) else "projection"
    if "mlp" not in path and any(_HEAD.search(part) for part in (*path, leaf)):
        return "head"
    in_block = any(re.search(r"\d", part) for part in path)
    return "mlp" if in_block or "mlp" in path else None


def traits(module: torch.nn.Module) -> tuple[Any, ...]:
    """Return what a module's role depends on beside its name: where that is equal, the role is."""
    kind, own = type(module), vars(module)
    is_window = isinstance(module, (torch.nn.Conv2d, torch.nn.Conv3d))
    window = (module.in_channels, module.stride, module.kernel_size) if is_window else None
    return kind, kind.forward, (*own,), (*own["_parameters"],), (*own["_buffers"],), (*own["_modules"],), window


def _looks_at_patches(module: torch.nn.Module) -> bool:
    """Tell whether a module is a convolution of pixels, the windows of which do not overlap."""
    if not isinstance(module, (torch.nn.Conv2d, torch.nn.Conv3d)):
        return False
    return module.in_channels <= 4 and module.stride == module.kernel_size


def is_linear(module: torch.nn.Module) -> bool:
    """Tell whether a module is a linear map with a weight."""
    if linear_kind(module) is not None:
        return True
    # quantised layers and those with adapters, but no router: models' own subclasses do more than their base
    # what a tracer wrote has no module
    own = str(getattr(type(module).forward, "__module__", None)).startswith("transformers.models.")
    return isinstance(module, (torch.nn.Linear, torch.nn.modules.conv._ConvNd)) and not own


def _is_attention(leaf: str, module: torch.nn.Module) -> bool:
    has_children = next(module.children(), None) is not None
    return has_children and bool(_ATTENTION.search(leaf) or leaf in ("attn", "self_attention"))
