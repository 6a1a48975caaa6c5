"""Composites as TOML files: the presets that ship, files of one's own, and the way back.

A file names a preset, its parameters, and the entries of its maps::

    preset = "gamma_vit"

    [parameters]
    conv_gamma = 0.25

    [[name_map]]
    names = ["*.mlp.fc1"]
    rule = "Gamma"
    parameters = {gamma = 0.1}

This module does not run any code that a file names: rules are those of :mod:`zennit_attn.rules` and
:mod:`zennit.rules`, canonizers those of :mod:`zennit.canonizers`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import inspect
import json
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import zennit.canonizers
import zennit.rules
import zennit.types
from zennit.core import Hook

from .. import rules
from ..files import encoded, put
from ..hints import nearest
from ..version import __version__
from .parameters import parameters_of
from .presets import AttnLRPComposite, CPLRPComposite, GammaViTComposite, LibraGradComposite, RelPComposite
from .transformer import TransformerComposite, title_of

PRESETS: dict[str, type[TransformerComposite]] = {
    str(composite.preset): composite
    for composite in (AttnLRPComposite, CPLRPComposite, GammaViTComposite, RelPComposite, LibraGradComposite)
}

#: Keys of a file; the maps' keys are those of their entries.
KEYS = ("preset", "form", "parameters", "name_map", "role_map", "layer_map", "canonizers", "made_with")
MAPS = {"name_map": "names", "role_map": "roles", "layer_map": "types"}

#: Rules that a file may name.
RULES: dict[str, type[Hook]] = {
    name: rule
    for name, rule in vars(rules).items()
    if inspect.isclass(rule)
    and issubclass(rule, rules.Rule)
    and rule not in (rules.Rule, rules.LayerRule, rules.LinearRule)
}
ZENNIT_RULES = {
    f"zennit.rules.{name}": rule
    for name, rule in vars(zennit.rules).items()
    if inspect.isclass(rule) and issubclass(rule, Hook) and rule.__module__ == "zennit.rules"
}


def preset_file(name: str) -> Path:
    """Return the file of a preset: of the installed package, or of the checkout that is installed in place.

    Parameters
    ----------
    name : str
        Name of a preset.

    Raises
    ------
    ValueError
        If there is no preset of this name.
    """
    package = Path(str(importlib.resources.files("zennit_attn")))
    folders = (package / "presets", package.parent / "composites")
    for folder in folders:
        if (folder / f"{name}.toml").is_file():
            # in a checkout the first folder is a link to the second
            return (folder / f"{name}.toml").resolve()
    names = sorted({file.stem for folder in folders for file in folder.glob("*.toml")})
    raise ValueError(f"got the preset {name!r}, expected one of {names} or a TOML file; {nearest(name, names)}")


def load_composite(name_or_path: str | Path, **overrides: Any) -> TransformerComposite:
    """Read a composite from a preset, or from a TOML file.

    Parameters
    ----------
    name_or_path : str or pathlib.Path
        ``"attnlrp"``, ``"cp_lrp"``, ``"gamma_vit"``, ``"relp"``, ``"libragrad"``, or a path to a file.
    **overrides
        Parameters to use instead of the file's, such as ``conv_gamma=0.1``; ``layer_map=``, ``name_map=`` and
        ``role_map=`` come before the file's.

    Returns
    -------
    TransformerComposite
        The composite, in the relevance form unless the file says otherwise.

    Raises
    ------
    ValueError, TypeError
        At an unknown preset, key or rule, with the nearest valid choices, and at values of a wrong type.
    FileNotFoundError
        If there is no such file.

    Examples
    --------
    >>> from zennit_attn import load_composite
    >>> load_composite("gamma_vit", conv_gamma=0.1).conv_gamma
    0.1
    """
    path = Path(name_or_path)
    if path.suffix != ".toml" and not path.is_file():
        path = preset_file(str(name_or_path))
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error
    return composite_of(content, overrides, str(path))


def composite_of(content: Mapping[str, Any], overrides: Mapping[str, Any], source: str) -> TransformerComposite:
    """Return the composite that the content of a file describes, see :func:`load_composite`."""
    require_known("key", content, KEYS, source)
    preset = content.get("preset")
    if not isinstance(preset, str) or preset not in PRESETS:
        hint = nearest(str(preset), PRESETS)
        raise ValueError(f"{source} got preset={preset!r}, expected one of {sorted(PRESETS)}; {hint}")
    kind = PRESETS[preset]
    valid = [name for name in inspect.signature(kind).parameters if name not in (*MAPS, "canonizers")]
    given = require_table("parameters", content.get("parameters", {}), source)
    require_known("parameter", given, valid, source)
    require_known("override", overrides, (*valid, *MAPS, "canonizers"), source)
    for name in (*MAPS, "canonizers"):
        if not isinstance(content.get(name, []), list):
            raise TypeError(f"{source} got {name}={content[name]!r}, expected a list")
    maps: dict[str, Any] = {
        name: [*(overrides.get(name) or ()), *(entry_of(name, entry, source) for entry in content.get(name, ()))]
        for name in MAPS
    }
    canonizers = [*map(canonizer_of, content.get("canonizers", ())), *(overrides.get("canonizers") or ())]
    own = {**given, **{name: value for name, value in overrides.items() if name in valid}}
    try:
        composite = kind(**own, **maps, canonizers=canonizers)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{source}: {error}") from error
    form = content.get("form", "relevance")
    if form not in ("relevance", "gradient"):
        raise ValueError(f"{source} got form={form!r}, expected 'relevance' or 'gradient'")
    return composite.in_gradient_form() if form == "gradient" else composite


def entry_of(name: str, entry: Any, source: str) -> tuple[tuple[str, ...], Hook]:
    """Return the keys and the rule of one entry of a map."""
    table = require_table(name, entry, source)
    require_known(f"key of {name}", table, (MAPS[name], "rule", "parameters"), source)
    keys = table.get(MAPS[name])
    if not isinstance(keys, list) or not keys or not all(isinstance(key, str) for key in keys):
        raise TypeError(f"{source} got {MAPS[name]}={keys!r} in {name}, expected a list of texts")
    title = table.get("rule")
    # a name without a package is a rule of this one, or one that only zennit has
    short = {title.rsplit(".", 1)[1]: rule for title, rule in ZENNIT_RULES.items()}
    choices = {**short, **RULES, **ZENNIT_RULES}
    if not isinstance(title, str) or title not in choices:
        raise ValueError(f"{source} got rule={title!r} in {name}, expected a rule; {nearest(str(title), choices)}")
    parameters = require_table("parameters", table.get("parameters", {}), source)
    valid = [key for key in inspect.signature(choices[title]).parameters if key not in ("args", "kwargs")]
    require_known(f"parameter of {title}", parameters, valid, source)
    for key in set(parameters) & {"gamma", "epsilon", "stabilizer", "alpha", "beta", "low", "high", "beta_smooth"}:
        if isinstance(parameters[key], bool) or not isinstance(parameters[key], (int, float)):
            raise TypeError(f"{source}: {title} in {name} got {key}={parameters[key]!r}, expected a number")
    try:
        return tuple(keys), choices[title](**parameters)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{source}: {title} in {name}: {error}") from error


def canonizer_of(title: Any) -> Any:
    """Return a canonizer of zennit by its name."""
    found: Any = getattr(zennit.canonizers, str(title), None)
    if not inspect.isclass(found) or not issubclass(found, zennit.canonizers.Canonizer):
        known = vars(zennit.canonizers).items()
        names = [
            name for name, kind in known if inspect.isclass(kind) and issubclass(kind, zennit.canonizers.Canonizer)
        ]
        raise ValueError(f"got the canonizer {title!r}, expected one of zennit's; {nearest(str(title), names)}")
    return found()


def require_known(what: str, given: Mapping[str, Any], valid: Any, source: str) -> None:
    """Raise ValueError at the first key that is not valid."""
    for key in given:
        if key not in valid:
            raise ValueError(f"{source} got the {what} {key!r}, expected one of {list(valid)}; {nearest(key, valid)}")


def require_table(what: str, value: Any, source: str) -> Mapping[str, Any]:
    """Return a TOML table, raise TypeError at anything else."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{source} got {what}={value!r}, expected a table")
    return value


