"""Handles: what is put around one module instance, and taken off again without a trace."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from zennit.core import Hook


class WrappedForward:
    """A module instance's forward, with something around it for as long as it is active.

    Parameters
    ----------
    forward : callable
        The forward to wrap.
    around : callable
        ``(forward, args: tuple, kwargs: dict) -> output``.
    rule : zennit.core.Hook, optional
        Layer rule that it applies.
    """

    def __init__(self, forward: Any, around: Callable[[Any, Any, Any], Any], rule: Hook | None = None) -> None:
        functools.update_wrapper(self, forward)
        self.forward, self.around, self.rule, self.active = forward, around, rule, True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward."""
        return self.around(self.forward, args, kwargs) if self.active else self.forward(*args, **kwargs)

    def __reduce__(self) -> Any:
        raise RuntimeError(
            "got an order to copy or to save a model on which a composite is registered, the copy of which would run "
            "the original's forward; expected a model without rules: leave the context first."
        )


class ForwardHandle:
    """Something around one module instance's forward, until it is removed.

    Parameters
    ----------
    module : torch.nn.Module
        Module of which the forward is wrapped; its class stays as it is.
    around : callable
        ``(forward, args: tuple, kwargs: dict) -> output``.
    rule : zennit.core.Hook, optional
        Layer rule that it applies.
    name : str, optional
        ``"_call_impl"`` runs the module's hooks, too. By default its forward, and where accelerate loads weights
        around that, the forward inside, which has them.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        around: Callable[[Any, Any, Any], Any],
        rule: Hook | None = None,
        name: str | None = None,
    ) -> None:
        name = name or ("_old_forward" if hasattr(module, "_hf_hook") else "forward")
        self.module, self.name = module, name
        self.before = vars(module).get(name)
        self.wrapped = WrappedForward(getattr(module, name), around, rule)
        setattr(module, name, self.wrapped)

    def remove(self) -> None:
        """Take it off; whatever was wrapped around it in between stays, and calls the original forward."""
        self.wrapped.active = False
        if vars(self.module).get(self.name) is not self.wrapped:
            return
        delattr(self.module, self.name)
        if self.before is not None:
            setattr(self.module, self.name, self.before)


class FrozenHandle:
    """Parameters that do not require grad, until it is removed: then ``requires_grad`` means *depends on the input*."""

    def __init__(self, module: torch.nn.Module) -> None:
        # by their places, too: accelerate puts others there whenever it loads weights
        self.places = [
            (holder, name, parameter)
            for holder in (child._parameters for child in module.modules())
            for name, parameter in holder.items()
            if parameter is not None and parameter.requires_grad
        ]
        for _, _, parameter in self.places:
            parameter.requires_grad_(False)

    def remove(self) -> None:
        """Restore ``requires_grad``."""
        for holder, name, parameter in self.places:
            for value in (parameter, holder.get(name)):
                if value is not None:
                    value.requires_grad_(True)
        self.places = []


class UncompiledHandle:
    """A module that was compiled in place, which runs as it was written until this is removed."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module, self.before = module, module._compiled_call_impl
        module._compiled_call_impl = None

    def remove(self) -> None:
        """Let it run compiled again."""
        self.module._compiled_call_impl = self.before
