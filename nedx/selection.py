"""Which positions a person means by subjects, ROIs, channels and times."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import xarray as xr

from nedx import scalp
from nedx.errors import SelectionError, close_matches
from nedx.schema import neuroid_dim, role_dim, subject_label

Subjects: TypeAlias = str | int | Sequence[str | int]
Names: TypeAlias = str | Sequence[str]
Times: TypeAlias = slice | float | tuple[float | None, float | None]

CHANNEL_LETTERS = "OPTCF"
"""BERG's groups: every channel whose name contains the letter, so that the groups overlap."""

_PLURALS = {"voxel": "voxels", "vertex": "vertices"}

# Times are seconds: what differs by less than a nanosecond is the same sample.
_TIME_TOLERANCE = 1e-9


def listed_subjects(subject: Subjects) -> list[str]:
    """Return the labels of one subject or several, each once: ``1`` becomes ``"sub-01"``.

    Raises
    ------
    SelectionError
        If none is asked for.
    """
    return list(dict.fromkeys(subject_label(one) for one in _listed(subject)))


def chosen_subjects(
    subject: Subjects | None, there: Iterable[str], where: object = "here"
) -> list[str]:
    """Return the labels of the subjects that are asked for, or of all.

    Parameters
    ----------
    subject : str, int or sequence, optional
        As `nedx.schema.subject_label` understands them.
    there : iterable of str
        The labels that are there.
    where : object
        What holds them, for the error: ``"here"``, ``"in <folder>"``.

    Raises
    ------
    SelectionError
        If one is not there, or none is asked for.
    """
    there = list(there)
    if subject is None:
        return there
    labels = listed_subjects(subject)
    for label in labels:
        if label not in there:
            raise SelectionError(f"no subject {label!r} {where}: {close_matches(label, there)}")
    return labels


def resolve(
    coords: xr.Dataset,
    *,
    subject: Subjects | None = None,
    roi: Names | None = None,
    channel: Names | None = None,
    time: Times | None = None,
) -> dict[str, np.ndarray | slice]:
    """Find the positions that a selection means.

    Parameters
    ----------
    coords : Dataset
        Holds the labels: ``subject``, ``roi`` and ``roi_mask ([subject,] roi, <neuroid>)``,
        ``channel``, ``time``. They are read, nothing else is.
    subject : str, int or sequence, optional
        Subjects in the order wanted, as `nedx.schema.subject_label` understands them.
    roi : str or sequence of str, optional
        ROIs; all neuroids that belong to any of them in any of the requested subjects.
    channel : str or sequence of str, optional
        Channels or channel groups, in the order wanted.
    time : slice, (start, stop) or float, optional
        A window in seconds, both ends included, or the sample nearest to a time.

    Returns
    -------
    dict of str to ndarray of int64 or slice
        Positions along the subject, neuroid and time dimensions; only what was asked for.
        One subject or one time is still an axis, of length one.

    Raises
    ------
    SelectionError
        If something asked for is not there; names the close matches.
    """
    if roi is not None and channel is not None:
        raise SelectionError("give roi= or channel=, not both: each selects along one axis")
    found: dict[str, np.ndarray | slice] = {}
    if subject is not None:
        positions = _subjects(coords, subject)
        if positions is not None:
            found[str(role_dim(coords, "subject"))] = positions
    if roi is not None:
        found[_neuroid(coords, "roi")] = _rois(coords, roi, found)
    if channel is not None:
        found[_neuroid(coords, "channel")] = _channels(coords, channel)
    if time is not None:
        found[_time_dim(coords)] = _times(coords, time)
    return found


def select(
    ds: xr.Dataset,
    *,
    subject: Subjects | None = None,
    roi: Names | None = None,
    channel: Names | None = None,
    time: Times | None = None,
) -> xr.Dataset:
    """Select subjects, ROIs, channels and times, lazily.

    Takes what `resolve` takes. The ``roi`` dimension, where there is one, is narrowed to the
    requested ROIs.

    Returns
    -------
    Dataset
        No axis is dropped.

    Raises
    ------
    SelectionError
        If something asked for is not there.
    """
    positions = resolve(ds, subject=subject, roi=roi, channel=channel, time=time)
    return ds.isel(_with_roi(ds, positions, roi))


