"""The table of a sweep: what of each library is explained correctly, and what is refused, and why."""

from __future__ import annotations

import collections
import json
import re
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
import transformers

import zennit_attn

STATUS = ("conserves", "disagrees", "leaks", "refused", "fails", "cannot be built")
HEADER = """# Supported models

Written by `python tests/sweep/sweep.py --out docs/supported-models.md`, about {minutes:.0f} minutes on two cores.
Versions: {versions}.

Every architecture is built with tiny random weights, its additive constants (biases, position embeddings, class and
mask tokens) are set to zero, and it is explained in strict mode by CP-LRP, which has to give all of a logit to the
inputs: pixels, sound, and the embeddings of all tokens, those of a decoder, too.

- **conserves**: relevance adds up to the logit. *Leak* is what is missing, relative to the logit: at most 1e-6 in
  float64, 1e-4 where the model computes in float32 inside, 1e-3 where it runs in float32 only. The forward pass is
  unchanged, the gradient form equals the relevance form (CP-LRP and AttnLRP), and eager attention equals fused
  attention (AttnLRP) to what rounding the inputs to float32 changes, as eager attention has its softmax in float32.
- **disagrees**: one of these three does not hold; the note says which.
- **leaks**: relevance does not add up.
- **refused**: an operation has no rule, and the error names it. Without `strict=True` most of these are warnings.
- **fails**: an error that does not say what was expected.
- **cannot be built**: there is no tiny model to check on a CPU, so nothing is known.

*Constants* in a note is the share of the logit that goes to what the model's forward adds or appends, such as the 1 in
`(up + 1) * gate`; it counts as accounted for. *Expansions* is what the constant of the Taylor expansion keeps of an
`exp`, or of a softmax that weights nothing; it counts as well, and the ledger tells it of a model of one's own.
"""


def report(results: Path, cases: list[str]) -> str:
    """Return the tables in Markdown."""
    found = {row["case"]: row for row in map(json.loads, results.read_text().splitlines())}
    groups: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for case in cases:
        if case in found:
            groups[case.split("/")[0]].append(found[case])
    modules = (zennit_attn, torch, transformers, torchvision, timm)
    versions = ", ".join(f"{module.__name__.replace('_', '-')} {module.__version__}" for module in modules)
    minutes = sum(row.get("seconds", 0) for rows in groups.values() for row in rows) / 120
    parts = [HEADER.format(versions=versions, minutes=max(minutes, 1)), summary(groups)]
    return "\n".join([*parts, *(table(name, rows) for name, rows in groups.items())])


def summary(groups: dict[str, list[dict[str, Any]]]) -> str:
    """Return how many architectures of each group have each status."""
    lines = [f"| | {' | '.join(STATUS)} |", "|---|" + "---|" * len(STATUS)]
    counts = {name: collections.Counter(row["status"] for row in rows) for name, rows in groups.items()}
    counts["**all**"] = sum(counts.values(), collections.Counter())
    for name, count in counts.items():
        lines.append(f"| {name} | {' | '.join(str(count[status] or '') for status in STATUS)} |")
    return "\n".join([*lines, ""])


def table(name: str, rows: list[dict[str, Any]]) -> str:
    """Return the table of a group."""
    lines = [f"## {name}", "", "| architecture | status | leak | note |", "|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: row["case"]):
        leak = f"{row['leak']:.0e}" if "leak" in row else ""
        lines.append(f"| {row['case'].split('/', 1)[1]} | {row['status']} | {leak} | {note(row)} |")
    return "\n".join([*lines, ""])


def note(row: dict[str, Any]) -> str:
    """Return what there is to say about an architecture, on one line."""
    if "leak" not in row:
        text = re.sub(r"/\S*/", "", row.get("note", ""))
        return text.replace("|", "/")[:200]
    notes = [row["note"]] if row.get("note") else []
    if row["constants"] > row["limit"]:
        notes.append(f"constants {row['constants']:.1%}")
    if row["expansions"] > row["limit"]:
        notes.append(f"expansions {row['expansions']:.1%}")
    if row["limit"] > 1e-6:
        notes.append("float32 only" if row["limit"] == 1e-3 else "computes in float32")
    return "; ".join(notes)
