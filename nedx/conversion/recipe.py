"""What makes a converter, beside its weights."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Kernel = Literal["linear", "content_network", "unet"]
Space = Literal["neuroid", "neuroid_time"]


class Side(BaseModel):
    """One subject's responses: what is taken from it, or given in its place.

    Parameters
    ----------
    neuroid : str
        Name of the neuroid axis, such as ``"voxel"``.
    size : int
        Neuroids.
    times : tuple of float, optional
        s from stimulus onset, where responses were fitted at these times and no others.
    response_attrs : dict
        Units and normalisation of the responses.
    attrs : dict
        What else is known of them: modality, space, licence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    neuroid: str
    size: int = Field(ge=1)
    times: tuple[float, ...] | None = None
    response_attrs: dict[str, Any] = Field(default_factory=dict)
    attrs: dict[str, Any] = Field(default_factory=dict)


class Pair(BaseModel):
    """From whom to whom.

    Parameters
    ----------
    source, target : str
        Labels of subjects.
    n_samples : int
        What it was fitted to: images, trials, or trials at each time.
    alpha : dict of str to float
        The penalty of each region, or the one of ``"all"``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    target: str
    n_samples: int = 0
    alpha: dict[str, float] = Field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its group in the store."""
        return f"{self.source}-to-{self.target}"


class ConverterRecipe(BaseModel):
    """What a converter takes, what it gives, and where it comes from.

    Parameters
    ----------
    kernel : {"linear", "content_network", "unet"}
        How standardised responses are turned into others.
    space : {"neuroid", "neuroid_time"}
        Whether neuroids are mixed alike at every time, or neuroids and times together.
    method : str
        How it was fitted.
    sides : dict of str to Side
        The subjects.
    pairs : tuple of Pair
        Which conversions there are.
    model_id, version, dataset, training_data, license, citation, fitted_by : str, optional
        Identity, origin and terms.
    training_source : {"measured", "synthetic"}, optional
        Whether it was fitted to recordings or to a simulation.
    seed : int
        Of all that was random.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    kernel: Kernel = "linear"
    space: Space = "neuroid"
    method: str
    sides: dict[str, Side]
    pairs: tuple[Pair, ...]
    model_id: str = "unnamed"
    version: str = "1"
    dataset: str | None = None
    training_data: str | None = None
    training_source: Literal["measured", "synthetic"] | None = None
    license: str | None = None
    citation: str | None = None
    fitted_by: str | None = None
    seed: int = 0
