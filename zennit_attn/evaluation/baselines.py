"""Explanation methods under one interface, to compare LRP with: ``method(model, batch, target) -> relevance``.

:data:`METHODS` lists them by name, with their default parameters; the functions that make them take others. What a
method cannot explain is an error, never another explanation. How good an explanation is, is not decided here: see
:mod:`zennit_attn.evaluation`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from zennit.attribution import Gradient, IntegratedGradients, Occlusion, SmoothGrad, occlude_independent
from zennit.core import Composite

from ..adapters import ModelAdapter
from ..attribution import InputXGradient
from ..composites.canonizers import MultiheadAttentionCanonizer
from ..composites.presets import (
    AttnLRPComposite,
    CPLRPComposite,
    GammaViTComposite,
    LibraGradComposite,
    RelPComposite,
)
from ..composites.registration import input_x_gradient
from ..composites.roles import role
from ..engine.handles import Kept
from ..hints import nearest
from ..inputs import single_input
from ..targets import Target
from .features import Batch, Fixed, Patches, Tokens, fix, select
from .perturbation import values_without
from .sanity import Method

SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)
PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)


def as_function(model: torch.nn.Module, batch: Batch) -> tuple[torch.nn.Module, Tensor]:
    """Return a model as a function of one tensor, and that tensor: embeddings of tokens, or pixels."""
    name, value, rest = single_input(batch)
    if name is None:
        # transformers models return more than the logits
        argument = getattr(model, "main_input_name", None)
        return (model if argument is None else ModelAdapter(model, argument=argument)), value.detach()
    if value.is_floating_point():
        return ModelAdapter(model, rest, name), value.detach()
    adapter, mask = ModelAdapter(model, rest), rest.get("attention_mask")
    x = adapter.embed(value)
    # the range of padding's embeddings must not decide how noisy SmoothGrad is
    return adapter, x if mask is None else x * (mask != 0)[..., None]


def per_token(relevance: Tensor, batch: Batch) -> Tensor:
    """Return relevance added up over the embedding, zero at padding; that of pixels as it is."""
    _, value, rest = single_input(batch)
    if value.is_floating_point():
        return relevance
    mask = rest.get("attention_mask")
    summed = relevance if relevance.shape == value.shape else relevance.sum(-1)
    return summed if mask is None else summed.masked_fill(mask == 0, 0.0)


def patch_size(model: torch.nn.Module) -> int:
    """Return the side of a vision transformer's patches in pixels.

    Raises
    ------
    ValueError
        If the model has no patch embedding with square patches.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d) and role(name, module) == "patch_embedding":
            if module.stride == module.kernel_size and module.stride[0] == module.stride[1]:
                return int(module.stride[0])
    raise ValueError(f"got {type(model).__name__}, expected a patch embedding with square patches: give the patch size")


def features_of(model: torch.nn.Module, batch: Batch, features: Tokens | Patches | None) -> Tokens | Patches:
    """Return the features given, or by default tokens, or the patches of a vision transformer."""
    if features is not None:
        return features
    return Patches(patch_size(model)) if single_input(batch)[1].is_floating_point() else Tokens()


def random_relevance(seed: int = 0) -> Method:
    """Return a method that draws relevance at random, the same whenever it is asked about a sample."""

    def method(model: torch.nn.Module, batch: Batch, target: Target) -> Tensor:
        value = single_input(batch)[1]
        shape = value.shape[-2:] if value.is_floating_point() else value.shape[1:]
        # by what a sample holds: one order for all samples of a length would be no order at random
        seeds = [zlib.crc32(row.double().cpu().numpy().tobytes(), seed) for row in value]
        drawn = [torch.rand(shape, generator=torch.Generator().manual_seed(own)) for own in seeds]
        return per_token(torch.stack(drawn).to(value.device), batch)

    return method


def of_gradients(attributor: Callable[[torch.nn.Module], Any], reduce: Callable[[Tensor], Tensor]) -> Method:
    """Return a method from one of zennit's attributors, given the model, and what is done with its attribution."""

    def method(model: torch.nn.Module, batch: Batch, target: Target) -> Tensor:
        fixed = fix(model, batch, target)
        function, x = as_function(model, batch)
        # the plain gradient starts from the weights of the logits, not from their relevance
        _, attribution = attributor(function)(x, fixed.weights)
        return per_token(reduce(attribution.detach()), batch)

    return method


