"""From scaler, components and regressions of scikit-learn to one projection and one readout."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import xarray as xr

from nedx.errors import ModelError
from nedx.sources.berg.layout import Files
from nedx.sources.berg.pickles import read_joblib, read_npy


def read_weights(files: Files) -> dict[str, Any]:
    """Read the weights of one subject, whichever files they lie in.

    Parameters
    ----------
    files : Files
        One file; the three of NED; or the nine of the first version of TVSD.

    Returns
    -------
    dict
        ``scaler_param``, ``pca_param``, and ``reg_param``, ``lh_reg_param`` and ``rh_reg_param``,
        or ``chunks``, a list of regressions of some neuroids each.

    Raises
    ------
    StoreError, ModelError
        If a file cannot be read, as of `read_npy`.
    """
    if len(files.weights) == 1:
        return read_npy(files.root, files.weights[0])
    found = [
        (read_npy if key.endswith(".npy") else read_joblib)(files.root, key)
        for key in files.weights
    ]
    if files.of_ned:
        return dict(zip(("scaler_param", "pca_param", "reg_param"), found, strict=True))
    return {**found[0], "chunks": found[1:]}


def folded_weights(
    weights: Mapping[str, Any],
    dims: tuple[str, ...],
    labelled: xr.Dataset,
    *,
    time_first: bool,
    shared: bool,
) -> xr.Dataset:
    """Fold scaler, components and regressions into projection and readout.

    Parameters
    ----------
    weights : mapping
        As `read_weights` returns them.
    dims : tuple of str
        Of the targets, ``"repetition"`` among them where each has a regression of its own.
    labelled : Dataset
        One subject's labels.
    time_first : bool
        Whether targets are ordered by time, then neuroid.
    shared : bool
        Whether scaler and components are those of all subjects.

    Returns
    -------
    Dataset
        ``projection ([subject,] feature, component)``, ``projection_offset``,
        ``readout (subject, *dims, component)`` and ``intercept``, float32, with the labels.

    Raises
    ------
    KeyError, AttributeError
        If something is not there.
    ModelError
        If the regressions predict other targets than the labels name.
    """
    from nedx.encoding.weights import fold

    scaler = _parameters(weights["scaler_param"])
    regressions = _regressions(weights, labelled)
    used = regressions[0][0].shape[1]
    fits = [(c[:used], mean) for c, mean in _components(weights["pca_param"])]
    parts = [fold(scaler["mean_"], scaler["scale_"], c, mean) for c, mean in fits]
    sizes = [components.shape[0] for components, _ in fits]
    # With components of their own, repetitions stand side by side: each reads its part only.
    starts = [0, *np.cumsum(sizes)][:-1] if len(fits) > 1 else [0] * len(regressions)
    projection = parts[0][0] if len(parts) == 1 else np.concatenate([p for p, _ in parts], axis=1)
    shape = [labelled.sizes[dim] for dim in dims if dim != "repetition"]
    readouts, intercepts = [], []
    for start, (coef, intercept) in zip(starts, regressions, strict=True):
        _check_targets(coef, shape)
        wide = np.zeros((len(coef), sum(sizes)), np.float32)
        wide[:, start : start + coef.shape[1]] = coef
        readouts.append(_unravelled(wide, shape, time_first))
        intercepts.append(_unravelled(np.asarray(intercept, np.float32), shape, time_first))
    axis = dims.index("repetition") if "repetition" in dims else None
    readout, intercept = (
        found[0] if axis is None else np.stack(found, axis=axis) for found in (readouts, intercepts)
    )
    offset = np.concatenate([o for _, o in parts])
    lead = () if shared else ("subject",)
    return labelled.assign(
        projection=((*lead, "feature", "component"), projection if shared else projection[None]),
        projection_offset=((*lead, "component"), offset if shared else offset[None]),
        readout=(("subject", *dims, "component"), readout[None]),
        intercept=(("subject", *dims), intercept[None]),
    )


def _unravelled(
    flat: np.ndarray,
    shape: list[int],
    time_first: bool,  # noqa: FBT001
) -> np.ndarray:
    """Give the targets their axes back: channel, then time."""
    if time_first:
        return np.swapaxes(flat.reshape(*shape[::-1], *flat.shape[1:]), 0, 1)
    return flat.reshape(*shape, *flat.shape[1:])


def _components(pca: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return components and mean: of one PCA, or of one for each repetition (since 2026)."""
    found = _parameters(pca)
    fits = [found] if "components_" in found else [_parameters(found[n]) for n in sorted(found)]
    return [(fit["components_"], fit["mean_"]) for fit in fits]


def _regressions(
    weights: Mapping[str, Any], labelled: xr.Dataset
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return coefficients and intercepts: of each repetition, of both hemispheres, or of all."""
    if "lh_reg_param" in weights:
        halves = [weights["lh_reg_param"], weights["rh_reg_param"]]
        joined = [np.concatenate([half[name] for half in halves]) for name in _LINEAR]
        return [(joined[0], joined[1])]
    if "chunks" in weights:
        return [_side_by_side(weights["chunks"], labelled.sizes["time"])]
    found = _parameters(weights["reg_param"])
    fits = [found] if "coef_" in found else [_parameters(found[n]) for n in sorted(found)]
    return [(fit["coef_"], fit["intercept_"]) for fit in fits]


def _side_by_side(chunks: list[Mapping[str, Any]], times: int) -> tuple[np.ndarray, np.ndarray]:
    """Join regressions of (time, neuroid) targets along the neuroids."""
    joined = []
    for name in _LINEAR:
        odd = [len(chunk[name]) for chunk in chunks if len(chunk[name]) % times]
        if odd:
            raise ModelError(
                f"a regression predicts {odd[0]:,} targets, which is no multiple of the {times} "
                "times that the metadata name: these files are of different models"
            )
        parts = [np.reshape(c[name], (times, -1, *np.shape(c[name])[1:])) for c in chunks]
        both = np.concatenate(parts, axis=1)
        joined.append(both.reshape(-1, *both.shape[2:]))
    return joined[0], joined[1]


def _parameters(found: Any) -> Mapping[str, Any]:
    """Return parameters by name, of a dictionary or of an object of scikit-learn."""
    return vars(found) if isinstance(found, SimpleNamespace) else found


_LINEAR = ("coef_", "intercept_")


def _check_targets(coef: np.ndarray, shape: list[int]) -> None:
    if len(coef) != int(np.prod(shape)):
        raise ModelError(
            f"the regression predicts {len(coef):,} targets, the metadata name "
            f"{' x '.join(map(str, shape))}: these files are of different models"
        )