def save_composite(
    composite: TransformerComposite, path: str | Path, model: torch.nn.Module | str | None = None
) -> Path:
    """Write a composite to a TOML file that :func:`load_composite` reads back to an equal one.

    Parameters
    ----------
    composite : TransformerComposite
        A preset, with its parameters and maps.
    path : str or pathlib.Path
        File to write.
    model : torch.nn.Module or str, optional
        What it was made for: noted in the file, together with the versions of the packages.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    ValueError
        If something in the composite cannot be written: a rule that no file can name, a function, a tensor.
    """
    path = Path(path)
    put(path, encoded(to_toml(composite, model)))
    return path


def to_toml(composite: TransformerComposite, model: torch.nn.Module | str | None = None) -> str:
    """Return the TOML of a composite, see :func:`save_composite`."""
    if composite.preset is None or PRESETS.get(composite.preset) is not type(composite):
        raise ValueError(f"got a {type(composite).__name__}, expected a preset: only those can be read back")
    lines = [f"preset = {toml_value(composite.preset)}"]
    if composite.form != "relevance":
        lines.append(f"form = {toml_value(composite.form)}")
    extra = [type(item) for item in composite.given_canonizers]
    for kind in extra:
        canonizer_of(kind.__name__)
        if inspect.signature(kind).parameters:
            raise ValueError(f"got the canonizer {kind.__name__}, expected one without arguments: they are not written")
    if extra:
        lines.append(f"canonizers = {toml_value([kind.__name__ for kind in extra])}")
    lines += table("[parameters]", composite.parameters())
    for name, title in MAPS.items():
        for keys, rule in getattr(composite, name):
            entry = {title: [type_title(key) for key in keys], "rule": rule_title(rule)}
            known = {key: value for key, value in parameters_of(rule).items() if value is not None}
            lines += table(f"[[{name}]]", {**entry, "parameters": known} if known else entry)
    return "\n".join(lines + table("[made_with]", made_with(model))) + "\n"


