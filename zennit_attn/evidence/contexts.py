"""Contexts: which sentence of its context a language model read its answer from, and what happens without it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from ..data.buckets import BatchExplainer
from ..errors import InputError
from ..evaluation import Fixed, pointing_game, rank_correlation, reciprocal_rank, relevance_mass_accuracy
from ..explain import Explainer
from ..explain.answers import generated
from ..explain.prompts import source_of, takes
from .citing import context_cite
from .passages import passages
from .study import USUAL, Found, Study, each

#: Methods that look at whole sources: how many forward passes each takes.
CITING = {f"contextcite_{count}": count for count in (32, 64, 128, 256)}
#: How long an answer is at most, in tokens.
LENGTH = 8
#: What ends an answer.
ENDS = ".,;:!?\n"
#: How many of the most relevant sentences are taken out.
TAKEN = (1, 3)


@dataclass(frozen=True)
class Asked:
    """A context with its question, as tokens.

    Attributes
    ----------
    ids : torch.Tensor
        All tokens of it, of shape ``(tokens,)``.
    source : torch.Tensor
        Which sentence each token is of, -1 for the question, of the same shape.
    answer : list of int
        The tokens of the answer.
    truth : int or None
        Which sentence says it, if that is known.
    """

    ids: Tensor
    source: Tensor
    answer: list[int]
    truth: int | None

    @property
    def sources(self) -> int:
        """How many sentences there are."""
        return int(self.source.max()) + 1

    def without(self, removed: Sequence[bool]) -> Tensor:
        """Return the tokens that are left without some of the sentences."""
        gone = torch.tensor([*removed, False], device=self.ids.device)
        return self.ids[~gone[self.source]]


class Contexts(Study):
    """Which sentence of its context made a language model say so, of answers that it gives rightly.

    Parameters
    ----------
    methods, dtype, batch_size
        See :class:`Study`; ``contextcite_64`` is ContextCite's linear surrogate from 64 forward passes, likewise 32,
        128 and 256.
    answers : {"next", "whole"}, optional
        Whether the first token of an answer is explained (default), or the sum of all its tokens' logits.
    ablations : int, optional
        How many random subsets of the sentences LDS looks at.
    seed : int, optional
        Seed of these.

    Raises
    ------
    InputError
        If an argument is none of these.
    """

    name = "context"
    wants = '{"sentences": ["..."], "question": "...", "answer": "...", "truth": 0}; the last two may be missing'
    default = (*USUAL, "contextcite_32")

    def __init__(
        self,
        methods: Sequence[str] | None = None,
        dtype: str | None = None,
        batch_size: int = 16,
        answers: str = "next",
        ablations: int = 32,
        seed: int = 1,
    ) -> None:
        super().__init__(methods, dtype, batch_size)
        if answers not in ("next", "whole"):
            raise InputError(f"got answers={answers!r}, expected 'next' or 'whole'")
        if ablations < 2:
            raise InputError(f"got ablations={ablations}, expected at least 2: a rank correlation takes as many")
        self.answers, self.ablations, self.seed = answers, ablations, seed
        self.scores = {
            "sentence": "whether the sentence that says it has the most relevance (pointing game)",
            "MRR": "one over the rank of that sentence",
            "mass": "share of the sentences' positive relevance that it has",
            "token": "whether the token with the most relevance, of those of the sentences, is in it",
            "token mass": "share of their positive relevance that its tokens have",
            "drop 1": "fall of the answer's log-probability without the sentence of most relevance",
            "drop 3": "likewise without the three of most relevance",
            "LDS": f"rank correlation with the answer's log-probability over {ablations} random subsets of sentences",
        }

    def method(self, name: str) -> Any:
        """Return a method of tokens by its name; those of whole sources have none."""
        return None if name in CITING else super().method(name)

    def rows(self, count: int) -> list[dict[str, Any]]:
        """Return passages of known facts."""
        return [passage.row() for passage in passages(count)]

    def measure(self, explain: BatchExplainer, rows: Sequence[Mapping[str, Any]]) -> list[Found | InputError]:
        """Return the scores of each row, or why it has none: the model did not answer it rightly, for example."""
        explainer = explain.explainer
        scoring = self.scoring(explainer.model)
        return each(rows, lambda row: self.of(explainer, scoring, asked_of(explainer, row)))

    def of(self, explainer: Explainer, scoring: torch.nn.Module, asked: Asked) -> Found:
        """Return the scores of all methods on a row."""
        answer = asked.answer if self.answers == "whole" else asked.answer[:1]
        shares, tokens, seconds = {}, {}, {}
        batch, target = one_row(explainer, asked, answer)
        plain = [name for name in self.methods if name not in CITING]
        explained = self.relevances(plain, explainer.model, batch, target) if plain else {}
        for name, (relevance, took) in explained.items():
            tokens[name] = relevance[0, : len(asked.ids)].double().cpu()
            shares[name], seconds[name] = summed(tokens[name], asked.source.cpu()), took
        for name in CITING.keys() & self.methods:
            # not those that LDS looks at
            kept = self.subsets(CITING[name], asked.sources, self.seed + 1)
            start = time.perf_counter()
            values = log_probability(scoring, asked, answer, ~kept, self.batch_size)
            shares[name] = context_cite(kept, values, len(answer))
            seconds[name] = time.perf_counter() - start
        kept = self.subsets(self.ablations, asked.sources, self.seed)
        removed = [~kept, np.zeros((1, asked.sources), bool), *map(most_relevant, shares.values())]
        values = log_probability(scoring, asked, answer, np.concatenate(removed), self.batch_size)
        drawn, whole, left = np.split(values, [self.ablations, self.ablations + 1])
        found: Found = {}
        falls = dict(zip(shares, left.reshape(-1, len(TAKEN)), strict=True))
        for name in (name for name in self.methods if name in falls):
            one, three = falls[name]
            predicted = torch.from_numpy(kept @ shares[name])[None]
            found[name] = {
                **self.localised(asked, shares[name], tokens.get(name)),
                "drop 1": float(whole[0] - one),
                "drop 3": float(whole[0] - three),
                "LDS": float(rank_correlation(predicted, torch.from_numpy(drawn)[None])),
                "seconds": seconds[name],
            }
        return found

    def localised(self, asked: Asked, sentences: np.ndarray[Any, Any], tokens: Tensor | None) -> dict[str, float]:
        """Return whether relevance is where the answer was read, if that is known."""
        if asked.truth is None:
            return {}
        values = torch.from_numpy(sentences)[None]
        truth = torch.zeros_like(values)
        truth[0, asked.truth] = 1
        scores = {
            "sentence": pointing_game(values, truth),
            "MRR": reciprocal_rank(values, truth),
            "mass": relevance_mass_accuracy(values, truth),
        }
        if tokens is not None:
            source = asked.source.cpu()
            inside = (source >= 0)[None]
            here = (source == asked.truth)[None]
            scores |= {
                "token": pointing_game(tokens[None], here, inside),
                "token mass": relevance_mass_accuracy(tokens[None].masked_fill(~inside, 0), here),
            }
        return {key: float(value) for key, value in scores.items()}

    def subsets(self, count: int, sources: int, seed: int) -> np.ndarray[Any, Any]:
        """Return random subsets of the sources, each kept with probability 1/2, of shape ``(count, sources)``."""
        return np.random.default_rng(seed).random((count, sources)) < 0.5


def most_relevant(shares: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return which sources are taken out where the most relevant ones go, a row for each number of them."""
    order = np.argsort(-shares, kind="stable").argsort()
    return np.stack([order < count for count in TAKEN])


