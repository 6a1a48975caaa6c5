"""Sanity checks: whether relevance follows the model's weights, and what occlusion says."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..hints import nearest
from ..inputs import single_input
from ..targets import Target
from .features import Batch, Patches, Tokens, fix
from .perturbation import values_without

#: An explanation method: model, batch and target to relevance of tokens or pixels.
Method = Callable[[torch.nn.Module, Batch, Target], Tensor]


def rank_correlation(first: Tensor, second: Tensor, real: Tensor | None = None) -> Tensor:
    """Return Spearman's rank correlation of two relevances.

    Parameters
    ----------
    first, second : torch.Tensor
        Of the same shape ``(batch, ...)``.
    real : torch.Tensor, optional
        Zero at padding, of the same shape.

    Returns
    -------
    torch.Tensor
        From -1 to 1 for each sample; 0 where one relevance is constant, and so says nothing about the other.

    Examples
    --------
    >>> import torch
    >>> from zennit_attn.evaluation import rank_correlation
    >>> rank_correlation(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[0.3, 0.2, 0.1]]))
    tensor([-1.])
    """
    real = torch.ones_like(first) if real is None else real
    if not first.shape == second.shape == real.shape:
        raise ValueError(f"got relevances of shapes {tuple(first.shape)} and {tuple(second.shape)}, expected the same")
    results = []
    for one, other, here in zip(first.flatten(1), second.flatten(1), real.flatten(1) != 0, strict=True):
        ranks = torch.stack([mean_ranks(one[here]), mean_ranks(other[here])])
        centered = ranks - ranks.mean(1, keepdim=True)
        product, (left, right) = centered.prod(0).sum(), centered.norm(dim=1)
        results.append(product / (left * right) if left * right > 0 else torch.zeros_like(product))
    return torch.stack(results).float().to(first.device)


def mean_ranks(values: Tensor) -> Tensor:
    """Return the rank of each value, from 0, equal values sharing the mean of theirs, of shape ``(features,)``."""
    # not every device has float64
    _, inverse, counts = values.cpu().unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    return (last - (counts + 1) / 2).double()[inverse]


def occlusion_agreement(
    model: torch.nn.Module,
    batch: Batch,
    target: Target,
    relevance: Tensor,
    features: Tokens | Patches,
    batch_size: int = 128,
) -> Tensor:
    """Return how well relevance ranks features as removing each one of them does.

    Parameters
    ----------
    model, batch, target, relevance, features, batch_size
        See :func:`perturbation_curve`. There is one forward pass for each feature: inputs should be small.

    Returns
    -------
    torch.Tensor
        Rank correlation of each sample, of shape ``(batch,)``, see :func:`rank_correlation`.
    """
    falls = exact_occlusion(model, batch, target, features, batch_size)
    return rank_correlation(features.pool(relevance), falls, features.real(batch))


def exact_occlusion(
    model: torch.nn.Module, batch: Batch, target: Target, features: Tokens | Patches, batch_size: int = 128
) -> Tensor:
    """Return by how much the explained value falls without each feature, ``(batch, features)``, 0 at padding."""
    real = features.real(batch)
    rows, places = real.nonzero(as_tuple=True)
    whole = values_without(
        model, batch, target, features, torch.arange(len(real), device=real.device), torch.zeros_like(real), batch_size
    )
    single = one_hot(places, real.shape[1]).bool()
    fall = torch.zeros(real.shape, dtype=whole.dtype, device=real.device)
    fall[rows, places] = whole[rows] - values_without(model, batch, target, features, rows, single, batch_size)
    return fall


def randomisation(
    model: torch.nn.Module,
    batch: Batch,
    target: Target,
    method: Method,
    names: Sequence[str | Sequence[str]] | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Shuffle the weights of a model layer by layer, from the output on, and compare relevance (Adebayo et al., 2018).

    An explanation that stays as it is does not explain the model. Each parameter's values are shuffled among
    themselves, so that layers of any kind keep the scale of their weights. The model itself is left as it is.

    Parameters
    ----------
    model : torch.nn.Module
        Model in evaluation mode.
    batch, target
        See :func:`perturbation_curve`.
    method : callable
        ``(model, batch, target) -> relevance``, one of :data:`zennit_attn.evaluation.baselines.METHODS`, for example.
    names : sequence of str or of sequences of str, optional
        Names of modules, in the order in which they are shuffled, each with all of its parts; several that are shuffled
        together have the name of their last. By default all modules that have parameters of their own, the last one
        first.
    generator : torch.Generator, optional
        Source of the permutations; by default one that always starts at the same state.

    Returns
    -------
    dict of str to torch.Tensor
        For each name the rank correlation of the relevance with the original one, once that module and all before it
        in this list are shuffled, of shape ``(batch,)``.

    Raises
    ------
    ValueError
        If a name is not one of the model's.
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    fixed, original = fix(model, batch, target), method(model, batch, target)
    mask = single_input(batch)[2].get("attention_mask")
    real = mask if mask is not None and mask.shape == original.shape else None
    shuffled = copy.deepcopy(model)
    modules = dict(shuffled.named_modules())
    if names is None:
        own = (name for name, module in modules.items() if next(module.parameters(recurse=False), None) is not None)
        names = list(own)[::-1]
    similarity = {}
    for group in names:
        together = [group] if isinstance(group, str) else list(group)
        for name in together:
            if name not in modules:
                raise ValueError(f"names got {name!r}, which is no module of the model; {nearest(name, modules)}")
            for parameter in modules[name].parameters():
                order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                parameter.data = parameter.data.flatten()[order].view_as(parameter)
        similarity[together[-1]] = rank_correlation(original, method(shuffled, batch, fixed), real)
    return similarity
