"""Gradient checkpoints: layers that are computed again in the backward pass, with rules or without.

This module does not run rules: see :func:`zennit_attn.engine.mode.run_inside`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.checkpoint

from ..sharding import is_offloaded
from .handles import ForwardHandle, keep
from .policy import Policy
from .state import enclosing_policy, state

#: Returns the hooks by which tensors are saved for the backward pass, None if there are none; torch 2.6 does not tell.
saving_hooks: Callable[[bool], Any] = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: None)


class CheckpointHandle:
    """Gradient checkpointing of one module, with the rules on while its forward is computed again.

    Parameters
    ----------
    module : torch.nn.Module
        Module that transformers gave a ``_gradient_checkpointing_func``.
    rerun : callable
        ``(policy, function, args, kwargs) -> output``: runs a forward with operator rules.
    """

    def __init__(self, module: Any, rerun: Callable[[Policy, Any, Any, Any], Any]) -> None:
        self.module, self.before, self.active = module, module._gradient_checkpointing_func, True

        def checkpointed(function: Any, *args: Any, **kwargs: Any) -> Any:
            return self.before(run_again(self, function, rerun), *args, **kwargs)

        keep(self)
        module._gradient_checkpointing_func = checkpointed

    def remove(self) -> None:
        """Put the module's own checkpointing back."""
        self.active = False
        self.module._gradient_checkpointing_func = self.before


class OffloadedHandle(ForwardHandle):
    """A layer whose weights are loaded for its forward, and once more in the backward pass, not kept in between.

    Autograd would keep each weight that was loaded, so that all of them are in memory when the backward pass begins.

    Parameters
    ----------
    module : torch.nn.Module
        Layer of transformers, some weights of which are offloaded.
    rerun : callable
        As of :class:`CheckpointHandle`.
    """

    def __init__(self, module: Any, rerun: Callable[[Policy, Any, Any, Any], Any]) -> None:
        self.active = True

        def around(forward: Any, args: Any, kwargs: Any) -> Any:
            # a ledger has to see what a layer keeps, the first time; a layer inside of one is computed again with it
            plain = state.mode is None or state.mode.rerunning or state.recorder is not None
            cache = next((kwargs[name] for name in CACHES if kwargs.get(name) is not None), None)
            if plain or not torch.is_grad_enabled() or (cache is not None and cache.get_seq_length()):
                return forward(*args, **kwargs)
            # an empty cache would get the same keys twice
            kwargs = {name: None if name in CACHES else value for name, value in kwargs.items()}
            again = run_again(self, forward, rerun)
            # stopped early, the last module would not get to unload its weights
            with torch.utils.checkpoint.set_checkpoint_early_stop(False):
                return torch.utils.checkpoint.checkpoint(again, *args, use_reentrant=False, **kwargs)

        super().__init__(module, around)

    def remove(self) -> None:
        """Let autograd keep what is loaded."""
        self.active = False
        super().remove()


#: Under which names layers of transformers take a cache.
CACHES = ("cache", "past_key_values", "past_key_value", "layer_past")


def checkpointed_layers(modules: Iterable[torch.nn.Module]) -> list[torch.nn.Module]:
    """Return the modules that transformers checkpoints."""
    # not by hasattr, which a module is slow to deny
    return [
        module
        for module in modules
        if "_gradient_checkpointing_func" in vars(module) and getattr(module, "gradient_checkpointing", False)
    ]


def offloaded_layers(modules: Iterable[torch.nn.Module]) -> list[torch.nn.Module]:
    """Return those modules that are layers of a model of transformers, some weights of which are offloaded."""
    modules = list(modules)
    if not any("_hf_hook" in vars(module) for module in modules):
        return []
    return [
        module
        for module in modules
        if any(kind.__name__ == "GradientCheckpointingLayer" for kind in type(module).__mro__) and is_offloaded(module)
    ]


def run_again(handle: Any, function: Any, rerun: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that runs with rules when a checkpoint computes it again, as long as its handle is active."""
    policy = enclosing_policy() or Policy()

    def known(*args: Any, **kwargs: Any) -> Any:
        with known_checkpoint(state.mode):
            return function(*args, **kwargs)

    def again(*args: Any, **kwargs: Any) -> Any:
        if state.mode is not None:
            return known(*args, **kwargs)
        if not handle.active:
            raise RuntimeError(
                "the backward pass of a model with gradient checkpointing got to a layer after its composite "
                "was removed; expected it inside of the context, which has to compute the layer again."
            )
        return rerun(policy, known, args, kwargs)

    return again


def in_checkpoint() -> bool:
    """Tell whether a checkpoint is running that keeps no graph's tensors, and computes them again without rules."""
    hooks = saving_hooks(True)
    return hooks is not None and hooks[0].__module__ == torch.utils.checkpoint.__name__


@contextmanager
def known_checkpoint(mode: Any) -> Iterator[None]:
    """Report no checkpoint inside, which computes its tensors again with rules."""
    before, mode.rerunning = mode.rerunning, True
    try:
        yield
    finally:
        mode.rerunning = before
