"""Citing: ContextCite's linear surrogate, which says what each source of a context adds to an answer."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..data.extras import extra

#: Strength of the L1 penalty, of the published code.
ALPHA = 0.01


def context_cite(
    kept: np.ndarray[Any, Any], log_probabilities: np.ndarray[Any, Any], length: int
) -> np.ndarray[Any, Any]:
    """Return the weight of each source in a sparse linear model of an answer's logit of probability.

    The model is ``log p / (1 - p) = b + Σ w kept``, by Lasso on standardised columns (Cohen-Wang et al., ContextCite,
    NeurIPS 2024, section 3).

    Parameters
    ----------
    kept : numpy.ndarray
        Which sources the context had, of shape ``(count, sources)``.
    log_probabilities : numpy.ndarray
        Log-probability of the answer with each of them, of shape ``(count,)``.
    length : int
        How many tokens the answer has: the penalty is that of one.

    Returns
    -------
    numpy.ndarray
        ``w``, of shape ``(sources,)``; 0 for a source that has no part in it.

    Raises
    ------
    InputError
        If scikit-learn is not installed.
    """
    linear = extra("sklearn.linear_model", "ContextCite's surrogate", "evaluation")
    values = log_probabilities - np.log(-np.expm1(np.minimum(log_probabilities, -1e-12)))
    columns = kept.astype(float)
    scale = columns.std(0)
    # one that is always there, or never, says nothing
    scale[scale == 0] = 1
    fitted = linear.Lasso(alpha=ALPHA).fit((columns - columns.mean(0)) / scale, values / length)
    weights: np.ndarray[Any, Any] = fitted.coef_ / scale * length
    return weights
