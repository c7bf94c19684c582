"""What a network is made from."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

Option = bool | int | float | str | tuple[int, ...]


class NetworkRecipe(BaseModel):
    """A network's name and its shape.

    Parameters
    ----------
    name : str
        One of `nedx.decoding.networks.names`, or ``"braindecode:<class>"``.
    n_channels, n_times : int
        Shape of the responses to one image.
    n_outputs : int
        Width of the embedding.
    n_subjects : int
        Subjects with layers of their own, in networks that have such layers.
    options : dict
        Arguments that only this network has, for example ``{"dropout": 0.3}``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    n_channels: int = Field(ge=1)
    n_times: int = Field(ge=1)
    n_outputs: int = Field(default=1024, ge=1)
    n_subjects: int = Field(default=1, ge=1)
    options: dict[str, Option] = Field(default_factory=dict)
