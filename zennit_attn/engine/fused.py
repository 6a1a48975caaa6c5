"""Fused functions of torch that are written in functions of torch: explained by their own body."""

from __future__ import annotations

from types import FunctionType
from typing import Any

from .reports import innermost
from .state import state


def opened(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the body of ``multi_head_attention_forward`` by the rules of the functions that it is written in.

    Raises
    ------
    RuntimeError
        If it uses the weights of a module that has a rule: the function calls no module, and would not apply it.
    """
    module = innermost()
    used = {id(value) for value in (*args, *kwargs.values()) if value is not None}
    for name, child in () if module is None else module.named_children():
        rule = getattr(vars(child).get("forward"), "rule", None)
        # a rule that is plain autograd is that of the function, too
        if id(getattr(child, "weight", None)) in used and rule is not None and not getattr(rule, "trivial", False):
            raise RuntimeError(
                f"{function.__name__} takes the weight of {name!r} in {type(module).__name__}, which has the rule "
                f"{rule}, and would not apply it; expected projections without a rule. torch.nn.MultiheadAttention has "
                "rules for them with canonizers=[zennit_attn.MultiheadAttentionCanonizer()], as the presets have it."
            )
    # the same code, which does not ask for a mode before it begins
    body = FunctionType(
        function.__code__, {**function.__globals__, "has_torch_function": lambda _: False}, None, function.__defaults__
    )
    body.__kwdefaults__ = function.__kwdefaults__
    with state.mode:
        return body(*args, **kwargs)
