"""The public names of the package, which it hands on when they are asked for."""

from .adapters import ModelAdapter
from .attribution import InputXGradient
from .captured import capture
from .composites.canonizers import FunctionCanonizer, MultiheadAttentionCanonizer
from .composites.configuration import load_composite, save_composite
from .composites.presets import AttnLRPComposite, CPLRPComposite, GammaViTComposite, LibraGradComposite, RelPComposite
from .composites.registration import input_x_gradient, release
from .engine.catalog import register_operator

__all__ = [
    "AttnLRPComposite",
    "CPLRPComposite",
    "FunctionCanonizer",
    "GammaViTComposite",
    "InputXGradient",
    "LibraGradComposite",
    "ModelAdapter",
    "MultiheadAttentionCanonizer",
    "RelPComposite",
    "capture",
    "input_x_gradient",
    "load_composite",
    "register_operator",
    "release",
    "save_composite",
]
