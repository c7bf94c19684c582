"""A real recording: eight categories decoded from block means of one slice, one run left out.

Haxby et al. (2001), subject 1, as the test data of PyMVPA hold it; imported to a store first.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from benchmarks.measuring import Row, at_least

# What an ordinary pipeline reaches with the same voxels; chance is .125.
ORDINARY = 0.740


def measure() -> list[Row]:
    """Report the share of blocks whose category is told."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("NEDX_SHARED_DATA", beside)) / "haxby2001_pymvpa"
    if not folder.is_dir():
        return [Row("real Haxby recording", None, note="absent; set NEDX_SHARED_DATA")]
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_score

    import nedx

    with tempfile.TemporaryDirectory() as place:
        nedx.import_source("haxby2001", folder, f"{place}/haxby.zarr")
        blocks = nedx.open(f"{place}/haxby.zarr").ned.block_averages().compute()
    told = cross_val_score(
        LogisticRegression(max_iter=2000),
        blocks["response"].values,
        blocks["category"].values.astype(str),
        groups=blocks["run"].values,
        cv=LeaveOneGroupOut(),
    )
    note = f"{blocks.sizes['trial']} blocks, {blocks.sizes['voxel']} voxels, chance 0.125"
    name = "Haxby: categories told, one run left out"
    return [at_least(name, float(told.mean()), ORDINARY, "", note)]
