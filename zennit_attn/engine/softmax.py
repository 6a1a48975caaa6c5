"""Softmax attention in its parts: weights written out as exp / sum, and the products around a softmax.

A policy says one thing of attention, whichever functions it is written in. What belongs to it is read off the graph:
a quotient of an exponential and a sum of it is a softmax, and a matrix product that ends in a softmax, or that has its
output as a factor, is attention's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any

import torch

from .basic import Rule
from .functions import Scale
from .gates import WEIGHT, mark, strength
from .graph import name_of_node
from .operands import depends, operands
from .reports import report, report_shift
from .state import state

#: Nodes that move values, or multiply them by constants: what comes out is the same tensor, as far as this goes.
MOVING = frozenset(
    """
    Alias Clone Copy Div Enter Expand Gather Index IndexSelect Leave MaskedFill Mul Neg Permute ReshapeAlias
    Select Slice Squeeze T ToCopy Transpose UnsafeView Unsqueeze View Where
    """.split()
)
ADDING = frozenset("Add Sub".split())
#: What is between the scores and the softmax, element by element: caps, and the exponential of one that is written out.
CAPPING = frozenset("Exp Route Slope".split())
#: What scores less their maximum are made of.
SHIFTING = frozenset("Amax Enter Leave Max Sub Unsqueeze".split())
SUMMING = frozenset("Sum ScatterAdd IndexAdd ScatterReduce IndexReduce".split())
PRODUCTS = frozenset("Addmm Baddbmm Bmm Mm".split())

#: Attribute of the output of a log-softmax: its input, and the dimension.
LOGITS = "_zennit_attn_logits"


def sources(node: Any) -> list[Any]:
    """Return the nodes before a node; of what is written over, nothing is left."""
    if name_of_node(node) == "Copy":
        return [node.next_functions[-1][0]]
    return [before for before, _ in node.next_functions if before is not None]


def reached(node: Any, through: frozenset[str], ends: frozenset[str]) -> Iterator[tuple[Any, list[str]]]:
    """Yield each node of some names that is reached through others, and the names on the way; None where a way ends."""
    waiting: list[tuple[Any, list[str]]] = [(node, [])]
    while waiting:
        node, way = waiting.pop()
        name = "" if node is None else name_of_node(node)
        if name in ends:
            yield node, way
        elif name in through and (name in ADDING or len(sources(node)) == 1):
            waiting.extend((before, [*way, name]) for before in sources(node))
        else:
            yield None, way


def is_softmax(numerator: Any, denominator: Any) -> bool:
    """Tell whether a quotient is the softmax: of exponentials, and of nothing but sums of the same ones."""
    if not depends(numerator) or not depends(denominator):
        return False
    exponentials = frozenset({"Exp"})
    above = [node for node, _ in reached(numerator.grad_fn, MOVING, exponentials)]
    if len(above) != 1 or above[0] is None:
        return False
    below = list(reached(denominator.grad_fn, MOVING | ADDING | SUMMING, exponentials))
    return all(
        node is not None and not SUMMING.isdisjoint(way) and same(exponent(node), exponent(above[0]))
        for node, way in below
    )


def is_shifted(numerator: Any) -> bool:
    """Tell whether an exponential in the relevance form is of a difference to a constant, as a detached maximum is.

    At the maximum the difference is exactly zero, where no relevance can tell the gradient.
    """
    ((node, _),) = reached(numerator.grad_fn, MOVING, frozenset({"Exp"}))
    before, _ = exponent(node)
    if before is None:
        return False
    ends = frozenset({"Sub"})
    return any(
        found is not None and "Leave" in way and len(sources(found)) == 1
        for found, way in reached(before, MOVING, ends)
    )


def exponent(node: Any) -> Any:
    """Return where an exponential comes from, whichever form it is in."""
    (before, output), *_ = node.next_functions
    while before is not None and name_of_node(before) == "Enter":
        (before, output), *_ = before.next_functions
    return before, output


def same(one: Any, other: Any) -> bool:
    """Tell whether two places of a graph have the same values, computed once, or twice as scores less their maximum."""
    (node, output), (twin, place) = one, other
    if node is twin or node is None or twin is None:
        return node is twin and output == place
    pairs = list(zip_longest(node.next_functions, twin.next_functions, fillvalue=(None, 0)))
    return node.name() == twin.name() and name_of_node(node) in SHIFTING and all(same(*pair) for pair in pairs)


def quotient(rule: Rule, softmax: Rule) -> Rule:
    """Take a quotient that is a softmax by the rule of the softmax, others by that of divisions."""

    def run(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        sides = [*args[:2], *(kwargs[name] for name in ("input", "other") if name in kwargs)]
        if torch.compiler.is_compiling():
            # the graph, by which a softmax is known, is not there yet
            if len(sides) == 2 and state.mode.has_exponentials and all(map(depends, sides)):
                report("exp(a) / sum")
        elif len(sides) == 2 and is_softmax(*sides):
            shifted = is_shifted(sides[0])
            output = softmax(function, args, kwargs)
            if shifted and depends(output):
                report_shift(output)
            return output
        return rule(function, args, kwargs)

    return run


def noting_logits(rule: Rule) -> Rule:
    """Let the output of a log-softmax tell its input, of which its exponential is the softmax."""

    def run(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = rule(function, args, kwargs)
        input: Any = args[0] if args else kwargs.get("input")
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if isinstance(dim, int) and depends(input) and depends(output) and input.dtype == output.dtype:
            setattr(output, LOGITS, (input, dim))
        return output

    return run


def exponential_of(rule: Rule, softmax: Rule, writing: bool) -> Rule:
    """Take the exponential of a log-softmax as the softmax that it is, others and what writes in place by the rule."""

    def run(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if torch.compiler.is_compiling():
            state.mode.has_exponentials = True
        logits = None if writing else getattr(args[0] if args else None, LOGITS, None)
        return rule(function, args, kwargs) if logits is None else softmax(torch.softmax, logits, {})

    return run


def weighting(rule: Rule, share: float) -> Rule:
    """Take the softmax by its rule, mark its output as weights, and give attention's scores another share.

    Parameters
    ----------
    rule : callable
        Rule of the softmax.
    share : float
        What a product of two tensors that depend on the input passes back of the gradient to each, where it makes
        scores: 1 is the plain gradient, 1 / 2 the uniform rule.
    """

    def run(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        scores: Any = args[0] if args else kwargs.get("input")
        output = rule(function, args, kwargs)
        if depends(scores):
            has_product, scaled = products_before(scores.grad_fn)
            for node in scaled:
                node.factor = share
            if has_product and not scaled and share != 1:
                # all that the scores get comes through the weights
                output = Scale.apply(output, share)
        return mark(output, WEIGHT)

    return run


def products_before(node: Any) -> tuple[bool, list[Any]]:
    """Tell whether scores come from a product of two tensors, and which nodes share its relevance among them."""
    scaled, has_product = [], False
    for found, _ in reached(node, MOVING | ADDING | CAPPING, PRODUCTS | {"Scale"}):
        if found is None:
            continue
        if name_of_node(found) == "Scale":
            scaled.append(found)
            continue
        # of a sum with a product, each factor has its share
        halves = [before for before in sources(found) if name_of_node(before) == "Scale"]
        scaled += halves
        has_product |= len(sources(found)) > 1
    return has_product, scaled


def weighted(rule: Rule, of_weights: Callable[..., Any]) -> Rule:
    """Take a product with attention weights by another rule."""

    def run(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        is_attention = any(strength(value) == WEIGHT for value in operands(args, kwargs))
        return (of_weights if is_attention else rule)(function, args, kwargs)

    return run