def asked_of(explainer: Explainer, row: Mapping[str, Any]) -> Asked:
    """Return a row as tokens, with what the model answers.

    Raises
    ------
    InputError
        If something is missing, or the model answers something else.
    """
    if explainer.task.name != "next token":
        raise InputError(f"got a model for {explainer.task.name}, expected a language model for the study 'context'")
    sentences: Any = row.get("sentences")
    question, truth = row.get("question"), row.get("truth")
    is_text = isinstance(sentences, list) and all(isinstance(each, str) and each.strip() for each in sentences)
    if not is_text or len(sentences) < 2 or not isinstance(question, str):
        raise InputError(f"got a row with {sorted(row)}, expected {Contexts.wants}, with at least two sentences")
    if truth is not None and not (isinstance(truth, int) and 0 <= truth < len(sentences)):
        raise InputError(f"got truth={truth!r}, expected the number of a sentence, from 0 to {len(sentences) - 1}")
    text = " ".join(sentences) + "\n" + question
    read = explainer.tokenizer(text, return_offsets_mapping=True)
    source = torch.full((len(read["input_ids"]),), -1)
    start = 0
    for number, sentence in enumerate(sentences):
        for place, (first, last) in enumerate(read["offset_mapping"]):
            # a token may begin with the space before
            if first < last and start <= last - 1 < start + len(sentence):
                source[place] = number
        start += len(sentence) + 1
    ids = torch.tensor(read["input_ids"], device=explainer.device)
    said = answer_of(explainer, text, ids, row.get("answer"))
    return Asked(ids, source.to(ids.device), said, truth)