def gradient() -> Method:
    """Return sensitivity, the absolute value of the gradient (Simonyan et al., 2014)."""
    return of_gradients(Gradient, torch.abs)


def smooth_grad(noise_level: float = 0.1, n_iter: int = 20, seed: int = 0) -> Method:
    """Return SmoothGrad, the absolute value of the gradient's mean over noisy inputs (Smilkov et al., 2017).

    Parameters
    ----------
    noise_level : float, optional
        Standard deviation of the noise, as a share of the range of the input.
    n_iter : int, optional
        Number of noisy inputs.
    seed : int, optional
        Seed of the noise. The random state outside of the method stays as it is.
    """
    mean = of_gradients(lambda model: SmoothGrad(model, noise_level=noise_level, n_iter=n_iter), torch.abs)

    def method(model: torch.nn.Module, batch: Batch, target: Target) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return mean(model, batch, target)

    return method


def integrated_gradients(n_iter: int = 20) -> Method:
    """Return Integrated Gradients from a baseline of zero, in a number of steps (Sundararajan et al., 2017)."""
    return of_gradients(lambda model: IntegratedGradients(model, n_iter=n_iter), torch.Tensor.contiguous)


def lrp(composite: Composite | None) -> Method:
    """Return the relevance of a composite, by :class:`~zennit_attn.InputXGradient`.

    Parameters
    ----------
    composite : zennit.core.Composite or None
        Composite in the relevance form; None is plain Input x Gradient.
    """
    rules = None if composite is None else input_x_gradient(composite)

    def method(model: torch.nn.Module, batch: Batch, target: Target) -> Tensor:
        fixed = fix(model, batch, target)
        with InputXGradient(model, rules) as attributor:
            relevance: Tensor = attributor(batch, fixed)[1]
        return relevance

    return method


def occlusion(patch: int | None = None) -> Method:
    """Return occlusion: by how much the explained value falls if a token or a patch becomes zero (Zeiler et al., 2014).

    Parameters
    ----------
    patch : int, optional
        Side of a patch in pixels, by default that of the model's patch embedding.
    """
    remove = partial(occlude_independent, invert=True)

    def method(model: torch.nn.Module, batch: Batch, target: Target) -> Tensor:
        fixed = fix(model, batch, target)
        function, x = as_function(model, batch)
        tokens = not single_input(batch)[1].is_floating_point()
        size = 1 if tokens else patch or patch_size(model)
        # all of a token's embedding, all channels of a patch
        window, axis = ((1, x.shape[2]), 2) if tokens else ((x.shape[1], size, size), 1)
        with torch.no_grad():
            if function(x).dim() == 1:
                # zennit takes the sum over samples where there are no classes
                function = torch.nn.Sequential(function, torch.nn.Unflatten(0, (-1, 1)))
            output, left = Occlusion(function, None, fixed, remove, window, window)(x)
        whole = fixed.score(output).reshape(-1, *[1] * (x.dim() - 1))
        return per_token((whole - left).select(axis, 0), batch)

    return method


def kernel_shap(n_samples: int = 200, features: Tokens | Patches | None = None, seed: int = 0) -> Method:
    """Return KernelSHAP by captum, sample by sample (Lundberg and Lee, 2017); needs ``zennit-attn[evaluation]``.

    Parameters
    ----------
    n_samples : int, optional
        Number of perturbed inputs for each sample.
    features : Tokens or Patches, optional
        The players, and what they become if they do not play: by default tokens, or patches of the size of the model's,
        which become zero.
    seed : int, optional
        Seed of the coalitions. The random state outside of the method stays as it is.
    """

    def method(model: torch.nn.Module, batch: Batch, target: Target) -> Tensor:
        players = features_of(model, batch, features)
        fixed, real = fix(model, batch, target), players.real(batch)
        values = torch.zeros(real.shape, device=real.device)
        for row in torch.arange(len(real), device=real.device).split(1):
            value = partial(value_of_players, model, select(batch, row), fixed.at(row), players, real[row])
            everyone = torch.ones(1, int(real[row].sum()), device=real.device)
            values[row, real[row[0]]] = shapley_values(value, everyone, n_samples, seed)
        return players.spread(values, single_input(batch)[1]) if isinstance(players, Patches) else values

    return method


