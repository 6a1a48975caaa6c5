"""Explainer: a model by its name, and the explanation of one text or image."""

from .explainer import Explainer, Explanation

__all__ = ["Explainer", "Explanation"]


def __dir__() -> list[str]:
    return sorted(__all__)
