"""The functions of torch that can carry relevance, by kind.

This module does not say how a kind is explained: see :mod:`zennit_attn.engine.operators`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F

#: A name in KINDS stands for every function of that name in these.
NAMESPACES = (torch, torch.Tensor, F, torch.special, torch.linalg, torch.fft, torch.sparse, torch._C._nn)

#: Names of functions by kind.
KINDS: dict[str, str] = {
    # relevance moves with the elements of the first argument: plain autograd in both forms
    "routing": """
        view view_as reshape reshape_as transpose t T mT H adjoint permute movedim moveaxis swapaxes swapdims flatten
        unflatten squeeze unsqueeze ravel expand expand_as broadcast_to broadcast_tensors repeat repeat_interleave tile
        tensor_split chunk hsplit vsplit dsplit unbind unsafe_chunk getitem index_select gather take take_along_dim
        narrow select diagonal diag_embed as_strided unfold pad roll flip fliplr flipud rot90 masked_select tril triu
        diag contiguous clone detach alias to type type_as float double half bfloat16 cpu cuda requires_grad_ set_
        zero_ amax amin topk sort kthvalue median mode cummax cummin max_pool1d max_pool2d max_pool3d
        adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d
        max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool1d_with_indices
        adaptive_max_pool2d_with_indices adaptive_max_pool3d_with_indices fractional_max_pool2d_with_indices
        fractional_max_pool3d_with_indices max_unpool1d max_unpool2d max_unpool3d embedding pixel_shuffle
        pixel_unshuffle channel_shuffle native_channel_shuffle _pack_padded_sequence _pad_packed_sequence
        atleast_1d atleast_2d atleast_3d real imag view_as_real
        aten::numpy_T aten::mT aten::mH aten::matrix_H
        view_as_complex resolve_conj resolve_neg positive iter resize_as_ nan_to_num register_hook retain_grad
    """,
    # routing, too, and linear in training mode, which scales what it keeps
    "dropout": "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout",
    # routing, too, of the elements of several arguments
    "joining": """
        cat concat concatenate stack hstack vstack dstack column_stack pad_sequence meshgrid block_diag where
        max min maximum minimum
        setitem copy_ fill_ masked_fill masked_scatter scatter index_copy index_fill slice_scatter select_scatter
    """,
    # routing, too: where a selective state space takes its parameters
    "split": "split split_with_sizes unsafe_split",
    # linear in every tensor together, also a product while only one factor depends on the input
    "linear": """
        add sub subtract rsub neg negative sum nansum mean cumsum diff avg_pool1d avg_pool2d avg_pool3d
        adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d index_add index_put scatter_add interpolate
        upsample fold trace conj fft ifft rfft irfft fft2 ifft2 rfft2 irfft2 fftn ifftn rfftn irfftn hfft ihfft
        fftshift ifftshift
    """,
    # linear in the input and in the weight, each by itself
    "weighted sum": """
        linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d conv_tbc
    """,
    # linear, unless one of the other arguments depends on the input
    "interpolation": "lerp grid_sample torchvision::roi_align torchvision::roi_pool torchvision::ps_roi_align "
    "torchvision::ps_roi_pool",
    "reduction": "scatter_reduce index_reduce",
    "product": "mul multiply",
    "matmul": "matmul mm bmm mv dot inner outer ger vdot einsum tensordot kron chain_matmul multi_dot bilinear "
    "grouped_mm _grouped_mm cross",
    "added product": "addmm addbmm baddbmm addmv addr addcmul",
    "product of elements": "prod cumprod",
    "similarity": "cosine_similarity",
    # __rdiv__ and __rtruediv__ are one function, and to be found here first
    # the solution of a system of equations is one, too
    "reversed division": "rdiv rtruediv solve solve_triangular",
    "division": "div divide true_divide truediv",
    "added division": "addcdiv",
    "reciprocal": "rsqrt reciprocal inv inverse pinv",
    "statistic": "var std norm vector_norm logsumexp",
    "statistic and mean": "var_mean std_mean",
    "unit": "normalize",
    "power": "pow float_power",
    "softmax": "softmax",
    "log softmax": "log_softmax",
    "exponential": "exp exp2",
    "attention": "scaled_dot_product_attention",
    "step size": "softplus",
    "gated unit": "glu",
    "activation": """
        relu relu6 gelu silu tanh sigmoid expit elu selu celu leaky_relu prelu rrelu hardtanh hardswish hardsigmoid
        mish softsign tanhshrink hardshrink softshrink threshold logsigmoid erf square sqrt abs absolute
        clamp clip clamp_min clamp_max log log2 log10 log1p expm1
        asinh arcsinh atan arctan remainder fmod
    """,
    "layer norm": "layer_norm",
    "rms norm": "rms_norm",
    "group norm": "group_norm",
    "instance norm": "instance_norm",
    "batch norm": "batch_norm",
    "fused attention module": "multi_head_attention_forward",
    "recurrence": "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell",
}


def getter(attribute: Any) -> Callable[..., Any]:
    """Return the function that an attribute of tensors is to ``__torch_function__``."""
    return attribute.__get__


def named(name: str) -> Iterator[tuple[Callable[..., Any], bool]]:
    """Yield every function of a name, its operator and in-place variants, each with whether it writes in place."""
    if "::" in name:
        library, operator = name.split("::")
        yield from ((found, False) for found in operators_of(library, operator))
        return
    in_place = name.endswith("_") or name == "setitem"
    sign = "mod" if name == "remainder" else name
    variants = [(name, in_place), (f"__{sign}__", in_place)]
    if name != "pow":
        # 2 ** x is not a power of x
        variants.append((f"__r{sign}__", in_place))
    if not in_place:
        variants += [(f"{name}_", True), (f"__i{sign}__", True)]
    for namespace in NAMESPACES:
        for variant, writes in variants:
            function = getattr(namespace, variant, None)
            if callable(function) and not inspect.isclass(function) and not inspect.ismodule(function):
                yield function, writes
    attribute = getattr(torch.Tensor, name, None)
    if inspect.isdatadescriptor(attribute):
        yield getter(attribute), False


def with_overloads(function: Any) -> list[Callable[..., Any]]:
    """Return a function, and its overloads if it is a custom operator."""
    packet = isinstance(function, torch._ops.OpOverloadPacket)
    return [function, *(getattr(function, name) for name in function.overloads())] if packet else [function]


def operators_of(library: str, name: str) -> Iterator[Callable[..., Any]]:
    """Yield a custom operator and its overloads, none if its library is not loaded."""
    operator = getattr(getattr(torch.ops, library), name, None)
    if operator is not None:
        yield from with_overloads(operator)


@lru_cache(maxsize=1)
def functions() -> dict[Callable[..., Any], tuple[Any, str, bool]]:
    """Return the kind or rule, the name and whether it writes in place, of every function that is known."""
    found: dict[Callable[..., Any], tuple[Any, str, bool]] = {}
    for kind, names in KINDS.items():
        for name in names.split():
            for function, writes in named(name):
                found.setdefault(function, (kind, name, writes))
    return found


#: Called when a function becomes known: what was made of the functions known before is out of date.
caches: list[Callable[[], None]] = []


def register_operator(function: Callable[..., Any], kind: str | None = None) -> Any:
    """Make a function known to the operator rules, of every model in this process.

    Parameters
    ----------
    function : callable
        A function that reaches ``__torch_function__``, as the report of an unknown operation names it.
    kind : str, optional
        One of :data:`KINDS`: ``"linear"``, ``"routing"``, ``"activation"`` (element-wise), ``"product"``, ...
        Without it, a decorator of a rule is returned: ``(function, args, kwargs) -> output``, which calls the function
        so that plain autograd passes back ``g = R / x``; the relevance form is made of it.

    Raises
    ------
    ValueError
        If there is no such kind, if no rule could look up the function, or if it has one.

    Examples
    --------
    >>> import torch
    >>> from zennit_attn import register_operator
    >>> register_operator(torch.sinh, "activation")

    The root of a sum of squares, which shares relevance in proportion to the squares:

    >>> @register_operator(torch.hypot)
    ... def hypot(function, args, kwargs):
    ...     value = function(*(argument.detach() for argument in args))
    ...     denominator = value.clamp_min(torch.finfo(value.dtype).tiny)
    ...     return sum(argument * (argument.detach() / denominator) for argument in args)
    """
    if kind is None:
        return partial(_register, function)
    if kind not in KINDS:
        raise ValueError(f"got the kind {kind!r}, expected one of {sorted(KINDS)}")
    _register(function, kind)
    return None


@lru_cache(maxsize=1)
def built_in() -> frozenset[Callable[..., Any]]:
    """Return the functions that are known before any is registered."""
    return frozenset(functions())


def reaches_modes(function: Callable[..., Any]) -> bool:
    """Tell whether a mode may see a call: no class, and no Python function but those that ask for modes."""
    code = getattr(function, "__code__", None)
    asks = code is None or "handle_torch_function" in code.co_names or function.__module__.startswith("torch.")
    return asks and not inspect.isclass(function)


def _register(function: Callable[..., Any], kind: Any) -> Any:
    """Note the kind of a function, or its rule, and forget the tables that do not have it."""
    if not reaches_modes(function):
        raise ValueError(
            f"got {function!r}, which never reaches __torch_function__; expected a function of torch, as the report of "
            "an unknown operation names it. A module can have a rule: layer_map=[(MyActivation, Identity())]."
        )
    if function in built_in():
        raise ValueError(
            f"got {function!r}, which is of the kind {functions()[function][0]!r} for every model of this process; "
            "expected a function that is not known. Give the module that calls it a layer rule, or other Operators."
        )
    # a custom operator is called by its overloads, too, and reported by the name of all
    for found in with_overloads(function):
        functions()[found] = (kind, getattr(function, "__name__", repr(function)), False)
    for forget in caches:
        forget()
    return kind
