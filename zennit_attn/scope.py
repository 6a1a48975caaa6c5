"""Where rules hold: around the forward of a module, and nowhere else.

:class:`ForwardHandle` puts something around one instance's forward, and takes it off again. :class:`OperatorMode` looks
up every function that is called while it is on; :func:`run_inside` turns it on for the extent of one forward, and
:func:`shield` off, inside of a module that has a layer rule.

This module does not know any rule: see :mod:`zennit_attn.operators` for the table.
"""

from __future__ import annotations

import functools
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType, FunctionType
from typing import Any

import torch
import torch.utils.checkpoint
from torch._C._functorch import maybe_current_level
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from zennit.core import Hook

from .cuts import Cuts
from .operands import Form, operands, unknown
from .operators import PLAIN, Policy, find, numbered, table_of, transformed

#: Packages whose autograd functions are known: this one's rules, and what PyTorch's own functions are made of.
KNOWN_FUNCTIONS = ("zennit_attn", "torch")

#: Autograd functions of quantised linear layers, which pass back through the dequantised weights: linear in the input.
QUANTIZED_FUNCTIONS = (
    "bitsandbytes.autograd._functions.MatMul4Bit",
    "bitsandbytes.autograd._functions.MatMul8bitLt",
    "optimum.quanto.tensor.function.QuantizedLinearFunction",
    "optimum.quanto.tensor.weights.qbytes.WeightQBytesLinearFunction",
)


class UnknownOperationWarning(UserWarning):
    """A function on the relevance path has no rule: what it passes back is the plain gradient."""


class UnknownOperationError(RuntimeError):
    """A function on the relevance path has no rule, under ``strict=True``."""


class CutOffWarning(UserWarning):
    """Something was computed of the input under ``torch.no_grad``: the relevance that goes there is lost."""


class CutOffError(RuntimeError):
    """Something was computed of the input under ``torch.no_grad``, under ``strict=True``."""


class _Nothing(dict[Any, Any]):
    """A table in which every function is plain."""

    def get(self, key: Any, default: Any = None) -> None:
        """Return None, whatever the default."""


class OperatorMode(TorchFunctionMode):
    """Look up each function in a table, while a module's forward runs.

    Parameters
    ----------
    policy : Policy
        How operators are explained.
    form : {"relevance", "gradient"}
        Form of the backward signal.
    strict : bool
        Raise at an unknown operation, instead of warning.
    root : torch.nn.Module
        Module of which the forward turned this mode on, for reports.
    """

    #: The table inside of a module that has a layer rule.
    nothing: Any = _Nothing()

    def __init__(self, policy: Policy, form: Form, strict: bool, root: torch.nn.Module) -> None:
        super().__init__()
        self.policy, self.form, self.strict, self.root = policy, form, strict, root
        #: What was computed of the input under ``torch.no_grad``, and whether there may be something.
        self.cuts: Any = None
        self.following = False
        #: Whether to look at every function, and whether a checkpoint that is known to run with rules is running.
        self.watching = self.rerunning = False
        self.table: Any = self.table_for(policy)

    def table_for(self, policy: Policy) -> Any:
        """Return the table of a policy, in which :meth:`__torch_function__` looks."""
        return table_of(policy.key(self.form))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func`` by its rule."""
        if self.following:
            return self.follow(func, types, args, kwargs or {})
        rule = self.table.get(func, unknown)
        if rule is None:
            return func(*args, **kwargs) if kwargs else func(*args)
        if maybe_current_level() is not None:
            rule = transformed
        return rule(func, args, kwargs or {})

    def follow(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Call ``func`` by its rule, and follow what is computed without a graph, for as long as there is something."""
        self.following = False
        output = OperatorMode.__torch_function__(self, func, types, args, kwargs)
        if self.table is not self.nothing and self.cuts.follow(func, args, kwargs, output):
            report_cut(func)
        if self.watching and not self.rerunning and in_checkpoint() and operands(args, kwargs):
            report(torch.utils.checkpoint.checkpoint)
        self.following = self.watching or bool(self.cuts.tensors) or not torch.is_grad_enabled()
        return output


