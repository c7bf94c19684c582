"""The simulated stores: generated once from a seed into the cache, then opened as any other."""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import xarray as xr

from nedx.config import cache_dir
from nedx.errors import SelectionError, UnknownIdError, close_matches
from nedx.selection import Names, Subjects, Times
from nedx.store.location import Location

SIMULATION_VERSION = "1.0.1"
"""Changes whenever anything that is generated does."""
STORES = ("sim-images", "sim-fmri", "sim-fmri-fsaverage5", "sim-eeg")
MODELS = ("sim-fmri-gabor", "sim-fmri-fsaverage5-gabor", "sim-eeg-gabor")

_Floats = Literal["float32", "float16"]
_log = logging.getLogger(__name__)


def generate(name: str) -> Location:
    """Return where a simulated store or model lies; make it first if it is not there.

    Parameters
    ----------
    name : str
        One of `STORES` or `MODELS`.

    Returns
    -------
    Location
        In the cache folder. Processes that ask at the same time get the same store.

    Raises
    ------
    UnknownIdError
        If nothing simulated has this name.
    """
    if name not in STORES + MODELS:
        known = close_matches(name, STORES + MODELS)
        raise UnknownIdError(f"nothing simulated is called {name!r}: {known}")
    folder = cache_dir() / "simulation" / SIMULATION_VERSION
    place = folder / f"{name}.zarr"
    if place.exists():
        return Location.of(place)
    folder.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(folder / f"{name}.lock"):
        if not place.exists():
            _log.info("generating %s in %s", name, folder)
            partial = folder / f"{name}.{uuid.uuid4().hex}.partial"
            try:
                build(name, partial)
                os.rename(partial, place)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return Location.of(place)


def build(name: str, place: Path) -> None:
    """Make a simulated store or model at a place that does not exist; see `generate`."""
    if name in MODELS:
        from nedx.simulation.models import build_model

        build_model(name, place)
        return
    from nedx.store.writing import to_zarr

    dtype, make = _makers()[name]
    to_zarr(make(), place, dtype=dtype)


def _makers() -> dict[str, tuple[_Floats, Callable[[], xr.Dataset | xr.DataTree]]]:
    """Return for each store the dtype of its floats and what makes it."""
    from nedx.simulation import datasets

    return {
        "sim-images": ("float32", datasets.images),
        "sim-fmri": ("float32", datasets.fmri),
        "sim-fmri-fsaverage5": ("float16", datasets.fmri_fsaverage5),
        "sim-eeg": ("float16", datasets.eeg),
    }


def open_simulation(
    name: str,
    *,
    group: str | None = None,
    subject: Subjects | None = None,
    roi: Names | None = None,
    channel: Names | None = None,
    time: Times | None = None,
) -> xr.Dataset | xr.DataTree:
    """Open a simulated store lazily, generating it the first time.

    Parameters
    ----------
    name : str
        One of `STORES`.
    group : str, optional
        ``"truth"`` for what is behind the data; ``"truth/sub-01"`` in ``"sim-fmri"``.
    subject, roi, channel, time
        What to select, as `nedx.open` takes it.

    Returns
    -------
    Dataset or DataTree
        A DataTree with a child for each subject for ``"sim-fmri"``, unless one is selected.
    """
    from nedx.store.opening import open_store

    return open_store(
        generate(name), group=group, subject=subject, roi=roi, channel=channel, time=time
    )


def open_group(name: str, group: str | None = None) -> xr.Dataset:
    """Open one group of a simulated store, as `open_simulation`, where it is a Dataset."""
    ds = open_simulation(name, group=group)
    if not isinstance(ds, xr.Dataset):
        raise SelectionError(f"{name} has a group for each subject: type group='sub-01'")
    return ds


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Hold a lock that ends with the process; without such locks the work is done twice."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
