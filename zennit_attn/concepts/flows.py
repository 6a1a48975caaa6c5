"""Flows: what gets from unit to unit of a model, on no other unit's way, in one forward pass.

Relevance that a unit has flows on to units below it. An edge is what gets from one unit to another without passing
through any of the units in between, so that nothing is counted twice: ``R(u → v)`` is the relevance at ``v`` of the
backward signal that starts at ``u`` alone and ends at every unit that it meets. The edges into a unit add up to its
relevance, and so do those out of it, but for what biases and stabilizers keep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from zennit.core import Composite

from ..composites.registration import input_x_gradient
from ..errors import InputError
from ..latents import Features, Found, chosen
from .conditional import CondAttribution
from .graphs import INPUT, OUTPUT, AttributionGraph, Edge, Node
from .passes import Run, in_form, passed
from .samples import rows_of, size_of


def attribution_graph(
    model: torch.nn.Module,
    data: Tensor | Mapping[str, Any],
    target: Any,
    composite: Composite,
    latents: str | Sequence[str | Features] = ("head", "neuron"),
    count: int = 3,
    tokens: Sequence[str] | None = None,
    answer: str = OUTPUT,
    least: float = 0.0,
    batch_size: int = 4,
    output_key: str | None = None,
    argument: str | None = None,
) -> AttributionGraph:
    """Explain an output by units, these by units below them, and so on down to the input.

    At each place the ``count`` units of the largest relevance have a node each, and all others one together, so that
    what flows through the graph is all relevance: ``R_v = Σ_u R(u → v)`` over all nodes above, and
    ``R_u = Σ_v R(u → v) + other`` over all nodes below, where what goes around layers, through the residual stream, is
    in the edges that skip them. It takes one forward pass of ``batch_size`` copies of the sample, and a backward pass
    for as many nodes each.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    data : torch.Tensor or mapping
        One sample, as for :class:`~zennit_attn.InputXGradient`.
    target : Target or sequence of int
        What is explained.
    composite : zennit.core.Composite
        Rules; they are converted to the gradient form.
    latents : str or sequence of str or Features, optional
        The places, by kind, name or pattern, see :class:`~zennit_attn.InputXGradient`.
    count : int, optional
        How many units of each place have nodes of their own.
    tokens : sequence of str, optional
        What the tokens are called.
    answer : str, optional
        What the output is called.
    least : float, optional
        The share of the explained value below which an edge is left out; it is in ``other`` of its upper node.
    batch_size : int, optional
        How many nodes share a backward pass, and how many copies of the sample there are in memory.
    output_key, argument
        See :class:`~zennit_attn.InputXGradient`.

    Raises
    ------
    InputError
        If there is more than one sample, or a place is called several times.

    Examples
    --------
    >>> import torch, transformers
    >>> from zennit_attn import CPLRPComposite
    >>> from zennit_attn.concepts import attribution_graph
    >>> config = transformers.LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=2,
    ...                                   num_attention_heads=2)
    >>> model = transformers.LlamaForCausalLM(config).eval()
    >>> graph = attribution_graph(model, torch.tensor([[3, 1, 4]]), [5], CPLRPComposite(), latents="head", count=1)
    >>> [node.place for node in graph.nodes if not node.rest]
    ['output', 'model.layers.1.head', 'model.layers.0.head', 'input', 'input', 'input']
    """
    if size_of(data) != 1 or count < 1 or batch_size < 1:
        raise InputError(
            f"got {size_of(data)} samples, count={count} and batch_size={batch_size}; expected one sample, and at "
            "least one of each"
        )
    wanted = (latents,) if isinstance(latents, (str, Features)) else tuple(latents)
    features = [entry for entry in wanted if isinstance(entry, Features)]
    asking = CondAttribution(model, output_key, argument, features)
    with input_x_gradient(composite).context(model):
        names = [*(latent.name for latent in chosen(model, wanted)[0]), *(feature.name for feature in features)]
        run = asking.run(rows_of(data, [0] * batch_size), names, "gradient")
        refuse_doubles(run)
        weights = asking.start(run, run.output, [{asking.MODEL_OUTPUT_NAME: target}] * batch_size, None, True)
        flow = Flow(asking, run, weights)
        nodes = flow.nodes(count, tokens, answer)
        return flow.graph(nodes, least, {"composite": repr(composite), "target": str(target), "count": count})


def refuse_doubles(run: Run) -> None:
    """Raise InputError if a place is called several times, or is the same tensor as another one."""
    owners: dict[int, str] = {}
    for name, place in run.places.items():
        other = owners.setdefault(id(place.tensor), name)
        if "#" in name or other != name:
            raise InputError(
                f"got {name!r}, which is {'a further call' if '#' in name else f'the same tensor as {other!r}'}; "
                "expected latents of which each is computed once: what flows into one of them ends there."
            )


class Flow:
    """What flows between units in one forward pass of copies of a sample."""

    def __init__(self, asking: CondAttribution, run: Run, weights: Tensor) -> None:
        self.asking, self.run, self.weights = asking, run, weights
        self.found: dict[str, Found] = {name: place.found for name, place in run.places.items() if place.found}
        self.tensors = {name: place.tensor for name, place in run.places.items()}
        self.size = len(run.output)
        # all that arrives at each place, on whatever way
        signals = passed(run.output, weights, [*self.tensors.values(), *run.sources()])
        self.signals = dict(zip(self.tensors, signals, strict=False))
        self.on_input = self.of_input(signals[len(self.tensors) :])[0]

    def by_unit(self, name: str, signal: Tensor | None) -> Tensor:
        """Return relevance of shape ``(batch, tokens, units)``, given the signal at a place."""
        relevance = self.found[name].tidy(in_form("gradient", self.tensors[name], signal))
        return relevance[..., None] if relevance.dim() == 2 else relevance

    def of_input(self, signals: Sequence[Tensor | None]) -> Tensor:
        """Return relevance by token; of an input that has none, its sum."""
        pairs = zip(self.run.sources(), signals, strict=True)
        relevance = self.asking.heatmap(self.run, [in_form("gradient", *pair) for pair in pairs])
        return relevance if self.run.is_tokens else relevance.flatten(1).sum(1, keepdim=True)

    def nodes(self, count: int, tokens: Sequence[str] | None, answer: str) -> list[Node]:
        """Return the nodes of the output, of the strongest units from the top down, and of the input.

        Raises
        ------
        InputError
            If there are not as many names as tokens.
        """
        names = list(map(str, range(len(self.on_input)))) if self.run.is_tokens else [INPUT]
        if tokens is not None and len(tokens) != len(names):
            raise InputError(f"got {len(tokens)} names of {len(names)} tokens, expected one for each")
        value = float((self.weights[0] * self.run.output[0].detach()).sum())
        found = [Node(OUTPUT, (), False, answer, None, value)]
        for name in reversed(self.tensors):
            relevance = self.by_unit(name, self.signals[name])[0]
            units, kind = relevance.sum(0), self.found[name].latent.kind
            order = units.abs().argsort(descending=True, stable=True).tolist()
            for unit in order[:count]:
                at = int(relevance[:, unit].abs().argmax())
                found.append(Node(name, (unit,), False, f"{kind} {unit}", at, float(units[unit])))
            if order[count:]:
                rest = tuple(sorted(order[count:]))
                found.append(Node(name, rest, True, f"other {kind}s", None, float(units[list(rest)].sum())))
        for at, (label, relevance) in enumerate(zip(tokens or names, self.on_input.tolist(), strict=True)):
            found.append(Node(INPUT, (at,), False, label, at if self.run.is_tokens else None, relevance))
        return found

    def graph(self, nodes: Sequence[Node], least: float, about: dict[str, Any]) -> AttributionGraph:
        """Return the graph of nodes, with the edges that have at least a share of the output's relevance."""
        sources = [number for number, node in enumerate(nodes) if node.place != INPUT]
        edges: list[Edge] = []
        for start in range(0, len(sources), self.size):
            edges += self.edges(nodes, sources[start : start + self.size])
        shown = [edge for edge in edges if edge.relevance and abs(edge.relevance) >= least * abs(nodes[0].relevance)]
        shown.sort(key=lambda edge: -abs(edge.relevance))
        left = {number: node.relevance for number, node in enumerate(nodes) if node.place != INPUT}
        for edge in shown:
            left[edge.upper] -= edge.relevance
        told = [Node(**{**vars(node), "other": left.get(number, 0.0)}) for number, node in enumerate(nodes)]
        return AttributionGraph(tuple(told), tuple(shown), about)

    def edges(self, nodes: Sequence[Node], sources: Sequence[int]) -> list[Edge]:
        """Return the edges out of some nodes, a row of the batch for each."""
        arrived: dict[str, Tensor] = {}

        def stopped(name: str, starts: Tensor, signal: Tensor) -> Tensor:
            arrived[name] = signal * (1 - starts)
            return signal * starts

        roots, seeds = [], []
        above = torch.tensor([nodes[number].place == OUTPUT for number in sources]).to(self.weights)
        if bool(above.any()):
            above = torch.nn.functional.pad(above, (0, self.size - len(sources)))
            roots.append(self.run.output)
            seeds.append(self.weights * above.view(-1, *[1] * (self.weights.dim() - 1)))
        handles = []
        for name, tensor in self.tensors.items():
            found = self.found[name]
            kept = torch.zeros(self.size, found.units)
            for row, number in enumerate(sources):
                if nodes[number].place == name:
                    kept[row, list(nodes[number].units)] = 1
            # a signal that starts at a place goes on from it, and any other one ends there
            starts = kept.amax(1, keepdim=True).expand_as(kept)
            handles.append(tensor.register_hook(partial(stopped, name, found.mask(starts))))
            signal = self.signals[name]
            if signal is not None and bool(kept.any()):
                roots.append(tensor)
                seeds.append(signal * found.mask(kept))
        try:
            on_input = torch.autograd.grad(roots, self.run.sources(), seeds, retain_graph=True, allow_unused=True)
        finally:
            for handle in handles:
                handle.remove()
        by_place = {name: self.by_unit(name, arrived.get(name)).sum(1) for name in self.tensors}
        by_place[INPUT] = self.of_input(on_input)
        return [
            Edge(upper, lower, float(by_place[node.place][row, list(node.units)].sum()))
            for row, upper in enumerate(sources)
            for lower, node in enumerate(nodes)
            if node.place != OUTPUT
        ]
