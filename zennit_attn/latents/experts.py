"""Experts: which modules have all of a layer's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

#: Arguments of modules with all experts of a layer: which are a token's, and their weights.
_SLOTS = (("top_k_index", "top_k_weights"), ("router_indices", "routing_weights"))


def slots_of(module: torch.nn.Module) -> tuple[str, str] | None:
    """Return the arguments by which a module is told the experts of each token and their weights, None if it is not."""
    return _slots_of(type(module).forward)


@cache
def _slots_of(forward: Callable[..., Any]) -> tuple[str, str] | None:
    parameters = inspect.signature(forward).parameters
    return next((slots for slots in _SLOTS if set(slots) <= set(parameters)), None)
