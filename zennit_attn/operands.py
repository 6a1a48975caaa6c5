"""The arguments of a function that depend on the explained input, and how they are changed.

This module does not know rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

Form = Literal["relevance", "gradient"]
Rule = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]

#: Attribute of a tensor that an activation produced: how surely it is the gate, should it become a factor.
GATE = "_zennit_attn_gate"
#: Of an activation such as SiLU: the gate, unless the other factor is a scale.
ACTIVATION = 1
#: Of a function that makes weights, decays and step sizes, such as sigmoid, softplus and exp.
SCALE = 2
#: Of a softmax: the weights of a sum, which stay weights when a matrix mixes them.
WEIGHT = 3
#: More than any of them.
NEVER = 4


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


def strength(value: Any) -> int:
    """Return how surely a tensor is a gate: 0, :data:`ACTIVATION`, :data:`SCALE` or :data:`WEIGHT`."""
    return getattr(value, GATE, 0)


def mark(output: Any, degree: int = ACTIVATION) -> Any:
    """Mark tensors as gates of a degree, or, with 0, as none."""
    for value in output if isinstance(output, (list, tuple)) else (output,):
        if isinstance(value, Tensor) and strength(value) != degree:
            setattr(value, GATE, degree)
    return output


def mixed(input: Any, output: Any) -> Any:
    """Mark what a matrix of constants makes of weights as weights, as that of talking heads does; return it."""
    return mark(output, WEIGHT) if strength(input) == WEIGHT else output


def plain(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Leave a function to autograd."""
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
        from .scope import report  # the report needs modules and strictness, which a table does not know

        report(function)
    return output
