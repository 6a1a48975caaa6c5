"""Space: the composites among which a study searches, in the vocabulary of composite files.

An entry that has a list or a table of bounds where a composite file has a value is searched over::

    preset = "gamma_vit"

    [search.parameters]
    conv_gamma = [0, 0.25, 1]
    linear_gamma = {low = 1e-3, high = 10, log = true}

    [[search.role_map]]
    roles = ["qkv"]
    rule = "Gamma"
    parameters = {gamma = [0, 0.05], stabilizer = 1e-6}

This module does not score anything, and has no constraints between parameters: in a grid, each value meets each other.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..composites.configuration import MAPS, composite_of, require_known, require_table
from ..composites.parameters import check_flag
from ..composites.transformer import TransformerComposite
from ..hints import nearest

#: Keys of a composite file that a study may have; the searched entries come before those of its maps.
COMPOSITE_KEYS = ("preset", "parameters", *MAPS, "canonizers")
BOUNDS = ("low", "high", "log")


@dataclass(frozen=True)
class Axis:
    """A parameter that is searched: some values, or all between two bounds.

    Attributes
    ----------
    name : str
        Such as ``"linear_gamma"``, or ``"qkv.gamma"`` for a parameter in an entry of a map.
    place : tuple of str and int
        Where its value is in the content of a composite file.
    values : tuple
        The values; none if there are bounds.
    low, high : float
        The bounds.
    log : bool
        Whether values are drawn evenly from the logarithm.
    """

    name: str
    place: tuple[str | int, ...]
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    def ends(self) -> tuple[Any, ...]:
        """Return all values, or the bounds."""
        return self.values or (self.low, self.high)

    def suggest(self, trial: Any) -> Any:
        """Return the value that a trial of Optuna suggests."""
        if self.values:
            return trial.suggest_categorical(self.name, self.values)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)


def axis_of(name: str, given: Any, place: tuple[str | int, ...], source: str) -> Axis:
    """Return the axis of a list of values, or of a table of bounds.

    Raises
    ------
    TypeError, ValueError
        If it is neither, is empty, has a value twice, or bounds that are none.
    """
    if isinstance(given, list):
        if not all(isinstance(value, (str, bool, int, float)) for value in given):
            raise TypeError(f"{source} got {name}={given!r} in [search], expected numbers or texts")
        if not given or any(given[index] in given[:index] for index in range(len(given))):
            raise ValueError(f"{source} got {name}={given!r} in [search], expected at least one value, each once")
        return Axis(name, place, tuple(given))
    if not isinstance(given, Mapping):
        raise TypeError(
            f"{source} got {name}={given!r} in [search], expected a list of values, or {{low = ..., high = ...}}; "
            "what is not searched stands in [parameters]"
        )
    require_known(f"key of {name}", given, BOUNDS, source)
    bounds: list[Any] = [given.get(key) for key in ("low", "high")]
    if not all(type(bound) in (int, float) and math.isfinite(bound) for bound in bounds):
        raise TypeError(f"{source} got {name}={given!r} in [search], expected finite numbers as low and high")
    low, high = map(float, bounds)
    log = check_flag(f"{source}: log of {name}", given.get("log", False))
    if not low < high or (log and low <= 0):
        raise ValueError(f"{source} got {name}={given!r} in [search], expected low < high, and with log, 0 < low")
    return Axis(name, place, (), low, high, log)


class Space:
    """The parameters that are searched, and the composite of each choice of them.

    Parameters
    ----------
    content : mapping
        Content of a study file: a composite file's, and ``search`` with ``parameters`` and maps.
    source : str, optional
        Where it is from, for errors.

    Attributes
    ----------
    axes : dict of str to Axis
        The parameters by name.
    default : TransformerComposite
        The composite without the search.

    Raises
    ------
    TypeError, ValueError
        At unknown keys and rules with the nearest valid ones, at values that a rule refuses, and if nothing is
        searched.

    Examples
    --------
    >>> from zennit_attn.tuning.space import Space
    >>> space = Space({"preset": "gamma_vit", "search": {"parameters": {"conv_gamma": [0, 0.1]}}})
    >>> list(space.grid())
    [{'conv_gamma': 0}, {'conv_gamma': 0.1}]
    >>> space.composite({"conv_gamma": 0.1}).conv_gamma
    0.1
    """

    def __init__(self, content: Mapping[str, Any], source: str = "the study") -> None:
        self.content, self.source = content, source
        base = {key: content[key] for key in COMPOSITE_KEYS if key in content}
        self.default = composite_of(base, {}, source)
        search = require_table("search", content.get("search", {}), source)
        self.template = copy.deepcopy(base)
        found = [*self.of_parameters(search), *(axis for name in MAPS for axis in self.of_map(name, search))]
        self.axes = {axis.name: axis for axis in found}
        if not found:
            raise ValueError(f"{source} got a search without parameters, expected some in [search.parameters]")
        if len(self.axes) < len(found):
            names = [axis.name for axis in found]
            raise ValueError(f"{source} got a search of {names}, expected each parameter once: join the entries")
        for parameters in self.probes():
            self.composite(parameters)

    def __reduce__(self) -> tuple[Any, ...]:
        # composites hold weak references to hooks, which cannot be pickled
        return Space, (self.content, self.source)

    def of_parameters(self, search: Mapping[str, Any]) -> Iterator[Axis]:
        """Yield the searched parameters of the preset."""
        given = require_table("search.parameters", search.get("parameters", {}), self.source)
        self.template["parameters"] = {**self.template.get("parameters", {})}
        for name, values in given.items():
            yield axis_of(name, values, ("parameters", name), self.source)

    def of_map(self, title: str, search: Mapping[str, Any]) -> Iterator[Axis]:
        """Yield the searched parameters of a map's entries."""
        entries = search.get(title, [])
        if not isinstance(entries, list):
            raise TypeError(f"{self.source} got search.{title}={entries!r}, expected a list")
        entries = [require_table(f"search.{title}", copy.deepcopy(entry), self.source) for entry in entries]
        self.template[title] = [*entries, *self.template.get(title, [])]
        for index, entry in enumerate(entries):
            keys = entry.get(MAPS[title])
            own = require_table("parameters", entry.get("parameters", {}), self.source)
            searched = {name: given for name, given in own.items() if isinstance(given, (list, Mapping))}
            if not searched:
                raise ValueError(
                    f"{self.source} got {keys!r} in search.{title} with nothing to search, expected a list of values "
                    f"or bounds in its parameters; rules that stay as they are stand in [[{title}]]"
                )
            for name, given in searched.items():
                label = ",".join(map(str, keys)) if isinstance(keys, list) else str(keys)
                yield axis_of(f"{label}.{name}", given, (title, index, "parameters", name), self.source)

    @property
    def has_bounds(self) -> bool:
        """Whether some parameter has bounds, and so no grid."""
        return any(not axis.values for axis in self.axes.values())

    def grid(self) -> Iterator[dict[str, Any]]:
        """Yield all combinations of values, the last parameter's changing fastest."""
        for combination in itertools.product(*(axis.ends() for axis in self.axes.values())):
            yield dict(zip(self.axes, combination, strict=True))

    def probes(self) -> Iterator[dict[str, Any]]:
        """Yield the grid, or if some have bounds, all values and bounds, each with the first ones of the others."""
        if not self.has_bounds:
            yield from self.grid()
            return
        first = {name: axis.ends()[0] for name, axis in self.axes.items()}
        for name, axis in self.axes.items():
            yield from ({**first, name: value} for value in axis.ends())

    def suggest(self, trial: Any) -> dict[str, Any]:
        """Return the parameters that a trial of Optuna suggests.

        Parameters
        ----------
        trial : optuna.trial.Trial
            A trial of any study of Optuna's.
        """
        return {name: axis.suggest(trial) for name, axis in self.axes.items()}

    def composite(self, parameters: Mapping[str, Any]) -> TransformerComposite:
        """Return the composite with a value for each parameter.

        Parameters
        ----------
        parameters : mapping of str to value
            Values by the names of the axes. They need not be in the space, as long as the rules accept them.

        Raises
        ------
        ValueError
            If a parameter is unknown or missing, or a rule does not accept a value.
        """
        for name in (*parameters, *self.axes):
            if name not in self.axes or name not in parameters:
                raise ValueError(
                    f"got parameters {list(parameters)}, expected a value for each of {list(self.axes)}; {name!r} is "
                    + ("missing" if name in self.axes else f"not searched, {nearest(name, self.axes)}")
                )
        content: Any = copy.deepcopy(self.template)
        for name, value in parameters.items():
            *path, last = self.axes[name].place
            table = content
            for step in path:
                table = table[step]
            table[last] = value
        return composite_of(content, {}, self.source)
