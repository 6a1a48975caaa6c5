"""Attention, norm and bilinear-product rules for zennit: faithful explanations of transformers.

``with AttnLRPComposite().context(model)`` makes the backward pass of one model instance propagate relevance;
``input_x_gradient`` converts any composite of zennit to the fast Input x Gradient form. Start with the README.
"""

from . import heatmap, targets
from .adapters import ModelAdapter
from .attribution import InputXGradient
from .canonizers import FunctionCanonizer, MultiheadAttentionCanonizer
from .catalog import register_operator
from .composites import AttnLRPComposite, CPLRPComposite, GammaViTComposite
from .configuration import load_composite, save_composite
from .registration import input_x_gradient
from .version import __version__

__all__ = [
    "AttnLRPComposite",
    "CPLRPComposite",
    "FunctionCanonizer",
    "GammaViTComposite",
    "InputXGradient",
    "ModelAdapter",
    "MultiheadAttentionCanonizer",
    "__version__",
    "heatmap",
    "input_x_gradient",
    "load_composite",
    "register_operator",
    "save_composite",
    "targets",
]
