"""Rules of linear layers in closed form: ε, γ, z⁺ and α-β.

The closed form of the γ rule takes four products where :mod:`zennit.rules` takes about twelve: with
``A = |W| |x| + |b|`` the positive contributions to ``z = W x + b`` are ``P = (z + A) / 2``, and the negative ones
``N = (z - A) / 2``.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import Function
from zennit.core import RemovableHandleList, Stabilizer

from ..engine.functions import Enter, Leave, Scale, unwritten
from ..engine.gates import mixed
from ..engine.linear import AbsoluteProduct, SignedProduct, linear_kind, linear_map
from ..engine.norms import wide
from ..engine.operands import Form, depends
from .layer import LayerRule

Stabilize = Callable[[Tensor], Tensor]


class Share(Function):
    """A linear layer's output ``z``; backward: the signal becomes those at ``z`` and at the rule's other products.

    What the backward pass needs is computed here, once, and kept in tensors that nobody else sees, so that writing
    to ``z`` in place later is safe. For second-order gradients it is computed again, with a graph.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, input: Tensor, module: Any, rule: LinearRule, *products: Tensor) -> Tensor:
        # not the weight itself, of which a layer that is computed again in the backward pass is to keep nothing
        ctx.module, ctx.rule, ctx.weight = module, rule, weakref.ref(module.weight)
        ctx.save_for_backward(unwritten(input), *rule.ratios(module, output, *products))
        return output.detach()

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> tuple[Tensor | None, ...]:
        input, *ratios = ctx.saved_tensors
        module, rule = ctx.module, ctx.rule
        if torch.is_grad_enabled():
            if module.weight is not ctx.weight():
                raise RuntimeError(
                    f"create_graph=True got a {type(module).__name__} whose weight is another one than in its forward "
                    "(functional_call, offloaded weights); expected the same: load the weights into the module."
                )
            output = linear_map(module, input, module.weight, signal) + rule.bias(module, signal)
            ratios = list(rule.ratios(module, output, *rule.products(module, input, output)))
        # ratios are in float32 or better
        first, *others = (None if share is None else share.to(signal.dtype) for share in rule.shares(signal, *ratios))
        return first, None, None, None, *others


