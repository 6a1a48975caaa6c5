"""References: a folder with the rows of a data set in which each unit is strongest, filled part by part.

A part has the strongest of its own rows, ``part-00003.safetensors``, and is there with ``part-00003.parquet``, which
has why rows of it could not be looked at. From time to time parts are folded into ``top.safetensors``, so that the
folder does not grow with the data set: the file says which parts it has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock  # a requirement of torch
from safetensors import safe_open
from safetensors.torch import save

from ..data.arrow import arrow
from ..data.engines import Maker as PartMaker
from ..data.parts import name_of
from ..data.run import Run, noted
from ..data.sources import Row
from ..errors import InputError
from ..files import put
from ..hints import nearest
from .tops import NONE, Top, merged

FORMAT = "zennit-attn references"
#: Parts that are left before they are folded.
LOOSE = 16
TOP = "top.safetensors"
COLUMNS = ("scores", "rows", "positions")


class Reference(NamedTuple):
    """A row in which a unit is strong.

    Attributes
    ----------
    row : int
        Its number in the input.
    position : int
        The token, as the latent counts them, at which it is strongest; of images that is a patch, after what the model
        puts before them.
    score : float
        How relevant, or active, it is.
    """

    row: int
    position: int
    score: float


@dataclass
class Maker(PartMaker):
    """Makes parts of the strongest rows of each unit."""

    def fill(self, part: int, start: int, table: Sequence[Row]) -> int:
        """Make a part of the rows from a number; return how many could not be looked at."""
        explain: Any = self.explain
        tops, failed = explain.tops(table, start)
        self.run.note("about.json", self.about())
        pa = arrow("a folder of references")
        put(self.run.folder / f"{name_of(part)}.safetensors", save(arrays_of(tops)))
        # what tells that the part is there comes last
        columns = {"row": pa.array(failed, pa.int64()), "error": pa.array(failed.values(), pa.string())}
        sink = pa.BufferOutputStream()
        pa.parquet.write_table(pa.table(columns), sink)
        put(self.run.folder / f"{name_of(part)}.parquet", sink.getvalue())
        fold(self.run, LOOSE)
        return len(failed)


def arrays_of(tops: Mapping[str, Top]) -> dict[str, torch.Tensor]:
    """Return the tensors of a file."""
    return {f"{name}/{key}": getattr(top, key).contiguous() for name, top in tops.items() for key in COLUMNS}


def read(file: Path) -> tuple[dict[str, Top], set[int]]:
    """Return the strongest rows in a file, and the parts that it has been folded of; nothing if there is none."""
    try:
        with safe_open(file, "pt") as content:
            names = dict.fromkeys(name.rpartition("/")[0] for name in content.keys())
            tops = {name: Top(*(content.get_tensor(f"{name}/{key}") for key in COLUMNS)) for name in sorted(names)}
            return tops, set(json.loads((content.metadata() or {}).get("parts", "[]")))
    except FileNotFoundError:
        return {}, set()


def fold(run: Run, least: int) -> None:
    """Put the parts that are there into one file, if there are as many as that, unless another process does so."""
    with FileLock(run.locked("top")):
        loose = [part for part in range(run.parts) if run.is_there(part) and file_of(run.folder, part).exists()]
        if len(loose) < least:
            return
        tops, parts = read(run.folder / TOP)
        sign = run.settings["sign"]
        for part in loose:
            # one that was folded before an interrupt is there again only to be removed
            if part not in parts:
                tops = joined([tops, read(file_of(run.folder, part))[0]], sign)
        put(run.folder / TOP, save(arrays_of(tops), {"parts": json.dumps(sorted({*parts, *loose}))}))
        for part in loose:
            file_of(run.folder, part).unlink()


def file_of(folder: Path, part: int) -> Path:
    """Return the file of a part's strongest rows."""
    return folder / f"{name_of(part)}.safetensors"


def joined(several: Sequence[Mapping[str, Top]], sign: str) -> dict[str, Top]:
    """Return the strongest of several files."""
    names = dict.fromkeys(name for tops in several for name in tops)
    return {name: merged([tops[name] for tops in several if name in tops], sign) for name in names}


class References:
    """The rows of a data set in which each unit is strongest.

    Attributes
    ----------
    settings : dict
        What they depend on: ``of`` (relevance or activation), ``latents``, ``count``, ``by``, ``sign``, the input.
    about : dict
        The model and its rules.
    tops : dict of str to Top
        By latent, tensors ``scores``, ``rows`` and ``positions`` of shape ``(units, count)``.

    Examples
    --------
    >>> from zennit_attn.concepts import open_references
    >>> references = open_references("references")  # doctest: +SKIP
    >>> references.of("model.layers.1.head", 2)[0].row  # doctest: +SKIP
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = noted(folder / "run.json", FORMAT)
        if self.settings.get("format") != FORMAT:
            raise InputError(f"got {str(folder)!r}, expected a folder that RelMax or ActMax filled")
        about = folder / "about.json"
        self.about = noted(about) if about.exists() else {}
        count = -(-self.settings["rows"] // self.settings["rows_per_part"])
        self.there = [part for part in range(count) if (folder / f"{name_of(part)}.parquet").exists()]
        if len(self.there) < count:
            raise InputError(
                f"got {str(folder)!r} with {len(self.there)} of {count} parts; run the same again, which goes on"
            )
        # parts first: what another process folds meanwhile is in the other file, which is read afterwards
        loose = {part: read(file_of(folder, part))[0] for part in self.there if file_of(folder, part).exists()}
        tops, parts = read(folder / TOP)
        self.tops = joined([tops, *(loose[part] for part in loose if part not in parts)], self.settings["sign"])

    def __repr__(self) -> str:
        counts = ", ".join(f"{name}: {len(top.scores)}" for name, top in list(self.tops.items())[:3])
        more = ", …" * (len(self.tops) > 3)
        return f"<References of {self.settings['of']}, {self.settings['rows']} rows; units of {counts}{more}>"

    def of(self, latent: str, unit: int) -> list[Reference]:
        """Return the rows in which a unit is strongest, the strongest first.

        Parameters
        ----------
        latent : str
            Such as ``"model.layers.1.head"``.
        unit : int
            Number of the unit.

        Raises
        ------
        InputError
            If there is no such unit.
        """
        if latent not in self.tops:
            raise InputError(f"got {latent!r}, expected one of {list(self.tops)}; {nearest(latent, list(self.tops))}")
        top = self.tops[latent]
        if not 0 <= unit < len(top.scores):
            raise InputError(f"got the unit {unit} of {latent!r}, expected 0 to {len(top.scores) - 1}")
        columns = zip(top.rows[unit].tolist(), top.positions[unit].tolist(), top.scores[unit].tolist(), strict=True)
        return [Reference(*values) for values in columns if values[0] != NONE]

    def errors(self) -> dict[int, str]:
        """Return why rows could not be looked at, by their numbers."""
        pa, found = arrow("a folder of references"), dict[int, str]()
        for part in self.there:
            columns = pa.parquet.read_table(self.folder / f"{name_of(part)}.parquet").to_pydict()
            found |= dict(zip(columns["row"], columns["error"], strict=True))
        return found


def open_references(folder: str | Path) -> References:
    """Open a folder that :class:`RelMax` or :class:`ActMax` filled.

    Parameters
    ----------
    folder : str or pathlib.Path
        The folder.

    Raises
    ------
    InputError
        If it is no such folder, or lacks parts.
    """
    return References(Path(folder))
