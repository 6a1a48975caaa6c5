"""Latents: the places inside of a transformer at which relevance has units, under one name in every architecture.

Which module is a layer, an output projection or an MLP is read off the roles of modules; what has no role has no
latents. This room does not know what is done with the tensors that it finds.
"""

from .choice import chosen
from .features import Features
from .found import Found, found_of
from .latent import KINDS, WRITERS, Latent
from .places import latents_of, sizes
from .watch import first_of, own_view, watching

__all__ = [
    "KINDS",
    "WRITERS",
    "Features",
    "Found",
    "Latent",
    "chosen",
    "first_of",
    "found_of",
    "latents_of",
    "own_view",
    "sizes",
    "watching",
]


def __dir__() -> list[str]:
    return sorted(__all__)
