"""Judgements of reconstructed images: read, checked, compared, or made by a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from nedx.errors import SchemaError, SelectionError
from nedx.metrics.images.distances import cosines
from nedx.metrics.images.pairing import features_of
from nedx.metrics.repeats import whole
from nedx.schema import sample_dim


@dataclass(frozen=True)
class Judgements:
    """Which tags of which images match.

    Parameters
    ----------
    values : DataArray (..., image, tag)
        float64 in [0, 1], NaN where no judgement is; checked when computed.
    asked : DataArray (image, tag)
        bool: whether the image has this tag.
    roles : DataArray (tag), optional
        The role of each tag, str.
    sample : str
        The dim of the images.
    """

    values: xr.DataArray
    asked: xr.DataArray
    roles: xr.DataArray | None
    sample: str

    @property
    def n_images(self) -> int:
        """Number of images that were judged."""
        return int(self.values.sizes[self.sample])


def judgements(
    match: xr.DataArray | xr.Dataset, tags: xr.DataArray | None, *, refuse_missing: bool
) -> Judgements:
    """Read a table of judgements, as `cat_score` takes it."""
    array = _match_of(match)
    sample = sample_dim(array)
    if "tag" not in array.dims or array.size == 0:
        fault = f"expected dims (..., {sample}, tag) of one or more, found {dict(array.sizes)}"
        raise SchemaError("the judgements", [fault])
    if array.dtype.kind not in "bfiu":
        fault = f"expected bool or numbers in [0, 1] with NaN for missing, found {array.dtype}"
        raise SchemaError("the judgements", [fault])
    if "image_id" in array.coords:
        _refuse_twice([str(name) for name in array["image_id"].values], "the judgements")
    asked = xr.DataArray(
        np.ones((array.sizes[sample], array.sizes["tag"]), dtype=bool), dims=(sample, "tag")
    )
    roles = array.coords.get("tag_role")
    if tags is not None:
        tags = _joined(tags, array, sample).transpose(sample, "tag")
        _refuse_other_roles(tags, array)
        asked = asked.copy(data=[[_is_tag(tag) for tag in row] for row in tags.values])
        roles = tags.coords.get("tag_role") if roles is None else roles
    # Labels are not aligned from here on: images are joined.
    bare = whole(array.astype(np.float64), [sample, "tag"]).transpose(..., sample, "tag")
    inner = {name for name, coord in bare.coords.items() if {sample, "tag"} & set(coord.dims)}
    checked: xr.DataArray = xr.apply_ufunc(
        _checked,
        bare.drop_vars(inner),
        asked,
        kwargs={"refuse_missing": refuse_missing},
        input_core_dims=[[sample, "tag"]] * 2,
        output_core_dims=[[sample, "tag"]],
        dask="parallelized",
        output_dtypes=[np.float64],
        keep_attrs="override",
    )
    if roles is not None:
        labels = roles.values.astype(object).astype(str)
        roles = xr.DataArray(labels.astype(object), dims=roles.dims)
    return Judgements(checked, asked, roles, sample)


def annotator_agreement(match: xr.DataArray | xr.Dataset, *, dim: str = "annotator") -> xr.Dataset:
    """Say how far annotators agree, lazily.

    Parameters
    ----------
    match : DataArray or Dataset
        ``match (..., annotator, image, tag)`` as `nedx.cat_score` takes it; missing judgements
        are left out.
    dim : str
        The dim of the annotators.

    Returns
    -------
    Dataset
        ``agreement (...)``, the mean of 1 - |a - b| over the pairs of judgements of the same tag
        of the same image, and ``krippendorff_alpha (...)``, 1 - observed / expected squared
        difference (Krippendorff 2011, Computing Krippendorff's alpha-reliability, for interval
        data; for bool that is the nominal alpha too): 1 for perfect agreement, 0 for that of
        chance. float64, "1"; NaN where no two judged the same, or all judged all the same.

    Raises
    ------
    SchemaError
        If there are fewer than two annotators.
    """
    found = judgements(match, None, refuse_missing=False)
    if found.values.sizes.get(dim, 0) < 2:
        fault = f"agreement takes two of {dim!r} or more, found {dict(found.values.sizes)}"
        raise SchemaError("the judgements", [fault])
    core = [dim, found.sample, "tag"]
    both = xr.apply_ufunc(
        _agreement,
        whole(found.values, core),
        input_core_dims=[core],
        output_core_dims=[["statistic"]],
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {"statistic": 2}},
        keep_attrs="override",
    )
    names = {"agreement": "agreement of annotators", "krippendorff_alpha": "Krippendorff's alpha"}
    attrs = {"units": "1", f"n_{dim}s": found.values.sizes[dim]}
    return xr.Dataset(
        {
            name: both.isel(statistic=i).drop_attrs().assign_attrs({**attrs, "long_name": text})
            for i, (name, text) in enumerate(names.items())
        }
    )


def match_by_similarity(
    image_features: Any, text_features: Any, *, threshold: float
) -> xr.DataArray:
    """Judge by a network: a tag matches where image and text are similar enough, lazily.

    Zero-shot matching with embeddings that images and text share, such as those of CLIP. It does
    not stand in for people: the threshold decides the level of the score, so that only scores of
    one network and threshold can be compared.

    Parameters
    ----------
    image_features : DataArray or Dataset
        ``features (..., image, feature)`` of the reconstructions.
    text_features : DataArray or Dataset
        ``features (image, tag, feature)`` of the tags of each image, joined by ``image_id``.
    threshold : float
        The least cosine that counts as a match.

    Returns
    -------
    DataArray
        ``match (..., image, tag)`` bool, for `nedx.cat_score`; ``matcher`` and ``threshold`` are
        in the attributes, and ``tag_role`` is kept.

    Raises
    ------
    SchemaError
        If dims or widths differ, or images are not named.
    SelectionError
        If an image has no text.
    """
    images, text = features_of(image_features), features_of(text_features)
    sample = sample_dim(images)
    faults = [f"no dim {d!r} of the text" for d in ("tag", "feature") if d not in text.dims]
    if images.sizes.get("feature") != text.sizes.get("feature"):
        widths = (images.sizes.get("feature"), text.sizes.get("feature"))
        faults.append(f"images have {widths[0]} features, text {widths[1]}: take both of one model")
    if not -1 <= threshold <= 1:
        faults.append(f"threshold is a cosine, -1 to 1, not {threshold}")
    if faults:
        raise SchemaError("what is matched", faults)
    text = _joined(text, images, sample)
    text = text.drop_vars([n for n, c in text.coords.items() if sample in c.dims])
    found: xr.DataArray = xr.apply_ufunc(
        _similar,
        whole(images, ["feature"]).transpose(..., sample, "feature"),
        whole(text, ["feature"]).transpose(sample, "tag", "feature"),
        kwargs={"threshold": threshold},
        input_core_dims=[["feature"], ["tag", "feature"]],
        output_core_dims=[["tag"]],
        dask="parallelized",
        output_dtypes=[bool],
        keep_attrs="override",
    )
    models = [part.attrs["model"] for part in (images, text) if "model" in part.attrs]
    matcher = f"cosine of features >= {threshold:g}" + (
        f" ({', '.join(dict.fromkeys(models))})" if models else ""
    )
    found.attrs = {"long_name": "tag matches", "matcher": matcher, "threshold": threshold}
    return found.rename("match")


def _match_of(data: xr.DataArray | xr.Dataset) -> xr.DataArray:
    if isinstance(data, xr.DataArray):
        return data
    if "match" not in data:
        raise SchemaError("the judgements", [f"no variable 'match'; there are {list(data)}"])
    return data["match"]


def _joined(other: xr.DataArray, array: xr.DataArray, sample: str) -> xr.DataArray:
    """Return what belongs to the images of ``array``, in their order."""
    theirs = sample_dim(other)
    if "image_id" not in other.coords or "image_id" not in array.coords:
        fault = "no image_id on one of the two: nothing is joined by position"
        raise SchemaError("judgements and tags", [fault])
    names, wanted = ([str(n) for n in part["image_id"].values] for part in (other, array))
    _refuse_twice(names, "tags")
    where = {name: i for i, name in enumerate(names)}
    if absent := [name for name in wanted if name not in where]:
        raise SelectionError(f"no tags of {len(absent)} images: {', '.join(absent[:5])}")
    if "tag" in array.dims and other.sizes.get("tag") != array.sizes["tag"]:
        fault = f"{array.sizes['tag']} tags were judged, {other.sizes.get('tag')} are named"
        raise SchemaError("judgements and tags", [fault])
    ordered = other.isel({theirs: [where[name] for name in wanted]})
    return ordered if theirs == sample else ordered.rename({theirs: sample})


def _refuse_twice(names: Sequence[str], what: str) -> None:
    if len(set(names)) < len(names):
        name = next(name for name in names if names.count(name) > 1)
        advice = "keep one, or give repeats a dim of their own"
        raise SchemaError(what, [f"image {name!r} is there more than once; {advice}"])


def _refuse_other_roles(tags: xr.DataArray, match: xr.DataArray) -> None:
    """Refuse tags in another order than they were judged in: tags have no other names."""
    if "tag_role" not in tags.coords or "tag_role" not in match.coords:
        return
    named, judged = ([str(r) for r in a["tag_role"].values.ravel()] for a in (tags, match))
    if named != judged:
        fault = f"tag_role is {judged} of what was judged, {named} of the tags"
        raise SchemaError("judgements and tags", [fault, "bring both into one order"])


def _is_tag(tag: Any) -> bool:
    return isinstance(tag, str) and bool(tag.strip())


def _checked(values: np.ndarray, asked: np.ndarray, *, refuse_missing: bool) -> np.ndarray:
    """Return judgements (..., image, tag) that are in range, and there where they must be."""
    judged = ~np.isnan(values)
    if ((values < 0) | (values > 1)).any():
        low, high = np.nanmin(values), np.nanmax(values)
        fault = f"values from {low:g} to {high:g}; a judgement is bool or in [0, 1]"
        raise SchemaError("the judgements", [fault])
    absent = ~judged & asked
    if refuse_missing and absent.any():
        fault = (
            f"{int(absent.sum())} of {int(np.broadcast_to(asked, values.shape).sum())} are "
            "missing, and a missing judgement is no mismatch: have them judged, or type "
            "missing='report' to add up what was judged"
        )
        raise SchemaError("the judgements", [fault])
    return values


def _agreement(values: np.ndarray) -> np.ndarray:
    """Return agreement and alpha (..., 2) of judgements (..., annotator, image, tag)."""
    units = values.reshape(*values.shape[:-2], -1)
    found = np.empty((*units.shape[:-2], 2))
    for lead in np.ndindex(units.shape[:-2]):
        table = units[lead]
        table = table[:, (~np.isnan(table)).sum(axis=0) >= 2]
        found[lead] = (_mean_agreement(table), _alpha(table)) if table.size else (np.nan, np.nan)
    return found


def _mean_agreement(table: np.ndarray) -> float:
    """Return the mean of 1 - |a - b| over pairs of a table (annotator, unit) with NaN."""
    first, second = np.triu_indices(len(table), 1)
    return float(1 - np.nanmean(np.abs(table[first] - table[second])))


def _alpha(table: np.ndarray) -> float:
    """Return Krippendorff's alpha of a table (annotator, unit), two values a unit or more."""
    counts = (~np.isnan(table)).sum(axis=0)
    total = counts.sum()
    squares = np.nansum((table - np.nanmean(table, axis=0)) ** 2, axis=0)
    observed = (2 * counts * squares / (counts - 1)).sum() / total
    expected = 2 * np.nansum((table - np.nanmean(table)) ** 2) / (total - 1)
    return float(1 - observed / expected) if expected > 0 else float("nan")


def _similar(images: np.ndarray, text: np.ndarray, *, threshold: float) -> np.ndarray:
    """Return bool (..., image, tag) of (..., image, feature) and (image, tag, feature)."""
    found: np.ndarray = cosines(images[..., np.newaxis, :], text) >= threshold
    return found
