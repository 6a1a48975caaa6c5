"""Relevance patching: what putting activations of another input into a model would do to an output, estimated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from zennit.core import Composite

from ..composites.presets import RelPComposite
from ..composites.registration import input_x_gradient
from ..errors import InputError
from ..latents import Features, chosen
from .conditional import CondAttribution
from .passes import passed
from .samples import size_of


class Patching(NamedTuple):
    """Estimated effects of patching each unit, at each token.

    Attributes
    ----------
    effects : dict of str to torch.Tensor
        By latent, of shape ``(batch, tokens, units)``, of whole layers ``(batch, tokens)``.
    original, patch : torch.Tensor
        The explained output for both inputs.
    """

    effects: dict[str, Tensor]
    original: Tensor
    patch: Tensor


def relevance_patching(
    model: torch.nn.Module,
    original: Tensor | Mapping[str, Any],
    patch: Tensor | Mapping[str, Any],
    target: Any,
    latents: str | Sequence[str | Features] = ("head", "neuron"),
    composite: Composite | None = None,
    output_key: str | None = None,
    argument: str | None = None,
) -> Patching:
    """Estimate what patching each unit does to an output, from two forward passes and one backward pass.

    With the activations ``a`` of the original input and ``a_patch`` of the other one, and the signal ``g`` of the
    rules for the original input, the effect of ``a := a_patch`` on the target is about ``Σ (a_patch - a) g``, summed
    over the elements of a unit at a token (RelP, Jafari et al. 2025). With a plain gradient for ``g`` it is attribution
    patching; that is ``TransformerComposite(Operators("gradient", "gradient", "gradient", "gradient"))``.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    original, patch : torch.Tensor or mapping
        The input that is explained, and that of which activations are put in: of the same shape, so that tokens
        correspond to each other.
    target : Target or sequence of int
        The output that is to change, such as ``targets.Labels([a, b], [1, -1])``.
    latents : str or sequence of str or Features, optional
        Where is patched, see :class:`~zennit_attn.InputXGradient`.
    composite : zennit.core.Composite, optional
        Rules (default :class:`~zennit_attn.RelPComposite`); they are converted to the gradient form.
    output_key, argument
        See :class:`~zennit_attn.InputXGradient`.

    Raises
    ------
    InputError
        If the inputs do not correspond to each other, or experts are asked for, which differ from input to input.

    Examples
    --------
    >>> import torch, transformers
    >>> from zennit_attn import targets
    >>> from zennit_attn.concepts import relevance_patching
    >>> config = transformers.LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
    ...                                   num_attention_heads=2)
    >>> model = transformers.LlamaForCausalLM(config).eval()
    >>> ids = torch.tensor([[3, 1, 4]]), torch.tensor([[3, 2, 4]])
    >>> found = relevance_patching(model, *ids, targets.Labels([5, 6], [1, -1]), latents="head")
    >>> found.effects["model.layers.0.head"].shape
    torch.Size([1, 3, 2])
    """
    wanted = (latents,) if isinstance(latents, (str, Features)) else tuple(latents)
    features = [entry for entry in wanted if isinstance(entry, Features)]
    asking = CondAttribution(model, output_key, argument, features)
    with input_x_gradient(RelPComposite() if composite is None else composite).context(model):
        places = chosen(model, wanted)[0]
        if any(latent.kind == "expert" for latent in places):
            raise InputError(
                "got latents of experts, of which each input has others; expected heads, neurons or others."
            )
        names = [*(latent.name for latent in places), *(feature.name for feature in features)]
        runs = [asking.run(data, names, "gradient") for data in (original, patch)]
        first, second = runs
        shapes = [{name: tuple(place.tensor.shape) for name, place in run.places.items()} for run in runs]
        if shapes[0] != shapes[1]:
            wrong = [name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name)]
            raise InputError(
                f"got inputs for which {wrong[0]!r} has the shapes {shapes[0].get(wrong[0])} and "
                f"{shapes[1].get(wrong[0])}; expected inputs of the same number of samples and tokens."
            )
        conditions = [{asking.MODEL_OUTPUT_NAME: target}] * size_of(original)
        weights = asking.start(first, first.output, conditions, None, True)
        signals = passed(first.output, weights, [place.tensor for place in first.places.values()])
    effects = {}
    for (name, place), signal in zip(first.places.items(), signals, strict=True):
        difference = second.places[name].tensor.detach() - place.tensor.detach()
        effects[name] = place.shown(torch.zeros_like(difference) if signal is None else difference * signal)
    return Patching(effects, first.output.detach(), second.output.detach())
