"""Means of blocks: one sample for each stretch of volumes of one condition."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from nedx.errors import SelectionError
from nedx.preprocessing.steps import groups_of, response_of, with_step
from nedx.schema import parse, role_dim


def block_averages(
    ds: xr.Dataset,
    *,
    label: str = "category",
    rest: str = "rest",
    detrend: int | None = 1,
    zscore: bool = True,
) -> xr.Dataset:
    """Average the volumes of each block, of runs that are detrended and z-scored first.

    Parameters
    ----------
    ds : Dataset
        ``response (trial, <neuroid>)`` with the coordinates ``session``, ``run`` and the label
        along ``trial``, in the order in which the volumes were taken.
    label : str
        The coordinate that names the condition. A block is a stretch of consecutive volumes of
        one run with one label; it ends where the label changes.
    rest : str
        The label of what is between blocks.
    detrend : int or None
        Degree of the polynomial that is taken from each neuroid's time course in each run; None
        takes nothing.
    zscore : bool
        z-score each neuroid within each run, rest included (population standard deviation); a
        neuroid that does not vary has 0.

    Returns
    -------
    Dataset
        ``response (trial, <neuroid>)``, float32, lazy, one trial a block, with the label,
        ``session``, ``run`` and ``n_volumes``; runs in their order. Where a coordinate
        ``stimulus_id`` names the image of every block, it becomes ``image_id``.

    Raises
    ------
    SelectionError
        If a coordinate is missing, there is no block, or a run is too short for the polynomial.
    """
    dim = role_dim(ds, "trial")
    if dim is None or label not in ds.coords or ds[label].dims != (dim,):
        raise SelectionError(
            f"blocks are found by a coordinate '{label} (trial)', which is missing. Type: "
            f"ds.assign_coords({label}=('trial', names))"
        )
    runs, group = groups_of(ds, "run")
    rows = [np.flatnonzero(group == position) for position in range(len(runs))]
    _check_lengths(rows, runs, detrend)
    names = ds[label].values.astype(str)
    blocks = [_blocks(names[mine], rest) for mine in rows]
    kept = [position for position, found in enumerate(blocks) if found.max(initial=-1) >= 0]
    if not kept:
        raise SelectionError(f"no volume has another {label!r} than {rest!r}: there are no blocks")
    response = response_of(ds)
    parts = [_run(response.data[rows[run]], blocks[run], detrend, zscore=zscore) for run in kept]
    starts = [rows[run][_firsts(blocks[run])] for run in kept]
    counts = np.concatenate([np.bincount(blocks[run][blocks[run] >= 0]) for run in kept])
    chosen = ds.coords.to_dataset().isel({dim: np.concatenate(starts)})
    attrs = dict(response.attrs)
    if zscore:
        attrs |= {"units": "1", "normalization": "zscore", "normalization_scope": "run"}
    averaged = chosen.assign_attrs(ds.attrs).assign(
        response=(response.dims, da.concatenate(parts), attrs)
    )
    averaged = averaged.assign_coords(n_volumes=(dim, counts.astype(np.int16)))
    steps = {"label": label, "rest": rest, "detrend": detrend, "zscore": "run" if zscore else None}
    return parse(with_step(_identified(averaged), "block_averages", **steps))


def run_blocks(
    values: np.ndarray, blocks: np.ndarray, degree: int | None, *, zscore: bool
) -> np.ndarray:
    """Average the blocks of one run.

    Parameters
    ----------
    values : numpy.ndarray, (volume, neuroid)
        The time courses.
    blocks : numpy.ndarray of int64, (volume,)
        Number of the block of each volume, from 0; -1 for rest.
    degree : int or None
        Of the polynomial that is taken from each course.
    zscore : bool
        Whether to divide by the standard deviation of what is left, of all volumes.

    Returns
    -------
    numpy.ndarray of float32, (block, neuroid)
    """
    courses = values.astype(np.float64)
    constant = courses.max(0) == courses.min(0)
    if degree is not None:
        basis = np.polynomial.legendre.legvander(np.linspace(-1, 1, len(courses)), degree)
        basis = np.linalg.qr(basis)[0]
        courses -= basis @ (basis.T @ courses)
    if zscore:
        courses -= courses.mean(0)
        courses /= np.where(constant, np.inf, courses.std(0))
    weights = (blocks == np.arange(blocks.max() + 1)[:, None]).astype(np.float64)
    averaged: np.ndarray = (weights @ courses) / weights.sum(1, keepdims=True)
    return averaged.astype(np.float32)


def _identified(averaged: xr.Dataset) -> xr.Dataset:
    if "stimulus_id" not in averaged.coords or (averaged["stimulus_id"] == "").any():
        return averaged
    named = averaged.rename_vars(stimulus_id="image_id")
    named.attrs.pop("stimulus_identity", None)
    return named


def _run(array: Any, blocks: np.ndarray, degree: int | None, *, zscore: bool) -> da.Array:
    whole = array.rechunk({0: -1})
    return da.map_blocks(
        run_blocks,
        whole,
        blocks,
        degree,
        zscore=zscore,
        chunks=((int(blocks.max()) + 1,), whole.chunks[1]),
        dtype=np.float32,
        meta=np.empty((0, 0), np.float32),
    )


def _blocks(names: np.ndarray, rest: str) -> np.ndarray:
    """Return the number of the block of each volume of a run, -1 for rest."""
    is_block = names != rest
    begins = is_block & np.r_[True, names[1:] != names[:-1]]
    return np.where(is_block, np.cumsum(begins) - 1, -1)


def _firsts(blocks: np.ndarray) -> np.ndarray:
    """Return the first volume of each block."""
    found, first = np.unique(blocks, return_index=True)
    return first[found >= 0]


def _check_lengths(rows: list[np.ndarray], runs: list[Any], degree: int | None) -> None:
    needed = 1 if degree is None else degree + 2
    if short := [run for mine, run in zip(rows, runs, strict=True) if len(mine) < needed]:
        raise SelectionError(
            f"(session, run) {short[0]} has fewer than {needed} volumes, too few for a polynomial "
            f"of degree {degree}: type detrend=None, or leave the run out"
        )
