"""What was compiled before there were rules, which runs as it was written as long as there are some.

A compiled model, layer or function knows no rules: it would pass back the plain gradient, or be traced with a part of
them.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from .handles import Kept, Locked, keep

#: The same thread may be interrupted, and begin to undo.
_counting = threading.RLock()


class EagerHandle:
    """Whatever is compiled runs as it was written, until this is removed.

    torch takes one stance for all threads: the last handle puts back the one that was there before the first.

    Parameters
    ----------
    kept : list, optional
        Where it is kept.
    """

    holding: ClassVar[set[EagerHandle]] = set()
    stance: ClassVar[Any] = None

    def __init__(self, kept: list[Any] | None = None) -> None:
        keep(self, kept)
        with Locked(_counting):
            self.holding.add(self)
            if EagerHandle.stance is None:
                EagerHandle.stance = torch.compiler.set_stance("force_eager")

    def remove(self) -> None:
        """Let it run compiled again."""
        with Locked(_counting):
            self.holding.discard(self)
            if not self.holding and EagerHandle.stance is not None:
                EagerHandle.stance.__exit__(None, None, None)
                EagerHandle.stance = None


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run whatever was compiled, modules and functions, as it was written."""
    with Kept() as kept:
        # what never was imported has compiled nothing, and importing it takes long
        if "torch._dynamo" in sys.modules and not is_traced():
            EagerHandle(kept)
        yield


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what runs a function as it was written, where a compiler could not trace all of it.

    The compiler would trace each part by itself, and show less of it to the rules.
    """
    if "torch._dynamo" in sys.modules and is_traced():
        return torch.compiler.disable(function)
    return function


def is_traced() -> bool:
    """Tell whether a compiler looks at what this thread calls, which then may not be told to stop."""
    from torch._C._dynamo.eval_frame import get_eval_frame_callback

    return get_eval_frame_callback() not in (None, False)


class UncompiledHandle:
    """A module that was compiled in place, which runs as it was written until this is removed."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module, self.before = module, module._compiled_call_impl
        keep(self)
        module._compiled_call_impl = None

    def remove(self) -> None:
        """Let it run compiled again."""
        self.module._compiled_call_impl = self.before


def uncompile(modules: Iterable[torch.nn.Module]) -> list[UncompiledHandle]:
    """Let those modules that were compiled in place run as they were written, and return what undoes it."""
    return [UncompiledHandle(module) for module in modules if module._compiled_call_impl is not None]
