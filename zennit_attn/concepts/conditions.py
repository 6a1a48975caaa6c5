"""Conditions that hold in every backward pass of a model, whatever attributor runs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from ..engine.operands import Form
from ..errors import InputError
from ..latents import Features
from .channels import mask_of
from .conditional import CondAttribution, MaskMap
from .places import Place, looking
from .samples import Condition


@contextmanager
def conditioned(
    model: torch.nn.Module,
    conditions: Sequence[Condition],
    mask_map: MaskMap = None,
    features: Sequence[Features] = (),
    form: Form = "relevance",
) -> Iterator[None]:
    """Let conditions hold in every backward pass of a model, whatever attributor runs it.

    What goes around the layers, through shortcuts, reaches the input, too.

    Parameters
    ----------
    model : torch.nn.Module
        The model, on which the rules are already: enter the attributor first.
    conditions : sequence of dict
        Units by layer or latent, for each sample of the batches to come; one condition is for all samples.
    mask_map, features
        See :class:`CondAttribution`.
    form : {"relevance", "gradient"}, optional
        Form of the backward signal: zennit's own attributors have the relevance form (default).

    Raises
    ------
    InputError
        If a condition names what there is not, or what is explained.

    Examples
    --------
    >>> import torch
    >>> from zennit.attribution import Gradient
    >>> from zennit.composites import EpsilonPlus
    >>> from zennit_attn.concepts import conditioned
    >>> layers = torch.nn.Conv2d(3, 4, 2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4, 2)
    >>> model = torch.nn.Sequential(*layers)
    >>> with Gradient(model, EpsilonPlus()) as attributor, conditioned(model, [{"0": [0]}]):
    ...     output, relevance = attributor(torch.rand(5, 3, 2, 2), lambda output: output)
    """
    names = list(dict.fromkeys(name for condition in conditions for name in condition))
    if CondAttribution.MODEL_OUTPUT_NAME in names or not conditions:
        raise InputError(
            f"got the conditions {list(conditions)}, expected at least one, and none on 'y': what is explained is the "
            "attributor's to know."
        )
    samples = None if len(conditions) == 1 else len(conditions)

    def note(name: str, place: Place) -> None:
        base = name.split("#")[0]
        size = place.samples
        if samples is not None and size != samples:
            raise InputError(f"got {samples} conditions for a batch of {size}, expected one for each sample, or one.")
        each = conditions if samples is not None else [*conditions] * size
        kept = {row: condition[base] for row, condition in enumerate(each) if base in condition}
        given = mask_map.get(base) if isinstance(mask_map, Mapping) else mask_map
        place.tensor.register_hook(mask_of(base, place.found, place.module, given, kept))

    with looking(model, names, features, form, note):
        yield
