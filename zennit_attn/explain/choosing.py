"""Choosing: what of an output is explained, of what a person names, or of what the model chose; and what it is called.

What each function gets first is the :class:`~zennit_attn.explain.Explainer`, of which it uses the labels and the
tokenizer.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor

from .. import targets
from ..errors import InputError
from ..hints import nearest
from .frames import frame_of
from .parts import Text
from .reading import Reading, moved

Choose = Callable[[Tensor], Tensor]
#: Where a target has its weights, as indices of the output of one sample.
Places = Sequence[Sequence[int]]
#: How labels of token classifiers name what is nothing.
OUTSIDE = ("O", "LABEL_0")
#: How far a place is moved, in cells of an output, by rounding.
ROUNDING = 1e-6


class Cells(targets.Target):
    """The sum of some elements of the output of one sample, which a function chooses.

    Parameters
    ----------
    choose : callable
        Given the output of the sample, returns which elements, as a mask of its shape.
    """

    given = {"choose": "choose"}

    def __init__(self, choose: Choose) -> None:
        super().__init__()
        self.choose = choose

    def weights(self, output: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return one at the chosen elements."""
        return self.choose(output.detach()[0]).to(output.dtype).expand_as(output)


def number_of(value: Any) -> int | None:
    """Return an integer, numpy's and torch's as well, None for anything else."""
    try:
        return operator.index(value)
    except TypeError:
        return None


def without_contrast(explainer: Any, contrastive: bool) -> None:
    """Raise InputError if a logit against others is asked for where there is no such thing."""
    if contrastive:
        raise InputError(f"got contrastive for {explainer.task.name}, which has an output for each place")


# classes


def class_index(explainer: Any, wanted: Any) -> int:
    """Return the index of a class by its name or number.

    Raises
    ------
    InputError
        If there is none.
    """
    names, number = explainer.labels, number_of(wanted)
    if number is not None and (not names or number in names):
        return number
    found = [index for index, name in names.items() if str(wanted) == name]
    found = found or [index for index in names if str(wanted) == str(index)]
    if not names and str(wanted).isdigit():
        return int(wanted)
    # names of ImageNet's classes have synonyms
    found = found or [index for index, name in names.items() if str(wanted) in name.split(", ")]
    if not found:
        raise InputError(
            f"got the target {wanted!r}, expected one of {len(names)} classes, by name or number; "
            + nearest(str(wanted), names.values())
        )
    return int(found[0])


def pick(index: int | None, contrastive: bool, position: int | None = None) -> targets.Target:
    """Return the target of a token or class, or of the largest logit."""
    if contrastive:
        return targets.Contrastive(index, position)
    return targets.MaxLogit(position) if index is None else targets.Label(index, position)


def class_target(explainer: Any, reading: Reading, wanted: Any, contrastive: bool) -> targets.Target:
    """Return the target of a class."""
    return pick(None if wanted is None else class_index(explainer, wanted), contrastive)


def class_label(explainer: Any, reading: Reading, places: Places) -> str:
    """Return the name of a class."""
    return str(explainer.labels.get(places[0][-1], places[0][-1]))


# tokens


def token_index(tokenizer: Any, word: Any) -> int:
    """Return the token of a word, of ``#`` and an id, or of an id.

    Raises
    ------
    InputError
        If the word is not one token.
    """
    number = number_of(word)
    if number is not None:
        if not 0 <= number < len(tokenizer):
            raise InputError(f"got the target {number}, expected a token from 0 to {len(tokenizer) - 1}, or a word")
        return number
    word = str(word)
    if word[:1] == "#" and word[1:].isdigit() and int(word[1:]) < len(tokenizer):
        return int(word[1:])
    # as a new word first, because that is what a text usually goes on with
    for text in (word,) if word[:1].isspace() else (f" {word}", word):
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            return int(ids[0])
    known = [tokenizer.decode([token]).strip() for token in range(len(tokenizer))]
    raise InputError(
        f"got the target {word!r}, expected one token of the vocabulary, as a word or as # and an id below "
        f"{len(tokenizer)}; {nearest(word, known)}"
    )


