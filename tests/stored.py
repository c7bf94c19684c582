"""Small stores for the tests of reading, and what their files say of the bytes to be read."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import xarray as xr

CHUNKS = {"subject": 1, "image": 20, "vertex": 100}
SHARDS = {"subject": 1, "image": 60, "vertex": 300}


def responses(n_images: int = 300, n_vertices: int = 900) -> xr.Dataset:
    """Return responses ``(subject 2, image, vertex)`` that no two elements of share."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((2, n_images, n_vertices)).astype(np.float32)
    # The ROIs lie in few chunks of vertices, as they do where vertices are sorted by ROI.
    mask = np.zeros((2, 2, n_vertices), bool)
    mask[0, 0, 110:150] = mask[1, 0, 130:190] = True
    mask[:, 1, 400:620] = True
    return xr.Dataset(
        {
            "response": (
                ("subject", "image", "vertex"),
                values,
                {"units": "1", "normalization": "zscore", "normalization_scope": "session"},
            ),
            "noise_ceiling": (
                ("subject", "vertex"),
                rng.random((2, n_vertices)).astype(np.float32),
                {"units": "1"},
            ),
        },
        coords={
            "image_id": ("image", np.array([f"t:{i:04d}" for i in range(n_images)], object)),
            "caption": ("image", np.array([f"picture {i}" for i in range(n_images)], object)),
            "subject": np.array(["sub-01", "sub-02"], object),
            "vertex": np.arange(n_vertices, dtype=np.int32),
            "roi": np.array(["V1", "V2"], object),
            "roi_mask": (("subject", "roi", "vertex"), mask),
        },
        attrs={"source": "synthetic", "modality": "fmri", "nedx_schema_version": "1.0"},
    )


def write(ds: xr.Dataset, path: Path, *, sharded: bool = False) -> Path:
    """Write responses with small chunks, bit by bit as they are."""
    from nedx.store.layout import plan_dataset
    from nedx.store.writing import to_zarr

    chunks = {dim: n for dim, n in CHUNKS.items() if dim in ds["response"].dims}
    shards = {dim: n for dim, n in SHARDS.items() if dim in ds["response"].dims}
    layout = plan_dataset(
        ds,
        chunks={"response": chunks},
        shards={"response": shards} if sharded else None,
        block=SHARDS["image"],
    )
    to_zarr(ds, path, keep_bits=None, layout=layout)
    return path


def stored_bytes(path: Path, subjects: list[int], images: object, vertices: object) -> int:
    """Return the bytes that the stored chunks of ``response`` hold, of those that are touched.

    Counted from the files themselves: of an unsharded array their sizes, of a sharded one the
    lengths in the index at the end of each shard.
    """
    rows = sorted({int(i) // CHUNKS["image"] for i in np.asarray(images)})
    columns = sorted({int(v) // CHUNKS["vertex"] for v in np.asarray(vertices)})
    return sum(_chunk_bytes(path, s, r, c) for s in subjects for r in rows for c in columns)


def _chunk_bytes(path: Path, subject: int, row: int, column: int) -> int:
    plain = path / "response" / "c" / str(subject) / str(row) / str(column)
    per_row, per_column = (SHARDS[d] // CHUNKS[d] for d in ("image", "vertex"))
    shard = plain.parent.parent / str(row // per_row) / str(column // per_column)
    if not _is_sharded(path):
        return plain.stat().st_size
    count = math.prod((per_row, per_column))
    index = np.frombuffer(shard.read_bytes()[-(16 * count + 4) : -4], "<u8").reshape(count, 2)
    return int(index[(row % per_row) * per_column + column % per_column, 1])


def _is_sharded(path: Path) -> bool:
    return "sharding_indexed" in (path / "response" / "zarr.json").read_text()
