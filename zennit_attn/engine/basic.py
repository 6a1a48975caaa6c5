"""Rules that need no formula: left to autograd, taken as a constant, and not known, which is reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .operands import depends, operands, swap, swap_call
from .reports import report

Rule = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


def plain(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Leave a function to autograd."""
    return function(*args, **kwargs)


def asked(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call what tells something of a tensor, such as its shape, and makes no node."""
    return function(*args, **kwargs)


def constant(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Treat what a function returns as a constant."""
    if len(args) == 1 and not kwargs:
        return function(swap(args[0], Tensor.detach))
    return swap_call(function, args, kwargs, Tensor.detach)


def unknown(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function that is in no kind; report it where it carries relevance from an argument to its output."""
    output = function(*args, **kwargs)
    if operands(args, kwargs) and operands((output,), {}):
        report(function, output)
    return output


def transformed(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Report what a transform such as ``torch.vmap`` runs on the relevance path, of which the tensors hide that."""
    output = function(*args, **kwargs)
    for value in args:
        while isinstance(value, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(value):
            value = torch._C._functorch.get_unwrapped(value)
        if depends(value):
            report(function, output)
            break
    return output
