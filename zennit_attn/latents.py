"""Latents: the places inside of a transformer at which relevance has units, under one name in every architecture.

Which module is a layer, an output projection or an MLP is read off the roles of modules, see
:func:`zennit_attn.composites.roles.role`; what has no role has no latents. This module does not know what is done with
the tensors that it finds.
"""

from __future__ import annotations

import fnmatch
import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from .composites.roles import role
from .engine.functions import Enter, Leave, Value
from .engine.gates import mark, strength
from .engine.handles import FrozenHandle, Kept
from .engine.linear import linear_kind
from .engine.names import modules_by_name
from .engine.operands import Form, depends, explained_leaf
from .errors import InputError
from .hints import nearest

#: The kinds of latents that a model has by itself.
KINDS = ("layer", "residual", "head", "neuron", "expert")

#: Where attention modules, and their configurations, have the number of heads of the output projection's input.
_HEADS = ("num_v_heads", "num_heads", "num_attention_heads", "n_heads", "n_head")
_HEAD_WIDTHS = ("head_dim", "head_size", "attention_head_size")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
#: Arguments of modules with all experts of a layer: which are a token's, and their weights.
_SLOTS = (("top_k_index", "top_k_weights"), ("router_indices", "routing_weights"))


class Features:
    """The features of a sparse autoencoder, or of a transcoder, at a module of the model.

    While the model is explained the module's output is ``decode(encode(x)) + error``, of which the error is a constant:
    the forward computes what it did, relevance goes on through the features alone, and the error keeps its own.

    Parameters
    ----------
    module : str
        Name of the module of the model.
    autoencoder : object
        With ``encode``, from a tensor of shape ``(batch, tokens, width)`` to ``(batch, tokens, features)``, and
        ``decode`` back, such as those of SAELens. If it is a :class:`torch.nn.Module`, its parameters are frozen.
    reads : {"output", "input"}, optional
        What is encoded: the module's output (default), by an autoencoder, or its input, by a transcoder. Both decode
        to the output.

    Raises
    ------
    InputError
        If it cannot encode and decode, or reads something else.

    Examples
    --------
    >>> import torch
    >>> from zennit_attn.latents import Features
    >>> class Autoencoder(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.up, self.down = torch.nn.Linear(4, 16), torch.nn.Linear(16, 4)
    ...     def encode(self, x):
    ...         return self.up(x).relu()
    ...     def decode(self, features):
    ...         return self.down(features)
    >>> Features("model.layers.3", Autoencoder()).name
    'model.layers.3.feature'
    """

    def __init__(self, module: str, autoencoder: Any, reads: str = "output") -> None:
        if not (callable(getattr(autoencoder, "encode", None)) and callable(getattr(autoencoder, "decode", None))):
            raise InputError(
                f"got a {type(autoencoder).__name__} for {module!r}, expected methods encode and decode: put them "
                "around it in a class of your own."
            )
        if reads not in ("output", "input"):
            raise InputError(f"got reads={reads!r} for {module!r}, expected 'output' or 'input'.")
        self.module, self.autoencoder, self.reads = module, autoencoder, reads

    @property
    def name(self) -> str:
        """Name of the features; that of the error ends in ``.error``."""
        return f"{self.module}.feature".lstrip(".")

    def __repr__(self) -> str:
        return f"Features({self.module!r}, {type(self.autoencoder).__name__}, reads={self.reads!r})"


@dataclass(frozen=True)
class Latent:
    """A place with units.

    Attributes
    ----------
    name : str
        Name of the layer, or of the module where a layer has several, and the kind: ``"model.layers.3.head"``.
    kind : str
        One of :data:`KINDS`, ``"feature"`` or ``"error"``.
    module : str
        Name of the module that has the tensor.
    units : int or None
        Into how many the last dimension is split: heads; None for as many as it is long.
    time_major : bool
        Whether its tensor has the tokens before the batch.
    """

    name: str
    kind: str
    module: str
    units: int | None = None
    time_major: bool = False


