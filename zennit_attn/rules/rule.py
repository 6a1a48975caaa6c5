"""Base of the rules of this package, each of which is a hook of zennit."""

from __future__ import annotations

from typing import Any, ClassVar

from zennit.core import Hook, RemovableHandleList

from ..engine.operands import Form


class Rule(Hook):
    """Base of the rules of this package.

    Parameters
    ----------
    form : {"relevance", "gradient"}
        Form of the backward signal, set by :func:`zennit_attn.input_x_gradient`. Relevance form by default.
    """

    form: Form = "relevance"
    #: Whether it may go unused in a forward: a preset's own rule, of modules that need not be called.
    optional: bool = False
    #: Names of the constructor's arguments, each also an attribute.
    parameter_names: ClassVar[tuple[str, ...]] = ()

    def copy(self) -> Rule:
        """Return a copy for another module."""
        # not by copy.copy, of which a model's many layers feel how much it asks
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.stored_tensors, twin.tensor_handles = {}, RemovableHandleList()
        return twin

    def is_plain(self, form: Form) -> bool:
        """Tell whether it is plain autograd in a form, so that there is nothing to register."""
        return False

    def parameters(self) -> dict[str, Any]:
        """Return the arguments that make an equal rule."""
        return {name: getattr(self, name) for name in self.parameter_names}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self.parameters().items())})"
