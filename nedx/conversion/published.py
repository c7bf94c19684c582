"""Converters that others have published, as models."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import xarray as xr

from nedx.conversion.model import Converter
from nedx.conversion.recipe import ConverterRecipe, Pair, Side, side_labels, side_of
from nedx.conversion.storing import keep_converter
from nedx.conversion.subjects import checked
from nedx.errors import SourceError
from nedx.schema import subject_label
from nedx.store.location import Location

_COLUMNS = ("Source", "Target", "Number of samples", "Alpha", "Method")


def import_converter(
    folder: str | Path | Location,
    source: str | int,
    target: str | int,
    *,
    source_responses: xr.Dataset | None = None,
    target_responses: xr.Dataset | None = None,
) -> Converter:
    """Read a published converter, to be applied and stored as any other.

    Parameters
    ----------
    folder : str, Path or Location
        The folder ``model`` with ``transformation.mat`` or ``NCconverter.mat``, ``x_mean``,
        ``x_norm``, ``y_mean`` and ``y_norm``. Voxels whose norm is 0 are only centred.
    source, target : str or int
        Whose responses are converted, and into whose.
    source_responses, target_responses : Dataset, optional
        Responses ``(sample, voxel)`` with exactly the voxels of the converter, in their order:
        their labels are then those of the converter. Without them voxels are told by position.

    Returns
    -------
    Converter

    Raises
    ------
    SourceError
        If files are missing or do not belong together, or responses have other voxels.
    ModelError
        If what is given as responses is none.
    """
    from nedx.sources.bdata.converters import open_converter

    ds = open_converter(folder).compute()
    pair = Pair(source=subject_label(source), target=subject_label(target))
    sizes = {pair.source: ds.sizes["source_voxel"], pair.target: ds.sizes["voxel"]}
    given = {pair.source: source_responses, pair.target: target_responses}
    sides, labels = {}, {}
    for name, responses in given.items():
        if responses is None:
            sides[name], labels[name] = Side(neuroid="voxel", size=sizes[name]), xr.Dataset()
            continue
        responses = checked(name, responses, paired=False)
        sides[name], labels[name] = side_of(responses, "neuroid"), side_labels(responses)
        if sides[name].size != sizes[name]:
            raise SourceError(
                f"the responses of {name} have {sides[name].size:,} voxels, the converter "
                f"{sizes[name]:,}; select those it was fitted to, as by ds.ned.roi('ROI_VC')"
            )
    state = {str(name): np.asarray(array.values, np.float32) for name, array in ds.items()}
    for name in ("source_deviation", "target_deviation"):
        state[name] = np.where(state[name] == 0, 1, state[name]).astype(np.float32)
    recipe = ConverterRecipe(
        method="published",
        sides=sides,
        pairs=(pair,),
        model_id="published",
        citation="https://doi.org/10.1016/j.neuroimage.2023.120007",
    )
    return keep_converter([(pair, state)], lambda _: recipe, labels, [])


def read_alphas(
    place: str | Path | Location, n_samples: int = 6000, method: str = "wholeVC"
) -> dict[tuple[str, str], float]:
    """Read a published table of penalties, for ``RidgeConverter(alpha=...)``.

    Parameters
    ----------
    place : str, Path or Location
        CSV with the columns ``Source``, ``Target``, ``Number of samples``, ``Alpha`` and
        ``Method``, such as ``converter_params.csv``.
    n_samples : int
        Training samples that the penalties are for.
    method : str
        ``"wholeVC"`` or ``"subareawise"``.

    Returns
    -------
    dict of (source, target) to float

    Raises
    ------
    SourceError
        If columns or rows are missing.
    """
    whole = Location.of(place)
    folder, _, key = whole.url.rpartition("/")
    text = Location.of(folder or ".").read(key).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    missing = [name for name in _COLUMNS if rows and name not in rows[0]]
    if missing or not rows:
        raise SourceError(f"{whole.url} has no column {', '.join(missing) or _COLUMNS[0]}")
    try:
        counts, alphas = ([float(row[name]) for row in rows] for name in _COLUMNS[2:4])
    except (TypeError, ValueError) as error:
        raise SourceError(f"{whole.url} has samples or penalties that are no numbers") from error
    found = {
        (subject_label(row["Source"]), subject_label(row["Target"])): alpha
        for row, count, alpha in zip(rows, counts, alphas, strict=True)
        if count == n_samples and row["Method"] == method
    }
    if not found:
        there = sorted({(int(n), row["Method"]) for n, row in zip(counts, rows, strict=True)})
        raise SourceError(
            f"{whole.url} has no penalties of {n_samples} samples and {method!r}, only of {there}"
        )
    return found
