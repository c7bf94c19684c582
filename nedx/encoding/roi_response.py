"""roi_response: the mean of each ROI, of all subjects, in one pass over the responses."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from nedx.errors import SelectionError, close_matches
from nedx.schema import neuroid_dim, restore_index, role_dim, sample_dim, subject_label
from nedx.selection import Names, select

_MAIN = ("response", "response_predicted")
_OF_NEUROIDS = ("encoding_accuracy", "noise_ceiling")


def roi_response(ds: xr.Dataset | xr.DataTree, roi: Names | None = None) -> xr.Dataset:
    """Average responses over each subject's own neuroids of every ROI, lazily.

    A store of these means is thousands of times smaller than the responses, and answers what is
    asked of a whole set of images. Each block of responses is read once for all ROIs: it is
    multiplied with the memberships of its neuroids.

    Parameters
    ----------
    ds : Dataset or DataTree
        ``response ([subject,] image | trial, <neuroid>)`` (or ``response_predicted``), whose
        other dimensions are kept, with ``roi_mask ([subject,] roi, <neuroid>)``; or a DataTree
        with a child of this kind for each subject, all of the same images.
    roi : str or sequence of str, optional
        Only these, in this order; responses of other neuroids are not read.

    Returns
    -------
    Dataset
        ``roi_response (image | trial, subject, roi, ...)`` float32 in the units of the
        response, NaN for a ROI that a subject does not have; ``n_neuroids (subject, roi)``
        int32, over how many neuroids each is the mean; and, where they are known of neuroids,
        ``mean_encoding_accuracy`` and ``mean_noise_ceiling (subject, roi)``: means over the
        neuroids of the ROI (NaN left out), not what holds of the mean response. Labels of
        images, subjects and ROIs, and attributes, are kept. Of a tree, subjects that have none
        of the ROIs asked for are left out.

    Raises
    ------
    SelectionError
        If there is no response, no ``roi_mask``, or no such ROI; if it is not said whose
        responses they are, or the children of a tree do not share their images.
    """
    if isinstance(ds, xr.Dataset):
        return _averaged(ds, roi)
    children = {
        subject_label(name): child.to_dataset(inherit=True)
        for name, child in ds.children.items()
        if set(_MAIN) & set(child.data_vars)
    }
    wanted = _rois_of(children, roi)
    parts = []
    for label, child in children.items():
        own = [name for name in wanted if name in child["roi"].values]
        if own:
            named = child if "subject" in child.dims else child.assign_coords(subject=_text(label))
            parts.append(_averaged(named, own))
    return _side_by_side(parts, wanted).assign_attrs(ds.attrs)


def _averaged(ds: xr.Dataset, roi: Names | None) -> xr.Dataset:
    """Return the means of one Dataset."""
    name = next((name for name in _MAIN if name in ds.data_vars), None)
    dim = neuroid_dim(ds)
    if name is None or dim is None:
        found = ", ".join(map(str, ds.data_vars)) or "nothing"
        raise SelectionError(
            f"there are no responses of neuroids here, found: {found}. "
            "Type: images.ned.encode(model).ned.roi_response()"
        )
    if roi is None:
        roi = [str(label) for label in ds["roi"].values] if "roi" in ds.coords else []
    kept = {name, "roi_mask", *_OF_NEUROIDS}
    ds = ds.drop_vars([other for other in ds.data_vars if other not in kept])
    # Responses are selected first, so that those outside the ROIs are neither read nor computed.
    chosen = select(ds, roi=[roi] if isinstance(roi, str) else roi)
    response = chosen[name]
    subject = role_dim(response, "subject")
    label = None if subject else _one_subject(ds)
    subject = subject or "subject"
    mask = chosen["roi_mask"].variable.copy().load()
    size = response.sizes.get(subject, 1)
    mask = _over(mask, subject, size).transpose(subject, "roi", dim)
    means = {
        "roi_response": _means(response, mask, subject, dim),
        "n_neuroids": _counts(mask, dim),
        **{
            f"mean_{key}": _label_means(chosen[key], mask, subject, dim)
            for key in _OF_NEUROIDS
            if key in chosen and dim in chosen[key].dims
        },
    }
    labels = chosen.drop_dims(dim)
    labels = labels.drop_vars(list(labels.data_vars))
    if label is not None:
        labels = labels.drop_vars("subject", errors="ignore")
        labels = labels.assign_coords(subject=(subject, np.array([label], dtype=object)))
    return restore_index(labels.assign(means))


def _means(response: xr.DataArray, mask: xr.Variable, subject: str, dim: str) -> xr.Variable:
    """Return the lazy means of ``response`` over ``mask (subject, roi, dim)``."""
    sample = sample_dim(response)
    rest = [str(d) for d in response.dims if d not in (subject, sample, dim)]
    held = response.variable if response.chunks else response.variable.chunk("auto")
    held = _over(held, subject, mask.sizes[subject]).transpose(subject, sample, *rest, dim)
    values: Any = held.data
    members = da.from_array(mask.values, chunks=(values.chunks[0], -1, values.chunks[-1]))
    axes = tuple(range(values.ndim))
    neuroid, region = axes[-1], len(axes)
    sums = da.blockwise(
        _sums,
        (*axes[:-1], region, neuroid),
        values,
        axes,
        members,
        (0, region, neuroid),
        dtype=np.float32,
        adjust_chunks={neuroid: 1},
        meta=np.empty((0,) * (values.ndim + 1), np.float32),
    ).sum(axis=-1)
    counts = mask.values.sum(axis=-1).astype(np.float32)
    # Division by NaN marks the ROIs that a subject does not have.
    counts[counts == 0] = np.nan
    shape = (len(counts), *(1,) * (values.ndim - 2), counts.shape[1])
    means = xr.Variable((subject, sample, *rest, "roi"), sums / counts.reshape(shape))
    label = f"mean {response.attrs.get('long_name', 'response')} of a ROI"
    means.attrs = {**response.attrs, "long_name": label, "cell_methods": f"{dim}: mean"}
    return means.transpose(sample, subject, "roi", *rest)


def _sums(block: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Sum responses over members of ROIs.

    Parameters
    ----------
    block : ndarray (subject, sample, ..., neuroid)
        Responses.
    members : ndarray of bool (subject, roi, neuroid)
        Which neuroids are whose, of each ROI.

    Returns
    -------
    ndarray of float32 (subject, sample, ..., roi, 1)
    """
    flat = block.astype(np.float32, copy=False).reshape(len(block), -1, block.shape[-1])
    weights = members.transpose(0, 2, 1).astype(np.float32)
    finite = np.isfinite(flat)
    if finite.all():
        sums = flat @ weights
    else:
        # Zero times NaN is NaN: what is not finite may only reach the ROIs it belongs to.
        sums = np.where(finite, flat, 0) @ weights
        sums[(~finite).astype(np.float32) @ weights > 0] = np.nan
    return sums.reshape(*block.shape[:-1], members.shape[1], 1)


