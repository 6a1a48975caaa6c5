"""Gradient checkpoints: layers that are computed again in the backward pass, with rules or without.

This module does not run rules: see :func:`zennit_attn.engine.mode.run_inside`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.checkpoint

from .handles import keep
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
        ``(policy, function, args) -> output``: runs a forward with operator rules.
    """

    def __init__(self, module: Any, rerun: Callable[[Policy, Any, Any], Any]) -> None:
        self.module, self.before, self.active = module, module._gradient_checkpointing_func, True

        def checkpointed(function: Any, *args: Any, **kwargs: Any) -> Any:
            policy = enclosing_policy() or Policy()

            def known(*inner: Any) -> Any:
                with known_checkpoint(state.mode):
                    return function(*inner)

            def again(*inner: Any) -> Any:
                if state.mode is not None:
                    return known(*inner)
                if not self.active:
                    raise RuntimeError(
                        "the backward pass of a model with gradient checkpointing got to a layer after its composite "
                        "was removed; expected it inside of the context, which has to compute the layer again."
                    )
                return rerun(policy, known, inner)

            return self.before(again, *args, **kwargs)

        keep(self)
        module._gradient_checkpointing_func = checkpointed

    def remove(self) -> None:
        """Put the module's own checkpointing back."""
        self.active = False
        self.module._gradient_checkpointing_func = self.before


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
