"""All metrics of reconstructed images at once, as papers tabulate them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import xarray as xr

from nedx.errors import SchemaError, close_matches
from nedx.metrics.images.distances import clip_similarity, correlation_distance
from nedx.metrics.images.features import NAMED
from nedx.metrics.images.fid import fid
from nedx.metrics.images.identification import two_way_identification
from nedx.metrics.images.kid import kid
from nedx.metrics.images.pairing import wanted_images
from nedx.metrics.images.pixcorr import pixcorr
from nedx.metrics.images.ssim import ssim
from nedx.schema import sample_dim

Features: TypeAlias = Callable[[xr.DataArray], xr.DataArray] | tuple[Any, Any]
"""What computes features of pixels, or the features of true and reconstructed images."""

OF_PIXELS: dict[str, Callable[..., xr.DataArray]] = {
    "pixcorr": pixcorr,
    "ssim_mindeye": lambda ds, stimuli: ssim(ds, stimuli, variant="mindeye"),
    "ssim_necomimi": lambda ds, stimuli: ssim(ds, stimuli, variant="necomimi"),
}
"""The metrics of pixels by name."""


def image_metrics(
    ds: xr.Dataset,
    stimuli: xr.Dataset | None = None,
    *,
    metrics: Sequence[str] = tuple(OF_PIXELS),
    features: Mapping[str, Features] | None = None,
) -> xr.Dataset:
    """Say how good reconstructions are, lazily: each metric averaged over images.

    Parameters
    ----------
    ds : Dataset
        ``pixels_reconstructed (..., image | trial, y, x, rgb)`` uint8; ``pixels`` too where no
        stimuli are given. Leading dims, such as subjects, kinds of picture and repetitions, are
        kept.
    stimuli : Dataset, optional
        ``pixels (image, y, x, rgb)`` uint8, of any size; joined by ``image_id``.
    metrics : sequence of str
        Of `OF_PIXELS`: ``"pixcorr"``, ``"ssim_mindeye"``, ``"ssim_necomimi"``.
    features : mapping of str to callable or (true, reconstructed), optional
        For further metrics, by name: what computes features of pixels, such as
        `nedx.metrics.images.feature_extractor` returns, or the features of the true images and of
        the reconstructions. ``"efficientnet_b1"`` and ``"swav"`` are compared by
        `correlation_distance`, ``"fid"`` by `fid` and `kid`, all others by
        `two_way_identification`, and ``"clip"`` by `clip_similarity` too.

    Returns
    -------
    Dataset
        One variable a metric over the leading dims, float64, "1"; ``definition``, ``better`` and
        ``n_images`` in its attributes. `nedx.metrics.images` has each image by image.

    Raises
    ------
    SchemaError, StimulusError
        If pixels or features are missing, or do not belong together.
    SelectionError
        If the true image of a reconstruction is not there.
    ValueError
        If there is no such metric.

    Examples
    --------
    >>> extractor = nedx.metrics.images.feature_extractor("alexnet_5", weights="alexnet.pth")
    >>> seen.ned.image_metrics(stimuli, features={"alexnet_5": extractor}).to_dataframe()
    """
    listed = [metrics] if isinstance(metrics, str) else list(metrics)
    for name in listed:
        if name not in OF_PIXELS:
            raise ValueError(f"no metric of pixels {name!r}; {close_matches(name, OF_PIXELS)}")
    found: dict[str, xr.DataArray] = {}
    for name in listed:
        found[name] = _mean(OF_PIXELS[name](ds, stimuli))
    for name, source in (features or {}).items():
        found |= _of_features(name, *_features(source, ds, stimuli))
    if not found:
        raise ValueError("no metric was asked for; type metrics=['pixcorr'] or features={...}")
    return xr.Dataset(found)


def _of_features(name: str, true: Any, reconstructed: Any) -> dict[str, xr.DataArray]:
    """Return the metrics that a name stands for."""
    if name == "fid":
        kernel = kid(true, reconstructed)
        distances = {str(key): array for key, array in kernel.data_vars.items()}
        return {"fid": fid(true, reconstructed), **distances}
    if name in NAMED and NAMED[name].comparison == "correlation_distance":
        return {name: _mean(correlation_distance(true, reconstructed))}
    found = {name: _mean(two_way_identification(true, reconstructed))}
    if name == "clip":
        found["clip_similarity"] = _mean(clip_similarity(true, reconstructed))
    return found


def _features(source: Features, ds: xr.Dataset, stimuli: xr.Dataset | None) -> tuple[Any, Any]:
    """Return the features of true and reconstructed images."""
    if isinstance(source, tuple):
        if len(source) != 2:
            fault = f"expected (true, reconstructed), found {len(source)} things"
            raise SchemaError("the features", [fault])
        return source
    if not callable(source):
        fault = f"expected a callable or (true, reconstructed), found a {type(source).__name__}"
        raise SchemaError("the features", [fault])
    origin = ds if stimuli is None else stimuli
    faults = [
        f"no variable {name!r} to compute features of"
        for name, where in (("pixels", origin), ("pixels_reconstructed", ds))
        if name not in where
    ]
    if faults:
        raise SchemaError("what is compared", faults)
    pixels, reconstructed = origin["pixels"], ds["pixels_reconstructed"]
    if stimuli is not None:
        pixels = wanted_images(pixels, reconstructed)
    return source(pixels), source(reconstructed)


def _mean(values: xr.DataArray) -> xr.DataArray:
    """Average over images; of one that is undefined the mean is."""
    dim = sample_dim(values)
    attrs = {**values.attrs, "cell_methods": f"{dim}: mean"}
    return values.mean(dim, skipna=False, keep_attrs=False).assign_attrs(attrs)
