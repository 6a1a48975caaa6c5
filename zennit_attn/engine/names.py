"""Names: the modules of a model, by the names that they have in the model as it was written.

``torch.compile`` puts a module around the one that it is given, which would have another name.
"""

from __future__ import annotations

import torch


def names_of(model: torch.nn.Module) -> dict[torch.nn.Module, str]:
    """Return the names of a model's modules, in the order of ``named_modules``, without what ``torch.compile`` put in.

    Parameters
    ----------
    model : torch.nn.Module
        The model; one that ``torch.compile`` returned stands for the one that it was given.
    """
    found: dict[torch.nn.Module, str] = {}
    _visit(as_written(model), "", found)
    return found


def modules_by_name(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Return the modules of a model by their names, see :func:`names_of`."""
    return {name: module for module, name in names_of(model).items()}


def _visit(module: torch.nn.Module, name: str, found: dict[torch.nn.Module, str]) -> None:
    """Note a module and those inside of it."""
    found[module] = name
    children = module._modules
    if not children:
        return
    prefix = f"{name}." if name else ""
    # not by named_modules, which hands each name through a generator of every module around it
    for key, child in children.items():
        if child is not None and child not in found:
            if is_compiled(child):
                child = as_written(child)
                if child in found:
                    continue
            _visit(child, prefix + key, found)


def as_written(module: torch.nn.Module) -> torch.nn.Module:
    """Return the module that ``torch.compile`` was given, or the module itself."""
    while is_compiled(module):
        module = module._modules["_orig_mod"]  # type: ignore[assignment]
    return module


def is_compiled(module: torch.nn.Module) -> bool:
    """Tell whether a module is what ``torch.compile`` returns, by where its type is, which takes long to import."""
    return type(module).__module__ == "torch._dynamo.eval_frame"
