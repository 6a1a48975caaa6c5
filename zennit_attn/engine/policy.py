"""Policy: how the operators inside of a module are explained, as plain data."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Literal, get_args

from .operands import Form


@dataclass(frozen=True)
class Policy:
    """How the operators inside a module are explained.

    Parameters
    ----------
    attention : {"uniform", "value", "gradient"}
        Softmax attention. ``"uniform"`` (AttnLRP, Achtibat et al. 2024, eq. 7, prop. 3.1 and 3.3): relevance through
        query, key and value. ``"value"`` (CP-LRP, Ali et al. 2022): attention weights are constants.
    product : {"uniform", "gate", "gradient"}
        Products of tensors that depend on the input. ``"uniform"`` (AttnLRP, prop. 3.2): equal shares. ``"gate"``
        (CP-LRP): the factor that an activation produced is a constant; equal shares where there is none.
    norm : {"constant", "gradient"}
        Normalisation statistics, denominators, reciprocals. ``"constant"`` is the LN rule (Ali et al. 2022).
    activation : {"identity", "gradient"}
        Element-wise functions. ``"identity"`` (AttnLRP, eq. 9) passes relevance on.
    scan : {"product", "constant"}
        Step sizes, B and C of selective state spaces. ``"constant"`` (MambaLRP, Jafari et al. 2024): all relevance
        goes through the state. ``"product"``: they are factors as others.

    Notes
    -----
    ``"gradient"`` leaves a kind to plain autograd: Input x Gradient, which does not conserve.
    """

    attention: Literal["uniform", "value", "gradient"] = "uniform"
    product: Literal["uniform", "gate", "gradient"] = "uniform"
    norm: Literal["constant", "gradient"] = "constant"
    activation: Literal["identity", "gradient"] = "identity"
    scan: Literal["product", "constant"] = "product"

    def key(self, form: Form) -> str:
        """Return the name of the table of this policy in a form, see :func:`find`."""
        return " ".join((*vars(self).values(), form))

    @classmethod
    def choices(cls) -> dict[str, tuple[str, ...]]:
        """Return the valid choices of each field."""
        hints = inspect.get_annotations(cls, eval_str=True)
        return {name: get_args(hints[name]) for name in cls.__dataclass_fields__}
