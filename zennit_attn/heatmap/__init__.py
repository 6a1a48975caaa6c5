"""Relevance drawn for a paper, a notebook, a browser or a terminal: tokens, images, signals, and layers or heads."""

from .curves import curve
from .figure import Heatmap
from .graph import graph
from .page import page
from .pairs import pair
from .panels import images, imgify
from .rows import TokenHeatmap, pdf_heatmap, tokens
from .samples import samples
from .traces import trace
from .words import clean_tokens

__all__ = [
    "Heatmap",
    "TokenHeatmap",
    "clean_tokens",
    "curve",
    "graph",
    "images",
    "imgify",
    "page",
    "pair",
    "pdf_heatmap",
    "samples",
    "tokens",
    "trace",
]


def __dir__() -> list[str]:
    return sorted(__all__)
