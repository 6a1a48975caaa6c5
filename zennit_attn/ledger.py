"""Where the relevance of an explained output went: a ledger that accounts for all of it.

Relevance that does not reach the input stays at something that does not depend on it: biases, position and class-token
parameters, the bias of a softmax's Taylor expansion, the stabilizers of layer rules. Each is found where the forward
uses it, so that one backward pass tells all of them.

This module does not compute relevance: see :meth:`zennit_attn.InputXGradient.ledger`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .engine.catalog import functions
from .engine.functions import multiply
from .engine.gates import WEIGHT, mark, strength
from .engine.handles import Kept
from .engine.mode import OperatorMode
from .engine.names import modules_by_name, names_of
from .engine.operands import depends, explained_leaf, operands, swap
from .engine.state import record_with
from .engine.state import recorder as current_recorder
from .sharding import is_fully_sharded, is_sharded
from .tables import Table

#: Kinds of functions in which relevance may stay, and what is said to keep it.
KEEPING = {
    "softmax": "softmax",
    "log softmax": "softmax",
    "attention": "softmax",
    "exponential": "exponential",
    "layer norm": "bias",
    "rms norm": "bias",
    "group norm": "bias",
    "instance norm": "bias",
    "batch norm": "bias",
}
#: Kinds of functions that add their arguments, or choose among them.
ADDING = ("linear", "joining", "added product", "weighted sum")
#: Functions of which a number is added, or put in the place of elements.
NUMBERS = ("add", "sub", "subtract", "rsub", "where", "masked_fill", "index_fill")


@dataclass(frozen=True)
class Ledger:
    """An account of the relevance of an explained output.

    Parameters
    ----------
    explained : float
        Relevance of the output: what is explained, summed over the batch.
    inputs : dict of str to float
        Relevance of each explained input.
    kept : dict of tuple to float
        Relevance by (module, what kept it): ``"bias"``, ``"softmax"``, the name of a parameter, the type of a rule, ...
    """

    explained: float
    inputs: dict[str, float]
    kept: dict[tuple[str, str], float]

    @property
    def remainder(self) -> float:
        """What is not accounted for: rounding, unless a rule neither conserves nor is known to keep something."""
        return self.explained - sum(self.inputs.values()) - sum(self.kept.values())

    def by_kind(self) -> dict[str, float]:
        """Return what was kept, summed over modules."""
        return _summed((kind, value) for (_, kind), value in self.kept.items())

    def by_module(self, depth: int | None = None) -> dict[tuple[str, str], float]:
        """Return what was kept, summed over modules that have the first parts of their names in common.

        Parameters
        ----------
        depth : int, optional
            Number of parts of a dotted name; None (default) sums nothing.
        """
        return _summed(((".".join(name.split(".")[:depth]), kind), value) for (name, kind), value in self.kept.items())

    def to_dict(self) -> dict[str, Any]:
        """Return the ledger as nested dictionaries of numbers, fit for JSON."""
        kept: dict[str, dict[str, float]] = defaultdict(dict)
        for (name, kind), value in self.kept.items():
            kept[name][kind] = value
        return {
            "explained": self.explained,
            "inputs": dict(self.inputs),
            "kept": dict(kept),
            "remainder": self.remainder,
        }

    def table(self, depth: int | None = None) -> Table:
        """Return a table: inputs, what each module kept, the remainder, and the sum.

        Parameters
        ----------
        depth : int, optional
            Number of parts of dotted names by which modules are summed, see :meth:`by_module`.
        """
        found: list[tuple[tuple[str, str], float]]
        found = [((name, "input"), value) for name, value in self.inputs.items()]
        outermost = "(all modules)" if depth == 0 else "(the model)"
        found += [((name or outermost, kind), value) for (name, kind), value in self.by_module(depth).items()]
        found += [(("", "remainder"), self.remainder), (("", "explained"), self.explained)]
        whole = self.explained or 1.0
        rows = [(name, kind, f"{value:+.6g}", f"{value / whole:+.2%}") for (name, kind), value in found]
        columns = list(zip(*rows, strict=True))
        widths = [max(map(len, column)) for column in columns]
        text = "\n".join(
            f"{name:{widths[0]}}  {kind:{widths[1]}}  {value:>{widths[2]}}  {share:>{widths[3]}}"
            for name, kind, value, share in rows
        )
        values = [(name, kind, value, value / whole) for (name, kind), value in found]
        return Table(text, ("module", "kept by", "relevance", "share"), values)

    def short(self) -> Table:
        """Return the table that is printed: of a deep model, one line for each kind."""
        return self.table(None if len(self.kept) <= 40 else 0)

    def __str__(self) -> str:
        return str(self.short())

    def _repr_html_(self) -> str:
        return self.short()._repr_html_()


def _summed(pairs: Any) -> dict[Any, float]:
    """Sum the values of equal keys."""
    sums: dict[Any, float] = defaultdict(float)
    for key, value in pairs:
        sums[key] += value
    return dict(sums)


class Recorder:
    """What a forward pass adds that does not depend on the input, and what its functions keep in the backward pass.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        #: Names of the modules that are running, the innermost last.
        self.modules: list[str] = [""]
        #: What modules made that does not depend on the input.
        self.outputs: list[Tensor] = []
        #: Whether any function was looked up.
        self.seen = False
        #: Leaves that stand for constants, and where they are added.
        self.constants: list[tuple[tuple[str, str], Tensor]] = []
        #: What went into functions and came out of them.
        self.flows: list[tuple[tuple[str, str], Tensor]] = []
        self.order = {name: number for number, name in enumerate(names_of(model).values())}
        #: Parameters, and what modules made, by their memory.
        self.names = {
            parameter.untyped_storage().data_ptr(): name.rpartition(".")[2] if "bias" in name else name
            for name, parameter in model.named_parameters()
            if not parameter.is_meta and not is_sharded(parameter)
        }
        self.running = modules_by_name(model)

    def produced(self, name: str, output: Any) -> None:
        """Note which module made a constant, such as the embedding of positions."""
        if isinstance(output, Tensor) and not output.requires_grad and output.is_floating_point():
            # kept, so that no other tensor gets its memory
            self.outputs.append(output)
            self.names.setdefault(output.untyped_storage().data_ptr(), name)

    def constant(self, value: Tensor) -> Tensor:
        """Return a leaf that stands for a constant."""
        # a copy: what is written to the original later does not change what was added
        leaf = explained_leaf(value.clone())
        memory = value.untyped_storage().data_ptr()
        kind = self.names.get(memory) or self.loaded(memory)
        self.constants.append(((self.modules[-1], kind), leaf))
        # whatever it is added to stays the gate that it is
        return mark(leaf, WEIGHT)

    def loaded(self, memory: int) -> str:
        """Return the name of a parameter that its module has only as it runs: an offloaded one, or one of FSDP."""
        module = self.modules[-1]
        for name, parameter in self.running[module].named_parameters(module, recurse=False):
            if not parameter.is_meta and not is_sharded(parameter) and parameter.untyped_storage().data_ptr() == memory:
                return name.rpartition(".")[2] if "bias" in name else name
        return "constant"

    def measure(self, value: Tensor, place: tuple[str, str], sign: int) -> None:
        """Note the relevance of a tensor when the backward pass gets to it."""
        # a copy: models write over their tensors in place
        kept = value.detach().clone()
        value.register_hook(lambda signal: self.note(place, kept, signal, sign))

    def note(self, place: tuple[str, str], value: Tensor, signal: Tensor | None, sign: int = 1) -> None:
        """Note the relevance of a tensor, in float32 or better; where there is none, autograd may give None."""
        if signal is None:
            return
        dtype = torch.float64 if signal.dtype == torch.float64 else torch.float32
        self.flows.append((place, sign * multiply(value.detach().to(dtype), signal.to(dtype)).sum()))

    def ledger(self, explained: Tensor, inputs: dict[str | None, list[Tensor]]) -> Ledger:
        """Return the ledger of an explained output, once the backward pass is done."""
        if not self.seen:
            raise RuntimeError(
                "a ledger got a forward in which no function was looked up; expected a composite with operator rules, "
                "such as input_x_gradient(AttnLRPComposite())."
            )
        totals = {name or "input": float(sum(part.sum() for part in parts)) for name, parts in inputs.items()}
        kept = _summed((place, float(value)) for place, value in self.flows)
        size = _summed((place, abs(float(value))) for place, value in self.flows)
        rounding = 100 * torch.finfo(explained.dtype).eps
        # in the order of the model; a difference that is all rounding is no entry
        places = sorted(kept, key=lambda place: self.order[place[0]])
        found = {place: kept[place] for place in places if abs(kept[place]) > rounding * size[place]}
        return Ledger(float(explained.sum()), totals, found)

    def measured(self, kind: str, call: Any, args: Any, kwargs: Any) -> Any:
        """Call something, and note the difference between the relevance of its output and that of its arguments."""
        self.seen = True
        place = self.modules[-1], kind

        def enter(value: Tensor) -> Tensor:
            # a view of its own, that gets this function's part of the signal only
            local = mark(value.view_as(value), strength(value))
            self.measure(local, place, -1)
            return local

        def leave(value: Tensor) -> Tensor:
            if depends(value):
                self.measure(value, place, 1)
            return value

        args = tuple(swap(value, enter) for value in args)
        kwargs = {key: swap(value, enter) for key, value in kwargs.items()}
        return tree_map_only(Tensor, leave, call(*args, **kwargs))


