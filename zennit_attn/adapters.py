"""Adapters: transformers models as modules of one tensor, as zennit's attributors and PyTorch expect them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .targets import MASK

#: Keys under which a model's output may hold what is explained, in the order in which they are tried.
EXPLAINED = ("logits", "logits_per_image", "last_hidden_state", "image_embeds", "prediction_logits")


#: Entries that no target names: they have no classes.
HIDDEN = ("last_hidden_state", "image_embeds")


def explained(output: Any, key: str | int | None = None) -> Tensor:
    """Return the tensor of a model's output that is explained.

    Parameters
    ----------
    output : torch.Tensor, mapping or tuple
        A tensor, a transformers ModelOutput, a mapping, or a tuple or list.
    key : str or int, optional
        Which of the output's entries to explain; by default the first there is of :data:`EXPLAINED`, or the only
        tensor of a tuple.

    Raises
    ------
    TypeError, KeyError
        If there is no such tensor.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (tuple, list)) and not isinstance(output, Mapping):
        return entry_of(output, key)
    if not isinstance(output, Mapping):
        raise TypeError(
            f"the model returned {type(output).__name__}, expected a tensor or a ModelOutput; "
            "wrap the model in a module that returns the tensor to explain."
        )
    found = next((name for name in ((key,) if key else EXPLAINED) if isinstance(output.get(name), Tensor)), None)
    if found is None:
        wanted = repr(key) if key else f"one of {EXPLAINED}"
        raise KeyError(f"the model returned {sorted(output)}, expected {wanted}: name the entry with output_key")
    return output[found]


def entry_of(output: Sequence[Any], key: str | int | None) -> Tensor:
    """Return the tensor of a tuple that is explained.

    Raises
    ------
    TypeError, KeyError
        If there are several, or none, at the key.
    """
    places = [place for place, value in enumerate(output) if isinstance(value, Tensor) and value.is_floating_point()]
    if key is None and len(places) == 1:
        return output[places[0]]
    if key in places:
        return output[key]
    shapes = {place: tuple(output[place].shape) for place in places}
    raise (TypeError if key is None else KeyError)(
        f"the model returned a {type(output).__name__} with tensors of shapes {shapes}, expected output_key to be the "
        f"place of one of them, got {key!r}."
    )


def is_headless(output: Any, key: str | int | None) -> bool:
    """Tell whether what is explained by default are hidden units, of which none is a class."""
    return (
        key is None
        and isinstance(output, Mapping)
        and next((name for name in EXPLAINED if isinstance(output.get(name), Tensor)), None) in HIDDEN
    )


class ModelAdapter(torch.nn.Module):
    """A transformers model as a function of one tensor: its input embeddings, or its pixels.

    zennit's ``Gradient``, ``SmoothGrad``, ``IntegratedGradients`` and ``Occlusion`` work on it, with or without a
    composite: ``attributor(adapter.embed(ids), attr_output)``.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A model that takes ``inputs_embeds``, or another floating-point argument.
    batch : mapping, optional
        What else the model takes (``attention_mask``, ``decoder_input_ids``, ...), as a tokenizer returns it;
        ``input_ids`` in it are left out.
    argument : str, optional
        Name of the argument that is explained, such as ``"pixel_values"`` (default ``"inputs_embeds"``).
    output_key : str, optional
        Entry of the output to explain, see :func:`explained`.

    Examples
    --------
    >>> import torch, transformers
    >>> from zennit.attribution import Gradient
    >>> from zennit_attn import AttnLRPComposite, ModelAdapter, targets
    >>> config = transformers.LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
    ...                                   num_attention_heads=2)
    >>> adapter = ModelAdapter(transformers.LlamaForCausalLM(config).eval())
    >>> with Gradient(adapter, AttnLRPComposite()) as attributor:
    ...     output, relevance = attributor(adapter.embed(torch.tensor([[3, 1, 4]])), targets.MaxLogit())
    >>> relevance.sum(-1).shape
    torch.Size([1, 3])
    """

    def __init__(
        self,
        model: torch.nn.Module,
        batch: Mapping[str, Any] | None = None,
        argument: str = "inputs_embeds",
        output_key: str | None = None,
    ) -> None:
        super().__init__()
        self.model, self.argument, self.output_key = model, argument, output_key
        self.batch = {key: value for key, value in (batch or {}).items() if key not in ("input_ids", argument)}

    def embed(self, input_ids: Tensor) -> Tensor:
        """Return the embeddings of tokens, without a graph: ``(batch, positions)`` to ``(batch, positions, width)``."""
        return self.model.get_input_embeddings()(input_ids).detach()  # type: ignore[operator]

    def forward(self, input: Tensor) -> Tensor:
        """Return the explained output for embeddings of shape ``(batch, positions, width)``, or for pixels."""
        output = explained(self.model(**{self.argument: input}, **self.batch), self.output_key)
        # zennit's attributors know no batch: the target is to find the last position that is not padding
        setattr(output, MASK, target_mask(self.model, self.batch))
        return output


def target_mask(model: Any, rest: Mapping[str, Any]) -> Tensor | None:
    """Return the mask of the sequence that has logits: the decoder's, where there is one."""
    decoder = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    if decoder or any(str(name).startswith("decoder_") for name in rest):
        return rest.get("decoder_attention_mask")
    return rest.get("attention_mask")
