"""What `nedx decode` does: data, split, decoder, retrieval, perturbation, in one frozen recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import xarray as xr
from pydantic import Field, field_validator

from nedx.encoding.estimators.measured import members
from nedx.errors import ModelError, close_matches
from nedx.fitting.parts import ResponsesSource, Split, StimuliSource
from nedx.fitting.words import Words, load_recipe


class Perturbation(Words):
    """Which channels are replaced by noise, to see what they carry.

    Parameters
    ----------
    channels : str or list of str
        Channels or groups of them.
    noise : str
        As `nedx.perturb` takes it.
    controls : int
        Sets of as many other channels; p can be no smaller than 1 / (controls + 1).
    seeds : int
        How often noise is drawn.
    """

    channels: str | tuple[str, ...] = "visual"
    noise: Literal["matched", "phase", "shuffle", "zero"] = "matched"
    controls: Annotated[int, Field(ge=1)] = 20
    seeds: Annotated[int, Field(ge=1)] = 3


class DecodingRecipe(Words):
    """The road from recordings to images found again, and to the channels that carry them.

    Parameters
    ----------
    name, version : str
        What the decoder is called.
    responses : ResponsesSource or str
        EEG or MEG.
    targets : StimuliSource or str
        ``features`` of the images that were seen: what is decoded, and searched.
    images : StimuliSource or str, optional
        Pixels of the same images, to draw.
    split : Split
        Which images are held out.
    decoder : dict
        Parameters of `nedx.EEGDecoder`, such as ``network`` and ``epochs``.
    k : int
        How many candidates to keep of each image.
    perturbation : Perturbation, optional
        ``null`` for none.
    importance : bool
        Whether each channel is perturbed by itself, for a map of the scalp.
    output : str
        A folder: ``decoder.zarr``, ``retrieved.zarr``, ``scores.csv``, ``report.md``,
        ``recipe.yaml`` and ``figures`` go there.
    license, citation : str, optional
        Of the decoder; by default those of the responses.

    Examples
    --------
    As YAML, for ``nedx decode recipe.yaml``:

    .. code-block:: yaml

        name: sim-eeg-eeg_project
        responses: {place: sim-eeg, subject: 1}
        targets: {place: sim-eeg, group: truth}
        images: sim-images
        decoder: {network: eeg_project, epochs: 20}
        output: decoded
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    version: str = "1"
    responses: ResponsesSource
    targets: StimuliSource
    images: StimuliSource | None = None
    split: Split = Split()
    decoder: dict[str, Any] = {}
    k: Annotated[int, Field(ge=1)] = 5
    perturbation: Perturbation | None = Perturbation()
    importance: bool = True
    output: str
    license: str | None = None
    citation: str | None = None

    @field_validator("responses", "targets", "images", mode="before")
    @classmethod
    def _place(cls, value: Any) -> Any:
        return {"place": value} if isinstance(value, str) else value

    @field_validator("decoder")
    @classmethod
    def _known_parameters(cls, value: dict[str, Any]) -> dict[str, Any]:
        from nedx.decoding.estimator import EEGDecoder

        known = EEGDecoder().get_params(deep=False)
        for name in value:
            if name not in known:
                raise ValueError(
                    f"EEGDecoder has no parameter {name!r}; {close_matches(name, known)}"
                )
        return value

    def open_responses(self) -> xr.Dataset | xr.DataTree:
        """Open the responses lazily.

        Raises
        ------
        ModelError
            If there are none, or they have no channels and times.
        """
        found = self.responses.open()
        wanted = {"channel", "time"}
        if not all(wanted <= set(ds["response"].dims) for ds in members(found).values()):
            raise ModelError(
                f"{self.responses.place!r} is no EEG or MEG on one montage: a decoder takes "
                "response ([subject,] image, channel, time), a window of time and no single one. "
                "Type: nedx list --modality eeg"
            )
        return found

    def open_targets(self) -> xr.Dataset:
        """Open the features lazily.

        Raises
        ------
        ModelError
            If there are none.
        """
        found = self.targets.open()
        if "features" not in found:
            raise ModelError(
                f"{self.targets.place!r} holds pixels, and targets are features of them. Compute "
                "them once: nedx.encode_features(images, backbone).ned.to_zarr('features.zarr')"
            )
        return found[["features"]]


def load_decoding_recipe(
    recipe: DecodingRecipe | Mapping[str, Any] | str | Path,
) -> DecodingRecipe:
    """Read a recipe and check all of it.

    Parameters
    ----------
    recipe : DecodingRecipe, mapping, str or Path
        The recipe, or the path of a YAML file. Paths inside it are relative to the working folder.

    Returns
    -------
    DecodingRecipe

    Raises
    ------
    ModelError
        If there is no such file, or anything in it is wrong; every fault is named.
    """
    return load_recipe(DecodingRecipe, recipe, "nedx decode")
