"""Operator rules as hooks: for every function that a module's own forward calls.

They hold down to an inner module with rules of its own. What they do with a function is looked up in
:mod:`zennit_attn.engine.operators`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from zennit.core import RemovableHandleList

from ..engine.checkpoints import CheckpointHandle, OffloadedHandle, checkpointed_layers, offloaded_layers
from ..engine.compiled import uncompile, uncompiled, untraced
from ..engine.finiteness import watch
from ..engine.handles import ForwardHandle, FrozenHandle
from ..engine.inventory import Inventory, refuse_foreign
from ..engine.mode import run_inside
from ..engine.names import names_of
from ..engine.operators import table_of
from ..engine.policy import Policy
from ..engine.reports import report_call
from ..engine.state import applied, chosen_of, enclosing_policy, is_shielded
from ..engine.survey import Survey
from ..engine.threads import StartsHandle
from .rule import Rule


class Operators(Rule):
    """Operator rules for the functions that a module's own forward calls.

    Parameters
    ----------
    attention : {"uniform", "value", "gradient"}, optional
        Rule of softmax attention, see :class:`~zennit_attn.engine.policy.Policy`. None (default) takes over what holds
        around the module.
    product : {"uniform", "gate", "gradient"}, optional
        Rule of products of tensors that depend on the input.
    norm : {"constant", "gradient"}, optional
        Rule of normalisation statistics and denominators.
    activation : {"identity", "gradient"}, optional
        Rule of element-wise functions.
    scan : {"product", "constant"}, optional
        Rule of the parameters of selective state spaces.
    strict : bool, optional
        Raise at an operation without a rule (default False: warn once for each place), and at the first module where
        a value or a backward signal is not finite.

    Raises
    ------
    ValueError
        If a choice is not known.

    Examples
    --------
    >>> import torch
    >>> from zennit_attn.rules import Operators
    >>> Operators(attention="value").parameters()["attention"]
    'value'
    """

    parameter_names: ClassVar[tuple[str, ...]] = ("attention", "product", "norm", "activation", "scan", "strict")

    def __init__(
        self,
        attention: str | None = None,
        product: str | None = None,
        norm: str | None = None,
        activation: str | None = None,
        scan: str | None = None,
        strict: bool = False,
    ) -> None:
        super().__init__()
        given = {"attention": attention, "product": product, "norm": norm, "activation": activation, "scan": scan}
        for name, choice in given.items():
            valid = Policy.choices()[name]
            if choice is not None and choice not in valid:
                raise ValueError(f"got {name}={choice!r}, expected one of {', '.join(map(repr, valid))} or None")
        self.attention, self.product, self.norm, self.activation, self.scan = given.values()
        self.strict = strict
        self._given = {name: choice for name, choice in given.items() if choice is not None}
        self._policies: dict[Policy | None, Policy] = {}

    def policy(self, around: Policy | None) -> Policy:
        """Return the policy inside the module, given the one around it."""
        if around not in self._policies:
            inherited = {} if around is None else vars(around)
            self._policies[around] = Policy(**{**inherited, **self._given})
        return self._policies[around]

    def register(self, module: torch.nn.Module) -> RemovableHandleList:
        """Put the rules around one module's forward, and freeze its parameters until they are removed."""
        names = names_of(module)
        return RemovableHandleList([FrozenHandle(names), *self.put_on(module, names)])

    def put_on(self, module: torch.nn.Module, names: Mapping[torch.nn.Module, str]) -> RemovableHandleList:
        """Put the rules around the forward of a module of which the parameters are frozen.

        Parameters
        ----------
        module : torch.nn.Module
            The module.
        names : mapping of torch.nn.Module to str
            Its modules, and their names in it.
        """
        inventory, checkpoints = Inventory(names), checkpointed_layers(names)
        report_call(module, self.strict)
        # a compiler must find the table there when it traces
        key = self.policy(None).key(self.form)
        table_of(key)
        survey = Survey(module, key, self.form, self.strict, bool(checkpoints))

        def rerun(policy: Policy, forward: Any, args: Any, kwargs: Any = MappingProxyType({})) -> Any:
            return run_inside(policy, self.form, self.strict, module, forward, args, kwargs)

        def again(policy: Policy, forward: Any, args: Any, kwargs: Any) -> Any:
            with uncompiled():
                return rerun(policy, forward, args, kwargs)

        def as_written(forward: Any, args: Any, kwargs: Any) -> Any:
            if torch.is_grad_enabled():
                # a prediction in another thread explains nothing, whatever comes on or off meanwhile
                refuse_foreign(names)
                inventory.check()
            run = partial(rerun, self.policy(None), partial(survey.run, forward), (args, kwargs))
            with uncompiled():
                if not self.strict:
                    return run()
                with watch(module) as check_output:
                    output = run()
                    check_output(chosen_of(output))
                return output

        def around(forward: Any, args: Any, kwargs: Any) -> Any:
            if is_shielded():
                return forward(*args, **kwargs)
            applied(self)
            policy = enclosing_policy()
            if policy is not None:
                return rerun(self.policy(policy), forward, args, kwargs)
            is_enabled = torch.is_grad_enabled()
            try:
                # no graph breaks in a try statement: a compiler traces all of a forward here, or leaves it as written
                if torch.compiler.is_compiling():
                    return rerun(self.policy(None), forward, args, kwargs)
                return untraced(as_written)(forward, args, kwargs)
            except BaseException as error:
                # an interrupt may come in torch's own context managers, which then fail
                torch._C._set_grad_enabled(is_enabled)
                if isinstance(error.__context__, KeyboardInterrupt):
                    raise error.__context__ from None
                raise

        # once more around the module's hooks, which are part of what it computes
        called = ForwardHandle(module, around, name="_call_impl")
        handles = RemovableHandleList([StartsHandle(), ForwardHandle(module, around), called])
        handles += uncompile({module: "", **names})
        handles += [CheckpointHandle(child, again) for child in checkpoints]
        handles += [OffloadedHandle(child, again) for child in offloaded_layers(names) if child not in checkpoints]
        return handles


