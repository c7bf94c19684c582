"""What `nedx fit` does: data, split, backbone, estimator, evaluation, in one frozen recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import xarray as xr
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from nedx.backbones.recipe import BackboneRecipe
from nedx.errors import ModelError, UnknownIdError, close_matches

Selected = str | int | tuple[str | int, ...] | None

ESTIMATORS = {
    "ridge": "RidgeEncoder",
    "banded": "BandedRidgeEncoder",
    "ols": "OLSEncoder",
    "l2lir": "L2LiREncoder",
}
"""Estimators by their name in a recipe."""


class _Words(BaseModel):
    """A mapping of known words; any other word is a fault."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StimuliSource(_Words):
    """The images, or features of them.

    Parameters
    ----------
    place : str
        A catalog id, a Zarr store, or what `nedx.open_images` takes.
    group : str, optional
        A group of a store.
    options : dict
        Further arguments of `nedx.open_images`, such as ``{"fit": "crop", "size": 425}``.
    """

    place: str
    group: str | None = None
    options: dict[str, Any] = {}

    def open(self) -> xr.Dataset:
        """Open them lazily.

        Raises
        ------
        ModelError
            If the store holds neither pixels nor features.
        """
        from nedx.catalog.resolving import open as open_entry
        from nedx.catalog.resolving import resolve
        from nedx.stimuli import open_images

        is_store = self.place.rstrip("/").endswith(".zarr")
        try:
            if not is_store:
                resolve(self.place)
        except UnknownIdError:
            return open_images(self.place, **self.options)
        found = open_entry(self.place, group=self.group)
        if not isinstance(found, xr.Dataset) or not {"pixels", "features"} & set(found.data_vars):
            raise ModelError(
                f"{self.place!r} holds no images; type: nedx list --kind stimuli, or name the "
                "group that holds features"
            )
        return open_images(found, **self.options) if self.options else found


class ResponsesSource(_Words):
    """The recordings.

    Parameters
    ----------
    place : str
        A catalog id, a path or a URL.
    subject, roi, channel, time
        What of them, as `nedx.open` takes it; a time window is ``[start, stop]`` in seconds.
    """

    place: str
    subject: Selected = None
    roi: str | tuple[str, ...] | None = None
    channel: str | tuple[str, ...] | None = None
    time: tuple[float, float] | float | None = None

    def open(self) -> xr.Dataset | xr.DataTree:
        """Open them lazily.

        Raises
        ------
        ModelError
            If it is a model.
        """
        from nedx.catalog.resolving import open as open_entry

        words: dict[str, Any] = {
            name: list(value) if isinstance(value, tuple) and name != "time" else value
            for name, value in self.model_dump(exclude={"place"}).items()
        }
        found = open_entry(self.place, **words)
        if not isinstance(found, xr.Dataset | xr.DataTree):
            raise ModelError(f"{self.place!r} is a model; a fit needs responses")
        return found


class Split(_Words):
    """Which images are fitted to, and which are held out.

    Parameters
    ----------
    coordinate : str
        Of images or trials.
    train, test : tuple of str
        Its values for images to fit to and for those held out; one alone and numbers will do.
    test_fraction : float, optional
        Instead: hold out this part of the images, drawn by `seed`.
    groups : str, optional
        With `test_fraction`: images that share this coordinate are held out together.
    seed : int
        Of the draw.
    """

    coordinate: str = "partition"
    train: tuple[str, ...] = ("train",)
    test: tuple[str, ...] = ("test",)
    test_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    groups: str | None = None
    seed: int = 0

    @field_validator("train", "test", mode="before")
    @classmethod
    def _spelled(cls, value: Any) -> Any:
        # YAML makes numbers of folds and sessions; coordinates are compared as strings.
        several = value if isinstance(value, list | tuple) else [value]
        return [str(one) if isinstance(one, int) else one for one in several]

    @model_validator(mode="after")
    def _apart(self) -> Split:
        both = set(self.train) & set(self.test)
        if both:
            raise ValueError(f"{sorted(both)} are in train and in test; an image is one or other")
        return self


