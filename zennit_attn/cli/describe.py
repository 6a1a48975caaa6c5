"""``zennit-attn describe``: module, role and rule of a model."""

from __future__ import annotations

import argparse
import json

from ..composites.parameters import parameters_of
from ..explain.explainer import check_composite, composite_of, empty_model, loader_of
from .common import be_quiet, content_of
from .parser import DONE


def run(args: argparse.Namespace) -> int:
    """Print which rule each module has."""
    be_quiet()
    model = empty_model(args.model)
    is_visual = "ImageClassification" in loader_of(model.config, args.model).__name__
    composite = composite_of(args.composite or ("gamma_vit" if is_visual else "attnlrp"))
    check_composite(composite, model)
    if not args.json:
        print(composite.describe(model))
        return DONE
    found = [
        {"module": name, "role": place, "rule": type(rule).__name__, "parameters": parameters_of(rule)}
        for name, place, rule in composite.assignments(model)
    ]
    print(json.dumps({"model": args.model, "composite": content_of(composite), "modules": found}, ensure_ascii=False))
    return DONE
