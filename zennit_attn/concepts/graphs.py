"""Graphs: which units of a model made which others relevant for one answer, from the output down to the input."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .. import heatmap
from ..errors import InputError
from ..files import encoded, put

FORMAT, VERSION = "zennit-attn graph", 1
OUTPUT, INPUT = "output", "input"
DATA, PICTURES = (".json",), (".png", ".pdf", ".svg", ".html")


@dataclass(frozen=True)
class Node:
    """A unit, or several.

    Attributes
    ----------
    place : str
        Name of the latent, ``"output"`` or ``"input"``.
    units : tuple of int
        Which of its units; of the input, the token. None of the output.
    rest : bool
        Whether these are all units of the place that have no node of their own.
    label : str
        What it is called.
    position : int or None
        The token at which it is strongest.
    relevance : float
        What it has.
    other : float
        What of it is in no edge: kept by biases and stabilizers, or in edges that were left out.
    """

    place: str
    units: tuple[int, ...]
    rest: bool
    label: str
    position: int | None
    relevance: float
    other: float = 0.0


class Edge(NamedTuple):
    """What flows from one node to another one below it: numbers of nodes, and relevance."""

    upper: int
    lower: int
    relevance: float


@dataclass(frozen=True)
class AttributionGraph:
    """Which units made which others relevant.

    Attributes
    ----------
    nodes : tuple of Node
        The output first, then places from the top, the tokens last.
    edges : tuple of Edge
        The strongest first.
    about : dict
        What it depends on.
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    about: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<AttributionGraph of {len(self.nodes)} nodes and {len(self.edges)} edges>"

    def below(self, node: int) -> list[Edge]:
        """Return the edges out of a node, the strongest first."""
        return [edge for edge in self.edges if edge.upper == node]

    def above(self, node: int) -> list[Edge]:
        """Return the edges into a node, the strongest first."""
        return [edge for edge in self.edges if edge.lower == node]

    def picture(self, title: str = "", edges: int = 80, **options: Any) -> heatmap.Heatmap:
        """Draw the units that have nodes of their own, each above the token at which it is strongest.

        Parameters
        ----------
        title : str, optional
            Stands above.
        edges : int, optional
            How many edges are drawn, the strongest of them.
        **options
            Of :func:`zennit_attn.heatmap.graph`.
        """
        places = list(dict.fromkeys(node.place for node in self.nodes))
        index: dict[int, tuple[int, int]] = {}
        levels: list[tuple[str, list[tuple[str, float, int | None]]]] = [
            ("" if place in (OUTPUT, INPUT) else place, []) for place in places
        ]
        for number, node in enumerate(self.nodes):
            if not node.rest:
                level = places.index(node.place)
                index[number] = level, len(levels[level][1])
                levels[level][1].append((node.label, node.relevance, node.position))
        drawn = [
            (index[edge.upper], index[edge.lower], edge.relevance)
            for edge in self.edges
            if edge.upper in index and edge.lower in index
        ]
        return heatmap.graph(levels, drawn[:edges], title=title, **options)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the graph: its data as JSON, or a picture as PNG, PDF, SVG or HTML.

        Raises
        ------
        InputError
            If the name has another ending.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix in DATA:
            put(path, encoded(json.dumps(self.to_dict(), ensure_ascii=False)))
        elif suffix in PICTURES:
            self.picture().save(path)
        else:
            raise InputError(f"got {str(path)!r}, expected a name that ends with one of {(*DATA, *PICTURES)}")

    def to_dict(self) -> dict[str, Any]:
        """Return everything as what JSON has."""
        edges = [list(edge) for edge in self.edges]
        nodes = [asdict(node) for node in self.nodes]
        return {"format": FORMAT, "version": VERSION, "about": self.about, "nodes": nodes, "edges": edges}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AttributionGraph:
        """Read what :meth:`save` wrote as JSON.

        Raises
        ------
        InputError
            If the file is none, or of a later version.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content["format"] != FORMAT or content["version"] > VERSION:
                raise InputError(
                    f"got {str(path)!r}, of the format {content['format']!r} {content['version']}; expected "
                    f"{FORMAT!r} {VERSION}: write it again, or update zennit-attn"
                )
            nodes = tuple(Node(**{**node, "units": tuple(node["units"])}) for node in content["nodes"])
            edges = tuple(Edge(int(upper), int(lower), float(value)) for upper, lower, value in content["edges"])
            if any(not 0 <= number < len(nodes) for edge in edges for number in edge[:2]):
                raise ValueError("an edge is of a node that there is not")
            return cls(nodes, edges, dict(content["about"]))
        except InputError:
            raise
        # whatever a file that is no graph runs into
        except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"cannot read {str(path)!r} ({type(error).__name__}: {error}); expected a file that "
                "AttributionGraph.save wrote as .json"
            ) from error
