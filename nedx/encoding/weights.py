"""What the weights of an encoder must be, before they become a model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from nedx.encoding.storing import HEAVY
from nedx.errors import ModelError

ROOT = ""


def fold(
    scaler_mean: np.ndarray, scaler_scale: np.ndarray, components: np.ndarray, pca_mean: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fold standardisation and PCA into ``A (..., feature, component)`` and ``a``, in float64.

    Returns
    -------
    (ndarray of float32, ndarray of float32)

    Raises
    ------
    ModelError
        If a scale is not above 0.
    """
    if not np.all(np.asarray(scaler_scale) > 0):
        raise ModelError(
            "scaler_scale must be above 0 for every feature; where a feature is constant use 1, as "
            "scikit-learn does: np.where(scale > 0, scale, 1)"
        )
    c = np.asarray(components)
    mu, s, m = (np.asarray(v, np.float64) for v in (scaler_mean, scaler_scale, pca_mean))
    scaled = np.empty(c.shape, np.float32)
    offset = np.empty(c.shape[:-1], np.float32)
    # Component by component: all of them in float64 would take four times what is given.
    for i in range(c.shape[-2]):
        row = c[..., i, :].astype(np.float64)
        divided = row / s
        scaled[..., i, :] = divided
        offset[..., i] = (divided * mu).sum(-1) + (row * m).sum(-1)
    return np.swapaxes(scaled, -1, -2), offset


def split_groups(weights: xr.Dataset | xr.DataTree) -> dict[str, xr.Dataset]:
    """Return the Datasets of a model by group, the root under ``""``."""
    if isinstance(weights, xr.Dataset):
        return {ROOT: weights}
    root = weights.to_dataset(inherit=False)
    children = {str(n): c.to_dataset(inherit=False) for n, c in weights.children.items()}
    return {ROOT: root, **children}


def as_float32(ds: xr.Dataset) -> xr.Dataset:
    """Return weights in float32, labels as they are."""
    wide = [name for name in HEAVY if name in ds and ds[name].dtype != np.float32]
    return ds.assign({name: ds[name].astype(np.float32) for name in wide})


def check_weights(groups: Mapping[str, xr.Dataset]) -> None:
    """Refuse weights that do not fit together, naming every fault."""
    faults = []
    members = {name: ds for name, ds in groups.items() if "readout" in ds or name != ROOT}
    if not members:
        faults.append("there is no 'readout'")
    shared = groups.get(ROOT, xr.Dataset())
    for name, ds in members.items():
        where = f"{name}: " if name else ""
        own = ds if "projection" in ds else shared
        needed = {"projection": own, "projection_offset": own, "readout": ds, "intercept": ds}
        missing = [key for key, home in needed.items() if key not in home]
        if missing:
            faults.append(f"{where}missing {', '.join(missing)}")
            continue
        if ds["readout"].dims != (*ds["intercept"].dims, "component"):
            faults.append(
                f"{where}readout has dims {ds['readout'].dims}, expected "
                f"{(*ds['intercept'].dims, 'component')} as intercept says"
            )
        if own.sizes["component"] != ds.sizes["component"]:
            faults.append(
                f"{where}projection has {own.sizes['component']} components, "
                f"readout {ds.sizes['component']}"
            )
    for name, ds in groups.items():
        # Weights that lie elsewhere are checked as they are read.
        here = [key for key in HEAVY if key in ds and ds[key].chunks is None]
        bad = [key for key in here if not np.isfinite(ds[key].values).all()]
        where = f"{name}: " if name else ""
        advice = "has NaN or infinite values; drop these targets, or fit them again"
        faults += [f"{where}{key} {advice}" for key in bad]
    if faults:
        raise ModelError("the weights do not fit together: " + "; ".join(faults))
