"""`OLSEncoder`: the recipe of the published linearised models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import dask.array as da
import numpy as np

from nedx.backbones.recipe import BackboneRecipe
from nedx.encoding.estimators.base import EncoderEstimator, Regression
from nedx.errors import ModelError
from nedx.linear.ols import fit_ols


class OLSEncoder(EncoderEstimator):
    """Standardise features, project them on 250 components, fit by least squares.

    This is how the linearised models of the Brain Encoding Response Generator were made; for EEG
    with one fit for each repetition of the training images, whose predictions lie along
    ``repetition``. A component has one set of weights, without a penalty: use it where images
    are many times more than components, else `RidgeEncoder`.

    Parameters
    ----------
    backbone, layers, pooling, device
        As in `RidgeEncoder`.
    n_components : int
        Principal components.
    repetitions : {"mean", "each"}
        Fit to the mean over repetitions, or to each on its own.

    Attributes
    ----------
    model_ : LinearEncoder
        What was fitted.
    """

    def __init__(
        self,
        backbone: str | BackboneRecipe = "squeezenet1_1",
        layers: Sequence[str] | None = None,
        pooling: str | None = None,
        n_components: int = 250,
        repetitions: Literal["mean", "each"] = "mean",
        device: str = "auto",
    ):
        self.backbone = backbone
        self.layers = layers
        self.pooling = pooling
        self.n_components = n_components
        self.repetitions = repetitions
        self.device = device

    def _check(self, images: int, groups: np.ndarray | None, components: int) -> None:
        super()._check(images, groups, components)
        if images < components + 2:
            raise ModelError(
                f"{components} components fit {images} images without any error, and say nothing "
                f"of others; type n_components={max(1, images // 10)} or use RidgeEncoder"
            )

    def _regress(
        self,
        scores: Sequence[np.ndarray],
        responses: np.ndarray | da.Array,
        groups: np.ndarray | None,
    ) -> Regression:
        (components,) = scores
        fit = fit_ols(components, responses, device=self.device)
        return Regression(fit.coef, fit.intercept, {})
