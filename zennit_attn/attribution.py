"""The attributor of the gradient form, for tensors, token ids, and what tokenizers and image processors return."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Self, TypeVar, overload

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from zennit.attribution import Attributor
from zennit.core import Composite

from .adapters import explained, target_mask
from .composites.registration import input_x_gradient
from .engine.finiteness import watch
from .engine.functions import divide
from .engine.state import explaining
from .errors import NotFiniteError, PaddingWarning, TrainingWarning
from .hints import nearest
from .inputs import leaves_of, split_input
from .ledger import Ledger, Recorder, recording
from .targets import MASK, Target


@dataclass(frozen=True)
class Propagated:
    """What a forward and a backward pass gave: relevance of the output, of each input's leaves, of inner modules."""

    output: Any
    explained: Tensor
    inputs: dict[str | None, list[Tensor]]
    inner: dict[str, Tensor]


Relevance = TypeVar("Relevance")
Result = TypeVar("Result")


class Attribution(NamedTuple, Generic[Relevance]):
    """What an attributor returns: ``output, relevance = attributor(batch)``.

    Attributes
    ----------
    output : Any
        What the model returned.
    relevance : torch.Tensor or dict of str to torch.Tensor
        Relevance of the explained input, or of each of several.
    """

    output: Any
    relevance: Relevance


class InnerAttribution(NamedTuple, Generic[Relevance]):
    """The same with inner modules: ``output, relevance, inner = attributor(batch)``.

    Attributes
    ----------
    output, relevance
        See :class:`Attribution`.
    inner : dict of str to torch.Tensor
        Relevance of the output of each inner module that was named.
    """

    output: Any
    relevance: Relevance
    inner: dict[str, Tensor]


