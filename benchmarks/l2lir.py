"""L2LiR against the package of its authors, and memory while a whole layer is fitted.

The package needs an environment of its own (its release 0.11 fails with NumPy 2.4): the variable
``NEDX_L2LIR_PYTHON`` names its python, else one is made in a temporary folder.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np

from benchmarks.measuring import Row, at_least, at_most
from nedx.decoding.feature_decoder_storing import FeatureModelWriter
from nedx.store.location import Location

SAMPLES, VOXELS, UNITS, CHOSEN, ALPHA, ROUNDS = 1_200, 10_000, 4_096, 500, 100.0, 3
LAYER_UNITS, LAYER_VOXELS, FEW_UNITS = 100_352, 3_000, 20_480
REQUIRED = ("numpy<2.4", "fastl2lir==0.11")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

# Both are timed around the fit alone; theirs is float64, the default of the package.
THEIRS = """
import sys, time
import numpy as np
from fastl2lir import FastL2LiR
folder, alpha, chosen = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
x, y = np.load(folder + "/x.npy"), np.load(folder + "/y.npy")
start = time.perf_counter()
model = FastL2LiR().fit(x, y, alpha=alpha, n_feat=chosen)
print(time.perf_counter() - start)
np.save(folder + "/theirs.npy", model.W.astype(np.float32))
"""
OURS = """
import sys, time
import numpy as np, torch
from nedx.linear.l2lir import fit_l2lir
folder, alpha, chosen, threads = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
torch.set_num_threads(int(threads))
x, y = np.load(folder + "/x.npy"), np.load(folder + "/y.npy")
start = time.perf_counter()
fit = fit_l2lir(x.astype("f4"), y.astype("f4"), alpha, chosen, device="cpu")
print(time.perf_counter() - start)
np.save(folder + "/index.npy", fit.index)
np.save(folder + "/weight.npy", fit.weight)
"""
# A child's ru_maxrss begins with that of its parent, the kernel's high-water mark does not.
LAYER = """
import re, sys, tempfile
import dask.array as da, numpy as np
from nedx.decoding.feature_decoder_storing import FeatureModelWriter
from nedx.linear.l2lir import L2LiRInputs
from nedx.store.location import Location
units, voxels, chosen = map(int, sys.argv[1:4])
rng = np.random.default_rng(0)
x = rng.standard_normal((1200, voxels), np.float32)
y = da.random.default_rng(0).standard_normal((1200, units), chunks=(-1, 1024)).astype("f4")
with tempfile.TemporaryDirectory() as folder:
    writer = FeatureModelWriter(Location.of(folder + "/model.zarr"))
    for part, fit in L2LiRInputs(x, device="cpu").fit_blocks(y, 100.0, chosen, memory=2**28):
        zeros = np.zeros_like(fit.bias)
        arrays = {"index": fit.index, "weight": fit.weight, "bias": fit.bias}
        arrays |= {"feature_mean": zeros, "feature_deviation": zeros + 1}
        writer.units("sub-01/all/conv4", units, part, arrays)
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024)
"""


def measure() -> list[Row]:
    """Compare speed and weights, then fit all units of a layer of 512 x 14 x 14."""
    return [*_speed(), *_memory()]


def _speed() -> list[Row]:
    """Time both in turn, as processes of their own, on one core and on two."""
    with tempfile.TemporaryDirectory() as folder:
        python, why_not = _their_python(Path(folder))
        if python is None:
            return [Row("L2LiR against fastl2lir 0.11", None, note=why_not)]
        _write_data(Path(folder))
        rows = []
        for threads, bound in ((1, 3.5), (2, 6.0)):
            pairs = [_both(python, folder, threads) for _ in range(ROUNDS)]
            ours = statistics.median(mine for _, mine in pairs)
            rows.append(
                at_least(
                    f"L2LiR against fastl2lir 0.11 in float64, {threads} core(s)",
                    statistics.median(theirs / mine for theirs, mine in pairs),
                    bound,
                    note=f"{ours:.1f} s; N={SAMPLES}, {VOXELS} voxels, {UNITS} units, "
                    f"{CHOSEN} chosen",
                )
            )
        return [*rows, *_agreement(Path(folder))]


def _their_python(folder: Path) -> tuple[str | None, str]:
    """Return a python that has the package, or why there is none."""
    given = os.environ.get("NEDX_L2LIR_PYTHON")
    if given:
        return given, ""
    try:
        venv.create(folder / "env", with_pip=True)
        python = str(folder / "env" / "bin" / "python")
        command = [python, "-m", "pip", "install", "--quiet", *REQUIRED]
        subprocess.run(command, check=True, capture_output=True, timeout=600)
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"no environment with {', '.join(REQUIRED)} could be made: {error}"
    return python, ""


def _write_data(folder: Path) -> None:
    """Write standardised responses and features that share 50 factors, float64.

    Voxels differ in how much of them is signal, as in a brain.
    """
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((SAMPLES, 50))
    signal = 0.3 * rng.lognormal(0, 0.5, VOXELS)
    x = factors @ (signal * rng.standard_normal((50, VOXELS)))
    x += 3 * rng.standard_normal((SAMPLES, VOXELS))
    y = factors @ rng.standard_normal((50, UNITS)) + 3 * rng.standard_normal((SAMPLES, UNITS))
    for name, values in (("x", x), ("y", y)):
        np.save(folder / f"{name}.npy", (values - values.mean(0)) / values.std(0, ddof=1))


def _both(python: str, folder: str, threads: int) -> tuple[float, float]:
    """Return the seconds of theirs and of ours."""
    parameters = [folder, str(ALPHA), str(CHOSEN), str(threads)]
    theirs = _run([python, "-c", THEIRS, *parameters], threads)
    ours = _run([sys.executable, "-c", OURS, *parameters], threads)
    return float(theirs), float(ours)


def _run(command: list[str], threads: int) -> str:
    environment = {**os.environ, **dict.fromkeys(_THREADS, str(threads))}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return done.stdout


def _agreement(folder: Path) -> list[Row]:
    """Compare the weights that both have left."""
    theirs = np.load(folder / "theirs.npy")
    index, weight = np.load(folder / "index.npy"), np.load(folder / "weight.npy")
    ours = np.zeros_like(theirs)
    np.put_along_axis(ours, index.T.astype(np.int64), weight.T, axis=0)
    same = ((ours != 0) == (theirs != 0)).all(0)
    others = f"{int((~same).sum())} of {UNITS} units chose other voxels of equal correlation"
    off = np.linalg.norm(ours - theirs, axis=0)[same] / np.linalg.norm(theirs, axis=0)[same]
    farthest = np.abs(ours - theirs)[:, same].max() / np.abs(theirs).max()
    note = f"largest single deviation {farthest:.1e} of the largest weight; {others}"
    stored = _stored_bytes(folder / "model.zarr", index, weight)
    dense = f"{theirs.nbytes / 1e6:.0f} MB as dense float32"
    return [
        at_most("L2LiR: deviation of a unit's weights, by norm", float(off.max()), 1e-5, "", note),
        at_most("L2LiR: share of units with other voxels", float((~same).mean()), 1e-3, ""),
        at_least("L2LiR: dense weights over stored ones", theirs.nbytes / stored, 10, note=dense),
    ]


def _stored_bytes(place: Path, index: np.ndarray, weight: np.ndarray) -> int:
    """Write them as decoders are stored, and return how many bytes lie on disk."""
    zeros = np.zeros(len(index))
    arrays = {"index": index, "weight": weight, "bias": zeros}
    arrays |= {"feature_mean": zeros, "feature_deviation": zeros}
    writer = FeatureModelWriter(Location.of(place))
    writer.units("sub-01/all/fc6", len(index), slice(0, len(index)), arrays)
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())


def _memory() -> list[Row]:
    """Fit few units and all of them, each in a process of its own."""
    few, many = (
        float(_run([sys.executable, "-c", LAYER, str(n), str(LAYER_VOXELS), str(CHOSEN)], 2))
        for n in (FEW_UNITS, LAYER_UNITS)
    )
    note = f"{few:.0f} MB for {FEW_UNITS:,}, {many:.0f} MB for {LAYER_UNITS:,}"
    name = f"L2LiR: peak memory, {LAYER_UNITS:,} units over {FEW_UNITS:,}"
    return [at_most(name, many / few, 1.05, note=note)]
