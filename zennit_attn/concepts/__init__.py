"""What is inside of a model: latents with one name in every architecture, and relevance under conditions on them."""

from ..latents import Features, Latent, latents_of
from .ablation import ablated, pruned
from .channels import ChannelConcept
from .conditional import AttributionResults, CondAttribution, conditioned
from .edges import EdgePatching, edge_patching
from .patching import Patching, relevance_patching
from .weights import WeightRelevance, weight_relevance

__all__ = [
    "AttributionResults",
    "ChannelConcept",
    "CondAttribution",
    "EdgePatching",
    "Features",
    "Latent",
    "Patching",
    "WeightRelevance",
    "ablated",
    "conditioned",
    "edge_patching",
    "latents_of",
    "pruned",
    "relevance_patching",
    "weight_relevance",
]


def __dir__() -> list[str]:
    return sorted(__all__)