def select_tree(
    tree: xr.DataTree,
    *,
    subject: Subjects | None = None,
    roi: Names | None = None,
    channel: Names | None = None,
    time: Times | None = None,
) -> xr.DataTree:
    """Select in a DataTree whose children are subjects with neuroids of their own.

    Takes what `resolve` takes; ``subject`` chooses children, the rest is applied to each.

    Returns
    -------
    DataTree
        The root and the chosen subjects, in the order asked for.

    Raises
    ------
    SelectionError
        If something asked for is not there.
    """
    children = {subject_label(name): child for name, child in tree.children.items()}
    wanted = list(children)
    if subject is not None:
        wanted = listed_subjects(subject)
        missing = [label for label in wanted if label not in children]
        if missing:
            raise _unknown("subject", missing, children)
    chosen: dict[str, xr.Dataset | xr.DataTree] = {"/": tree.to_dataset(inherit=False)}
    for label in wanted:
        child = children[label]
        there = child.to_dataset(inherit=True)
        positions = _with_roi(there, resolve(there, roi=roi, channel=channel, time=time), roi)
        chosen[str(child.name)] = child.isel(positions)
    return xr.DataTree.from_dict(chosen, name=tree.name)


def map_nodes(tree: xr.DataTree, function: Callable[[xr.Dataset], xr.Dataset]) -> xr.DataTree:
    """Apply a function to every child that is a subject's; the root is kept as it is."""
    mapped = {"/": tree.to_dataset(inherit=False)}
    for name, child in tree.children.items():
        mapped[name] = function(child.to_dataset(inherit=True))
    return xr.DataTree.from_dict(mapped, name=tree.name)


def roi_mean(ds: xr.Dataset, name: Names) -> xr.Dataset:
    """Average the responses over each subject's own neuroids of a ROI, lazily.

    On a shared grid ``roi_mask (subject, roi, <neuroid>)`` says whose a neuroid is. The ROI is
    selected before it is averaged, so that predictions are computed for it alone. The noise
    ceiling of a mean is not the mean of the noise ceilings: variables that describe single
    neuroids are dropped.

    Parameters
    ----------
    ds : Dataset
        Responses ``([subject,] image | trial, <neuroid>[, time])`` with ``roi_mask``.
    name : str or sequence of str
        One ROI, which becomes a scalar coordinate ``roi``, or several, which become a dimension
        in the place of the neuroid's.

    Returns
    -------
    Dataset
        float32 responses without the neuroid dimension; NaN for a subject that has no neuroid in
        the ROI while others have.

    Raises
    ------
    SelectionError
        If the ROI is unknown, or no subject has a neuroid in it.
    """
    dim = _neuroid(ds, "roi")
    chosen = select(ds, roi=name)
    mask = chosen["roi_mask"].variable.copy().load()
    absent = chosen["roi"].values[~mask.any([d for d in mask.dims if d != "roi"]).values]
    if absent.size:
        raise SelectionError(f"no {dim} of these subjects belongs to {str(absent[0])!r}")
    means = {
        key: _mean_of_members(array, mask, dim)
        for key, array in chosen.data_vars.items()
        if dim in array.dims and (role_dim(array, "stimulus") or role_dim(array, "trial"))
    }
    averaged = chosen.drop_dims(dim).assign(means)
    return averaged.isel(roi=0) if isinstance(name, str) else averaged


