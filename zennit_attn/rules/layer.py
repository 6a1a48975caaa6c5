"""Layer rules: hooks for a module as a whole, inside of which nothing else is looked at."""

from __future__ import annotations

from typing import Any

import torch
from zennit.core import RemovableHandleList

from ..engine.activations import activation_call
from ..engine.handles import ForwardHandle
from ..engine.no_grad import follow_module
from ..engine.state import applied, holds_state, is_shielded, recorder, shield
from .rule import Rule


class LayerRule(Rule):
    """Base of rules for a module as a whole."""

    def register(self, module: torch.nn.Module) -> RemovableHandleList:
        """Put the rule around one module's forward.

        Raises
        ------
        TypeError
            If the rule is not known for this type of module.
        """
        self.check(module)

        @holds_state
        def around(forward: Any, args: Any, kwargs: Any) -> Any:
            if is_shielded():
                return forward(*args, **kwargs)
            applied(self)
            with shield():
                if recorder() is None:
                    output = self.call(module, forward, args, kwargs)
                else:
                    title = type(getattr(self, "hook", self)).__name__
                    output = recorder().measured(
                        title, lambda *args, **kwargs: self.call(module, forward, args, kwargs), args, kwargs
                    )
            follow_module(args, kwargs, output)
            return output

        return RemovableHandleList([ForwardHandle(module, around, rule=self)])

    def check(self, module: torch.nn.Module) -> None:
        """Raise if the rule cannot explain ``module``."""

    def call(self, module: torch.nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Call ``forward``, with a backward pass by the rule."""
        raise NotImplementedError


class Identity(LayerRule):
    """Identity rule for a module that is one element-wise function, however its forward is written (AttnLRP, eq. 9).

    ``R_x = R_y``, in the gradient form the slope ``f(x) / x``. Operator rules do this by themselves where the forward
    calls one activation function; a forward written in elementary operations would look like several operators.
    """

    def call(self, module: torch.nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Call ``forward``, with the identity rule as its backward pass."""
        return activation_call(self.form, lambda x: forward(x), *args, **kwargs)
