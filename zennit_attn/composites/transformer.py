"""Base of the presets: which rule goes to which module of a model, by name, role and type."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import zennit.types
from zennit.canonizers import Canonizer
from zennit.core import Hook

from ..engine.handles import Kept, keeping
from ..engine.names import names_of
from ..hints import nearest
from ..rules.layer import Identity
from ..rules.operators import Operators, SelectiveScan
from ..rules.rule import Rule
from ..tables import Table
from .assignments import Assigned, Assignments
from .canonizers import FunctionCanonizer, MultiheadAttentionCanonizer
from .claims import is_registered
from .parameters import arguments, shown
from .registration import Entries, ScopedComposite, refuse_hidden
from .roles import ROLES, role

Map = Sequence[tuple[Any, Hook]]


#: Element-wise modules of which the forward is written in several operations.
ELEMENTARY_ACTIVATIONS = (
    "NewGELUActivation",
    "FastGELUActivation",
    "QuickGELUActivation",
    "ClippedGELUActivation",
    "AccurateGELUActivation",
    "LaplaceActivation",
    "ReLUSquaredActivation",
    "SqrtSoftplusActivation",
    "XIELUActivation",
    "BloomGelu",
    "GELUTanh",
    "QuickGELU",
)


class TransformerComposite(ScopedComposite):
    """Base of the presets: operator rules for the whole model, and layer rules by name, role and type.

    The first entry that fits decides, in the order: ``name_map``, ``role_map``, ``layer_map``, the preset's own.

    Parameters
    ----------
    operators : zennit_attn.rules.Operators, optional
        Operator rules of the whole model.
    layer_map : list of tuple, optional
        ``(type, or tuple of types, or names of types, rule)``, as in :mod:`zennit.composites`.
    name_map : list of tuple, optional
        ``(name, or tuple of names, rule)``; a name may be a pattern, such as ``"*.mlp.*"``.
    role_map : list of tuple, optional
        ``(role, or tuple of roles, rule)``, see :func:`zennit_attn.composites.roles.role`.
    canonizers : list of zennit.canonizers.Canonizer, optional
        Canonizers to apply, after those of :mod:`zennit_attn.composites.canonizers`.

    Notes
    -----
    The presets make the operator rules themselves. With their ``strict=True`` an operation without a rule is an error,
    not a warning.

    Raises
    ------
    TypeError, ValueError
        If a map is not one, or names a role that there is not.
    """

    #: Name of the preset, also in :data:`zennit.composites.COMPOSITES`; None for composites that are none.
    preset: ClassVar[str | None] = None

    def __init__(
        self,
        operators: Operators | None = None,
        layer_map: Map | None = None,
        name_map: Map | None = None,
        role_map: Map | None = None,
        canonizers: list[Canonizer] | None = None,
    ) -> None:
        self.operators = operators
        self.strict = operators is not None and operators.strict
        self.name_map = check_map("name_map", name_map, (str,))
        self.role_map = check_map("role_map", role_map, (str,))
        self.layer_map = check_map("layer_map", layer_map, (str, type))
        for roles, _ in self.role_map:
            for given in roles:
                if given not in ROLES:
                    raise ValueError(f"role_map got {given!r}, expected one of {ROLES}; {nearest(given, ROLES)}")
        self.given_canonizers = list(canonizers or [])
        self.kept = Assignments()
        super().__init__(self.mapping, [MultiheadAttentionCanonizer(), FunctionCanonizer(), *self.given_canonizers])

    def own_role_map(self) -> list[tuple[tuple[str, ...], Hook]]:
        """Return the preset's own rules by role, each of which has to fit a module of the model."""
        return []

    def own_layer_rule(self, name: str, module: torch.nn.Module) -> Rule | None:
        """Return the preset's own rule of a module that no map fits."""
        plain = self.operators is not None and self.operators.activation == "gradient"
        if type(module).__name__ in ELEMENTARY_ACTIVATIONS and next(module.children(), None) is None and not plain:
            return Identity()
        if self.operators is not None and role(name, module) == "state_space":
            return SelectiveScan(self.operators.strict)
        return self.operators if name == "" else None

    def mapping(self, ctx: dict[Any, Any], name: str, module: torch.nn.Module) -> Hook | None:
        """Return the rule of a module."""
        place = role(name, module)
        for patterns, rule in self.name_map:
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
                return rule
        for roles, rule in self.role_map:
            if place in roles:
                return rule
        for types, rule in self.layer_map:
            if any(is_type(module, kind) for kind in types):
                return rule
        for roles, rule in self.own_role_map():
            if place in roles:
                return rule
        own = self.own_layer_rule(name, module)
        if own is not None:
            own.optional = True
        return own

    def put_on(self, module: torch.nn.Module, names: Mapping[torch.nn.Module, str]) -> None:
        """Apply canonizers and rules to a model, of which the modules have these names, and keep their handles.

        Raises
        ------
        ValueError
            If an entry of a map fits no module of the model, or the model hides what it computes.
        """
        refuse_hidden(module, names)
        super().put_on(module, names)
        if self.operators is not None:
            Entries(module, self.strict)

    def assign(self, module: torch.nn.Module, names: Mapping[torch.nn.Module, str]) -> Assigned:
        """Return name, module and rule of each module of a model that has a rule: the same as last time if it may be.

        Raises
        ------
        ValueError
            If an entry of a map fits no module of the model.
        """

        def anew() -> Assigned:
            found = super(TransformerComposite, self).assign(module, names)
            self.check_matches({name: child for child, name in names.items()}, type(module).__name__)
            return found

        settings = self.settings()
        return anew() if settings is None else self.kept.find(module, names, settings, anew)

    def settings(self) -> tuple[Any, ...] | None:
        """Return what the rules of modules depend on beside the modules; None if a class has its own idea of that."""
        own = (getattr(type(self), name).__module__ for name in ("mapping", "own_role_map", "own_layer_rule"))
        if self.module_map != self.mapping or not all(name.startswith(f"{__package__}.") for name in own):
            return None
        skipped = ("handles", "hook_refs", "form", "module_map", "kept")
        given = {name: value for name, value in vars(self).items() if name not in skipped}
        # of lists, what is in them now
        return type(self), {name: (*value,) if isinstance(value, list) else value for name, value in given.items()}

    def check_matches(self, named: Mapping[str, torch.nn.Module], title: str) -> None:
        """Raise ValueError if an entry of a map fits no module of a model, given by their names."""
        for patterns, rule in self.name_map:
            for pattern in patterns:
                if not fnmatch.filter(named, pattern):
                    raise ValueError(
                        f"name_map got {pattern!r} for {shown(rule)}, which fits no module of {title}; "
                        + nearest(pattern, named)
                    )
        roles = {place for name, module in named.items() if (place := role(name, module))}
        for wanted, rule in (*self.role_map, *self.own_role_map()):
            if not roles.intersection(wanted):
                raise ValueError(
                    f"{type(self).__name__} got {title}, in which no module has the role "
                    f"{' or '.join(map(repr, wanted))} for {shown(rule)}; its roles are {sorted(roles) or 'none'}. "
                    "Name the modules with name_map, or choose another preset."
                )
        for types, rule in self.layer_map:
            for kind in types:
                if not any(is_type(module, kind) for module in named.values()):
                    kinds = {type(module).__name__ for module in named.values()}
                    kind_name = kind if isinstance(kind, str) else kind.__name__
                    raise ValueError(
                        f"layer_map got {kind_name} for {shown(rule)}, which fits no module of {title}; "
                        + nearest(kind_name, sorted(kinds))
                    )

    def assignments(self, model: torch.nn.Module) -> list[tuple[str, str | None, Hook]]:
        """Return name, role and rule of each module of a model that has a rule; the model stays as it is.

        Raises
        ------
        ValueError
            If an entry of a map fits no module of the model.
        """
        # a model on which a composite is registered is canonized already
        with Kept() as kept, keeping(kept):
            for canonizer in () if is_registered(model) else self.canonizers:
                kept.extend(canonizer.apply(model))
            return [(name, role(name, child), rule) for name, child, rule in self.assign(model, names_of(model))]

    def describe(self, model: torch.nn.Module) -> Table:
        """Return a table of the modules that have a rule: module, role, rule, parameters.

        Parameters
        ----------
        model : torch.nn.Module
            Model to describe; it stays as it is.

        Returns
        -------
        zennit_attn.tables.Table
            Text with one line a module, a table in a notebook.
        """
        columns = ("module", "role", "rule", "parameters")
        rows = []
        for name, place, rule in self.assignments(model):
            text = arguments(rule)
            rows.append((name or "(the model)", place or "", type(rule).__name__, text))
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in (columns, *rows))
        return Table("\n".join(lines), columns, rows)

    def parameters(self) -> dict[str, Any]:
        """Return the preset's own parameters: arguments of the constructor that are not maps."""
        names = inspect.signature(type(self).__init__).parameters
        skipped = ("self", "layer_map", "name_map", "role_map", "canonizers", "operators")
        return {name: getattr(self, name) for name in names if name not in skipped}

    def __repr__(self) -> str:
        names = inspect.signature(type(self).__init__).parameters
        given = [f"{name}={value!r}" for name, value in self.parameters().items() if value != names[name].default]
        if "operators" in names and self.operators is not None:
            given.insert(0, repr(self.operators))
        for name in ("layer_map", "name_map", "role_map"):
            entries = [f"({shown_keys(keys)}, {shown(rule)})" for keys, rule in getattr(self, name)]
            if entries:
                given.append(f"{name}=[{', '.join(entries)}]")
        if self.given_canonizers:
            given.append(f"canonizers=[{', '.join(shown(item) for item in self.given_canonizers)}]")
        text = f"{type(self).__name__}({', '.join(given)})"
        return f"input_x_gradient({text})" if self.form == "gradient" else text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TransformerComposite) and self._content() == other._content()

    def __hash__(self) -> int:
        return hash((type(self), self.form))

    def _content(self) -> tuple[Any, ...]:
        maps = [
            [(tuple(map(title_of, keys)), shown(rule)) for keys, rule in entries]
            for entries in (self.name_map, self.role_map, self.layer_map)
        ]
        own = None if self.operators is None else self.operators.parameters()
        return type(self), self.form, self.parameters(), own, maps, list(map(shown, self.canonizers))


