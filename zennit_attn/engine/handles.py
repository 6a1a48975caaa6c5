"""Handles: what is put around one module instance, and taken off again without a trace.

An interrupt may come at any line. What acts is kept first (:func:`keep`), and what is undone is forgotten after it was
(:func:`undo`); removing twice is the same as once.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any, ClassVar, Self

import torch
from zennit.core import Hook

#: Where an instance's forward may be: its own, that which accelerate loads weights around, that with the hooks.
FORWARDS = ("forward", "_old_forward", "_call_impl")


class _Journal(threading.local):
    """Where the handles of this thread are kept before they act."""

    def __init__(self) -> None:
        self.handles: list[Any] | None = None


_journal = _Journal()


#: Numbers of hooks, which are none of torch's, from zero up: it may give two threads the same.
_numbers = itertools.count(-1, -1)
#: One look at who holds a parameter at a time; the same thread may be interrupted, and begin to undo.
_counting = threading.RLock()


@contextmanager
def keeping(handles: list[Any]) -> Iterator[None]:
    """Keep every handle that is made inside in a list, before it acts, unless it is told another."""
    try:
        _journal.handles = handles
        yield
    finally:
        _journal.handles = None


def keep(handle: Any, kept: list[Any] | None = None) -> None:
    """Keep a handle that is about to act in a list, or in that of :func:`keeping`."""
    handles = _journal.handles if kept is None else kept
    if handles is not None:
        handles.append(handle)


def undo(handles: list[Any]) -> None:
    """Remove handles, the last first, each of them whatever comes in between, and raise what came.

    Parameters
    ----------
    handles : list
        Handles of which ``remove()`` may be called again. One leaves the list after it was removed; one that fails
        twice by an error of its own leaves it, too, and the others are removed all the same.
    """
    came: list[BaseException] = []
    failed: Any = None
    while handles:
        try:
            while handles:
                handles[-1].remove()
                handles.pop()
        except Exception as error:
            came.append(error)
            last = handles[-1] if handles else None
            if handles and failed is last:
                handles.pop()
            failed = last
        except BaseException as error:  # an interrupt, after which the rest is undone
            came.append(error)
    if came:
        try:
            raise next((error for error in came if not isinstance(error, Exception)), came[0])
        finally:
            # what is raised knows this frame, which would know it
            came.clear()


class Kept(list[Any]):
    """Handles that are kept before they act, and removed at the end of a ``with`` statement, whatever comes.

    An interrupt may come before the first line of ``__exit__``, too: then they are removed with the list.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        undo(self)

    def __del__(self) -> None:
        if self:
            undo(self)

    def hook(self, module: torch.nn.Module, hook: Callable[..., Any], before: bool = False, **options: bool) -> None:
        """Put a hook on a module, see :class:`HookHandle`."""
        HookHandle(module, hook, before, self, **options)

    def forward(self, module: torch.nn.Module, around: Callable[[Any, Any, Any], Any]) -> None:
        """Put something around a module's forward, in this thread, see :class:`ForwardHandle`."""
        ForwardHandle(module, functools.partial(_only_in, get_ident(), around), kept=self)


def _only_in(thread: int, around: Any, forward: Any, args: Any, kwargs: Any) -> Any:
    """Call a forward with something around it in one thread, and as it is in the others."""
    return around(forward, args, kwargs) if get_ident() == thread else forward(*args, **kwargs)


class Locked:
    """A lock for the time of a ``with`` statement, which an interrupt cannot leave locked.

    Parameters
    ----------
    lock : threading.RLock or None
        The lock; None is none.
    """

    def __init__(self, lock: Any) -> None:
        self.lock, self.is_held = lock, False

    def __enter__(self) -> None:
        # better unlocked than stuck: nothing takes this long that is behind a lock
        self.is_held = self.lock is not None and self.lock.acquire(timeout=60)

    def __exit__(self, *error: object) -> None:
        if self.is_held:
            self.is_held = bool(self.lock.release())

    def __del__(self) -> None:
        if getattr(self, "is_held", False):
            self.lock.release()


class WatchingHook:
    """A hook that sees what one thread calls.

    Parameters
    ----------
    hook : callable
        A hook of a module.
    everywhere : bool, optional
        Whether it sees what the other threads call, too.
    """

    def __init__(self, hook: Callable[..., Any], everywhere: bool = False) -> None:
        self.hook, self.thread = hook, None if everywhere else get_ident()

    def __call__(self, module: torch.nn.Module, *given: Any) -> Any:
        """Call the hook; another thread may have fewer arguments, while torch has forgotten half of the hook."""
        return self.hook(module, *given) if self.thread is None or get_ident() == self.thread else None


