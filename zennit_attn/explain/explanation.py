"""Explanation: what was asked, and the relevance of every part of the input, as data and as pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import heatmap
from ..errors import InputError
from ..files import encoded, put
from . import storage
from .pages import page_of
from .parts import Array, Part, Picture, Row, Signal, Text, sums
from .units import Span, distinct

if TYPE_CHECKING:
    import pandas

Unit = str | Mapping[str, Span]

#: How much of an answer a title has.
LONGEST = 80
#: How many channels are drawn as a curve each.
MOST_CURVES = 7
#: Formats of :meth:`Explanation.save`: data, a page, pictures.
DATA, PAGE, PICTURES = (".json", ".safetensors"), (".html",), (".png", ".pdf", ".svg")


@dataclass(frozen=True)
class Explanation:
    """Why a model said what it said.

    Attributes
    ----------
    task : str
        What the model was asked for, see :data:`zennit_attn.explain.tasks.TASKS`.
    parts : tuple
        What it was given: :class:`~zennit_attn.explain.parts.Text`, :class:`~zennit_attn.explain.parts.Picture` or
        :class:`~zennit_attn.explain.parts.Signal`, each with its relevance.
    rows : tuple of Row
        What is explained: one token or class, or the sentences or tokens of an answer.
    answer : Text or None
        What the model answered, with the relevance that its own words had for later ones.
    about : dict
        What this depends on: model and digest, preset and parameters, target, versions.
    warnings : tuple of str
        What was reported on the way.
    """

    task: str
    parts: tuple[Part, ...]
    rows: tuple[Row, ...]
    answer: Text | None = None
    about: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What is explained, in words: the token, the class, the answer, or one answer rather than another."""
        if self.answer is None:
            return "".join(row.label for row in self.rows)
        other = self.about.get("rather_than")
        return self.answer.text if other is None else f"{self.answer.text.strip()} rather than {other.strip()}"

    @property
    def value(self) -> float:
        """What is shared out, summed over rows."""
        return sum(row.value for row in self.rows)

    @property
    def matrix(self) -> Array:
        """Relevance of the first part: rows × its elements."""
        return self.parts[0].relevance

    @property
    def relevance(self) -> Array:
        """Relevance of the first part's elements, summed over rows."""
        return np.asarray(self.matrix.sum(0))

    @property
    def tokens(self) -> tuple[str, ...]:
        """Tokens of the text that was given.

        Raises
        ------
        InputError
            If there is no text.
        """
        return self.text_part().tokens

    def text_part(self) -> Text:
        """Return the text that was given.

        Raises
        ------
        InputError
            If there is none.
        """
        for part in self.parts:
            if isinstance(part, Text):
                return part
        kinds = [type(part).__name__.lower() for part in self.parts]
        raise InputError(f"got an explanation of {' and '.join(kinds)}, expected one of a text")

    def by(self, unit: Unit = "word", answer: Unit | None = None, part: int | None = None) -> dict[str, Any]:
        """Return the relevance of units of the text: sums, so that they add up to the sum over tokens.

        Parameters
        ----------
        unit : str or mapping, optional
            ``"token"``, ``"word"`` (default), ``"sentence"``, ``"line"``, ``"message"``, ``"document"``, or spans of
            characters by name.
        answer : str or mapping, optional
            Units of the answer: the result is a dict of them, each with a dict of the prompt's units.
        part : int, optional
            Which of several texts; by default the first.

        Returns
        -------
        dict
            Name to relevance, in the order of the text. Of units of one name, the second is ``name#2``.

        Raises
        ------
        InputError
            If there are no such units.
        """
        text = self.text_part() if part is None else self.parts[part]
        if not isinstance(text, Text):
            raise InputError(f"got part={part}, a {type(text).__name__.lower()}, expected a text")
        groups = text.groups(unit)
        if answer is None:
            return sums(text.relevance.sum(0, dtype=np.float64), groups)
        return {
            name: sums(text.relevance[indices].sum(0, dtype=np.float64), groups)
            for name, indices in self.groups_of_rows(answer)
        }

    def groups_of_rows(self, unit: Unit) -> list[tuple[str, list[int]]]:
        """Return the rows of each unit of the answer.

        Raises
        ------
        InputError
            If there is no answer, or a row is not inside of one unit.
        """
        if self.answer is None:
            raise InputError("got units of an answer for an explanation without one; expected Explainer.answer")
        spans = tuple(row.span or (0, 0) for row in self.rows)
        labels = tuple(row.label for row in self.rows)
        found = Text(self.answer.text, labels, spans, (False,) * len(spans)).groups(unit)
        _, units = self.answer.units(unit)
        for start, end in spans:
            whole = self.answer.text[start:end].strip()
            start = self.answer.text.find(whole, start)
            end = start + len(whole)
            # a row of several units, or of a part of one, cannot be shared out among them
            if any(first < end and last > start and not (first <= start and last >= end) for first, last in units):
                raise InputError(
                    f"got {unit!r} for rows such as {whole!r}, which has a part of such a unit, or several; expected "
                    'coarser units, or answer(..., rows="token")'
                )
        return found

    def shares(self) -> dict[str, float]:
        """Return the sum of relevance of each part, of the answer's own tokens, and of what has none of them.

        What is left went to biases, positions and other constants, or was kept by a rule. All of it adds up to
        :attr:`value`.
        """
        found = {part.name: float(part.relevance.sum(dtype=np.float64)) for part in self.parts}
        if self.answer is not None:
            found[self.answer.name] = float(self.answer.relevance.sum(dtype=np.float64))
        return {**found, "everything else": self.value - sum(found.values())}

    def picture(self, title: str | None = None, unit: Unit = "token", **options: Any) -> Any:
        """Return the heatmap, see :mod:`zennit_attn.heatmap`, which takes the options.

        Parameters
        ----------
        title : str, optional
            Its title; by default what is explained.
        unit : str or mapping, optional
            What is drawn of a text, see :meth:`by`.
        """
        title = self.title() if title is None else title
        images = [part for part in self.parts if isinstance(part, Picture)]
        texts = [part.folded() for part in self.parts if isinstance(part, Text)]
        if images and texts:
            image, text = images[0], texts[0]
            values = (image.relevance.sum(0), image.pixels, list(text.tokens), text.relevance.sum(0))
            # a pixel has little beside a word, a patch has not
            patch = self.about.get("patch")
            own = {
                "skip": own_tokens(text),
                "patch": None if np.mod(image.pixels.shape[1:], patch or 1).any() else patch,
            }
            return heatmap.pair(*values, title=title, **{**own, **options})
        if images:
            return heatmap.images(images[0].relevance.sum(0), images[0].pixels, title=title, **options)
        if not texts:
            signal = self.parts[0]
            assert isinstance(signal, Signal)
            if len(signal.values) > MOST_CURVES:
                # a spectrogram, the low bands below
                shades = (signal.values - signal.values.min()) / max(float(np.ptp(signal.values)), 1e-6)
                return heatmap.images(signal.relevance.sum(0)[::-1], shades[::-1], title=title, **options)
            return heatmap.curve(signal.relevance.sum(0), signal.values, signal.rate, title=title, **options)
        return self.rows_of_text(texts, title, unit, options)

    def rows_of_text(self, texts: list[Text], title: str, unit: Unit, options: Mapping[str, Any]) -> Any:
        """Return the heatmap of a text, a row for each that is explained, or of several texts one after the other."""
        words: list[str] = []
        values = np.zeros((len(self.rows), 0))
        skip: list[int] = []
        for text in texts:
            if unit == "token":
                skip += [len(words) + index for index in own_tokens(text)]
                words += text.tokens
                values = np.concatenate([values, text.relevance], 1)
                continue
            groups, own = text.groups(unit), set(own_tokens(text))
            skip += [len(words) + place for place, (_, indices) in enumerate(groups) if own.issuperset(indices)]
            words += [f" {name.split('#')[0] or name}" for name, _ in groups]
            sums_of = [text.relevance[:, indices].sum(1) for _, indices in groups]
            values = np.concatenate([values, np.stack(sums_of, 1)], 1)
        relevance: Any = values[0]
        if len(self.rows) > 1:
            labels = distinct(row.label.strip() for row in self.rows)
            relevance = dict(zip(labels, values, strict=True))
        return heatmap.tokens(words, relevance, title=title, **{"skip": skip, **options})

    def title(self) -> str:
        """Return a title: what is explained, its value, and by which preset."""
        value = self.rows[0]
        number = (
            f"logit {value.logit:+.4g}" if value.logit is not None and len(self.rows) == 1 else f"{self.value:+.4g}"
        )
        label = self.label.strip()
        label = label if len(label) <= LONGEST else f"{label[: LONGEST - 1]}…"
        return ", ".join(filter(None, [repr(label), number, self.about.get("preset", "")]))

    def beside(self, *others: Explanation, unit: Unit = "word", names: Sequence[str] | None = None) -> Any:
        """Return a picture of several explanations of one text, by units, so that tokenizers may differ.

        Parameters
        ----------
        *others : Explanation
            Of another preset, target or model.
        unit : str or mapping, optional
            What is compared, see :meth:`by`.
        names : sequence of str, optional
            What stands before each row.

        Raises
        ------
        InputError
            If the texts differ.
        """
        every = (self, *others)
        sides = [explanation.by(unit) for explanation in every]
        texts = [explanation.text_part() for explanation in every]
        shown = [key for key in sides[0] if all(key in side for side in sides)]
        lost = [key for side in sides for key in side if key not in shown and key not in special_names(texts)]
        if lost:
            raise InputError(
                f"got texts that differ in {lost[0]!r}, expected explanations of one text; those of other case "
                "or accents can be compared by spans of characters"
            )
        titles = distinct(names if names is not None else (explanation.title() for explanation in every))
        if len(titles) != len(every):
            raise InputError(f"got {len(titles)} names for {len(every)} explanations, expected one for each")
        rows = {title: np.array([side[key] for key in shown]) for title, side in zip(titles, sides, strict=True)}
        return heatmap.tokens([f" {key.split('#')[0]}" for key in shown], rows, shared=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the explanation: its data as JSON or safetensors, a page as HTML, a picture as PNG, PDF or SVG.

        Raises
        ------
        InputError
            If the name has another ending.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix in PICTURES:
            self.picture().save(path)
        elif suffix in PAGE:
            if any(isinstance(part, Text) for part in self.parts):
                put(path, encoded(heatmap.page(page_of(self))))
            else:
                self.picture().save(path)
        elif suffix == ".safetensors":
            storage.write_safetensors(path, self)
        elif suffix == ".json":
            storage.write_json(path, self)
        else:
            wanted = ", ".join((*DATA, *PAGE, *PICTURES))
            raise InputError(f"got {str(path)!r}, expected a name that ends with one of {wanted}")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Explanation:
        """Read what :meth:`save` wrote as JSON or safetensors.

        Raises
        ------
        InputError
            If the file is none.
        """
        return storage.read(Path(path), cls)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as what JSON has: dicts, lists, strings and numbers."""
        return storage.to_dict(self)

    def to_dataframe(self, unit: Unit = "token") -> pandas.DataFrame:
        """Return a DataFrame of units and their relevance, a column for each row; it takes pandas.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        import pandas

        text = self.text_part()
        names, groups = zip(*text.groups(unit), strict=True)
        columns = {
            label: [float(relevance[indices].sum()) for indices in groups]
            for label, relevance in zip(distinct(row.label.strip() for row in self.rows), text.relevance, strict=True)
        }
        return pandas.DataFrame(columns, index=pandas.Index(names, name=unit if isinstance(unit, str) else "span"))

    def _repr_html_(self) -> str:
        return str(self.picture()._repr_html_())

    def __repr__(self) -> str:
        parts = ", ".join(f"{part.name} {part.relevance.shape[1:]}" for part in self.parts)
        return (
            f"Explanation({self.task} of {self.label.strip()!r}, {self.value:+.4g}, {len(self.rows)} rows of {parts})"
        )


def with_warnings(explanation: Explanation, messages: Sequence[str]) -> Explanation:
    """Return an explanation with what was reported before it was there."""
    return replace(explanation, warnings=tuple(dict.fromkeys([*messages, *explanation.warnings])))


def own_tokens(text: Text) -> list[int]:
    """Return the tokenizer's own tokens, which often are attention sinks; none if there are no others."""
    found = [index for index, own in enumerate(text.special) if own]
    return found if len(found) < len(text.tokens) else []


def special_names(texts: Sequence[Text]) -> set[str]:
    """Return the tokens that are in no text."""
    return {
        token.strip()
        for text in texts
        for token, (start, end) in zip(text.tokens, text.spans, strict=True)
        if end <= start
    }
