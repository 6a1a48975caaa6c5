"""Many inputs: rows of files, explained in buckets by one process or many, into a folder that is gone on with."""

from .buckets import BatchExplainer
from .results import Results, open_results
from .spray import Spray, spray
from .virelay import write_virelay

__all__ = ["BatchExplainer", "Results", "Spray", "open_results", "spray", "write_virelay"]


def __dir__() -> list[str]:
    return sorted(__all__)