class HookHandle:
    """A hook on a module, until it is removed.

    Parameters
    ----------
    module : torch.nn.Module
        The module.
    hook : callable
        As for ``register_forward_hook``.
    before : bool, optional
        Whether it is a pre-hook, as for ``register_forward_pre_hook``.
    kept : list, optional
        Where it is kept.
    everywhere : bool, optional
        Whether it sees what the other threads call, too.
    **options
        ``with_kwargs``, ``prepend``, ``always_call``.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        hook: Callable[..., Any],
        before: bool = False,
        kept: list[Any] | None = None,
        everywhere: bool = False,
        **options: bool,
    ) -> None:
        self.number, watching = next(_numbers), WatchingHook(hook, everywhere)
        self.places = places_of_hooks(module, before)
        keep(self, kept)
        hooks = self.places[-1]
        for place, name in zip(self.places, ("with_kwargs", "always_call"), strict=False):
            if options.get(name):
                place[self.number] = True
        # how it is called first: another thread may call it right away
        hooks[self.number] = watching
        if options.get("prepend"):
            hooks.move_to_end(self.number, last=False)

    def remove(self) -> None:
        """Take it off."""
        for place in reversed(self.places):
            place.pop(self.number, None)


def places_of_hooks(module: torch.nn.Module, before: bool) -> list[Any]:
    """Return the dicts in which torch has how a module's hooks are called, and the one that has the hooks."""
    if before:
        return [module._forward_pre_hooks_with_kwargs, module._forward_pre_hooks]
    return [module._forward_hooks_with_kwargs, module._forward_hooks_always_called, module._forward_hooks]


def clear(module: torch.nn.Module) -> None:
    """Take off whatever handles put around one module, whoever has them."""
    for place in (*places_of_hooks(module, True), *places_of_hooks(module, False)):
        for number in [number for number in list(place) if number < 0]:
            place.pop(number, None)
    for name in FORWARDS:
        wrapped = vars(module).get(name)
        while isinstance(wrapped, WrappedForward):
            take_off(module, wrapped)
            wrapped = vars(module).get(name)


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
    before : callable, optional
        What the instance had in its place, None if it is that of its class.
    """

    def __init__(
        self, forward: Any, around: Callable[[Any, Any, Any], Any], rule: Hook | None = None, before: Any = None
    ) -> None:
        functools.update_wrapper(self, forward)
        self.forward, self.around, self.rule, self.before, self.active = forward, around, rule, before, True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward."""
        return self.around(self.forward, args, kwargs) if self.active else self.forward(*args, **kwargs)

    def __reduce__(self) -> Any:
        if not self.active:
            return _itself, (self.forward,)
        raise RuntimeError(
            "got an order to copy or to save a model on which a composite is registered, the copy of which would run "
            "the original's forward; expected a model without rules: leave the context first."
        )


def _itself(value: Any) -> Any:
    """Return what is given."""
    return value


def take_off(module: torch.nn.Module, wrapped: WrappedForward) -> None:
    """Take a wrapped forward off a module, wherever it is by now."""
    wrapped.active = False
    places = vars(module)
    for name in FORWARDS:
        if places.get(name) is not wrapped:
            continue
        before = wrapped.before
        # what was under it may have been removed before it
        while isinstance(before, WrappedForward) and not before.active:
            before = before.before
        if before is None and name != "_old_forward":
            places.pop(name, None)
        else:
            # where accelerate keeps what it loads weights around, there always is one
            places[name] = wrapped.forward if before is None else before


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
    kept : list, optional
        Where it is kept.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        around: Callable[[Any, Any, Any], Any],
        rule: Hook | None = None,
        name: str | None = None,
        kept: list[Any] | None = None,
    ) -> None:
        name = name or ("_old_forward" if hasattr(module, "_hf_hook") else "forward")
        self.module = module
        self.wrapped = WrappedForward(getattr(module, name), around, rule, vars(module).get(name))
        keep(self, kept)
        vars(module)[name] = self.wrapped

    def remove(self) -> None:
        """Take it off; whatever was wrapped around it in between stays, and calls the original forward."""
        take_off(self.module, self.wrapped)


class FrozenHandle:
    """Parameters that do not require grad, until it is removed: then ``requires_grad`` means *depends on the input*.

    Parameters
    ----------
    modules : iterable of torch.nn.Module
        Modules with the parameters.
    kept : list, optional
        Where it is kept.
    """

    #: By the parameter's id, the handles that hold it: the last one lets go of it. They keep it, and so its id.
    holding: ClassVar[dict[int, set[FrozenHandle]]] = {}

    def __init__(self, modules: Iterable[torch.nn.Module], kept: list[Any] | None = None) -> None:
        # by their places, too: accelerate puts others there whenever it loads weights
        self.places = [
            (holder, name, parameter)
            for holder in (module._parameters for module in modules)
            for name, parameter in holder.items()
            if parameter is not None and (parameter.requires_grad or id(parameter) in self.holding)
        ]
        keep(self, kept)
        with Locked(_counting):
            for _, _, parameter in self.places:
                self.holding.setdefault(id(parameter), set()).add(self)
                parameter.requires_grad_(False)

    def remove(self) -> None:
        """Restore ``requires_grad``."""
        with Locked(_counting):
            for holder, name, parameter in self.places:
                others = self.holding.get(id(parameter), set())
                others.discard(self)
                if others:
                    continue
                for value in (parameter, holder.get(name)):
                    if value is not None and (value.is_floating_point() or value.is_complex()):
                        value.requires_grad_(True)
                self.holding.pop(id(parameter), None)
        self.places = []
