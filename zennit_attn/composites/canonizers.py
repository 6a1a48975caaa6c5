"""Canonizers: what has to be rewritten in a model, for the time of a context, before rules can reach it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import FunctionType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from zennit.canonizers import Canonizer

from ..engine.handles import ForwardHandle, keep
from ..engine.names import names_of


class MultiheadAttentionCanonizer(Canonizer):
    """Unfuse :class:`torch.nn.MultiheadAttention` into query, key, value and output projections and a product.

    PyTorch's own is one opaque call: its packed ``in_proj_weight`` and its functional ``out_proj`` never trigger a
    hook. Inside of a context it has the linear submodules ``query``, ``key`` and ``value``, which share its memory,
    and calls its ``out_proj``. The output is that of the original up to rounding.

    Examples
    --------
    >>> import torch
    >>> from zennit_attn import MultiheadAttentionCanonizer
    >>> attention = torch.nn.MultiheadAttention(8, 2)
    >>> handles = MultiheadAttentionCanonizer().apply(attention)
    >>> [name for name, _ in attention.named_children()]
    ['out_proj', 'query', 'key', 'value']
    >>> handles[0].remove()
    >>> [name for name, _ in attention.named_children()]
    ['out_proj']
    """

    def __init__(self) -> None:
        super().__init__()
        self.module: torch.nn.MultiheadAttention | None = None
        self.handle: ForwardHandle | None = None

    def __repr__(self) -> str:
        return "MultiheadAttentionCanonizer()"

    def apply(self, root_module: torch.nn.Module) -> list[Canonizer]:
        """Unfuse every attention of a model, and return the canonizers that undo it."""
        found = []
        for module in names_of(root_module):
            # a subclass with a forward of its own is a different attention
            if type(module).forward is torch.nn.MultiheadAttention.forward:
                canonizer = self.copy()
                canonizer.register(module)
                found.append(canonizer)
        return found

    def register(self, module: Any) -> None:
        """Unfuse one attention."""
        taken = [name for name in ("query", "key", "value") if hasattr(module, name)]
        if taken:
            raise NotImplementedError(
                f"{type(module).__name__} has {taken} of its own, under which its projections would be put; expected "
                "torch.nn.MultiheadAttention without them."
            )
        self.module, layers = module, projections(module)
        keep(self)
        for name, projection in layers.items():
            module.add_module(name, projection)
        # with the layers: a forward of another thread may go on when they are taken off
        around = partial(unfused, module, tuple(layers.values()))
        self.handle = ForwardHandle(module, lambda _, args, kwargs: around(*args, **kwargs))

    def remove(self) -> None:
        """Undo it."""
        if self.handle is not None:
            self.handle.remove()
        if self.module is not None:
            for name in ("query", "key", "value"):
                self.module._modules.pop(name, None)


class FunctionCanonizer(Canonizer):
    """Let a forward call ordinary functions where it calls autograd functions with a backward pass of their own.

    No rule can look into :meth:`torch.autograd.Function.apply`. Inside of a context, the forward of a module instance
    that names such a function gets one in its place that computes the same; nothing else sees it.

    Parameters
    ----------
    functions : mapping of str to callable, optional
        Name of the autograd function, as the forward writes it, and what to call with the same arguments. By default
        those of transformers that are known, :data:`AUTOGRAD_FUNCTIONS`.

    Examples
    --------
    >>> import torch
    >>> from zennit_attn import AttnLRPComposite, FunctionCanonizer
    >>> composite = AttnLRPComposite(canonizers=[FunctionCanonizer({"MyFusedSilu": torch.nn.functional.silu})])
    """

    def __init__(self, functions: Mapping[str, Callable[..., Any]] | None = None) -> None:
        super().__init__()
        self.functions = dict(AUTOGRAD_FUNCTIONS if functions is None else functions)
        self.handle: ForwardHandle | None = None

    def __repr__(self) -> str:
        if self.functions == AUTOGRAD_FUNCTIONS:
            return "FunctionCanonizer()"
        names = (
            f"{name!r}: {function.__module__}.{function.__qualname__}" for name, function in self.functions.items()
        )
        return f"FunctionCanonizer({{{', '.join(names)}}})"

    def apply(self, root_module: torch.nn.Module) -> list[Canonizer]:
        """Change every forward of a model that names one of the functions, and return what undoes it."""
        found = []
        for module in names_of(root_module):
            code = getattr(type(module).forward, "__code__", None)
            if code is not None and not self.functions.keys().isdisjoint(code.co_names):
                canonizer = self.copy()
                canonizer.register(module)
                found.append(canonizer)
        return found

    def copy(self) -> FunctionCanonizer:
        """Return a canonizer of the same functions."""
        return FunctionCanonizer(self.functions)

    def register(self, module: Any) -> None:
        """Change one forward."""
        forward = type(module).forward
        changed = {name: SimpleNamespace(apply=function) for name, function in self.functions.items()}
        # the same code, in which these names mean something else
        twin = FunctionType(
            forward.__code__, {**forward.__globals__, **changed}, None, forward.__defaults__, forward.__closure__
        )
        twin.__kwdefaults__ = forward.__kwdefaults__
        self.handle = ForwardHandle(module, lambda _, args, kwargs: twin(module, *args, **kwargs))

    def remove(self) -> None:
        """Undo it."""
        if self.handle is not None:
            self.handle.remove()


def masked_softmax(input: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Softmax over what a mask leaves, and zero elsewhere, as DeBERTa's XSoftmax computes it."""
    excluded = ~mask.to(torch.bool)
    weights = F.softmax(input.masked_fill(excluded, torch.finfo(input.dtype).min), dim)
    return weights.masked_fill(excluded, 0)


