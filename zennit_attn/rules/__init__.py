"""Rules as hooks of zennit: operator rules for what a forward does with functions, and layer rules in closed form.

Each is a :class:`zennit.core.Hook` and goes wherever zennit's own rules go.
"""

from .layer import Identity, LayerRule
from .linear import AlphaBeta, Epsilon, Gamma, LinearRule, ZPlus
from .operators import CPLRP, AttnLRP, LibraGrad, Operators, RelP, SelectiveScan
from .rule import Rule

__all__ = [
    "CPLRP",
    "AlphaBeta",
    "AttnLRP",
    "Epsilon",
    "Gamma",
    "Identity",
    "LayerRule",
    "LibraGrad",
    "LinearRule",
    "Operators",
    "RelP",
    "Rule",
    "SelectiveScan",
    "ZPlus",
]


def __dir__() -> list[str]:
    return sorted(__all__)
