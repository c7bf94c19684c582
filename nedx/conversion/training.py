"""What converters are fitted to: responses of pairs of subjects, each read once."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import xarray as xr

from nedx.conversion.pairing import Rows, rows_of, shared_rows
from nedx.conversion.recipe import Space
from nedx.conversion.regions import Region
from nedx.conversion.samples import Standardized, read_rows, standardized
from nedx.conversion.subjects import times_of


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

    def together(self, names: Sequence[str]) -> dict[str, Prepared]:
        """Return some subjects, on the images that all of them saw.

        Raises
        ------
        ModelError
            If they share no images, values are not finite, or neuroids are constant.
        """
        shared, uneven = shared_rows({name: self.rows[name] for name in names})
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
            values = standardized(name, read, scale=self.scale)
            self._kept[key] = Prepared(name, values, image, key)
        return self._kept[key]
