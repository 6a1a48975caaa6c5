"""Scores of explanations: perturbation curves, localisation against a known truth, and sanity checks.

Every score is computed for each sample of a batch, on the device of its inputs; :func:`bootstrap` gives the mean and a
confidence interval. Padding counts nowhere. How relevance is computed is not decided here: see
:mod:`zennit_attn.baselines` for methods to compare.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torchvision.transforms.v2.functional import gaussian_blur

from .adapters import explained
from .attribution import target_mask
from .inputs import single_input
from .parameters import nearest
from .targets import Target

Batch = Tensor | Mapping[str, Any]
#: An explanation method: model, batch and target to relevance of tokens or pixels.
Method = Callable[[torch.nn.Module, Batch, Target], Tensor]

ORDERS = ("morf", "lerf", "random")


class Fixed(Target):
    """Logits with weights of their own in each sample, which stay the same whatever the output is.

    A perturbed input is scored by what the model said about the original one: :meth:`of` fixes another target there.

    Parameters
    ----------
    shares : torch.Tensor
        Weights of the classes, of shape ``(batch, classes)``.
    position, attention_mask
        See :class:`zennit_attn.targets.Target`.

    Examples
    --------
    >>> import torch
    >>> from zennit_attn.evaluation import Fixed
    >>> from zennit_attn.targets import MaxLogit
    >>> fixed = Fixed.of(MaxLogit(), torch.tensor([[1.0, 3.0, 2.0]]))
    >>> fixed.score(torch.tensor([[9.0, 4.0, 0.0]]))
    tensor([4.])
    """

    def __init__(self, shares: Tensor, position: Any = None, attention_mask: Tensor | None = None) -> None:
        super().__init__(position, attention_mask)
        self.shares = shares

    @classmethod
    def of(cls, target: Target, output: Tensor, attention_mask: Tensor | None = None) -> Fixed:
        """Return a target as it is for an output of the model.

        Raises
        ------
        TypeError, ValueError
            If it is no target, or explains several positions of a sample.
        """
        if not isinstance(target, Target):
            raise TypeError(f"got a target of type {type(target).__name__}, expected one of zennit_attn.targets")
        weights = target.weights(output.detach(), attention_mask)
        if weights.dim() == 2:
            return cls(weights)
        used = (weights != 0).any(-1)
        if bool((used.sum(-1) > 1).any()):
            raise ValueError("got a target of several positions in a sample, expected one: scores need a single logit")
        places = used.int().argmax(-1)
        return cls(weights[torch.arange(len(weights), device=weights.device), places], places)

    def of_classes(self, logits: Tensor) -> Tensor:
        """Return the weights of the classes."""
        if self.shares.shape != logits.shape:
            raise ValueError(f"got weights of shape {tuple(self.shares.shape)} for logits of {tuple(logits.shape)}")
        return self.shares.to(logits)

    def at(self, rows: Tensor) -> Fixed:
        """Return the target of some samples, given their indices."""
        places = self.position[rows] if isinstance(self.position, Tensor) else self.position
        return Fixed(self.shares[rows], places)

    def score(self, output: Tensor) -> Tensor:
        """Return the explained value of each sample, ``Σ w z``, of shape ``(batch,)``."""
        if output.dim() == 3:
            output = output[torch.arange(len(output), device=output.device), self.places(output, self.attention_mask)]
        return (self.of_classes(output) * output).sum(-1)


def run(model: torch.nn.Module, batch: Batch) -> Tensor:
    """Return the logits of a batch.

    Raises
    ------
    ValueError
        If the model is in training mode, in which it answers differently every time.
    """
    if model.training:
        raise ValueError(f"got {type(model).__name__} in training mode, expected model.eval()")
    return explained(model(**batch) if isinstance(batch, Mapping) else model(batch))


def fix(model: torch.nn.Module, batch: Batch, target: Target) -> Fixed:
    """Return a target as it is for a batch, see :meth:`Fixed.of`."""
    with torch.no_grad():
        return Fixed.of(target, run(model, batch), target_mask(model, single_input(batch)[2]))


def select(batch: Batch, rows: Tensor) -> Batch:
    """Return some samples of a batch, given their indices, which may repeat."""
    if isinstance(batch, Tensor):
        return batch[rows]
    size = len(single_input(batch)[1])
    return {
        key: value[rows] if isinstance(value, Tensor) and value.dim() and len(value) == size else value
        for key, value in batch.items()
    }


@dataclass(frozen=True)
class Tokens:
    """Tokens as what is perturbed, of a batch with ``input_ids``.

    Parameters
    ----------
    fill : "zero" or int, optional
        What a removed token becomes: a zero embedding (default), or the token of this id, such as
        ``tokenizer.pad_token_id`` or ``tokenizer.mask_token_id``. The attention mask stays as it is.
    keep : tuple of int, optional
        Ids that are never removed, such as those of the special tokens that a tokenizer adds.

    Raises
    ------
    ValueError
        If the fill is neither.
    """

    fill: str | int = "zero"
    keep: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.fill != "zero" and (isinstance(self.fill, (str, bool)) or self.fill < 0):
            raise ValueError(f"fill got {self.fill!r}, expected 'zero', or the id of a token")

    def ids(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """Return the token ids of a batch, and its other arguments."""
        name, ids, rest = single_input(batch)
        if name != "input_ids":
            raise ValueError(f"got a batch with {name or 'a tensor'}, expected input_ids: use Patches for images")
        return ids, rest

    def real(self, batch: Batch) -> Tensor:
        """Return which tokens may be removed: neither padding nor kept; of shape ``(batch, positions)``."""
        ids, rest = self.ids(batch)
        mask = rest.get("attention_mask")
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask != 0
        return real & ~torch.isin(ids, torch.tensor(self.keep, dtype=ids.dtype, device=ids.device))

    def pool(self, relevance: Tensor) -> Tensor:
        """Return the relevance of tokens, which is what it is already."""
        if relevance.dim() != 2:
            raise ValueError(f"got relevance of shape {tuple(relevance.shape)}, expected (batch, positions)")
        return relevance

    def apply(self, model: Any, batch: Batch, removed: Tensor) -> Batch:
        """Return a batch without the removed tokens, given a mask of shape ``(batch, positions)``."""
        ids, rest = self.ids(batch)
        if self.fill != "zero":
            return {**rest, "input_ids": ids.masked_fill(removed, int(self.fill))}
        return {**rest, "inputs_embeds": model.get_input_embeddings()(ids).masked_fill(removed[..., None], 0.0)}


@dataclass(frozen=True)
class Patches:
    """Square patches of images as what is perturbed.

    Parameters
    ----------
    size : int
        Side of a patch in pixels, a divisor of both sides of the image.
    fill : float or {"mean", "blur"}, optional
        What a removed patch becomes: a number (default 0, which is grey for inputs from -1 to 1), the image's mean in
        each channel, or its own content, blurred with a standard deviation of half a patch.

    Raises
    ------
    ValueError
        If an argument is none of these.
    """

    size: int
    fill: float | str = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.fill, str) and self.fill not in ("mean", "blur"):
            raise ValueError(f"fill got {self.fill!r}, expected a number, 'mean' or 'blur'")
        if self.size < 1:
            raise ValueError(f"size got {self.size!r}, expected at least 1 pixel")

    def images(self, batch: Batch) -> tuple[str | None, Tensor, dict[str, Any]]:
        """Return the name of the images in a batch, the images, and the other arguments."""
        name, images, rest = single_input(batch)
        if images.dim() != 4:
            raise ValueError(f"got {name or 'an input'} of shape {tuple(images.shape)}, expected images: use Tokens")
        return name, images, rest

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Return the number of patches along each side, given images or relevance."""
        height, width = images.shape[-2:]
        if height % self.size or width % self.size:
            raise ValueError(f"size got {self.size}, expected a divisor of both sides of {height} x {width} pixels")
        return height // self.size, width // self.size

    def real(self, batch: Batch) -> Tensor:
        """Return which patches may be removed, which is all; of shape ``(batch, patches)``."""
        images = self.images(batch)[1]
        rows, columns = self.grid(images)
        return torch.ones(len(images), rows * columns, dtype=torch.bool, device=images.device)

    def pool(self, relevance: Tensor) -> Tensor:
        """Return relevance of pixels, with or without channels, added up over patches, row by row."""
        if relevance.dim() not in (3, 4):
            raise ValueError(f"got relevance of shape {tuple(relevance.shape)}, expected (batch, height, width)")
        rows, columns = self.grid(relevance)
        summed = relevance.sum(1) if relevance.dim() == 4 else relevance
        return summed.reshape(-1, rows, self.size, columns, self.size).sum((2, 4)).flatten(1)

    def spread(self, values: Tensor, like: Tensor) -> Tensor:
        """Return values of patches at each of their pixels, of shape ``(batch, height, width)``."""
        grid = values.unflatten(1, self.grid(like))
        return grid.repeat_interleave(self.size, 1).repeat_interleave(self.size, 2)

    def filling(self, images: Tensor) -> Tensor:
        """Return what removed pixels become, of a shape that expands to that of the images."""
        if self.fill == "mean":
            return images.mean((2, 3), keepdim=True)
        if self.fill != "blur":
            return images.new_full((1, 1, 1, 1), float(self.fill))
        # the blur reaches two standard deviations to each side
        return gaussian_blur(images, [2 * self.size + 1] * 2, [self.size / 2] * 2)

    def apply(self, model: Any, batch: Batch, removed: Tensor) -> Batch:
        """Return a batch without the removed patches, given a mask of shape ``(batch, patches)``."""
        name, images, rest = self.images(batch)
        perturbed = torch.where(self.spread(removed, images)[:, None], self.filling(images), images)
        return perturbed if name is None else {**rest, name: perturbed}


