"""Decoded features have too little contrast: three published ways to give it back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr
from dask.base import tokenize

from nedx.errors import ModelError

ScalingKind = Literal["std_about_zero", "feature_std", "feature_std_train_mean_center"]


@dataclass(frozen=True, eq=False)
class FeatureScaling:
    """Scales features, image by image, to the standard deviation of true features.

    Parameters
    ----------
    kind : {"std_about_zero", "feature_std", "feature_std_train_mean_center"}
        With s the standard deviation over space averaged over channels (over units in a layer
        without space) of features t, and s0 that of true ones:

        - ``"std_about_zero"``: ``t s0 / s``, s without Bessel's correction (Shen et al. 2019, Ho
          et al. 2023);
        - ``"feature_std"``: ``(t - m) s0 / s + m``, m the mean of t over all units, s with
          the correction;
        - ``"feature_std_train_mean_center"``: the same of ``t`` less the mean of the features
          in training, which is added again.
    std : mapping of str to float or array
        s0 of each layer, or that of each channel, which is averaged.
    train_mean : Dataset, optional
        ``feature_<layer>`` without images, for ``"feature_std_train_mean_center"``.

    Raises
    ------
    ModelError
        If the kind is not known, a standard deviation is not positive, or means are missing.
    """

    kind: ScalingKind
    std: Mapping[str, Any]
    train_mean: xr.Dataset | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(ScalingKind):
            raise ModelError(f"no scaling is called {self.kind!r}; type one of {_KINDS}")
        if not isinstance(self.std, Mapping):
            raise ModelError(f"std= is a {type(self.std).__name__}, expected a number a layer")
        plain = {str(layer): float(np.mean(value)) for layer, value in self.std.items()}
        wrong = [layer for layer, value in plain.items() if not 0 < value < np.inf]
        if wrong:
            raise ModelError(f"std of the layers {', '.join(wrong)} is not a positive number")
        if self.centred != (self.train_mean is not None):
            raise ModelError(
                "train_mean= belongs to 'feature_std_train_mean_center', which needs it"
            )
        object.__setattr__(self, "std", plain)

    @property
    def centred(self) -> bool:
        """Whether the mean of the features in training is taken away first."""
        return self.kind == "feature_std_train_mean_center"

    def describe(self) -> dict[str, Any]:
        """Return the recipe as JSON values."""
        described = {"kind": self.kind, "std": dict(self.std)}
        return described | ({"train_mean": tokenize(self.train_mean)} if self.centred else {})


_KINDS = ", ".join(map(repr, get_args(ScalingKind)))


def scale_features(features: np.ndarray, std: float, *, about_zero: bool) -> np.ndarray:
    """Scale the features of one layer to a standard deviation, each image on its own.

    Parameters
    ----------
    features : ndarray (image, channel, y, x) or (image, unit)
    std : float
        Wanted: over space, averaged over channels; over units where there is no space.
    about_zero : bool
        Whether zero stays where it is, rather than the mean over all units; standard deviations
        then are without Bessel's correction.

    Returns
    -------
    ndarray of the shape and dtype of `features`
        Features of one value only stay as they are.
    """
    units = tuple(range(1, features.ndim))
    space = units[1:] or units
    values = features.astype(np.float64)
    spread = values.std(axis=space, ddof=0 if about_zero else 1, keepdims=True)
    spread = spread.mean(axis=units, keepdims=True)
    middle = 0.0 if about_zero else values.mean(axis=units, keepdims=True)
    gain = np.where(spread > 0, std / np.where(spread > 0, spread, 1), 1)
    scaled: np.ndarray = (values - middle) * gain + middle
    return scaled.astype(features.dtype)
