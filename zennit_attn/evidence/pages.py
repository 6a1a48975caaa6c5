"""Pages: what a study found, as one file: a picture of each score with its intervals, and the table."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ..data.index import STYLE, written
from .study import title_of
from .tables import Scores, cell

#: What the head of a page says, of what scores depend on.
FACTS = ("model", "study", "input", "dtype")
TABLE = """
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .2rem .8rem; }
td small { display: block; white-space: nowrap; opacity: .7; }
tr { border-bottom: 1px solid color-mix(in srgb, currentColor 15%, transparent); } thead { opacity: .7; }
section svg { height: auto; background: #fff; border-radius: 4px; }
"""


def page_of(scores: Scores, meanings: dict[str, str], axis: str = "") -> str:
    """Return a page: self-contained HTML.

    Parameters
    ----------
    scores : Scores
        What was found.
    meanings : dict of str to str
        The scores that are shown, and what each means.
    axis : str, optional
        What the scores are points along, if they make a curve.
    """
    facts = {name: scores.settings.get(name) for name in FACTS}
    facts["rows"] = f"{scores.rows}, {len(scores.errors)} without scores"
    head = "".join(
        f"<dt>{written(name)}</dt><dd>{written(value)}</dd>" for name, value in facts.items() if value is not None
    )
    title = f"{facts['study']}: {Path(str(facts['model'])).name}"
    names = list(meanings)
    picture = curves(scores, names, axis) if axis else drawn(scores, names)
    said = "".join(f"<dt>{written(name)}</dt><dd>{written(meaning)}</dd>" for name, meaning in meanings.items())
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{written(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}{TABLE}</style>'
        f"<h1>{written(title)}</h1><dl>{head}</dl><section><h2>Means, with 95 % intervals</h2>{picture}"
        f"</section><section><h2>As numbers</h2>{table(scores, names)}<p>Bold: the best of a column, and what cannot "
        f"be told from it by the paired bootstrap over rows.</p></section><section><h2>The scores</h2><dl>{said}</dl>"
        "</section></html>\n"
    )


def table(scores: Scores, names: Sequence[str]) -> str:
    """Return the table as HTML."""
    head = "".join(f"<th>{written(name)}</th>" for name in names)
    lines = []
    for method in scores.methods:
        cells = []
        for name in names:
            mean, _, interval = cell(scores, method, name).partition(" ")
            bold, mean = mean.startswith("**"), written(mean.strip("*"))
            cells.append(f"<td>{f'<b>{mean}</b>' if bold else mean}<small>{written(interval)}</small></td>")
        lines.append(f"<tr><th>{written(title_of(method))}</th>{''.join(cells)}</tr>")
    return f"<table><thead><tr><th>method</th>{head}</tr></thead>{''.join(lines)}</table>"


def drawn(scores: Scores, names: Sequence[str]) -> str:
    """Return a picture of means and intervals as SVG, a panel for each score."""
    methods = scores.methods[::-1]
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3 + 2.1 * columns, rows * (0.7 + 0.21 * len(methods))), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for name, ax in zip(names, axes.flat, strict=False):
        best = scores.best(name)
        for place, method in enumerate(methods):
            found = scores.interval(method, name)
            if found is None:
                continue
            color = "#b3261e" if method == best else "#30424f"
            ax.plot([found.low, found.high], [place, place], color=color, linewidth=1.6)
            ax.plot([found.mean], [place], "o", color=color, markersize=4)
        ax.set_title(name, fontsize=9)
        ax.set_yticks(range(len(methods)), [title_of(method) for method in methods], fontsize=8)
        ax.tick_params(axis="x", labelsize=8)
        ax.grid(axis="x", linewidth=0.4)
        ax.spines[["top", "right", "left"]].set_visible(False)
    for ax in list(axes.flat)[len(names) :]:
        ax.set_visible(False)
    return svg(figure)


def curves(scores: Scores, names: Sequence[str], axis: str) -> str:
    """Return a picture of scores along an axis as SVG: a line for each method, with the band of its intervals."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    ax = figure.subplots()
    places = range(1, len(names) + 1)
    for number, method in enumerate(scores.methods):
        found = [scores.interval(method, name) for name in names]
        if None in found:
            continue
        means, lows, highs = zip(*((each.mean, each.low, each.high) for each in found if each), strict=True)
        color, style = f"C{number % 10}", ("-", "--", ":")[number // 10 % 3]
        ax.plot(places, means, style, color=color, linewidth=1.6, marker="o", markersize=3, label=title_of(method))
        ax.fill_between(places, lows, highs, color=color, alpha=0.12, linewidth=0)
    ax.set_xticks(places, names)
    ax.set_xlabel(axis)
    ax.grid(axis="y", linewidth=0.4)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, bbox_to_anchor=(1, 1), loc="upper left")
    return svg(figure)


def svg(figure: Figure) -> str:
    """Return a figure as SVG."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