class RecordingMode(OperatorMode):
    """Look up each function, and let the recorder see what it adds and what it keeps."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func`` by its rule."""
        kwargs = kwargs or {}
        recorder = current_recorder()
        if recorder is None:
            return super().__torch_function__(func, types, args, kwargs)
        recorder.seen = True
        known = functions().get(func)
        if known is None or self.table is self.nothing or not operands(args, kwargs):
            return super().__torch_function__(func, types, args, kwargs)
        kind, name, writes = known
        if callable(kind) or (kind in KEEPING and not writes):

            def call(*args: Any, **kwargs: Any) -> Any:
                return super(RecordingMode, self).__torch_function__(func, types, args, kwargs)

            return recorder.measured(KEEPING.get(kind, name), call, args, kwargs)
        if kind in ADDING:
            args, kwargs = with_leaves(recorder, kind, name, writes, args, kwargs)
        return super().__torch_function__(func, types, args, kwargs)


def with_leaves(recorder: Recorder, kind: str, name: str, writes: bool, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Return the arguments of a sum with leaves in the place of constants."""
    like = operands(args, kwargs)[0]

    def swapped(value: Any) -> Any:
        if isinstance(value, (list, tuple)) and any(map(depends, value)):
            return type(value)(map(swapped, value))
        if isinstance(value, Tensor) and not value.requires_grad and value.is_floating_point():
            return recorder.constant(value)
        if name in NUMBERS and isinstance(value, (int, float)) and not isinstance(value, bool) and value:
            return recorder.constant(torch.tensor(value, dtype=like.dtype, device=like.device))
        return value

    if kind in ("added product", "weighted sum"):
        # the summand only: the other constants are factors
        place, key = (0, "input") if kind == "added product" else (2, "bias")
        args = tuple(swapped(value) if number == place else value for number, value in enumerate(args))
        return args, {**kwargs, key: swapped(kwargs[key])} if key in kwargs else kwargs
    if writes and not args[0].requires_grad and args[0].is_floating_point():
        # a constant that is written to is part of the result, in the same place
        args[0].copy_(recorder.constant(args[0]))
    return (
        tuple(value if writes and number == 0 else swapped(value) for number, value in enumerate(args)),
        {key: value if key in ("alpha", "out") else swapped(value) for key, value in kwargs.items()},
    )


@contextmanager
def recording(model: torch.nn.Module) -> Iterator[Recorder]:
    """Record what a model's forward passes inside add and keep.

    Parameters
    ----------
    model : torch.nn.Module
        Model with operator rules, in the gradient form.

    Raises
    ------
    RuntimeError
        If the model checkpoints its layers: what they keep is computed again, unseen. If processes share its layers
        (tensor parallel): each sees a part of what they keep.
    """
    if not is_fully_sharded(model):
        for name, parameter in model.named_parameters():
            if is_sharded(parameter):
                raise RuntimeError(
                    f"a ledger got {name} as a DTensor, of which each process has a part; expected weights in one "
                    "process, or FSDP2 (fully_shard)."
                )
    names = names_of(model)
    for module, name in names.items():
        if getattr(module, "gradient_checkpointing", False) and module.training:
            raise RuntimeError(f"{name or 'the model'!r} checkpoints its layers; expected none, for a ledger")
    recorder = Recorder(model)

    def enter(module: Any, args: Any) -> None:
        recorder.modules.append(names[module])

    def leave(module: Any, args: Any, output: Any) -> None:
        recorder.produced(recorder.modules.pop(), output)

    with Kept() as kept, record_with(recorder, RecordingMode):
        for module in names:
            kept.hook(module, enter, before=True)
            kept.hook(module, leave, always_call=True)
        yield recorder
