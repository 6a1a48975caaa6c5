"""``zennit-attn composites``: the presets and their parameters."""

from __future__ import annotations

import argparse
import inspect
import json

from ..composites.configuration import PRESETS
from .parser import DONE
from .terminal import say_json


def run(args: argparse.Namespace) -> int:
    """Print the presets and their parameters."""
    presets = {name: (inspect.getdoc(kind) or "").split("\n")[0] for name, kind in PRESETS.items()}
    if args.json:
        found = {
            name: {"description": text, "parameters": PRESETS[name]().parameters()} for name, text in presets.items()
        }
        say_json(found)
        return DONE
    for name, text in presets.items():
        print(f"{name}: {text}")
        for key, value in PRESETS[name]().parameters().items():
            print(f"    {key} = {json.dumps(value)}")
    print('\nTo change a parameter: --composite mine.toml, a file that begins with preset = "gamma_vit", followed by')
    print("[parameters] and a line such as conv_gamma = 0.1 below it.")
    return DONE
