"""Predicted beside measured responses: accuracy, noise ceiling, and their ratio."""

from __future__ import annotations

import warnings
from typing import Literal

import xarray as xr

from nedx.errors import NedxWarning, SchemaError
from nedx.metrics.accuracy import determination, squared_correlation
from nedx.metrics.correlation import pearson_r
from nedx.metrics.noise_ceiling import Method, noise_ceiling
from nedx.metrics.repeats import averaged, has_repeats, image_codes, n_repetitions

Metric = Literal["pearson_r", "r2", "determination"]

_METRICS = {
    "pearson_r": (pearson_r, "correlation of predicted with measured responses"),
    "r2": (squared_correlation, "squared correlation of predicted with measured responses"),
    "determination": (determination, "coefficient of determination of the measured responses"),
}

# What must be the same for a prediction and a measurement to be compared.
_SCALES = ("units", "normalization", "normalization_scope", "transform")


def score(
    ds: xr.Dataset,
    *,
    metric: Metric = "pearson_r",
    method: Method = "ncsnr",
    n_splits: int = 100,
    seed: int = 0,
) -> xr.Dataset:
    """Compare predicted with measured responses, beside the noise ceiling; lazily.

    Repeats are averaged before they are compared. The ceiling is ``noise_ceiling`` of the
    Dataset, or is computed from the repeats; without either, only the accuracy is added.

    Parameters
    ----------
    ds : Dataset
        Holds ``response`` and ``response_predicted``.
    metric : {"pearson_r", "r2", "determination"}
        ``r2`` is the square of Pearson's r, ``determination`` 1 - residual / total squares.
    method, n_splits, seed
        How to find the ceiling, as `noise_ceiling` takes them.

    Returns
    -------
    Dataset
        The same with ``accuracy`` float32 (``metric`` in its attributes; NaN of constant
        neuroids), ``noise_ceiling`` (fraction of variance) and ``accuracy_normalized``
        (r / sqrt(noise_ceiling), r2 and determination / noise_ceiling; NaN where the ceiling is
        0), all "1".

    Raises
    ------
    SchemaError
        If one of the two is missing, or they are in other units or otherwise normalized.
    ValueError
        If there is no such metric.

    Warns
    -----
    NedxWarning
        If ``partition`` says that images were used in training, or ``n_repetitions`` of the
        ``noise_ceiling`` of the Dataset that it is of other means than are compared.
    """
    if metric not in _METRICS:
        names = ", ".join(repr(name) for name in _METRICS)
        raise ValueError(
            f"metric is one of {names}, not {metric!r}; type score(metric='pearson_r')"
        )
    missing = [name for name in ("response", "response_predicted") if name not in ds]
    if missing:
        faults = [f"no variable {name!r}" for name in missing]
        raise SchemaError("what is scored", [*faults, "predict first: ds.ned.encode(model)"])
    _refuse_other_scales(ds["response"], ds["response_predicted"])
    _warn_of_training(ds)
    measured, dim = averaged(ds["response"])
    predicted, _ = averaged(ds["response_predicted"])
    compare, long_name = _METRICS[metric]
    accuracy = compare(measured, predicted, dim).astype("f4")
    attrs = {"units": "1", "long_name": long_name, "metric": metric}
    added = {"accuracy": accuracy.assign_attrs(attrs)}
    ceiling = ds.get("noise_ceiling")
    if ceiling is None and has_repeats(ds["response"]):
        ceiling = noise_ceiling(ds["response"], method=method, n_splits=n_splits, seed=seed)
    elif ceiling is not None:
        _warn_of_other_means(ceiling, ds["response"])
    if ceiling is not None:
        normalized = _normalized(accuracy, ceiling, metric)
        added |= {"noise_ceiling": ceiling, "accuracy_normalized": normalized}
    return ds.assign(added)


def _normalized(accuracy: xr.DataArray, ceiling: xr.DataArray, metric: Metric) -> xr.DataArray:
    """Divide by what can be reached: r by the root of the ceiling, variances by the ceiling."""
    reachable, by = ceiling.where(ceiling > 0), "noise_ceiling"
    if metric == "pearson_r":
        reachable, by = reachable**0.5, "sqrt(noise_ceiling)"
    attrs = {"units": "1", "long_name": f"accuracy divided by {by}", "metric": metric}
    return (accuracy / reachable).astype("f4").drop_attrs().assign_attrs(attrs)


def _refuse_other_scales(measured: xr.DataArray, predicted: xr.DataArray) -> None:
    """Compare what both say of their scale; what only one says is not judged."""
    faults = [
        f"{name} of response is {measured.attrs[name]!r}, of response_predicted "
        f"{predicted.attrs[name]!r}"
        for name in _SCALES
        if name in measured.attrs
        and name in predicted.attrs
        and measured.attrs[name] != predicted.attrs[name]
    ]
    if not faults:
        return
    advice = (
        "bring them to one scale before they are compared: predict with a model fitted to "
        "responses in these units and normalized this way, or convert one of them; if only the "
        "label is wrong, type ds.response_predicted.attrs.update(units=..., normalization=...)"
    )
    raise SchemaError("what is scored", [*faults, advice])


def _warn_of_other_means(ceiling: xr.DataArray, measured: xr.DataArray) -> None:
    """Warn where repetitions were selected since the ceiling was computed."""
    stored = ceiling.attrs.get("n_repetitions")
    if stored is None or not has_repeats(measured):
        return
    found = n_repetitions(image_codes(measured)[1])
    if abs(found - stored) > 1e-3 * found:
        warnings.warn(
            f"noise_ceiling is of means over {stored:g} repetitions, but means over {found:g} are "
            "compared; to compute it of these, type ds.drop_vars('noise_ceiling').ned.score()",
            NedxWarning,
            stacklevel=3,
        )


def _warn_of_training(ds: xr.Dataset) -> None:
    if "partition" in ds.coords and (ds["partition"] == "train").any().item():
        # Of images, what is a test for one subject may have trained the model of another.
        whose = '.all("subject")' if "subject" in ds["partition"].dims else ""
        warnings.warn(
            "some of these images were used in training (partition 'train'), so the accuracy is "
            f'too high; select first: ds.isel(image=(ds.partition == "test"){whose}.values)',
            NedxWarning,
            stacklevel=3,
        )
