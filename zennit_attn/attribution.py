"""The attributor of the gradient form, for tensors, token ids, and what tokenizers and image processors return."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from zennit.attribution import Attributor
from zennit.core import Composite

from .adapters import explained
from .functions import divide
from .parameters import nearest
from .targets import Target

#: Entries of a batch that hold what is explained, of which exactly one has to be there.
INPUTS = ("input_ids", "inputs_embeds", "pixel_values", "input_values", "input_features")


class PaddingWarning(UserWarning):
    """The model gave relevance to padding: it does not mask it."""


class InputXGradient(Attributor):
    """Relevance as input times modified gradient, of one forward and one backward pass.

    Parameters
    ----------
    model : torch.nn.Module
        Model to explain.
    composite : zennit.core.Composite, optional
        Rules in the gradient form, see :func:`zennit_attn.input_x_gradient`. None is plain Input x Gradient.
    attr_output : torch.Tensor or callable, optional
        What is explained, as in :mod:`zennit.attribution`: the *relevance* of the output, or a function that returns
        it, given the output; a :class:`zennit_attn.targets.Target` names a logit. By default the output itself.
    modules : sequence of str, optional
        Names of inner modules, or patterns such as ``"model.layers.*"``: the relevance of their outputs is returned
        as well.
    output_key : str, optional
        Entry of a ModelOutput to explain, see :func:`zennit_attn.adapters.explained`.
    argument : str, optional
        Which entry of a batch is explained, where it has several of :data:`INPUTS`.
    create_graph, retain_graph : bool, optional
        As in :func:`torch.autograd.grad`.

    Raises
    ------
    TypeError
        If the composite is in the relevance form.

    Examples
    --------
    >>> import torch, transformers
    >>> from zennit_attn import AttnLRPComposite, InputXGradient, input_x_gradient, targets
    >>> config = transformers.LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
    ...                                   num_attention_heads=2)
    >>> model = transformers.LlamaForCausalLM(config).eval()
    >>> with InputXGradient(model, input_x_gradient(AttnLRPComposite())) as attributor:
    ...     output, relevance = attributor(torch.tensor([[3, 1, 4]]), targets.MaxLogit())
    >>> relevance.shape
    torch.Size([1, 3])
    """

    def __init__(
        self,
        model: torch.nn.Module,
        composite: Composite | None = None,
        attr_output: Any = None,
        modules: Sequence[str] = (),
        output_key: str | None = None,
        argument: str | None = None,
        create_graph: bool = False,
        retain_graph: bool | None = None,
    ) -> None:
        if composite is not None and getattr(composite, "form", "relevance") != "gradient":
            raise TypeError(
                f"got a {type(composite).__name__} in the relevance form, expected the gradient form: "
                "InputXGradient(model, zennit_attn.input_x_gradient(composite)). For the relevance form there is "
                "zennit.attribution.Gradient."
            )
        super().__init__(model, composite, attr_output)
        self.modules, self.output_key, self.argument = tuple(modules), output_key, argument
        self.create_graph, self.retain_graph = create_graph, retain_graph

    def __call__(self, input: Tensor | Mapping[str, Any], attr_output: Any = None) -> Any:
        """Explain the output for an input.

        Parameters
        ----------
        input : torch.Tensor or mapping
            Floating-point tensor (pixels, embeddings) that the model takes as its first argument; integer token ids
            of shape ``(batch, positions)``; or a mapping of keyword arguments, as a tokenizer or an image processor
            returns it, with one of :data:`INPUTS`.
        attr_output : torch.Tensor or callable, optional
            What is explained, see the class.

        Returns
        -------
        output : Any
            What the model returned.
        relevance : torch.Tensor
            Relevance, of the shape of the ids (summed over the embedding in float32 or better, exactly zero at
            padding), or of the tensor that is explained.
        inner : dict of str to torch.Tensor
            Only if ``modules`` are named: relevance of each one's output. A module that is called several times has
            ``name#2``, ... for its further calls.

        Raises
        ------
        RuntimeError
            If the relevance is not finite, or the input has no part in the explained output.
        """
        return super().__call__(input, attr_output)

    def forward(self, input: Tensor | Mapping[str, Any], attr_output_fn: Any) -> Any:
        """Explain the output for an input, with the composite registered."""
        name, given, rest = split_input(input, self.argument)
        tokens = not given.is_floating_point()
        # fused attention kernels have no second derivative
        kernel = sdpa_kernel(SDPBackend.MATH) if self.create_graph else nullcontext()
        with torch.enable_grad(), kernel, self.capture() as captured:
            if tokens:
                output, leaves = self.run_on_tokens(name, given, rest)
            else:
                leaves = [given.detach().requires_grad_()]
                output = self.run(name, leaves[0].view_as(leaves[0]), rest)
            sources = [*leaves, *captured.values()]
            mask = target_mask(self.model, rest)
            signals = self.signals(explained(output, self.output_key), attr_output_fn, mask, sources)
        relevances = [relevance_of(value, signal) for value, signal in zip(sources, signals, strict=True)]
        inner = dict(zip(captured, relevances[len(leaves) :], strict=True))
        for wanted in self.modules:
            if not any(fnmatch.fnmatchcase(key.split("#")[0], wanted) for key in inner):
                raise ValueError(f"modules got {wanted!r}, which has no output that depends on the input as a tensor")
        for relevance in relevances[: len(leaves)]:
            check_finite(relevance)
        if tokens:
            summed = torch.stack([relevance.sum(-1) for relevance in relevances[: len(leaves)]]).sum(0)
            relevance = zero_padding(summed, rest.get("attention_mask"))
        else:
            relevance = relevances[0]
        return (output, relevance, inner) if self.modules else (output, relevance)

    def run(self, name: str | None, value: Tensor, rest: Mapping[str, Any]) -> Any:
        """Call the model with the explained input, by position or by name."""
        return self.model(value, **rest) if name is None else self.model(**{name: value, **rest})

    def run_on_tokens(self, name: str | None, ids: Tensor, rest: Mapping[str, Any]) -> tuple[Any, list[Tensor]]:
        """Call the model with token ids; return its output and the embeddings of the ids, a leaf for each table."""
        leaves: dict[int, Tensor] = {}

        def catch(table: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
            indices = args[0] if args else kwargs.get("input")
            if not isinstance(indices, Tensor) or indices.numel() != ids.numel():
                return None
            # the ids themselves, or a copy of them; later copies may be the ids of a decoder
            if indices.data_ptr() != ids.data_ptr() and (leaves or not torch.equal(indices.reshape(ids.shape), ids)):
                return None
            key = id(getattr(table, "weight", table))
            if key not in leaves:
                leaves[key] = output.detach().reshape(*ids.shape, -1).requires_grad_()
            # a copy, so that a model that writes into its embeddings does not write into the leaf
            return leaves[key].clone().view_as(output)

        # before the hooks that collect inner relevance, which are to see the leaf's graph
        handles = [
            table.register_forward_hook(catch, with_kwargs=True, prepend=True) for table in embeddings(self.model)
        ]
        try:
            output = self.run(name, ids, rest)
        finally:
            for handle in handles:
                handle.remove()
        if not leaves:
            raise RuntimeError(
                f"got token ids of shape {tuple(ids.shape)}, but no embedding of {type(self.model).__name__} was "
                "looked up with them; expected a model that embeds its ids. Explain inputs_embeds instead."
            )
        return output, list(leaves.values())

    def signals(self, output: Tensor, attr_output_fn: Any, mask: Tensor | None, sources: list[Tensor]) -> list[Tensor]:
        """Return the gradient at each source."""
        if isinstance(attr_output_fn, Target):
            weights = attr_output_fn.weights(output, mask)
        else:
            relevance = attr_output_fn(output)
            weights = divide(relevance.to(output.dtype).expand_as(output), output)
        gradients: tuple[Tensor | None, ...] = (None,) * len(sources)
        if output.requires_grad:
            gradients = torch.autograd.grad(
                output,
                sources,
                weights if self.create_graph else weights.detach(),
                create_graph=self.create_graph,
                retain_graph=self.retain_graph,
                allow_unused=True,
            )
        if all(gradient is None for gradient in gradients):
            raise RuntimeError(
                "the explained output does not depend on the input; expected a path from one to the other. Is the "
                "model in inference mode, or its input detached?"
            )
        return [
            torch.zeros_like(source) if gradient is None else gradient
            for source, gradient in zip(sources, gradients, strict=True)
        ]

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


def split_input(input: Any, argument: str | None = None) -> tuple[str | None, Tensor, dict[str, Any]]:
    """Return the name of the explained argument, its value, and the other arguments.

    Raises
    ------
    TypeError, ValueError
        If the input is neither a tensor nor a mapping with exactly one explained argument.
    """
    if isinstance(input, Tensor):
        return None, input, {}
    if not isinstance(input, Mapping):
        raise TypeError(f"got an input of type {type(input).__name__}, expected a tensor, or a mapping of arguments")
    names = [name for name in (INPUTS if argument is None else (argument,)) if input.get(name) is not None]
    if len(names) != 1:
        wanted = f"exactly one of {INPUTS} in it, or its name as argument" if argument is None else repr(argument)
        raise ValueError(f"got a batch of {sorted(input)}, expected {wanted}")
    value = input[names[0]]
    if not isinstance(value, Tensor):
        raise TypeError(f"got {names[0]} of type {type(value).__name__}, expected a tensor: use return_tensors='pt'")
    return names[0], value, {key: item for key, item in input.items() if key != names[0]}


def embeddings(model: Any) -> list[torch.nn.Module]:
    """Return the modules that may embed token ids."""
    tables: list[torch.nn.Module] = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    try:
        own = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return tables
    # an embedding of another kind, not one that is made of those
    if isinstance(own, torch.nn.Module) and not any(table in own.modules() for table in tables):
        tables.append(own)
    return tables


def target_mask(model: Any, rest: Mapping[str, Any]) -> Tensor | None:
    """Return the mask of the sequence that has logits: the decoder's, where there is one."""
    decoder = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    if decoder or any(name.startswith("decoder_") for name in rest):
        return rest.get("decoder_attention_mask")
    return rest.get("attention_mask")


