"""Conditional relevance: what reaches the input through some units alone (CRP, Achtibat et al. 2023, eq. 5 to 7)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from zennit.core import Composite, Hook

from ..adapters import explained, target_mask
from ..attribution import mask_of as padding_mask_of
from ..attribution import relevance_of, tokens_of
from ..engine.functions import divide
from ..engine.names import modules_by_name
from ..engine.operands import Form
from ..engine.state import explaining
from ..errors import InputError
from ..hints import nearest
from ..inputs import Leaves, leaves_of, split_input
from ..latents import Features, Found, first_of, latents_of, watching
from ..targets import MASK, Labels, Target
from .channels import mask_of

#: Units by the name of a layer or a latent; under "y" what is explained.
Condition = Mapping[str, Any]
#: A concept, or a function, for all names or by name.
MaskMap = Any
#: What leaves some units of a signal.
Mask = Callable[[Tensor], Tensor]


class AttributionResults(NamedTuple):
    """What conditional attribution returns, a row for each condition.

    Attributes
    ----------
    heatmap : torch.Tensor
        Relevance of the input: of token ids ``(batch, tokens)``; of pixels summed over the colours.
    activations, relevances : dict of str to torch.Tensor
        Of each layer that was recorded or has a condition: its tensor, and the relevance at it, of a latent by unit.
    prediction : torch.Tensor
        The explained output, or the activation of the layer that was started at.
    """

    heatmap: Tensor
    activations: dict[str, Tensor]
    relevances: dict[str, Tensor]
    prediction: Tensor


@dataclass
class Place:
    """A tensor inside of a model at which relevance is recorded, masked, or started."""

    tensor: Tensor
    module: torch.nn.Module
    samples: int
    found: Found | None = None

    def shown(self, relevance: Tensor) -> Tensor:
        """Return relevance with the samples first: of a latent by unit."""
        if self.found is not None:
            return self.found.tidy(relevance)
        # windows of an image, for example, are many for each sample
        return relevance if len(relevance) == self.samples else relevance.unflatten(0, (self.samples, -1))

    def activation(self) -> Tensor:
        """Return the activation alike; that of a unit of several elements is their norm."""
        value = self.tensor.detach()
        if self.found is None or self.found.width == 1:
            return self.shown(value)
        return self.found.tidy(value.square()).sqrt()


@dataclass
class Run:
    """A forward pass: what it was given and returned, and the places inside, in the order of the pass."""

    output: Tensor
    mask: Tensor | None
    leaves: Leaves
    name: str | None
    is_tokens: bool
    padding: Tensor | None
    places: dict[str, Place]
    form: Form

    def sources(self) -> list[Tensor]:
        """Return the leaves of the input."""
        return list(self.leaves[self.name].values())


class CondAttribution:
    """Conditional attribution, asked as in zennit-crp, of any model that a composite explains.

    A condition names units by layer: ``{"model.layers.22.head": [3], "y": [7]}`` is what made logit 7 through head 3 of
    layer 22. The backward signal at the layer is zero but for these units; since both forms are linear in it, the
    conditional relevance of all units adds up to that of the whole layer.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    output_key : str, optional
        Entry of a ModelOutput to explain, see :func:`zennit_attn.adapters.explained`.
    argument : str, optional
        Which entry of a batch is explained, where it has several of :data:`~zennit_attn.inputs.INPUTS`.
    features : sequence of Features, optional
        Sparse autoencoders, the features of which conditions may name.

    Examples
    --------
    >>> import torch
    >>> from zennit.composites import EpsilonPlus
    >>> from zennit_attn.concepts import CondAttribution
    >>> layers = torch.nn.Conv2d(3, 4, 2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4, 2)
    >>> model = torch.nn.Sequential(*layers)
    >>> attribution = CondAttribution(model)
    >>> pixels, conditions = torch.rand(1, 3, 2, 2), [{"0": [0], "y": [1]}, {"0": [1, 3], "y": [1]}]
    >>> found = attribution(pixels, conditions, EpsilonPlus(), record_layer=["3"])
    >>> found.heatmap.shape, found.relevances["0"].shape
    (torch.Size([2, 2, 2]), torch.Size([2, 4, 1, 1]))
    """

    #: Under which name a condition says what is explained.
    MODEL_OUTPUT_NAME = "y"

    def __init__(
        self,
        model: torch.nn.Module,
        output_key: str | None = None,
        argument: str | None = None,
        features: Sequence[Features] = (),
    ) -> None:
        self.model, self.output_key, self.argument, self.features = model, output_key, argument, tuple(features)

    def __call__(
        self,
        data: Tensor | Mapping[str, Any],
        conditions: Sequence[Condition],
        composite: Composite | None = None,
        record_layer: Sequence[str] = (),
        mask_map: MaskMap = None,
        start_layer: str | None = None,
        init_rel: Any = None,
        exclude_parallel: bool = True,
    ) -> AttributionResults:
        """Explain under conditions, all of them in one batch.

        Parameters
        ----------
        data : torch.Tensor or mapping
            As for :class:`~zennit_attn.InputXGradient`: as many samples as conditions, or each sample is explained
            under each condition, the conditions of the first sample first.
        conditions : sequence of dict
            Units by the name of a module, or of a latent such as ``"model.layers.22.head"``. Under ``"y"``, classes of
            which the sum is explained (of tokens, at the last position that is not padding), or a target.
        composite : zennit.core.Composite, optional
            Rules, in either form. None is Input x Gradient.
        record_layer : sequence of str, optional
            Modules and latents of which activation and relevance are returned as well.
        mask_map : concept, callable or dict of str to these, optional
            Where the units of a layer are: a :class:`~zennit_attn.concepts.ChannelConcept`, or a function as
            in zennit-crp, ``(batch_id, concept_ids, layer_name) -> (signal -> signal)``; for all layers, or by name.
            Latents, linear layers and convolutions know it by themselves.
        start_layer : str, optional
            Where to start instead of the output. Its relevance is its activation, or ``init_rel``.
        init_rel : torch.Tensor, float or callable, optional
            Relevance at the start, for all conditions or for each, or a function of the activations there; by default
            these. Of the output the classes under ``"y"`` are taken.
        exclude_parallel : bool, optional
            Whether only what goes through all conditions, one after the other, reaches the input (default). With False
            what goes around them, through shortcuts, does, too.

        Returns
        -------
        AttributionResults
            A row for each condition, in the given order.

        Raises
        ------
        InputError
            If a condition names what there is not, or nothing says what is explained.
        """
        data, conditions = broadcast(data, conditions)
        self.check(conditions, start_layer, init_rel)
        # shortcuts are cut where the conditions are, which have to be the same ones in a batch
        groups: dict[frozenset[str], list[int]] = defaultdict(list)
        for row, condition in enumerate(conditions):
            groups[frozenset(self.layers_of([condition])) if exclude_parallel else frozenset()].append(row)
        recorded = [*record_layer, *self.layers_of(conditions)]
        parts, order = [], []
        for rows in groups.values():
            some = [conditions[row] for row in rows]
            init = init_rel[rows] if isinstance(init_rel, Tensor) and len(init_rel) == len(conditions) else init_rel
            asked = partial(self.batches, rows_of(data, rows), [some], composite, recorded, mask_map, start_layer, init)
            parts += list(asked(exclude_parallel))
            order += rows
        return joined(parts, order)

    def generate(
        self,
        data: Tensor | Mapping[str, Any],
        conditions: Sequence[Condition],
        composite: Composite | None = None,
        record_layer: Sequence[str] = (),
        mask_map: MaskMap = None,
        start_layer: str | None = None,
        init_rel: Any = None,
        batch_size: int = 10,
        exclude_parallel: bool = True,
    ) -> Iterator[AttributionResults]:
        """Explain one sample under many conditions: one forward pass for all of them, a backward pass for each batch.

        The rules are on the model until the last batch is taken.

        Parameters
        ----------
        data : torch.Tensor or mapping
            One sample.
        batch_size : int, optional
            How many conditions are explained together.
        conditions, composite, record_layer, mask_map, start_layer, init_rel, exclude_parallel
            As for a call; with ``exclude_parallel`` all conditions have to be on the same layers.

        Yields
        ------
        AttributionResults
            Of one batch of conditions after the other.
        """
        self.check(conditions, start_layer, init_rel)
        if size_of(data) != 1 or not conditions or batch_size < 1:
            raise InputError(
                f"generate got {size_of(data)} samples, {len(conditions)} conditions and batch_size={batch_size}; "
                "expected one sample and at least one condition: call it for several samples."
            )
        if exclude_parallel and len({frozenset(self.layers_of([condition])) for condition in conditions}) > 1:
            raise InputError(
                "generate got conditions on different layers, expected the same in each, as the graph is cut there; "
                "call it for others, or use exclude_parallel=False."
            )
        size = min(batch_size, len(conditions))
        batches = [conditions[start : start + size] for start in range(0, len(conditions), size)]
        recorded = [*record_layer, *self.layers_of(conditions)]
        rows = rows_of(data, [0] * size)
        yield from self.batches(rows, batches, composite, recorded, mask_map, start_layer, init_rel, exclude_parallel)

    def layers_of(self, conditions: Sequence[Condition]) -> list[str]:
        """Return the names of the layers that conditions are on."""
        names = [name for condition in conditions for name in condition if name != self.MODEL_OUTPUT_NAME]
        return list(dict.fromkeys(names))

    def check(self, conditions: Sequence[Condition], start_layer: str | None, init_rel: Any) -> None:
        """Raise InputError if nothing, or more than one thing, says what is explained."""
        for condition in conditions:
            given = self.MODEL_OUTPUT_NAME in condition
            if given and start_layer is not None:
                raise InputError(
                    f"got start_layer={start_layer!r} and a condition on 'y', {dict(condition)}; expected one of them: "
                    "relevance starts at the layer, or at the output."
                )
            if not given and start_layer is None and init_rel is None:
                raise InputError(
                    f"got the condition {dict(condition)}, expected 'y' in it: the classes that are explained; or "
                    "start_layer, or init_rel."
                )

    def batches(
        self,
        data: Tensor | Mapping[str, Any],
        batches: Sequence[Sequence[Condition]],
        composite: Composite | None,
        recorded: Sequence[str],
        mask_map: MaskMap,
        start_layer: str | None,
        init_rel: Any,
        exclude_parallel: bool,
    ) -> Iterator[AttributionResults]:
        """Run one forward pass, and a backward pass for each batch of conditions; yield the results of each."""
        form: Form = "gradient" if composite is None else getattr(composite, "form", "relevance")
        names = list(dict.fromkeys([*recorded, *([] if start_layer is None else [start_layer])]))
        masks: dict[str, Mask] = {}
        arrived: dict[str, Tensor] = {}

        def hooked(name: str, signal: Tensor) -> Tensor:
            arrived[name] = masks[name](signal) if name in masks else signal
            return arrived[name]

        with nullcontext() if composite is None else composite.context(self.model):
            run = self.run(data, names, form)
            if not exclude_parallel:
                for name, place in run.places.items():
                    place.tensor.register_hook(partial(hooked, name))
            done, count = 0, sum(map(len, batches))
            is_each = isinstance(init_rel, Tensor) and init_rel.dim() > 0 and len(init_rel) == count
            for conditions in batches:
                init = init_rel[done : done + len(conditions)] if is_each else init_rel
                done += len(conditions)
                arrived.clear()
                masks.clear()
                masks.update(self.masks(run, conditions, mask_map))
                root = run.output if start_layer is None else run.places[start_layer].tensor
                signal = self.start(run, root, conditions, init, start_layer is None)
                if exclude_parallel:
                    on_leaves = self.cut(run, root, signal, masks, start_layer, arrived)
                else:
                    on_leaves = passed(root, signal, run.sources())
                yield self.results(run, root, conditions, on_leaves, arrived)

    def run(self, data: Tensor | Mapping[str, Any], names: Sequence[str], form: Form) -> Run:
        """Run the model on leaves, and find the places of some names."""
        given, rest = split_input(data, self.argument)
        ((name, value),) = given.items()
        places: dict[str, Place] = {}
        with torch.enable_grad(), ExitStack() as stack:
            values, leaves = stack.enter_context(leaves_of(self.model, given))
            stack.enter_context(looking(self.model, names, self.features, form, places.__setitem__))
            stack.enter_context(explaining(lambda output: explained(output, self.output_key)))
            output = self.model(values[None], **rest) if None in values else self.model(**values, **rest)
        tensor = explained(output, self.output_key)
        mask = getattr(tensor, MASK, target_mask(self.model, {**rest, **values}))
        is_tokens = not value.is_floating_point()
        return Run(tensor, mask, leaves, name, is_tokens, padding_mask_of(name, rest), places, form)

    def masks(self, run: Run, conditions: Sequence[Condition], mask_map: MaskMap) -> dict[str, Mask]:
        """Return what conditions leave of the signal at each place that they are on."""
        found = {}
        for name in self.layers_of(conditions):
            kept = {row: condition[name] for row, condition in enumerate(conditions) if name in condition}
            given = mask_map.get(name) if isinstance(mask_map, Mapping) else mask_map
            for key, place in run.places.items():
                if key.split("#")[0] == name:
                    found[key] = mask_of(name, place.found, place.module, given, kept)
            if name not in found:
                raise InputError(
                    f"{name!r} made no tensor of the input in this forward; expected a layer that is called."
                )
        return found

    def start(
        self, run: Run, tensor: Tensor, conditions: Sequence[Condition], init_rel: Any, at_output: bool
    ) -> Tensor:
        """Return the signal that the backward pass starts with."""
        init = init_rel(tensor.detach()) if callable(init_rel) else init_rel
        if init is None:
            signal = torch.ones_like(tensor) if run.form == "gradient" else tensor.detach()
        else:
            relevance = torch.as_tensor(init).to(tensor)
            if relevance.dim() and 1 < len(relevance) < len(tensor):
                # of a batch that is not full, the rest is left out afterwards
                missing = len(tensor) - len(relevance)
                relevance = torch.cat([relevance, relevance[:1].expand(missing, *relevance.shape[1:])])
            relevance = relevance.expand_as(tensor)
            signal = divide(relevance, tensor.detach()) if run.form == "gradient" else relevance
        if not at_output:
            return signal
        chosen = torch.zeros_like(tensor)
        for row, condition in enumerate(conditions):
            wanted = condition.get(self.MODEL_OUTPUT_NAME)
            if wanted is None:
                chosen[row] = 1
                continue
            target = wanted if isinstance(wanted, Target) else Labels([wanted] if isinstance(wanted, int) else wanted)
            mask = None if run.mask is None else run.mask[row : row + 1]
            chosen[row] = target.weights(tensor[row : row + 1], mask)[0]
        # zero relevance where nothing is explained, whatever infinite logits there are
        return torch.where(chosen == 0, torch.zeros_like(signal), chosen * signal).detach()

    def cut(
        self,
        run: Run,
        root: Tensor,
        signal: Tensor,
        masks: Mapping[str, Mask],
        start_layer: str | None,
        arrived: dict[str, Tensor],
    ) -> tuple[Tensor | None, ...]:
        """Pass a signal back from condition to condition, so that nothing gets around them; return it at the leaves.

        What arrives at each place is put into ``arrived``.
        """
        order = list(run.places)
        if start_layer is not None:
            order = order[: order.index(start_layer)]
            arrived[start_layer] = signal = masks[start_layer](signal) if start_layer in masks else signal
        cuts, waiting = [], []
        for name in reversed(order):
            waiting.append(name)
            if name in masks:
                cuts.append((name, waiting))
                waiting = []

        def passed_to(names: Sequence[str], leaves: Sequence[Tensor] = ()) -> tuple[Tensor | None, ...]:
            found = passed(root, signal, [*(run.places[name].tensor for name in names), *leaves])
            arrived.update((name, part) for name, part in zip(names, found, strict=False) if part is not None)
            return found[len(names) :]

        for name, names in cuts:
            if "#" in name:
                raise InputError(f"{name!r} is a further call of a layer; expected one, or exclude_parallel=False.")
            passed_to(names)
            if name not in arrived:
                raise InputError(
                    f"nothing reaches {name!r} from the start, or from other conditions of {sorted(masks)}; expected "
                    "layers one after the other, or exclude_parallel=False."
                )
            arrived[name] = signal = masks[name](arrived[name])
            root = run.places[name].tensor
        return passed_to(waiting, run.sources())

    def results(
        self,
        run: Run,
        root: Tensor,
        conditions: Sequence[Condition],
        on_leaves: Sequence[Tensor | None],
        arrived: Mapping[str, Tensor],
    ) -> AttributionResults:
        """Return what is returned, given the signals at the leaves and inside."""
        if all(part is None for part in on_leaves):
            raise InputError(
                "what is explained does not depend on the input under these rules; expected a path from one to the "
                "other: attention weights are constants under CP-LRP."
            )
        parts = [in_form(run.form, *pair) for pair in zip(run.sources(), on_leaves, strict=True)]
        relevances = {
            name: place.shown(in_form(run.form, place.tensor, arrived.get(name))) for name, place in run.places.items()
        }
        activations = {name: place.activation() for name, place in run.places.items()}
        rows = slice(len(conditions))
        return AttributionResults(
            self.heatmap(run, parts)[rows],
            {name: value[rows] for name, value in activations.items()},
            {name: value[rows] for name, value in relevances.items()},
            root.detach()[rows],
        )

    def heatmap(self, run: Run, parts: list[Tensor]) -> Tensor:
        """Return the relevance of the input by token, or by pixel."""
        if run.is_tokens:
            return tokens_of(parts, run.padding)
        return parts[0].sum(1) if parts[0].dim() > 3 else parts[0].sum(-1) if parts[0].dim() == 3 else parts[0]


@contextmanager
def conditioned(
    model: torch.nn.Module,
    conditions: Sequence[Condition],
    mask_map: MaskMap = None,
    features: Sequence[Features] = (),
    form: Form = "relevance",
) -> Iterator[None]:
    """Let conditions hold in every backward pass of a model, whatever attributor runs it.

    What goes around the layers, through shortcuts, reaches the input, too.

    Parameters
    ----------
    model : torch.nn.Module
        The model, on which the rules are already: enter the attributor first.
    conditions : sequence of dict
        Units by layer or latent, for each sample of the batches to come; one condition is for all samples.
    mask_map, features
        See :class:`CondAttribution`.
    form : {"relevance", "gradient"}, optional
        Form of the backward signal: zennit's own attributors have the relevance form (default).

    Raises
    ------
    InputError
        If a condition names what there is not, or what is explained.

    Examples
    --------
    >>> import torch
    >>> from zennit.attribution import Gradient
    >>> from zennit.composites import EpsilonPlus
    >>> from zennit_attn.concepts import conditioned
    >>> layers = torch.nn.Conv2d(3, 4, 2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4, 2)
    >>> model = torch.nn.Sequential(*layers)
    >>> with Gradient(model, EpsilonPlus()) as attributor, conditioned(model, [{"0": [0]}]):
    ...     output, relevance = attributor(torch.rand(5, 3, 2, 2), lambda output: output)
    """
    names = list(dict.fromkeys(name for condition in conditions for name in condition))
    if CondAttribution.MODEL_OUTPUT_NAME in names or not conditions:
        raise InputError(
            f"got the conditions {list(conditions)}, expected at least one, and none on 'y': what is explained is the "
            "attributor's to know."
        )
    samples = None if len(conditions) == 1 else len(conditions)

    def note(name: str, place: Place) -> None:
        base = name.split("#")[0]
        size = place.samples
        if samples is not None and size != samples:
            raise InputError(f"got {samples} conditions for a batch of {size}, expected one for each sample, or one.")
        each = conditions if samples is not None else [*conditions] * size
        kept = {row: condition[base] for row, condition in enumerate(each) if base in condition}
        given = mask_map.get(base) if isinstance(mask_map, Mapping) else mask_map
        place.tensor.register_hook(mask_of(base, place.found, place.module, given, kept))

    with looking(model, names, features, form, note):
        yield


@contextmanager
def looking(
    model: torch.nn.Module,
    names: Sequence[str],
    features: Sequence[Features],
    form: Form,
    note: Callable[[str, Place], None],
) -> Iterator[None]:
    """Call something with each place of some names while a model runs.

    Raises
    ------
    InputError
        If there is no module and no latent of a name, or rules of zennit are put on after it was asked for.
    """
    named, known = modules_by_name(model), latents_of(model)
    own = {feature.name for feature in features}
    unknown = [name for name in names if name not in named and name not in known and name not in own]
    if unknown:
        choices = [*known, *own, *named]
        raise InputError(
            f"got {unknown[0]!r}, which is neither a latent nor a module of {type(model).__name__}; "
            + nearest(unknown[0], choices)
        )
    latents = [name for name in names if name in known]
    # filled by the forward pass
    shape: list[int] = []
    counts = Counter[str]()

    def begin(_: Any, args: Any, kwargs: Any) -> None:
        counts.clear()
        shape[:] = next(value.shape for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor))

    def act(found: Found) -> None:
        if found.latent.kind != "error":
            note(found.latent.name, Place(found.tensor, named[found.latent.module], found.samples, found))

    def comes_out(name: str, module: Any, args: Any, output: Any) -> None:
        tensor = first_of(output)
        if not (isinstance(tensor, Tensor) and tensor.requires_grad):
            return
        # zennit's hooks have a part of the graph of their own, behind which the relevance is the layer's
        hooks = list(module._forward_hooks.values())
        if any(isinstance(getattr(hook, "__self__", None), Hook) for hook in hooks[hooks.index(mine[name]) + 1 :]):
            raise InputError(
                f"rules of zennit were put on {name!r} after the conditions; expected the attributor to be entered "
                "first: with Gradient(model, composite) as attributor, conditioned(model, conditions): ..."
            )
        counts[name] += 1
        note(name if counts[name] == 1 else f"{name}#{counts[name]}", Place(tensor, module, shape[0]))

    mine = {name: partial(comes_out, name) for name in names if name not in known and name not in own}
    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(begin, with_kwargs=True, prepend=True).remove)
        stack.enter_context(watching(model, [*latents, *features], shape, act, form))
        for name, hook in mine.items():
            stack.callback(named[name].register_forward_hook(hook).remove)
        yield


def passed(root: Tensor, signal: Tensor, sources: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Return the signal at each source, None where there is no path."""
    if not sources:
        return ()
    if not root.requires_grad:
        return (None,) * len(sources)
    return torch.autograd.grad(root, sources, signal, retain_graph=True, allow_unused=True)


