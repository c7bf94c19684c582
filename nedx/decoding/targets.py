"""Targets of decoding: the features of the images that are trained on, and what they are."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import xarray as xr

from nedx.errors import ModelError, close_matches
from nedx.metrics.repeats import labels_of


@dataclass(frozen=True, eq=False)
class Targets:
    """Features of images.

    Attributes
    ----------
    values : ndarray of float32, (row, feature)
        Of unit norm.
    rows : dict of str to int
        The row of each image by ``image_id``.
    name : str or None
        What they are: network, layers and image preprocessing.
    """

    values: np.ndarray
    rows: dict[str, int]
    name: str | None


def read_targets(given: xr.Dataset, wanted: Iterable[str], what: str = "targets") -> Targets:
    """Read the features of the images that are wanted, and bring them to unit norm.

    Parameters
    ----------
    given : Dataset
        ``features (image, feature)`` with ``image_id``.
    wanted : iterable of str
        Images.
    what : str
        What to call them in errors.

    Returns
    -------
    Targets

    Raises
    ------
    ModelError
        If images are missing or named twice, or features are NaN, infinite or all zero.
    """
    if not isinstance(given, xr.Dataset) or "features" not in given:
        there = list(map(str, given.data_vars)) if isinstance(given, xr.Dataset) else given
        raise ModelError(
            f"{what} are a Dataset with 'features (image, feature)' and 'image_id', found {there}. "
            "Type: nedx.encode_features(images, 'clip_vit_b_32')"
        )
    if set(given["features"].dims) != {"image", "feature"} or "image_id" not in given.coords:
        raise ModelError(
            f"the features of {what} need dims (image, feature) and a coordinate 'image_id', found "
            f"{list(map(str, given['features'].dims))} and {list(map(str, given.coords))}"
        )
    ids = labels_of(given, "image_id")
    places = {name: i for i, name in enumerate(ids)}
    if len(places) < len(ids):
        each, counts = np.unique(ids, return_counts=True)
        raise ModelError(
            f"several {what} are called {str(each[counts > 1][0])!r}: ids must be unique"
        )
    names = list(dict.fromkeys(wanted))
    missing = [name for name in names if name not in places]
    if missing:
        raise ModelError(
            f"{len(missing)} of {len(names)} images have no {what}, first {missing[0]!r}; "
            f"{close_matches(missing[0], places)}"
        )
    array = given["features"].transpose("image", "feature")
    order = np.sort([places[name] for name in names])
    values = array.isel(image=order).values.astype(np.float32)
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    bad = ~(np.isfinite(norms[:, 0]) & (norms[:, 0] > 0))
    if bad.any():
        raise ModelError(
            f"the features of {int(bad.sum())} {what} are NaN, infinite or all zero, first those "
            f"of {str(ids[order[bad][0]])!r}"
        )
    rows = {str(ids[place]): row for row, place in enumerate(order)}
    return Targets(values / norms, rows, target_name(given))


def target_name(given: xr.Dataset) -> str | None:
    """Return what features are, by their attributes: network, layers, preprocessing of images."""
    attrs = given["features"].attrs
    if "backbone" in attrs:
        made = json.loads(attrs["backbone"])
        return f"{made['name']}/{'+'.join(made['layers'])}/{made['policy']}"
    if attrs.get("model"):
        return str(attrs["model"])
    name = attrs.get("long_name") or given.attrs.get("title")
    # A name such as "target of decoding" says little without the data that it is of.
    origin = given.attrs.get("id") or given.attrs.get("dataset")
    return f"{name} ({origin})" if name and origin else str(name) if name else None
