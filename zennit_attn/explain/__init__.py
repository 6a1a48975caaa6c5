"""Ask a model why: Explainer for every task, and what it answers, as data and as pictures."""

from .explainer import Explainer
from .explanation import Explanation

__all__ = ["Explainer", "Explanation"]


def __dir__() -> list[str]:
    return sorted(__all__)
