"""How many heads and experts a module has, as it or its configuration says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

#: Where attention modules, and their configurations, have the number of heads of the output projection's input.
_HEADS = ("num_v_heads", "num_heads", "num_attention_heads", "n_heads", "n_head")
_HEAD_WIDTHS = ("head_dim", "head_size", "attention_head_size")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def heads_of(attention: torch.nn.Module, width: int) -> int | None:
    """Return how many heads an attention has of which the outputs are so wide together, None if it does not say."""
    modules = list(attention.modules())
    for names, is_width in ((_HEADS, False), (_HEAD_WIDTHS, True)):
        found = next((value for module in modules if (value := number(module, names)) is not None), None)
        if found is not None and width % found == 0:
            return width // found if is_width else found
    return None


def experts_of(module: torch.nn.Module) -> int | None:
    """Return how many experts a module has, None if it does not say."""
    return number(module, _EXPERTS)


def number(module: Any, names: Sequence[str]) -> int | None:
    """Return the first attribute of some names that is a number, of a module or of its configuration."""
    for owner in (module, getattr(module, "config", None)):
        for name in names:
            value = getattr(owner, name, None)
            if isinstance(value, int) and value > 0:
                return value
    return None
