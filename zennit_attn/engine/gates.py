"""Gates: how surely a tensor is the factor that weights another one, noted on the tensor itself.

An activation, a sigmoid or a softmax makes gates; what moves, scales or mixes them alone leaves them gates. Which rule
asks for that is decided in :mod:`zennit_attn.engine.operators`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

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
