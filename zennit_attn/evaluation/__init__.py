"""Scores of explanations: perturbation curves, localisation against a known truth, and sanity checks.

Every score is computed for each sample of a batch, on the device of its inputs; :func:`bootstrap` gives the mean and a
confidence interval. Padding counts nowhere. :data:`METHODS` has explanations to compare, under one interface.
"""

from .baselines import METHODS, TITLES
from .features import Fixed, Patches, Tokens, select
from .intervals import Interval, bootstrap, paired
from .localisation import pointing_game, reciprocal_rank, relevance_mass_accuracy, relevance_rank_accuracy
from .perturbation import Curve, faithfulness, perturbation_curve
from .sanity import Method, exact_occlusion, occlusion_agreement, randomisation, rank_correlation

__all__ = [
    "METHODS",
    "TITLES",
    "Curve",
    "Fixed",
    "Interval",
    "Method",
    "Patches",
    "Tokens",
    "bootstrap",
    "exact_occlusion",
    "faithfulness",
    "occlusion_agreement",
    "paired",
    "perturbation_curve",
    "pointing_game",
    "randomisation",
    "rank_correlation",
    "reciprocal_rank",
    "relevance_mass_accuracy",
    "relevance_rank_accuracy",
    "select",
]


def __dir__() -> list[str]:
    return sorted(__all__)