class NamedOperators(Operators):
    """Base of the rules of a paper: each is one choice of kinds, and has no parameter but ``strict``."""

    parameter_names: ClassVar[tuple[str, ...]] = ("strict",)
    #: Arguments of :class:`Operators`.
    kinds: ClassVar[dict[str, str]] = {}

    def __init__(self, strict: bool = False) -> None:
        super().__init__(**self.kinds, strict=strict)


class AttnLRP(NamedOperators):
    """AttnLRP (Achtibat et al., ICML 2024): uniform products, softmax by its Taylor expansion, LN and identity rule.

    Parameters
    ----------
    strict : bool, optional
        Raise at an operation without a rule.
    """

    kinds: ClassVar[dict[str, str]] = {
        "attention": "uniform",
        "product": "uniform",
        "norm": "constant",
        "activation": "identity",
    }


class CPLRP(NamedOperators):
    """CP-LRP (Ali et al., ICML 2022): attention weights and gates are constants, LN and identity rule.

    Parameters
    ----------
    strict : bool, optional
        Raise at an operation without a rule.
    """

    kinds: ClassVar[dict[str, str]] = {
        "attention": "value",
        "product": "gate",
        "norm": "constant",
        "activation": "identity",
    }


class RelP(NamedOperators):
    """RelP (Jafari et al. 2025): LN, identity and half rule; attention is left to its gradient.

    Parameters
    ----------
    strict : bool, optional
        Raise at an operation without a rule.
    """

    kinds: ClassVar[dict[str, str]] = {
        "attention": "gradient",
        "product": "uniform",
        "norm": "constant",
        "activation": "identity",
    }


class LibraGrad(NamedOperators):
    """LibraGrad (Mehri et al., CVPR 2025): attention weights, gates and statistics are pruned, products halved.

    Parameters
    ----------
    strict : bool, optional
        Raise at an operation without a rule.
    """

    kinds: ClassVar[dict[str, str]] = {
        "attention": "value",
        "product": "uniform",
        "norm": "constant",
        "activation": "identity",
    }


class SelectiveScan(NamedOperators):
    """MambaLRP (Jafari et al., NeurIPS 2024) for a selective state space: its parameters are constants.

    Step sizes, decays, B and C pass no relevance on, so that all of it goes through the state; the gate gets half, and
    SiLU the identity rule.

    Parameters
    ----------
    strict : bool, optional
        Raise at an operation without a rule.
    """

    kinds: ClassVar[dict[str, str]] = {"product": "uniform", "scan": "constant"}
