"""The attributor of the gradient form, for tensors, token ids, and what tokenizers and image processors return."""

from __future__ import annotations

import fnmatch
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import NoneType
from typing import Any, Generic, Literal, NamedTuple, Self, TypeVar, overload

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from zennit.attribution import Attributor, constant, identity
from zennit.core import Composite

from .adapters import explained, is_headless, target_mask
from .composites.claims import turn
from .composites.registration import Scope, ScopedComposite, input_x_gradient, refuse_functions
from .engine.compiled import uncompiled
from .engine.finiteness import watch
from .engine.functions import divide
from .engine.handles import FrozenHandle, Kept
from .engine.mode import heal
from .engine.names import modules_by_name
from .engine.state import explaining, holds_state
from .errors import FrozenWarning, InputError, NotFiniteError, NotFiniteWarning, PaddingWarning, TrainingWarning
from .hints import nearest
from .inputs import Leaves, NotLookedUpError, leaves_of, split_input
from .latents import Features, Found, watching
from .ledger import Ledger, Recorder, recording
from .positions import Positions, grouped, position_leaves, refuse_other_shape
from .sharding import is_sharded, whole
from .surrogates import surrogates_of
from .targets import MASK, Each, Target


@dataclass(frozen=True)
class Propagated:
    """What a forward and a backward pass gave: relevance of the output, of each input's leaves, of inner modules."""

    output: Any
    explained: Tensor
    inputs: dict[str | None, list[Tensor]]
    inner: dict[str, Tensor]
    positions: dict[str, Tensor]
    #: By what the signals should have been scaled up, so that float16 has digits for them; 1 if they were well.
    scale: float


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
        Relevance of the output of each inner module, and of each latent, that was named.
    """

    output: Any
    relevance: Relevance
    inner: dict[str, Tensor]


@dataclass
class Inside:
    """What was collected inside of a model while it ran: outputs of modules, latents, leaves of positions."""

    modules: dict[str, Tensor]
    latents: dict[str, Found] = field(default_factory=dict)
    positions: dict[str, Tensor] = field(default_factory=dict)

    def note(self, found: Found) -> None:
        """Keep a latent."""
        self.latents[found.latent.name] = found

    def tensors(self) -> Iterator[Tensor]:
        """Yield each tensor, in order."""
        yield from self.modules.values()
        yield from (found.tensor for found in self.latents.values())
        yield from self.positions.values()


#: Output, what was collected inside, arguments of the call, and their leaves.
Forward = tuple[Any, Inside, dict[Any, Tensor], Leaves]


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
        it, given the output; a :class:`zennit_attn.targets.Target` names a logit. By default the output itself. With
        :class:`zennit_attn.targets.Each`, several targets of one forward, relevance has them as its first dimension.
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
    latents : str or sequence of str or Features, optional
        Kinds of :data:`zennit_attn.latents.KINDS`, names such as ``"model.layers.22.head"`` or patterns of them, and
        :class:`~zennit_attn.latents.Features` of a sparse autoencoder: relevance by unit is returned as well.

    Raises
    ------
    TypeError
        If the composite is none, or the model no module.

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
        latents: tuple[()] = (),
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
        latents: str | Sequence[str | Features] = (),
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
        latents: tuple[()] = (),
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
        latents: str | Sequence[str | Features] = (),
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
        latents: str | Sequence[str | Features] = (),
    ) -> None:
        refuse_functions(model)
        if composite is not None and getattr(composite, "form", "relevance") != "gradient":
            composite = input_x_gradient(composite)
        super().__init__(model, composite, attr_output)
        self.modules = (modules,) if isinstance(modules, str) else tuple(modules)
        self.latents = (latents,) if isinstance(latents, (str, Features)) else tuple(latents)
        self.output_key, self.argument = output_key, argument
        self.create_graph, self.retain_graph = create_graph, retain_graph
        self._scope: Scope[torch.nn.Module] | None = None

    def __enter__(self) -> Self:
        if isinstance(self.composite, ScopedComposite):
            scope = Scope(self.composite, self.model)
            scope.__enter__()
            self._scope = scope
        return self

    def __exit__(self, *error: object) -> Literal[False]:
        try:
            if self.composite is not None:
                self.composite.remove()
        finally:
            # which takes off what an interrupt left
            self._scope = None
        return False

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
            Only if ``modules`` or ``latents`` are named: relevance of each module's output, and of each latent by unit,
            of shape ``(batch, tokens, units)``, of whole layers ``(batch, tokens)``. What is called several times has
            ``name#2``, ... for its further calls.

        Raises
        ------
        NotFiniteError
            If the relevance is not finite; the error names the first module at which it was not.
        RuntimeError
            If the input has no part in the explained output.
        """
        result: Result = self.ask(input, attr_output)
        return result

    def ask(self, input: Any, attr_output: Any, **of: bool) -> Any:
        """Explain the output for an input, as soon as no other thread has other rules on the model."""
        if not (attr_output is None or callable(attr_output)):
            attr_output = constant(attr_output)
        heal()
        # an interrupt may come in torch's own context managers
        is_enabled = torch.is_grad_enabled()
        try:
            with turn(self.model, self.composite) as is_ready, nullcontext() if is_ready else self:
                return self.forward(input, attr_output or self.attr_output_fn, **of)
        finally:
            torch._C._set_grad_enabled(is_enabled)

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
        if isinstance(attr_output, Each):
            raise ValueError(f"a ledger is of one target, got {attr_output!r}: expected one of them at a time.")
        found: Ledger = self.ask(input, attr_output, is_ledger=True)
        return found

    def positions(self, input: Tensor | Mapping[str, Any], attr_output: Any = None) -> Positions:
        """Explain the output by the tokens and by the positions that they stand at (PA-LRP, Bakish et al. 2025).

        In each layer a rotary embedding's cosines and sines are factors beside query and key: under the uniform rule
        ``R_cos = R_q = 1/2 R(q cos)``, and relevance of a position is the sum over its factors. What is added to the
        input, such as learned positions, has its share of the sum. Under CP-LRP queries and keys get nothing, and
        rotary positions neither.

        Parameters
        ----------
        input, attr_output
            As for a call.

        Returns
        -------
        zennit_attn.positions.Positions
            The output, relevance of the input, and of positions: ``layers`` is raw, of shape ``(batch, layers,
            tokens)``, and :meth:`~zennit_attn.positions.Positions.aggregate` the paper's one map.

        Raises
        ------
        InputError
            If the model is told positions in no way that is known, or for several samples at once.

        Examples
        --------
        >>> import torch, transformers
        >>> from zennit_attn import AttnLRPComposite, InputXGradient, targets
        >>> config = transformers.LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=2,
        ...                                   num_attention_heads=2)
        >>> attributor = InputXGradient(transformers.LlamaForCausalLM(config).eval(), AttnLRPComposite())
        >>> found = attributor.positions(torch.tensor([[3, 1, 4]]), targets.MaxLogit())
        >>> found.relevance.shape, found.layers.shape, found.aggregate().shape
        (torch.Size([1, 3]), torch.Size([1, 2, 3]), torch.Size([1, 3]))
        """
        if isinstance(attr_output, Each):
            raise InputError(f"positions are of one target, got {attr_output!r}: expected one of them at a time.")
        if not isinstance(self.argument, (str, NoneType)):
            raise InputError(f"positions got argument={self.argument!r}, expected the name of one input.")
        found: Positions = self.ask(input, attr_output, tells_positions=True)
        return found

    def activations(self, input: Tensor | Mapping[str, Any]) -> dict[str, Tensor]:
        """Return what the units of the latents compute for an input, from a forward pass alone.

        Parameters
        ----------
        input
            As for a call.

        Returns
        -------
        dict of str to torch.Tensor
            By latent, of the shapes that their relevance has. That of a unit of several elements, as a head or a layer
            is at a token, is their norm.

        Raises
        ------
        InputError
            If no latents were named.

        Examples
        --------
        >>> import torch, transformers
        >>> from zennit_attn import AttnLRPComposite, InputXGradient
        >>> config = transformers.LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                                   num_attention_heads=2)
        >>> model = transformers.LlamaForCausalLM(config).eval()
        >>> attributor = InputXGradient(model, AttnLRPComposite(), latents="head")
        >>> attributor.activations(torch.tensor([[3, 1, 4]]))["model.layers.0.head"].shape
        torch.Size([1, 3, 2])
        """
        if not self.latents:
            raise InputError('activations are of latents, of which none were named; expected latents=["head"], say.')
        found: dict[str, Tensor] = self.ask(input, None, is_forward=True)
        return found

    @holds_state
    def forward(
        self,
        input: Tensor | Mapping[str, Any],
        attr_output_fn: Any,
        is_ledger: bool = False,
        tells_positions: bool = False,
        is_forward: bool = False,
    ) -> Any:
        """Explain the output for an input, with the composite registered."""
        given, rest = split_input(input, self.argument)
        given, lost = without_lost(given)
        if is_forward:
            with torch.enable_grad():
                latents = self.run_any(given, rest, False)[1].latents
            return {name: activation_of(found) for name, found in latents.items()}
        if self.create_graph and freezes(self.composite):
            warnings.warn(
                "create_graph=True gives gradients of the relevance with respect to the input; the weights are "
                "constants of the rules, and get none, also of a task's loss that is computed of this output. Expected "
                "a model with model.requires_grad_(False), or a loss on another forward, outside of the context.",
                FrozenWarning,
                stacklevel=2,
            )
        if self.model.training and drops(self.model):
            warnings.warn(
                "got a model in training mode with dropout, which is explained as it drops values at random, and "
                "differently each time; expected model.eval().",
                TrainingWarning,
                stacklevel=2,
            )
        with recording(self.model) if is_ledger else nullcontext() as recorder:
            found = self.propagate(given, rest, attr_output_fn, recorder, tells_positions=tells_positions)
        if recorder is None and found.scale != 1:
            # once more, with signals that float16 has digits for
            found = self.propagate(given, rest, attr_output_fn, None, found.scale, tells_positions)
        if not all(bool(part.isfinite().all()) for parts in found.inputs.values() for part in parts):
            # once more, with a look at every module
            with watch(self.model) as check_output:
                check_output(explained(self.propagate(given, rest, attr_output_fn).output, self.output_key))
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
        if lost is not None:
            for values in relevances.values():
                values[(slice(None), lost) if isinstance(attr_output_fn, Each) else lost] = float("nan")
        several = not (self.argument is None or isinstance(self.argument, str))
        relevance = relevances if several else next(iter(relevances.values()))
        if tells_positions:
            return Positions(found.output, next(iter(relevances.values())), grouped(found.positions))
        if self.modules or self.latents:
            return InnerAttribution(found.output, relevance, found.inner)
        return Attribution(found.output, relevance)

    def propagate(
        self,
        given: Mapping[str | None, Tensor],
        rest: Mapping[str, Any],
        attr_output_fn: Any,
        recorder: Recorder | None = None,
        scale: float = 1.0,
        tells_positions: bool = False,
    ) -> Propagated:
        """Run a forward and a backward pass, the latter scaled up, and its results down again."""
        # fused attention kernels have no second derivative
        kernel = sdpa_kernel(SDPBackend.MATH) if self.create_graph else nullcontext()
        with torch.enable_grad(), kernel:
            output, inside, values, leaves = self.run_any(given, rest, tells_positions)
            sources = [*inside.tensors(), *(leaf for found in leaves.values() for leaf in found.values())]
            constants = [] if recorder is None else recorder.constants
            # of logits that several processes share, a target has to see all
            tensor = whole(explained(output, self.output_key))
            if isinstance(attr_output_fn, Target) and is_headless(output, self.output_key):
                raise ValueError(
                    f"{type(self.model).__name__} has no head: got {attr_output_fn!r} for its hidden units, of which "
                    "none is a class; expected a model with a head, such as one of AutoModelForCausalLM or "
                    "AutoModelForSequenceClassification, or output_key and a function of the output."
                )
            refuse_part(self.model, tensor)
            mask = getattr(tensor, MASK, target_mask(self.model, {**rest, **values}))
            leaves_and_inner = [*sources, *(leaf for _, leaf in constants)]
            if isinstance(attr_output_fn, Each):
                # all weights at once would take more memory than anything else
                signals, relevance = self.signals_of_each(tensor, attr_output_fn, mask, scale, leaves_and_inner), tensor
            else:
                weights = self.weights(tensor, attr_output_fn, mask)
                signals, relevance = (
                    self.signals(tensor, weights * scale, leaves_and_inner),
                    relevance_of(tensor, weights),
                )
        better = scale_for_float16(signals[: len(sources)])
        if scale != 1:
            signals = tuple(None if signal is None else signal.float() / scale for signal in signals)
        for (place, leaf), signal in zip(constants, signals[len(sources) :], strict=True):
            recorder.note(place, leaf, signal)  # type: ignore[union-attr]
        parts = iter(zip(sources, signals, strict=False))
        inner = {name: whole(relevance_of(*next(parts))) for name in inside.modules}
        by_unit = {name: found.tidy(whole(relevance_of(*next(parts)))) for name, found in inside.latents.items()}
        of_positions = {name: whole(relevance_of(*next(parts))) for name in inside.positions}
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
        return Propagated(output, relevance, inputs, {**inner, **by_unit}, of_positions, better)

    def run_any(self, given: Mapping[str | None, Tensor], rest: Any, tells_positions: bool) -> Forward:
        """Run the model on leaves, be it one that embeds the ids it is given, or others."""
        try:
            return self.run(leaves_of(self.model, given), rest, tells_positions)
        except NotLookedUpError as error:
            return self.run_surrogates(given, rest, error, tells_positions)

    def run(
        self,
        leaves_of_call: AbstractContextManager[tuple[dict[Any, Tensor], Leaves]],
        rest: Any,
        tells_positions: bool,
    ) -> Forward:
        """Run the model on leaves: return output, inner tensors, positions, what it was called with, and the leaves."""
        with self.capture() as modules, leaves_of_call as (values, leaves), ExitStack() as stack:
            inside, shape = Inside(modules), next(iter(values.values())).shape
            if tells_positions:
                inside.positions = stack.enter_context(position_leaves(self.model, shape[0]))
            if self.latents:
                stack.enter_context(watching(self.model, self.latents, shape, inside.note))
            with explaining(lambda output: explained(output, self.output_key)):
                output = self.call(values, rest)
        return output, inside, values, leaves

    def call(self, values: Mapping[Any, Tensor], rest: Mapping[str, Any]) -> Any:
        """Call the model with a tensor by position, or with arguments by name."""
        with uncompiled():
            return self.model(values[None], **rest) if None in values else self.model(**values, **rest)

    @torch.no_grad()
    def plain(self, given: Mapping[str | None, Tensor], rest: Mapping[str, Any]) -> Tensor:
        """Return what is explained, of a forward without a graph."""
        return whole(explained(self.call(given, rest), self.output_key))

    def run_surrogates(
        self, given: Mapping[str | None, Tensor], rest: Any, error: NotLookedUpError, tells_positions: bool
    ) -> Forward:
        """Run a model that changes its ids before it embeds them, see :mod:`zennit_attn.surrogates`."""
        plain = self.plain(given, rest)
        # with ids of their own for padding, too, unless the model tells padding by its id
        for padding in (None, getattr(getattr(self.model, "config", None), "pad_token_id", None)):
            try:
                found = self.run(surrogates_of(self.model, given, padding), rest, tells_positions)
            except (IndexError, RuntimeError, ValueError) as other:
                error.__cause__ = other
                continue
            if tells_positions:
                refuse_other_shape(self.model, whole(explained(found[0], self.output_key)), plain)
            if self.agree(found[0], plain):
                return found
        raise error

    def agree(self, output: Any, plain: Tensor) -> bool:
        """Tell whether a model returned what it did before, with a graph: one that computes with its ids does not."""
        changed = whole(explained(output, self.output_key))
        tolerance = 1e-5 * float(plain.abs().max())
        return changed.requires_grad and torch.allclose(changed, plain, rtol=1e-4, atol=tolerance)

    def weights(self, output: Tensor, attr_output_fn: Any, mask: Tensor | None) -> Tensor:
        """Return the gradient at the output."""
        if attr_output_fn is identity and output.dim() > 1 and output[0].numel() > 1:
            raise ValueError(
                f"got no target for an output of shape {tuple(output.shape)}: expected what is to be explained, such "
                "as targets.MaxLogit() or targets.Label(7); lambda output: output explains all of it at once."
            )
        if isinstance(attr_output_fn, Target):
            weights = attr_output_fn.weights(output, mask)
        else:
            relevance = attr_output_fn(output)
            if not isinstance(relevance, Tensor) or relevance.shape != output.shape:
                given = tuple(relevance.shape) if isinstance(relevance, Tensor) else f"{relevance!r}"
                example = f"targets.Label({relevance!r})" if isinstance(relevance, (int, str)) else "targets.Label(7)"
                raise ValueError(
                    f"attr_output gave {given}, expected relevance of the output's shape {tuple(output.shape)}, as a "
                    f"target gives it, such as {example}, or lambda output: output * weights."
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

    def signals_of_each(
        self, output: Tensor, each: Each, mask: Tensor | None, scale: float, sources: list[Tensor]
    ) -> tuple[Tensor | None, ...]:
        """Return the same for several targets, stacked: one backward pass for each chunk of them."""
        if not output.requires_grad:
            return (None,) * len(sources)
        parts = []
        for start in range(0, len(each.targets), each.chunk):
            # not the weights of all at once, which may be the largest tensor of all
            some = [self.weights(output, target, mask) * scale for target in each.targets[start : start + each.chunk]]
            found = torch.autograd.grad(
                output,
                sources,
                torch.stack(some) if each.chunk > 1 else some[0],
                create_graph=self.create_graph,
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=each.chunk > 1,
            )
            parts.append(found if each.chunk > 1 else [None if signal is None else signal[None] for signal in found])
        return tuple(None if rows[0] is None else torch.cat(rows) for rows in zip(*parts, strict=True))

    @contextmanager
    def capture(self) -> Iterator[dict[str, Tensor]]:
        """Collect the outputs of the named inner modules during a forward pass."""
        captured: dict[str, Tensor] = {}

        def note(name: str, _: Any, args: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, (tuple, list)) else output
            tensor = explained(tensor) if isinstance(tensor, Mapping) else tensor
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                count = sum(key.split("#")[0] == name for key in captured)
                captured[f"{name}#{count + 1}" if count else name] = tensor

        with Kept() as kept:
            for name, module in self.named_inner():
                kept.hook(module, partial(note, name))
            yield captured

    def named_inner(self) -> list[tuple[str, torch.nn.Module]]:
        """Return the inner modules that were named.

        Raises
        ------
        ValueError
            If a name or a pattern fits none.
        """
        named = modules_by_name(self.model)
        found: dict[str, torch.nn.Module] = {}
        for pattern in self.modules:
            names = fnmatch.filter(named, pattern)
            if not names:
                kind = type(self.model).__name__
                raise ValueError(f"modules got {pattern!r}, which names no module of {kind}; {nearest(pattern, named)}")
            found.update((name, named[name]) for name in names)
        return list(found.items())


def refuse_part(model: Any, output: Tensor) -> None:
    """Raise ValueError if a process has its part of the vocabulary alone, of which a target would choose."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    weight: Any = getattr(head, "weight", None)
    if is_sharded(weight) and output.dim() and output.shape[-1] == weight.to_local().shape[0] < weight.shape[0]:
        raise ValueError(
            f"got logits of {output.shape[-1]} tokens in each process, of a vocabulary of {weight.shape[0]} that they "
            "share; expected all: output_layouts=Replicate(), or use_local_output=False, in the plan of the head."
        )


def scale_for_float16(signals: Sequence[Tensor | None]) -> float:
    """Return a power of two by which signals in float16 are too small for its digits, 1 if none is."""
    largest = [float(signal.detach().abs().max()) for signal in signals if signal is not None and in_float16(signal)]
    if not largest or min(largest) >= torch.finfo(torch.float16).smallest_normal:
        return 1.0
    # up to about one; weights of one stay below the largest number, 2 ** 16
    return 2.0 ** min(14, -math.floor(math.log2(min(largest)))) if min(largest) else 2.0**14


def in_float16(signal: Tensor) -> bool:
    """Tell whether a signal was computed in float16, at least in part."""
    device = signal.device.type
    casts = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    return signal.numel() > 0 and (signal.dtype == torch.float16 or casts)


def without_lost(given: dict[str | None, Tensor]) -> tuple[dict[str | None, Tensor], Tensor | None]:
    """Return the input with zeros for samples that are not finite, and which these are; None if there are none.

    Raises
    ------
    NotFiniteError
        If no sample is finite.
    """
    counts = {
        name: (~value.isfinite()).reshape(len(value), -1).sum(1)
        for name, value in given.items()
        if value.is_floating_point() and value.dim() and not bool(value.isfinite().all())
    }
    if not counts:
        return given, None
    lost = torch.stack([count > 0 for count in counts.values()]).any(0)
    title = " and ".join(f"{name or 'an input'} with {int(count.sum())} values" for name, count in counts.items())
    rows = lost.nonzero().flatten().tolist()
    if bool(lost.all()):
        raise NotFiniteError(
            f"got {title} that are not finite, in the samples {rows}; expected finite numbers in at least one sample."
        )
    warnings.warn(
        f"got {title} that are not finite, in the samples {rows}: their relevance is NaN, and the output for them is "
        "that for zeros; the other samples are explained as they are.",
        NotFiniteWarning,
        stacklevel=3,
    )

    def mended(value: Tensor) -> Tensor:
        return value.masked_fill(lost.view(-1, *[1] * (value.dim() - 1)), 0) if value.is_floating_point() else value

    return {name: mended(value) for name, value in given.items()}, lost


def freezes(composite: Composite | None) -> bool:
    """Tell whether a composite keeps parameters from their gradients, which they would have without it."""
    handles = getattr(composite, "handles", ())
    return any(isinstance(handle, FrozenHandle) and handle.places for handle in handles)


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


def activation_of(found: Found) -> Tensor:
    """Return the activation of a latent by unit; that of a unit of several elements is their norm."""
    value = found.tensor.detach()
    return found.tidy(value) if found.width == 1 else found.tidy(value.square()).sqrt()


def mask_of(name: str | None, rest: Mapping[str, Any]) -> Tensor | None:
    """Return the attention mask that goes with token ids."""
    return rest.get("decoder_attention_mask" if str(name).startswith("decoder_") else "attention_mask")


def tokens_of(parts: list[Tensor], mask: Tensor | None) -> Tensor:
    """Return the relevance of tokens, summed over their embeddings, and zero at padding."""
    return zero_padding(torch.stack([part.sum(-1) for part in parts]).sum(0), mask)


def zero_padding(relevance: Tensor, mask: Tensor | None) -> Tensor:
    """Return token relevance that is exactly zero at padding, and warn if the model gave any to it."""
    if mask is None or mask.shape != relevance.shape[-mask.dim() :]:
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
