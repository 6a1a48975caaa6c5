"""Recurrent networks: LSTM, GRU and RNN, explained by the functions that a step is made of.

The kernels are one function for all steps, which no rule could look into. A step here is that of the documentation of
:class:`torch.nn.LSTM`, :class:`torch.nn.GRU` and :class:`torch.nn.RNN`; its products are shared by the policy around
it: under CP-LRP the gates are constants (Arras et al. 2019), under AttnLRP they get half.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .operands import operands
from .state import state

State = tuple[Tensor, ...]
Step = Callable[[Tensor, State, Sequence[Any]], State]


def lstm_step(input: Tensor, before: State, weights: Sequence[Any]) -> State:
    """Return hidden and cell state: ``c' = f * c + i * g``, ``h' = o * tanh(c')``, projected if there is a weight."""
    hidden, cell = before
    of_input, of_hidden, input_bias, hidden_bias, *projection = weights
    gates = F.linear(input, of_input, input_bias) + F.linear(hidden, of_hidden, hidden_bias)
    enter, forget, value, leave = gates.chunk(4, -1)
    cell = forget.sigmoid() * cell + enter.sigmoid() * value.tanh()
    hidden = leave.sigmoid() * cell.tanh()
    return (F.linear(hidden, *projection) if projection else hidden), cell


def gru_step(input: Tensor, before: State, weights: Sequence[Any]) -> State:
    """Return the hidden state ``h' = (1 - z) * n + z * h`` with ``n = tanh(W x + r * (U h))``."""
    (hidden,) = before
    of_input, of_hidden, input_bias, hidden_bias = weights
    reset, update, value = F.linear(input, of_input, input_bias).chunk(3, -1)
    from_reset, from_update, from_value = F.linear(hidden, of_hidden, hidden_bias).chunk(3, -1)
    gate = (update + from_update).sigmoid()
    value = (value + (reset + from_reset).sigmoid() * from_value).tanh()
    return ((1 - gate) * value + gate * hidden,)


def rnn_step(input: Tensor, before: State, weights: Sequence[Any], activation: Callable[[Tensor], Tensor]) -> State:
    """Return the hidden state ``h' = tanh(W x + U h)``, or with ReLU."""
    (hidden,) = before
    of_input, of_hidden, input_bias, hidden_bias = weights
    return (activation(F.linear(input, of_input, input_bias) + F.linear(hidden, of_hidden, hidden_bias)),)


#: Steps by the name of the function of torch.
STEPS: dict[str, Step] = {
    "lstm": lstm_step,
    "gru": gru_step,
    "rnn_tanh": partial(rnn_step, activation=torch.tanh),
    "rnn_relu": partial(rnn_step, activation=torch.relu),
}


def recurrence(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a recurrent network step by step, by the rules of the functions that a step is written in."""
    if not operands(args, kwargs):
        return function(*args, **kwargs)
    name = function.__name__
    step = STEPS[name.removesuffix("_cell")]
    with state.mode:
        if name.endswith("_cell"):
            return run_cell(step, *args, **kwargs)
        if isinstance(args[1], Tensor) and not args[1].is_floating_point():
            return run_packed(step, *args, **kwargs)
        return run_sequence(step, *args, **kwargs)


def run_cell(
    step: Step,
    input: Tensor,
    before: Any,
    of_input: Tensor,
    of_hidden: Tensor,
    input_bias: Tensor | None = None,
    hidden_bias: Tensor | None = None,
) -> Any:
    """Run one step, as ``torch.lstm_cell`` and its like are called."""
    after = step(input, as_state(before), (of_input, of_hidden, input_bias, hidden_bias))
    return after[0] if isinstance(before, Tensor) else after


def run_sequence(step: Step, input: Tensor, before: Any, weights: Any, *settings: Any) -> Any:
    """Run all steps of sequences of one length, as ``torch.lstm`` and its like are called."""
    *others, batch_first = settings
    axis = int(batch_first)
    outputs, after = run_layers(step, list(input.unbind(axis)), before, weights, *others)
    return torch.stack(outputs, axis), *after


def run_packed(step: Step, data: Tensor, sizes: Tensor, before: Any, weights: Any, *settings: Any) -> Any:
    """Run all steps of packed sequences, the longest first: each step has a batch of its own size."""
    outputs, after = run_layers(step, list(data.split(sizes.tolist())), before, weights, *settings)
    return torch.cat(outputs), *after


def run_layers(
    step: Step,
    inputs: list[Tensor],
    before: Any,
    weights: Sequence[Tensor],
    has_biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
) -> tuple[list[Tensor], State]:
    """Return the outputs of all steps, and the last state of all layers and directions."""
    directions = 2 if bidirectional else 1
    first = [part.unbind(0) for part in as_state(before)]
    count = len(weights) // (layers * directions)
    after: list[State] = []
    for layer in range(layers):
        found = []
        for backwards in range(directions):
            place = layer * directions + backwards
            own = list(weights[place * count : (place + 1) * count])
            if not has_biases:
                own[2:2] = [None, None]  # type: ignore[list-item]
            outputs, last = run_direction(step, inputs, tuple(part[place] for part in first), own, bool(backwards))
            found.append(outputs)
            after.append(last)
        inputs = [torch.cat(parts, -1) for parts in zip(*found, strict=True)] if bidirectional else found[0]
        if dropout and train and layer < layers - 1:
            inputs = [F.dropout(value, dropout) for value in inputs]
    return inputs, tuple(torch.stack(parts) for parts in zip(*after, strict=True))


def run_direction(
    step: Step, inputs: list[Tensor], before: State, weights: Sequence[Any], backwards: bool
) -> tuple[list[Tensor], State]:
    """Return the outputs and the last state of one layer in one direction."""
    outputs = []
    for value in reversed(inputs) if backwards else inputs:
        size = len(value)
        after = step(value, tuple(part[:size] for part in before), weights)
        outputs.append(after[0])
        # the state of sequences that have ended, or not begun, stays
        if size < len(before[0]):
            after = tuple(torch.cat([now, part[size:]]) for now, part in zip(after, before, strict=True))
        before = after
    return outputs[::-1] if backwards else outputs, before


def as_state(before: Any) -> State:
    """Return a state as a tuple: an LSTM has two parts, the others one."""
    return (before,) if isinstance(before, Tensor) else tuple(before)
