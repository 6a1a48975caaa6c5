"""Buckets: rows of a table, sorted by length and explained together, as many at a time as there is room for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..composites.transformer import TransformerComposite
from ..errors import InputError
from ..explain import Explainer, Explanation
from ..explain.loading import refused
from ..explain.parts import Array
from ..explain.questions import Question
from ..targets import Contrastive
from .columns import READ, Files, check_names, question_of, record_of

Found = Explanation | InputError


class BatchExplainer:
    """Explains the rows of a table: columns in, columns out.

    It is pickled without its model where that has a name, and loads it when it is first called, so that it can be sent
    to other processes: as the actor of Ray Data, or to workers of any other engine.

    Rows are sorted by length, the longest first, and explained in buckets of at most ``max_tokens``, padding included.
    Where padding would change what a model makes of a text, as in models without an attention mask, which the first
    padded bucket shows, only rows of one length are put together. A bucket for which there is no room, or in which a
    row cannot be explained, is halved.

    Parameters
    ----------
    model : str, torch.nn.Module or Explainer
        See :class:`zennit_attn.Explainer`.
    composite : str or TransformerComposite, optional
        Likewise.
    max_tokens : int, optional
        Room of a bucket (default 512). Of images, 256 pixels count as a token. On a GPU, as many as fit are fastest;
        on a CPU, larger buckets are no faster.
    target : Any, optional
        Target of rows that have none in the column ``target``.
    contrastive : bool, optional
        Whether to explain the logit minus the mean of all others.
    rows : str, optional
        What has a row of its own in answers, see :meth:`zennit_attn.Explainer.answer`; by default the whole answer,
        because only whole answers are explained together.
    max_new_tokens : int, optional
        How long an answer is that the model makes.
    folder : str or pathlib.Path, optional
        Where images and audio are looked for that rows name.
    within : str or pathlib.Path, optional
        What those have to be in, wherever a link or ``..`` leads to; by default the ``folder``, and ``"/"`` for any.
    **options
        Of :class:`zennit_attn.Explainer`: ``reader``, ``device``, ``dtype``, ``device_map``, ``labels``,
        ``allow_pickle``.

    Raises
    ------
    InputError
        If there is no room at all.

    Examples
    --------
    >>> from zennit_attn.data import BatchExplainer
    >>> explain = BatchExplainer("HuggingFaceTB/SmolLM2-135M-Instruct", "attnlrp")
    >>> explain({"text": ["The capital of France is", "Two and two is"]})["explained"]  # doctest: +SKIP
    [' Paris', ' four']
    """

    def __init__(
        self,
        model: str | torch.nn.Module | Explainer,
        composite: str | TransformerComposite | None = None,
        max_tokens: int = 512,
        *,
        target: Any = None,
        contrastive: bool = False,
        rows: str = "answer",
        max_new_tokens: int | None = None,
        folder: str | Path = ".",
        within: str | Path | None = None,
        **options: Any,
    ) -> None:
        if max_tokens < 1:
            raise InputError(f"got max_tokens={max_tokens}, expected at least 1")
        self.given = (composite, options)
        self.name = model if isinstance(model, str) else None
        self.room, self.files = max_tokens, Files(Path(folder), Path(folder if within is None else within))
        self.target, self.contrastive = target, contrastive
        kind = Contrastive if contrastive else None
        self.answer = {"rows": rows, "max_new_tokens": max_new_tokens, "target": kind}
        self._explainer = None if isinstance(model, str) else explainer_of(model, composite, options)
        #: Whether padding changes nothing, None as long as that is not known.
        self.pads: bool | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_explainer": self._explainer if self.name is None else None}

    @property
    def explainer(self) -> Explainer:
        """The model with its reader, which is loaded at the first look."""
        if self._explainer is None:
            assert self.name is not None
            self._explainer = explainer_of(self.name, *self.given)
        return self._explainer

    def __call__(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Explain the rows of a table.

        Parameters
        ----------
        columns : mapping of str to sequence
            ``text``, or what the task takes: ``question``, ``second``, ``image``, ``texts``, ``audio``, ``series``,
            ``messages``, ``documents``, ``answer``; and ``target``.

        Returns
        -------
        dict of str to list
            ``explained`` (what), its ``index`` and ``logit`` where it is one token or class, ``value`` (what is shared
            out), ``tokens`` and ``relevance`` (of images, their pixels'), ``warnings``, and ``error`` of rows that
            could not be explained, whose other values are None; and the columns that were not read.
        """
        names = list(columns)
        table = [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        found = [result_of(each) for each in self.explanations(table)]
        handed = {name: [row[name] for row in table] for name in names if name not in READ}
        return {**handed, **{name: [record[name] for record in found] for name in result_of(InputError(""))}}

    def explanations(self, table: Sequence[Mapping[str, Any] | InputError]) -> list[Found]:
        """Return the explanation of each row, or why there is none.

        Parameters
        ----------
        table : sequence of mapping
            Rows; an InputError is one that could not be read.
        """
        found = {number: each for bucket in self.in_turn(table) for number, each in zip(*bucket, strict=True)}
        return [found[number] for number in range(len(table))]

    def in_turn(self, table: Sequence[Mapping[str, Any] | InputError]) -> Iterator[tuple[list[int], list[Any]]]:
        """Yield numbers of rows, and what was found of each or why nothing was, one bucket after the other.

        Parameters
        ----------
        table : sequence of mapping
            Rows; an InputError is one that could not be read.
        """
        asked: list[tuple[int, Question]] = []
        for number, row in enumerate(table):
            try:
                if isinstance(row, InputError):
                    raise row
                check_names(row)
                # a row may hold anything, at which what reads it raises anything
                with refused("cannot read the row", "expected what the task takes, see docs/data.md"):
                    asked.append((number, self.question(row)))
            except InputError as error:
                yield [number], [error]
        with self.explainer.holding():
            yield from self.in_buckets(asked)

    def ask(self, questions: Sequence[Question]) -> Sequence[Any]:
        """Return what is found of each of some questions, by passes that they share."""
        return self.explainer.explain(questions)

    def question(self, row: Mapping[str, Any]) -> Question:
        """Return what a row asks."""
        return question_of(self.explainer, row, self.files, self.target, self.contrastive, self.answer)

    def in_buckets(self, asked: Sequence[tuple[int, Question]]) -> Iterator[tuple[list[int], list[Any]]]:
        """Yield numbers of rows and what was found of each."""
        waiting = self.buckets(asked)
        while waiting:
            bucket = waiting.pop(0)
            numbers, questions = [number for number, _ in bucket], [question for _, question in bucket]
            try:
                found = self.ask(questions)
                if self.pads is None and len({question.lengths() for question in questions}) > 1:
                    self.pads = self.agrees(questions[-1], found[-1])
                    if not self.pads:
                        rest = [bucket, *waiting]
                        waiting = self.buckets([each for some in rest for each in some])
                        continue
            except InputError as error:
                if len(bucket) == 1:
                    yield numbers, [error]
                    continue
                if isinstance(error.__cause__, torch.OutOfMemoryError):
                    self.room = max(1, len(questions) * questions[0].cost() // 2)
                middle = (len(bucket) + 1) // 2
                waiting[:0] = [bucket[:middle], bucket[middle:]]
                continue
            yield numbers, list(found)

    def buckets(self, asked: Sequence[tuple[int, Question]]) -> list[list[tuple[int, Question]]]:
        """Return questions in buckets of one kind each, the longest first."""

        def kind(pair: tuple[int, Question]) -> str:
            own = pair[1].kind()
            # what is asked alone is a kind of its own
            return f"{pair[0]}" if own is None else f"{own} {pair[1].lengths() if self.pads is False else ''}"

        found: list[list[tuple[int, Question]]] = []
        for _, group in itertools.groupby(sorted(asked, key=kind), kind):
            bucket: list[tuple[int, Question]] = []
            for pair in sorted(group, key=lambda pair: -pair[1].cost()):
                # the first is the longest
                if bucket and (len(bucket) + 1) * bucket[0][1].cost() > self.room:
                    found.append(bucket)
                    bucket = []
                bucket.append(pair)
            found.append(bucket)
        return sorted(found, key=lambda bucket: -bucket[0][1].cost())

    def agrees(self, question: Question, together: Any) -> bool:
        """Tell whether a row has alone what it has with padding."""
        (alone,) = self.ask([question])
        dtype = next(parameter.dtype for parameter in self.explainer.model.parameters())
        # the rounding of other shapes is far below, what other words change is far above
        tolerance = torch.finfo(dtype).eps ** 0.5
        for one, other in zip(self.values(alone), self.values(together), strict=True):
            scale = float(np.abs(one).max(initial=0))
            if one.shape != other.shape or not np.allclose(one, other, rtol=0, atol=tolerance * scale):
                return False
        return True

    def values(self, found: Any) -> list[Array]:
        """Return the numbers that padding might change."""
        return [part.relevance for part in found.parts]


def explainer_of(model: Any, composite: Any, options: Mapping[str, Any]) -> Explainer:
    """Return the explainer of a model; one that is there already has its own composite.

    Raises
    ------
    InputError
        If it is there, and another composite or options are given.
    """
    if not isinstance(model, Explainer):
        return Explainer(model, composite=composite, **options)
    if composite is not None or options:
        given = ["composite"] * (composite is not None) + list(options)
        raise InputError(f"got an Explainer and {' and '.join(given)}, expected it to be made with them")
    return model


def result_of(found: Found) -> dict[str, Any]:
    """Return an explanation, or an error, as the values of columns."""
    if isinstance(found, InputError):
        names = ("explained", "index", "logit", "value", "tokens", "relevance", "warnings")
        return {**dict.fromkeys(names), "error": str(found)}
    record = record_of(found)
    if record["relevance"] is None:
        record["relevance"] = found.relevance
    return {name: value for name, value in record.items() if name not in ("matrix", "explanation")}