def token_target(explainer: Any, reading: Reading, wanted: Any, contrastive: bool) -> targets.Target:
    """Return the target of a token, at the place where one is missing."""
    index = None if wanted is None else token_index(explainer.tokenizer, wanted)
    return pick(index, contrastive, reading.about.get("position"))


def token_label(explainer: Any, reading: Reading, places: Places) -> str:
    """Return the text of a token."""
    return str(explainer.tokenizer.decode([places[0][-1]]))


# spans, places and regions of an output


def label_target(explainer: Any, reading: Reading, wanted: Any, contrastive: bool) -> targets.Target:
    """Return the target of a label at a token: the surest label that is not nothing, a label, or a word and a label."""
    without_contrast(explainer, contrastive)
    text = reading.parts["input_ids"]
    assert isinstance(text, Text)
    inside = torch.tensor([end > start and not own for (start, end), own in zip(text.spans, text.special, strict=True)])
    word, label = wanted if isinstance(wanted, (tuple, list)) else (None, wanted)
    if word is not None:
        names, _ = text.units("word")
        groups = dict(text.groups("word"))
        if word not in groups:
            raise InputError(f"got the word {word!r}, expected one of the text; {nearest(word, names)}")
        inside = torch.zeros(len(text.tokens), dtype=torch.bool)
        inside[groups[word][0]] = True
    nothing = [index for index, name in explainer.labels.items() if name in OUTSIDE] if label is None else []
    index = None if label is None else class_index(explainer, label)

    def choose(logits: Tensor) -> Tensor:
        allowed = inside.to(logits.device)[:, None].expand_as(logits).clone()
        if index is not None:
            allowed &= torch.arange(logits.shape[-1], device=logits.device) == index
        if nothing and logits.shape[-1] > len(nothing):
            allowed[:, nothing] = False
        # the surest: by how far it is above the others
        sure = logits.log_softmax(-1).masked_fill(~allowed, -torch.inf)
        return torch.arange(logits.numel(), device=logits.device).view_as(logits) == sure.argmax()

    return Cells(choose)


def label_at(explainer: Any, reading: Reading, places: Places) -> str:
    """Return the name of a token's label, and the token."""
    text = reading.parts["input_ids"]
    assert isinstance(text, Text)
    token, label = places[0]
    return f"{explainer.labels.get(label, label)}: {text.text[slice(*text.spans[token])].strip()}"


