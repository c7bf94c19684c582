"""Stores of each layout, and a web server before them; written once."""

from __future__ import annotations

import pytest
import xarray as xr

from tests.servers import HttpServer
from tests.stored import responses, write


@pytest.fixture(scope="session")
def truth():
    return responses()


@pytest.fixture(scope="session")
def shelf(tmp_path_factory, truth):
    """A folder with complete stores: plain.zarr, sharded.zarr and ragged.zarr."""
    from nedx.store.writing import to_zarr

    folder = tmp_path_factory.mktemp("shelf")
    write(truth, folder / "plain.zarr")
    write(truth, folder / "sharded.zarr", sharded=True)
    shared = truth[["image_id", "caption"]].reset_coords().set_coords(["image_id", "caption"])
    subjects = {
        "sub-01": truth.isel(subject=0, drop=True).isel(vertex=slice(0, 500)),
        "sub-02": truth.isel(subject=1, drop=True),
    }
    members = {name: ds.drop_vars(["image_id", "caption"]) for name, ds in subjects.items()}
    tree = xr.DataTree.from_dict({"/": shared, **members, "/truth": truth[["noise_ceiling"]]})
    to_zarr(tree, folder / "ragged.zarr", keep_bits=None)
    return folder


@pytest.fixture(scope="session")
def web(shelf):
    server = HttpServer(shelf)
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _forget(web):
    web.counter.forget()
