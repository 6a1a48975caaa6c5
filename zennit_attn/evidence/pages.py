"""Pages: a study's table with a picture of its intervals, as one file."""
from __future__ import annotations

from .study import Study
from .tables import Scores, markdown


def page_of(scores: Scores, study: Study) -> str:
    """Return a page."""
    return markdown(scores, list(study.scores))
