"""Tuning: search the parameters of a composite's rules for the best score, and keep the best as a composite file."""

from ..evaluation.features import Fixed
from .leaderboard import Result, Trial
from .samples import Samples
from .search import tune
from .study import Study, read_study

__all__ = ["Fixed", "Result", "Samples", "Study", "Trial", "read_study", "tune"]


def __dir__() -> list[str]:
    return sorted(__all__)
