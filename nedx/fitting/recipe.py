"""What `nedx fit` does: data, split, backbone, estimator, evaluation, in one frozen recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from nedx.backbones.recipe import BackboneRecipe
from nedx.errors import close_matches
from nedx.fitting.parts import ResponsesSource, Split, StimuliSource
from nedx.fitting.words import Words, load_recipe

ESTIMATORS = {
    "ridge": "RidgeEncoder",
    "banded": "BandedRidgeEncoder",
    "ols": "OLSEncoder",
    "l2lir": "L2LiREncoder",
}
"""Estimators by their name in a recipe."""


class EstimatorRecipe(Words):
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


class Evaluation(Words):
    """How the fitted model is judged on the held-out images.

    Parameters
    ----------
    ceiling : {"ncsnr", "split_half"}
        The estimator of the noise ceiling, as `nedx.score` takes it.
    """

    ceiling: Literal["ncsnr", "split_half"] = "ncsnr"


class FitRecipe(Words):
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
    return load_recipe(FitRecipe, recipe, "nedx fit")