@dataclass(frozen=True)
class Curve:
    """How the explained value falls while more and more of the input is removed.

    Attributes
    ----------
    fractions : torch.Tensor
        Share of the features that are removed, from 0 to 1, of shape ``(batch, steps + 1)``.
    values : torch.Tensor
        Explained value, of the same shape.
    """

    fractions: Tensor
    values: Tensor

    @property
    def area(self) -> Tensor:
        """Area under the curve of each sample, by the trapezoidal rule, of shape ``(batch,)``."""
        return torch.trapezoid(self.values, self.fractions)


def perturbation_curve(
    model: torch.nn.Module,
    batch: Batch,
    target: Target,
    relevance: Tensor,
    features: Tokens | Patches,
    order: str = "morf",
    steps: int | None = None,
    batch_size: int = 128,
    generator: torch.Generator | None = None,
) -> Curve:
    """Remove features in the order of their relevance, and record the explained value (Samek et al., 2017).

    Features of equal relevance are removed in the same order in ``"morf"`` and ``"lerf"``.

    Parameters
    ----------
    model : torch.nn.Module
        Model in evaluation mode.
    batch : torch.Tensor or mapping
        Images, or a mapping with token ids, as for :class:`~zennit_attn.InputXGradient`.
    target : zennit_attn.targets.Target
        What was explained; the logit that it names for the batch as it is, is recorded.
    relevance : torch.Tensor
        Shape ``(batch, positions)``, ``(batch, height, width)`` or ``(batch, channels, height, width)``.
    features : Tokens or Patches
        What is removed, and what it becomes.
    order : {"morf", "lerf", "random"}, optional
        Most relevant first (default), least relevant first, or at random.
    steps : int, optional
        Number of steps, in each of which about the same number of features is removed: by default the largest number of
        features that a sample has, so that they are removed one by one.
    batch_size : int, optional
        Number of perturbed inputs in one forward pass.
    generator : torch.Generator, optional
        Source of the random order.

    Returns
    -------
    Curve
        Share of the features removed, and explained value.

    Raises
    ------
    ValueError
        If an argument does not fit, or relevance is not finite.

    Examples
    --------
    >>> import torch
    >>> from zennit_attn.evaluation import Patches, perturbation_curve
    >>> from zennit_attn.targets import Label
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 1, bias=False)).eval()
    >>> model[1].weight.data = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    >>> image = torch.ones(1, 1, 2, 2)
    >>> relevance = model[1].weight.detach().reshape(1, 2, 2)
    >>> perturbation_curve(model, image, Label(0), relevance, Patches(1)).values
    tensor([[10.,  6.,  3.,  1.,  0.]])
    """
    real = features.real(batch)
    ranks = ranking(features.pool(relevance), real, order, generator)
    sizes = real.sum(1)
    steps = int(sizes.max()) if steps is None else steps
    if steps < 1 or bool((sizes < 1).any()):
        raise ValueError(f"got {steps} steps and {sizes.tolist()} features to remove, expected at least 1 of each")
    # rounded to the nearest whole number, in whole numbers
    counts = (2 * torch.arange(steps + 1, device=sizes.device) * sizes[:, None] + steps) // (2 * steps)
    rows = torch.arange(len(sizes), device=sizes.device).repeat_interleave(steps + 1)
    removed = ranks[:, None] < counts[..., None]
    values = values_without(model, batch, target, features, rows, removed.flatten(0, 1), batch_size)
    return Curve(counts / sizes[:, None], values.unflatten(0, counts.shape))


