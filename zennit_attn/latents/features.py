"""Features of a sparse autoencoder, or of a transcoder, that a user puts at a module of the model."""

from __future__ import annotations

from typing import Any

from ..errors import InputError


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