def value_of_players(
    model: torch.nn.Module, batch: Batch, target: Target, features: Tokens | Patches, real: Tensor, playing: Tensor
) -> Tensor:
    """Return the explained value of a sample for each coalition, ones and zeros of shape ``(coalitions, players)``."""
    removed = torch.zeros(len(playing), real.shape[1], dtype=torch.bool, device=real.device)
    removed[:, real[0]] = playing == 0
    same = torch.zeros(len(playing), dtype=torch.long, device=real.device)
    return values_without(model, batch, target, features, same, removed)


def shapley_values(value: Callable[[Tensor], Tensor], everyone: Tensor, n_samples: int, seed: int) -> Tensor:
    """Return each player's share of a value by captum's KernelSHAP, given the coalition of all, ``(1, players)``."""
    try:
        from captum.attr import KernelShap
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("KernelSHAP needs captum: pip install zennit-attn[evaluation]") from error
    if everyone.shape[1] == 1:
        # a player alone has it all; captum's kernel is not defined there
        return value(everyone) - value(0 * everyone)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        shares: Tensor = KernelShap(value).attribute(everyone, n_samples=n_samples, perturbations_per_eval=n_samples)
    return shares[0]


def grad_cam(layer: str | None = None) -> Method:
    """Return Grad-CAM for images, at the resolution of a layer (Selvaraju et al., 2017).

    Parameters
    ----------
    layer : str, optional
        Name of the module that is looked at: the input of an attention, of which the tokens are patches, or the output
        of another module, of shape ``(batch, channels, rows, columns)``. By default the last attention (what the last
        block returns for patches has no part in the logit of a class token), or without any the last convolution.
    """

    def method(model: torch.nn.Module, batch: Batch, target: Target) -> Tensor:
        fixed = fix(model, batch, target)
        function, x = as_function(model, batch)
        if single_input(batch)[1].dim() != 4:
            raise ValueError("Grad-CAM got a batch without images, expected pixels: it explains images only")
        name, module = layer_of(model, layer)
        output, activation = run_and_keep(function, x, module, role(name, module) == "attention")
        (slope,) = torch.autograd.grad(fixed.score(output).sum(), activation)
        if activation.dim() == 3:
            cam = on_grid((activation * slope.mean(1, keepdim=True)).sum(-1), x, model)
        else:
            cam = (activation * slope.mean((2, 3), keepdim=True)).sum(1)
        return F.interpolate(cam.detach().clamp(min=0)[:, None], x.shape[-2:])[:, 0]

    return method


def layer_of(model: torch.nn.Module, name: str | None) -> tuple[str, torch.nn.Module]:
    """Return the module that Grad-CAM looks at, and its name.

    Raises
    ------
    ValueError
        If there is none.
    """
    named = dict(model.named_modules())
    if name is not None:
        if name not in named:
            raise ValueError(f"layer got {name!r}, which is no module of the model; {nearest(name, named)}")
        return name, named[name]
    attentions = [place for place, module in named.items() if role(place, module) == "attention"]
    convolutions = [place for place, module in named.items() if isinstance(module, torch.nn.Conv2d)]
    if not attentions and not convolutions:
        raise ValueError(f"Grad-CAM got {type(model).__name__}, which has no attention or Conv2d: name a layer")
    chosen = (attentions or convolutions)[-1]
    return chosen, named[chosen]


