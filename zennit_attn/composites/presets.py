"""The presets: AttnLRP, CP-LRP, Gamma-ViT, RelP and LibraGrad.

They are also in :data:`zennit.composites.COMPOSITES`, as ``"attnlrp"``, ``"cp_lrp"``, ``"gamma_vit"``, ``"relp"`` and
``"libragrad"``. How they are written to files is in :mod:`zennit_attn.composites.configuration`.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from zennit.canonizers import Canonizer
from zennit.composites import register_composite
from zennit.core import Hook

from ..rules.linear import Epsilon, Gamma
from ..rules.operators import CPLRP, AttnLRP, LibraGrad, Operators, RelP
from ..rules.rule import Rule
from .parameters import check_flag, check_number
from .roles import is_linear, role
from .transformer import Map, TransformerComposite


class _LanguagePreset(TransformerComposite):
    """Operator rules for the whole model, and ε for every linear layer."""

    rule: ClassVar[type[Operators]]

    def __init__(
        self,
        epsilon: float = 0.0,
        strict: bool = False,
        layer_map: Map | None = None,
        name_map: Map | None = None,
        role_map: Map | None = None,
        canonizers: list[Canonizer] | None = None,
    ) -> None:
        self.epsilon = check_number("epsilon", epsilon)
        super().__init__(self.rule(strict=check_flag("strict", strict)), layer_map, name_map, role_map, canonizers)

    def own_layer_rule(self, name: str, module: torch.nn.Module) -> Rule | None:
        """Return ε for linear layers."""
        return Epsilon(self.epsilon) if is_linear(module) else super().own_layer_rule(name, module)


@register_composite("attnlrp")
class AttnLRPComposite(_LanguagePreset):
    """AttnLRP (Achtibat et al., ICML 2024): the preset for language models.

    Uniform rule for products (prop. 3.2, 3.3), Taylor expansion of the softmax (prop. 3.1), LN rule for norms
    (prop. 3.4), identity for activations (eq. 9), ε for linear layers (eq. 8). The softmax keeps a share of the
    relevance, by design: the result does not add up to the logit.

    Parameters
    ----------
    epsilon : float, optional
        Stabilizer of linear layers. With 0 (default), LRP-0, the gradient form needs no rule for them.
    strict, layer_map, name_map, role_map, canonizers
        See :class:`~zennit_attn.composites.TransformerComposite`.

    Examples
    --------
    >>> import torch
    >>> from zennit.rules import Gamma
    >>> from zennit_attn import AttnLRPComposite
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.Linear(4, 2))
    >>> x = torch.randn(1, 3, requires_grad=True)
    >>> with AttnLRPComposite(layer_map=[(torch.nn.Linear, Gamma(0.05))]).context(model):
    ...     output = model(x)
    ...     relevance, = torch.autograd.grad(output, x, output)
    """

    preset = "attnlrp"
    rule = AttnLRP


@register_composite("cp_lrp")
class CPLRPComposite(_LanguagePreset):
    """CP-LRP (Ali et al., ICML 2022): attention weights, routers and gates are constants; conserves relevance.

    On a model without additive constants (biases, position embeddings) the relevance of the input adds up to the
    explained logit; otherwise the constants get the rest.

    Parameters
    ----------
    epsilon : float, optional
        Stabilizer of linear layers. With 0 (default), LRP-0, the gradient form needs no rule for them.
    strict, layer_map, name_map, role_map, canonizers
        See :class:`~zennit_attn.composites.TransformerComposite`.
    """

    preset = "cp_lrp"
    rule = CPLRP


@register_composite("relp")
class RelPComposite(_LanguagePreset):
    """RelP (Jafari et al. 2025): the rules of relevance patching, for circuits in language models.

    Statistics of norms are constants (LN rule), an activation ``f`` has the slope ``f(x) / x`` (identity rule), each
    factor of a product gets half (half rule), and attention is left to its gradient. With the signal ``g`` of these
    rules, ``(a_patch - a) · g`` estimates what patching a tensor ``a`` does to the output. Attention weights as
    constants, which the paper names as an option, are :class:`LibraGradComposite`.

    Parameters
    ----------
    epsilon : float, optional
        Stabilizer of linear layers. With 0 (default), LRP-0, the gradient form needs no rule for them.
    strict, layer_map, name_map, role_map, canonizers
        See :class:`~zennit_attn.composites.TransformerComposite`.
    """

    preset = "relp"
    rule = RelP


@register_composite("libragrad")
class LibraGradComposite(_LanguagePreset):
    """LibraGrad (Mehri et al., CVPR 2025): gradients that are complete, ``f(x) = Σ x g + Σ b g_b``.

    Attention weights, the gate of an activation ``x σ(x)`` and the statistics of norms are pruned from the backward
    pass, and each factor of another product gets half. With the relevance of each layer's input, the mean of which is
    the paper's FullGrad+, use ``InputXGradient(..., modules=...)``.

    Parameters
    ----------
    epsilon : float, optional
        Stabilizer of linear layers. With 0 (default), LRP-0, the gradient form needs no rule for them.
    strict, layer_map, name_map, role_map, canonizers
        See :class:`~zennit_attn.composites.TransformerComposite`.
    """

    preset = "libragrad"
    rule = LibraGrad


@register_composite("gamma_vit")
class GammaViTComposite(TransformerComposite):
    """γ rules for vision transformers, by role (Achtibat et al., ICML 2024, appendix on ViTs).

    γ on the patch embedding, the MLPs and the head, ε on query, key, value and output projections.

    Parameters
    ----------
    conv_gamma : float, optional
        γ of the patch embedding.
    linear_gamma : float, optional
        γ of the MLPs' linear layers.
    head_gamma : float, optional
        γ of the classification head.
    epsilon : float, optional
        Stabilizer of the attention's projections; 0 (default) is LRP-0.
    stabilizer : float, optional
        Stabilizer of the γ rules.
    attention : {"cp", "attnlrp"}, optional
        Rule of the attention: CP-LRP's (default) or AttnLRP's.
    strict, layer_map, name_map, role_map, canonizers
        See :class:`~zennit_attn.composites.TransformerComposite`.
    """

    preset = "gamma_vit"

    def __init__(
        self,
        conv_gamma: float = 0.25,
        linear_gamma: float = 0.05,
        head_gamma: float = 0.05,
        epsilon: float = 0.0,
        stabilizer: float = 1e-6,
        attention: str = "cp",
        strict: bool = False,
        layer_map: Map | None = None,
        name_map: Map | None = None,
        role_map: Map | None = None,
        canonizers: list[Canonizer] | None = None,
    ) -> None:
        self.conv_gamma = check_number("conv_gamma", conv_gamma)
        self.linear_gamma = check_number("linear_gamma", linear_gamma)
        self.head_gamma = check_number("head_gamma", head_gamma)
        self.epsilon = check_number("epsilon", epsilon)
        self.stabilizer = check_number("stabilizer", stabilizer)
        self.attention = attention
        presets = {"cp": CPLRP, "attnlrp": AttnLRP}
        if attention not in presets:
            raise ValueError(f"attention got {attention!r}, expected 'cp' or 'attnlrp'")
        super().__init__(presets[attention](check_flag("strict", strict)), layer_map, name_map, role_map, canonizers)

    def own_role_map(self) -> list[tuple[tuple[str, ...], Hook]]:
        """Return γ for patch embedding, MLPs and head, ε for the projections."""
        return [
            (("patch_embedding",), Gamma(self.conv_gamma, self.stabilizer)),
            (("mlp",), Gamma(self.linear_gamma, self.stabilizer)),
            (("qkv", "projection"), Epsilon(self.epsilon)),
        ]

    def own_layer_rule(self, name: str, module: torch.nn.Module) -> Rule | None:
        """Return γ for the head, if the model has one, and ε for linear layers without a role."""
        if role(name, module) == "head":
            return Gamma(self.head_gamma, self.stabilizer)
        return Epsilon(self.epsilon) if is_linear(module) else super().own_layer_rule(name, module)
