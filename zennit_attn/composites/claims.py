"""Claims: which thread explains a model with which rules, and who waits until it is done.

Rules are on a model, not in a thread. Calls from several threads share the rules of one composite, and wait for those
of another.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from zennit.core import Composite

from ..engine.handles import Kept, Locked
from ..engine.names import as_written, names_of

#: Seconds for which others wait for a claim that nobody uses in between.
PATIENCE = 300.0

#: The same thread may be interrupted, and begin to undo.
_lock = threading.RLock()
#: All that stand, the first first. A claim knows its modules: most times there is none to be asked.
_claims: list[Claim] = []


class Claim:
    """What one thread has a model for.

    Parameters
    ----------
    composite : zennit.core.Composite or None
        The rules; None for a plain forward and backward pass that is to have none.
    model : torch.nn.Module
        The model.
    """

    def __init__(self, composite: Composite | None, model: torch.nn.Module) -> None:
        self.composite, self.thread = composite, get_ident()
        self.model = model
        self.look()
        self.kinds = type(composite).__name__, type(model).__name__
        #: Who uses it beside its thread.
        self.guests: list[_Guest] = []
        self.is_closing = False
        self.used = time.monotonic()
        # held until it is removed
        self.is_standing, self.standing = True, threading.Lock()
        self.standing.acquire()

    def look(self) -> None:
        """Look what modules there are: those of another thread may have come or gone."""
        #: Modules of the model and their names, and the ids of all that is claimed.
        self.names = names_of(self.model)
        self.ids = {id(self.model), *map(id, self.names)}

    def take(self, handles: list[Any]) -> None:
        """Take the model as soon as nobody else has it, and keep the claim among the handles of its composite.

        Raises
        ------
        RuntimeError
            If this thread has it already, or another one does for too long.
        """
        while True:
            with Locked(_lock):
                other, name = self.before(handles)
                if other is None:
                    handles.append(self)
                    _claims.append(self)
                    return
            if other.thread == self.thread and other.composite is self.composite:
                raise RuntimeError(
                    f"this {other.kinds[0]} is registered already; expected one context at a time. Leave the other "
                    "context first, or make a second composite for the second model. If an interrupt left it there, "
                    "zennit_attn.release(model) takes it off."
                )
            if other.thread == self.thread:
                raise RuntimeError(
                    f"{other.kinds[0]} is registered on {name} already; expected a model without rules. Two composites "
                    "cannot be nested: leave the first context, or join them by layer_map and name_map. If an "
                    "interrupt left it there, zennit_attn.release(model) takes it off."
                )
            other.wait()
            self.look()

    def before(self, handles: list[Any]) -> tuple[Claim | None, str]:
        """Return a claim that has to go before this one can be taken, and what it is on."""
        if handles and isinstance(handles[0], Claim):
            return handles[0], f"a {handles[0].kinds[1]}"
        for claim in _claims:
            # a plain call may be inside of rules that its own thread put on a part of it
            is_inside = claim.thread == self.thread and None in (claim.composite, self.composite)
            if not is_inside and not claim.ids.isdisjoint(self.ids):
                shared = next(module for module in (self.model, *self.names) if id(module) in claim.ids)
                return claim, f"a {type(shared).__name__}"
        return None, ""

    def wait(self) -> None:
        """Wait a while for another thread's claim.

        Raises
        ------
        RuntimeError
            If its thread has ended, or nobody has used it for too long.
        """
        if self.standing.acquire(timeout=0.2):
            self.standing.release()
            return
        is_alive = any(thread.ident == self.thread for thread in threading.enumerate())
        if is_alive and time.monotonic() - self.used < PATIENCE:
            return
        with Locked(_lock):
            if self not in _claims:
                return
        why = f"for {PATIENCE:.0f} s, unused" if is_alive else "which has ended"
        raise RuntimeError(
            f"{self.kinds[0]} is registered on a {self.kinds[1]} by another thread, {why}; expected a context that is "
            "left. Threads that share an open attributor share its rules; zennit_attn.release(model) takes off what "
            "was left behind."
        )

    def close(self) -> None:
        """Let nobody else in, and wait for the calls of other threads."""
        self.is_closing = True
        start = time.monotonic()
        while any(guest.thread != get_ident() for guest in list(self.guests)):
            if time.monotonic() - start > PATIENCE:
                return
            time.sleep(0.001)

    def remove(self) -> None:
        """Give the model back."""
        with Locked(_lock):
            if self in _claims:
                _claims.remove(self)
            if self.is_standing:
                self.is_standing = False
                self.standing.release()


class _Guest:
    """A call that uses the rules of a claim."""

    def __init__(self, claim: Claim, kept: list[Any]) -> None:
        self.claim, self.thread = claim, get_ident()
        kept.append(self)
        claim.guests.append(self)
        claim.used = time.monotonic()

    def remove(self) -> None:
        """Leave."""
        self.claim.used = time.monotonic()
        if self in self.claim.guests:
            self.claim.guests.remove(self)


@contextmanager
def turn(model: torch.nn.Module, composite: Composite | None) -> Iterator[bool]:
    """Wait until a model can be called with a composite, and tell whether it is registered already.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    composite : zennit.core.Composite or None
        The rules; None for those that this thread has put on it, if there are any.
    """
    with Kept() as kept:
        if not shared(model, composite, kept) and composite is None:
            Claim(None, model).take(kept)
        yield bool(kept)


def shared(model: torch.nn.Module, composite: Composite | None, kept: list[Any]) -> bool:
    """Tell whether the rules of a composite are on a model, and use them."""
    with Locked(_lock):
        for claim in reversed(_claims):
            # what torch.compile returned stands for what it was given
            if id(as_written(model)) not in claim.ids:
                continue
            is_mine = claim.thread == get_ident()
            fits = claim.composite is composite or (is_mine and composite is None)
            if fits and claim.composite is not None and (is_mine or not claim.is_closing):
                _Guest(claim, kept)
                return True
    return False


def claims_on(model: torch.nn.Module) -> list[Claim]:
    """Return the claims on a model and its parts."""
    with Locked(_lock):
        ids = {id(module) for module in model.modules()}
        return [claim for claim in _claims if not claim.ids.isdisjoint(ids)]


def is_registered(model: torch.nn.Module) -> bool:
    """Tell whether a composite is registered on a model."""
    with Locked(_lock):
        return any(claim.composite is not None and id(model) in claim.ids for claim in _claims)