def ranking(relevance: Tensor, real: Tensor, order: str, generator: torch.Generator | None = None) -> Tensor:
    """Return at which place each feature is removed, of shape ``(batch, features)``; those that are not real come last.

    Raises
    ------
    ValueError
        If relevance is not finite, or of another shape, or the order is unknown.
    """
    if relevance.shape != real.shape:
        raise ValueError(f"got relevance of {tuple(relevance.shape)} features, expected {tuple(real.shape)}")
    if not bool(relevance.isfinite().all()):
        raise ValueError("got relevance that is not finite, expected finite numbers")
    if order not in ORDERS:
        raise ValueError(f"order got {order!r}, expected one of {ORDERS}; {nearest(order, ORDERS)}")
    if order == "random":
        relevance = torch.rand(relevance.shape, generator=generator).to(real.device)
    key = relevance if order == "lerf" else -relevance
    key = key.masked_fill(~real, float("inf"))
    return key.argsort(dim=1, stable=True).argsort(dim=1)


@torch.no_grad()
def values_without(
    model: torch.nn.Module,
    batch: Batch,
    target: Target,
    features: Tokens | Patches,
    rows: Tensor,
    removed: Tensor,
    batch_size: int = 128,
) -> Tensor:
    """Return the explained value of samples without some of their features.

    Parameters
    ----------
    model, batch, target, features, batch_size
        See :func:`perturbation_curve`.
    rows : torch.Tensor
        Index of a sample for each value, of shape ``(count,)``.
    removed : torch.Tensor
        Which of its features are removed, of shape ``(count, features)``.

    Returns
    -------
    torch.Tensor
        Shape ``(count,)``, in float32 or better.
    """
    fixed = fix(model, batch, target)
    values = []
    for part in torch.arange(len(rows), device=rows.device).split(batch_size):
        perturbed = features.apply(model, select(batch, rows[part]), removed[part])
        values.append(fixed.at(rows[part]).score(run(model, perturbed)))
    joined = torch.cat(values)
    return joined if joined.dtype == torch.float64 else joined.float()


