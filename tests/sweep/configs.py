"""Tiny configurations of transformers' models, from the configuration classes alone.

Sizes are recognised by the names of a configuration's fields, sub-configurations are shrunk in turn, and whatever is
``None`` is left for the class to derive.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import transformers

from sweep.overrides import KEEP, OVERRIDES
from sweep.sizes import COMPILED, FILLED, HEAD_WIDTH, HEADS, TOKEN, VOCABULARY


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Return the default of a configuration's field."""
    if field.default is not dataclasses.MISSING:
        return field.default
    return None if field.default_factory is dataclasses.MISSING else field.default_factory()


def key_value_heads(name: str, values: dict[str, Any]) -> int:
    """Return all heads where the default has as many keys as queries, else half of them."""
    value, heads = values[name], [values[key] for key in values if key.endswith("num_attention_heads")]
    return HEADS if value in heads else min(value, HEADS // 2)


def tiny_value(name: str, values: dict[str, Any]) -> Any:
    """Return the tiny value of a field, or None if it stays as it is."""
    value = values[name]
    if value is None:
        return FILLED.get(name)
    if isinstance(value, dict):
        return rope(value)
    if isinstance(value, (bool, str, float)) or not largest_is_number(value):
        return None
    if re.search(r"key_value_heads|kv_n_heads|num_kv_heads", name):
        return key_value_heads(name, values)
    for pattern, size in COMPILED:
        if pattern.search(name):
            return size(value) if callable(size) else size
    return None


def largest_is_number(value: Any) -> bool:
    """Tell whether a value is a whole number, or a list of them."""
    if isinstance(value, (list, tuple)):
        return bool(value) and all(map(largest_is_number, value))
    return isinstance(value, int) and not isinstance(value, bool)


def token_ids(names: list[str], values: dict[str, Any]) -> dict[str, Any]:
    """Return ids within the vocabulary for the special tokens that lie outside, each another one."""
    ids: dict[str, Any] = {}
    free = iter(range(VOCABULARY - 1, 40, -1))
    for name in sorted(names):
        value = values[name]
        if not TOKEN.search(name) or not largest_is_number(value):
            continue
        if isinstance(value, (list, tuple)):
            if max(value) >= VOCABULARY:
                ids[name] = [next(free) for _ in value]
        elif value >= VOCABULARY - 30:
            ids[name] = next(free)
    plain = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    ids.update({name: plain[name] for name in plain if name in names and (values[name] is None or name in ids)})
    return ids


def rope(value: Any) -> Any:
    """Return rotary parameters with sections that fit the tiny head."""
    if not isinstance(value, dict):
        return value
    value = {key: rope(item) for key, item in value.items()}
    if "mrope_section" in value:
        total = sum(value["mrope_section"])
        rest = [max(1, HEAD_WIDTH // 2 * part // total) for part in value["mrope_section"][1:]]
        value["mrope_section"] = [HEAD_WIDTH // 2 - sum(rest), *rest]
    return value


def tiny_config(kind: type, given: dict[str, Any] | None = None) -> Any:
    """Return a tiny configuration.

    Parameters
    ----------
    kind : type
        Configuration class.
    given : dict, optional
        Fields that a parent configuration sets in other ways than the class itself.
    """
    values = {field.name: default_of(field) for field in dataclasses.fields(kind) if field.init}
    values.update(given or {})
    overrides = OVERRIDES.get(kind.__name__, {})
    if KEEP in overrides:
        return kind(**{**(given or {}), **{name: value for name, value in overrides.items() if name != KEEP}})
    fixed = {*overrides, *(getattr(kind, "sub_configs", None) or {})}
    small = {name: tiny_value(name, values) for name in values if name not in fixed}
    ids = {name: value for name, value in token_ids(list(values), values).items() if name not in overrides}
    changes = {
        **(given or {}),
        **{name: value for name, value in small.items() if value is not None},
        **ids,
        **overrides,
    }
    changes.update(tiny_children(kind, changes))
    return kind(**changes)


def tiny_children(kind: type, changes: dict[str, Any]) -> dict[str, Any]:
    """Return the tiny sub-configurations of a configuration class."""
    names = [name for name in getattr(kind, "sub_configs", None) or {} if name not in changes]
    if not names:
        return {}
    whole = kind()
    children = {}
    for name in names:
        child = getattr(whole, name, None) or optional(kind, name)
        if not isinstance(child, transformers.PreTrainedConfig):
            continue
        children[name] = tiny_config(type(child), own_fields(child))
    return children


def optional(kind: type, name: str) -> Any:
    """Return the default of a sub-configuration that is left out by default, None if there is none."""
    spec = getattr(kind, "sub_configs_defaults", {}).get(name)
    return spec and spec.get_config_class(spec.model_type)()


def own_fields(config: Any) -> dict[str, Any]:
    """Return the fields in which a sub-configuration differs from the defaults of its class."""
    names = [field.name for field in dataclasses.fields(type(config)) if field.init]
    children = getattr(type(config), "sub_configs", None) or {}
    chosen, plain = config.to_dict(), type(config)().to_dict()
    # lists of words say what each of the layers is, and the tiny model has fewer
    return {
        name: chosen[name]
        for name in names
        if name not in children
        and name not in ("per_layer_config", "vocabulary_map")
        and chosen.get(name) != plain.get(name)
        and not is_words(chosen.get(name))
    }


def is_words(value: Any) -> bool:
    """Tell whether a value is a list of words."""
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, str) for item in value)
