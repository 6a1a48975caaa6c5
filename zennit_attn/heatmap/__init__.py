"""Relevance drawn for a paper, a notebook or a terminal: tokens, images, and layers or heads."""

from .figure import Heatmap
from .page import page
from .panels import images, imgify
from .rows import TokenHeatmap, pdf_heatmap, tokens
from .traces import trace
from .words import clean_tokens

__all__ = ["Heatmap", "TokenHeatmap", "clean_tokens", "images", "imgify", "page", "pdf_heatmap", "tokens", "trace"]


def __dir__() -> list[str]:
    return sorted(__all__)
