"""`RidgeEncoder`: principal components and a penalty of its own for each target."""

from __future__ import annotations

from collections.abc import Sequence

import dask.array as da
import numpy as np

from nedx.backbones.recipe import BackboneRecipe
from nedx.encoding.estimators.base import EncoderEstimator, Regression
from nedx.linear.folds import CrossValidation
from nedx.linear.ridge import fit_ridge

ALPHAS = tuple(float(alpha) for alpha in np.logspace(0, 7, 15))
"""The penalties tried by default."""


class RidgeEncoder(EncoderEstimator):
    """Standardise features, project them on principal components, regress responses on these.

    Components and ridge are exact; each target has its own penalty, chosen by cross-validation
    over the training images alone.

    Parameters
    ----------
    backbone : str or BackboneRecipe
        The network, by name or with all it needs (weights, precision).
    layers : sequence of str, optional
        Layers tapped; the recipe's by default.
    pooling : str, optional
        As in `BackboneRecipe`; the recipe's by default.
    n_components : int
        Principal components; fewer where there are fewer images or features.
    alphas : sequence of float
        Penalties tried, on the scale of scikit-learn's ``Ridge``.
    cv : int, "loo", "gcv" or ndarray of int (image,)
        Contiguous folds, or as `nedx.linear.folds.fold_numbers` takes it.
    groups : str, optional
        A coordinate of the images, such as ``"category"``: images that share it stay in one fold.
    device : str
        Where to compute.

    Attributes
    ----------
    model_ : LinearEncoder
        What was fitted.
    alpha_ : ndarray (*targets)
        The penalty of each target; by subject where each has neuroids of its own.
    cv_score_ : ndarray (alpha, *targets)
        Cross-validated R2 of each penalty; likewise.

    Examples
    --------
    >>> encoder = nedx.RidgeEncoder(backbone="vit_b_32").fit(images, responses)
    >>> predicted = encoder.predict(new_images).response.compute()
    """

    alpha_: np.ndarray | dict[str, np.ndarray]
    cv_score_: np.ndarray | dict[str, np.ndarray]

    def __init__(
        self,
        backbone: str | BackboneRecipe = "squeezenet1_1",
        layers: Sequence[str] | None = None,
        pooling: str | None = None,
        n_components: int = 300,
        alphas: Sequence[float] = ALPHAS,
        cv: CrossValidation = 5,
        groups: str | None = None,
        device: str = "auto",
    ):
        self.backbone = backbone
        self.layers = layers
        self.pooling = pooling
        self.n_components = n_components
        self.alphas = alphas
        self.cv = cv
        self.groups = groups
        self.device = device

    def _regress(
        self,
        scores: Sequence[np.ndarray],
        responses: np.ndarray | da.Array,
        groups: np.ndarray | None,
    ) -> Regression:
        (components,) = scores
        fit = fit_ridge(
            components, responses, self.alphas, self.cv, groups=groups, device=self.device
        )
        return Regression(fit.coef, fit.intercept, {"alpha_": fit.alpha, "cv_score_": fit.score})
