"""Maxima: the rows of a data set in which each unit of a model was most relevant, or most active."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..composites.configuration import made_with
from ..data.buckets import BatchExplainer
from ..data.columns import Files
from ..data.engines import here
from ..data.ranks import rank_of
from ..data.run import Run
from ..data.sources import Source, source_of
from ..errors import InputError
from ..explain import loading
from ..explain.parts import Array
from ..explain.questions import MASKS, Question
from ..hints import nearest
from ..latents import Features
from ..targets import Each
from .references import FORMAT, Maker, References, fold, open_references
from .tops import SIGNS, Top

#: What is taken of the values of a row.
OF_A_ROW = ("max", "sum")
#: The strongest value of a row, by unit, and the positions at which they are.
Strongest = tuple[Tensor, Tensor]


class Maximum(BatchExplainer):
    """Base of what looks for the strongest values of each unit over the rows of a data set."""

    #: What the values are.
    of: str

    def __init__(
        self,
        model: Any,
        composite: Any = None,
        latents: str | Sequence[str | Features] = ("head", "neuron"),
        count: int = 8,
        by: str = "max",
        sign: str = "positive",
        max_tokens: int = 512,
        within: str | Path | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, composite, max_tokens, within=within, **options)
        self.within = within
        self.latents = (latents,) if isinstance(latents, (str, Features)) else tuple(latents)
        self.count, self.by, self.sign = count, by, sign
        if count < 1 or not self.latents:
            raise InputError(f"got count={count} and latents={self.latents}, expected at least one of each")
        for given, known in ((by, OF_A_ROW), (sign, tuple(SIGNS))):
            if given not in known:
                raise InputError(f"got {given!r}, expected one of {known}; {nearest(given, known)}")

    @abstractmethod
    def measured(self, batch: Mapping[str, Any], questions: Sequence[Question]) -> dict[str, Tensor]:
        """Return the values of units at each token, of shape ``(batch, tokens, units)``, by latent."""

    def run(
        self, input: str | Path, out: str | Path, rows_per_part: int = 256, shard: str | None = None
    ) -> References | None:
        """Look through all rows of an input, into a folder.

        Any number of processes may do so at once, as for ``zennit-attn explain --input``; what is interrupted is gone
        on with by the same call.

        Parameters
        ----------
        input : str or pathlib.Path
            A file of rows or a folder of images, see :class:`~zennit_attn.data.BatchExplainer` for the columns.
        out : str or pathlib.Path
            The folder.
        rows_per_part : int, optional
            After how many rows something is written.
        shard : str, optional
            ``"I/N"``, the share of this process; by default as torchrun and SLURM tell it.

        Returns
        -------
        References or None
            None if other processes have not done their share yet.
        """
        source, rank = source_of(Path(input)), rank_of(shard)
        self.files = Files(source.folder, Path(source.folder if self.within is None else self.within))
        place = Run(Path(out), self.settings(source), len(source), rows_per_part, FORMAT)
        for _ in here(Maker(place, source, self), [part for part in range(place.parts) if rank.has(part)]):
            pass
        fold(place, 1)
        return open_references(out) if all(map(place.is_there, range(place.parts))) else None

    def settings(self, source: Source) -> dict[str, Any]:
        """Return what the result depends on that is known before a model is loaded."""
        composite, options = self.given
        composite = composite if self._explainer is None else self._explainer.composite
        return {
            "of": self.of,
            "latents": [str(latent) for latent in self.latents],
            "count": self.count,
            "by": self.by,
            "sign": self.sign,
            "model": self.name or self.explainer.name,
            "composite": None if composite is None else repr(loading.composite_of(composite)),
            "target": None if self.target is None else str(self.target),
            "contrastive": self.contrastive,
            "max_new_tokens": self.answer["max_new_tokens"],
            "dtype": options.get("dtype"),
            "input": f"{source.path.name} {source.digest()}",
            "versions": made_with(None),
        }

    def ask(self, questions: Sequence[Question]) -> list[dict[str, Strongest]]:
        """Return the strongest value of each unit, by latent, in each of some questions."""
        batch = self.explainer.batch_of(questions)
        found: list[dict[str, Strongest]] = [{} for _ in questions]
        for name, values in self.measured(batch, questions).items():
            if "#" in name or len(values) != len(questions):
                raise InputError(
                    f"{name.split('#')[0]!r} is called several times for a row, of which each has its own tokens; "
                    "expected latents of layers that are called once."
                )
            # of a whole layer, one unit
            values = values[..., None] if values.dim() == 2 else values
            mask = mask_of(batch, values, questions)
            for sample, own in enumerate(values):
                there = torch.arange(len(own), device=own.device) if mask is None else mask[sample].nonzero()[:, 0]
                found[sample][name] = self.strongest(own[there], there)
        return found

    def strongest(self, values: Tensor, positions: Tensor) -> Strongest:
        """Return what counts of the values of a row, of shape ``(tokens, units)``, by unit."""
        # the first of equal ones
        at = SIGNS[self.sign](values).max(0).indices
        scores = values.sum(0) if self.by == "sum" else values.gather(0, at[None])[0]
        if not bool(scores.isfinite().all()):
            raise InputError("got values inside of the model that are not finite, expected finite ones")
        return scores, positions[at]

    def values(self, found: Any) -> list[Array]:
        """Return the numbers that padding might change."""
        return [scores.float().cpu().numpy() for scores, _ in found.values()]

    def tops(
        self, table: Sequence[Mapping[str, Any] | InputError], first: int = 0
    ) -> tuple[dict[str, Top], dict[int, str]]:
        """Return the strongest values over some rows, by latent, and why others could not be looked at.

        Parameters
        ----------
        table : sequence of mapping
            Rows; an InputError is one that could not be read.
        first : int, optional
            Number of the first of them.
        """
        tops: dict[str, Top] = {}
        failed: dict[int, str] = {}
        for numbers, found in self.in_turn(table):
            pairs = sorted(zip(numbers, found, strict=True), key=lambda pair: pair[0])
            failed |= {first + number: str(each) for number, each in pairs if isinstance(each, InputError)}
            there = [(first + number, each) for number, each in pairs if not isinstance(each, InputError)]
            for name in there[0][1] if there else ():
                scores, positions = (
                    torch.stack(values) for values in zip(*(each[name] for _, each in there), strict=True)
                )
                rows = torch.tensor([number for number, _ in there], device=scores.device)
                top = tops.get(name) or Top.empty(scores.shape[1], self.count, scores)
                tops[name] = top.joined(scores, rows, positions, self.sign)
        return {name: top.cpu() for name, top in tops.items()}, failed


class RelMax(Maximum):
    """The rows of a data set in which each unit was most relevant, and where (Achtibat et al. 2023).

    A row counts for each unit once, with the position at which it is most relevant, or with the sum over its
    positions; padding does not. What is kept are the ``count`` strongest of each unit, of equal ones that of the lower
    row: which rows are looked at together, and by how many processes, changes nothing but rounding.

    Parameters
    ----------
    model : str, torch.nn.Module or Explainer
        See :class:`zennit_attn.Explainer`.
    composite : str or TransformerComposite, optional
        Likewise.
    latents : str or sequence of str or Features, optional
        Which units, see :class:`zennit_attn.InputXGradient`.
    count : int, optional
        How many rows are kept of each.
    by : {"max", "sum"}, optional
        Whether a row counts by its strongest position (default), or by the sum over positions, as in zennit-crp.
    sign : {"positive", "negative", "both"}, optional
        Whether what spoke for the answer is looked for (default), what spoke against it, or the larger of both.
    max_tokens : int, optional
        Room of a bucket, see :class:`zennit_attn.data.BatchExplainer`, which has the other options, too.
    **options
        ``target``, ``contrastive``, ``device``, ``dtype``, ...

    Raises
    ------
    InputError
        If something is asked for that there is not.

    Examples
    --------
    >>> from zennit_attn.concepts import RelMax
    >>> relmax = RelMax("examples/models/agreement", latents="head", count=4)
    >>> references = relmax.run("examples/texts.jsonl", "references")  # doctest: +SKIP
    >>> references.of("model.layers.1.head", 2)  # doctest: +SKIP
    [Reference(row=1, position=2, score=3.1), ...]
    """

    of = "relevance"

    def measured(self, batch: Mapping[str, Any], questions: Sequence[Question]) -> dict[str, Tensor]:
        """Return the relevance of units."""
        target = self.explainer.target_of(questions, batch)
        found = self.explainer.attribute(batch, target, questions[0].arguments, self.latents)[2]
        return {name: values.sum(0) for name, values in found.items()} if isinstance(target, Each) else found


class ActMax(Maximum):
    """The rows of a data set in which each unit was most active, and where, from forward passes alone.

    That of a unit of several elements, as a head, is their norm. All else is as for :class:`RelMax`.

    Parameters
    ----------
    model, composite, latents, count, by, sign, max_tokens, **options
        See :class:`RelMax`.

    Examples
    --------
    >>> from zennit_attn.concepts import ActMax
    >>> actmax = ActMax("examples/models/agreement", latents="neuron", count=4)
    """

    of = "activation"

    def measured(self, batch: Mapping[str, Any], questions: Sequence[Question]) -> dict[str, Tensor]:
        """Return the activations of units."""
        return self.explainer.activations(batch, questions[0].arguments, self.latents)


def mask_of(batch: Mapping[str, Any], values: Tensor, questions: Sequence[Question]) -> Tensor | None:
    """Return where there is no padding, of shape ``(batch, tokens)``; None if there is none.

    Raises
    ------
    InputError
        If there is padding, and no mask of as many tokens: rows are looked at one by one then.
    """
    for name in MASKS.values():
        mask = batch.get(name)
        if isinstance(mask, Tensor) and mask.shape == values.shape[:2]:
            return mask != 0
    if len({question.lengths() for question in questions}) > 1:
        raise InputError(f"got padding for {values.shape[1]} tokens inside of the model, of which no mask tells it")
    return None
