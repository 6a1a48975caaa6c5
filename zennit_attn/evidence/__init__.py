"""Evidence: how good explanations are, measured on anybody's model and data: ``zennit-attn evaluate``.

A study says what is asked of each row and how an explanation is scored; :data:`STUDIES` has them by name. The scores
themselves are those of :mod:`zennit_attn.evaluation`.
"""

from .contexts import Contexts
from .passages import Passage, passages
from .perturbed import Perturbed
from .randomised import Randomised
from .study import STUDIES, Study
from .tables import Scores, open_scores

__all__ = [
    "STUDIES",
    "Contexts",
    "Passage",
    "Perturbed",
    "Randomised",
    "Scores",
    "Study",
    "open_scores",
    "passages",
]


def __dir__() -> list[str]:
    return sorted(__all__)
