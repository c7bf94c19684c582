"""Macaque V4 responses to colour photographs (Cowley, Stan, Pillow & Smith 2023).

Layout of the folder, as published at github.com/cowleygroup/V4_compact_models:
``images/images_<S>.zip`` (``image0001.jpg`` and so on), ``responses_repeat_averaged/
responses_<S>.npy`` (neurons, images) and, for one recording, ``responses_raw/responses_<S>.npy``
(neurons, images, repeats; NaN where an image was shown less often). Values are spike counts in
100 ms.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import xarray as xr

from nedx.config import cache_dir
from nedx.errors import SelectionError, StoreError, close_matches

WINDOW = 0.1
"""Seconds in which spikes were counted."""
ANIMALS = {"190923": "WE", "190929": "WE", "210224": "PE", "210325": "PE"}
"""Animal of each recording."""

_CITATION = (
    "Cowley BR, Stan PL, Pillow JW, Smith MA (2023). Compact deep neural network models of "
    "visual cortex. bioRxiv 2023.11.22.568315"
)


def recordings(folder: str | os.PathLike[str]) -> list[str]:
    """Return the recordings that a folder holds."""
    found = Path(folder).glob("responses_repeat_averaged/responses_*.npy")
    return sorted(path.stem.removeprefix("responses_") for path in found)


def open_responses(
    folder: str | os.PathLike[str],
    recording: str,
    *,
    repeats: Literal["mean", "trials", "common"] = "mean",
) -> xr.Dataset:
    """Open the responses of one recording.

    Parameters
    ----------
    folder : path
        The published folder.
    recording : str
        For example ``"210325"``.
    repeats : {"mean", "trials", "common"}
        The mean over repeats; every presentation; or a regular axis of the repeats that all
        images have. Only ``"210325"`` has more than the mean.

    Returns
    -------
    Dataset
        ``response`` in Hz, float32: ``(image, unit)``, ``(trial, unit)`` with the coordinate
        ``repetition (trial)``, or ``(image, repetition, unit)``. Never with NaN.

    Raises
    ------
    SelectionError
        If there is no such recording, or it has no repeats.
    StoreError
        If the file is not as published.
    """
    place = _responses_path(Path(folder), recording, repeats=repeats != "mean")
    counts = np.load(place, allow_pickle=False)
    axes = 2 if repeats == "mean" else 3
    if counts.ndim != axes:
        raise StoreError(f"{place} has shape {counts.shape}, expected {axes} axes")
    rates = (np.moveaxis(counts, 0, -1) / WINDOW).astype(np.float32)
    ids = _image_ids(recording, len(rates))
    dims: tuple[str, ...] = ("image", "unit")
    coords: dict[str, Any] = {"image_id": ("image", ids)}
    if repeats == "trials":
        image, repetition = np.nonzero(np.isfinite(rates).all(-1))
        rates, dims = rates[image, repetition], ("trial", "unit")
        coords = {
            "image_id": ("trial", ids[image]),
            "repetition": ("trial", repetition.astype(np.int16)),
        }
    elif repeats == "common":
        # An image's missing repeats are its last ones.
        count = int(np.isfinite(rates).all(-1).sum(1).min())
        rates, dims = rates[:, :count], ("image", "repetition", "unit")
        coords["repetition"] = np.arange(count, dtype=np.int16)
    return _labelled(rates, dims, coords, recording)


def _labelled(
    rates: np.ndarray, dims: tuple[str, ...], coords: dict[str, Any], recording: str
) -> xr.Dataset:
    from nedx.schema import parse

    attrs = {"units": "Hz", "long_name": "spike rate, 0.1 s window", "source": "measured"}
    units = rates.shape[-1]
    ds = xr.Dataset(
        {"response": (dims, rates, attrs)},
        coords={
            **coords,
            "unit": ("unit", np.arange(units, dtype=np.int32)),
            "region": ("unit", np.full(units, "V4", dtype=object)),
        },
        attrs={
            "dataset": "v4_cowley2023",
            "recording": recording,
            "animal": ANIMALS.get(recording, "unknown"),
            "modality": "ephys",
            "species": "macaca mulatta",
            "stimulus_type": "image",
            "license": "GPL-3.0",
            "citation": _CITATION,
        },
    )
    return parse(ds, kind="responses")


def open_stimuli(folder: str | os.PathLike[str], recording: str) -> xr.Dataset:
    """Open the photographs of one recording, lazily.

    They are unpacked once into the cache.

    Parameters
    ----------
    folder : path
        The published folder.
    recording : str
        For example ``"210325"``.

    Returns
    -------
    Dataset
        ``pixels (image, y, x, rgb)`` with the ``image_id`` of the responses.

    Raises
    ------
    SelectionError
        If there is no such recording.
    """
    from nedx.stimuli.images import open_images

    archive = Path(folder) / "images" / f"images_{recording}.zip"
    if not archive.is_file():
        raise SelectionError(_unknown(recording, Path(folder)))
    target = cache_dir() / "v4_cowley2023" / f"images_{recording}"
    if not target.is_dir():
        _unpack(archive, target)
    return open_images(target, image_set=_image_set(recording))


def _responses_path(folder: Path, recording: str, *, repeats: bool) -> Path:
    kind = "responses_raw" if repeats else "responses_repeat_averaged"
    place = folder / kind / f"responses_{recording}.npy"
    if place.is_file():
        return place
    if repeats and recording in recordings(folder):
        raw = [path.stem.removeprefix("responses_") for path in (folder / kind).glob("*.npy")]
        raise SelectionError(f"{recording} has no repeats, only their mean; these have: {raw}")
    raise SelectionError(_unknown(recording, folder))


def _unknown(recording: str, folder: Path) -> str:
    there = recordings(folder)
    return f"no recording {recording!r} in {folder}: {close_matches(recording, there)}"


def _image_set(recording: str) -> str:
    return f"v4-cowley2023-{recording}"


def _image_ids(recording: str, count: int) -> np.ndarray:
    """Column j of the responses belongs to image j + 1."""
    ids = [f"{_image_set(recording)}:image{number:04d}" for number in range(1, count + 1)]
    return np.array(ids, dtype=object)


def _unpack(archive: Path, target: Path) -> None:
    """Unpack the photographs side by side; the folder appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        with zipfile.ZipFile(archive) as packed:
            for member in packed.infolist():
                # One archive nests its files; only the name counts, wherever it points.
                name = PurePosixPath(member.filename).name
                if not member.is_dir() and name.lower().endswith(".jpg"):
                    (partial / name).write_bytes(packed.read(member))
        try:
            partial.rename(target)
        except OSError:
            # Another process may have been faster.
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
