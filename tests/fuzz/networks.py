"""Random networks, what they explain, and what the rules of the papers say that they should."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import oracle
import torch
from torch import nn
from zennit.attribution import Gradient

from zennit_attn import AttnLRPComposite, CPLRPComposite, InputXGradient, input_x_gradient, targets
from zennit_attn.errors import UnknownOperationError

from . import operations
from .operations import MOVES, OPERATIONS, OVERWRITES, SHAPE, SUMS, UNSEEN, Operation

FORMS = ("relevance", "gradient")
# by torch, which cannot go back through what was written over, and by a trace, which shows no graph of a softmax
REFUSALS = ("modified by an inplace operation", "has been modified inplace", "exp(a) / sum")

#: How far relevance may be from the oracle's, relative to the largest.
TOLERANCE = 1e-6
COMPOSITES = {"attnlrp": AttnLRPComposite, "cp": CPLRPComposite}


@dataclass(frozen=True)
class Step:
    """One operation of a network: which module it uses, which variant, of which values."""

    operation: Operation
    module: int
    variant: int
    #: Which values it takes, counted at the time: what is written over takes the place of what it was.
    places: tuple[int, ...]
    overwrites: bool = False

    def __str__(self) -> str:
        """Return the step's name."""
        names = [name for name, value in vars(operations).items() if value is self.operation]
        for title in ("ACTIVATIONS", "MOVES", "OVERWRITES"):
            names += [f"{title}[{n}]" for n, value in enumerate(getattr(operations, title)) if value is self.operation]
        return f"{names[0]}.{self.variant}{self.places} module {self.module}"


class UndefinedError(ArithmeticError):
    """Relevance that rounding decides: a sum that is exactly zero, two equal values of which one is chosen."""