class InputXGradient(Attributor, Generic[Result]):
    """Relevance as input times modified gradient, of one forward and one backward pass.

    Parameters
    ----------
    model : torch.nn.Module
        Model to explain.
    composite : zennit.core.Composite, optional
        Rules; those in the relevance form are converted by :func:`zennit_attn.input_x_gradient`. None is plain
        Input x Gradient.
    attr_output : torch.Tensor or callable, optional
        What is explained, as in :mod:`zennit.attribution`: the *relevance* of the output, or a function that returns
        it, given the output; a :class:`zennit_attn.targets.Target` names a logit. By default the output itself.
    modules : str or sequence of str, optional
        Names of inner modules, or patterns such as ``"model.layers.*.mlp"``: the relevance of their outputs is
        returned as well.
    output_key : str, optional
        Entry of a ModelOutput to explain, see :func:`zennit_attn.adapters.explained`.
    argument : str or sequence of str, optional
        Which entry of a batch is explained, where it has several of :data:`~zennit_attn.inputs.INPUTS`. With a
        sequence, such as ``("input_ids", "decoder_input_ids")``, all of them are, together, and relevance is a dict.
    create_graph, retain_graph : bool, optional
        As in :func:`torch.autograd.grad`.

    Raises
    ------
    TypeError
        If the composite is none.

    Examples
    --------
    >>> import torch, transformers
    >>> from zennit_attn import AttnLRPComposite, InputXGradient, targets
    >>> config = transformers.LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
    ...                                   num_attention_heads=2)
    >>> model = transformers.LlamaForCausalLM(config).eval()
    >>> with InputXGradient(model, AttnLRPComposite()) as attributor:
    ...     output, relevance = attributor(torch.tensor([[3, 1, 4]]), targets.MaxLogit())
    >>> relevance.shape
    torch.Size([1, 3])
    """

    # what a call returns depends on two arguments
    @overload
    def __init__(
        self: InputXGradient[Attribution[Tensor]],
        model: torch.nn.Module,
        composite: Composite | None = None,
        attr_output: Any = None,
        modules: tuple[()] = (),
        output_key: str | None = None,
        argument: str | None = None,
        create_graph: bool = False,
        retain_graph: bool | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self: InputXGradient[InnerAttribution[Tensor]],
        model: torch.nn.Module,
        composite: Composite | None = None,
        attr_output: Any = None,
        modules: str | Sequence[str] = (),
        output_key: str | None = None,
        argument: str | None = None,
        create_graph: bool = False,
        retain_graph: bool | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self: InputXGradient[Attribution[dict[str, Tensor]]],
        model: torch.nn.Module,
        composite: Composite | None = None,
        attr_output: Any = None,
        modules: tuple[()] = (),
        output_key: str | None = None,
        argument: Sequence[str] | None = None,
        create_graph: bool = False,
        retain_graph: bool | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self: InputXGradient[InnerAttribution[dict[str, Tensor]]],
        model: torch.nn.Module,
        composite: Composite | None = None,
        attr_output: Any = None,
        modules: str | Sequence[str] = (),
        output_key: str | None = None,
        argument: Sequence[str] | None = None,
        create_graph: bool = False,
        retain_graph: bool | None = None,
    ) -> None: ...
    def __init__(
        self,
        model: torch.nn.Module,
        composite: Composite | None = None,
        attr_output: Any = None,
        modules: str | Sequence[str] = (),
        output_key: str | None = None,
        argument: str | Sequence[str] | None = None,
        create_graph: bool = False,
        retain_graph: bool | None = None,
    ) -> None:
        if composite is not None and getattr(composite, "form", "relevance") != "gradient":
            composite = input_x_gradient(composite)
        super().__init__(model, composite, attr_output)
        self.modules = (modules,) if isinstance(modules, str) else tuple(modules)
        self.output_key, self.argument = output_key, argument
        self.create_graph, self.retain_graph = create_graph, retain_graph
        self.recording = False

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def __call__(self, input: Tensor | Mapping[str, Any], attr_output: Any = None) -> Result:
        """Explain the output for an input.

        Parameters
        ----------
        input : torch.Tensor or mapping
            Floating-point tensor (pixels, embeddings) that the model takes as its first argument; integer token ids
            of shape ``(batch, positions)``; or a mapping of keyword arguments, as a tokenizer or an image processor
            returns it, with one of :data:`~zennit_attn.inputs.INPUTS`.
        attr_output : torch.Tensor or callable, optional
            What is explained, see the class.

        Returns
        -------
        output : Any
            What the model returned.
        relevance : torch.Tensor or dict
            Relevance, of the shape of the ids (summed over the embedding in float32 or better, exactly zero at
            padding), or of the tensor that is explained.
        inner : dict of str to torch.Tensor
            Only if ``modules`` are named: relevance of each one's output. A module that is called several times has
            ``name#2``, ... for its further calls.

        Raises
        ------
        NotFiniteError
            If the relevance is not finite; the error names the first module at which it was not.
        RuntimeError
            If the input has no part in the explained output.
        """
        result: Result = super().__call__(input, attr_output)
        return result

    def ledger(self, input: Tensor | Mapping[str, Any], attr_output: Any = None) -> Ledger:
        """Account for the relevance of the output: what the inputs got, and what everything else kept.

        Parameters
        ----------
        input, attr_output
            As for a call.

        Returns
        -------
        zennit_attn.ledger.Ledger
            Sums over the batch. With ``print``, a table; :meth:`~zennit_attn.ledger.Ledger.to_dict` exports it.

        Raises
        ------
        RuntimeError
            If there is no composite with operator rules, or the model checkpoints its layers.

        Examples
        --------
        >>> import torch
        >>> from zennit_attn import CPLRPComposite, InputXGradient, targets
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> attributor = InputXGradient(model, CPLRPComposite())
        >>> ledger = attributor.ledger(torch.ones(1, 3), targets.Label(0))
        >>> sorted(ledger.kept), abs(ledger.remainder) < 1e-6
        ([('0', 'bias'), ('2', 'bias')], True)
        """
        self.recording = True
        try:
            return super().__call__(input, attr_output)
        finally:
            self.recording = False

    def forward(self, input: Tensor | Mapping[str, Any], attr_output_fn: Any) -> Any:
        """Explain the output for an input, with the composite registered."""
        given, rest = split_input(input, self.argument)
        if self.model.training and drops(self.model):
            warnings.warn(
                "got a model in training mode with dropout, which is explained as it drops values at random, and "
                "differently each time; expected model.eval().",
                TrainingWarning,
                stacklevel=2,
            )
        with recording(self.model) if self.recording else nullcontext() as recorder:
            found = self.propagate(given, rest, attr_output_fn, recorder)
        if not all(bool(part.isfinite().all()) for parts in found.inputs.values() for part in parts):
            # once more, with a look at every module
            with watch(self.model) as check_output:
                check_output(self.propagate(given, rest, attr_output_fn).output)
            raise NotFiniteError(
                "got relevance that is not finite, with finite signals at every module; expected a model that embeds "
                "its input in a module, and inputs that are finite."
            )
        if recorder is not None:
            return recorder.ledger(found.explained, found.inputs)
        relevances = {
            name: parts[0] if given[name].is_floating_point() else tokens_of(parts, mask_of(name, rest))
            for name, parts in found.inputs.items()
        }
        several = not (self.argument is None or isinstance(self.argument, str))
        relevance = relevances if several else next(iter(relevances.values()))
        if self.modules:
            return InnerAttribution(found.output, relevance, found.inner)
        return Attribution(found.output, relevance)

    def propagate(
        self,
        given: Mapping[str | None, Tensor],
        rest: Mapping[str, Any],
        attr_output_fn: Any,
        recorder: Recorder | None = None,
    ) -> Propagated:
        """Run a forward and a backward pass."""
        # fused attention kernels have no second derivative
        kernel = sdpa_kernel(SDPBackend.MATH) if self.create_graph else nullcontext()
        with torch.enable_grad(), kernel:
            with self.capture() as captured, leaves_of(self.model, given) as (values, leaves):
                # a tensor by position, or arguments by name
                with explaining(lambda output: explained(output, self.output_key)):
                    output = self.model(values[None], **rest) if None in values else self.model(**values, **rest)
            sources = [*captured.values(), *(leaf for found in leaves.values() for leaf in found.values())]
            constants = [] if recorder is None else recorder.constants
            tensor = explained(output, self.output_key)
            mask = getattr(tensor, MASK, target_mask(self.model, {**rest, **values}))
            weights = self.weights(tensor, attr_output_fn, mask)
            signals = self.signals(tensor, weights, [*sources, *(leaf for _, leaf in constants)])
        for (place, leaf), signal in zip(constants, signals[len(sources) :], strict=True):
            recorder.note(place, leaf, signal)  # type: ignore[union-attr]
        parts = iter(zip(sources, signals, strict=False))
        inner = {name: relevance_of(*next(parts)) for name in captured}
        for wanted in self.modules:
            if not any(fnmatch.fnmatchcase(key.split("#")[0], wanted) for key in inner):
                raise ValueError(f"modules got {wanted!r}, which has no output that depends on the input as a tensor")
        inputs = {}
        for name, found in leaves.items():
            pairs = [next(parts) for _ in found]
            if all(signal is None for _, signal in pairs):
                raise RuntimeError(
                    f"the explained output does not depend on the input{'' if name is None else ' ' + name}; expected "
                    "a path from one to the other. Is the model in inference mode, its input detached, or are all "
                    "paths constants under these rules, as attention weights are under CP-LRP?"
                )
            inputs[name] = [relevance_of(*pair) for pair in pairs]
        return Propagated(output, relevance_of(tensor, weights), inputs, inner)

    def weights(self, output: Tensor, attr_output_fn: Any, mask: Tensor | None) -> Tensor:
        """Return the gradient at the output."""
        if isinstance(attr_output_fn, Target):
            weights = attr_output_fn.weights(output, mask)
        else:
            relevance = attr_output_fn(output)
            if not isinstance(relevance, Tensor) or relevance.shape != output.shape:
                given = tuple(relevance.shape) if isinstance(relevance, Tensor) else f"{relevance!r}"
                raise ValueError(
                    f"attr_output gave {given}, expected relevance of the output's shape {tuple(output.shape)}, as a "
                    "target of zennit_attn.targets gives it, or lambda output: output * weights."
                )
            weights = divide(relevance.to(output.dtype), output)
        return weights if self.create_graph else weights.detach()

    def signals(self, output: Tensor, weights: Tensor, sources: list[Tensor]) -> tuple[Tensor | None, ...]:
        """Return the gradient at each source, None where the output does not depend on it."""
        if not output.requires_grad:
            return (None,) * len(sources)
        return torch.autograd.grad(
            output,
            sources,
            weights,
            create_graph=self.create_graph,
            retain_graph=self.retain_graph,
            allow_unused=True,
        )

    @contextmanager
    def capture(self) -> Iterator[dict[str, Tensor]]:
        """Collect the outputs of the named inner modules during a forward pass."""
        captured: dict[str, Tensor] = {}
        handles = []
        for name, module in self.named_inner():

            def keep(_: Any, args: Any, output: Any, name: str = name) -> None:
                tensor = output[0] if isinstance(output, (tuple, list)) else output
                tensor = explained(tensor) if isinstance(tensor, Mapping) else tensor
                if isinstance(tensor, Tensor) and tensor.requires_grad:
                    count = sum(key.split("#")[0] == name for key in captured)
                    captured[f"{name}#{count + 1}" if count else name] = tensor

            handles.append(module.register_forward_hook(keep))
        try:
            yield captured
        finally:
            for handle in handles:
                handle.remove()

    def named_inner(self) -> list[tuple[str, torch.nn.Module]]:
        """Return the inner modules that were named.

        Raises
        ------
        ValueError
            If a name or a pattern fits none.
        """
        named = dict(self.model.named_modules())
        found: dict[str, torch.nn.Module] = {}
        for pattern in self.modules:
            names = fnmatch.filter(named, pattern)
            if not names:
                kind = type(self.model).__name__
                raise ValueError(f"modules got {pattern!r}, which names no module of {kind}; {nearest(pattern, named)}")
            found.update((name, named[name]) for name in names)
        return list(found.items())


