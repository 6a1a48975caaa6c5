"""Relevance patching of edges: what a node's change does to an output through one reader of the stream alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from zennit.core import Composite

from ..composites.presets import RelPComposite
from ..composites.registration import input_x_gradient
from ..errors import InputError
from ..latents import WRITERS, Found, chosen
from .conditional import CondAttribution
from .passes import Run, passed
from .samples import size_of
from .stream import Stream, residual_stream
from .weights import is_matrix, matrix_of

#: Under which name the effects of the stream's first version are: of embeddings, or patches.
INPUT = "input"


class EdgePatching(NamedTuple):
    """Estimated effects of patching each edge, at each token.

    Attributes
    ----------
    effects : dict of str to torch.Tensor
        By latent, of shape ``(batch, tokens, units, readers)``; under ``"input"``, of what the first layer is given,
        ``(batch, tokens, readers)``. Zero for readers that come before the node.
    readers : list of str
        Modules that read the residual stream, mostly norms, in the order of their calls; the last one, ``"output"``,
        is all that comes after the layers.
    original, patch : torch.Tensor
        The explained output for both inputs.
    """

    effects: dict[str, Tensor]
    readers: list[str]
    original: Tensor
    patch: Tensor


def edge_patching(
    model: torch.nn.Module,
    original: Tensor | Mapping[str, Any],
    patch: Tensor | Mapping[str, Any],
    target: Any,
    latents: str | Sequence[str] = "head",
    composite: Composite | None = None,
    output_key: str | None = None,
    argument: str | None = None,
) -> EdgePatching:
    """Estimate what patching each edge does to an output, from two forward passes and one backward pass.

    An edge leads from a node ``u``, which writes to the residual stream, to a reader ``v`` of it. Patched, the reader
    gets the stream with the other input's ``u``, and all others get it as it was. With the signal ``g_v`` of the rules
    at the reader's own input, and ``W_u`` the map by which the node writes, the effect is about
    ``Σ (a_patch - a)_u W_uᵀ g_v``. Over the readers it adds up to the effect of the node, as
    :func:`relevance_patching` has it.

    Parameters
    ----------
    model : torch.nn.Module
        A model of layers that add to one stream what their heads and neurons write, as they are: one with norms before
        attention and MLP, and without experts.
    original, patch, target, composite, output_key, argument
        As for :func:`relevance_patching`.
    latents : str or sequence of str, optional
        Which nodes: heads and neurons, by kind, name or pattern, see :class:`~zennit_attn.InputXGradient`.

    Raises
    ------
    InputError
        If the inputs do not correspond to each other, other latents are asked for, or the model has no such stream.

    Examples
    --------
    >>> import torch, transformers
    >>> from zennit_attn import targets
    >>> from zennit_attn.concepts import edge_patching
    >>> config = transformers.LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
    ...                                   num_attention_heads=2)
    >>> model = transformers.LlamaForCausalLM(config).eval()
    >>> ids = torch.tensor([[3, 1, 4]]), torch.tensor([[3, 2, 4]])
    >>> found = edge_patching(model, *ids, targets.Labels([5, 6], [1, -1]))
    >>> found.readers
    ['model.layers.0.input_layernorm', 'model.layers.0.post_attention_layernorm', 'output']
    >>> found.effects["model.layers.0.head"].shape
    torch.Size([1, 3, 2, 3])
    """
    wanted = (latents,) if isinstance(latents, str) else tuple(latents)
    asking = CondAttribution(model, output_key, argument)
    with input_x_gradient(RelPComposite() if composite is None else composite).context(model):
        nodes = chosen(model, wanted)[0]
        for latent in nodes:
            if latent.kind not in WRITERS or not is_matrix(model.get_submodule(latent.module)):
                raise InputError(
                    f"got {latent.name!r}, expected latents that a matrix writes to the residual stream: {WRITERS}."
                )
        first, stream = run_with_stream(asking, original)
        second, other = run_with_stream(asking, patch)
        refuse_other_shapes(stream, other)
        conditions = [{asking.MODEL_OUTPUT_NAME: target}] * size_of(original)
        weights = asking.start(first, first.output, conditions, None, True)
        versions, places = zip(*stream.readers.values(), strict=True)
        *found, whole = passed(first.output, weights, [*places, stream.start])
        signals = stacked(places, found)
        refuse_hidden_readers(signals, zeros_or(stream.start, whole))
        before = torch.tensor(versions)
        effects = {INPUT: ((other.start - stream.start) * signals).sum(-1).movedim(0, -1).detach()}
        for latent in nodes:
            version, place = stream.writers[latent.name]
            difference = other.writers[latent.name][1].tensor - place.tensor
            later = before > version
            through = at_writer(place, signals[later]) @ matrix_of(model.get_submodule(latent.module))
            by_unit = place.tidy((through * difference).detach())
            effects[latent.name] = by_unit.new_zeros(*by_unit.shape[1:], len(before))
            effects[latent.name][..., later] = by_unit.movedim(0, -1)
    return EdgePatching(effects, list(stream.readers), first.output.detach(), second.output.detach())


def run_with_stream(asking: CondAttribution, data: Tensor | Mapping[str, Any]) -> tuple[Run, Stream]:
    """Run a model, and return what it read and wrote as well."""
    with residual_stream(asking.model) as stream:
        return asking.run(data, (), "gradient"), stream


def stacked(places: Sequence[Tensor], signals: Sequence[Tensor | None]) -> Tensor:
    """Return the signals at the readers in one tensor, zero where there is no path."""
    return torch.stack([zeros_or(place, signal) for place, signal in zip(places, signals, strict=True)])


def zeros_or(place: Tensor, signal: Tensor | None) -> Tensor:
    """Return a signal; zeros if there is none."""
    return torch.zeros_like(place) if signal is None else signal


def at_writer(place: Found, signals: Tensor) -> Tensor:
    """Return signals at the stream, several of them, in the layout of what is written to it."""
    turned = signals.transpose(1, 2) if place.latent.time_major else signals
    return turned.reshape(len(signals), *place.tensor.shape[:-1], signals.shape[-1])


def refuse_other_shapes(one: Stream, other: Stream) -> None:
    """Raise InputError if two inputs do not correspond to each other."""
    shapes = [
        {"the first layer's input": tuple(stream.start.shape)}
        | {name: tuple(place.tensor.shape) for name, (_, place) in stream.writers.items()}
        for stream in (one, other)
    ]
    for name in {**shapes[0], **shapes[1]}:
        if shapes[0].get(name) != shapes[1].get(name):
            raise InputError(
                f"got inputs for which {name!r} has the shapes {shapes[0].get(name)} and {shapes[1].get(name)}; "
                "expected inputs of the same number of samples and tokens."
            )


def refuse_hidden_readers(signals: Tensor, whole: Tensor) -> None:
    """Raise InputError if the readers do not have all of the signal that the stream begins with."""
    rounding = 1e3 * torch.finfo(whole.dtype).eps * float(signals.abs().sum(0).max())
    difference = float((signals.sum(0) - whole).abs().max())
    if difference > rounding:
        raise InputError(
            f"got signals at the readers of the residual stream that differ by {difference:.2g} from its own; expected "
            "modules without parts, such as norms, that read it for attention and MLP."
        )
