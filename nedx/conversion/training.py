"""What converters are fitted to: samples of one image paired, each subject read once, z-scores."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import xarray as xr

from nedx.compute.batches import batches
from nedx.conversion.recipe import Space
from nedx.conversion.regions import Region
from nedx.conversion.subjects import times_of
from nedx.errors import ModelError
from nedx.metrics.repeats import labels_of
from nedx.preprocessing.steps import response_of
from nedx.schema import neuroid_dim, role_dim, sample_dim

# Responses are standardised in float64, so many rows at a time.
_ROWS = 4096


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
    names = labels_of(ds, "image_id")
    taken = np.ones(len(names), bool)
    if "partition" in ds.coords and ds["partition"].dims == (dim,):
        taken = labels_of(ds, "partition") != "test"
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


@dataclass(frozen=True, eq=False)
class Standardized:
    """z-scores of one subject's responses.

    Attributes
    ----------
    z : ndarray of float32, (row, neuroid)
        Mean 0 and, unless it was not asked for, standard deviation 1 (ddof=1) over rows.
    mean, deviation : ndarray of float32, (neuroid,)
        What responses are centred and divided by.
    """

    z: np.ndarray = field(repr=False)
    mean: np.ndarray = field(repr=False)
    deviation: np.ndarray = field(repr=False)


def read_rows(name: str, ds: xr.Dataset, rows: Rows, *, average: bool, space: Space) -> np.ndarray:
    """Read the samples that are fitted to.

    Parameters
    ----------
    name : str
        Whose, for errors.
    ds : Dataset
        ``response (sample[, repetition], neuroid[, time])``.
    rows : Rows
        Which.
    average : bool
        Whether the rows of an image are averaged.
    space : {"neuroid", "neuroid_time"}
        Whether times are further rows, or further columns.

    Returns
    -------
    ndarray of float32, (row, column)

    Raises
    ------
    ModelError
        If values are NaN or infinite.
    """
    array = response_of(ds).drop_vars(list(ds["response"].coords))
    repetition = role_dim(array, "repetition")
    count = 1 if repetition is None else array.sizes[repetition]
    samples, where = np.unique(rows.position // count, return_inverse=True)
    values = array.isel({array.dims[0]: samples}).values.astype(np.float32, copy=False)
    neuroid = array.dims.index(neuroid_dim(array))
    values = values.reshape(len(samples), count, *values.shape[neuroid:])
    values = values[where, rows.position % count]
    _refuse_missing(name, np.isfinite(values), rows, array)
    if average:
        starts = np.flatnonzero(rows.image[1:] != rows.image[:-1]) + 1
        starts = np.concatenate([[0], starts])
        sums = np.add.reduceat(values, starts, axis=0, dtype=np.float64)
        per = np.diff(starts, append=len(values)).reshape(-1, *(1,) * (values.ndim - 1))
        values = (sums / per).astype(np.float32)
    if values.ndim == 3 and space == "neuroid":
        values = np.moveaxis(values, 1, 2)
        return values.reshape(-1, values.shape[-1])
    return values.reshape(len(values), -1)


def _refuse_missing(name: str, there: np.ndarray, rows: Rows, array: xr.DataArray) -> None:
    """Refuse values that are not there, bool (row, neuroid[, time])."""
    good: np.ndarray = np.all(there.reshape(*there.shape[:2], -1), axis=2)
    if good.all():
        return
    never = np.flatnonzero(~good.any(0))
    if never.size:
        neuroid = neuroid_dim(array)
        others = [str(dim) for dim in array.dims if dim != neuroid]
        raise ModelError(
            f"{never.size} of {good.shape[1]} neuroids of {name} are NaN or infinite in all "
            f"samples, first those at {never[:5].tolist()}: leave them out, as by "
            f"ds.isel({neuroid}=ds.response.notnull().any({others}).values)"
        )
    bad: np.ndarray = np.any(~good, axis=1)
    images = list(dict.fromkeys(rows.image[bad].tolist()))
    raise ModelError(
        f"responses of {name} are NaN or infinite in {bad.sum()} of {len(bad)} samples, of the "
        f"images {', '.join(map(repr, images[:5]))}: leave these images out, or average over "
        "the repetitions that are there"
    )


def standardized(
    name: str, values: np.ndarray, array: xr.DataArray, *, scale: bool = True
) -> Standardized:
    """Standardise columns over rows, with ddof=1.

    Parameters
    ----------
    name : str
        Whose, for errors.
    values : ndarray of float32, (row, column)
    array : DataArray (sample[, repetition], neuroid[, time])
        What they were read from, for errors.
    scale : bool
        Whether to divide by the standard deviation; else only the mean is taken away.

    Raises
    ------
    ModelError
        If a column is constant.
    """
    parts = batches(len(values), _ROWS)
    mean = values.mean(0, dtype=np.float64)
    squares = np.zeros_like(mean)
    for part in parts:
        squares += ((values[part] - mean) ** 2).sum(0)
    deviation = np.sqrt(squares / max(1, len(values) - 1))
    constant = np.flatnonzero(~(deviation > 1e-7 * np.maximum(np.abs(mean), 1e-30)))
    if constant.size:
        raise ModelError(_constant(name, constant, len(mean), array))
    if not scale:
        deviation = np.ones_like(deviation)
    z = np.empty_like(values)
    for part in parts:
        z[part] = (values[part] - mean) / deviation
    return Standardized(z, mean.astype(np.float32), deviation.astype(np.float32))


def _constant(name: str, columns: np.ndarray, count: int, array: xr.DataArray) -> str:
    """Say which columns, of neuroids or of neuroids at each time, do not vary."""
    neuroid, start = str(neuroid_dim(array)), f"{columns.size} of {count}"
    others = [str(dim) for dim in array.dims if dim != neuroid]
    if count == array.sizes[neuroid]:
        return (
            f"{start} neuroids of {name} are constant over the training samples, first those at "
            f"{columns[:5].tolist()}: leave them out, as by "
            f"ds.isel({neuroid}=(ds.response.std({others}) > 0).values)"
        )
    shape = array.shape[-2:]
    places = [tuple(map(int, np.unravel_index(at, shape))) for at in columns[:5]]
    return (
        f"{start} pairs of {neuroid} and time of {name} are constant over the training samples, "
        f"first those at {places}: leave these {neuroid}s or times out"
    )


@dataclass(frozen=True, eq=False)
class Prepared:
    """One subject's part in a pair.

    Attributes
    ----------
    name : str
        Label of the subject.
    values : Standardized
        ``z (row, neuroid)``.
    image : ndarray of object, (row,)
        What was seen.
    key : hashable
        Equal where the values are.
    """

    name: str
    values: Standardized = field(repr=False)
    image: np.ndarray = field(repr=False)
    key: Hashable = field(repr=False)


@dataclass(frozen=True, eq=False)
class Work:
    """One pair to be fitted, and the parts of its map.

    Attributes
    ----------
    source, target : Prepared
        Their rows belong together one by one.
    parts : tuple of Region
    """

    source: Prepared
    target: Prepared
    parts: tuple[Region, ...] = ()


class Material:
    """The responses of several subjects, read and standardised once for the same rows.

    Parameters
    ----------
    subjects : mapping of str to Dataset
    space : {"neuroid", "neuroid_time"}
        Whether times are further rows, or further columns.
    scale : bool
        Whether to divide by the standard deviation.
    average : bool
        Whether to average repeats even where both have as many.
    """

    def __init__(
        self,
        subjects: Mapping[str, xr.Dataset],
        space: Space = "neuroid",
        *,
        scale: bool = True,
        average: bool = False,
    ):
        self.subjects, self.space = dict(subjects), space
        self.scale, self.average = scale, average
        self.rows = {name: rows_of(ds) for name, ds in subjects.items()}
        self._kept: dict[Hashable, Prepared] = {}

    def shared(self, names: Sequence[str]) -> tuple[dict[str, Rows], bool]:
        """Return which rows of some subjects belong together, as `shared_rows` does.

        Raises
        ------
        ModelError
            If they share no images.
        """
        return shared_rows({name: self.rows[name] for name in names})

    def together(self, names: Sequence[str]) -> dict[str, Prepared]:
        """Return some subjects, on the images that all of them saw.

        Raises
        ------
        ModelError
            If they share no images, values are not finite, or neuroids are constant.
        """
        shared, uneven = self.shared(names)
        return {name: self.alone(name, rows, average=uneven) for name, rows in shared.items()}

    def alone(self, name: str, rows: Rows, *, average: bool = False) -> Prepared:
        """Return one subject on some rows."""
        average = average or self.average
        key = (name, *rows.key, average)
        if key not in self._kept:
            ds = self.subjects[name]
            read = read_rows(name, ds, rows, average=average, space=self.space)
            image = np.unique(rows.image.astype(str)).astype(object) if average else rows.image
            times = times_of(ds)
            if times is not None and self.space == "neuroid":
                image = np.repeat(image, len(times))
            values = standardized(name, read, ds["response"], scale=self.scale)
            self._kept[key] = Prepared(name, values, image, key)
        return self._kept[key]


def check_loss(network: str, loss: float, learning_rate: float) -> None:
    """Stop what does not learn.

    Raises
    ------
    ModelError
        If the loss is NaN or infinite.
    """
    if not np.isfinite(loss):
        raise ModelError(
            f"the loss of the {network} is {loss}: type a smaller learning_rate than "
            f"{learning_rate:g}"
        )
