"""Rules as hooks: operator rules for what a forward does with functions, and layer rules in closed form.

Every rule is a :class:`zennit.core.Hook` and goes wherever zennit's own rules go. A rule holds for a module: operator
rules for every function that the module's own forward calls, down to an inner module with rules of its own; layer
rules for the module as a whole, inside of which nothing else is looked at.

The closed form of the γ rule takes four products where :mod:`zennit.rules` takes about twelve: with
``A = |W| |x| + |b|`` the positive contributions to ``z = W x + b`` are ``P = (z + A) / 2``, and the negative ones
``N = (z - A) / 2``.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import Function
from zennit.core import Hook, RemovableHandleList, Stabilizer

from .activations import activation_call
from .finiteness import watch
from .functions import Enter, Leave, Scale
from .linear import AbsoluteProduct, SignedProduct, linear_kind, linear_map
from .norms import wide
from .operands import Form, depends, mixed
from .operators import Policy, table_of
from .scope import (
    CheckpointHandle,
    ForwardHandle,
    FrozenHandle,
    Inventory,
    applied,
    enclosing_policy,
    follow_cuts,
    follow_module,
    is_shielded,
    recorder,
    refuse_foreign,
    report_functions,
    run_inside,
    shield,
)

Stabilize = Callable[[Tensor], Tensor]

#: Models of which the graph was walked for hidden functions, and under which policies.
_looked_at: weakref.WeakKeyDictionary[torch.nn.Module, set[str]] = weakref.WeakKeyDictionary()


class Rule(Hook):
    """Base of the rules of this package.

    Parameters
    ----------
    form : {"relevance", "gradient"}
        Form of the backward signal, set by :func:`zennit_attn.input_x_gradient`. Relevance form by default.
    """

    form: Form = "relevance"
    #: Whether it may go unused in a forward: a preset's own rule, of modules that need not be called.
    optional: bool = False
    #: Names of the constructor's arguments, each also an attribute.
    parameter_names: ClassVar[tuple[str, ...]] = ()

    def copy(self) -> Rule:
        """Return a copy for another module."""
        twin = copy.copy(self)
        twin.stored_tensors, twin.tensor_handles = {}, RemovableHandleList()
        return twin

    def parameters(self) -> dict[str, Any]:
        """Return the arguments that make an equal rule."""
        return {name: getattr(self, name) for name in self.parameter_names}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self.parameters().items())})"


class Operators(Rule):
    """Operator rules for the functions that a module's own forward calls.

    Parameters
    ----------
    attention : {"uniform", "value", "gradient"}, optional
        Rule of softmax attention, see :class:`~zennit_attn.operators.Policy`. None (default) takes over what holds
        around the module.
    product : {"uniform", "gate", "gradient"}, optional
        Rule of products of tensors that depend on the input.
    norm : {"constant", "gradient"}, optional
        Rule of normalisation statistics and denominators.
    activation : {"identity", "gradient"}, optional
        Rule of element-wise functions.
    scan : {"product", "constant"}, optional
        Rule of the parameters of selective state spaces.
    strict : bool, optional
        Raise at an operation without a rule (default False: warn once for each place), and at the first module where
        a value or a backward signal is not finite.

    Raises
    ------
    ValueError
        If a choice is not known.

    Examples
    --------
    >>> import torch
    >>> from zennit_attn.rules import Operators
    >>> Operators(attention="value").parameters()["attention"]
    'value'
    """

    parameter_names: ClassVar[tuple[str, ...]] = ("attention", "product", "norm", "activation", "scan", "strict")

    def __init__(
        self,
        attention: str | None = None,
        product: str | None = None,
        norm: str | None = None,
        activation: str | None = None,
        scan: str | None = None,
        strict: bool = False,
    ) -> None:
        super().__init__()
        given = {"attention": attention, "product": product, "norm": norm, "activation": activation, "scan": scan}
        for name, choice in given.items():
            valid = Policy.choices()[name]
            if choice is not None and choice not in valid:
                raise ValueError(f"got {name}={choice!r}, expected one of {', '.join(map(repr, valid))} or None")
        self.attention, self.product, self.norm, self.activation, self.scan = given.values()
        self.strict = strict
        self._given = {name: choice for name, choice in given.items() if choice is not None}
        self._policies: dict[Policy | None, Policy] = {}

    def policy(self, around: Policy | None) -> Policy:
        """Return the policy inside the module, given the one around it."""
        if around not in self._policies:
            inherited = {} if around is None else vars(around)
            self._policies[around] = Policy(**{**inherited, **self._given})
        return self._policies[around]

    def register(self, module: torch.nn.Module) -> RemovableHandleList:
        """Put the rules around one module's forward, and freeze its parameters until they are removed."""
        modules = list(module.named_modules())
        inventory = Inventory(modules)
        checkpoints = [
            child
            for child in module.modules()
            if getattr(child, "gradient_checkpointing", False) and hasattr(child, "_gradient_checkpointing_func")
        ]
        # a compiler must find the table there when it traces
        key = self.policy(None).key(self.form)
        table_of(key)
        # the graph is walked once for a model and a policy, under strict rules once for each registration
        first = self.strict or key not in _looked_at.get(module, ())

        def rerun(policy: Policy, forward: Any, args: Any, kwargs: Any = MappingProxyType({})) -> Any:
            return run_inside(policy, self.form, self.strict, module, forward, args, kwargs)

        def around(forward: Any, args: Any, kwargs: Any) -> Any:
            if is_shielded():
                return forward(*args, **kwargs)
            applied(self)
            policy = enclosing_policy()
            if policy is not None or torch.compiler.is_compiling():
                return rerun(self.policy(policy), forward, args, kwargs)
            refuse_foreign(modules)
            inventory.check()
            run = partial(rerun, self.policy(None), look_once if first else forward, args, kwargs)
            if not self.strict:
                return run()
            with watch(module) as check_output:
                output = run()
                check_output(output)
            return output

        def look_once(*args: Any, **kwargs: Any) -> Any:
            nonlocal first
            follow_cuts(everything=True)
            output = handles[0].wrapped.forward(*args, **kwargs)
            if report_functions(output, (args, kwargs), bool(checkpoints), self.form):
                first = False
                _looked_at.setdefault(module, set()).add(key)
            return output

        handles = RemovableHandleList([ForwardHandle(module, around), FrozenHandle(module)])
        handles += [CheckpointHandle(child, rerun) for child in checkpoints]
        return handles


