"""What makes a decoder, beside its weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from nedx.decoding.networks.recipe import NetworkRecipe

# A name is a group of a store, and never leads out of it.
Name = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
Mode = Literal["in_subject", "leave_one_subject_out", "joint"]


class Member(BaseModel):
    """Which network decodes a subject.

    Parameters
    ----------
    network : str
        One of the decoder's networks.
    subject : int
        Which of the subjects of that network; -1 for one that it was not fitted to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: Name
    subject: int = -1


class DecoderRecipe(BaseModel):
    """What a decoder takes, what it gives, and where it comes from.

    Parameters
    ----------
    network : NetworkRecipe
        Of each of its networks.
    channels : tuple of str
        Of the responses, in the order of the network.
    times : tuple of float
        s from stimulus onset.
    sampling_frequency : float, optional
        Hz; none where there is one time.
    units, normalization, normalization_scope, transform : str, optional
        Of the responses.
    mode : {"in_subject", "leave_one_subject_out", "joint"}
        Whose responses a network was fitted to: those of one subject, of all others, of all.
    networks : tuple of str
        Their names.
    members : dict of str to Member
        Which network decodes each subject; where there are none, the only one decodes anybody.
    target : str, optional
        What is decoded: the model, and what was done to the images, behind the features.
    selection : str
        How the epoch was chosen.
    split : str, optional
        How images were held out.
    batch_size : int
        Responses in a forward pass.
    model_id, version, dataset, training_data, license, citation, fitted_by : str, optional
        Identity, origin and terms.
    training_source : {"measured", "synthetic"}, optional
        Whether it was fitted to recordings or to a simulation.
    seed : int
        Of all that was random.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    network: NetworkRecipe
    channels: tuple[str, ...]
    times: tuple[float, ...]
    sampling_frequency: float | None = None
    units: str = "1"
    normalization: str | None = None
    normalization_scope: str | None = None
    transform: str | None = None
    modality: Literal["fmri", "eeg", "meg", "ieeg", "ephys"] | None = None
    species: str | None = None
    mode: Mode = "in_subject"
    networks: tuple[Name, ...] = ("all",)
    members: dict[str, Member] = Field(default_factory=dict)
    target: str | None = None
    selection: str = "not said"
    split: str | None = None
    batch_size: int = Field(default=256, ge=1)
    model_id: str = "unnamed"
    version: str = "0"
    dataset: str | None = None
    training_data: str | None = None
    training_source: Literal["measured", "synthetic"] | None = None
    license: str | None = None
    citation: str | None = None
    fitted_by: str | None = None
    seed: int = 0