def relevance_of(value: Tensor, signal: Tensor) -> Tensor:
    """Return input times gradient in float32 or better, of the shape of both."""
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    relevance = value.to(dtype) * signal.to(dtype)
    return relevance if signal.requires_grad else relevance.detach()


def check_finite(relevance: Tensor) -> None:
    """Raise if relevance is not finite.

    Raises
    ------
    RuntimeError
        If it holds a NaN or an infinite value.
    """
    if not bool(relevance.isfinite().all()):
        count = int((~relevance.isfinite()).sum())
        raise RuntimeError(
            f"got {count} of {relevance.numel()} relevances that are not finite; expected none. Either the forward "
            "overflows (try float32 or bfloat16), or a rule gives relevance to inputs that are exactly zero (Flat, "
            "WSquare, ZBox), which only the relevance form can express: use zennit.attribution.Gradient."
        )


def zero_padding(relevance: Tensor, mask: Tensor | None) -> Tensor:
    """Return token relevance that is exactly zero at padding, and warn if the model gave any to it."""
    if mask is None or mask.shape != relevance.shape:
        return relevance
    padding = mask.to(relevance.device) == 0
    lost, total = relevance.detach().abs().mul(padding).max(), relevance.detach().abs().max()
    if bool(lost > 1e-5 * total):
        warnings.warn(
            f"padding got relevance of up to {float(lost / total):.1%} of the largest one, and it is set to zero; "
            "expected none: the model does not mask its padding. Explain sequences without padding.",
            PaddingWarning,
            stacklevel=2,
        )
    return relevance.masked_fill(padding, 0.0)