class AttnLRP(Operators):
    """AttnLRP (Achtibat et al., ICML 2024): uniform products, softmax by its Taylor expansion, LN and identity rule.

    Parameters
    ----------
    strict : bool, optional
        Raise at an operation without a rule.
    """

    parameter_names: ClassVar[tuple[str, ...]] = ("strict",)

    def __init__(self, strict: bool = False) -> None:
        super().__init__("uniform", "uniform", "constant", "identity", strict=strict)


class CPLRP(Operators):
    """CP-LRP (Ali et al., ICML 2022): attention weights and gates are constants, LN and identity rule.

    Parameters
    ----------
    strict : bool, optional
        Raise at an operation without a rule.
    """

    parameter_names: ClassVar[tuple[str, ...]] = ("strict",)

    def __init__(self, strict: bool = False) -> None:
        super().__init__("value", "gate", "constant", "identity", strict=strict)


class SelectiveScan(Operators):
    """MambaLRP (Jafari et al., NeurIPS 2024) for a selective state space: its parameters are constants.

    Step sizes, decays, B and C pass no relevance on, so that all of it goes through the state; the gate gets half, and
    SiLU the identity rule.

    Parameters
    ----------
    strict : bool, optional
        Raise at an operation without a rule.
    """

    parameter_names: ClassVar[tuple[str, ...]] = ("strict",)

    def __init__(self, strict: bool = False) -> None:
        super().__init__(product="uniform", scan="constant", strict=strict)


class LayerRule(Rule):
    """Base of rules for a module as a whole."""

    def register(self, module: torch.nn.Module) -> RemovableHandleList:
        """Put the rule around one module's forward.

        Raises
        ------
        TypeError
            If the rule is not known for this type of module.
        """
        self.check(module)

        def around(forward: Any, args: Any, kwargs: Any) -> Any:
            if is_shielded():
                return forward(*args, **kwargs)
            applied(self)
            with shield():
                if recorder() is None:
                    output = self.call(module, forward, args, kwargs)
                else:
                    title = type(getattr(self, "hook", self)).__name__
                    output = recorder().measured(
                        title, lambda *args, **kwargs: self.call(module, forward, args, kwargs), args, kwargs
                    )
            follow_module(args, kwargs, output)
            return output

        return RemovableHandleList([ForwardHandle(module, around, rule=self)])

    def check(self, module: torch.nn.Module) -> None:
        """Raise if the rule cannot explain ``module``."""

    def call(self, module: torch.nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Call ``forward``, with a backward pass by the rule."""
        raise NotImplementedError


class Identity(LayerRule):
    """Identity rule for a module that is one element-wise function, however its forward is written (AttnLRP, eq. 9).

    ``R_x = R_y``, in the gradient form the slope ``f(x) / x``. Operator rules do this by themselves where the forward
    calls one activation function; a forward written in elementary operations would look like several operators.
    """

    def call(self, module: torch.nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Call ``forward``, with the identity rule as its backward pass."""
        return activation_call(self.form, lambda x: forward(x), *args, **kwargs)


class Share(Function):
    """A linear layer's output ``z``; backward: the signal becomes those at ``z`` and at the rule's other products.

    What the backward pass needs is computed here, once, and kept in tensors that nobody else sees, so that writing
    to ``z`` in place later is safe. For second-order gradients it is computed again, with a graph.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, input: Tensor, module: Any, rule: LinearRule, *products: Tensor) -> Tensor:
        ctx.module, ctx.rule = module, rule
        ctx.save_for_backward(input, *rule.ratios(module, output, *products))
        return output.detach()

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> tuple[Tensor | None, ...]:
        input, *ratios = ctx.saved_tensors
        module, rule = ctx.module, ctx.rule
        if torch.is_grad_enabled():
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
        if self.form == "gradient" and self.trivial:
            return RemovableHandleList()
        return super().register(module)

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
                "quantised layers the rule Epsilon."
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
