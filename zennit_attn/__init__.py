"""Attention, norm and bilinear-product rules for zennit: faithful explanations of transformers."""

from .canonizers import MultiheadAttentionCanonizer
from .composites import AttnLRPComposite, CPLRPComposite, GammaViTComposite
from .conversion import input_x_gradient

__all__ = [
    "AttnLRPComposite",
    "CPLRPComposite",
    "GammaViTComposite",
    "MultiheadAttentionCanonizer",
    "input_x_gradient",
]