class TracedMode(OperatorMode):
    """The same for a compiler, which traces what it sees: rules come by their number."""

    nothing = ""

    def table_for(self, policy: Policy) -> str:
        """Return the name of a policy's table."""
        return policy.key(self.form)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func`` by its rule."""
        number = find(self.table, func) if self.table else PLAIN
        if number == PLAIN:
            return func(*args, **kwargs) if kwargs else func(*args)
        return numbered[number](func, args, kwargs or {})


class _State(threading.local):
    """What is on in this thread."""

    mode: OperatorMode | None = None
    shielded: bool = False
    recorder: Any = None
    fired: set[int] | None = None
    kind: type[OperatorMode] = OperatorMode


_state = _State()
_reported: weakref.WeakKeyDictionary[torch.nn.Module, set[tuple[str, ...]]] = weakref.WeakKeyDictionary()


@contextmanager
def record_with(recorder: Any, kind: type[OperatorMode]) -> Iterator[None]:
    """Let a recorder see the calls of functions and of modules with a layer rule, see :mod:`zennit_attn.ledger`."""
    _state.recorder, _state.kind = recorder, kind
    try:
        yield
    finally:
        _state.recorder, _state.kind = None, OperatorMode


def recorder() -> Any:
    """Return what records, None at most times."""
    return _state.recorder


@contextmanager
def watch_rules() -> Iterator[set[int]]:
    """Collect the ids of the rules that are applied in this thread."""
    before, _state.fired = _state.fired, set()
    try:
        yield _state.fired
    finally:
        _state.fired = before


def applied(rule: Hook) -> None:
    """Note that a rule is applied."""
    if _state.fired is not None:
        _state.fired.add(id(rule))


def enclosing_policy() -> Policy | None:
    """Return the policy that holds around the call, None outside of every forward with operator rules."""
    return None if _state.mode is None else _state.mode.policy


def run_inside(
    policy: Policy, form: Form, strict: bool, module: torch.nn.Module, forward: Any, args: Any, kwargs: Any
) -> Any:
    """Run a forward with operator rules on; those of the innermost module that has some decide.

    Raises
    ------
    RuntimeError
        If the forward around it runs in the other form: one graph has one form.
    """
    mode = _state.mode
    if mode is None:
        if not torch.compiler.is_compiling() and maybe_current_level() is not None:
            raise RuntimeError(
                f"{type(module).__name__} got called inside of a transform of torch.func, which hides from the rules "
                "what depends on the input; expected torch.autograd.grad or backward."
            )
        kind = TracedMode if torch.compiler.is_compiling() else _state.kind
        # not `with ... as _state.mode`, of which a compiler makes None
        mode = _state.mode = kind(policy, form, strict, module)
        try:
            with mode:
                return forward(*args, **kwargs)
        finally:
            _state.mode = None
    if mode.form != form:
        raise RuntimeError(
            f"{type(module).__name__} has operator rules in the {form} form, inside of a forward in the {mode.form} "
            "form; one graph has one form: convert the whole composite with input_x_gradient, not single hooks of it."
        )
    before = mode.policy, mode.table
    mode.policy, mode.table = policy, mode.table_for(policy)
    try:
        return forward(*args, **kwargs)
    finally:
        mode.policy, mode.table = before


def refuse_foreign(modules: Iterable[tuple[str, torch.nn.Module]]) -> None:
    """Raise if rules of zennit are registered on a model in zennit's own way.

    Parameters
    ----------
    modules : iterable of tuple
        Names and modules of the model.

    Raises
    ------
    RuntimeError
        If there are any: two composites would each change the signal.
    """
    for name, module in modules:
        if not (module._forward_pre_hooks or module._forward_hooks):
            continue
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            if isinstance(getattr(hook, "__self__", None), Hook):
                raise RuntimeError(
                    f"a composite of zennit is registered on {name or 'the model'!r}; expected a model with one "
                    "composite only. Two cannot be nested: leave the first context, or join them by layer_map and "
                    "name_map."
                )


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

            def again(*inner: Any) -> Any:
                if _state.mode is not None:
                    with known_checkpoint(_state.mode):
                        return function(*inner)
                if not self.active:
                    raise RuntimeError(
                        "the backward pass of a model with gradient checkpointing got to a layer after its composite "
                        "was removed; expected it inside of the context, which has to compute the layer again."
                    )
                return rerun(policy, function, inner)

            return self.before(again, *args, **kwargs)

        module._gradient_checkpointing_func = checkpointed

    def remove(self) -> None:
        """Put the module's own checkpointing back."""
        self.active = False
        self.module._gradient_checkpointing_func = self.before


