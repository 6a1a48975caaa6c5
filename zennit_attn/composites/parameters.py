"""Parameters of rules and composites: what is valid, and what a rule was made with."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor
from zennit.core import Hook, Stabilizer

from ..rules.rule import Rule


def check_number(name: str, value: Any) -> float:
    """Return a number that may be a rule's parameter.

    Raises
    ------
    TypeError
        If it is not a number, such as the text that YAML reads of ``1e-6``.
    ValueError
        If it is negative, or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} got {value!r} of type {type(value).__name__}, expected a number")
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} got {value!r}, expected a finite number of at least 0")
    return value


def check_flag(name: str, value: Any) -> bool:
    """Return a truth value.

    Raises
    ------
    TypeError
        If it is not one.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} got {value!r} of type {type(value).__name__}, expected true or false")
    return value


def parameters_of(rule: Hook) -> dict[str, Any]:
    """Return the arguments that make an equal rule, read off the rule itself.

    zennit's rules do not keep theirs; what they were is found in the functions that they made of them.

    Parameters
    ----------
    rule : zennit.core.Hook
        Rule of this package or of zennit.

    Raises
    ------
    ValueError
        If the arguments cannot be found.
    """
    if isinstance(rule, Rule):
        return rule.parameters()
    signature = inspect.signature(type(rule).__init__)
    wanted = [name for name in signature.parameters if name not in ("self", "args", "kwargs")]
    found = closure_values(rule)
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(
            f"got {type(rule).__name__}, of which the arguments {missing} are not known; expected a rule of "
            "zennit_attn.rules or zennit.rules."
        )
    return {name: found[name] for name in wanted}


def shown(item: Any) -> str:
    """Return a rule or a canonizer as it could be typed in, those of zennit too; others as they print.

    Examples
    --------
    >>> import zennit.rules
    >>> from zennit_attn.composites.parameters import shown
    >>> shown(zennit.rules.Epsilon(0.5))
    'zennit.rules.Epsilon(epsilon=0.5)'
    """
    kind = type(item)
    if isinstance(item, Rule) or not kind.__module__.startswith("zennit."):
        return repr(item)
    return f"{kind.__module__}.{kind.__name__}({arguments(item)})"


def arguments(item: Any) -> str:
    """Return the arguments of a rule of this package or of zennit as they could be typed in; of others nothing."""
    if not isinstance(item, Hook) or not (isinstance(item, Rule) or type(item).__module__.startswith("zennit.")):
        return ""
    known = {key: value for key, value in parameters_of(item).items() if value is not None}
    return ", ".join(
        f"{key}=torch.tensor({value.tolist()})" if isinstance(value, Tensor) else f"{key}={value!r}"
        for key, value in known.items()
    )


def closure_values(rule: Any) -> dict[str, Any]:
    """Return the values that the functions of one of zennit's rules close over, under their arguments' names."""
    mods = list(getattr(rule, "param_modifiers", ()))
    changes = [mod.modifier if hasattr(mod, "modifier") else mod for mod in mods]
    makers: list[Callable[..., Any]] = [*getattr(rule, "input_modifiers", ()), *changes]
    makers += [getattr(rule, name) for name in ("gradient_mapper", "reducer") if hasattr(rule, name)]
    values: dict[str, Any] = {}
    for maker in filter(inspect.isfunction, makers):
        names = maker.__code__.co_freevars
        values |= {name: cell.cell_contents for name, cell in zip(names, maker.__closure__ or (), strict=True)}
    if mods and hasattr(mods[0], "zero_params"):
        values["zero_params"] = mods[0].zero_params
    if "stabilizer_fn" in values:
        stabilizer = values.pop("stabilizer_fn")
        simple = isinstance(stabilizer, Stabilizer) and vars(stabilizer) == vars(Stabilizer(stabilizer.epsilon))
        values["stabilizer"] = values["epsilon"] = stabilizer.epsilon if simple else stabilizer
    return {**values, **{key: value for key, value in vars(rule).items() if key == "beta_smooth"}}
