"""What is inside of a model: latents with one name in every architecture, and relevance under conditions on them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..latents import Features, Latent, latents_of
from .ablation import ablated, pruned
from .channels import ChannelConcept
from .conditional import CondAttribution
from .conditions import conditioned
from .edges import EdgePatching, edge_patching
from .flows import attribution_graph
from .graphs import AttributionGraph, Edge, Node
from .patching import Patching, relevance_patching
from .results import AttributionResults
from .weights import WeightRelevance, weight_relevance

if TYPE_CHECKING:
    from .maxima import ActMax as ActMax
    from .maxima import RelMax as RelMax
    from .references import Reference as Reference
    from .references import References as References
    from .references import open_references as open_references
    from .showing import unit_page as unit_page

#: What takes transformers, by its module.
_ASKED = {
    "ActMax": "maxima",
    "RelMax": "maxima",
    "Reference": "references",
    "References": "references",
    "open_references": "references",
    "unit_page": "showing",
}

__all__ = [
    "ActMax",
    "AttributionGraph",
    "AttributionResults",
    "ChannelConcept",
    "CondAttribution",
    "Edge",
    "EdgePatching",
    "Features",
    "Latent",
    "Node",
    "Patching",
    "Reference",
    "References",
    "RelMax",
    "WeightRelevance",
    "ablated",
    "attribution_graph",
    "conditioned",
    "edge_patching",
    "latents_of",
    "open_references",
    "pruned",
    "relevance_patching",
    "unit_page",
    "weight_relevance",
]


def __getattr__(name: str) -> Any:
    if name in _ASKED:
        return getattr(import_module(f".{_ASKED[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
