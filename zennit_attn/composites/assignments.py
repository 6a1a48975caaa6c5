"""Assignments: which rule each module of a model has, kept for as long as what decides it stays the same.

Most of the time that it takes to put rules on a model goes into finding out which. That depends on the modules' names
and types, on a few of their attributes and on the composite's settings, all of which are compared each time.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from zennit.core import Hook

from .roles import traits

#: Name, module and rule of each module that has one.
Assigned = list[tuple[str, torch.nn.Module, Hook]]


class Assignments:
    """The assignments of one composite, the last one of each model; they keep no model alive."""

    def __init__(self) -> None:
        self.kept: weakref.WeakKeyDictionary[torch.nn.Module, _Kept] = weakref.WeakKeyDictionary()

    def __reduce__(self) -> Any:
        # a copy of a composite may go to another process
        return Assignments, ()

    def find(
        self,
        model: torch.nn.Module,
        names: Mapping[torch.nn.Module, str],
        settings: Any,
        assign: Callable[[], Assigned],
    ) -> Assigned:
        """Return the assignment of a model, made anew if anything is another than it was.

        Parameters
        ----------
        model : torch.nn.Module
            The model.
        names : mapping of torch.nn.Module to str
            Its modules, and their names.
        settings : Any
            What it depends on beside the model.
        assign : callable
            Makes it.
        """
        kept = self.kept.get(model)
        if kept is not None and kept.settings == settings and kept.is_of(names):
            modules = list(names)
            return [(kept.names[place], modules[place], rule) for place, rule in kept.rules]
        found = assign()
        self.kept[model] = _Kept(names, settings, found)
        return found


class _Kept:
    """An assignment, and what it depends on: not the modules themselves, some of which a canonizer makes anew."""

    def __init__(self, names: Mapping[torch.nn.Module, str], settings: Any, assigned: Assigned) -> None:
        self.settings, self.names = settings, list(names.values())
        self.traits = list(map(traits, names))
        places = {module: place for place, module in enumerate(names)}
        self.rules = [(places[module], rule) for _, module, rule in assigned]

    def is_of(self, names: Mapping[torch.nn.Module, str]) -> bool:
        """Tell whether it is of these modules, as they are now."""
        return self.names == list(names.values()) and self.traits == list(map(traits, names))
