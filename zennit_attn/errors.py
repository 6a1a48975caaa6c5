"""Errors and warnings: what says that a result is not what was asked for, or that there is none."""

__all__ = [
    "CutOffError",
    "CutOffWarning",
    "FrozenWarning",
    "GlyphWarning",
    "InputError",
    "NotFiniteError",
    "NotFiniteWarning",
    "PaddingWarning",
    "PrecisionWarning",
    "ProbabilityWarning",
    "StaleError",
    "TrainingWarning",
    "UnknownOperationError",
    "UnknownOperationWarning",
    "UnusedRuleError",
    "UnusedRuleWarning",
]


class UnknownOperationWarning(UserWarning):
    """A function on the relevance path has no rule: what it passes back is the plain gradient."""


class UnknownOperationError(RuntimeError):
    """A function on the relevance path has no rule, under ``strict=True``."""


class CutOffWarning(UserWarning):
    """Something was computed of the input under ``torch.no_grad``: the relevance that goes there is lost."""


class CutOffError(RuntimeError):
    """Something was computed of the input under ``torch.no_grad``, under ``strict=True``."""


class UnusedRuleWarning(UserWarning):
    """A rule was given to modules of which none was called in a forward."""


class UnusedRuleError(RuntimeError):
    """The same, under ``strict=True``."""


class NotFiniteError(RuntimeError):
    """A NaN or an infinite value in a forward pass, or in the relevance of a backward pass."""


class NotFiniteWarning(UserWarning):
    """Some samples of a batch are not finite: they have no relevance."""


class FrozenWarning(UserWarning):
    """Gradients of relevance are asked for, and parameters that require grad get none."""


class PaddingWarning(UserWarning):
    """The model gave relevance to padding: it does not mask it."""


class PrecisionWarning(UserWarning):
    """Relevance is smaller than the numbers that it is computed in."""


class StaleError(RuntimeError):
    """A graph that was captured is asked for something else than it is of."""


class ProbabilityWarning(UserWarning):
    """What is explained is a probability: relevance of the logit is what rules share out."""


class TrainingWarning(UserWarning):
    """The model is in training mode, in which it drops values at random."""


class InputError(ValueError):
    """Something given does not fit: the message says what it was, what was expected, and what to do."""


class GlyphWarning(UserWarning):
    """Text that the fonts at hand cannot draw."""


def __dir__() -> list[str]:
    return sorted(__all__)
