"""Capture: the forward and backward pass of an attributor as one graph, replayed for inputs of one shape.

The graph has the operations of PyTorch alone: no hooks, no rules in Python, no graph of autograd. What it depends on
beside its input is looked at in each call, so that it is never replayed for something else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten

from .attribution import InputXGradient, Propagated, drops
from .errors import InputError, NotFiniteError, StaleError
from .inputs import decisions, split_input
from .targets import Each

#: Largest difference of what is replayed from what is not, of the largest value: both have the same operations.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Recording:
    """A graph, and how what it returns is put together."""

    graph: Callable[..., Any]
    structure: TreeSpec

    def play(self, given: Sequence[Tensor]) -> Propagated:
        """Return what a pass gives for an input."""
        with torch.no_grad():
            flat = self.graph(*given)
        output, explained, inputs, inner = tree_unflatten(flat, self.structure)
        return Propagated(output, explained, inputs, inner, {}, 1.0)


class Captured(InputXGradient[Any]):
    """An attributor that replays a graph: what :func:`capture` returns.

    It is called as the attributor is, and returns the same. Nothing is registered on the model.
    """

    def __init__(self, attributor: InputXGradient[Any], target: Any, recording: Recording, state: State) -> None:
        super().__init__(
            attributor.model,
            None,
            target,
            attributor.modules,
            attributor.output_key,
            attributor.argument,
        )
        self.recorded, self.state = recording, state

    def propagate(
        self, given: Mapping[str | None, Tensor], rest: Mapping[str, Any], attr_output_fn: Any, *_: Any, **__: Any
    ) -> Propagated:
        """Replay the graph.

        Raises
        ------
        StaleError
            If the graph is of something else.
        """
        self.state.check(given, rest, attr_output_fn)
        found = self.recorded.play(list(given.values()))
        if not all(bool(part.isfinite().all()) for parts in found.inputs.values() for part in parts):
            raise NotFiniteError(
                "got relevance that is not finite from a captured graph; expected finite numbers: the attributor that "
                "it was captured from names the first module at which they are not."
            )
        return found


class Constants(TorchDispatchMode):
    """Knows what depends on no input, such as positions and a mask, of which models ask for values in Python.

    Parameters
    ----------
    constants : sequence of torch.Tensor
        Arguments that are the same in each call.
    """

    def __init__(self, constants: Sequence[Tensor]) -> None:
        super().__init__()
        # held, so that no other tensor gets the place of one of them
        self.known = {id(value): value for value in constants}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function; outside of the graph if it asks for values of constants."""
        kwargs = kwargs or {}
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        # numbers that Python makes a tensor of are constants, too
        is_made = func is torch.ops.aten.lift_fresh.default
        is_constant = is_made or all(id(value) in self.known for value in tensors)
        is_constant = is_constant and torch.Tag.nondeterministic_seeded not in func.tags
        asks = torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags
        with disable_proxy_modes_tracing() if is_constant and asks else nullcontext():
            output = func(*args, **kwargs)
        if is_constant:
            self.known.update((id(value), value) for value in tree_leaves(output) if isinstance(value, Tensor))
        elif func._schema.is_mutable:
            self.known.pop(id(args[0]), None)
        return output


