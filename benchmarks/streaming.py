"""What a piece costs over HTTP: requests to open, and bytes of 1 % of the images of one ROI."""

from __future__ import annotations

import tempfile
from itertools import product
from pathlib import Path

import dask.array as da
import numpy as np
import xarray as xr
import zarr

from benchmarks.measuring import Row, at_most
from tests.servers import HttpServer

N_IMAGES, N_VERTICES, N_SUBJECTS = 20_000, 8_000, 2
MOST_OBJECTS = {"unsharded": 10_000, "sharded": 100}


def measure() -> list[Row]:
    """Write a store of 1.3 GB, serve it, open it, and read from it."""
    import nedx
    from nedx.store.layout import plan_dataset

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        server = HttpServer(Path(folder))
        ds = _responses()
        for name, most in MOST_OBJECTS.items():
            place = Path(folder, f"{name}.zarr")
            nedx.to_zarr(ds, place, layout=plan_dataset(ds, max_objects=most))
            rows += _read(f"{server.url}/{name}.zarr", place, server, name)
        server.close()
    return rows


def _read(url: str, place: Path, server: HttpServer, name: str) -> list[Row]:
    import nedx

    server.counter.forget()
    opened = nedx.open(url, subject=1, roi="V1")
    requests, touched = server.counter.count(), server.counter.count("response/")
    images = np.sort(np.random.default_rng(0).choice(N_IMAGES, N_IMAGES // 100, replace=False))
    server.counter.forget()
    values = opened["response"].isel(image=images).values
    held = _chunk_bytes(place / "response", [np.array([0]), images, np.flatnonzero(_v1())])
    sent = server.counter.bytes()
    note = f"{values.nbytes / 1e6:.1f} MB of values, {sent / 1e6:.1f} MB sent in "
    note += f"{server.counter.count()} requests"
    return [
        at_most(f"{name}: requests to open one ROI of one subject", requests, 8, ""),
        at_most(f"{name}: of these for responses", touched, 0, ""),
        at_most(
            f"{name}: 1 % of images, one ROI: bytes sent over bytes of the chunks touched",
            sent / held,
            2.0,
            note=note,
        ),
    ]


def _chunk_bytes(path: Path, positions: list[np.ndarray]) -> int:
    """Return the bytes that the stored chunks hold which positions along each axis touch.

    Counted from the files: their sizes, or in shards the lengths in the index at the end.
    """
    array = zarr.open_array(path, mode="r")
    touched = product(
        *(np.unique(p // size) for p, size in zip(positions, array.chunks, strict=True))
    )
    if array.shards is None:
        return sum(path.joinpath("c", *map(str, index)).stat().st_size for index in touched)
    per_shard = tuple(s // c for s, c in zip(array.shards, array.chunks, strict=True))
    return sum(_length_in_shard(path, index, per_shard) for index in touched)


def _length_in_shard(path: Path, index: tuple[int, ...], per_shard: tuple[int, ...]) -> int:
    shard = path.joinpath("c", *(str(i // n) for i, n in zip(index, per_shard, strict=True)))
    count = int(np.prod(per_shard))
    table = np.fromfile(shard, "<u8", offset=shard.stat().st_size - 16 * count - 4, count=2 * count)
    inside = tuple(i % n for i, n in zip(index, per_shard, strict=True))
    return int(table.reshape(*per_shard, 2)[(*inside, 1)])


def _v1() -> np.ndarray:
    return np.arange(N_VERTICES) // 400 == 3


def _responses() -> xr.Dataset:
    """Return lazy noise with the labels of a shared grid."""
    shape = (N_SUBJECTS, N_IMAGES, N_VERTICES)
    noise = da.random.default_rng(0).standard_normal(shape, dtype="float32", chunks=(1, 500, 8000))
    mask = np.stack([_v1(), ~_v1()])
    ds = xr.Dataset(
        {
            "response": (
                ("subject", "image", "vertex"),
                noise,
                {"units": "1", "normalization": "zscore", "normalization_scope": "session"},
            )
        },
        coords={
            "subject": np.array(["sub-01", "sub-02"], object),
            "image_id": ("image", np.array([f"noise:{i:05d}" for i in range(N_IMAGES)], object)),
            "vertex": np.arange(N_VERTICES, dtype=np.int32),
            "hemisphere": ("vertex", np.repeat(np.array(["L", "R"], object), N_VERTICES // 2)),
            "roi": np.array(["V1", "elsewhere"], object),
            "roi_mask": (("subject", "roi", "vertex"), np.stack([mask] * N_SUBJECTS)),
        },
        attrs={"modality": "fmri", "source": "synthetic"},
    )
    return ds