def drops(model: torch.nn.Module) -> bool:
    """Tell whether a module drops values at random."""
    kind = torch.nn.modules.dropout._DropoutNd
    return any(isinstance(module, kind) and module.training and module.p > 0 for module in model.modules())


def relevance_of(value: Tensor, signal: Tensor | None) -> Tensor:
    """Return input times gradient in float32 or better, of the shape of both; zero where there is no gradient."""
    signal = torch.zeros_like(value) if signal is None else signal
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    relevance = value.to(dtype) * signal.to(dtype)
    return relevance if signal.requires_grad else relevance.detach()


def mask_of(name: str | None, rest: Mapping[str, Any]) -> Tensor | None:
    """Return the attention mask that goes with token ids."""
    return rest.get("decoder_attention_mask" if str(name).startswith("decoder_") else "attention_mask")


def tokens_of(parts: list[Tensor], mask: Tensor | None) -> Tensor:
    """Return the relevance of tokens, summed over their embeddings, and zero at padding."""
    return zero_padding(torch.stack([part.sum(-1) for part in parts]).sum(0), mask)


def zero_padding(relevance: Tensor, mask: Tensor | None) -> Tensor:
    """Return token relevance that is exactly zero at padding, and warn if the model gave any to it."""
    if mask is None or mask.shape != relevance.shape:
        return relevance
    padding = mask.to(relevance.device) == 0
    lost, total = relevance.detach().abs().mul(padding).max(), relevance.detach().abs().max()
    if bool(lost > 1e-5 * total):
        warnings.warn(
            f"padding got relevance of up to {float(lost / total):.1%} of the largest one, and it is set to zero; "
            "expected none: either what is explained is at a position of padding (choose a target, such as "
            "targets.MaxLogit()), or the model does not mask its padding (explain sequences without).",
            PaddingWarning,
            stacklevel=2,
        )
    return relevance.masked_fill(padding, 0.0)
