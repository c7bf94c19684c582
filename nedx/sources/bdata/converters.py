"""Neural code converters as they are published: a matrix from one subject's voxels to another's.

A folder holds ``transformation.mat`` (or ``NCconverter.mat``) with ``M``, and ``x_mean``,
``x_norm``, ``y_mean`` and ``y_norm`` in files of their own. Of linear converters the last row of M
is a bias; Procrustes and hyperalignment have none.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

from nedx.errors import SourceError
from nedx.sources.bdata.features import listed
from nedx.sources.bdata.matlab_arrays import open_array
from nedx.sources.bdata.norms import missing_norms, read_norms
from nedx.store.location import Location

MATRICES = ("transformation.mat", "NCconverter.mat")
"""Files that hold M, the first that is there counts."""

_NORMS = {
    "x_mean": ("source_mean", "source_voxel"),
    "x_norm": ("source_deviation", "source_voxel"),
    "y_mean": ("target_mean", "voxel"),
    "y_norm": ("target_deviation", "voxel"),
}


def open_converter(folder: str | Path | Location) -> xr.Dataset:
    """Open a converter lazily; what responses are standardised by is read.

    Parameters
    ----------
    folder : str, Path or Location
        The folder ``model``, below ``<source>2<target>/<ROI>/<method>/<samples>/<alpha>``.

    Returns
    -------
    Dataset
        ``weight (source_voxel, voxel)`` and ``bias (voxel)``, 0 where there is none, of the dtype
        of the file; ``source_mean``, ``source_deviation (source_voxel)``, ``target_mean`` and
        ``target_deviation (voxel)``. A response x becomes ``((x - source_mean) /
        source_deviation) @ weight + bias``, times ``target_deviation``, plus ``target_mean``.

    Raises
    ------
    SourceError
        If files are missing, or do not belong together.
    StoreError, CorruptStoreError
        If a file cannot be read, or is damaged.
    """
    root = Location.of(folder)
    names = {name for name, _ in listed(root, "")}
    lacking = missing_norms(names)
    matrix = next((name for name in MATRICES if name in names), None)
    if lacking or matrix is None:
        missing = lacking if matrix else [*lacking, " or ".join(MATRICES)]
        raise SourceError(
            f"{root.url} lacks {', '.join(missing)}, so that it is no folder of a converter"
        )
    norms = {_NORMS[name][0]: (_NORMS[name][1], one) for name, one in read_norms(root).items()}
    source, target = len(norms["source_mean"][1]), len(norms["target_mean"][1])
    whole = open_array(root.child(matrix), "M")
    if whole.shape not in ((source, target), (source + 1, target)):
        raise SourceError(
            f"{root.url}/{matrix} has the shape {whole.shape}; with {source:,} voxels in x_mean "
            f"and {target:,} in y_mean it needs {(source + 1, target)}, or {(source, target)} "
            "without a bias: these files are not of one converter"
        )
    has_bias = len(whole) > source
    bias = whole[source] if has_bias else np.zeros(target, whole.dtype)
    variables = {
        "weight": (("source_voxel", "voxel"), whole[:source]),
        "bias": ("voxel", bias),
        **norms,
    }
    coords = {
        name: np.arange(size, dtype=np.int32)
        for name, size in (("source_voxel", source), ("voxel", target))
    }
    return xr.Dataset(variables, coords, {"has_bias": has_bias})
