"""How well true matches were found: exact k-way accuracy, mean average precision, median rank."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from nedx.errors import SchemaError
from nedx.metrics.inference import bootstrap_mean
from nedx.metrics.intervals import t_interval
from nedx.metrics.repeats import whole
from nedx.schema import sample_dim

PUBLISHED_WAYS = (2, 4, 10, 50, 100, 200)


def retrieval_scores(
    found: xr.Dataset,
    ways: Sequence[int] | None = None,
    top: Sequence[int] = (1, 5),
    over: str = "subject",
    *,
    level: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> xr.Dataset:
    """Score what `nedx.retrieve` found, beside chance; lazily.

    Accuracy in k of the N candidates is not sampled but expected over all draws of k - 1 others:
    with r others that score as much as the true match or more, it is among the first m with
    P(Hypergeometric(N - 1, r, k - 1) <= m - 1).

    Parameters
    ----------
    found : Dataset
        With ``rank ([subject,] image | trial)``, and maybe ``similarity_true`` and
        ``assigned_id``. Images without a true match in the gallery are left out.
    ways : sequence of int, optional
        Numbers of candidates k; by default 2, 4, 10, 50, 100 and 200 where the gallery is larger,
        and all N.
    top : sequence of int
        Among how many the true match is to be.
    over : str
        The dim of subjects, over which there is a mean with an interval.
    level : float
        How often the intervals should cover the truth.
    n_resamples, seed : int
        Of the bootstrap over images.

    Returns
    -------
    Dataset
        float64, "1":

        - ``top1 ([subject,] way)``, ``top5``, ...: accuracies, ``mean_average_precision``: the
          mean of 1 / rank, ``median_rank`` (1 = best), ``mean_similarity`` of the true matches,
          and of one-to-one assignment, which is transductive, ``assignment_accuracy``;
        - each with ``_mean`` over subjects and ``_interval (..., bound)`` around it, from Student's
          t. Without subjects, or of one alone, the interval is a bootstrap over images, and there
          is none of the median; over trials it is too narrow where several show one image;
        - ``top1_chance (way)`` and so on: what random scores give.

    Raises
    ------
    SchemaError
        If there are no ranks, or they are of different tasks or galleries, or no image has a true
        match.
    ValueError
        If a number of candidates is larger than the gallery, or ``top`` is below 1.
    """
    task, count = _checked(found)
    known = found["in_gallery"] if "in_gallery" in found.coords else None
    if known is not None:
        found = found.isel({known.dims[0]: np.flatnonzero(known.values)})
    if not found["rank"].size:
        raise SchemaError("what is scored", ["none of these images has a true match there"])
    if not len(top) or min(top) < 1:
        raise ValueError(f"top are numbers from 1, of the first candidates, not {list(top)}")
    sample = sample_dim(found["rank"])
    per_image = _per_image(found, sample, count, _ways(ways, count), top)
    scores = {name: values.mean(sample) for name, values in per_image.items()}
    scores["median_rank"] = xr.apply_ufunc(
        np.median,
        whole(found["rank"], [sample]).drop_vars("n_candidates"),
        kwargs={"axis": -1},
        input_core_dims=[[sample]],
        dask="parallelized",
        output_dtypes=[np.float64],
    )
    summary = dict(scores)
    several = found["rank"].sizes.get(over, 1) > 1
    for name, values in scores.items():
        if several:
            summary[f"{name}_mean"] = values.mean(over)
            summary[f"{name}_interval"] = t_interval(values, over, level=level)
        elif name != "median_rank":
            summary[f"{name}_interval"] = bootstrap_mean(
                per_image[name], sample, n_resamples=n_resamples, level=level, seed=seed
            )
    chance = _chance(count, _ways(ways, count), top, assigned="assigned_id" in found)
    method = f"Student's t over {over}" if several else f"percentile bootstrap over {sample}"
    attrs = {"task": task, "n_candidates": count, "n_queries": found["rank"].sizes[sample]}
    attrs |= {"metric": str(found["rank"].attrs.get("metric", "")), "interval": method}
    return _described(xr.Dataset({**summary, **chance}, attrs=attrs | {"level": level}))


def expected_top(rank: np.ndarray, n_candidates: int, way: int, top: int) -> np.ndarray:
    """Return the chance that the true match is among the first of a random draw of candidates.

    Parameters
    ----------
    rank : ndarray
        Of the true match among all, 1 = best.
    n_candidates, way : int
        N candidates, of which k - 1 others are drawn.
    top : int
        Among how many first.

    Returns
    -------
    ndarray of float64
        P(Hypergeometric(N - 1, rank - 1, k - 1) <= top - 1).
    """
    from scipy.stats import hypergeom

    unique, which = np.unique(rank, return_inverse=True)
    found: np.ndarray = hypergeom.cdf(top - 1, n_candidates - 1, unique - 1, way - 1)
    # The sum of probabilities may end a rounding above 1.
    return np.minimum(found, 1.0)[which].reshape(np.shape(rank))


def _checked(found: xr.Dataset) -> tuple[str, int]:
    """Return the task and the number of candidates of all ranks."""
    if "rank" not in found:
        raise SchemaError("what is scored", ["no variable 'rank'; type ds.ned.retrieve(gallery)"])
    faults = []
    told = []
    for name in ("retrieval_task", "n_candidates"):
        if name not in found.coords:
            faults.append(f"no coordinate {name!r}, which ds.ned.retrieve(gallery) gives")
            continue
        values = list(dict.fromkeys(np.ravel(found[name].values).tolist()))
        told.append(values[0])
        if len(values) > 1:
            faults.append(f"{name} is {values}: scores of these do not compare, score each alone")
    if faults:
        raise SchemaError("what is scored", faults)
    return str(told[0]), int(told[1])


def _ways(ways: Sequence[int] | None, count: int) -> list[int]:
    if ways is None:
        return [*(way for way in PUBLISHED_WAYS if way < count), count]
    wrong = [way for way in ways if not 1 <= way <= count]
    if wrong or not len(ways):
        raise ValueError(f"ways are 1 to {count}, the size of the gallery, not {list(ways)}")
    return [int(way) for way in ways]


def _per_image(
    found: xr.Dataset, sample: str, count: int, ways: Sequence[int], top: Sequence[int]
) -> dict[str, xr.DataArray]:
    """Return the scores that are means over images, of each image."""
    rank = whole(found["rank"], [sample])
    scores = {
        f"top{m}": xr.apply_ufunc(
            _top_by_way,
            rank,
            kwargs={"count": count, "ways": ways, "top": m},
            output_core_dims=[["way"]],
            dask="parallelized",
            output_dtypes=[np.float64],
            dask_gufunc_kwargs={"output_sizes": {"way": len(ways)}},
        ).assign_coords(way=list(ways))
        for m in top
    }
    scores["mean_average_precision"] = 1 / rank
    if "similarity_true" in found:
        scores["mean_similarity"] = whole(found["similarity_true"], [sample]).astype(np.float64)
    if "assigned_id" in found:
        right = found["assigned_id"] == found[found["assigned_id"].attrs["joined_by"]].variable
        scores["assignment_accuracy"] = whole(right, [sample]).astype(np.float64)
    return {name: values.drop_vars("n_candidates") for name, values in scores.items()}


def _top_by_way(rank: np.ndarray, count: int, ways: Sequence[int], top: int) -> np.ndarray:
    return np.stack([expected_top(rank, count, way, top) for way in ways], axis=-1)


def _chance(
    count: int, ways: Sequence[int], top: Sequence[int], *, assigned: bool
) -> dict[str, xr.DataArray]:
    """Return what random scores without ties give on average."""
    chance = {
        f"top{m}_chance": xr.DataArray(np.minimum(m / np.array(ways), 1.0), {"way": list(ways)})
        for m in top
    }
    harmonic = float(np.sum(1 / np.arange(1, count + 1)))
    chance["mean_average_precision_chance"] = xr.DataArray(harmonic / count)
    chance["median_rank_chance"] = xr.DataArray((count + 1) / 2)
    if assigned:
        chance["assignment_accuracy_chance"] = xr.DataArray(1 / count)
    return chance


def _described(scores: xr.Dataset) -> xr.Dataset:
    for name, array in scores.data_vars.items():
        array.attrs = {"units": "1", "long_name": str(name).replace("_", " ")}
        if str(name).startswith("assignment"):
            array.attrs["transductive"] = "true"
    scores["way"].attrs = {"long_name": "number of candidates"}
    return scores