class State:
    """What a graph depends on beside the values of its input.

    Parameters
    ----------
    attributor : InputXGradient
        Whose graph it is.
    given, rest : mapping
        The explained arguments, and the others.
    target : Any
        What is explained.
    """

    def __init__(
        self, attributor: InputXGradient[Any], given: Mapping[str | None, Tensor], rest: Mapping[str, Any], target: Any
    ) -> None:
        self.shapes = {name: shape_of(value) for name, value in given.items()}
        self.rest, self.structure = tree_flatten(dict(rest))
        self.target = target
        self.composite, self.rules = attributor.composite, repr(attributor.composite)
        self.autocast = autocast_of(given)
        self.modules = [(name, module, mode_of(module)) for name, module in attributor.model.named_modules()]
        self.tensors = [
            (f"{name}.{key}", held, key, value, value.dtype, value.device)
            for name, module, _ in self.modules
            for held in (module._parameters, module._buffers)
            for key, value in held.items()
            if value is not None
        ]

    def check(self, given: Mapping[str | None, Tensor], rest: Mapping[str, Any], target: Any) -> None:
        """Raise StaleError if something is not as it was."""
        shapes = {name: shape_of(value) for name, value in given.items()}
        if shapes != self.shapes:
            raise stale("an input", shapes, self.shapes)
        flat, structure = tree_flatten(dict(rest))
        if structure != self.structure or not all(map(same, flat, self.rest)):
            raise stale("other arguments", sorted(rest), "those of the example, with the same values")
        if target is not self.target and target != self.target:
            raise stale("a target", target, self.target)
        if autocast_of(given) != self.autocast:
            raise stale("autocast", autocast_of(given), self.autocast)
        if repr(self.composite) != self.rules:
            raise stale("rules", repr(self.composite), self.rules)
        for name, held, key, value, dtype, device in self.tensors:
            if held.get(key) is not value:
                raise stale("a model", f"another {name!r}", "the tensors that it had, whose values may change")
            if value.dtype != dtype or value.device != device:
                raise stale("a model", f"{name!r} of another dtype or on another device", f"{dtype} on {device}")
        for name, module, mode in self.modules:
            if mode_of(module) != mode:
                raise stale("a model", f"{name or 'a root'!r} in another mode or with other hooks", "it as it was")


def stale(what: str, got: Any, expected: Any) -> StaleError:
    """Return the error of a graph that is of something else."""
    return StaleError(f"a captured graph got {what}: {got}; expected {expected}: capture it again.")


def shape_of(value: Tensor) -> tuple[Any, ...]:
    """Return what an input has to have in common with the example."""
    return tuple(value.shape), value.dtype, value.device


def autocast_of(given: Mapping[Any, Tensor]) -> Any:
    """Return whether and in what operations are cast on the device of an input."""
    kind = next(iter(given.values())).device.type
    return torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)


def mode_of(module: torch.nn.Module) -> tuple[Any, ...]:
    """Return what a module does otherwise than its class says."""
    implementation = getattr(vars(module).get("config"), "_attn_implementation", None)
    hooks = len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks)
    return module.training, hooks, implementation, vars(module).get("forward")


