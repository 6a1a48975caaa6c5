"""Attention, norm and bilinear-product rules for zennit: faithful explanations of transformers.

``with AttnLRPComposite().context(model)`` makes the backward pass of one model instance propagate relevance;
``input_x_gradient`` converts any composite of zennit to the fast Input x Gradient form. Start with the README.

Everything public is here without a second import; what it takes (torch, zennit) is imported when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

if TYPE_CHECKING:
    from . import composites as composites
    from . import concepts as concepts
    from . import data as data
    from . import errors as errors
    from . import evaluation as evaluation
    from . import evidence as evidence
    from . import heatmap as heatmap
    from . import rules as rules
    from . import targets as targets
    from . import tuning as tuning
    from ._public import *  # noqa: F403
    from .explain import Explainer as Explainer
    from .explain import Explanation as Explanation

#: Modules and packages that are public as a whole.
_ROOMS = ("composites", "concepts", "data", "errors", "evaluation", "evidence", "heatmap", "rules", "targets", "tuning")
#: What takes transformers.
_QUESTIONS = ("Explainer", "Explanation")


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    if name == "__all__":
        return __dir__()
    if name in _QUESTIONS:
        return getattr(import_module(".explain", __name__), name)
    public = import_module("._public", __name__)
    if name in public.__all__:
        return getattr(public, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_ROOMS, *_QUESTIONS, *import_module("._public", __name__).__all__, "__version__"])