def _mean_of_members(array: xr.DataArray, mask: xr.Variable, dim: str) -> xr.Variable:
    """Average ``array (..., dim, ...)`` over ``mask ([subject,] roi, dim)``; dim becomes roi."""
    # Zero, not a weight of zero: what is not finite outside the ROIs must not reach the mean.
    held = array.variable.astype(np.float32).where(mask.any("roi"), 0)
    means = []
    for roi in range(mask.sizes["roi"]):
        own = mask.isel(roi=roi)
        columns = np.flatnonzero(own.any([d for d in own.dims if d != dim]).values)
        own = own.isel({dim: columns})
        # Division by NaN marks the subjects that have none of it.
        counts = own.sum(dim).astype(np.float32)
        counts = counts.where(counts > 0)
        means.append(held.isel({dim: columns}).where(own, 0).sum(dim, skipna=False) / counts)
    joined = xr.Variable.concat(means, dim="roi")
    joined = joined.transpose(*("roi" if d == dim else d for d in array.dims))
    label = f"mean {array.attrs.get('long_name', array.name)}"
    joined.attrs = {**array.attrs, "long_name": label, "cell_methods": f"{dim}: mean"}
    return joined


def _with_roi(
    coords: xr.Dataset, positions: dict[str, np.ndarray | slice], roi: Names | None
) -> dict[str, np.ndarray | slice]:
    """Narrow the roi dimension, too, to the requested ROIs."""
    if roi is None or "roi" not in coords.dims:
        return positions
    return {**positions, "roi": _positions(coords["roi"].values, _listed(roi), "ROI")}


def _listed(names: Any) -> list[Any]:
    """Return one name or several as a list without repeats, in the order given."""
    if isinstance(names, str) or not isinstance(names, Iterable):
        return [names]
    listed = list(dict.fromkeys(names))
    if not listed:
        raise SelectionError("the selection is empty: name at least one, or leave it out for all")
    return listed


def _positions(labels: np.ndarray, names: Sequence[object], what: str) -> np.ndarray:
    """Return the position of each name among the labels, int64, in the order of the names."""
    where = {str(label): position for position, label in enumerate(labels)}
    missing = [name for name in names if str(name) not in where]
    if missing:
        raise _unknown(what, missing, where)
    return np.array([where[str(name)] for name in names], dtype=np.int64)


def _unknown(what: str, missing: Sequence[object], options: Iterable[object]) -> SelectionError:
    options = list(options)
    named = ", ".join(repr(name) for name in missing)
    return SelectionError(f"unknown {what} {named}: {close_matches(missing[0], options)}")


def _subjects(coords: xr.Dataset, subject: Subjects) -> np.ndarray | None:
    """Return positions along the subject dimension; None where there is only one subject."""
    wanted = listed_subjects(subject)
    dim = role_dim(coords, "subject")
    if dim is not None:
        if dim not in coords.coords:
            raise SelectionError(f"the dimension {dim!r} has no labels to select subjects by")
        there = [subject_label(str(label)) for label in coords[dim].values]
        return _positions(np.array(there, dtype=object), wanted, "subject")
    if "subject" in coords.coords and coords["subject"].ndim == 0:
        there = [subject_label(str(coords["subject"].item()))]
    else:
        ids = coords.attrs.get("subject_ids")
        if not ids:
            raise SelectionError("nothing here says whose data these are; leave subject= out")
        there = [subject_label(s) for s in _listed(ids)]
    missing = [label for label in wanted if label not in there]
    if missing:
        raise _unknown("subject", missing, there)
    return None


def _neuroid(coords: xr.Dataset, argument: str) -> str:
    dim = neuroid_dim(coords)
    if dim is None:
        raise SelectionError(f"{argument}= selects neuroids, and there are none here")
    return dim


def _rois(coords: xr.Dataset, roi: Names, found: dict[str, np.ndarray | slice]) -> np.ndarray:
    """Return the neuroids that any of the ROIs holds in any of the subjects, ascending."""
    if "roi_mask" not in coords or "roi" not in coords.coords:
        raise SelectionError(
            "this Dataset has no 'roi_mask' to select ROIs by; leave roi= out, or open it anew "
            "with roi="
        )
    rows = _positions(coords["roi"].values, _listed(roi), "ROI")
    mask = coords["roi_mask"].isel(roi=rows)
    subject = role_dim(mask, "subject")
    if subject is not None and subject in found:
        mask = mask.isel({subject: found[subject]})
    neuroid = _neuroid(coords, "roi")
    union = mask.any([dim for dim in mask.dims if dim != neuroid])
    positions = np.flatnonzero(union.values)
    if not positions.size:
        raise SelectionError(f"no {neuroid} of the requested subjects belongs to {roi!r}")
    return positions.astype(np.int64)