def title_of(kind: Any) -> str:
    """Return the name of a module type, or the text itself."""
    return kind.removeprefix("zennit.types.") if isinstance(kind, str) else kind.__name__


def shown_keys(keys: tuple[Any, ...]) -> str:
    """Return the keys of an entry of a map as they could be typed in: module types by where they are."""
    texts = [repr(key) if isinstance(key, str) else place_of(key) for key in keys]
    return texts[0] if len(texts) == 1 else f"({', '.join(texts)})"


def place_of(kind: Any) -> str:
    """Return the dotted name of a type."""
    title = title_of(kind)
    return f"zennit.types.{title}" if getattr(zennit.types, title, None) is kind else f"{kind.__module__}.{title}"


def check_map(name: str, entries: Map | None, kinds: tuple[type, ...]) -> list[tuple[tuple[Any, ...], Hook]]:
    """Return the entries of a map, the keys of each as a tuple.

    Raises
    ------
    TypeError
        If it is not a list of pairs of keys and rules.
    """
    checked = []
    for entry in entries or ():
        if not isinstance(entry, (tuple, list)) or len(entry) != 2:
            raise TypeError(f"{name} got {entry!r}, expected pairs (what it fits, rule)")
        keys, rule = entry
        keys = tuple(keys) if isinstance(keys, (tuple, list)) else (keys,)
        if not all(isinstance(key, kinds) or hasattr(key, "__subclass__") for key in keys):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise TypeError(f"{name} got {keys!r}, expected {expected}, or a tuple of them")
        if not isinstance(rule, Hook):
            raise TypeError(f"{name} got {rule!r} for {keys!r}, expected a rule, such as Gamma(0.1)")
        if getattr(rule, "form", "relevance") != "relevance":
            raise TypeError(f"{name} got {shown(rule)} in the gradient form; convert the whole composite instead")
        checked.append((keys, rule))
    return checked


def is_type(module: torch.nn.Module, kind: Any) -> bool:
    """Tell whether a module is of a type, given itself or by its name or that of a base class."""
    if isinstance(kind, str) and kind.startswith("zennit.types."):
        kind = getattr(zennit.types, kind.removeprefix("zennit.types."))
    if isinstance(kind, str):
        return any(base.__name__ == kind for base in type(module).__mro__)
    return isinstance(module, kind)
