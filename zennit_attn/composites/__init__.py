"""Composites: which rule goes to which module of a transformer, on one model instance at a time.

The presets are in :data:`zennit.composites.COMPOSITES`, too, once this is imported.
"""

from .canonizers import FunctionCanonizer, MultiheadAttentionCanonizer
from .configuration import PRESETS, load_composite, save_composite
from .presets import AttnLRPComposite, CPLRPComposite, GammaViTComposite, LibraGradComposite, RelPComposite
from .registration import input_x_gradient
from .roles import ROLES, role
from .transformer import TransformerComposite

__all__ = [
    "PRESETS",
    "ROLES",
    "AttnLRPComposite",
    "CPLRPComposite",
    "FunctionCanonizer",
    "GammaViTComposite",
    "LibraGradComposite",
    "MultiheadAttentionCanonizer",
    "RelPComposite",
    "TransformerComposite",
    "input_x_gradient",
    "load_composite",
    "role",
    "save_composite",
]


def __dir__() -> list[str]:
    return sorted(__all__)
