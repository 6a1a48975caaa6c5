"""Inventory: whether a model is still as it was when rules were put on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from zennit.core import Hook


def refuse_foreign(names: Mapping[torch.nn.Module, str]) -> None:
    """Raise if rules of zennit are registered on a model in zennit's own way.

    Parameters
    ----------
    names : mapping of torch.nn.Module to str
        Modules of the model, and their names.

    Raises
    ------
    RuntimeError
        If there are any: two composites would each change the signal.
    """
    for module, name in names.items():
        if not (module._forward_pre_hooks or module._forward_hooks):
            continue
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            if isinstance(getattr(hook, "__self__", None), Hook):
                raise RuntimeError(
                    f"a composite of zennit is registered on {name or 'the model'!r}; expected a model with one "
                    "composite only. Two cannot be nested: leave the first context, or join them by layer_map and "
                    "name_map."
                )


class Inventory:
    """The parameters and modules of a model, as they were when rules were put on it.

    Parameters
    ----------
    names : mapping of torch.nn.Module to str
        Modules of the model, and their names.
    """

    def __init__(self, names: Mapping[torch.nn.Module, str]) -> None:
        # asked at each forward, and small models feel each look-up
        self.parameters = [(name, module._parameters) for module, name in names.items() if module._parameters]
        self.children = [(name, module._modules, list(module._modules.values())) for module, name in names.items()]

    def check(self) -> None:
        """Raise if the model has changed in a way that the rules would not notice.

        Raises
        ------
        RuntimeError
            If a parameter requires grad, which the rules would take for something that depends on the input, or if a
            module with parameters was put in, which has no rules.
        """
        for name, parameters in self.parameters:
            for parameter in parameters.values():
                if parameter is not None and parameter.requires_grad:
                    key = next(key for key, value in parameters.items() if value is parameter)
                    raise RuntimeError(
                        f"parameter {f'{name}.{key}'.lstrip('.')!r} requires grad inside of the context; expected "
                        "frozen parameters, as the context left them: set requires_grad before it, or after, and "
                        "detach what takes the place of a parameter."
                    )
        for name, children, before in self.children:
            if children and list(children.values()) != before:
                refuse_new(name, children, before)


def refuse_new(name: str, children: dict[str, Any], before: list[Any]) -> None:
    """Raise if there is a module with parameters among the children of a module that was not there before."""
    for key, child in children.items():
        if child is not None and child not in before and next(child.parameters(), None) is not None:
            raise RuntimeError(
                f"{type(child).__name__} was put in as {f'{name}.{key}'.lstrip('.')!r} inside of the context, and has "
                "no rules; expected the modules that were there: change the model before the context."
            )
