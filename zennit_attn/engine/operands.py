"""The arguments of a function that depend on the explained input, and how they are changed.

This module does not know rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

Form = Literal["relevance", "gradient"]

#: Attribute of a leaf that stands for the explained input, or for a constant that is accounted for.
EXPLAINED = "_zennit_attn_explained"


def explained_leaf(value: Tensor) -> Tensor:
    """Return a leaf of the graph with the values of a tensor, which is explained."""
    leaf = value.detach().requires_grad_()
    setattr(leaf, EXPLAINED, True)
    return leaf


def is_explained(leaf: Tensor) -> bool:
    """Tell whether a leaf is one that :func:`explained_leaf` made."""
    return getattr(leaf, EXPLAINED, False)


def depends(value: Any) -> bool:
    """Tell whether a value is a tensor that depends on the explained input.

    Parameters are frozen while a composite is registered, so that ``requires_grad`` is exactly this test.
    """
    return isinstance(value, Tensor) and value.requires_grad


def operands(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the arguments that depend on the explained input, those inside of lists too."""
    found: list[Tensor] = []
    # called for each product of a model: plain loops are what is fast here
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            if value.requires_grad:
                found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(filter(depends, value))
    return found


def swap(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``change`` to the tensors that depend on the input in a value, a list or a tuple."""
    if isinstance(value, (list, tuple)):
        values = [change(item) if depends(item) else item for item in value]
        return type(value)(*values) if hasattr(value, "_fields") else type(value)(values)
    return change(value) if depends(value) else value


def swap_call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], change: Callable[[Tensor], Tensor]) -> Any:
    """Call ``function`` with ``change`` applied to each argument that depends on the input."""
    return function(*(swap(value, change) for value in args), **{key: swap(kwargs[key], change) for key in kwargs})
