"""Perturbed: how the explained value falls while an input loses its tokens or patches, in several ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..data.buckets import BatchExplainer
from ..data.fixed import asked_of, special_ids
from ..errors import InputError
from ..evaluation import Patches, Tokens, rank_correlation
from ..evaluation.baselines import patch_size
from ..evaluation.perturbation import areas
from ..evaluation.sanity import exact_occlusion
from ..explain import Explainer
from ..explain.reading import moved
from ..inputs import single_input
from .study import USUAL, Found, Study, each

#: What a removed token or patch may become.
FILLS = {"text": ("zero", "mean", "mask"), "image": ("zero", "mean", "blur")}


class Perturbed(Study):
    """ΔA, and agreement with the removal of single tokens, of whatever a model of one input is asked.

    Parameters
    ----------
    methods, dtype, batch_size
        See :class:`Study`.
    steps : int, optional
        In how many steps an input loses everything.
    length : int, optional
        How many tokens of a text are read: each removal is a forward pass of as many.
    fills : sequence of str, optional
        What removed tokens become: a zero embedding, the mean of all embeddings, and nothing that another token attends
        to (``"mask"``); removed patches zero, the image's mean, and their own blur. By default all of them.
    agreement : bool, optional
        Whether to remove each token alone, too, by the last of the fills.

    Raises
    ------
    InputError
        If an argument is none of these.
    """

    name = "perturbation"
    wants = '{"text": "..."}, with a target if it is not to be what the model chose; or "second", or an "image"'
    default = (*USUAL, "integrated_gradients")

    def __init__(
        self,
        methods: Sequence[str] | None = None,
        dtype: str | None = None,
        batch_size: int = 16,
        steps: int = 8,
        length: int = 48,
        fills: Sequence[str] | None = None,
        agreement: bool = False,
    ) -> None:
        super().__init__(methods, dtype, batch_size)
        known = dict.fromkeys(fill for kind in FILLS.values() for fill in kind)
        for fill in fills or ():
            if fill not in known:
                raise InputError(f"got the fill {fill!r}, expected one of {', '.join(known)}")
        if steps < 1 or length < 2:
            raise InputError(f"got {steps} steps and {length} tokens, expected at least 1 and 2")
        self.steps, self.length, self.fills, self.agreement = steps, length, list(fills or ()), agreement
        self.scores = {
            f"ΔA ({fill})": f"area between the curves of least and most relevant first, to {fill}"
            for fill in self.fills or known
        }
        if agreement:
            self.scores["removal"] = "rank correlation with the fall of the value without each token alone"

    def measure(self, explain: BatchExplainer, rows: Sequence[Mapping[str, Any]]) -> list[Found | InputError]:
        """Return the scores of each row, or why it has none."""
        scoring = self.scoring(explain.explainer.wrapped)
        return each(rows, lambda row: self.of(explain, scoring, row))

    def of(self, explain: BatchExplainer, scoring: torch.nn.Module, row: Mapping[str, Any]) -> Found:
        """Return the scores of all methods on a row."""
        batch, target = asked_of(explain, row, self.length)
        explainer = explain.explainer
        features = self.features(explainer, batch)
        explained = self.relevances(self.methods, explainer.wrapped, batch, target)
        relevances = [relevance for relevance, _ in explained.values()]
        found: Found = {name: {"seconds": seconds} for name, (_, seconds) in explained.items()}
        given = moved(batch, scoring, explainer.device)
        for fill, kind in features.items():
            both = areas(scoring, given, target, relevances, kind, self.steps, self.batch_size)[:, :, 0]
            for name, (morf, lerf) in zip(found, both.tolist(), strict=True):
                found[name] |= {f"ΔA ({fill})": lerf - morf, f"MoRF ({fill})": morf, f"LeRF ({fill})": lerf}
        if self.agreement:
            last = list(features.values())[-1]
            real = last.real(given)
            falls = exact_occlusion(scoring, given, target, last, self.batch_size)
            for name, relevance in zip(found, relevances, strict=True):
                found[name]["removal"] = float(rank_correlation(last.pool(relevance), falls.to(relevance), real))
        return found

    def features(self, explainer: Explainer, batch: Mapping[str, Any]) -> dict[str, Tokens | Patches]:
        """Return what is removed, by what it becomes."""
        name, value, _ = single_input(batch)
        if not value.is_floating_point():
            return {fill: Tokens(fill, special_ids(explainer.tokenizer)) for fill in self.fills_of("text")}
        if value.dim() != 4:
            raise InputError(f"got {name} of shape {tuple(value.shape)}, expected a text or an image")
        size = patch_size(explainer.wrapped)
        kinds: dict[str, float | str] = {"zero": 0.0, "mean": "mean", "blur": "blur"}
        return {fill: Patches(size, kinds[fill]) for fill in self.fills_of("image")}

    def fills_of(self, kind: str) -> Sequence[str]:
        """Return what removed ones become in texts or images.

        Raises
        ------
        InputError
            If that is only known of the other kind.
        """
        for fill in self.fills:
            if fill not in FILLS[kind]:
                raise InputError(f"got the fill {fill!r} for {kind}s, expected one of {', '.join(FILLS[kind])}")
        return self.fills or FILLS[kind]
