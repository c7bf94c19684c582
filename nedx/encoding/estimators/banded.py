"""`BandedRidgeEncoder`: a penalty of its own for each layer, or other space of features."""

from __future__ import annotations

from collections.abc import Sequence

import dask.array as da
import numpy as np

from nedx.backbones.recipe import BackboneRecipe
from nedx.encoding.estimators.base import EncoderEstimator, Features, Regression
from nedx.encoding.estimators.ridge import ALPHAS
from nedx.errors import ModelError
from nedx.linear.banded import fit_banded_ridge
from nedx.linear.folds import CrossValidation
from nedx.linear.keeping import rereadable
from nedx.linear.pca import StandardizedPCA


class BandedRidgeEncoder(EncoderEstimator):
    """Standardise and project the features of each band, regress with a penalty for each band.

    A band is a layer of the network; layers that say nothing of a target are shrunk away. See
    Nunez-Elizalde, Huth & Gallant 2019 (NeuroImage 197:482) and Dupre la Tour et al. 2022
    (NeuroImage 264:119728), whose random search this is.

    Parameters
    ----------
    backbone, layers, pooling, cv, groups, device
        As in `RidgeEncoder`.
    n_components : int
        Principal components of each band.
    bands : sequence of int, optional
        Features of each band, in order; one band a layer by default.
    alphas : sequence of float
        Penalties tried with each weighting of the bands.
    n_weights : int
        Weightings of the bands that are drawn.
    seed : int
        Of the draw.

    Attributes
    ----------
    model_ : LinearEncoder
        What was fitted.
    penalty_ : ndarray (band, *targets)
        The penalty of each band; infinite where it is left out. By subject where each has neuroids
        of its own.
    cv_score_ : ndarray (*targets)
        Cross-validated R2; likewise.
    """

    penalty_: np.ndarray | dict[str, np.ndarray]
    cv_score_: np.ndarray | dict[str, np.ndarray]

    def __init__(
        self,
        backbone: str | BackboneRecipe = "squeezenet1_1",
        layers: Sequence[str] | None = None,
        pooling: str | None = None,
        n_components: int = 100,
        bands: Sequence[int] | None = None,
        alphas: Sequence[float] = ALPHAS,
        n_weights: int = 20,
        cv: CrossValidation = 5,
        groups: str | None = None,
        seed: int = 0,
        device: str = "auto",
    ):
        self.backbone = backbone
        self.layers = layers
        self.pooling = pooling
        self.n_components = n_components
        self.bands = bands
        self.alphas = alphas
        self.n_weights = n_weights
        self.cv = cv
        self.groups = groups
        self.seed = seed
        self.device = device

    def _check(self, images: int, groups: np.ndarray | None, components: int) -> None:
        super()._check(images, groups, components)
        if self.bands is not None and (not len(self.bands) or min(self.bands) < 1):
            raise ModelError(f"bands are {list(self.bands)}; each holds one feature or more")
        if self.n_weights < 1:
            raise ModelError(f"n_weights is {self.n_weights}; type one or more")

    def _project(self, features: Features) -> list[StandardizedPCA]:
        widths = list(self.bands or (features.widths or {}).values())
        total = features.values.shape[1]
        if sum(widths) != total:
            raise ModelError(f"bands of {widths} features were given for {total} features")
        edges = np.cumsum([0, *widths])
        # Features are made once; each band is read from what is kept of them.
        with rereadable(features.values) as kept:
            return [
                self._components(kept[:, start:stop])
                for start, stop in zip(edges[:-1], edges[1:], strict=True)
            ]

    def _regress(
        self,
        scores: Sequence[np.ndarray],
        responses: np.ndarray | da.Array,
        groups: np.ndarray | None,
    ) -> Regression:
        fit = fit_banded_ridge(
            scores,
            responses,
            self.alphas,
            self.n_weights,
            self.cv,
            groups=groups,
            seed=self.seed,
            device=self.device,
        )
        learnt = {"penalty_": fit.penalty, "cv_score_": fit.score}
        return Regression(fit.coef, fit.intercept, learnt)
