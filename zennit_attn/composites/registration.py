"""Composites on a model: registered on one instance at a time, in one form, and undone without a trace.

This module does not decide which rule goes where: see :mod:`zennit_attn.composites`.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeVar

import torch
from zennit.core import Composite, Hook, RemovableHandleList
from zennit.rules import ReLUBetaSmooth, ReLUDeconvNet, ReLUGuidedBackprop

from ..engine.handles import ForwardHandle, FrozenHandle
from ..engine.inventory import refuse_foreign
from ..engine.operands import Form, operands
from ..engine.reports import report_once
from ..engine.state import enclosing_policy, is_shielded, watch_rules
from ..errors import UnusedRuleError, UnusedRuleWarning
from ..rules.conversion import ZennitRule, adopt
from ..rules.rule import Rule
from .roles import is_linear

T = TypeVar("T")
M = TypeVar("M", bound=torch.nn.Module)

#: Rules of zennit that modify the gradient of an activation, whatever the relevance.
GRADIENT_RULES = (ReLUDeconvNet, ReLUGuidedBackprop, ReLUBetaSmooth)

#: Attention implementations whose kernels the rules see; others call kernels that no rule can look into.
ATTENTION_IMPLEMENTATIONS = (None, "eager", "sdpa")

_registered: weakref.WeakKeyDictionary[torch.nn.Module, Composite] = weakref.WeakKeyDictionary()


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

        Parameters
        ----------
        module : torch.nn.Module
            The model.

        Raises
        ------
        RuntimeError
            If this composite is registered already, or another one is on a part of the model.
        """
        if self.handles:
            raise RuntimeError(
                f"this {type(self).__name__} is registered already; expected one context at a time. Leave the other "
                "context first, or make a second composite for the second model."
            )
        refuse_nesting(module)
        try:
            self.handles.append(_Registration(self, module))
            self.handles.append(FrozenHandle(module))
            for canonizer in self.canonizers:
                self.handles.extend(canonizer.apply(module))
            ctx: dict[Any, Any] = {}
            rules: dict[str, list[tuple[str, Rule]]] = {}
            for name, child in module.named_modules():
                template = self.module_map(ctx, name, child)
                if template is not None:
                    rule = adopt(template, self.form)
                    self.hook_refs.add(rule)
                    handles = rule.register(child)
                    self.handles.append(_Owned(rule, handles))
                    if handles and not rule.optional:
                        rules.setdefault(repr(rule), []).append((name, rule))
            self.handles.append(ForwardHandle(module, look_for_unused(module, rules, self.strict)))
        except BaseException:
            self.remove()
            raise

    def context(self, module: M) -> AbstractContextManager[M]:
        """Return a context manager inside of which the rules hold for a model.

        Parameters
        ----------
        module : torch.nn.Module
            The model, which the ``with`` statement hands on.
        """
        context: AbstractContextManager[M] = super().context(module)
        return context

    def remove(self) -> None:
        """Remove all rules, then what the canonizers changed, in the reverse order of :meth:`register`."""
        self.handles.reverse()
        errors = []
        for handle in self.handles:
            try:
                handle.remove()
            except Exception as error:  # the others are to be undone all the same
                errors.append(error)
        self.handles.clear()
        self.hook_refs.clear()
        if errors:
            raise errors[0]

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
    model: torch.nn.Module, rules: dict[str, list[tuple[str, Rule]]], strict: bool
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
    """

    def around(forward: Any, args: Any, kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return forward(*args, **kwargs)
        with watch_rules() as fired:
            output = forward(*args, **kwargs)
        for title, copies in rules.items():
            if not any(id(rule) in fired for _, rule in copies):
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


class EntryHandle:
    """Look, until it is removed, for calls that get into a model by another way than its forward.

    Parameters
    ----------
    model : torch.nn.Module
        A model whose operator rules hold for the extent of its forward.
    strict : bool
        Raise :class:`UnusedRuleError` instead of the warning.
    """

    def __init__(self, model: torch.nn.Module, strict: bool) -> None:
        self.model, self.strict = model, strict
        children = [
            (name, child) for name, child in model.named_children() if next(child.parameters(), None) is not None
        ]
        self.hooks = [
            child.register_forward_pre_hook(partial(self.look, name), with_kwargs=True) for name, child in children
        ]

    def look(self, name: str, child: torch.nn.Module, args: Any, kwargs: Any) -> None:
        """Report a call with something that is explained, where no operator rules are on."""
        if torch.compiler.is_compiling() or enclosing_policy() is not None or is_shielded():
            return
        if not operands(args, kwargs):
            return
        message = (
            f"{name!r} was called outside of a forward of {type(self.model).__name__}, where its operator rules do not "
            "hold: got a plain gradient; expected a call of the model itself. To explain what another method returns, "
            "put a module around the model whose forward calls that method, and the composite on it."
        )
        report_once(self.model, (name,), message, UnusedRuleError, UnusedRuleWarning, self.strict)

    def remove(self) -> None:
        """Stop looking."""
        for hook in self.hooks:
            hook.remove()


class _Owned:
    """Keep a rule alive for as long as it is registered."""

    def __init__(self, rule: Rule, handles: RemovableHandleList) -> None:
        self.rule, self.handles = rule, handles

    def remove(self) -> None:
        self.handles.remove()


class _Registration:
    """Remember on which modules a composite is, until it is removed."""

    def __init__(self, composite: Composite, model: torch.nn.Module) -> None:
        self.modules = list(model.modules())
        for module in self.modules:
            _registered[module] = composite

    def remove(self) -> None:
        for module in self.modules:
            _registered.pop(module, None)


def is_registered(model: torch.nn.Module) -> bool:
    """Tell whether a composite is registered on a model."""
    return model in _registered


def refuse_nesting(model: torch.nn.Module) -> None:
    """Raise if a composite, of this package or of zennit, is registered on a part of the model.

    Raises
    ------
    RuntimeError
        If there is one; the message names it.
    """
    refuse_foreign(model.named_modules())
    for name, module in model.named_modules():
        if module in _registered:
            raise RuntimeError(
                f"{type(_registered[module]).__name__} is registered on {name or 'the model'!r} already; expected a "
                "model without rules. Two composites cannot be nested: leave the first context, or join them by "
                "layer_map and name_map."
            )


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
        ctx: dict[Any, Any] = {}
        found = [(name, child, self.mapping(ctx, name, child)) for name, child in module.named_modules()]
        free = [name for name, child, hook in found if hook is None and is_linear(child)]
        if free and any(isinstance(hook, GRADIENT_RULES) for _, _, hook in found):
            raise ValueError(
                f"got a {type(self.composite).__name__} of modified gradients, which leaves {free[0]!r} without a "
                "rule: what it passes there has no Input x Gradient form. Expected rules for all linear layers, or "
                "zennit.attribution.Gradient with the composite as it is."
            )
        super().register(module)


def refuse_hidden(model: torch.nn.Module) -> None:
    """Raise if a model computes something where no rule can look.

    Raises
    ------
    ValueError
        If its attention implementation is not one of :data:`ATTENTION_IMPLEMENTATIONS`, timm checkpoints it, or it
        is a script.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"{name or type(model).__name__!r} is a script of torch.jit, which calls its functions where no rule "
                "sees them; expected a module of Python: the one that it was made of."
            )
        chosen = getattr(getattr(module, "config", None), "_attn_implementation", None)
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
        if getattr(module, "grad_checkpointing", False):
            raise ValueError(
                f"{name or type(model).__name__!r} checkpoints its blocks in a way that computes them again without "
                "rules; expected model.set_grad_checkpointing(False)."
            )


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
