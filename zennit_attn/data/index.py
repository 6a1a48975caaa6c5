"""Index: a page that shows the first rows of a folder of results, one below the other."""

from __future__ import annotations

import html
from collections.abc import Sequence

from ..errors import InputError
from ..heatmap.words import visible
from .results import Results

#: Plain, and readable in the light and in the dark.
STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1rem; margin: 1.8rem 0 .4rem; }
a { color: inherit; text-decoration: none; } a:hover, a:focus { text-decoration: underline; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; } dt { opacity: .7; } dd { margin: 0; }
section { overflow-x: auto; border-top: 1px solid color-mix(in srgb, currentColor 20%, transparent); }
.error { color: #c0392b; } img, svg { max-width: 100%; }
"""
#: What the head of a page says, of what results depend on.
FACTS = ("model", "preset", "class", "digest", "dtype")


def index_page(results: Results, rows: Sequence[int]) -> str:
    """Return a page of some rows: self-contained HTML.

    Parameters
    ----------
    results : Results
        The folder.
    rows : sequence of int
        Which rows, each with its picture.
    """
    failed = results.errors()
    facts = {name: results.about.get(name) or results.settings.get(name) for name in FACTS}
    facts |= {"rows": f"{len(results)}, {len(failed)} could not be explained", "shown": f"{len(rows)}"}
    head = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{written(value)}</dd>" for name, value in facts.items() if value is not None
    )
    title = f"{results.folder.name}: {facts['model']}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{written(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style><h1>{written(title)}</h1><dl>{head}</dl>"
        f"{''.join(section(results, row) for row in rows)}</html>\n"
    )


def section(results: Results, row: int) -> str:
    """Return what a page shows of a row."""
    link = f'<a href="#row-{row}">row {row}</a>'
    try:
        explanation = results[row]
        body = explanation.picture(title="")._repr_html_()
        title = written(explanation.title())
    except InputError as error:
        title, body = "", f'<p class="error">{written(error)}</p>'
    return f'<section id="row-{row}"><h2>{link} {title}</h2>{body}</section>'


def written(text: object) -> str:
    """Return a text as HTML, with an escape for what cannot be seen."""
    return html.escape(visible(str(text)))
