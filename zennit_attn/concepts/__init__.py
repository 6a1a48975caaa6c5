"""What is inside of a model: latents with one name in every architecture, and relevance under conditions on them."""

from ..latents import Features, Latent, latents_of
from .channels import ChannelConcept
from .conditional import CondAttribution
from .conditions import conditioned
from .patching import Patching, relevance_patching
from .results import AttributionResults
from .weights import WeightRelevance, weight_relevance

__all__ = [
    "AttributionResults",
    "ChannelConcept",
    "CondAttribution",
    "Features",
    "Latent",
    "Patching",
    "WeightRelevance",
    "conditioned",
    "latents_of",
    "relevance_patching",
    "weight_relevance",
]


def __dir__() -> list[str]:
    return sorted(__all__)