def _counts(mask: xr.Variable, dim: str) -> xr.Variable:
    counts = mask.sum(dim).astype(np.int32)
    counts.attrs = {"units": "1", "long_name": "neuroids of the ROI"}
    return counts


def _label_means(array: xr.DataArray, mask: xr.Variable, subject: str, dim: str) -> xr.Variable:
    """Average what describes neuroids, NaN left out."""
    values = xr.DataArray(_over(array.variable, subject, mask.sizes[subject]))
    members = xr.DataArray(mask.astype(np.float32))
    known = values.notnull()
    total = xr.dot(values.fillna(0).astype(np.float32), members, dim=dim)
    count = xr.dot(known.astype(np.float32), members, dim=dim)
    means = (total / count.where(count > 0)).transpose(subject, "roi", ...)
    label = f"mean {array.attrs.get('long_name', array.name)} of the neuroids of the ROI"
    return means.variable._replace(
        attrs={**array.attrs, "long_name": label, "cell_methods": f"{dim}: mean"}
    )


def _over(variable: xr.Variable, subject: str, size: int) -> xr.Variable:
    """Give a variable the subject axis, where it has none."""
    if subject in variable.dims:
        return variable
    return variable.set_dims({subject: size, **variable.sizes})


def _one_subject(ds: xr.Dataset) -> str:
    """Return whose responses these are."""
    if "subject" in ds.coords and ds["subject"].size == 1:
        return subject_label(str(ds["subject"].values.reshape(-1)[0]))
    ids = np.atleast_1d(ds.attrs.get("subject_ids", []))
    if len(ids) == 1:
        return subject_label(str(ids[0]))
    raise SelectionError(
        "it is not said whose responses these are; type ds.assign_coords(subject='sub-01')"
    )


