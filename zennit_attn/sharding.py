"""Tensors and models of which each process, or another memory, has a part.

torch.distributed is not in every build of torch, and takes long to import: what it made is told by what it has.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_sharded(value: Any) -> bool:
    """Tell whether a value is a ``DTensor``, of which each process has a part, or a copy."""
    return isinstance(value, Tensor) and hasattr(value, "device_mesh") and hasattr(value, "full_tensor")


def whole(value: Any) -> Any:
    """Return a tensor with all that the processes have of it, differentiably; anything else as it is.

    All processes have to call this.
    """
    return value.full_tensor() if is_sharded(value) else value


def laid_out_as(value: Tensor, like: Any) -> Tensor:
    """Return a tensor that each process has whole as a ``DTensor`` with the mesh and placements of ``like``."""
    return replicated_as(value, like).redistribute(placements=like.placements)  # type: ignore[attr-defined]


def replicated_as(value: Tensor, like: Any) -> Tensor:
    """Return a tensor that each process has whole as a ``DTensor`` of copies, on the mesh of ``like``."""
    from torch.distributed.tensor import DTensor, Replicate

    return DTensor.from_local(value, like.device_mesh, [Replicate()] * like.device_mesh.ndim, run_check=False)


def is_fully_sharded(model: torch.nn.Module) -> bool:
    """Tell whether a model is gathered module by module as it runs (FSDP2): then its layers see plain weights."""
    return any(kind.__name__ == "FSDPModule" for module in model.modules() for kind in type(module).__mro__)


def is_offloaded(module: torch.nn.Module) -> bool:
    """Tell whether some weights of a module are somewhere else until accelerate loads them for a forward."""
    return any(
        hasattr(child, "_hf_hook") and any(parameter.is_meta for parameter in child.parameters(recurse=False))
        for child in module.modules()
    )


class OffloadedValues:
    """The parameters of a model that wait somewhere else, by their names: each is loaded when it is asked for.

    Parameters
    ----------
    model : torch.nn.Module
        A model to which accelerate may have given hooks.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.places: dict[str, tuple[Any, str]] = {}
        for prefix, module in model.named_modules():
            hook: Any = getattr(module, "_hf_hook", None)
            for part in getattr(hook, "hooks", (hook,)):
                if getattr(part, "weights_map", None) is not None:
                    for name, parameter in module.named_parameters(recurse=False):
                        if parameter.is_meta:
                            self.places[f"{prefix}.{name}".lstrip(".")] = part.weights_map, name

    def get(self, name: str, default: Tensor) -> Tensor:
        """Return a parameter's values, the default if it is where it should be."""
        if name not in self.places:
            return default
        values, key = self.places[name]
        found: Tensor = values[key]
        return found
