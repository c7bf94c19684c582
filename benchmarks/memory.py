"""Peak memory of encode while ten times as many images go through it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measuring import Row, at_most

FEW, MANY = 1_000, 10_000

# Pixels are made block by block, as a reader would; of the responses only a mean is kept, since
# they would grow with the images whatever encode does. bf16 only shortens the wait.
# A child's ru_maxrss begins with that of its parent, the kernel's high-water mark does not.
SCRIPT = """
import re, sys
import dask.array as da, numpy as np, xarray as xr
import nedx
place, count = sys.argv[1], int(sys.argv[2])
shape, chunks = (count, 224, 224, 3), (64, -1, -1, -1)
pixels = da.random.default_rng(0).integers(0, 256, shape, dtype="uint8", chunks=chunks)
ds = xr.Dataset({"pixels": (("image", "y", "x", "rgb"), pixels)})
out = nedx.encode(ds, place, device="cpu", precision="bf16")
out["response"].mean("vertex").compute(scheduler="threads", num_workers=2)
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024)
"""


def measure() -> list[Row]:
    """Encode 1,000 and then 10,000 images with ViT-B/32, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "model.zarr")
        _model().to_zarr(place)
        few, many = (_peak(place, count) for count in (FEW, MANY))
    note = f"{few:.0f} MB for {FEW:,} images, {many:.0f} MB for {MANY:,}"
    return [at_most(f"peak memory, {MANY:,} images over {FEW:,}", many / few, 1.05, note=note)]


def _peak(place: Path, count: int) -> float:
    command = [sys.executable, "-c", SCRIPT, str(place), str(count)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def _model():
    """Make a ViT-B/32 model of 20,000 vertices; only its size matters."""
    import numpy as np
    import xarray as xr

    from nedx.backbones import default_recipe
    from nedx.encoding import EncoderRecipe, LinearEncoder

    rng = np.random.default_rng(0)
    width, components, vertices = 12 * 50 * 768, 50, 20_000
    pattern = rng.standard_normal((600, components), dtype=np.float32) * np.float32(1e-3)
    weights = xr.Dataset(
        {
            "projection": (("feature", "component"), np.tile(pattern, (width // 600, 1))),
            "projection_offset": ("component", np.zeros(components, np.float32)),
            "readout": (
                ("vertex", "component"),
                rng.standard_normal((vertices, components), dtype=np.float32),
            ),
            "intercept": ("vertex", np.zeros(vertices, np.float32)),
        },
        coords={"vertex": np.arange(vertices, dtype=np.int32)},
    )
    recipe = default_recipe("vit_b_32", seed=0)
    return LinearEncoder(weights, EncoderRecipe(backbone=recipe))