def _rois_of(children: dict[str, xr.Dataset], roi: Names | None) -> list[str]:
    """Return the ROIs wanted of a tree, each of which some child has."""
    if not children:
        raise SelectionError("no child of this DataTree holds a 'response'")
    for label, child in children.items():
        if "roi" not in child.coords:
            raise SelectionError(f"{label} has no 'roi_mask' that says which voxels are in a ROI")
    there = list(dict.fromkeys(str(r) for c in children.values() for r in c["roi"].values))
    if roi is None:
        return there
    wanted = [roi] if isinstance(roi, str) else [str(name) for name in roi]
    for name in wanted:
        if name not in there:
            raise SelectionError(f"unknown ROI {name!r}: {close_matches(name, there)}")
    return wanted


def _side_by_side(parts: list[xr.Dataset], wanted: list[str]) -> xr.Dataset:
    """Join the means of subjects; what one of them does not have is NaN, of 0 neuroids."""
    first = parts[0]
    for part in parts[1:]:
        named = "image_id" in first.coords and "image_id" in part.coords
        if not named or not np.array_equal(first["image_id"].values, part["image_id"].values):
            labels = f"{first['subject'].values[0]} and {part['subject'].values[0]}"
            raise SelectionError(
                f"{labels} have not the same images in the same order: select those that they "
                "share of each child first"
            )
    common = set.intersection(*(set(part.variables) for part in parts))
    about = [name for name in first.coords if "roi" in first[name].dims and name != "roi"]
    dropped = [
        [name for name in part.variables if name not in common or name in about] for part in parts
    ]
    joined = xr.concat(
        [_with_all(part.drop_vars(d), wanted) for part, d in zip(parts, dropped, strict=True)],
        dim="subject",
        data_vars="all",
        coords="different",
        compat="equals",
        join="override",
        combine_attrs="drop_conflicts",
    )
    for name in about:
        known = {
            roi: value
            for part in parts
            if name in part.coords and part[name].dims == ("roi",)
            for roi, value in zip(part["roi"].values, part[name].values, strict=True)
        }
        if set(known) >= set(wanted):
            values = np.array([known[roi] for roi in wanted], dtype=first[name].dtype)
            joined = joined.assign_coords({name: ("roi", values, first[name].attrs)})
    return joined.transpose(*first["roi_response"].dims, ...)


def _with_all(part: xr.Dataset, wanted: list[str]) -> xr.Dataset:
    """Give every subject all ROIs."""
    fill: dict[Any, Any] = {**dict.fromkeys(part.data_vars, np.float32(np.nan)), "n_neuroids": 0}
    return part.reindex(roi=np.array(wanted, dtype=object), fill_value=fill)


def _text(label: str) -> xr.Variable:
    """Return one label; numpy would give it a fixed width."""
    return xr.Variable((), np.array(label, dtype=object))