def run_and_keep(
    function: torch.nn.Module, x: Tensor, module: torch.nn.Module, at_input: bool
) -> tuple[Tensor, Tensor]:
    """Return the output of a function, and the input or the output of a module in it, in one graph.

    Raises
    ------
    ValueError
        If the module is not called once with tokens, or does not return channels of an image.
    """
    taken: list[Any] = []

    def take(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        taken.append(next(iter((*args, *kwargs.values()))) if at_input else output)

    with Kept() as kept:
        kept.hook(module, take, with_kwargs=True)
        output = function(x.requires_grad_())
    shapes = [tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__ for value in taken]
    if len(shapes) != 1 or len(shapes[0]) != (3 if at_input else 4):
        expected = "(batch, tokens, width)" if at_input else "(batch, channels, rows, columns)"
        raise ValueError(
            f"Grad-CAM got {shapes} at a {type(module).__name__}, expected a tensor {expected}: name a layer"
        )
    return output, taken[0]


def on_grid(values: Tensor, images: Tensor, model: torch.nn.Module) -> Tensor:
    """Return values of tokens ``(batch, tokens)`` on the grid of patches, without the tokens that come before these.

    Raises
    ------
    ValueError
        If there are fewer tokens than patches, or more tokens before them than a few.
    """
    rows, columns = Patches(patch_size(model)).grid(images)
    others = values.shape[1] - rows * columns
    # a class token, a distillation token, up to eight registers
    if not 0 <= others <= 10:
        raise ValueError(
            f"got {values.shape[1]} tokens for {rows} x {columns} patches, expected a token for each patch"
        )
    return values[:, others:].unflatten(1, (rows, columns))


class AttentionWeights(TorchFunctionMode):
    """Keep the attention weights of whatever is called inside, in the order of the calls, in their graph.

    Attributes
    ----------
    weights : list of torch.Tensor
        Each of shape ``(batch, heads, queries, keys)``: results of softmax of this shape, and the weights of
        :func:`torch.nn.functional.scaled_dot_product_attention`, which is computed step by step.
    values : list of torch.Tensor
        What they weigh, of shape ``(batch, heads, keys, width)``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []
        self.values: list[Tensor] = []
        #: The last weights, as what comes next takes them.
        self.last: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return self.attend(*args, **(kwargs or {}))
        output = func(*args, **(kwargs or {}))
        if func in SOFTMAX and output.dim() == 4:
            self.weights.append(output)
            self.last = output
        elif func is F.dropout and args[0] is self.last:
            self.last = output
        elif func in PRODUCTS and args[0] is self.last:
            self.values.append(args[1])
        return output

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Return fused attention in steps, without dropout; arguments as in PyTorch."""
        if enable_gqa:
            key, value = (tensor.repeat_interleave(query.shape[-3] // tensor.shape[-3], -3) for tensor in (key, value))
        scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        lowest = torch.finfo(scores.dtype).min
        if attn_mask is not None:
            scores = torch.where(attn_mask, scores, lowest) if attn_mask.dtype == torch.bool else scores + attn_mask
        # not minus infinity: a row of padding only has to stay finite
        self.weights.append(scores.clamp(min=lowest).softmax(-1))
        self.values.append(value)
        return self.weights[-1] @ value


def attention_of(model: torch.nn.Module, batch: Batch, fixed: Fixed) -> tuple[Tensor, AttentionWeights]:
    """Return the explained value of each sample, and the attention of each layer, in one graph.

    Raises
    ------
    ValueError
        If there are none, or they are not those of one sequence.
    """
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False) or (
        isinstance(batch, Mapping) and "other_ids" in batch
    ):
        raise ValueError(f"attention rollout got {type(model).__name__}, expected a model of one sequence")
    function, x = as_function(model, batch)
    handles = MultiheadAttentionCanonizer().apply(model)
    try:
        with torch.enable_grad(), AttentionWeights() as attention:
            score = fixed.score(function(x.requires_grad_()))
    finally:
        for handle in handles:
            handle.remove()
    sizes = {(len(weights), *weights.shape[2:]) for weights in attention.weights}
    if len(sizes) != 1 or sizes != {(len(x), (size := attention.weights[0].shape[-1]), size)}:
        found = [tuple(weights.shape) for weights in attention.weights]
        raise ValueError(
            f"attention rollout got attention weights of shapes {found or 'none'} in {type(model).__name__}, expected "
            "(batch, heads, tokens, tokens) in each layer, by softmax or scaled_dot_product_attention: where another "
            "kernel computes them, load the model with attn_implementation='eager'."
        )
    return score, attention


def attention_rollout(position: int | None = None) -> Method:
    """Return attention rollout: the product of the layers' mean attention, each half identity (Abnar et al., 2020).

    It depends on the target only by the position that is explained.

    Parameters
    ----------
    position : int, optional
        Token that is read, of a model that gives one output for all tokens: by default the first one, the class token.
    """

    def method(model: torch.nn.Module, batch: Batch, target: Target) -> Tensor:
        fixed = fix(model, batch, target)
        attentions = attention_of(model, batch, fixed)[1].weights
        flow = identity = torch.eye(attentions[0].shape[-1]).to(attentions[0])
        for weights in attentions:
            flow = (weights.detach().mean(1) + identity) / 2 @ flow
        return row_of(flow, model, batch, fixed, position)

    return method


def gradient_attention_rollout(position: int | None = None) -> Method:
    """Return gradient x attention rollout: attention, weighted by its positive gradients (Chefer et al., ICCV 2021).

    Parameters
    ----------
    position : int, optional
        See :func:`attention_rollout`.
    """

    def method(model: torch.nn.Module, batch: Batch, target: Target) -> Tensor:
        fixed = fix(model, batch, target)
        score, attention = attention_of(model, batch, fixed)
        attentions = attention.weights
        slopes = torch.autograd.grad(score.sum(), attentions)
        flow = torch.eye(attentions[0].shape[-1]).to(attentions[0]).expand(len(score), -1, -1)
        for weights, slope in zip(attentions, slopes, strict=True):
            flow = flow + (weights.detach() * slope).clamp(min=0).mean(1) @ flow
        return row_of(flow, model, batch, fixed, position)

    return method


def attention_value_norm(position: int | None = None) -> Method:
    """Return attention x value norm: ``mean |a v|`` over layers and heads (Kobayashi et al., 2020, without projection).

    Parameters
    ----------
    position : int, optional
        See :func:`attention_rollout`.
    """

    def method(model: torch.nn.Module, batch: Batch, target: Target) -> Tensor:
        fixed = fix(model, batch, target)
        attention = attention_of(model, batch, fixed)[1]
        if len(attention.values) != len(attention.weights):
            raise ValueError(
                f"attention x value norm got {len(attention.values)} products with values of "
                f"{len(attention.weights)} attentions in {type(model).__name__}, expected one for each: load it with "
                "attn_implementation='sdpa'"
            )
        norms = [value.norm(dim=-1)[:, :, None] for value in attention.values]
        flow = sum((a * norm).mean(1) for a, norm in zip(attention.weights, norms, strict=True)).detach()
        return row_of(flow / len(norms), model, batch, fixed, position)

    return method


def row_of(flow: Tensor, model: torch.nn.Module, batch: Batch, fixed: Fixed, position: int | None) -> Tensor:
    """Return what flows from each token to the one that is read, as relevance of tokens or pixels.

    Raises
    ------
    ValueError
        If a causal model would be read at its first token, or a position is given beside the explained one.
    """
    if fixed.position is not None:
        if position is not None:
            raise ValueError(f"position got {position}, expected None: the target explains a position of its own")
        places = fixed.position.reshape(len(flow), -1, 1).to(flow.device) % flow.shape[-1]
        # of several, the mean
        row = flow.gather(1, places.expand(-1, -1, flow.shape[-1])).mean(1)
    elif position is None and not bool(flow.triu(1).any()):
        raise ValueError(f"got {type(model).__name__}, whose first token sees no other: give the position that is read")
    else:
        row = flow[:, 0 if position is None else position]
    images = single_input(batch)[1]
    if not images.is_floating_point():
        return per_token(row, batch)
    return F.interpolate(on_grid(row, images, model)[:, None], images.shape[-2:])[:, 0]


#: The methods by name, with their default parameters.
METHODS: dict[str, Method] = {
    "random": random_relevance(),
    "gradient": gradient(),
    "input_x_gradient": lrp(None),
    "integrated_gradients": integrated_gradients(),
    "smooth_grad": smooth_grad(),
    "grad_cam": grad_cam(),
    "attention_rollout": attention_rollout(),
    "gradient_attention_rollout": gradient_attention_rollout(),
    "attention_value_norm": attention_value_norm(),
    "occlusion": occlusion(),
    "kernel_shap": kernel_shap(),
    "cp_lrp": lrp(CPLRPComposite()),
    "attnlrp": lrp(AttnLRPComposite()),
    "relp": lrp(RelPComposite()),
    "libragrad": lrp(LibraGradComposite()),
    "cp_lrp_gamma": lrp(GammaViTComposite(attention="cp")),
    "attnlrp_gamma": lrp(GammaViTComposite(attention="attnlrp")),
}

#: What each method is called where it is shown, in the order in which tables have them.
TITLES: dict[str, str] = {
    "random": "random",
    "gradient": "gradient",
    "smooth_grad": "SmoothGrad",
    "input_x_gradient": "Input × Gradient",
    "integrated_gradients": "Integrated Gradients",
    "grad_cam": "Grad-CAM",
    "attention_rollout": "attention rollout",
    "gradient_attention_rollout": "gradient × attention rollout",
    "attention_value_norm": "attention × value norm",
    "occlusion": "occlusion",
    "kernel_shap": "KernelSHAP",
    "cp_lrp": "CP-LRP (ε)",
    "attnlrp": "AttnLRP",
    "relp": "RelP",
    "libragrad": "LibraGrad",
    "cp_lrp_gamma": "CP-LRP + γ",
    "attnlrp_gamma": "AttnLRP + γ",
}