def span_target(explainer: Any, reading: Reading, wanted: Any, contrastive: bool) -> targets.Target:
    """Return the target of a span of the text: the model's, that of some words, or of characters from and to."""
    without_contrast(explainer, contrastive)
    text, start = reading.parts["input_ids"], reading.about["context"]
    assert isinstance(text, Text)
    spans = zip(text.spans, text.special, strict=True)
    inside = [index for index, ((first, last), own) in enumerate(spans) if last > first >= start and not own]
    if wanted is None:

        def choose(logits: Tensor) -> Tensor:
            scores = logits[inside, 0][:, None] + logits[inside, 1][None]
            best = int(scores.masked_fill(torch.ones_like(scores).tril(-1) > 0, -torch.inf).argmax())
            first, last = inside[best // len(inside)], inside[best % len(inside)]
            return ends(logits, first, last)

        return Cells(choose)
    if isinstance(wanted, str):
        place = text.text.find(wanted, start)
        if place < 0:
            raise InputError(f"got the target {wanted!r}, expected words of the text that holds the answer")
        span = (place, place + len(wanted))
    elif reading.about.get("is_slow"):
        raise InputError(
            f"got the target {wanted!r} for {type(explainer.tokenizer).__name__}, which does not tell where its tokens "
            "are in the text; expected the words, or a fast tokenizer"
        )
    else:
        span = (wanted[0] + start, wanted[1] + start)
    within = [index for index in inside if text.spans[index][0] < span[1] and text.spans[index][1] > span[0]]
    if not within:
        raise InputError(f"got the target {wanted!r}, in which there is no token")
    return Cells(lambda logits: ends(logits, within[0], within[-1]))


def ends(logits: Tensor, first: int, last: int) -> Tensor:
    """Return a mask of the first token's start logit and the last token's end logit."""
    mask = torch.zeros_like(logits, dtype=torch.bool)
    mask[first, 0] = mask[last, 1] = True
    return mask


def span_label(explainer: Any, reading: Reading, places: Places) -> str:
    """Return the words from the first to the last token."""
    text = reading.parts["input_ids"]
    assert isinstance(text, Text)
    first, last = (next(token for token, end in places if end == side) for side in (0, 1))
    return text.text[text.spans[first][0] : text.spans[last][1]].strip()


def region_target(explainer: Any, reading: Reading, wanted: Any, contrastive: bool) -> targets.Target:
    """Return the target of a class where it was chosen, or in a box or at a pixel of the image: ``(class, place)``.

    A box is ``(left, top, right, bottom)``, a pixel ``(x, y)``, both in the image that was given.
    """
    without_contrast(explainer, contrastive)
    if isinstance(wanted, (tuple, list)) and len(wanted) != 2:
        raise InputError(f"got the target {wanted!r}, expected a class, or (class, (left, top, right, bottom))")
    label, place = wanted if isinstance(wanted, (tuple, list)) else (wanted, None)
    index = None if label is None else class_index(explainer, label)
    box = None
    if place is not None:
        box = frame_of(explainer, reading.about["size"]).of([*place, *(side + 1 for side in place)][:4])

    def choose(logits: Tensor) -> Tensor:
        chosen = logits.argmax(0)
        number = int(chosen.flatten().bincount().argmax()) if index is None else index
        if box is None:
            region = chosen == number
        else:
            rows, columns = chosen.shape
            # every cell that has a part of it; a cell's edge is exact to rounding
            left, top = (
                math.floor(max(side, 0) * size + ROUNDING) for side, size in ((box[0], columns), (box[1], rows))
            )
            right, bottom = (math.ceil(side * size - ROUNDING) for side, size in ((box[2], columns), (box[3], rows)))
            region = torch.zeros_like(chosen, dtype=torch.bool)
            region[top:bottom, left:right] = True
        if not bool(region.any()):
            raise InputError(
                f"got the class {explainer.labels.get(number, number)!r}, which the model sees nowhere; expected "
                "another one, or a place: (class, (left, top, right, bottom))"
            )
        mask = torch.zeros_like(logits, dtype=torch.bool)
        mask[number] = region
        return mask

    return Cells(choose)


def region_label(explainer: Any, reading: Reading, places: Places) -> str:
    """Return the name of the class of a region."""
    return str(explainer.labels.get(places[0][0], places[0][0]))


def object_target(explainer: Any, reading: Reading, wanted: Any, contrastive: bool) -> targets.Target:
    """Return the target of an object: the surest, the surest of a class, or that of a query's number or in a box.

    A box is ``(left, top, right, bottom)`` in the image that was given: the query whose own box covers it best.
    """
    without_contrast(explainer, contrastive)
    query = wanted[1] if isinstance(wanted, (tuple, list)) else None
    if isinstance(query, (tuple, list)):
        query = query_of(explainer, reading, query)
    label = wanted[0] if isinstance(wanted, (tuple, list)) else wanted
    index = None if label is None else class_index(explainer, label)

    def choose(logits: Tensor) -> Tensor:
        # names may have gaps, as those of COCO have, and a person may give some of them alone
        named = {*explainer.labels, *(getattr(explainer.model.config, "id2label", None) or ())}
        classes = min(max(named, default=logits.shape[-1]) + 1, logits.shape[-1])
        # what stands last and has no name is that there is no object
        scores = logits.softmax(-1) if logits.shape[-1] > classes else logits.sigmoid()
        scores[..., classes:] = -torch.inf
        if index is not None:
            scores[..., torch.arange(scores.shape[-1]) != index] = -torch.inf
        if query is not None:
            scores[torch.arange(len(scores)) != query] = -torch.inf
        return torch.arange(logits.numel(), device=logits.device).view_as(logits) == scores.argmax()

    return Cells(choose)


def query_of(explainer: Any, reading: Reading, box: Sequence[float]) -> int:
    """Return the query whose box has the largest intersection over union with a box.

    Raises
    ------
    InputError
        If none has any.
    """
    with torch.no_grad():
        output = explainer.model(**moved(reading.batch, explainer.model, explainer.device))
    frame = frame_of(explainer, reading.about["size"])
    if frame.is_padded:
        raise InputError(
            f"got a box for {type(explainer.reader).__name__}, which pads, and models differ in whether their boxes "
            "count the padding; expected a class, or (class, number of a query)"
        )
    centres, sizes = output.pred_boxes[0].float().cpu().split(2, -1)
    found = torch.cat([centres - sizes / 2, centres + sizes / 2], -1)
    overlaps = torchvision.ops.box_iou(torch.tensor([frame.of(box)]), found)[0]
    if not float(overlaps.max()) > 0:
        raise InputError(f"got the box {tuple(box)}, in which it sees nothing; expected (left, top, right, bottom)")
    return int(overlaps.argmax())


def object_label(explainer: Any, reading: Reading, places: Places) -> str:
    """Return the name of an object's class, and the query's number."""
    query, label = places[0]
    return f"{explainer.labels.get(label, label)} (query {query})"


def text_target(explainer: Any, reading: Reading, wanted: Any, contrastive: bool) -> targets.Target:
    """Return the target of one of the texts that an image may show."""
    labels = reading.about["labels"]
    number = number_of(wanted)
    if wanted is None or (number is not None and 0 <= number < len(labels)):
        return pick(number, contrastive)
    if wanted not in labels:
        raise InputError(f"got the target {wanted!r}, expected one of the texts; {nearest(str(wanted), labels)}")
    return pick(labels.index(wanted), contrastive)


def text_label(explainer: Any, reading: Reading, places: Places) -> str:
    """Return the text."""
    return str(reading.about["labels"][places[0][-1]])


def step_target(explainer: Any, reading: Reading, wanted: Any, contrastive: bool) -> targets.Target:
    """Return the target of a forecast: all of it, a step, or a step and a channel."""
    without_contrast(explainer, contrastive)
    step, channel = wanted if isinstance(wanted, (tuple, list)) else (wanted, None)

    def choose(forecast: Tensor) -> Tensor:
        values = forecast if forecast.dim() == 2 else forecast[:, None]
        mask = torch.zeros_like(values, dtype=torch.bool)
        for place, size, what in ((step, values.shape[0], "step"), (channel, values.shape[1], "channel")):
            if place is not None and not -size <= int(place) < size:
                raise InputError(f"got the {what} {place}, expected one of {size}")
        mask[slice(None) if step is None else int(step), slice(None) if channel is None else int(channel)] = True
        return mask.view_as(forecast)

    return Cells(choose)


def step_label(explainer: Any, reading: Reading, places: Places) -> str:
    """Return the name of what is forecast."""
    return f"step {places[0][0]}" if len(places) == 1 else "forecast"


def similarity_target(explainer: Any, reading: Reading, wanted: Any, contrastive: bool) -> targets.Target:
    """Return the target of a similarity, of which there is one."""
    without_contrast(explainer, contrastive)
    if wanted is not None:
        raise InputError(f"got the target {wanted!r}, expected none: a similarity is one number")
    return targets.MaxLogit()