@contextmanager
def shield() -> Iterator[None]:
    """Intercept nothing: the module inside has a rule of its own."""
    mode, before = _state.mode, _state.shielded
    table = None if mode is None else mode.table
    _state.shielded = True
    if mode is not None:
        mode.table = mode.nothing
    try:
        yield
    finally:
        _state.shielded = before
        if mode is not None:
            mode.table = table


def in_checkpoint() -> bool:
    """Tell whether a checkpoint is running that keeps no graph's tensors, and computes them again without rules."""
    # torch 2.6 does not tell
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: None)
    hooks = top(True)
    return hooks is not None and hooks[0].__module__ == torch.utils.checkpoint.__name__


@contextmanager
def known_checkpoint(mode: OperatorMode) -> Iterator[None]:
    """Report no checkpoint inside, which computes its tensors again with rules."""
    before, mode.rerunning = mode.rerunning, True
    try:
        yield
    finally:
        mode.rerunning = before


def follow_cuts(everything: bool = False) -> None:
    """Follow, from here on, what is computed without a graph.

    Parameters
    ----------
    everything : bool, optional
        Look at every function until the forward ends: not all that turns graphs off is one.
    """
    mode = _state.mode
    if mode is not None:
        # a compiler traces no forward that has them
        mode.cuts = mode.cuts or Cuts()
        mode.following, mode.watching = True, mode.watching or everything


def follow_module(args: Any, kwargs: Any, output: Any) -> None:
    """Follow what was computed without a graph through a module that has a layer rule."""
    mode = _state.mode
    if mode is not None and mode.following:
        with torch._C.DisableTorchFunction():
            mode.cuts.follow(None, args, kwargs, output)


def is_shielded() -> bool:
    """Tell whether the call is inside of a module that has a layer rule."""
    return _state.shielded


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
    """

    def __init__(
        self, module: torch.nn.Module, around: Callable[[Any, Any, Any], Any], rule: Hook | None = None
    ) -> None:
        self.module = module
        self.before = vars(module).get("forward")
        self.wrapped = WrappedForward(module.forward, around, rule)
        module.forward = self.wrapped

    def remove(self) -> None:
        """Take it off; whatever was wrapped around it in between stays, and calls the original forward."""
        self.wrapped.active = False
        if vars(self.module).get("forward") is not self.wrapped:
            return
        del self.module.forward
        if self.before is not None:
            self.module.forward = self.before


class FrozenHandle:
    """Parameters that do not require grad, until it is removed: then ``requires_grad`` means *depends on the input*."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        for parameter in self.parameters:
            parameter.requires_grad_(False)

    def remove(self) -> None:
        """Restore ``requires_grad``."""
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.parameters = []