def made_with(model: torch.nn.Module | str | None) -> dict[str, str]:
    """Return the versions of the packages, and the name of the model."""
    found = {"zennit_attn": __version__}
    for name in ("zennit", "torch", "transformers"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if model is not None:
        found["model"] = model if isinstance(model, str) else type(model).__name__
    return found


def rule_title(rule: Hook) -> str:
    """Return the name under which a file finds a rule."""
    for title, kind in {**RULES, **ZENNIT_RULES}.items():
        if type(rule) is kind:
            return title
    raise ValueError(f"got {rule!r}, which no file can name; expected a rule of zennit_attn.rules or zennit.rules")


def type_title(kind: Any) -> str:
    """Return the name under which a file finds a type of modules."""
    title = title_of(kind)
    return f"zennit.types.{title}" if getattr(zennit.types, title, None) is kind else title


def table(title: str, values: Mapping[str, Any]) -> list[str]:
    """Return the lines of a TOML table."""
    return ["", title, *(f"{key} = {toml_value(value)}" for key, value in values.items())]


def toml_value(value: Any) -> str:
    """Return a value as TOML.

    Raises
    ------
    ValueError
        If there is no way to write it.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # a JSON string is a TOML basic string
        return json.dumps(value)
    if isinstance(value, (int, float)) and math.isfinite(value):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key} = {toml_value(item)}' for key, item in value.items())}}}"
    raise ValueError(f"got {value!r} of type {type(value).__name__}, expected a number or a text")
