"""Decoders as others publish them: folders of files, and what these predict, by numpy alone."""

from __future__ import annotations

import numpy as np
import yaml

from tests.sources.bdata.files import write_dense, write_sparse

VOXELS, SELECTED = 20, 6
NORMS = ("x_mean", "x_norm", "y_mean", "y_norm")
RNG = np.random.default_rng(0)


def decoder(shape):
    """Return W with SELECTED voxels a unit, b, and the four norms, as they are published."""
    units = int(np.prod(shape))
    weights = np.zeros((VOXELS, units), np.float32)
    for unit in range(units):
        chosen = RNG.choice(VOXELS, SELECTED, replace=False)
        weights[chosen, unit] = RNG.standard_normal(SELECTED)
    norms = {
        "x_mean": RNG.standard_normal((1, VOXELS)),
        "x_norm": 1 + RNG.random((1, VOXELS)),
        "y_mean": RNG.standard_normal((1, *shape)),
        "y_norm": 1 + RNG.random((1, *shape)),
    }
    bias = RNG.standard_normal((1, *shape)).astype(np.float32)
    norms = {key: value.astype(np.float32) for key, value in norms.items()}
    return {"W": weights.reshape(VOXELS, *shape), "b": bias, **norms}


def write_norms(folder, parts, status="done"):
    """Write the norms, and how far the fit came."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in NORMS:
        write_dense(folder / f"{name}.mat", name, parts[name])
    info = {"_status": {"computation_id": "x", "computation_status": status}}
    (folder / "info.yaml").write_text(yaml.safe_dump(info))


def write_channels(folder, parts, writer="cells"):
    """Write a convolution: a file of W, sparse, and one of b, for each channel."""
    write_norms(folder, parts)
    for name in "Wb":
        (folder / name).mkdir()
    for channel in range(parts["b"].shape[1]):
        file = f"{channel:08d}.mat"
        write_sparse(folder / "W" / file, "W", parts["W"][:, [channel]], writer=writer)
        write_dense(folder / "b" / file, "b", parts["b"][:, [channel]])


def write_whole(folder, parts, *, sparse):
    """Write all weights into one file, as of fully connected layers."""
    write_norms(folder, parts)
    if sparse:
        write_sparse(folder / "W.mat", "W", parts["W"])
    else:
        write_dense(folder / "W.mat", "W", parts["W"])
    write_dense(folder / "b.mat", "b", parts["b"])


def predicted(parts, x):
    """Decode as published: standardise, multiply, bring back; (sample, unit) in C order."""
    z = (x - parts["x_mean"]) / parts["x_norm"]
    y = np.tensordot(z, parts["W"], 1) + parts["b"]
    return (y * parts["y_norm"] + parts["y_mean"]).reshape(len(x), -1)