def faithfulness(
    model: torch.nn.Module,
    batch: Batch,
    target: Target,
    relevance: Tensor,
    features: Tokens | Patches,
    steps: int | None = None,
    batch_size: int = 128,
) -> Tensor:
    """Return ΔA, the area between the curves of least and most relevant first (Achtibat et al., ICML 2024).

    The higher, the better; a random order has 0 on average, a constant relevance exactly 0.

    Parameters
    ----------
    model, batch, target, relevance, features, steps, batch_size
        See :func:`perturbation_curve`.

    Returns
    -------
    torch.Tensor
        ΔA of each sample, in units of the explained value, of shape ``(batch,)``.
    """
    lerf, morf = (
        perturbation_curve(model, batch, target, relevance, features, order, steps, batch_size).area
        for order in ("lerf", "morf")
    )
    return lerf - morf


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(
    values: Tensor, confidence: float = 0.95, resamples: int = 2000, generator: torch.Generator | None = None
) -> Interval:
    """Return the mean over samples with a percentile bootstrap interval (Efron, 1979).

    Parameters
    ----------
    values : torch.Tensor
        A score of each sample, of shape ``(samples,)``.
    confidence : float, optional
        Probability of the interval.
    resamples : int, optional
        How often samples are drawn, with replacement.
    generator : torch.Generator, optional
        Source of the draws; by default one that always starts at the same state, so that methods on the same samples
        are drawn alike.

    Returns
    -------
    Interval
        Mean, and the ends of the interval.

    Raises
    ------
    ValueError
        If there are no values, or one is not finite.
    """
    if values.dim() != 1 or not len(values) or not bool(values.isfinite().all()):
        raise ValueError(f"got values of shape {tuple(values.shape)}, expected one finite score for each sample")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence got {confidence!r}, expected a number between 0 and 1")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    values = values.double().cpu()
    means = torch.stack(
        [values[torch.randint(len(values), values.shape, generator=generator)].mean() for _ in range(resamples)]
    )
    tail = (1 - confidence) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=means.dtype)).tolist()
    return Interval(float(values.mean()), low, high)


