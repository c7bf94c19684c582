"""Whose responses are converted into whose, checked before anything is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

from nedx.decoding.samples import ANYBODY, Responses, each_subject
from nedx.errors import ModelError, close_matches
from nedx.schema import neuroid_dim, role_dim, sample_dim, subject_label

Pairs = Sequence[tuple[str | int, str | int]] | Literal["all"]


def named_pairs(
    source: Responses, target: Responses | None, pairs: Pairs | None
) -> tuple[dict[str, xr.Dataset], list[tuple[str, str]]]:
    """Return the responses of each subject, and which are converted into which.

    Parameters
    ----------
    source, target : Dataset or DataTree
        Two subjects; or several in `source`, and no target.
    pairs : list of (source, target), or "all", optional
        Which of several; ``"all"`` is every subject into every other.

    Raises
    ------
    ModelError
        If a subject is unknown, or what is given is not responses to named images.
    """
    if target is not None:
        if pairs is not None:
            raise ModelError("pairs= chooses among several subjects in one argument: leave one out")
        subjects = _two(source, target)
        first, second = subjects
        chosen = [(first, second)]
    else:
        subjects = dict(each_subject(source))
        chosen = _chosen(list(subjects), pairs)
    used = {name for pair in chosen for name in pair}
    kept = {name: checked(name, ds) for name, ds in subjects.items() if name in used}
    _check_times(kept)
    return kept, chosen


def checked(name: str, ds: xr.Dataset, *, paired: bool = True) -> xr.Dataset:
    """Return responses ``(sample[, repetition], neuroid[, time])`` in this order, if they are.

    Parameters
    ----------
    name : str
        Whose, for errors.
    ds : Dataset
    paired : bool
        Whether they are to be paired with others, by ``image_id``.

    Raises
    ------
    ModelError
        If there are none, or they have other dims, or no ``image_id`` to pair them by.
    """
    if "response" not in ds:
        raise ModelError(f"{name} has no 'response', only {list(map(str, ds.data_vars))}")
    array = ds["response"]
    neuroid = neuroid_dim(array)
    if neuroid is None:
        raise ModelError(f"the responses of {name} have no neuroids, only {list(array.dims)}")
    if array.dtype.kind != "f":
        raise ModelError(f"responses are floats, those of {name} are {array.dtype}")
    roles = [sample_dim(array), role_dim(array, "repetition"), neuroid, role_dim(array, "time")]
    order = [dim for dim in roles if dim is not None]
    foreign = [str(dim) for dim in array.dims if dim not in order]
    if foreign:
        raise ModelError(
            f"converters take no dimension {foreign[0]!r}, as {name} has it. Type: "
            f"ds.isel({foreign[0]}=0)"
        )
    if paired and "image_id" not in ds.coords:
        raise ModelError(
            f"the responses of {name} have no 'image_id' to pair them by. Type: "
            f"ds.assign_coords(image_id=('{order[0]}', names))"
        )
    return ds if list(array.dims) == order else ds.assign(response=array.transpose(*order))


def _two(source: Responses, target: Responses) -> dict[str, xr.Dataset]:
    found = [list(each_subject(given)) for given in (source, target)]
    for role, subjects in zip(("source", "target"), found, strict=True):
        if len(subjects) != 1:
            raise ModelError(
                f"the {role} holds {len(subjects)} subjects, expected one; select it, or give all "
                "in one argument with pairs=[(source, target), ...]"
            )
    (first, one), (second, other) = found[0][0], found[1][0]
    if first == second:
        # Both may be of one subject, as two sessions are.
        second = "target" if first == ANYBODY else f"{first}target"
    return {first: one, second: other}


def _chosen(there: list[str], pairs: Pairs | None) -> list[tuple[str, str]]:
    if pairs is None or isinstance(pairs, str):
        if pairs is None and len(there) > 2:
            raise ModelError(
                f"there are {len(there)} subjects ({', '.join(there)}): say which pairs, such as "
                "pairs=[('sub-01', 'sub-02')], or pairs='all'"
            )
        if pairs not in (None, "all"):
            raise ModelError(f"pairs is {pairs!r}; type a list of (source, target), or 'all'")
        every = [(a, b) for a in there for b in there if a != b]
        if len(there) < 2:
            names = ", ".join(there) or "none"
            raise ModelError(f"a converter needs two subjects, found {names}: .fit(source, target)")
        return every if pairs == "all" else every[:1]
    pairs = list(pairs) if isinstance(pairs, Iterable) else [pairs]
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        raise ModelError(
            f"pairs is {pairs!r}; type a list of (source, target), such as [('sub-01', 'sub-02')], "
            "or 'all'"
        )
    found = [(subject_label(a), subject_label(b)) for a, b in pairs]
    for name in dict.fromkeys(name for pair in found for name in pair):
        if name not in there:
            raise ModelError(f"unknown subject {name!r}: {close_matches(name, there)}")
    if not found or any(a == b for a, b in found):
        raise ModelError(f"pairs are of two different subjects each, not {pairs!r}")
    return list(dict.fromkeys(found))


def _check_times(subjects: Mapping[str, xr.Dataset]) -> None:
    times: dict[str, np.ndarray | None] = {name: times_of(ds) for name, ds in subjects.items()}
    (first, reference), *others = times.items()
    for name, mine in others:
        same = (mine is None) == (reference is None)
        if same and mine is not None and reference is not None:
            same = len(mine) == len(reference) and bool(np.allclose(mine, reference, atol=1e-6))
        if not same:
            raise ModelError(
                f"{name} has other times than {first}: select or resample both alike, such as "
                "ds.ned.sel(time=(0, 0.2))"
            )


def times_of(ds: xr.Dataset) -> np.ndarray | None:
    """Return the times of responses, float64 s; None where they have none."""
    dim = role_dim(ds["response"], "time")
    if dim is None:
        return None
    values: Any = ds[dim].values if dim in ds.coords else np.arange(ds.sizes[dim])
    return np.asarray(values, dtype=np.float64)