#: Autograd functions of transformers by name: RecurrentGemma's square root, and the softmax of SEW-D.
AUTOGRAD_FUNCTIONS: dict[str, Callable[..., Any]] = {"SqrtBoundDerivative": torch.sqrt, "XSoftmax": masked_softmax}


def projections(module: Any) -> dict[str, torch.nn.Linear]:
    """Return the query, key and value projections of a fused attention, as linear layers that share its memory."""
    if module.in_proj_weight is None:
        weights = module.q_proj_weight, module.k_proj_weight, module.v_proj_weight
    else:
        weights = module.in_proj_weight.detach().chunk(3)
    biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.detach().chunk(3)
    found = {}
    for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
        # its own constructor would draw weights first
        linear = torch.nn.Linear.__new__(torch.nn.Linear)
        torch.nn.Module.__init__(linear)
        linear.out_features, linear.in_features = weight.shape
        linear.weight = torch.nn.Parameter(weight.detach(), requires_grad=False)
        linear.register_parameter("bias", None if bias is None else torch.nn.Parameter(bias, requires_grad=False))
        found[name] = linear.train(module.training)
    return found


def unfused(
    module: Any,
    layers: tuple[torch.nn.Module, ...],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Multi-head attention in steps that rules can see, with its projections; arguments and results as in PyTorch."""
    if module.bias_k is not None or module.add_zero_attn:
        raise NotImplementedError(
            "torch.nn.MultiheadAttention with add_bias_kv or add_zero_attn has no unfused form here; expected neither."
        )
    if is_causal and attn_mask is None:
        raise RuntimeError("got is_causal=True without attn_mask, expected both: is_causal is a hint about the mask")
    batched = query.dim() == 3
    inputs = (query, key, value) if batched else tuple(tensor.unsqueeze(1) for tensor in (query, key, value))
    if batched and module.batch_first:
        inputs = tuple(tensor.transpose(0, 1) for tensor in inputs)
    length, batch, width = inputs[0].shape
    # (length, batch, width) -> (batch, heads, length, head width)
    heads = [
        layer(tensor).unflatten(-1, (module.num_heads, module.head_dim)).permute(1, 2, 0, 3)
        for layer, tensor in zip(layers, inputs, strict=True)
    ]
    mask = merge_masks(attn_mask, key_padding_mask, batch, module.num_heads, query.dtype)
    if need_weights:
        scores = heads[0] @ heads[1].transpose(-2, -1) * module.head_dim**-0.5
        weights = F.dropout(F.softmax(scores if mask is None else scores + mask, -1), module.dropout, module.training)
        output = weights @ heads[2]
    else:
        weights = None
        dropout = module.dropout if module.training else 0.0
        output = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], mask, dropout)
    output = module.out_proj(output.permute(2, 0, 1, 3).reshape(length, batch, width))
    if weights is not None and average_attn_weights:
        weights = weights.mean(1)
    if not batched:
        return output.squeeze(1), None if weights is None else weights.squeeze(0)
    return output.transpose(0, 1) if module.batch_first else output, weights


def merge_masks(
    attention: Tensor | None, padding: Tensor | None, batch: int, heads: int, dtype: torch.dtype
) -> Tensor | None:
    """Return an additive mask of shape ``(batch or 1, heads or 1, queries or 1, keys)``."""
    merged = None
    if attention is not None:
        attention = additive(attention, dtype)
        merged = attention if attention.dim() == 2 else attention.unflatten(0, (batch, heads))
    if padding is not None:
        padding = additive(padding, dtype).reshape(batch, 1, 1, -1)
        merged = padding if merged is None else merged + padding
    return merged


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a boolean mask, True where attention is forbidden, as one that is added to scores."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, float("-inf"))
