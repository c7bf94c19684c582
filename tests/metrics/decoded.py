"""Features that were decoded, with noise, by layer and for several subjects."""

import numpy as np
import xarray as xr

SHAPES = {"conv1": (3, 4, 4), "fc6": (17,)}


def ids(count):
    return np.array([f"set:{i:02d}" for i in range(count)], dtype=object)


def named(values, dims, **coords):
    count = values.shape[dims.index("image")]
    labels = {"image_id": ("image", ids(count)), **coords}
    return xr.DataArray(values, coords=labels, dims=dims).set_xindex("image_id")


def layer(images=12, shape=(3, 4, 4), subjects=2, noise=1.0, seed=0):
    """Return true (image, ...) and decoded (subject, image, ...) features."""
    rng = np.random.default_rng(seed)
    true = rng.standard_normal((images, *shape)) + 3
    decoded = 0.5 * true + noise * rng.standard_normal((subjects, *true.shape))
    dims = [f"unit_{axis}" for axis in range(len(shape))]
    subject = [f"sub-{i + 1:02d}" for i in range(subjects)]
    return (
        named(true, ["image", *dims]),
        named(decoded, ["subject", "image", *dims], subject=subject),
    )


def layers(images=12):
    """Return Datasets of true and decoded ``feature_<layer>``."""
    pairs = {name: layer(images, shape, seed=i) for i, (name, shape) in enumerate(SHAPES.items())}
    return tuple(
        xr.Dataset(
            {
                f"feature_{name}": pair[which].rename(
                    {dim: f"{name}_{dim}" for dim in pair[which].dims if "unit" in dim}
                )
                for name, pair in pairs.items()
            }
        )
        for which in (0, 1)
    )