def innermost() -> torch.nn.Module | None:
    """Return the innermost module in which the code is running."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_locals.get("self")
        if isinstance(module, torch.nn.Module):
            return module
        frame = frame.f_back
    return None


def place() -> tuple[str, str]:
    """Return the dotted name and the type of the innermost module in which the code is running."""
    module = innermost()
    if module is None:
        return "", "no module"
    root = None if _state.mode is None else _state.mode.root
    names = {} if root is None else {child: name or "the model itself" for name, child in root.named_modules()}
    return names.get(module, "a module outside of the model"), type(module).__name__


def run_body(function: Any, args: Any, kwargs: Any) -> Any:
    """Run the body of a function of torch that is written in Python, with the rules on.

    Raises
    ------
    RuntimeError
        If it uses the weights of a module that has a rule: the function calls no module, and would not apply it.
    """
    module = innermost()
    used = {id(value) for value in (*args, *kwargs.values()) if value is not None}
    for name, child in () if module is None else module.named_children():
        rule = getattr(vars(child).get("forward"), "rule", None)
        # a rule that is plain autograd is that of the function, too
        if id(getattr(child, "weight", None)) in used and rule is not None and not getattr(rule, "trivial", False):
            raise RuntimeError(
                f"{function.__name__} takes the weight of {name!r} in {type(module).__name__}, which has the rule "
                f"{rule}, and would not apply it; expected projections without a rule. torch.nn.MultiheadAttention has "
                "rules for them with canonizers=[zennit_attn.MultiheadAttentionCanonizer()], as the presets have it."
            )
    # the same code, which does not ask for a mode before it begins
    body = FunctionType(
        function.__code__, {**function.__globals__, "has_torch_function": lambda _: False}, None, function.__defaults__
    )
    body.__kwdefaults__ = function.__kwdefaults__
    with _state.mode:  # type: ignore[union-attr]
        return body(*args, **kwargs)


def report(function: Any) -> None:
    """Report an operation that has no rule, once for each place.

    Raises
    ------
    UnknownOperationError
        If the composite is strict.
    """
    advice = "register a rule with zennit_attn.register_operator"
    if isinstance(function, type):
        # no rule can look up an autograd function
        advice = "put a function in its place with zennit_attn.FunctionCanonizer"
    report_here(
        function,
        "no rule is known for {function}, called in {name!r} ({kind}): got an operation on the relevance path "
        "that is neither ruled, linear nor routing, and what it passes back is the plain gradient. "
        f"Give the module a layer rule (for example zennit.rules.Pass for an element-wise function), or {advice}.",
        UnknownOperationError,
        UnknownOperationWarning,
    )


def report_cut(function: Any) -> None:
    """Report an operation that takes what was computed of the input under ``torch.no_grad``, once for each place.

    Raises
    ------
    CutOffError
        If the composite is strict.
    """
    report_here(
        function,
        "{function}, called in {name!r} ({kind}), got something that the model computed of its input under "
        "torch.no_grad, and the relevance that goes there is lost; expected a model that computes it with a graph. "
        "Change the setting by which it does not, or explain what it computed as an input of its own.",
        CutOffError,
        CutOffWarning,
    )


def report_here(function: Any, message: str, error: type[Exception], warning: type[Warning]) -> None:
    """Report a function and the place of its call, which the message has as fields, once for both."""
    name, kind = place()
    title = str(getattr(function, "__qualname__", None) or getattr(function, "__name__", repr(function)))
    message = message.format(function=title, name=name, kind=kind)
    if _state.mode is None:
        raise error(message)
    report_once(_state.mode.root, (title, name), message, error, warning, _state.mode.strict)


def report_once(
    model: torch.nn.Module,
    key: tuple[str, ...],
    message: str,
    error: type[Exception],
    warning: type[Warning],
    strict: bool,
) -> None:
    """Raise an error if the composite is strict, else warn, once for each model and key."""
    if strict:
        raise error(message)
    known = _reported.setdefault(model, set())
    if key not in known:
        known.add(key)
        warnings.warn(message, warning, stacklevel=2)


class Inventory:
    """The parameters and modules of a model, as they were when rules were put on it.

    Parameters
    ----------
    modules : iterable of tuple
        Names and modules of the model.
    """

    def __init__(self, modules: Iterable[tuple[str, torch.nn.Module]]) -> None:
        found = list(modules)
        # asked at each forward, and small models feel each look-up
        self.parameters = [(name, module._parameters) for name, module in found if module._parameters]
        self.children = [(name, module._modules, list(module._modules.values())) for name, module in found]

    def check(self) -> None:
        """Raise if the model has changed in a way that the rules would not notice.

        Raises
        ------
        RuntimeError
            If a parameter requires grad, which the rules would take for something that depends on the input, or if a
            module with parameters was put in, which has no rules.
        """
        for name, parameters in self.parameters:
            for parameter in parameters.values():
                if parameter is not None and parameter.requires_grad:
                    key = next(key for key, value in parameters.items() if value is parameter)
                    raise RuntimeError(
                        f"parameter {f'{name}.{key}'.lstrip('.')!r} requires grad inside of the context; expected "
                        "frozen parameters, as the context left them: set requires_grad before it, or after, and "
                        "detach what takes the place of a parameter."
                    )
        for name, children, before in self.children:
            if children and list(children.values()) != before:
                refuse_new(name, children, before)


def refuse_new(name: str, children: dict[str, Any], before: list[Any]) -> None:
    """Raise if there is a module with parameters among the children of a module that was not there before."""
    for key, child in children.items():
        if child is not None and child not in before and next(child.parameters(), None) is not None:
            raise RuntimeError(
                f"{type(child).__name__} was put in as {f'{name}.{key}'.lstrip('.')!r} inside of the context, and has "
                "no rules; expected the modules that were there: change the model before the context."
            )


def report_stale(parameter: str) -> None:
    """Report that a forward used what was computed of a parameter, given by its name, before it was frozen.

    Raises
    ------
    UnknownOperationError
        If the composite is strict.
    """
    report_here(
        parameter,
        "got a tensor that the model computed of its parameter {function} before the context and kept, which requires "
        "grad, and which the rules take for something that depends on the input; expected none: run the model under "
        "torch.no_grad before the context, or make it compute the tensor again.",
        UnknownOperationError,
        UnknownOperationWarning,
    )


def report_functions(output: Any, inputs: Any, checkpoints: bool, form: Form) -> bool:
    """Report every autograd function with a backward pass of its own, and every parameter, that the output comes from.

    They call no function that a mode could look up: fused kernels, and what was written as
    :class:`torch.autograd.Function`.

    Parameters
    ----------
    output : Any
        What the model returned.
    inputs : Any
        Its arguments; what lies before them is not the model's.
    checkpoints : bool
        Whether the model's reentrant checkpoints are known to run with rules.
    form : {"relevance", "gradient"}
        Form of the backward signal: in the gradient form a linear function is right as it is.

    Returns
    -------
    bool
        Whether there was a graph to look at.

    Raises
    ------
    UnknownOperationError
        If the composite is strict.
    """
    given = [value for value in tree_leaves(inputs) if isinstance(value, torch.Tensor)]
    own = {} if _state.mode is None else {id(value): name for name, value in _state.mode.root.named_parameters()}
    own = {key: name for key, name in own.items() if key not in map(id, given)}
    seen: set[Any] = {value.grad_fn for value in given}
    waiting: list[Any] = [
        value.grad_fn for value in tree_leaves(output) if isinstance(value, torch.Tensor) and value.grad_fn
    ]
    has_graph = bool(waiting)
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting.extend(before for before, _ in node.next_functions)
        function = getattr(type(node), "_forward_cls", None)
        if function is None:
            leaf = id(getattr(node, "variable", None))
            if leaf in own:
                report_stale(own[leaf])
            continue
        known = function.__module__.split(".")[0] in KNOWN_FUNCTIONS
        known |= form == "gradient" and f"{function.__module__}.{function.__qualname__}" in QUANTIZED_FUNCTIONS
        if not known or (function is torch.utils.checkpoint.CheckpointFunction and not checkpoints):
            report(function)
    return has_graph