def in_form(form: Form, value: Tensor, signal: Tensor | None) -> Tensor:
    """Return relevance, given the signal of a form."""
    if form == "gradient":
        return relevance_of(value, signal).detach()
    return torch.zeros_like(value).detach() if signal is None else signal.detach()


def size_of(data: Tensor | Mapping[str, Any]) -> int:
    """Return the number of samples of a tensor or a batch."""
    tensors = [value for value in ([data] if isinstance(data, Tensor) else data.values()) if isinstance(value, Tensor)]
    if not tensors:
        raise InputError(f"got data of type {type(data).__name__} without tensors, expected a tensor or a batch.")
    return len(tensors[0])


def rows_of(data: Tensor | Mapping[str, Any], rows: Sequence[int]) -> Any:
    """Return some samples of a tensor or a batch, in an order."""
    if isinstance(data, Tensor):
        return data[list(rows)]
    size = size_of(data)
    return {
        key: value[list(rows)] if isinstance(value, Tensor) and value.dim() and len(value) == size else value
        for key, value in data.items()
    }


def broadcast(data: Any, conditions: Sequence[Condition]) -> tuple[Any, list[Condition]]:
    """Return as many samples as conditions: as given, or each sample under each condition."""
    size, count = size_of(data), len(conditions)
    if not count:
        raise InputError("got no condition, expected at least one, such as {'y': [7]}.")
    if size == count:
        return data, list(conditions)
    return rows_of(data, [row for row in range(size) for _ in range(count)]), [*conditions] * size


def joined(parts: Sequence[AttributionResults], order: Sequence[int]) -> AttributionResults:
    """Return the rows of several results in the order of their conditions."""
    places = sorted(range(len(order)), key=order.__getitem__)

    def join(values: Sequence[Tensor]) -> Tensor:
        return values[0] if len(values) == 1 else torch.cat(list(values))[places]

    first = parts[0]
    return AttributionResults(
        join([part.heatmap for part in parts]),
        {name: join([part.activations[name] for part in parts]) for name in first.activations},
        {name: join([part.relevances[name] for part in parts]) for name in first.relevances},
        join([part.prediction for part in parts]),
    )
