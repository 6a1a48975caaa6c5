"""Composites on a model: registered on one instance at a time, in one form, and undone without a trace.

This module does not decide which rule goes where: see :mod:`zennit_attn.composites`.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from threading import get_ident
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from zennit.core import Composite, Hook, RemovableHandleList
from zennit.rules import ReLUBetaSmooth, ReLUDeconvNet, ReLUGuidedBackprop

from ..engine.compiled import uncompile, uncompiled
from ..engine.handles import ForwardHandle, FrozenHandle, HookHandle, clear, keeping, undo
from ..engine.inventory import refuse_foreign
from ..engine.mode import heal
from ..engine.names import as_written, names_of
from ..engine.operands import Form, operands
from ..engine.reports import report_once
from ..engine.state import enclosing_policy, holds_state, is_shielded, watch_rules
from ..errors import UnusedRuleError, UnusedRuleWarning
from ..rules.conversion import ZennitRule, adopt
from ..rules.operators import Operators
from ..rules.rule import Rule
from .assignments import Assigned
from .claims import Claim, claims_on
from .roles import is_linear

T = TypeVar("T")
M = TypeVar("M", bound=torch.nn.Module)

#: Rules of zennit that modify the gradient of an activation, whatever the relevance.
GRADIENT_RULES = (ReLUDeconvNet, ReLUGuidedBackprop, ReLUBetaSmooth)

#: Attention implementations whose kernels the rules see; others call kernels that no rule can look into.
ATTENTION_IMPLEMENTATIONS = (None, "eager", "sdpa")
#: Modules that call another one where no rule can look.
WRAPPERS = (torch.jit.ScriptModule, torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)


class ScopedComposite(Composite):
    """Base of composites that hold for one model instance, in one form, and undo everything.

    Parameters
    ----------
    module_map : callable
        ``(ctx, name, module) -> Hook or None``, as in :class:`zennit.core.Composite`.
    canonizers : list of zennit.canonizers.Canonizer, optional
        Canonizers to apply before the hooks.
    """

    form: Form = "relevance"
    #: Raise where otherwise a warning says that something is not explained as asked for.
    strict: bool = False

    def register(self, module: torch.nn.Module) -> None:
        """Apply canonizers and rules to a model, and freeze its parameters, until :meth:`remove`.

        Where another thread has rules on a part of the model, it waits until they are off.

        Parameters
        ----------
        module : torch.nn.Module
            The model.

        Raises
        ------
        RuntimeError
            If this thread has this composite registered already, or another one on a part of the model; or if another
            thread has one there for too long.
        """
        refuse_functions(module)
        heal()
        claim = Claim(self, module)
        try:
            claim.take(self.handles)
            refuse_foreign(claim.names)
            with keeping(self.handles):
                self.put_on(module, claim.names)
        except BaseException:
            if claim in self.handles:
                self.remove()
            raise

    def put_on(self, module: torch.nn.Module, names: Mapping[torch.nn.Module, str]) -> None:
        """Apply canonizers and rules to a model, of which the modules have these names, and keep their handles."""
        FrozenHandle(names)
        before = len(self.handles)
        for canonizer in self.canonizers:
            self.handles.extend(canonizer.apply(module))
        if len(self.handles) > before:
            # modules may have been put in
            names = names_of(module)
        rules: dict[str, list[tuple[str, Rule]]] = {}
        for name, child, template in self.assign(module, names):
            if isinstance(template, Rule) and template.is_plain(self.form):
                continue
            rule = adopt(template, self.form)
            self.hook_refs.add(rule)
            if not name and isinstance(rule, Operators):
                # around what torch.compile returned, too, which has hooks of its own
                handles = rule.put_on(module, names)
            else:
                handles = rule.register(child)
            self.handles.append(_Owned(rule, handles))
            if handles and not rule.optional:
                rules.setdefault(repr(rule), []).append((name, rule))
        uncompile({module: "", **names})
        ForwardHandle(module, look_for_unused(module, rules, self.strict, self.handles[0]))

    def assign(self, module: torch.nn.Module, names: Mapping[torch.nn.Module, str]) -> Assigned:
        """Return name, module and rule of each module of a model that has a rule."""
        ctx: dict[Any, Any] = {}
        found = ((name, child, self.module_map(ctx, name, child)) for child, name in names.items())
        return [(name, child, rule) for name, child, rule in found if rule is not None]

    def context(self, module: M) -> AbstractContextManager[M]:
        """Return a context manager inside of which the rules hold for a model.

        Parameters
        ----------
        module : torch.nn.Module
            The model, which the ``with`` statement hands on.
        """
        return Scope(self, module)

    def remove(self) -> None:
        """Remove all rules, then what the canonizers changed, in the reverse order of :meth:`register`.

        Calls of other threads that use the rules come to their end before. An interrupt is raised when all is undone.
        """
        try:
            for claim in self.handles[:1]:
                claim.close()
        finally:
            try:
                undo(self.handles)
            finally:
                heal()

    def inactive(self) -> Any:
        """Not possible: rules act in the forward pass.

        Raises
        ------
        RuntimeError
            Always.
        """
        raise RuntimeError(
            "inactive() got a composite whose rules act in the forward pass, so that a backward pass cannot turn them "
            "off; leave the context for the plain gradient. Second-order gradients (create_graph=True) of the "
            "gradient form go through the rules, too."
        )

    def in_gradient_form(self) -> ScopedComposite:
        """Return a copy in the Input x Gradient form."""
        twin = copy.copy(self)
        twin.handles, twin.hook_refs, twin.form = RemovableHandleList(), weakref.WeakSet(), "gradient"
        twin.module_map = getattr(twin, self.module_map.__name__)
        return twin


def look_for_unused(
    model: torch.nn.Module, rules: dict[str, list[tuple[str, Rule]]], strict: bool, claim: Claim
) -> Callable[[Any, Any, Any], Any]:
    """Return what to put around a model's forward to report rules that were not applied in it.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    rules : dict of str to list of tuple
        For each rule, the names of its modules and its copy there. One that is applied stands for all: a mixture of
        experts does not call each.
    strict : bool
        Raise :class:`UnusedRuleError` instead of the warning.
    claim : Claim
        By which the rules are on the model.
    """

    @holds_state
    def around(forward: Any, args: Any, kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return forward(*args, **kwargs)
        with uncompiled(), watch_rules() as fired:
            output = forward(*args, **kwargs)
        for title, copies in rules.items():
            # the rules may have gone while another thread was predicting
            if not claim.is_closing and not any(id(rule) in fired for _, rule in copies):
                report_unused(model, title, *copies[0], strict)
        return output

    return around


def report_unused(model: torch.nn.Module, title: str, name: str, rule: Rule, strict: bool) -> None:
    """Report a rule that no forward applied, once for each model."""
    shown = type(rule.hook).__name__ if isinstance(rule, ZennitRule) else title
    message = (
        f"{shown} was applied nowhere in a forward of {type(model).__name__}: got it for {name or 'the model'!r}, "
        "which was not called, or only inside of a module with a rule of its own; expected a module that is. What "
        "uses its weights is explained by the rules around it: give the rule to that module, or leave it out."
    )
    report_once(model, (title,), message, UnusedRuleError, UnusedRuleWarning, strict)


class Entries:
    """Look, until its hooks are removed, for calls that get into a model by another way than its forward.

    Parameters
    ----------
    model : torch.nn.Module
        A model whose operator rules hold for the extent of its forward.
    strict : bool
        Raise :class:`UnusedRuleError` instead of the warning.
    """

    def __init__(self, model: torch.nn.Module, strict: bool) -> None:
        self.model, self.strict = model, strict
        for name, child in as_written(model).named_children():
            if next(child.parameters(), None) is not None:
                HookHandle(child, partial(self.look, name), before=True, everywhere=True, with_kwargs=True)

    def look(
        self, name: str, child: torch.nn.Module, args: Any, kwargs: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        """Report a call with something that is explained, where no operator rules are on."""
        if torch.compiler.is_compiling() or enclosing_policy() is not None or is_shielded():
            return
        if not operands(args, dict(kwargs)):
            return
        message = (
            f"{name!r} was called outside of a forward of {type(self.model).__name__}, where its operator rules do not "
            "hold: got a plain gradient; expected a call of the model itself. To explain what another method returns, "
            "put a module around the model whose forward calls that method, and the composite on it."
        )
        report_once(self.model, (name,), message, UnusedRuleError, UnusedRuleWarning, self.strict)


class Scope(AbstractContextManager[M]):
    """A composite on a model for the time of a ``with`` statement.

    An interrupt may come before the first line of ``__exit__``: then the rules are taken off with the scope.

    Parameters
    ----------
    composite : ScopedComposite
        The rules.
    model : torch.nn.Module
        The model.
    """

    def __init__(self, composite: ScopedComposite, model: M) -> None:
        self.composite, self.model = composite, model
        #: What the composite had a model for before.
        self.before: Any = None
        self.is_open = False

    def __enter__(self) -> M:
        self.before = next(iter(self.composite.handles), None)
        self.is_open = True
        self.composite.register(self.model)
        return self.model

    def __exit__(self, *error: object) -> None:
        try:
            self.composite.remove()
        finally:
            self.leave()

    def leave(self) -> None:
        """Take off what is left of what this scope put on."""
        if self.is_open:
            claim = next(iter(self.composite.handles), None)
            if isinstance(claim, Claim) and claim is not self.before and claim.thread == get_ident():
                self.composite.remove()
            self.is_open = False

    def __del__(self) -> None:
        if getattr(self, "is_open", False):
            self.leave()


def release(model: torch.nn.Module) -> None:
    """Take all rules off a model, whoever put them on, and forget what this thread was doing.

    Contexts do that by themselves. This is for who is refused a model that an interrupt, or a thread that has ended,
    left with rules on it.

    Parameters
    ----------
    model : torch.nn.Module
        The model; nothing may be running in it.

    Examples
    --------
    >>> import torch, zennit_attn
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    >>> zennit_attn.AttnLRPComposite().register(model)
    >>> zennit_attn.release(model)
    >>> "forward" in vars(model)
    False
    """
    for claim in claims_on(model):
        claim.guests.clear()
        if claim.composite is not None and claim in claim.composite.handles:
            claim.composite.remove()
        claim.remove()
    for module in model.modules():
        clear(module)
    heal()


class _Owned:
    """Keep a rule alive for as long as it is registered."""

    def __init__(self, rule: Rule, handles: RemovableHandleList) -> None:
        self.rule, self.handles = rule, handles

    def remove(self) -> None:
        self.handles.remove()


class ConvertedComposite(ScopedComposite):
    """Any composite of zennit, with every rule in the gradient form.

    Parameters
    ----------
    composite : zennit.core.Composite
        Composite to convert; it stays as it is.
    """

    form = "gradient"

    def __init__(self, composite: Composite) -> None:
        self.composite = composite
        super().__init__(module_map=self.mapping, canonizers=composite.canonizers)

    def __repr__(self) -> str:
        # zennit's composites keep no arguments that could be typed in again
        return f"<input_x_gradient of {type(self.composite).__name__}>"

    def mapping(self, ctx: dict[Any, Any], name: str, module: torch.nn.Module) -> Hook | None:
        """Return the rule of a module."""
        return self.composite.module_map(ctx, name, module)

    def register(self, module: torch.nn.Module) -> None:
        """Apply the composite to a model, see :meth:`ScopedComposite.register`.

        Raises
        ------
        ValueError
            If the composite is one of modified gradients: relevance has no part in it.
        """
        refuse_functions(module)
        ctx: dict[Any, Any] = {}
        found = [(name, child, self.mapping(ctx, name, child)) for child, name in names_of(module).items()]
        free = [name for name, child, hook in found if hook is None and is_linear(child)]
        if free and any(isinstance(hook, GRADIENT_RULES) for _, _, hook in found):
            raise ValueError(
                f"got a {type(self.composite).__name__} of modified gradients, which leaves {free[0]!r} without a "
                "rule: what it passes there has no Input x Gradient form. Expected rules for all linear layers, or "
                "zennit.attribution.Gradient with the composite as it is."
            )
        super().register(module)


def refuse_functions(model: Any) -> None:
    """Raise TypeError if a model is no module, as what ``torch.compile`` makes of a function is none."""
    if not isinstance(model, torch.nn.Module):
        raise TypeError(
            f"got a model of type {type(model).__name__}, expected a torch.nn.Module: a function, compiled or not, "
            "hides the modules that rules are put on. Give the module that it calls."
        )


def refuse_hidden(model: torch.nn.Module, names: Mapping[torch.nn.Module, str]) -> None:
    """Raise if a model, of which the modules have these names, computes something where no rule can look.

    Raises
    ------
    ValueError
        If its attention implementation is not one of :data:`ATTENTION_IMPLEMENTATIONS`, timm checkpoints it, or it
        is a script.
    """
    told: dict[type, bool] = {}
    for module, name in names.items():
        kind, own = type(module), vars(module)
        if kind not in told:
            told[kind] = issubclass(kind, WRAPPERS) or hasattr(kind, "config") or hasattr(kind, "grad_checkpointing")
        # most say nothing, which is found out fast
        if not (told[kind] or "config" in own or "grad_checkpointing" in own):
            continue
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"{name or type(model).__name__!r} is a script of torch.jit, which calls its functions where no rule "
                "sees them; expected a module of Python: the one that it was made of."
            )
        chosen = getattr(said(module, "config"), "_attn_implementation", None)
        if isinstance(chosen, str) and chosen not in ATTENTION_IMPLEMENTATIONS:
            raise ValueError(
                f"{name or type(model).__name__!r} got attn_implementation={chosen!r}, expected 'sdpa' or 'eager': "
                "its kernel would pass back the plain gradient. Load the model with attn_implementation='sdpa'."
            )
        if isinstance(module, torch.nn.parallel.DistributedDataParallel) or (
            isinstance(module, torch.nn.DataParallel) and len(module.device_ids) > 1
        ):
            raise ValueError(
                f"{name or type(model).__name__!r} is a {type(module).__name__}, whose replicas and hooks have no "
                "rules; expected the module inside: explain model.module."
            )
        if said(module, "grad_checkpointing"):
            raise ValueError(
                f"{name or type(model).__name__!r} checkpoints its blocks in a way that computes them again without "
                "rules; expected model.set_grad_checkpointing(False)."
            )


def said(module: torch.nn.Module, name: str) -> Any:
    """Return an attribute of a module or of its class, None if there is none."""
    return getattr(module, name) if name in vars(module) or hasattr(type(module), name) else None


def input_x_gradient(rule: T) -> T:
    """Convert a composite, or a single hook, to the Input x Gradient form.

    In this form the backward signal at a tensor ``a`` is ``g_a = R_a / a``: input times gradient is relevance, at any
    tensor. Linear operations need no rule in it, which makes it the fast one.

    Parameters
    ----------
    rule : zennit.core.Composite or zennit.core.Hook
        What to convert; it stays as it is.

    Returns
    -------
    zennit.core.Composite or zennit.core.Hook
        The same rules, each in the gradient form.

    Raises
    ------
    TypeError
        If something else is given, or a hook that cannot be converted.

    Examples
    --------
    >>> from zennit.rules import Epsilon
    >>> from zennit_attn import input_x_gradient
    >>> input_x_gradient(Epsilon()).form
    'gradient'
    """
    if isinstance(rule, ScopedComposite):
        return rule.in_gradient_form()
    if isinstance(rule, Composite):
        return ConvertedComposite(rule)
    return adopt(rule, "gradient")
