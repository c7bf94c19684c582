"""Means and deviations beside published weights, which inputs and outputs are standardised by."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from nedx.errors import SourceError
from nedx.sources.bdata.matlab_arrays import read_stored
from nedx.store.location import Location

NORMS = ("x_mean", "x_norm", "y_mean", "y_norm")
"""Files of the norms, each with an array of its own name."""


def missing_norms(names: Collection[str]) -> list[str]:
    """Return the files of norms that are not among the names of a folder."""
    return [f"{name}.mat" for name in NORMS if f"{name}.mat" not in names]


def read_norms(root: Location) -> dict[str, np.ndarray]:
    """Read the norms of a decoder or a converter, which must be there.

    Returns
    -------
    dict of str to ndarray
        ``x_mean`` and ``x_norm (input,)``, ``y_mean`` and ``y_norm (output,)`` in C order, of the
        dtypes of the files.

    Raises
    ------
    SourceError
        If a mean and its deviation are not of as many values.
    """
    norms = {name: np.ravel(read_stored(root, f"{name}.mat", name)) for name in NORMS}
    for mean, deviation in (NORMS[:2], NORMS[2:]):
        sizes = len(norms[mean]), len(norms[deviation])
        if sizes[0] != sizes[1]:
            raise SourceError(
                f"{root.url} has {sizes[0]:,} values in {mean}, {sizes[1]:,} in {deviation}: these "
                "files are not of one fit"
            )
    return norms
