"""A latent: a place inside of a model that has units, and its name."""

from __future__ import annotations

from dataclasses import dataclass

#: The kinds of latents that a model has by itself.
KINDS = ("layer", "residual", "head", "neuron", "expert")

#: Those that are what goes into a linear map, which writes to the residual stream.
WRITERS = ("head", "neuron")


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
