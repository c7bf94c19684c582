"""`perturb`: noise in the place of channels, regions or times, lazily, told by labels alone."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr

from nedx.errors import SchemaError, SelectionError, close_matches
from nedx.insilico import noise as kernels
from nedx.metrics.repeats import labels_of
from nedx.preprocessing.steps import response_of
from nedx.schema import DERIVED_FROM, neuroid_dim, role_dim, sample_dim
from nedx.selection import Names, Times, resolve

Noise = Literal["matched", "gaussian", "phase", "shuffle", "zero", "mean"]

PERTURBATION = "nedx_perturbation"
"""The attribute that lists what was done, as JSON."""

# What was found from responses as they were, and says nothing of them as they are.
_FOUND = (
    *("embedding", "embedding_one_stage", "pixels_reconstructed"),
    *("candidate_id", "similarity", "similarity_true", "rank", "ties", "assigned_id"),
    *("accuracy", "accuracy_normalized", "noise_ceiling", "ncsnr", "encoding_accuracy"),
)
_TRIAL_LABELS = ("session", "run", "repetition")
_GROUPS = ("model", "subject", "repetition")
_ONE_TIME = "sample of time"


def perturb(
    ds: xr.Dataset,
    *,
    channels: Names | None = None,
    region: Names | None = None,
    time: Times | None = None,
    noise: Noise = "matched",
    seed: int = 0,
    sd: float | None = None,
) -> xr.Dataset:
    """Put noise in the place of the responses of some channels, lazily.

    The noise of a trace is told by the seed and the labels of its image (or trial), subject,
    repetition and channel: chunks, order and earlier selections make no difference. Only
    ``"shuffle"`` and ``"mean"`` depend on which images are there: select after them.

    Parameters
    ----------
    ds : Dataset
        Responses ``([model, subject,] image | trial[, repetition], <neuroid>[, time])``. Average
        repetitions first to do as the published experiment did.
    channels : str or sequence of str, optional
        Channels, or groups of them, as ``ds.ned.sel(channel=...)`` has them.
    region : str or sequence of str, optional
        Named sets: ``"visual"``, a region of the scalp, or ROIs where there is a ``roi_mask``.
        Without ``channels`` and ``region`` all neuroids are perturbed.
    time : slice, (start, stop) or float, optional
        A window in seconds; all of the time by default.
    noise : {"matched", "gaussian", "phase", "shuffle", "zero", "mean"}
        ``"matched"``: white, of the mean and unbiased standard deviation of each trace over the
        window, which destroys spectrum and evoked shape. ``"gaussian"``: white, of mean 0 and
        standard deviation ``sd``. ``"phase"``: each trace with its own amplitudes and random
        phases. ``"shuffle"``: the responses to another image, the same one for all channels,
        subjects and repetitions; no image keeps its own. ``"zero"``: zeros. ``"mean"``: the mean
        over the images and repetitions of ``ds``: the evoked shape, and nothing of the image.
    seed : int
        Not negative.
    sd : float, optional
        Of ``"gaussian"``, in the units of the responses; 1 for those without a unit.

    Returns
    -------
    Dataset
        ``response`` of the same dtype; what is not perturbed is the same to the bit, and what is
        NaN, as in repetitions that are absent, stays so. The attribute ``nedx_perturbation`` (JSON)
        and a line of ``history`` say what was done. What was found from the responses before, such
        as ``embedding``, decoded features and ``noise_ceiling``, is left out.

    Raises
    ------
    SchemaError
        If there is no ``response``.
    SelectionError
        If a channel, region or time is not there, with close matches; if the noise is unknown, or
        needs times, images or a standard deviation that are not there.

    Notes
    -----
    ``"matched"`` over all of the time is the noise of NECOMIMI's experiment (Chen 2024,
    arXiv:2410.00712), which had no seed.
    """
    response = response_of(ds)
    _check(ds, noise, seed, sd)
    places = _places(ds, channels, region, time)
    dim = _neuroid(ds)
    touched = np.zeros(ds.sizes[dim], bool)
    touched[places.get(dim, slice(None))] = True
    window = _window(ds, places)
    if noise in ("shuffle", "mean"):
        made = _from_others(ds, response, noise, seed, touched, window)
    else:
        made = _from_streams(ds, response, _kernel(ds, noise, sd, window), seed, touched, window)
    kept = ds.drop_vars(_found_before(ds))
    said = {"noise": noise, "seed": int(seed)} | _asked(ds, region, dim, touched, window)
    if noise == "gaussian":
        said["sd"] = 1.0 if sd is None else float(sd)
    return _recorded(kept.assign(response=made), said)


def _found_before(ds: xr.Dataset) -> list[str]:
    """Name what was found from the responses; features may be of the images, or decoded."""
    derived = [str(n) for n, v in ds.variables.items() if v.attrs.get(DERIVED_FROM) == "response"]
    return [*derived, *(name for name in _FOUND if name in ds.variables and name not in derived)]


def _check(ds: xr.Dataset, noise: str, seed: int, sd: float | None) -> None:
    names = get_args(Noise)
    if noise not in names:
        known = close_matches(noise, names)
        raise SelectionError(f"unknown noise {noise!r}: {known} It is one of {', '.join(names)}")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise SelectionError(f"seed is a whole number from 0, not {seed!r}; type seed=0")
    if sd is not None and (noise != "gaussian" or not 0 < sd < np.inf):
        raise SelectionError(
            f"sd is a standard deviation above 0 of noise='gaussian', not {sd!r} of {noise!r}; "
            "'matched' takes that of each trace"
        )
    units = ds["response"].attrs.get("units", "1")
    if noise == "gaussian" and sd is None and units != "1":
        raise SelectionError(
            f"the responses are in {units}: say how large the noise is, for example sd=5.0, or "
            "type noise='matched'"
        )
    if noise == "shuffle" and np.unique(_images(ds)).size < 2:
        raise SelectionError("noise='shuffle' needs two images or more; there is one")


def _places(
    ds: xr.Dataset, channels: Names | None, region: Names | None, time: Times | None
) -> dict[str, np.ndarray | slice]:
    if channels is not None and region is not None:
        raise SelectionError("give channels= or region=, not both: both name neuroids")
    if region is not None and "roi_mask" in ds:
        return resolve(ds, roi=region, time=time)
    return resolve(ds, channel=region if channels is None else channels, time=time)


def _neuroid(ds: xr.Dataset) -> str:
    dim = neuroid_dim(ds)
    if dim is None:
        found = ", ".join(map(str, ds.dims))
        raise SchemaError("The Dataset", [f"no neuroids to perturb; its dimensions are: {found}"])
    return dim


def _window(ds: xr.Dataset, places: dict[str, np.ndarray | slice]) -> slice:
    """Return the samples of time to replace; one, where there is no time axis."""
    dim = role_dim(ds["response"], "time")
    if dim is None:
        return slice(0, 1)
    place = places.get(dim, slice(0, ds.sizes[dim]))
    return place if isinstance(place, slice) else slice(int(place[0]), int(place[0]) + 1)


def _kernel(ds: xr.Dataset, noise: str, sd: float | None, window: slice) -> kernels.Kernel:
    if noise == "zero":
        return kernels.zero
    if noise == "gaussian":
        return kernels.gaussian(1.0 if sd is None else float(sd))
    # Of two samples neither the mean nor the only frequency has a phase.
    least = 3 if noise == "phase" else 2
    if window.stop - window.start < least:
        held = "one sample" if window.stop - window.start < 2 else "two samples"
        axis = f"the window holds {held}" if role_dim(ds, "time") else "there is no time axis"
        raise SelectionError(
            f"noise={noise!r} is made of what a trace does over time, and {axis}; give a longer "
            "window, or noise='shuffle', 'mean', 'zero' or 'gaussian'"
        )
    return kernels.matched if noise == "matched" else kernels.phase_randomised


def _from_streams(
    ds: xr.Dataset,
    response: xr.DataArray,
    kernel: kernels.Kernel,
    seed: int,
    touched: np.ndarray,
    window: slice,
) -> xr.DataArray:
    """Replace traces by what a kernel makes of them and of their random streams."""
    time, dim = role_dim(response, "time"), _neuroid(ds)
    values = response.variable
    if time is None:
        time = _ONE_TIME
        values = values.set_dims((*values.dims, _ONE_TIME), (*values.shape, 1))
    neuroids = [kernels.word(label) for label in _labels(ds, dim)]
    made = xr.apply_ufunc(
        kernels.replaced,
        values,
        xr.Variable(sample_dim(ds), _sample_words(ds)),
        _group_words(ds, response),
        xr.Variable(dim, np.array(neuroids, np.uint64)),
        xr.Variable(dim, touched),
        kwargs={"kernel": kernel, "window": window, "seed": seed},
        input_core_dims=[[time], [], [], [], []],
        output_core_dims=[[time]],
        dask="parallelized",
        output_dtypes=[response.dtype],
    )
    return _like(response, made.isel({_ONE_TIME: 0}, missing_dims="ignore"))


def _from_others(
    ds: xr.Dataset,
    response: xr.DataArray,
    noise: str,
    seed: int,
    touched: np.ndarray,
    window: slice,
) -> xr.DataArray:
    """Replace traces by those of other samples, or by the mean of all."""
    sample, time = sample_dim(ds), role_dim(response, "time")
    values = response.variable
    if noise == "shuffle":
        donor = values.isel({sample: kernels.partners(_images(ds), seed)})
    else:
        over = [d for d in (sample, role_dim(response, "repetition")) if d in values.dims]
        donor = values.mean(over, dtype=np.float64, skipna=True).astype(values.dtype)
    place = xr.Variable(_neuroid(ds), touched)
    if time is not None:
        inside = np.zeros(response.sizes[time], bool)
        inside[window] = True
        place = place * xr.Variable(time, inside)
    return _like(response, values.where(~(place & values.notnull()), donor))


def _like(response: xr.DataArray, made: xr.Variable) -> xr.DataArray:
    found: xr.DataArray = response.copy(data=made.transpose(*response.dims).data)
    return found


def _labels(ds: xr.Dataset, dim: str) -> list[str]:
    """Return the labels along a dimension; positions where it has none."""
    values = ds[dim].values if dim in ds.coords else np.arange(ds.sizes[dim])
    return [str(value) for value in values.tolist()]


def _images(ds: xr.Dataset) -> np.ndarray:
    """Return the image of each sample, str; its position where nothing says."""
    if "image_id" in ds.coords:
        return labels_of(ds, "image_id")
    return np.arange(ds.sizes[sample_dim(ds)]).astype(str)


def _sample_words(ds: xr.Dataset) -> np.ndarray:
    """Return a word for each sample, uint64; trials that no label tells apart are counted."""
    dim = sample_dim(ds)
    columns = [_images(ds).tolist()]
    for name in _TRIAL_LABELS:
        if name in ds.coords and ds[name].dims == (dim,):
            columns.append(ds[name].values.tolist())
    seen: dict[tuple[Any, ...], int] = {}
    words = []
    for labels in zip(*columns, strict=True):
        seen[labels] = seen.get(labels, -1) + 1
        words.append(kernels.word(*labels, seen[labels]))
    return np.array(words, np.uint64)


def _group_words(ds: xr.Dataset, response: xr.DataArray) -> xr.Variable:
    """Return a word for each model, subject and repetition, uint64, of their dims.

    One that is no dimension, as after a selection or in a tree of subjects, counts all the same.
    """
    ids = np.atleast_1d(ds.attrs.get("subject_ids", []))
    said = {"subject": str(ids[0])} if len(ids) == 1 else {}
    said |= {name: ds.attrs[name] for name in _GROUPS if isinstance(ds.attrs.get(name), str)}
    known = (sample_dim(ds), _neuroid(ds), role_dim(response, "time"))
    dims = sorted(str(dim) for dim in response.dims if dim not in known)
    columns = [_labels(ds, dim) for dim in dims]
    alone = {}
    for name in _GROUPS:
        if name in ds.coords and ds[name].ndim == 0:
            alone[name] = str(ds[name].item())
        elif name not in dims and name in said:
            alone[name] = said[name]
    words = np.empty([len(column) for column in columns], np.uint64)
    for place in np.ndindex(*words.shape):
        labels = {dim: column[i] for dim, column, i in zip(dims, columns, place, strict=True)}
        words[place] = kernels.word(*sorted((labels | alone).items()))
    return xr.Variable(dims, words)


def _asked(
    ds: xr.Dataset, region: Names | None, dim: str, touched: np.ndarray, window: slice
) -> dict[str, Any]:
    """Say what was perturbed, in JSON values; the names of channels, the number of others."""
    said: dict[str, Any] = {}
    if region is not None:
        said["region"] = region if isinstance(region, str) else list(region)
    if dim == "channel":
        labels = _labels(ds, dim)
        said["channels"] = [labels[position] for position in np.flatnonzero(touched)]
    else:
        said[f"n_{dim}"] = int(touched.sum())
    time = role_dim(ds["response"], "time")
    if time is not None:
        times = ds[time].values if time in ds.coords else np.arange(ds.sizes[time])
        said["time"] = [float(times[window.start]), float(times[window.stop - 1])]
    return said


def _recorded(ds: xr.Dataset, said: dict[str, Any]) -> xr.Dataset:
    before = json.loads(ds.attrs.get(PERTURBATION, "[]"))
    line = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} nedx.perturb {json.dumps(said)}"
    history = [h for h in (ds.attrs.get("history"), line) if h]
    return ds.assign_attrs(
        {PERTURBATION: json.dumps([*before, said]), "history": "\n".join(history)}
    )