class LinearRule(LayerRule):
    """Base of rules for layers that are a linear map ``z = W x + b``.

    Subclasses say which other products they take beside ``z`` (:meth:`products`), and what the signal at the output
    becomes at ``z`` and at each of them (:meth:`ratios`, :meth:`shares`); autograd takes it on to the input. With the
    numerator ``z`` that is the gradient form, with 1 and a change of form at the input the relevance form.

    Parameters
    ----------
    stabilizer : callable or float, optional
        Stabilizer of denominators, see :class:`zennit.core.Stabilizer`.
    zero_params : list of str, optional
        Names of parameters that are taken as zero, ``"bias"`` or ``"weight"``, as in :mod:`zennit.rules`.
    """

    #: Whether the rule looks at the signs of contributions.
    split: bool = True
    #: Whether the rule is plain autograd in the gradient form.
    trivial: bool = False
    parameter_names: ClassVar[tuple[str, ...]] = ("stabilizer", "zero_params")

    def __init__(self, stabilizer: float | Stabilize = 1e-6, zero_params: str | list[str] | None = None) -> None:
        super().__init__()
        self.stabilizer, self.zero_params = stabilizer, zero_params
        self._zero = [zero_params] if isinstance(zero_params, str) else list(zero_params or ())
        self._stabilize = Stabilizer.ensure(stabilizer)

    def register(self, module: torch.nn.Module) -> RemovableHandleList:
        """Put the rule around one module's forward: around none where it is plain autograd."""
        return RemovableHandleList() if self.is_plain(self.form) else super().register(module)

    def is_plain(self, form: Form) -> bool:
        """Tell whether it is plain autograd in a form."""
        return form == "gradient" and self.trivial

    def check(self, module: torch.nn.Module) -> None:
        """Raise TypeError if the weight of ``module`` is not one that can be split by its signs."""
        if self.split and linear_kind(module) is None:
            raise TypeError(
                f"{type(self).__name__} got {type(module).__name__}, expected torch.nn.Linear, Conv*d, "
                "ConvTranspose*d or transformers' Conv1D with their own forward; for other linear modules use the rule "
                "of the same name of zennit.rules."
            )
        if self.split and type(module.weight) not in (Tensor, torch.nn.Parameter):
            raise TypeError(
                f"{type(self).__name__} got {type(module).__name__} with a weight of type "
                f"{type(module.weight).__name__}, of which the signs cannot be told; expected a plain tensor: give "
                "quantised layers the rule Epsilon, and those that several processes share (FSDP, tensor parallel) the "
                "rule of the same name of zennit.rules."
            )

    def call(self, module: torch.nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Call ``forward``, with a backward pass by the rule."""
        name = "x" if "x" in kwargs else "input"
        input = args[0] if args else kwargs[name]
        if not depends(input):
            return forward(*args, **kwargs)
        entered = Enter.apply(input) if self.form == "relevance" else input
        output = forward(entered, *args[1:], **kwargs) if args else forward(**{**kwargs, name: entered})
        if "weight" in self._zero:
            return Scale.apply(output, 0.0)
        if self.trivial:
            return mixed(input, Leave.apply(output))
        return mixed(input, Share.apply(output, entered, module, self, *self.products(module, entered, output)))

    def bias(self, module: Any, output: Tensor) -> Tensor:
        """Return the bias, broadcastable to the output; zero if there is none."""
        bias = getattr(module, "bias", None)
        if bias is None:
            return output.new_zeros(())
        channels_last = linear_kind(module) in (None, "linear", "transposed linear")
        return bias if channels_last else bias.reshape(-1, *(1,) * len(module.kernel_size))

    def rule_bias(self, module: Any, output: Tensor) -> Tensor:
        """Return the bias as the rule takes it, zero if ``zero_params`` say so."""
        bias = wide(self.bias(module, output))
        return torch.zeros_like(bias) if "bias" in self._zero else bias

    def numerator(self, output: Tensor) -> Tensor:
        """Return what is divided by the rule's denominators, in float32 or better."""
        return wide(output) if self.form == "gradient" else torch.ones_like(wide(output))

    def products(self, module: Any, input: Tensor, output: Tensor) -> tuple[Tensor, ...]:
        """Return the products that the rule takes beside ``z``."""
        return ()

    def ratios(self, module: Any, output: Tensor, *products: Tensor) -> tuple[Tensor, ...]:
        """Return what :meth:`shares` needs of a forward pass."""
        raise NotImplementedError

    def shares(self, signal: Tensor, *ratios: Tensor) -> tuple[Tensor | None, ...]:
        """Return the signals at ``z`` and at each product."""
        raise NotImplementedError


class Epsilon(LinearRule):
    """ε rule: ``R_x = x * Wᵀ(R / (z + ε sign z))``; ``epsilon=0`` is LRP-0 (Bach et al. 2015; AttnLRP, eq. 8).

    Unlike the other rules here, it needs nothing of the module but its output: it explains every linear module,
    quantised ones too.

    Parameters
    ----------
    epsilon : callable or float, optional
        Stabilizer of the denominator.
    zero_params : list of str, optional
        Names of parameters that are taken as zero.
    """

    split = False
    parameter_names: ClassVar[tuple[str, ...]] = ("epsilon", "zero_params")

    def __init__(self, epsilon: float | Stabilize = 1e-6, zero_params: str | list[str] | None = None) -> None:
        super().__init__(epsilon, zero_params)
        self.epsilon = epsilon
        self.trivial = isinstance(epsilon, (int, float)) and epsilon == 0 and not self._zero

    def check(self, module: torch.nn.Module) -> None:
        """Raise TypeError if a parameter is to be zero that the module hides."""
        if self._zero and linear_kind(module) is None:
            raise TypeError(
                f"Epsilon with zero_params={self._zero} got {type(module).__name__}, expected torch.nn.Linear, Conv*d, "
                "ConvTranspose*d or transformers' Conv1D with their own forward."
            )

    def ratios(self, module: Any, output: Tensor, *products: Tensor) -> tuple[Tensor, ...]:
        """Return ``z / (z + ε sign z)``."""
        total = wide(output)
        if "bias" in self._zero:
            total = total - wide(self.bias(module, output))
        return (self.numerator(output) / self._stabilize(total),)

    def shares(self, signal: Tensor, *ratios: Tensor) -> tuple[Tensor, ...]:
        """Return ``s = g z / (z + ε sign z)`` at z."""
        return (signal * ratios[0],)


class Gamma(LinearRule):
    """Generalised γ rule (Montavon et al. 2019; Andéol et al. 2021), equal to :class:`zennit.rules.Gamma`.

    In the gradient form, with ``d = z + γP`` where z > 0, ``d = z + γN`` where z < 0, and ``s = g z / d``:
    ``g_x = (1 + γ/2) Wᵀ s + γ/2 sign(x) * |W|ᵀ(s sign z)``. With the bias in ``A = |W| |x| + |b|``,
    ``d = (1 + γ/2) z + γ/2 A sign z``: one product beside the layer's own gives all of it.

    Parameters
    ----------
    gamma : float, optional
        Weight of the contributions that have the sign of the output.
    stabilizer : callable or float, optional
        Stabilizer of the denominator.
    zero_params : list of str, optional
        Names of parameters that are taken as zero.
    """

    parameter_names: ClassVar[tuple[str, ...]] = ("gamma", "stabilizer", "zero_params")

    def __init__(
        self,
        gamma: float = 0.25,
        stabilizer: float | Stabilize = 1e-6,
        zero_params: str | list[str] | None = None,
    ) -> None:
        super().__init__(stabilizer, zero_params)
        if isinstance(gamma, bool) or not isinstance(gamma, (int, float)) or gamma < 0:
            raise TypeError(f"got gamma={gamma!r}, expected a number of at least 0")
        self.gamma = gamma

    def products(self, module: Any, input: Tensor, output: Tensor) -> tuple[Tensor, ...]:
        """Return ``A``."""
        bias = None if "bias" in self._zero else getattr(module, "bias", None)
        return (AbsoluteProduct.apply(input, module, output, bias),)

    def ratios(self, module: Any, output: Tensor, *products: Tensor) -> tuple[Tensor, ...]:
        """Return ``(1 + γ/2) z / d`` and where z is negative."""
        below = output < 0
        output, absolute = wide(output), wide(products[0])
        scale, half = 1 + self.gamma / 2, self.gamma / 2
        if isinstance(self.stabilizer, (int, float)) and not self._zero:
            # d and z have one sign: their sizes are all that is needed, in a fifth of the passes over memory
            size = output.abs() * scale
            numerator = size if self.form == "gradient" else output.sign() * scale
            return numerator / (torch.add(size, absolute, alpha=half) + self.stabilizer), below
        total = (output - wide(self.bias(module, output)) if "bias" in self._zero else output) * scale
        denominator = torch.where(
            below,
            self._stabilize(torch.sub(total, absolute, alpha=half)),
            self._stabilize(torch.add(total, absolute, alpha=half)),
        )
        # as zennit's, the rule gives nothing to an output of exactly zero
        numerator = output if self.form == "gradient" else (output != 0).to(output.dtype)
        return numerator * scale / denominator, below

    def shares(self, signal: Tensor, *ratios: Tensor) -> tuple[Tensor, ...]:
        """Return ``(1 + γ/2) s`` at z and ``γ/2 s sign z`` at A."""
        ratio, below = ratios
        signal = signal * ratio
        part = self.gamma / (2 + self.gamma)
        # numbers alone would make a float32 tensor, whatever the signal is
        return signal, signal * torch.where(below, ratio.new_tensor(-part), ratio.new_tensor(part))


class ZPlus(LinearRule):
    """z⁺ rule (Bach et al. 2015; Montavon et al. 2017), equal to :class:`zennit.rules.ZPlus`.

    In the gradient form, with ``s = g z / P``: ``g_x = W⁺ᵀ s`` where x > 0, ``W⁻ᵀ s`` where x < 0.

    Parameters
    ----------
    stabilizer : callable or float, optional
        Stabilizer of the denominator.
    zero_params : list of str, optional
        Names of parameters that are taken as zero.
    """

    def products(self, module: Any, input: Tensor, output: Tensor) -> tuple[Tensor, ...]:
        """Return the sum of positive contributions."""
        return (SignedProduct.apply(input, module, output, 1),)

    def ratios(self, module: Any, output: Tensor, *products: Tensor) -> tuple[Tensor, ...]:
        """Return ``z / P``."""
        bias = self.rule_bias(module, output)
        return (self.numerator(output) / self._stabilize(wide(products[0]) + bias.clamp(min=0)),)

    def shares(self, signal: Tensor, *ratios: Tensor) -> tuple[Tensor | None, ...]:
        """Return nothing at z and ``s`` at P."""
        return None, signal * ratios[0]


class AlphaBeta(LinearRule):
    """α-β rule (Bach et al. 2015), equal to :class:`zennit.rules.AlphaBeta`.

    In the gradient form, with ``s_P = α g z / P`` and ``s_N = β g z / N``:
    ``g_x = W⁺ᵀ s_P - W⁻ᵀ s_N`` where x > 0, ``W⁻ᵀ s_P - W⁺ᵀ s_N`` where x < 0.

    Parameters
    ----------
    alpha, beta : float, optional
        Weights of positive and negative contributions, neither negative, ``alpha - beta = 1``.
    stabilizer : callable or float, optional
        Stabilizer of the denominators.
    zero_params : list of str, optional
        Names of parameters that are taken as zero.

    Raises
    ------
    ValueError
        If the weights are negative or do not differ by one.
    """

    parameter_names: ClassVar[tuple[str, ...]] = ("alpha", "beta", "stabilizer", "zero_params")

    def __init__(
        self,
        alpha: float = 2.0,
        beta: float = 1.0,
        stabilizer: float | Stabilize = 1e-6,
        zero_params: str | list[str] | None = None,
    ) -> None:
        super().__init__(stabilizer, zero_params)
        if alpha < 0 or beta < 0 or alpha - beta != 1:
            raise ValueError(f"got alpha={alpha}, beta={beta}, expected alpha, beta >= 0 and alpha - beta = 1")
        self.alpha, self.beta = alpha, beta

    def products(self, module: Any, input: Tensor, output: Tensor) -> tuple[Tensor, ...]:
        """Return the sums of positive and of negative contributions."""
        return tuple(SignedProduct.apply(input, module, output, sign) for sign in (1, -1))

    def ratios(self, module: Any, output: Tensor, *products: Tensor) -> tuple[Tensor, ...]:
        """Return ``α z / P`` and ``β z / N``."""
        positive, negative = map(wide, products)
        bias, numerator = self.rule_bias(module, output), self.numerator(output)
        return (
            self.alpha * numerator / self._stabilize(positive + bias.clamp(min=0)),
            self.beta * numerator / self._stabilize(negative + bias.clamp(max=0)),
        )

    def shares(self, signal: Tensor, *ratios: Tensor) -> tuple[Tensor | None, ...]:
        """Return nothing at z, ``s_P`` at P and ``-s_N`` at N."""
        return None, signal * ratios[0], -signal * ratios[1]