def _channels(coords: xr.Dataset, channel: Names) -> np.ndarray:
    """Return the positions of channels and channel groups, in the order asked for."""
    dim = _neuroid(coords, "channel")
    if dim in _PLURALS:
        raise SelectionError(
            f"channel={channel!r} asks for recording channels, and these are {_PLURALS[dim]}; type "
            f"roi='V1', or ds.isel({dim}=...)"
        )
    if dim not in coords.coords:
        raise SelectionError(f"the dimension {dim!r} has no labels to select channels by")
    labels = [str(label) for label in coords[dim].values]
    groups = _channel_groups(coords, dim, labels)
    where = {label: position for position, label in enumerate(labels)}
    wanted = [str(name) for name in _listed(channel)]
    missing = [name for name in wanted if name not in where and name not in groups]
    if missing:
        raise _unknown("channel", missing, [*labels, *groups])
    # A channel's own name goes before a group of the same name.
    chosen = [[where[name]] if name in where else groups[name] for name in wanted]
    return np.array(list(dict.fromkeys(p for some in chosen for p in some)), dtype=np.int64)


def _channel_groups(coords: xr.Dataset, dim: str, labels: list[str]) -> dict[str, list[int]]:
    """Return the positions of each named group of channels."""
    groups = {
        name: [labels.index(member) for member in members if member in labels]
        for name, members in scalp.GROUPS.items()
    }
    for letter in CHANNEL_LETTERS:
        groups[letter] = [p for p, label in enumerate(labels) if letter in label]
    for name in ("region", "channel_group"):
        if name in coords.coords and coords[name].dims == (dim,):
            values = coords[name].values
            for group in dict.fromkeys(str(value) for value in values if str(value)):
                groups[group] = [p for p, value in enumerate(values) if str(value) == group]
    return {name: positions for name, positions in groups.items() if positions}


def _time_dim(coords: xr.Dataset) -> str:
    dim = role_dim(coords, "time")
    if dim is None or dim not in coords.coords:
        raise SelectionError("time= selects along a time axis, and there is none here")
    return dim


def _times(coords: xr.Dataset, time: Times) -> np.ndarray | slice:
    """Return the samples of a window, or the one nearest to a time."""
    times = coords[_time_dim(coords)].values.astype(np.float64)
    span = f"the samples run from {times.min():g} to {times.max():g} s" if times.size else "empty"
    if isinstance(time, slice):
        if time.step is not None:
            raise SelectionError("a time window is slice(start, stop) in seconds, without a step")
        start, stop = time.start, time.stop
    elif isinstance(time, tuple | list):
        if len(time) != 2:
            raise SelectionError(f"a time window is (start, stop) in seconds, not {time!r}")
        start, stop = time
    else:
        return _nearest(times, float(time), span)
    low = -np.inf if start is None else float(start) - _TIME_TOLERANCE
    high = np.inf if stop is None else float(stop) + _TIME_TOLERANCE
    inside = np.flatnonzero((times >= low) & (times <= high))
    if not inside.size:
        raise SelectionError(f"no sample lies in the time window {start} to {stop} s: {span}")
    return slice(int(inside[0]), int(inside[-1]) + 1)


def _nearest(times: np.ndarray, wanted: float, span: str) -> np.ndarray:
    half = np.abs(np.diff(times)).max() / 2 if times.size > 1 else np.inf
    distance = np.abs(times - wanted)
    if not times.size or distance.min() > half + _TIME_TOLERANCE:
        raise SelectionError(f"no sample is near {wanted:g} s: {span}")
    return np.array([int(distance.argmin())], dtype=np.int64)
