"""Retrieval as published benchmarks define it, each under its own name."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr

from nedx.decoding.retrieval import retrieve
from nedx.errors import SchemaError
from nedx.metrics.repeats import averaged, labels_of
from nedx.schema import role_dim

AGGREGATIONS = ("none", "subject", "instance")

_SCORES: dict[str, tuple[str, float | None]] = {
    "top5_acc": ("share of true images among the first five", None),
    "inv_norm_rank_mean": ("mean of 1 - rank / (candidates - 1), ranks from 0", 0.5),
    "inv_norm_rank_median": ("lower median of 1 - rank / (candidates - 1), ranks from 0", 0.5),
}


def neuralbench_retrieval(
    ds: xr.Dataset, gallery: xr.Dataset, *, device: str = "auto"
) -> xr.Dataset:
    """Score retrieval as NeuralBench does on its whole test set, lazily.

    Candidates are the images of the test set alone, once each, compared by cosine similarity. The
    rank of the true one counts from 0 and ties by half: r = (#{> true} + #{>= true} - 1) / 2, over
    N candidates. Predictions are averaged before they are compared, in three ways: not at all, over
    those of a subject to an image ("subject-agg", the headline of NeuralBench-EEG v1.0), and over
    all to an image ("instance-agg").

    This is ``TestFullRetrievalMetrics`` of neuralbench with ``retrieval_set_size=None`` and
    ``InverseNormalizedRank`` and ``TopkAcc`` of neuraltrain (facebookresearch/neuroai, as of 2026).
    Its ``batch_*`` metrics depend on the batch size, and are not computed here.

    Parameters
    ----------
    ds : Dataset
        ``embedding ([subject,] image | trial[, repetition], feature)`` of the whole test set with
        ``image_id``: one for each presentation, as in NeuralBench, or of means over them.
    gallery : Dataset
        ``features (image, feature)`` of these images and maybe of others, which are left out.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    Returns
    -------
    Dataset
        ``top5_acc (aggregation)``: the share with r < 5; ``inv_norm_rank_mean`` and
        ``inv_norm_rank_median`` of 1 - r / (N - 1), the median being the lower of the middle two,
        as torch's is; each with ``_chance``. ``aggregation`` is "none", "subject" and "instance".

    Raises
    ------
    SchemaError, ModelError, SelectionError
        As `nedx.retrieve`.
    """
    if "embedding" not in ds or "image_id" not in ds.coords:
        hint = "no variable 'embedding' with the coordinate 'image_id': type ds.ned.decode(decoder)"
        raise SchemaError("what is scored", [hint])
    shown = np.asarray(ds["image_id"].values, dtype=object)
    if "image_id" in gallery.coords:
        candidates = pd.Index(gallery["image_id"].values).isin(shown)
        gallery = gallery.isel({gallery["image_id"].dims[0]: np.flatnonzero(candidates)})
    embedding = ds["embedding"].reset_coords(drop=True).assign_coords(image_id=ds["image_id"])
    scores = []
    for aggregation in AGGREGATIONS:
        asked = xr.Dataset({"embedding": _aggregated(embedding, aggregation)})
        found = retrieve(asked, gallery, 1, device=device)
        if found["n_candidates"] < 2:
            raise SchemaError("what is scored", ["one image only: it has no other to rank before"])
        scores.append(_scores(found))
    return _labelled(da.stack(scores), int(found["n_candidates"]))


def _aggregated(embedding: xr.DataArray, aggregation: str) -> xr.DataArray:
    """Average predictions to the same image: none of them, a subject's, or all."""
    if aggregation == "none":
        return embedding
    mean, dim = averaged(embedding)
    if dim not in embedding.dims:
        names = np.unique(labels_of(embedding, "image_id")).astype(object)
        mean = mean.rename({dim: "image"}).assign_coords(image_id=("image", names))
    subject = role_dim(mean, "subject")
    if aggregation == "instance" and subject is not None:
        mean = mean.mean(subject)
    return mean


def _scores(found: xr.Dataset) -> da.Array:
    """Return the scores (3,) of all ranks together."""
    rank, ties = (found[name].data.ravel() for name in ("rank", "ties"))
    count = int(found["n_candidates"])
    return da.map_blocks(
        _of_ranks, rank, ties, count=count, chunks=(len(_SCORES),), dtype=np.float64
    )


def _of_ranks(rank: np.ndarray, ties: np.ndarray, count: int) -> np.ndarray:
    from_zero = rank - 1 - ties / 2
    inverse = 1 - from_zero / (count - 1)
    return np.array(
        [(from_zero < 5).mean(), inverse.mean(), np.quantile(inverse, 0.5, method="lower")]
    )


def _labelled(scores: da.Array, count: int) -> xr.Dataset:
    found: dict[str, Any] = {}
    for i, (name, (long_name, chance)) in enumerate(_SCORES.items()):
        attrs = {"units": "1", "long_name": long_name}
        found[name] = ("aggregation", scores[:, i], attrs)
        value = min(1.0, 5 / count) if chance is None else chance
        found[f"{name}_chance"] = ((), value, {"units": "1", "long_name": f"chance of {name}"})
    labels = {"aggregation": np.array(AGGREGATIONS, dtype=object)}
    said: dict[str, Any] = {"task": "exact_image", "n_candidates": count, "protocol": "NeuralBench"}
    return xr.Dataset(found, labels, said)
