"""Many inputs: rows of files, explained in buckets by one process or many, into a folder that is gone on with."""

from .buckets import BatchExplainer
from .results import Results, open_results

__all__ = ["BatchExplainer", "Results", "open_results"]


def __dir__() -> list[str]:
    return sorted(__all__)
