"""Which samples of two subjects belong together: those of one image, in the order recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import xarray as xr

from nedx.errors import ModelError
from nedx.schema import role_dim, sample_dim


@dataclass(frozen=True, eq=False)
class Rows:
    """The samples of one subject, sorted by image and, within one, as they were recorded.

    Attributes
    ----------
    position : ndarray of int64, (row,)
        Which of the samples of the response; of images and repetitions in C order.
    image : ndarray of object, (row,)
        The ``image_id`` of each.
    """

    position: np.ndarray = field(repr=False)
    image: np.ndarray = field(repr=False)

    def of(self, images: np.ndarray) -> Rows:
        """Return the rows of some images."""
        kept = np.isin(self.image.astype(str), images)
        return Rows(self.position[kept], self.image[kept])

    @property
    def counts(self) -> np.ndarray:
        """How many rows each image has, int64 (image,)."""
        return np.unique(self.image.astype(str), return_counts=True)[1]

    @property
    def key(self) -> tuple[bytes, ...]:
        """What tells these rows from others of the same subject."""
        return (self.position.tobytes(),)


def rows_of(ds: xr.Dataset) -> Rows:
    """Return the samples that may be fitted to: all but those of the ``partition`` "test".

    Parameters
    ----------
    ds : Dataset
        ``response (image | trial[, repetition], ...)`` with ``image_id``.
    """
    dim = sample_dim(ds["response"])
    names = ds["image_id"].values.astype(str)
    taken = np.ones(len(names), bool)
    if "partition" in ds.coords and ds["partition"].dims == (dim,):
        taken = ds["partition"].values.astype(str) != "test"
    repetition = role_dim(ds["response"], "repetition")
    count = 1 if repetition is None else ds.sizes[repetition]
    recorded = np.zeros(len(names), np.int64)
    if "repetition" in ds.coords and ds["repetition"].dims == (dim,):
        recorded = ds["repetition"].values.astype(np.int64)
    order = np.lexsort((recorded, names))
    order = order[taken[order]]
    position = (order[:, None] * count + np.arange(count)).ravel()
    return Rows(position, np.repeat(names[order].astype(object), count))


def shared_rows(subjects: dict[str, Rows]) -> tuple[dict[str, Rows], bool]:
    """Return the rows of the images that all subjects saw, and whether to average repeats.

    Rows of two subjects belong together one by one; where an image has more repeats in one
    subject than in another, repeats are averaged in all.

    Raises
    ------
    ModelError
        If they share fewer than two images.
    """
    sets = [set(rows.image.astype(str)) for rows in subjects.values()]
    shared = np.array(sorted(set.intersection(*sets)), dtype=str)
    if len(shared) < 2:
        raise ModelError(_nothing_shared(subjects, len(shared)))
    found = {name: rows.of(shared) for name, rows in subjects.items()}
    counts = [rows.counts for rows in found.values()]
    return found, any(not np.array_equal(counts[0], each) for each in counts[1:])


def _nothing_shared(subjects: dict[str, Rows], count: int) -> str:
    examples = "; ".join(
        f"{name} saw {_some(list(dict.fromkeys(rows.image)))}" for name, rows in subjects.items()
    )
    return (
        f"{' and '.join(subjects)} share {count or 'no'} training image{'s' * (count != 1)}, and "
        f"responses are paired by 'image_id' ({examples}). Where subjects saw other images, "
        "ContentLossConverter(decoder) needs none that they share"
    )


def _some(names: Sequence[object]) -> str:
    shown = ", ".join(repr(str(name)) for name in names[:2])
    return f"{len(names)} images, such as {shown}" if names else "no training images"