def same(one: Any, other: Any) -> bool:
    """Tell whether two arguments are equal."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or (shape_of(one) == shape_of(other) and torch.equal(one, other))
    return type(one) is type(other) and bool(one == other)


def capture(
    attributor: InputXGradient[Any],
    input: Tensor | Mapping[str, Any],
    attr_output: Any = None,
    backend: str | Callable[..., Any] | None = None,
) -> Captured:
    """Capture the forward and backward pass of an attributor as a graph, to be replayed for inputs of one shape.

    Replaying costs what the operations cost: no hooks, no rules in Python. On a CPU a small model is explained in less
    time than its own eager forward and backward pass take.

    Parameters
    ----------
    attributor : InputXGradient
        The attributor, with its composite.
    input : torch.Tensor or mapping
        An example. Its explained arguments may have other values later; all others, such as the mask, are part of the
        graph.
    attr_output : callable, optional
        What is explained, by default that of the attributor. A target that chooses, as
        :class:`~zennit_attn.targets.MaxLogit`, chooses again in each call.
    backend : str or callable, optional
        Compile the graph, by a backend of :func:`torch.compile`, such as ``"inductor"``. By default it is replayed as
        it is.

    Returns
    -------
    Captured
        Called as the attributor is. It raises :class:`~zennit_attn.errors.StaleError` for another shape, dtype or
        device, other arguments beside the input, another target, and where the model has other parameters, hooks or
        modes, or the composite other rules. Values of parameters may change in place.

    Raises
    ------
    InputError
        If the passes depend on values of the input in more than numbers, or cannot be captured.

    Examples
    --------
    >>> import torch
    >>> from zennit_attn import CPLRPComposite, InputXGradient, capture, targets
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> captured = capture(InputXGradient(model, CPLRPComposite()), torch.ones(1, 3), targets.MaxLogit())
    >>> output, relevance = captured(torch.rand(1, 3))
    """
    target = attributor.attr_output_fn if attr_output is None else attr_output
    check(attributor, target)
    given, rest = split_input(input, attributor.argument)
    if takes_cache(attributor.model) and "use_cache" not in rest:
        rest = {**rest, "use_cache": False}
    names = list(given)
    is_open = attributor.composite is None or attributor.composite.handles
    state = State(attributor, given, {key: value for key, value in rest.items() if key in dict_of(input)}, target)

    def passes(values: Sequence[Tensor]) -> Propagated:
        return attributor.propagate(dict(zip(names, values, strict=True)), rest, target)

    structure: list[TreeSpec] = []

    constants = [value for value in tree_leaves(rest) if isinstance(value, Tensor)]

    def flat(*values: Tensor) -> list[Any]:
        with Constants(constants):
            found = passes(values)
        leaves, spec = tree_flatten((plain(found.output), found.explained, found.inputs, found.inner))
        structure[:] = [spec]
        return leaves

    values = list(given.values())
    with nullcontext() if is_open else attributor:
        with decisions.noting() as noted:
            expected = [passes(values)]
        other = [turned(value) for value in values]
        expected.append(passes(other))
        try:
            with decisions.telling(noted):
                graph = make_fx(flat)(*values)
        except (RuntimeError, TypeError, ValueError, StopIteration) as error:
            raise InputError(
                f"cannot capture {type(attributor.model).__name__} ({str(error).splitlines()[0]}); expected a model "
                "whose forward does not depend on values of its input in Python: use the attributor as it is"
            ) from error
    for node in graph.graph.nodes:
        # there is no graph of autograd to be detached from
        if node.target is torch.ops.aten.detach.default:
            node.replace_all_uses_with(node.args[0])
    graph.graph.eliminate_dead_code()
    graph.recompile()
    run = graph if backend is None else torch.compile(graph, backend=backend, fullgraph=True)
    recording = Recording(run, structure[0])
    for given_values, wanted in zip((values, other), expected, strict=True):
        if not agree(recording.play(given_values), wanted):
            raise InputError(
                f"cannot capture {type(attributor.model).__name__}: for another input of this shape the graph gives "
                "other relevance than the model itself; use the attributor as it is"
            )
    return Captured(attributor, target, recording, state)


def check(attributor: InputXGradient[Any], target: Any) -> None:
    """Raise InputError for what is not captured."""
    halves = [parameter for parameter in attributor.model.parameters() if parameter.dtype == torch.float16]
    for wrong, what in (
        (attributor.create_graph, "create_graph=True"),
        (bool(attributor.latents), "latents"),
        (isinstance(target, Each), "several targets"),
        (attributor.model.training and drops(attributor.model), "a model that drops values at random"),
        (bool(halves), "a model in float16, whose signals are scaled by their values"),
    ):
        if wrong:
            raise InputError(f"capture got {what}, expected none: use the attributor as it is")


def takes_cache(model: torch.nn.Module) -> bool:
    """Tell whether a model returns a cache of its keys and values unless told not to."""
    return "use_cache" in inspect.signature(model.forward).parameters


def dict_of(input: Any) -> Mapping[str, Any]:
    """Return the arguments of a batch by their names."""
    return input if isinstance(input, Mapping) else {}


def plain(output: Any) -> Any:
    """Return an output without what is neither a tensor nor a number."""
    return tree_map(lambda value: value if isinstance(value, (Tensor, int, float, str)) else None, output)


def turned(value: Tensor) -> Tensor:
    """Return another input of the same shape: in another order, and of other numbers if it has some."""
    return value.flip(-1) * 0.75 if value.is_floating_point() else value.flip(-1).roll(1, -1)


def agree(found: Propagated, expected: Propagated) -> bool:
    """Tell whether two passes gave the same."""
    pairs = [
        *zip(found.inputs.values(), expected.inputs.values(), strict=True),
        ([found.explained], [expected.explained]),
        (list(found.inner.values()), list(expected.inner.values())),
    ]
    every = [(one, other.detach()) for first, second in pairs for one, other in zip(first, second, strict=True)]
    return all(float((one - other).abs().max()) <= TOLERANCE * float(other.abs().max()) for one, other in every)
