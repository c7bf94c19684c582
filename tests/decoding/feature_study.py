"""Features of two layers, and a simulated brain that mixes what they mix."""

import numpy as np
import xarray as xr

SHAPES = {"conv": (4, 3, 3), "fc": (11,)}
IMAGES, REPEATS, VOXELS = 40, 4, 50
PIECES = {"conv": ("channel", "y", "x"), "fc": ("unit",)}


def names(count, word="set"):
    return np.array([f"{word}:{i:03d}" for i in range(count)], dtype=object)


def stimuli(factors, seed=0):
    """Return features (image, ...) of two layers that mix the factors of images."""
    rng = np.random.default_rng(seed)
    variables = {}
    for layer, shape in SHAPES.items():
        mixing = rng.standard_normal((factors.shape[1], int(np.prod(shape))))
        values = (3 + factors @ mixing).reshape(-1, *shape).astype(np.float32)
        dims = ("image", *(f"{layer}_{axis}" for axis in PIECES[layer]))
        variables[f"feature_{layer}"] = (dims, values)
    return xr.Dataset(variables, {"image_id": ("image", names(len(factors)))})


def responses(factors, subject=1, voxels=VOXELS, noise=0.5, chunks=None):
    """Return responses (trial, voxel) to each image, REPEATS times in any order."""
    rng = np.random.default_rng(subject)
    mixing = rng.standard_normal((factors.shape[1], voxels))
    shown = rng.permutation(np.repeat(np.arange(len(factors)), REPEATS))
    values = 1 + factors[shown] @ mixing + noise * rng.standard_normal((len(shown), voxels))
    mask = np.zeros((2, voxels), bool)
    mask[0, :20], mask[1, 15:] = True, True
    ds = xr.Dataset(
        {
            "response": (
                ("trial", "voxel"),
                values.astype(np.float32),
                {"units": "percent", "normalization": "none"},
            ),
            "roi_mask": (("roi", "voxel"), mask),
        },
        {
            "image_id": ("trial", names(len(factors))[shown]),
            "category": ("trial", shown // 4),
            "run": ("trial", np.arange(len(shown)) // 16),
            "voxel": np.arange(voxels, dtype=np.int32),
            "roi": np.array(["V1", "V2"], dtype=object),
        },
        {"modality": "fmri", "source": "synthetic", "stimulus_type": "image"},
    ).assign_attrs(subject_ids=[f"sub-{subject:02d}"])
    return ds if chunks is None else ds.assign(response=ds["response"].chunk(chunks))
