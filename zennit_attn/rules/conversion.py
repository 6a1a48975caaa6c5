"""zennit's own rules, in both forms.

A rule of zennit computes relevance. :class:`ZennitRule` runs it for one call of a module at a time, with keyword
arguments, several inputs and any nesting of outputs, and changes form on both sides where the gradient form is asked
for.

This module does not convert hooks that register themselves in a way of their own: it refuses them.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils._pytree import tree_flatten, tree_unflatten
from zennit.core import BasicHook, Hook, ParamMod, RemovableHandleList, zero_wrap
from zennit.rules import NoMod, Pass

from ..engine.functions import Snapshot, divide, multiply, require_first_order
from ..engine.handles import Kept, Locked
from ..engine.operands import Form, depends
from ..engine.state import holds_state, shield
from .layer import LayerRule
from .rule import Rule

#: How types of norms end that divide by statistics of their input.
NORMS = ("LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d")


class ZennitRule(LayerRule):
    """A rule of zennit, in either form.

    Parameters
    ----------
    hook : zennit.core.Hook
        Rule to run: a :class:`zennit.core.BasicHook`, or a hook with ``forward`` and ``backward`` of its own.

    Raises
    ------
    TypeError
        If the hook replaces zennit's way to register: it cannot be run for one call at a time.
    """

    parameter_names = ("hook",)

    def __init__(self, hook: Hook) -> None:
        super().__init__()
        names = ("register", "pre_forward", "post_forward", "pre_backward")
        own = [name for name in names if not _inherits(hook, name)]
        if own:
            raise TypeError(
                f"got {type(hook).__name__}, which has its own {', '.join(own)}; expected a hook that only defines "
                "forward and backward. Define those, or derive from zennit_attn.rules.LayerRule."
            )
        self.hook = hook
        #: Held while a registered rule looks at its module's parameters: a backward pass may have others there.
        self.lock: Any = None

    def register(self, module: torch.nn.Module) -> RemovableHandleList:
        """Put the rule around one module's forward."""
        self.lock = threading.RLock()
        return super().register(module)

    def check(self, module: torch.nn.Module) -> None:
        """Raise TypeError if the rule modifies parameters, and ``module`` is no linear map of parameters of its own."""
        if changes_parameters(self.hook) and type(module).__name__.endswith(NORMS):
            raise TypeError(
                f"{type(self.hook).__name__} got {type(module).__name__}, which is not linear in its input, so that "
                "its contributions have no signs to tell; expected a linear layer. Leave norms to the operator rules."
            )
        if changes_parameters(self.hook) and hides_weight(module):
            raise TypeError(
                f"{type(self.hook).__name__} got {type(module).__name__}, which makes its weight of other parameters "
                "(a parametrization, weight_norm, an adapter) or has it in an inner module, and would be used as if it "
                "had no rule; expected a module with a weight of its own: give the rule to the inner one, merge or "
                "remove the parametrization, or use the rule of the same name of zennit_attn.rules."
            )

    def call(self, module: torch.nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Call ``forward`` without a graph, and let the rule be the backward pass."""
        flat, spec = tree_flatten((args, kwargs))
        places = [place for place, value in enumerate(flat) if depends(value)]
        if not places:
            with Locked(self.lock):
                return forward(*args, **kwargs)
        run = _Call(self.hook.copy(), module, forward, self.form, flat, spec, places, self.lock)
        output, output_spec = tree_flatten(run.output)
        explained = [place for place, value in enumerate(output) if _is_float(value)]
        if not explained:
            raise TypeError(
                f"{self.hook!r} on {type(module).__name__} got an output of type {type(run.output).__name__}, in which "
                "no floating-point tensor was found; expected one, or tuples, lists, dicts or ModelOutputs of them."
            )
        results = Explained.apply(run, [output[place] for place in explained], *(flat[place] for place in places))
        for place, result in zip(explained, results, strict=True):
            output[place] = result
        return tree_unflatten(output, output_spec)


def changes_parameters(hook: Hook) -> bool:
    """Tell whether a rule modifies parameters of its module."""
    changes = [ParamMod.ensure(change) for change in getattr(hook, "param_modifiers", None) or ()]
    return any(bool(change.zero_params) or not isinstance(change, NoMod) for change in changes)


def hides_weight(module: torch.nn.Module) -> bool:
    """Tell whether a module computes with parameters that are not its own."""
    if any("." in name for name, _ in module.named_parameters()):
        return True
    return isinstance(getattr(module, "weight", None), Tensor) and "weight" not in module._parameters


def _inherits(hook: Hook, name: str) -> bool:
    return getattr(type(hook), name) in (getattr(Hook, name), getattr(BasicHook, name))


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


class _Call:
    """One call of a module that has a rule of zennit."""

    def __init__(
        self,
        hook: Hook,
        module: torch.nn.Module,
        forward: Any,
        form: Form,
        flat: list[Any],
        spec: Any,
        places: list[int],
        lock: Any,
    ) -> None:
        self.hook, self.module, self.forward, self.form, self.lock = hook, module, forward, form, lock
        self.constants = [None if place in places else value for place, value in enumerate(flat)]
        self.spec, self.places = spec, places
        #: The parameters of the call; others may be there when the backward pass comes.
        with Locked(lock), torch.no_grad():
            self.parameters = [(child._parameters, dict(child._parameters)) for child in module.modules()]
            self.output = self.run([flat[place].detach() for place in places])
        if not isinstance(hook, BasicHook):
            args, kwargs = self.arguments([flat[place] for place in places])
            # zennit 1.0.0 passes keyword arguments, 0.5.1 does not
            accepts = len(inspect.signature(hook.forward).parameters) == 4
            hook.forward(module, args, kwargs, self.output) if accepts else hook.forward(module, args, self.output)

    def arguments(self, inputs: list[Tensor]) -> Any:
        """Return the call's args and kwargs, with these inputs."""
        flat = list(self.constants)
        for place, value in zip(self.places, inputs, strict=True):
            flat[place] = value
        return tree_unflatten(flat, self.spec)

    def run(self, inputs: list[Tensor]) -> Any:
        """Run the forward on these inputs."""
        if getattr(self.module, "inplace", False):
            inputs = [value.clone() for value in inputs]
        args, kwargs = self.arguments(inputs)
        with Locked(self.lock):
            return self.forward(*args, **kwargs)

    @holds_state
    def outputs(self, inputs: list[Tensor]) -> list[Tensor]:
        """Return the floating-point tensors of the forward's output on these inputs, with a graph."""
        with torch.enable_grad(), shield():
            return [value for value in tree_flatten(self.run(inputs))[0] if _is_float(value)]

    def relevance(self, inputs: list[Tensor], relevances: list[Tensor]) -> list[Tensor]:
        """Return the relevance of the inputs, given that of the outputs."""
        if isinstance(self.hook, BasicHook) and type(self.hook).backward is BasicHook.backward:
            return self.contributions(self.hook, inputs, relevances)
        plain: tuple[Any, ...] = (None,) * len(inputs)
        if not isinstance(self.hook, Pass):
            second_order = torch.is_grad_enabled()
            points = inputs if second_order else [value.detach().requires_grad_() for value in inputs]
            plain = torch.autograd.grad(
                self.outputs(points), points, relevances, create_graph=second_order, allow_unused=True
            )
        given = self.hook.backward(self.module, plain, tuple(relevances))
        given = plain if given is None else (given,) if isinstance(given, Tensor) else tuple(given)
        return list(given)

    def contributions(self, hook: BasicHook, inputs: list[Tensor], relevances: list[Tensor]) -> list[Tensor]:
        """Run a BasicHook as zennit does, for any number of inputs and outputs."""
        points, outputs = [], []
        originals = [value.clone() for value in inputs]
        for change_input, change_params, change_output in zip(
            hook.input_modifiers, hook.param_modifiers, hook.output_modifiers, strict=True
        ):
            points.append([change_input(value).requires_grad_() for value in originals])
            with modified(self.module, ParamMod.ensure(change_params)):
                outputs.append([change_output(value) for value in self.outputs(points[-1])])
        signals = []
        for place, relevance in enumerate(relevances):
            signal = hook.gradient_mapper(relevance, [output[place] for output in outputs])
            signals.append([signal] if isinstance(signal, Tensor) else list(signal))
        gradients = torch.autograd.grad(
            [value for output in outputs for value in output],
            [value for point in points for value in point],
            [signals[place][number] for number in range(len(outputs)) for place in range(len(relevances))],
            create_graph=torch.is_grad_enabled(),
        )
        count = len(inputs)
        return [
            hook.reducer([point[place] for point in points], list(gradients[place::count])) for place in range(count)
        ]


@contextmanager
def installed(parameters: list[tuple[dict[str, Any], dict[str, Any]]]) -> Iterator[None]:
    """Give modules the parameters that they had in a call, and then those back that they have now."""
    changed = any(holder[key] is not called[key] for holder, called in parameters for key in called)
    with Kept() as kept:
        for holder, called in parameters if changed else ():
            kept.append(_Held(holder, dict(holder)))
            holder.update(called)
        yield


class _Held:
    """Values of a dict that are put back."""

    def __init__(self, holder: dict[str, Any], values: dict[str, Any]) -> None:
        self.holder, self.values = holder, values

    def remove(self) -> None:
        """Put them back."""
        self.holder.update(self.values)


@contextmanager
def modified(module: torch.nn.Module, change: ParamMod) -> Iterator[None]:
    """Modify parameters as :class:`zennit.core.ParamMod` says, and put the very same objects back."""
    keys = [name for name, _ in module.named_parameters(recurse=False)]
    keys = keys if change.param_keys is None else list(change.param_keys)
    missing = [key for key in keys if not hasattr(module, key)]
    if change.require_params and missing:
        raise RuntimeError(f"got {type(module).__name__} without the parameters {missing}, which its rule modifies")
    modifier = zero_wrap(change.zero_params or [])(change.modifier)
    with Kept() as kept:
        for key in keys:
            # zennit 1.0.0 merges BatchNorm into attributes that hide the parameters of the same name
            holder: dict[str, Any] = vars(module) if key in vars(module) else module._parameters
            value = holder.get(key)
            if value is not None:
                changed = modifier(value.data, key)
                kept.append(_Held(holder, {key: value}))
                holder[key] = torch.nn.Parameter(changed, requires_grad=False)
        yield


class Explained(Function):
    """The outputs of a call; backward: the rule of zennit."""

    @staticmethod
    def forward(ctx: Any, call: _Call, outputs: list[Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
        # saved as tensors are: a layer that is computed again in the backward pass keeps no weights in between
        ctx.call, parameters = call, call.parameters
        call.parameters = []
        found = [(holder, key, value) for holder, called in parameters for key, value in called.items()]
        ctx.places = [(holder, key) for holder, key, value in found if value is not None]
        values = [value for _, _, value in found if value is not None]
        # what a module returns may be its own parameter: the graph goes onto an alias
        results = tuple(output.detach() for output in outputs)
        if call.form == "relevance":
            ctx.save_for_backward(*values)
            ctx.inputs = [Snapshot(value) for value in inputs]
        else:
            ctx.save_for_backward(*values, *inputs)
            ctx.outputs = [(output.detach(), output._version) for output in results]
        return results

    @staticmethod
    def backward(ctx: Any, *signals: Tensor) -> tuple[Tensor | None, ...]:
        # first of all: a checkpoint may run the module here, after which its weights are unloaded
        saved = ctx.saved_tensors
        values, inputs = saved[: len(ctx.places)], list(saved[len(ctx.places) :])
        weights = [(holder, {key: value}) for (holder, key), value in zip(ctx.places, values, strict=True)]
        with Locked(ctx.call.lock), installed(weights):
            return Explained.explain(ctx, inputs, signals)

    @staticmethod
    def explain(ctx: Any, inputs: list[Tensor], signals: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
        """Return the signals at the inputs, given those at the outputs."""
        if ctx.call.form == "relevance":
            require_first_order()
            return None, None, *_checked(ctx.call, [value.tensor for value in ctx.inputs], list(signals))
        outputs = [output for output, _ in ctx.outputs]
        written = any(output._version != version for output, version in ctx.outputs)
        if written or torch.is_grad_enabled():
            # an activation wrote over the outputs, or their graph is asked for
            outputs = ctx.call.outputs(inputs)
        relevances = [multiply(output, signal) for output, signal in zip(outputs, signals, strict=True)]
        given = _checked(ctx.call, inputs, relevances)
        return None, None, *(divide(relevance, input) for relevance, input in zip(given, inputs, strict=True))


def _checked(call: _Call, inputs: list[Tensor], relevances: list[Tensor]) -> list[Tensor]:
    """Return the relevance of the inputs, if it has their shapes."""
    given = call.relevance(inputs, relevances)
    got, expected = [tuple(value.shape) for value in given], [tuple(value.shape) for value in inputs]
    if got != expected:
        raise ValueError(
            f"{type(call.hook).__name__} on {type(call.module).__name__} got relevance of shapes {got}, expected those "
            f"of the inputs, {expected}: choose a rule that fits the module, such as zennit.rules.Norm."
        )
    return given


def adopt(hook: Hook, form: Form) -> Rule:
    """Return a copy of a hook, in a form.

    Parameters
    ----------
    hook : zennit.core.Hook
        Rule of this package or of zennit.
    form : {"relevance", "gradient"}
        Form of the backward signal.
    """
    if not isinstance(hook, Hook):
        raise TypeError(f"got {hook!r} of type {type(hook).__name__}, expected a zennit.core.Hook or Composite")
    rule = hook.copy() if isinstance(hook, Rule) else ZennitRule(hook)
    rule.form = form
    return rule
