"""`L2LiREncoder`: each target is regressed on the features that correlate best with it."""

from __future__ import annotations

from collections.abc import Sequence

import dask.array as da
import numpy as np

from nedx.backbones.recipe import BackboneRecipe
from nedx.encoding.estimators.base import EncoderEstimator, Features, Regression
from nedx.encoding.estimators.checks import check_features
from nedx.errors import ModelError
from nedx.linear.l2lir import fit_l2lir
from nedx.linear.pca import StandardizedPCA

_WIDEST = 20_000


class L2LiREncoder(EncoderEstimator):
    """Choose for each target the best correlated features, and fit these with one penalty.

    The method by which features are decoded from responses (Horikawa & Kamitani 2017, Nature
    Communications 8:15037), turned round. Features and responses are standardised first.

    Parameters
    ----------
    backbone, layers, pooling, device
        As in `RidgeEncoder`.
    n_components : int, optional
        Choose among this many principal components; None chooses among the features themselves,
        at most 20,000 of them.
    n_features : int
        How many are chosen for each target.
    alpha : float
        The penalty.

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
        n_components: int | None = 300,
        n_features: int = 100,
        alpha: float = 100.0,
        device: str = "auto",
    ):
        self.backbone = backbone
        self.layers = layers
        self.pooling = pooling
        self.n_components = n_components
        self.n_features = n_features
        self.alpha = alpha
        self.device = device

    def _check(self, images: int, groups: np.ndarray | None, components: int) -> None:
        super()._check(images, groups, components)
        if not self.alpha > 0:
            raise ModelError(f"alpha is {self.alpha!r}; expected a positive number")
        if self.n_features < 1:
            raise ModelError(f"n_features is {self.n_features}; type a number from 1")

    def _project(self, features: Features) -> list[StandardizedPCA]:
        if self.n_components is not None:
            return super()._project(features)
        width = features.values.shape[1]
        if width > _WIDEST:
            raise ModelError(
                f"{width} features are too many to choose among; type n_components=1000, or "
                "pooling='mean'"
            )
        values = np.asarray(features.values, np.float64)
        check_features(values, None)
        mean, spread = values.mean(0), values.std(0)
        scale = np.where(spread > 1e-12 * np.abs(mean), spread, 1.0)
        scores = (values - mean) / scale
        identity = np.eye(width, dtype=np.float32)
        return [StandardizedPCA(mean, scale, identity, scores, scores.var(0, ddof=1))]

    def _regress(
        self,
        scores: Sequence[np.ndarray],
        responses: np.ndarray | da.Array,
        groups: np.ndarray | None,
    ) -> Regression:
        (components,) = scores
        centre, spread = components.mean(0), _spread(components)
        targets = np.asarray(responses)
        finite = np.isfinite(targets).all(1)
        if not finite.all():
            # Standardising would spread one NaN over all images, and hide which it was.
            raise ModelError(
                f"responses hold NaN or infinity, first in images "
                f"{np.flatnonzero(~finite)[:5].tolist()}: drop these"
            )
        mean, size = targets.mean(0, dtype=np.float64), _spread(targets)
        x = (components - centre) / spread
        # One dtype for both: that of the responses decides.
        y = ((targets - mean) / size).astype(targets.dtype)
        fit = fit_l2lir(x, y, self.alpha, self.n_features, device=self.device)
        coef = fit.dense() * size / spread[:, None]
        intercept = mean + size * fit.bias - centre @ coef
        return Regression(coef, intercept, {})


def _spread(values: np.ndarray) -> np.ndarray:
    """Return standard deviations of columns, 1 for those that are constant."""
    spread = values.std(0, dtype=np.float64)
    constant = spread <= 1e-7 * np.abs(values).max(0)
    return np.where(constant, 1.0, spread)