class EstimatorRecipe(_Words):
    """How to fit.

    Parameters
    ----------
    kind : str
        One of `ESTIMATORS`.
    parameters : dict
        Of the estimator, such as ``n_components`` or ``alphas``; ``layers`` and ``pooling`` too.
    """

    kind: Literal["ridge", "banded", "ols", "l2lir"] = "ridge"
    parameters: dict[str, Any] = {}

    @model_validator(mode="after")
    def _known_parameters(self) -> EstimatorRecipe:
        known = self._class()().get_params(deep=False)
        for name in self.parameters:
            if name not in known or name == "backbone":
                raise ValueError(
                    f"{self.kind} has no parameter {name!r}; {close_matches(name, known)}"
                )
        return self

    def build(self, backbone: str | BackboneRecipe) -> Any:
        """Return the estimator, not fitted."""
        return self._class()(backbone, **self.parameters)

    def _class(self) -> Any:
        from nedx.encoding import estimators

        return getattr(estimators, ESTIMATORS[self.kind])


class Evaluation(_Words):
    """How the fitted model is judged on the held-out images.

    Parameters
    ----------
    ceiling : {"ncsnr", "split_half"}
        The estimator of the noise ceiling, as `nedx.score` takes it.
    """

    ceiling: Literal["ncsnr", "split_half"] = "ncsnr"


class FitRecipe(_Words):
    """The road from recordings to a published encoding model.

    Parameters
    ----------
    name, version : str
        What the model is called.
    stimuli : StimuliSource or str
        The images.
    responses : ResponsesSource or str
        The recordings.
    split : Split
        Which images are held out.
    backbone : str or BackboneRecipe
        The network.
    estimator : EstimatorRecipe
        How to fit.
    evaluation : Evaluation
        How to judge.
    output : str
        A folder: ``model.zarr``, ``model_card.md``, ``recipe.yaml`` and ``figures`` go there.
    figures : bool
        Whether to draw.
    license, citation : str, optional
        Of the model; by default those of the responses.

    Examples
    --------
    As YAML, for ``nedx fit recipe.yaml``:

    .. code-block:: yaml

        name: fmri-sim-gabor
        stimuli: sim-images
        responses: {place: sim-fmri, subject: [1, 2], roi: V1}
        split: {test_fraction: 0.2, groups: category}
        backbone: gabor
        estimator: {kind: ridge, parameters: {n_components: 100, groups: category}}
        output: fitted
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    version: str = "1"
    stimuli: StimuliSource
    responses: ResponsesSource
    split: Split = Split()
    backbone: str | BackboneRecipe
    estimator: EstimatorRecipe = Field(default_factory=EstimatorRecipe)
    evaluation: Evaluation = Evaluation()
    output: str
    figures: bool = True
    license: str | None = None
    citation: str | None = None

    @field_validator("stimuli", "responses", mode="before")
    @classmethod
    def _place(cls, value: Any) -> Any:
        return {"place": value} if isinstance(value, str) else value


def load_fit_recipe(recipe: FitRecipe | Mapping[str, Any] | str | Path) -> FitRecipe:
    """Read a recipe and check all of it.

    Parameters
    ----------
    recipe : FitRecipe, mapping, str or Path
        The recipe, or the path of a YAML file. Paths inside it are relative to the working folder.

    Returns
    -------
    FitRecipe

    Raises
    ------
    ModelError
        If there is no such file, or anything in it is wrong; every fault is named.
    """
    if isinstance(recipe, FitRecipe):
        return recipe
    where = "the recipe"
    if not isinstance(recipe, Mapping):
        where = str(recipe)
        try:
            recipe = yaml.safe_load(Path(recipe).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ModelError(f"there is no recipe at {where}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ModelError(f"{where} is not YAML: {error}") from error
    try:
        return FitRecipe.model_validate(recipe)
    except ValidationError as error:
        faults = "; ".join(_fault(fault) for fault in error.errors())
        raise ModelError(f"{where} is not a recipe of nedx fit: {faults}") from error


def _fault(fault: Any) -> str:
    """Say where a recipe is wrong, and which word may be meant."""
    place = ".".join(str(part) for part in fault["loc"]) or "recipe"
    if fault["type"] == "extra_forbidden":
        words = {w for kind in _Words.__subclasses__() for w in kind.model_fields}
        return f"{place} is no word of it, {close_matches(fault['loc'][-1], sorted(words))}"
    return f"{place}: {fault['msg'].removeprefix('Value error, ')}"
