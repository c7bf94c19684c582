"""What is not installed is named with the line that installs it."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import xarray as xr

import nedx  # noqa: F401
from nedx.errors import MissingExtraError


@pytest.mark.parametrize(
    ("module", "extra", "verb"),
    [
        ("mne", "mne", lambda ned: ned.to_mne()),
        ("mne", "mne", lambda ned: ned.plot.topomap(time=0)),
        ("nibabel", "nifti", lambda ned: ned.to_nifti()),
        ("nibabel", "nifti", lambda ned: ned.to_gifti()),
        ("nilearn.plotting", "surface", lambda ned: ned.plot.surface()),
        ("matplotlib", "plot", lambda ned: ned.plot.timecourse()),
        ("matplotlib", "plot", lambda ned: ned.plot.images()),
    ],
)
def test_the_line_to_type_is_there(monkeypatch, module, extra, verb):
    monkeypatch.setitem(sys.modules, module, None)
    dims = ("image", "time")
    ds = xr.Dataset({"response": (dims, np.zeros((2, 3)))}, {"time": [0.0, 0.1, 0.2]})
    ds["pixels"] = (("image", "y", "x", "rgb"), np.zeros((2, 2, 2, 3), np.uint8))
    if "images" in verb.__code__.co_names:
        ds = ds.isel(time=[0])
    with pytest.raises(MissingExtraError, match=rf"pip install 'nedx\[{extra}\]'"):
        verb(ds.ned)


def test_nothing_of_it_is_imported_before_it_is_needed():
    import subprocess

    script = "import sys, nedx; print([m for m in sys.modules if m in {!r}])"
    heavy = ("torch", "mne", "nibabel", "nilearn", "matplotlib", "h5netcdf")
    done = subprocess.run(
        [sys.executable, "-c", script.format(heavy)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
