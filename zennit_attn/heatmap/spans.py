"""Spans: relevance of words as HTML that reflows, shows each word's relevance, and needs nothing but itself."""

from __future__ import annotations

import html
from collections.abc import Sequence

from .ink import Color, hexadecimal, ink_on


def document(title: str, body: str) -> str:
    """Return a page, which is dark where its reader's browser is, but for pictures, which are white."""
    head = f'<head><meta charset="utf-8"><title>{html.escape(title)}</title></head>'
    return f'<!DOCTYPE html>\n<html lang="und" style="color-scheme: light dark">{head}<body>{body}</body></html>\n'


def element(tag: str, text: str, style: str = "", title: str = "") -> str:
    """Return an element of HTML around a text."""
    at = "".join(f' {name}="{html.escape(value)}"' for name, value in (("style", style), ("title", title)) if value)
    return f"<{tag}{at}>{html.escape(text)}</{tag}>"


def span(text: str, color: Color, note: str, below: str = "", outlined: bool = False) -> str:
    """Return a word in its colour, with a note that is shown when it is pointed at."""
    style = (
        f"background:{hexadecimal(color)};color:{hexadecimal(ink_on(color))};padding:.1em .15em;white-space:pre-wrap"
    )
    style += ";outline:.12em solid currentColor" * outlined
    number = element("small", f" {below}") if below else ""
    return element("span", text, style, note).removesuffix("</span>") + number + "</span>"


def scale(names: tuple[str, str], shades: Sequence[Color]) -> str:
    """Return the scale of the colours."""
    colors = ",".join(map(hexadecimal, shades))
    style = (
        f"display:inline-block;width:9em;height:1em;vertical-align:middle;background:linear-gradient(90deg,{colors})"
    )
    return f"<small>relevance {html.escape(names[0])} {element('span', '', style)} {html.escape(names[1])}</small>"
