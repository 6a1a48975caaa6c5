"""``zennit-attn describe``: module, role and rule of a model."""

from __future__ import annotations

import argparse

from ..composites.parameters import parameters_of
from ..explain.explainer import empty_model
from ..explain.loading import check_composite, composite_of
from .common import be_quiet, content_of
from .parser import DONE
from .terminal import say, say_json


def run(args: argparse.Namespace) -> int:
    """Print which rule each module has."""
    be_quiet()
    model, task = empty_model(args.model)
    composite = composite_of(args.composite or task.preset)
    check_composite(composite, model)
    if not args.json:
        say(composite.describe(model))
        return DONE
    found = [
        {"module": name, "role": place, "rule": type(rule).__name__, "parameters": parameters_of(rule)}
        for name, place, rule in composite.assignments(model)
    ]
    say_json({"model": args.model, "composite": content_of(composite), "modules": found})
    return DONE
