"""Structural similarity, in the two variants that papers report under one name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr

from nedx.metrics.images.pairing import image_pairs, per_pair
from nedx.metrics.images.resizing import bilinear_by_way_of, grey, resize, smoothed

Variant = Literal["mindeye", "necomimi"]

# Wang et al. 2004: constants of the luminance and the contrast term, for a range of 1.
_C1, _C2 = 0.01**2, 0.03**2


@dataclass(frozen=True)
class Settings:
    """What a variant does: size, resize, window, and covariance of samples or population."""

    side: int
    matrix: Callable[[int, int], Any]
    window: tuple[float, ...]
    sample_covariance: bool
    definition: str


def _gaussian(sigma: float, radius: int) -> tuple[float, ...]:
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return tuple((weights / weights.sum()).tolist())


VARIANTS: dict[str, Settings] = {
    "mindeye": Settings(
        side=425,
        matrix=bilinear_by_way_of,
        window=_gaussian(1.5, 5),
        sample_covariance=False,
        definition="425 x 425 grey, bilinear, Gaussian window sigma 1.5, population covariance",
    ),
    "necomimi": Settings(
        side=256,
        matrix=smoothed,
        window=(1 / 7,) * 7,
        sample_covariance=True,
        definition="256 x 256 grey, anti-aliased, uniform window 7 x 7, sample covariance",
    ),
}
"""The variants by the name of the work that published them."""


def ssim(
    ds: xr.Dataset, stimuli: xr.Dataset | None = None, *, variant: Variant = "mindeye"
) -> xr.DataArray:
    """Compare the structure of each reconstruction with that of its true image, lazily.

    The structural similarity index (Wang et al. 2004, IEEE Transactions on Image Processing
    13:600, equation 13) of the luminance, averaged over the image, values in [0, 1]. Numbers of
    different variants cannot be compared.

    Parameters
    ----------
    ds : Dataset
        ``pixels_reconstructed (..., image | trial, y, x, rgb)`` uint8; ``pixels`` too where no
        stimuli are given.
    stimuli : Dataset, optional
        ``pixels (image, y, x, rgb)`` uint8, of any size; joined by ``image_id``.
    variant : {"mindeye", "necomimi"}
        ``"mindeye"``: 425 x 425 pixels by way of 256 x 256, bilinear, a Gaussian window of
        standard deviation 1.5 pixels and covariances of the population. ``"necomimi"``:
        256 x 256 pixels, anti-aliased, a uniform window of 7 x 7 and covariances of samples.

    Returns
    -------
    DataArray
        ``ssim (..., image | trial)`` float64, "1"; 1 where both are equal. ``variant`` is in the
        attributes.

    Raises
    ------
    ValueError
        If there is no such variant.
    SchemaError, StimulusError
        If one of the two is missing, or is no uint8 RGB.
    SelectionError
        If the true image of a reconstruction is not there.
    """
    if variant not in VARIANTS:
        names = " or ".join(map(repr, VARIANTS))
        raise ValueError(f"variant is {names}, not {variant!r}; type ssim(ds, variant='mindeye')")
    attrs = {
        "long_name": "structural similarity",
        "definition": VARIANTS[variant].definition,
        "variant": variant,
        "better": "higher",
    }
    found = per_pair(image_pairs(ds, stimuli), similarities, attrs, variant=variant)
    return found.rename("ssim")


def similarities(reconstructed: np.ndarray, true: np.ndarray, *, variant: Variant) -> np.ndarray:
    """Compare images, float64 (..., image).

    Parameters
    ----------
    reconstructed : ndarray of uint8, (..., image, y, x, rgb)
    true : ndarray of uint8, (image, y, x, rgb)
    variant : str
        See `ssim`.
    """
    settings = VARIANTS[variant]
    found = np.empty(reconstructed.shape[:-3])
    for image, one in enumerate(true):
        reference = _prepared(one, settings)
        for lead in np.ndindex(reconstructed.shape[:-4]):
            other = _prepared(reconstructed[(*lead, image)], settings)
            found[(*lead, image)] = structural_similarity(
                reference, other, settings.window, sample_covariance=settings.sample_covariance
            )
    return found


def structural_similarity(
    x: np.ndarray, y: np.ndarray, window: tuple[float, ...], *, sample_covariance: bool
) -> float:
    """Return the mean index of two grey images.

    Parameters
    ----------
    x, y : ndarray of float64, (y, x)
        Luminance in [0, 1].
    window : tuple of float
        Weights along each axis, of sum 1; only windows that lie inside the image count.
    sample_covariance : bool
        Whether covariances are divided by n - 1 of the n pixels of a window, instead of n.
    """
    mean_x, mean_y, xx, yy, xy = (_windowed(part, window) for part in (x, y, x * x, y * y, x * y))
    count = len(window) ** 2
    scale = count / (count - 1) if sample_covariance else 1.0
    variances = scale * (xx - mean_x**2 + yy - mean_y**2)
    covariance = scale * (xy - mean_x * mean_y)
    index = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    index /= (mean_x**2 + mean_y**2 + _C1) * (variances + _C2)
    return float(index.mean())


def _prepared(image: np.ndarray, settings: Settings) -> np.ndarray:
    matrices = (settings.matrix(side, settings.side) for side in image.shape[:2])
    return resize(grey(image), *matrices)


def _windowed(image: np.ndarray, window: tuple[float, ...]) -> np.ndarray:
    """Average an image over windows, only where they lie inside."""
    from scipy.ndimage import correlate1d

    inside = slice(len(window) // 2, -(len(window) // 2))
    rows = correlate1d(image, window, axis=0)[inside]
    found: np.ndarray = correlate1d(rows, window, axis=1)[:, inside]
    return found