class Network(nn.Module):
    """A random program of operations, each of which takes values that came before it.

    Parameters
    ----------
    seed : int
        The network is the same for the same seed.
    preset : {"attnlrp", "cp"}
        Only operations of which the oracle knows the rule under the preset.
    unseen : bool
        Put one operation into it that no rule can see.
    """

    def __init__(self, seed: int, preset: str, unseen: bool = False) -> None:
        super().__init__()
        torch.manual_seed(seed)

        def below(number: int) -> int:
            return int(torch.randint(number, ()))

        known = [operation for operation in OPERATIONS if preset in operation.presets]
        written = [operation for operation in OVERWRITES if preset in operation.presets]
        self.preset, self.parts, self.steps = preset, nn.ModuleList(), []
        made: dict[int, list[int]] = {}
        count, length = 0, 3 + below(8)
        #: Values that share memory with another one are not written over: the oracle does not know memory.
        shared = {0}
        for number in range(length + unseen):
            hidden = unseen and number == length
            # the last values are more likely, so that most of a network is on the path
            places = tuple(count - min(below(2 * count + 1) // 2, below(count + 1)) for _ in range(3))
            overwrites = not hidden and below(4) == 0 and places[0] not in shared
            choices = (UNSEEN,) if hidden else written if overwrites else known
            operation = choices[below(len(choices))]
            places = places[: operation.inputs]
            if overwrites and places[0] in places[1:]:
                continue
            own = made.setdefault(id(operation), [])
            if not own or below(3):
                own.append(len(self.parts))
                self.parts.append(operation.make())
            module, variant = own[below(len(own))], below(len(operation.variants))
            self.steps.append(Step(operation, module, variant, places, overwrites))
            if overwrites:
                continue
            count += 1
            if operation in MOVES:
                shared |= {count, *places}
        self.head = nn.Linear(SHAPE[1] * SHAPE[2], 3)
        self.double().eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the program as people write it."""
        values = [x]
        for step in self.steps:
            arguments = (values[place] for place in step.places)
            value = step.operation.variants[step.variant](self.parts[step.module], *arguments)
            if not step.overwrites:
                values.append(value)
        return self.head(values[-1].flatten(1))

    @torch.no_grad()
    def by_the_book(self, x: torch.Tensor, target: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits, and the relevance of x for one of them.

        Raises
        ------
        UndefinedError
            If a sum is zero, the larger of equal values is taken, or a value overflows.
        """
        if not bool(self(x).isfinite().all()):
            raise UndefinedError
        values, now, taken = [x], [0], []
        for step in self.steps:
            taken.append([now[place] for place in step.places])
            arguments = [values[place] for place in taken[-1]]
            values.append(step.operation.reference(self.parts[step.module], *arguments))
            decisive = []
            if any(step.operation.reference is known.reference for known in SUMS):
                decisive.append(values[-1])
            if step.operation.doubtful is not None:
                decisive.append(step.operation.doubtful(self.parts[step.module], *arguments))
            if any(bool((value.abs() < 1e-9).any()) for value in decisive):
                raise UndefinedError
            if step.overwrites:
                now[step.places[0]] = len(values) - 1
            else:
                now.append(len(values) - 1)
        last = values[now[-1]].flatten(1)
        logits = last @ self.head.weight.T + self.head.bias
        relevance = torch.zeros_like(logits)
        relevance[:, target] = logits[:, target]
        found = [torch.zeros_like(value) for value in values]
        found[now[-1]] = oracle.linear(last, self.head.weight, self.head.bias, relevance).reshape(SHAPE)
        for number, step in reversed(list(enumerate(self.steps))):
            arguments = [values[place] for place in taken[number]]
            module, value = self.parts[step.module], number + 1
            shares = step.operation.relevance(module, arguments, values[value], found[value], self.preset)
            for place, share in zip(taken[number], shares, strict=True):
                found[place] = found[place] + share
        return logits, found[0]


def explained(
    network: Network, x: torch.Tensor, form: str, target: int, compiled: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits, and the relevance of x for one of them, by the package."""
    composite: Any = COMPOSITES[network.preset](strict=not compiled)
    if compiled:
        torch.compiler.reset()
        leaf = x.clone().requires_grad_()
        with (input_x_gradient(composite) if form == "gradient" else composite).context(network):
            # the same kernels: what could differ is the trace
            output = torch.compile(network, backend="aot_eager", fullgraph=True)(leaf)
            start = torch.zeros_like(output)
            start[:, target] = 1 if form == "gradient" else output.detach()[:, target]
            (signal,) = torch.autograd.grad(output, leaf, start)
        return output.detach(), (x * signal if form == "gradient" else signal)
    kind = InputXGradient if form == "gradient" else Gradient
    with kind(network, input_x_gradient(composite) if form == "gradient" else composite) as attributor:
        output, relevance = attributor(x, targets.Label(target))
    return output.detach(), relevance


@dataclass
class Outcome:
    """What came of one network: in how many forms it was compared, or reported as it has to be, and what was wrong."""

    compared: int
    wrong: list[str]


def compare(
    network: Network, unseen: bool, target: int, form: str, by_the_book: Any, compiled: bool = False
) -> str | None:
    """Return what is wrong in one form, an empty text if nothing is, None if torch refuses to go back."""
    x, logits, expected = by_the_book
    try:
        output, got = explained(network, x, form, target, compiled)
    except UnknownOperationError as error:
        return "" if unseen else str(error)
    except RuntimeError as error:
        return None if any(text in str(error) for text in REFUSALS) else f"{type(error).__name__}: {error}"
    if unseen:
        return "nothing was reported"
    if not torch.allclose(output, logits, rtol=1e-9, atol=1e-9):
        return f"the output is off by {float((output - logits).abs().max()):.1e}"
    # relevance that is all cancelled is rounding
    error = float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-6 * float(logits.abs().max())))
    return "" if error < TOLERANCE else f"relevance is off by {error:.1e} of the largest"


def check(seed: int, preset: str, compiled: bool = False) -> Outcome:
    """Explain the network of a seed in both forms; one in ten has something in it that has to be reported.

    When compiled, none has: a compiler's trace knows functions, and nothing of threads or foreign leaves.
    """
    unseen, target, outcome = seed % 10 == 9 and not compiled, seed % 3, Outcome(0, [])
    network = Network(seed, preset, unseen)
    x = torch.randn(SHAPE, dtype=torch.float64)
    try:
        by_the_book = x, *((None, None) if unseen else network.by_the_book(x, target))
    except UndefinedError:
        return outcome
    for form in FORMS:
        wrong = compare(network, unseen, target, form, by_the_book, compiled)
        outcome.compared += wrong is not None
        if wrong:
            outcome.wrong.append(f"{form}: {wrong}")
    if outcome.wrong:
        outcome.wrong += map(str, network.steps)
    return outcome
