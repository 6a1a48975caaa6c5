"""What a model computes of its input where autograd does not see it: under ``torch.no_grad``.

Relevance that goes there is lost. It is followed to where it joins what autograd sees, and reported there; as a mask,
an index, a gate or a denominator it takes none, and nothing is lost. ``detach`` is taken as meant.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .catalog import functions
from .handles import Kept
from .operands import depends
from .state import state

#: Kinds of functions of which each argument has a share of the relevance.
SHARING = ("linear", "joining", "weighted sum", "added product", "matmul")


def leaves(values: Any) -> Iterator[Tensor]:
    """Yield the tensors in arguments, those inside of lists too."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from leaves(value)


class Disabled:
    """Functions that no mode sees, until it is removed: torch's own context manager is left on by an interrupt.

    Parameters
    ----------
    kept : list
        Where it is kept.
    """

    def __init__(self, kept: list[Any]) -> None:
        self.guard = torch._C.DisableTorchFunction()
        kept.append(self)
        self.guard.__enter__()

    def remove(self) -> None:
        """Let modes see them again."""
        self.guard.__exit__(None, None, None)


class Cuts:
    """The tensors of one forward that depend on the input without autograd knowing it."""

    def __init__(self) -> None:
        self.tensors = WeakTensorKeyDictionary()

    def __contains__(self, value: Tensor) -> bool:
        if value.requires_grad:
            return False
        return value in self.tensors or (value._base is not None and value._base in self.tensors)

    def follow(self, function: Any, args: Any, kwargs: Any, output: Any) -> bool:
        """Note what a function makes of them, and tell whether it joins them with what autograd sees.

        Parameters
        ----------
        function : callable or None
            Function of torch that was called; None stands for a module with a layer rule.
        args, kwargs : tuple, dict
            Its arguments.
        output : Any
            What it returned.
        """
        kind, name = functions().get(function, ("", getattr(function, "__name__", ""), False))[:2]
        if name.startswith("new_") or name.endswith("_like"):
            return False  # takes a size, no values
        # what is moved is the first argument: x.type_as(y) takes no values of y
        given = list(leaves(args[:1] if kind == "routing" else (*args, *kwargs.values())))
        if torch.is_grad_enabled():
            cut = any(value in self for value in given)
        else:
            cut = any(depends(value) or value in self for value in given)
        if not cut:
            return False
        # None: the first argument was written to
        made = [value for value in leaves([args[0] if output is None and args else output])]
        for value in made:
            if value.is_floating_point():
                self.tensors[value] = True
                if value._base is not None:
                    # what it is a view of may have been written to
                    self.tensors[value._base] = True
        return kind in SHARING and torch.is_grad_enabled() and any(map(depends, made))


def follow_cuts(everything: bool = False) -> None:
    """Follow, from here on, what is computed without a graph.

    Parameters
    ----------
    everything : bool, optional
        Look at every function until the forward ends: not all that turns graphs off is one.
    """
    mode = state.mode
    if mode is not None:
        # a compiler traces no forward that has them
        mode.cuts = mode.cuts or Cuts()
        mode.following, mode.watching = True, mode.watching or everything


def follow_module(args: Any, kwargs: Any, output: Any) -> None:
    """Follow what was computed without a graph through a module that has a layer rule."""
    mode = state.mode
    if mode is not None and mode.following:
        with Kept() as kept:
            Disabled(kept)
            mode.cuts.follow(None, args, kwargs, output)


def switch(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Turn graphs on or off, as ``torch.no_grad`` does, and follow what is computed without one."""
    function(*args, **kwargs)
    follow_cuts()