def flattened(relevance: Tensor, truth: Tensor, real: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return relevance, truth and what is real as ``(batch, features)``, checked.

    Raises
    ------
    ValueError
        If shapes differ, relevance is not finite, or a sample has no truth, or one in its padding.
    """
    truth = truth != 0
    real = torch.ones_like(truth) if real is None else real != 0
    if not relevance.shape == truth.shape == real.shape:
        raise ValueError(
            f"got relevance of shape {tuple(relevance.shape)} and a truth of {tuple(truth.shape)}, expected the same: "
            "add up relevance over its channels first, relevance.sum(1)."
        )
    if not bool(relevance.isfinite().all()):
        raise ValueError("got relevance that is not finite, expected finite numbers")
    relevance, truth, real = relevance.flatten(1), truth.flatten(1), real.flatten(1)
    if bool((truth & ~real).any()) or not bool(truth.any(1).all()):
        raise ValueError("got a truth that is empty, or in the padding, expected a real feature in each sample")
    return relevance, truth, real


def pointing_game(relevance: Tensor, truth: Tensor, real: Tensor | None = None) -> Tensor:
    """Return whether the largest relevance is on the truth (Zhang et al., 2018).

    Parameters
    ----------
    relevance : torch.Tensor
        Relevance of tokens or pixels, of shape ``(batch, ...)``, without channels.
    truth : torch.Tensor
        Non-zero where relevance should be, of the same shape.
    real : torch.Tensor, optional
        Zero at padding, such as the attention mask, of the same shape.

    Returns
    -------
    torch.Tensor
        1 or 0 for each sample; of several largest ones, the share that is on the truth.

    Examples
    --------
    >>> import torch
    >>> from zennit_attn.evaluation import pointing_game
    >>> pointing_game(torch.tensor([[0.1, 0.9, 0.0]]), torch.tensor([[0, 1, 0]]))
    tensor([1.])
    """
    relevance, truth, real = flattened(relevance, truth, real)
    relevance = relevance.masked_fill(~real, float("-inf"))
    largest = relevance == relevance.amax(1, keepdim=True)
    return (largest & truth).sum(1) / largest.sum(1)


def relevance_mass_accuracy(relevance: Tensor, truth: Tensor, real: Tensor | None = None) -> Tensor:
    """Return the share of the positive relevance that is on the truth (Arras et al., 2022).

    Parameters
    ----------
    relevance, truth, real
        See :func:`pointing_game`.

    Returns
    -------
    torch.Tensor
        From 0 to 1 for each sample, 0 where no relevance is positive.
    """
    relevance, truth, real = flattened(relevance, truth, real)
    gain = relevance.clamp(min=0) * real
    total = gain.sum(1)
    return torch.where(total > 0, (gain * truth).sum(1) / total.clamp(min=torch.finfo(total.dtype).tiny), 0.0)


def relevance_rank_accuracy(relevance: Tensor, truth: Tensor, real: Tensor | None = None) -> Tensor:
    """Return the share of the K largest relevances that is on the truth, which has K features (Arras et al., 2022).

    Parameters
    ----------
    relevance, truth, real
        See :func:`pointing_game`.

    Returns
    -------
    torch.Tensor
        From 0 to 1 for each sample. Where the K-th largest relevance occurs several times, what is expected if these
        are ranked at random.
    """
    relevance, truth, real = flattened(relevance, truth, real)
    relevance = relevance.masked_fill(~real, float("-inf"))
    size = truth.sum(1, keepdim=True)
    last = relevance.sort(1, descending=True).values.gather(1, size - 1)
    above, tied = relevance > last, relevance == last
    room = size - above.sum(1, keepdim=True)
    expected = (tied & truth).sum(1, keepdim=True) * room / tied.sum(1, keepdim=True)
    return (((above & truth).sum(1, keepdim=True) + expected) / size).squeeze(1)


def reciprocal_rank(relevance: Tensor, truth: Tensor, real: Tensor | None = None) -> Tensor:
    """Return one over the rank of the first feature of the truth; the mean over samples is the MRR.

    Parameters
    ----------
    relevance, truth, real
        See :func:`pointing_game`.

    Returns
    -------
    torch.Tensor
        From 0 to 1 for each sample. Features of the same relevance that are not of the truth count as half before it.
    """
    relevance, truth, real = flattened(relevance, truth, real)
    best = relevance.masked_fill(~truth, float("-inf")).amax(1, keepdim=True)
    others = real & ~truth
    return 1 / (1 + ((relevance > best) & others).sum(1) + ((relevance == best) & others).sum(1) / 2)


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
    names: Sequence[str] | None = None,
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
        ``(model, batch, target) -> relevance``, one of :data:`zennit_attn.baselines.METHODS`, for example.
    names : sequence of str, optional
        Names of modules, in the order in which they are shuffled, each with all of its parts. By default all modules
        that have parameters of their own, the last one first.
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
    for name in names:
        if name not in modules:
            raise ValueError(f"names got {name!r}, which is no module of the model; {nearest(name, modules)}")
        for parameter in modules[name].parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.data = parameter.data.flatten()[order].view_as(parameter)
        similarity[name] = rank_correlation(original, method(shuffled, batch, fixed), real)
    return similarity
