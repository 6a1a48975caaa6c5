"""What is inside of a model: latents with one name in every architecture, and relevance under conditions on them."""

from ..latents import Features, Latent, latents_of
from .channels import ChannelConcept
from .conditional import AttributionResults, CondAttribution, conditioned

__all__ = [
    "AttributionResults",
    "ChannelConcept",
    "CondAttribution",
    "Features",
    "Latent",
    "conditioned",
    "latents_of",
]


def __dir__() -> list[str]:
    return sorted(__all__)