@dataclass(frozen=True)
class Found:
    """The tensor of a latent in one forward pass.

    Attributes
    ----------
    latent : Latent
        The place.
    tensor : torch.Tensor
        Its tensor, in the graph.
    samples : int
        Size of the batch.
    index : torch.Tensor or None
        Of experts, which one made each part, of shape ``(tokens, parts)``, and their number is ``units`` of the latent.
    """

    latent: Latent
    tensor: Tensor
    samples: int
    index: Tensor | None = None

    def tidy(self, value: Tensor) -> Tensor:
        """Return a value of the tensor's shape by unit: ``(batch, tokens, units)``, of a layer ``(batch, tokens)``.

        What the tensor has of a unit in several elements is summed.
        """
        if value.dim() > self.tensor.dim():
            return torch.stack([self.tidy(part) for part in value])
        if self.index is not None:
            summed = value.new_zeros(len(self.index), int(self.latent.units or 0))
            return summed.scatter_add(1, self.index, value.sum(-1)).unflatten(0, (self.samples, -1))
        if self.latent.time_major:
            value = value.transpose(0, 1)
        units = value.shape[-1] if self.latent.units is None else self.latent.units
        value = value.reshape(self.samples, -1, units, value.shape[-1] // units).sum(-1)
        return value.squeeze(-1) if self.latent.kind in ("layer", "error") else value

    @property
    def units(self) -> int:
        """How many units it has."""
        return self.tensor.shape[-1] if self.latent.units is None else self.latent.units

    @property
    def width(self) -> int:
        """How many elements of the tensor are of one unit, at one token."""
        return self.tensor.shape[-1] if self.index is not None else self.tensor.shape[-1] // self.units

    def mask(self, kept: Tensor) -> Tensor:
        """Return what to multiply the signal at the tensor with, so that some units are left.

        Parameters
        ----------
        kept : torch.Tensor
            1 for each unit that is kept, 0 for the others, of shape ``(batch, units)``, or with the tokens between.
        """
        kept = kept.to(self.tensor)
        if self.index is not None:
            kept = kept[:, None] if kept.dim() == 2 else kept
            kept = kept.expand(self.samples, len(self.index) // self.samples, -1).flatten(0, 1)
            return kept.gather(1, self.index)[..., None]
        shape = list(self.tensor.shape)
        if self.latent.time_major:
            shape[:2] = shape[1::-1]
        kept = kept[:, None] if kept.dim() == 2 else kept
        tokens = self.tensor.numel() // (self.samples * shape[-1])
        kept = kept[..., None].expand(self.samples, tokens, self.units, self.width).reshape(shape)
        return kept.transpose(0, 1) if self.latent.time_major else kept


#: What is done with each tensor that is found.
Act = Callable[[Found], None]


def latents_of(model: torch.nn.Module) -> dict[str, Latent]:
    """Return the latents that a model has by itself, by name.

    Parameters
    ----------
    model : torch.nn.Module
        A transformer of transformers, timm or torchvision, or one with modules of the same names.

    Examples
    --------
    >>> import transformers
    >>> from zennit_attn.latents import latents_of
    >>> config = transformers.LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
    ...                                   num_attention_heads=2)
    >>> list(latents_of(transformers.LlamaForCausalLM(config)))[:3]
    ['model.layers.0.layer', 'model.layers.0.residual', 'model.layers.0.head']
    """
    named = modules_by_name(model)
    roles = {name: role(name, module) for name, module in named.items()}
    found: list[Latent] = []
    for layer, attentions in layers_of(named, roles).items():
        found += [Latent(joined(layer, kind), kind, layer, 1 if kind == "layer" else None) for kind in KINDS[:2]]
        projections = {name: place for name in attentions if (place := projection_of(name, roles)) is not None}
        heads = {
            attention: (projection, count, isinstance(named[attention], torch.nn.MultiheadAttention))
            for attention, projection in projections.items()
            if (count := heads_of(named[attention], sizes(named[projection])[0])) is not None
        }
        found += placed(layer, "head", heads)
        outward = [sizes(named[projection])[1] for projection in projections.values()]
        inside = [name for name in named if name.startswith(f"{layer}.".lstrip(".")) and name != layer]
        found += placed(layer, "neuron", {name: (name, None) for name in downward(named, roles, inside, outward)})
        experts = {name: number(named[name], _EXPERTS) for name in inside if slots_of(named[name])}
        found += placed(layer, "expert", {name: (name, count) for name, count in experts.items() if count is not None})
    return {latent.name: latent for latent in found}


def joined(*parts: str) -> str:
    """Return names with dots between them."""
    return ".".join(filter(None, parts))


def placed(layer: str, kind: str, places: dict[str, tuple[Any, ...]]) -> list[Latent]:
    """Return the latents of a kind in a layer: under its name if it has one of them, else under those of modules."""
    owner = {name: layer if len(places) == 1 else name for name in places}
    return [Latent(joined(owner[name], kind), kind, *place) for name, place in places.items()]


def layers_of(named: dict[str, torch.nn.Module], roles: dict[str, str | None]) -> dict[str, list[str]]:
    """Return the layers of a model, and the attention modules, or state spaces, of each.

    A layer is the innermost numbered module around an attention that has other matrices than the attention's; without
    attention, that around an MLP's linear layers.
    """
    mixers: list[str] = []
    for name, place in roles.items():
        # an attention inside of another is its part
        if place in ("attention", "state_space") and not any(name.startswith(f"{outer}.") for outer in mixers):
            mixers.append(name)
    found: dict[str, list[str]] = {}
    for mixer in mixers:
        around = numbered_around(mixer)
        layer = next((name for name in around if has_more(named[name], mixer[len(name) :].lstrip("."))), None)
        layer = layer if layer is not None else next(iter(around), None)
        if layer is not None:
            found.setdefault(layer, []).append(mixer)
    if not found:
        for name, place in roles.items():
            around = numbered_around(name) if place == "mlp" else []
            if around:
                found.setdefault(around[0], [])
    return found


def numbered_around(name: str) -> list[str]:
    """Return the names of the modules around one that are members of a list, the innermost first."""
    path = name.split(".")
    around = [".".join(path[:end]) for end in range(len(path) - 1, 0, -1)]
    return [outer for outer in around if re.search(r"\d", outer.rpartition(".")[2])]


def has_more(layer: torch.nn.Module, mixer: str) -> bool:
    """Tell whether a layer has matrices beside those of its attention."""
    return any(value.dim() > 1 and not key.startswith(f"{mixer}.") for key, value in layer.named_parameters())


def projection_of(attention: str, roles: dict[str, str | None]) -> str | None:
    """Return the name of an attention's output projection, which is its last one."""
    inside = [name for name, place in roles.items() if place == "projection" and name.startswith(f"{attention}.")]
    return inside[-1] if inside and roles[attention] == "attention" else None


def downward(
    named: dict[str, torch.nn.Module], roles: dict[str, str | None], inside: list[str], outward: list[int]
) -> list[str]:
    """Return the projections of a layer's MLPs that lead back to its width; those of single experts are left out."""
    linear = [name for name in inside if roles[name] == "mlp" and not re.search(r"(^|\.)experts?\.", name)]
    if not linear:
        return []
    width = outward[0] if outward else sizes(named[linear[0]])[0]
    back = [name for name in linear if sizes(named[name])[1] == width]
    narrowing = [name for name in back if sizes(named[name])[0] != width]
    return narrowing or back[-1:]


def sizes(module: Any) -> tuple[int, int]:
    """Return the widths of a linear layer's input and output."""
    if hasattr(module, "in_features"):
        return module.in_features, module.out_features
    rows, columns = module.weight.shape[:2]
    return (rows, columns) if linear_kind(module) == "transposed linear" else (columns, rows)


def slots_of(module: torch.nn.Module) -> tuple[str, str] | None:
    """Return the arguments by which a module is told the experts of each token and their weights, None if it is not."""
    return _slots_of(type(module).forward)


@cache
def _slots_of(forward: Callable[..., Any]) -> tuple[str, str] | None:
    parameters = inspect.signature(forward).parameters
    return next((slots for slots in _SLOTS if set(slots) <= set(parameters)), None)


def number(module: Any, names: Sequence[str]) -> int | None:
    """Return the first attribute of some names that is a number, of a module or of its configuration."""
    for owner in (module, getattr(module, "config", None)):
        for name in names:
            value = getattr(owner, name, None)
            if isinstance(value, int) and value > 0:
                return value
    return None


def heads_of(attention: torch.nn.Module, width: int) -> int | None:
    """Return how many heads an attention has of which the outputs are so wide together, None if it does not say."""
    modules = list(attention.modules())
    for names, is_width in ((_HEADS, False), (_HEAD_WIDTHS, True)):
        found = next((value for module in modules if (value := number(module, names)) is not None), None)
        if found is not None and width % found == 0:
            return width // found if is_width else found
    return None


def fits(latent: Latent, entry: str) -> bool:
    """Tell whether a kind, a name or a pattern means a latent."""
    return latent.kind == entry or fnmatch.fnmatchcase(latent.name, entry)


def chosen(model: torch.nn.Module, wanted: Sequence[str | Features]) -> tuple[list[Latent], list[Features]]:
    """Return the latents of kinds, names or patterns, and the features among them.

    Raises
    ------
    InputError
        If a name fits none.
    """
    known = latents_of(model)
    found: dict[str, Latent] = {}
    features = [entry for entry in wanted if isinstance(entry, Features)]
    for entry in wanted:
        if isinstance(entry, Features):
            continue
        fitting = [name for name, latent in known.items() if fits(latent, entry)]
        if not fitting:
            has = [kind for kind in KINDS if any(latent.kind == kind for latent in known.values())]
            raise InputError(
                f"latents got {entry!r}, which fits none of {type(model).__name__}; expected one of {KINDS}, of which "
                f"this model has {has}, the name of one, or a pattern; {nearest(entry, [*KINDS, *known])}"
            )
        found.update((name, known[name]) for name in fitting)
    return list(found.values()), features


@contextmanager
def watching(
    model: torch.nn.Module,
    wanted: Sequence[str | Features],
    shape: Sequence[int],
    act: Act,
    form: Form = "gradient",
) -> Iterator[None]:
    """Call something with the tensor of each latent while a model runs.

    Parameters
    ----------
    model : torch.nn.Module
        The model, with its rules on: modules that these put in are looked at, too.
    wanted : sequence of str or Features
        Kinds, names or patterns of latents.
    shape : sequence of int
        Shape of the input, which tells batch and tokens.
    act : callable
        ``(found: Found) -> None``.
    form : {"relevance", "gradient"}
        Form of the backward signal.

    Raises
    ------
    InputError
        If there is no such latent, or none of a name was computed of the input.
    """
    latents, features = chosen(model, wanted)
    named, seen = modules_by_name(model), Counter[str]()

    def tell(latent: Latent, tensor: Tensor, index: Tensor | None = None) -> None:
        seen[latent.name] += 1
        if seen[latent.name] > 1:
            latent = replace(latent, name=f"{latent.name}#{seen[latent.name]}")
        act(found_of(latent, tensor, shape, index))

    def goes_in(latent: Latent, module: Any, args: Any) -> Any:
        value = args[0]
        if not depends(value):
            return None
        # a view of its own: what else is computed of the same tensor has another part of the signal
        local = mark(value.view_as(value), strength(value))
        tell(latent, local)
        return (local, *args[1:])

    def comes_out(latent: Latent, module: Any, args: Any, output: Any) -> None:
        value = first_of(output)
        if depends(value):
            tell(latent, value)

    def by_expert(latent: Latent, forward: Any, args: Any, kwargs: Any) -> Any:
        module = named[latent.module]
        slots = slots_of(module) or ()
        bound = inspect.signature(type(module).forward).bind(module, *args, **kwargs)
        given = [bound.arguments[key] for key in slots]
        parts = []
        # the sum over the experts of a token, one of them at a time: as many products as before
        for slot in range(given[0].shape[1]):
            bound.arguments.update((key, value[:, slot : slot + 1]) for key, value in zip(slots, given, strict=True))
            parts.append(forward(*bound.args[1:], **bound.kwargs))
        terms = torch.stack(parts, 1)
        if depends(terms):
            tell(latent, terms, given[0])
        return terms.sum(1)

    def decoded(feature: Features, forward: Any, args: Any, kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        value = first_of(output)
        given = value if feature.reads == "output" else next(iter((*args, *kwargs.values())), None)
        if not (depends(value) and depends(given)):
            return output
        encoded = feature.autoencoder.encode(given)
        if not depends(encoded):
            return output
        tell(Latent(feature.name, "feature", feature.module), encoded)
        rebuilt = feature.autoencoder.decode(encoded)
        if form == "gradient":
            error = explained_leaf(value - rebuilt)
            tell(Latent(joined(feature.module, "error"), "error", feature.module, 1), error)
            rebuilt = Value.apply(rebuilt + error, value)
        else:
            # of the output's relevance the features' part: by proportion
            rebuilt = Leave.apply(Value.apply(Enter.apply(rebuilt), value))
        return rebuilt if isinstance(output, Tensor) else type(output)((rebuilt, *output[1:]))

    with Kept() as kept:
        for feature in features:
            if feature.module not in named:
                raise InputError(
                    f"{feature!r} is at no module of {type(model).__name__}; {nearest(feature.module, named)}"
                )
            if isinstance(feature.autoencoder, torch.nn.Module):
                FrozenHandle(feature.autoencoder.modules(), kept)
            kept.forward(named[feature.module], partial(decoded, feature))
        for latent in latents:
            module = named[latent.module]
            if latent.kind == "expert":
                kept.forward(module, partial(by_expert, latent))
            elif latent.kind in ("head", "neuron"):
                kept.hook(module, partial(goes_in, latent), before=True)
            else:
                kept.hook(module, partial(comes_out, latent))
        yield
    for entry in wanted:
        names = (
            [entry.name] if isinstance(entry, Features) else [latent.name for latent in latents if fits(latent, entry)]
        )
        if not any(seen[name] for name in names):
            raise InputError(
                f"latents got {entry!r}, of which {type(model).__name__} computed none of the input in this forward; "
                "expected modules that are called. torch.nn.MultiheadAttention has heads under the rules of a preset."
            )


def first_of(output: Any) -> Any:
    """Return the tensor that a module returned, or the first of several."""
    return output[0] if isinstance(output, (tuple, list)) and output else output


def found_of(latent: Latent, tensor: Tensor, shape: Sequence[int], index: Tensor | None) -> Found:
    """Return the tensor of a latent with what tells its samples.

    Raises
    ------
    InputError
        If its samples cannot be told apart.
    """
    samples, tokens = shape[0], shape[1] if len(shape) > 1 else 1
    is_turned = tensor.dim() == 3 and samples > 1 and tokens != samples and tensor.shape[:2] == (tokens, samples)
    latent = replace(latent, time_major=latent.time_major or is_turned)
    size = tensor.shape[1] if latent.time_major else tensor.shape[0]
    if size % samples:
        raise InputError(
            f"{latent.name} has a tensor of shape {tuple(tensor.shape)} for {samples} samples, which cannot be told "
            "apart in it; expected one sample at a time."
        )
    return Found(latent, tensor, samples, index)