def answer_of(explainer: Explainer, text: str, ids: Tensor, wanted: str | None) -> list[int]:
    """Return what a model answers, greedily, up to the end of the sentence or line.

    Raises
    ------
    InputError
        If it is not what is wanted, where something is.
    """
    options = {"logits_to_keep": 1} if takes(explainer.model, "logits_to_keep") else {}
    with torch.no_grad():
        token = int(explainer.model(input_ids=ids[None], use_cache=False, **options).logits[0, -1].argmax())
    first = explainer.tokenizer.decode([token])
    # most of the wrong ones begin with another word
    if wanted is not None and not wanted.strip().startswith(first.strip().rstrip("\ufffd")):
        raise InputError(f"answered {first!r}, not {wanted!r}")
    said = []
    for token in generated(explainer, source_of(explainer, text, None, None), LENGTH):
        if any(mark in explainer.tokenizer.decode([token]) for mark in ENDS):
            break
        said.append(token)
    answer = explainer.tokenizer.decode(said).strip()
    if not said or (wanted is not None and answer != wanted.strip()):
        raise InputError(f"answered {answer!r}, expected {'a word' if wanted is None else repr(wanted)}")
    return said


def one_row(explainer: Explainer, asked: Asked, answer: list[int]) -> tuple[dict[str, Any], Fixed]:
    """Return the model's arguments for a context and an answer, and the answer's logits as what is explained."""
    ids = torch.cat([asked.ids, asked.ids.new_tensor(answer[:-1])])[None]
    classes = explainer.model.get_output_embeddings().weight.shape[0]  # type: ignore[operator]
    shares = torch.zeros(1, len(answer), classes, device=ids.device)
    shares[0, range(len(answer)), answer] = 1
    places = torch.arange(-len(answer), 0, device=ids.device)[None]
    batch: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if takes(explainer.model, "logits_to_keep"):
        batch["logits_to_keep"] = len(answer)
    return batch, Fixed(shares, places)


@torch.no_grad()
def log_probability(
    model: torch.nn.Module, asked: Asked, answer: list[int], removed: np.ndarray[Any, Any], batch_size: int
) -> np.ndarray[Any, Any]:
    """Return the log-probability of an answer without some of the sentences.

    Parameters
    ----------
    model, asked, answer
        The model, the context, and the tokens of the answer.
    removed : numpy.ndarray
        Which sentences are taken out of the text, of shape ``(count, sentences)``.
    batch_size : int
        How many texts are read at once.

    Returns
    -------
    numpy.ndarray
        Shape ``(count,)``.
    """
    given, which = np.unique(removed, axis=0, return_inverse=True)
    end = asked.ids.new_tensor(answer[:-1])
    texts = [torch.cat([asked.without(gone.tolist()), end]) for gone in given]
    order = np.argsort([-len(text) for text in texts], kind="stable")
    found = np.zeros(len(texts))
    wanted = torch.tensor(answer, device=asked.ids.device)
    for chosen in np.array_split(order, -(-len(order) // batch_size)):
        length = len(texts[chosen[0]])
        ids = torch.stack([torch.nn.functional.pad(texts[one], (length - len(texts[one]), 0)) for one in chosen])
        mask = torch.stack([torch.arange(length, device=ids.device) >= length - len(texts[one]) for one in chosen])
        # padding on the left, so that the last positions are those of the answer; their numbers are as without it
        places = (mask.cumsum(1) - 1).clamp(min=0)
        options = {"position_ids": places, "logits_to_keep": len(answer)}
        own = {name: value for name, value in options.items() if takes(model, name)}
        output = model(input_ids=ids, attention_mask=mask.long(), use_cache=False, **own)
        logits = log_softmax(output.logits[:, -len(answer) :].double(), -1)
        values = logits.gather(2, wanted.expand(len(ids), -1)[..., None]).sum((1, 2))
        found[chosen] = values.cpu().numpy()
    return found[which.reshape(-1)]


def summed(tokens: Tensor, source: Tensor) -> np.ndarray[Any, Any]:
    """Return the relevance of each sentence, the sum of its tokens'."""
    sums = torch.zeros(int(source.max()) + 2, dtype=tokens.dtype)
    return sums.index_add(0, source + 1, tokens)[1:].numpy()
