"""From the metadata files of published models to coordinates of nedx."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import xarray as xr

from nedx import scalp
from nedx.errors import ModelError

FSAVERAGE = 163_842
"""Vertices of one hemisphere of fsaverage."""

_ACCURACY: Mapping[str, Any] = {
    "long_name": "encoding accuracy",
    "units": "1",
    "metric": "pearson_r",
}
_CEILING: Mapping[str, Any] = {
    "long_name": "noise ceiling",
    "units": "1",
    "method": "ncsnr",
    "valid_range": [0, 1],
}
_NCSNR: Mapping[str, Any] = {"long_name": "noise ceiling signal-to-noise ratio", "units": "1"}
_SENSOR_SIDES = {"Z": "midline"}
_SECONDS = {"units": "s", "long_name": "time from stimulus onset"}


def eeg_labels(metadata: Mapping[str, Any], subject: str) -> xr.Dataset:
    """Label the THINGS-EEG2 models: channel, repetition and time.

    Parameters
    ----------
    metadata : mapping
        Of any era.
    subject : str
        Label.

    Returns
    -------
    Dataset
        Coordinates ``channel``, ``repetition``, ``time`` and, with the subject,
        ``encoding_accuracy``; ``ncsnr`` and ``noise_ceiling`` where the file has them. Of each
        channel ``region``, one of five, ``hemisphere`` and the place ``x``, ``y``, ``z`` by its
        name in the 10-10 system.
    """
    eeg, model = metadata["eeg"], metadata["encoding_models"]
    accuracy = model.get("encoding_accuracy", model)
    ceiling = eeg.get("noise_ceiling")
    found = {
        "encoding_accuracy": (
            _first(accuracy, "correlation_averaged_repetitions", "correlation_all_repetitions"),
            {**_ACCURACY, "test_set": "mean over repetitions of 200 test images"},
        ),
        "ncsnr": (eeg.get("ncsnr"), _NCSNR),
        "noise_ceiling": (None if ceiling is None else as_fraction(ceiling), _CEILING),
    }
    images = model.get("train_img_info") or model.get("train_test_things_image_splits", {})
    tests = model.get("test_img_info") or model.get("train_test_things_image_splits", {})
    partition = {
        "train": things_ids(images.get("train_img_files", ())),
        "test": things_ids(tests.get("test_img_files", ())),
    }
    channels = [str(name) for name in eeg["ch_names"]]
    places = scalp.places(channels)
    labels = xr.Dataset(
        coords={
            "channel": (
                "channel",
                _strings(channels),
                {"montage": scalp.MONTAGE} if places else {},
            ),
            "channel_type": ("channel", np.full(len(channels), "eeg", object)),
            "region": ("channel", _strings(scalp.region(name) or "" for name in channels)),
            "hemisphere": ("channel", _strings(map(scalp.hemisphere, channels))),
            **places,
            "repetition": np.arange(4, dtype=np.int16),
            "time": ("time", np.asarray(eeg["times"], np.float64), _SECONDS),
        }
    )
    return _finished(labels, subject, ("channel", "time"), found, partition)


def meg_labels(metadata: Mapping[str, Any], subject: str) -> xr.Dataset:
    """Label the THINGS-MEG models: channel (sensor) and time; ``channel_group`` is ``"MLO"``.

    The published noise ceilings are percent; here they are fractions.
    """
    sensors, model = metadata["sensors"], metadata["encoding_model"]
    ceiling = model.get("noise_ceiling")
    found = {
        "encoding_accuracy": (model.get("correlation_results"), _ACCURACY),
        "ncsnr": (model.get("ncsnr"), _NCSNR),
        "noise_ceiling": (None if ceiling is None else np.asarray(ceiling) / 100, _CEILING),
    }
    files = _first(model, "train_img_files", "train_stimuli")
    partition = {
        "train": things_ids(() if files is None else files),
        "test": things_ids(model.get("test_img_files", ())),
    }
    columns = {"region": "sensor_regions", "channel_group": "sensor_prefixes"}
    names = _strings(sensors["sensor_names"])
    sides = [_SENSOR_SIDES.get(str(side), str(side)) for side in sensors["sensor_hemispheres"]]
    labels = xr.Dataset(
        coords={
            "channel": names,
            "channel_type": ("channel", np.array(["mag"] * len(names), dtype=object)),
            **{name: ("channel", _strings(sensors[key])) for name, key in columns.items()},
            "hemisphere": ("channel", _strings(sides)),
            "time": ("time", np.asarray(metadata["meg"]["times"], np.float64), _SECONDS),
        }
    )
    return _finished(labels, subject, ("channel", "time"), found, partition)


def time_first(metadata: Mapping[str, Any]) -> bool:
    """Return whether targets are ordered by time, then sensor; only THINGS-MEG files differ."""
    if "sensors" not in metadata:
        return False
    shape = np.shape(metadata["encoding_model"].get("correlation_results", ()))
    expected = (len(metadata["sensors"]["sensor_names"]), len(metadata["meg"]["times"]))
    return shape == expected[::-1] != expected


def fsaverage_labels(metadata: Mapping[str, Any], subject: str) -> xr.Dataset:
    """Label the NSD models on fsaverage: the left hemisphere's vertices, then the right's.

    Of the metadata of 2026 the figures on the main experiment (``nsdcore``) are taken.
    """
    fmri, model = metadata["fmri"], metadata["encoding_models"]
    count = len(fmri["lh_ncsnr"])

    def joined(name: str, home: Mapping[str, Any]) -> np.ndarray | None:
        halves = [_first(home, f"{h}_{name}", f"{h}_{name}_nsdcore") for h in ("lh", "rh")]
        return None if halves[0] is None else np.concatenate(halves)

    found = {
        "encoding_accuracy": (
            joined("correlation", model),
            {**_ACCURACY, "test_set": "515 shared images, mean of 3", "clipped_below": 0.0},
        ),
        "noise_ceiling": (joined("noise_ceiling", model), _CEILING),
        "ncsnr": (joined("ncsnr", fmri), _NCSNR),
    }
    sides = [fmri["lh_fsaverage_rois"], fmri["rh_fsaverage_rois"]]
    members = {
        name: np.concatenate(
            [np.asarray(rois.get(name, ()), np.int64) + count * h for h, rois in enumerate(sides)]
        )
        for name in dict.fromkeys([*sides[0], *sides[1]])
    }
    labels = xr.Dataset(
        coords={
            "vertex": ("vertex", np.arange(2 * count, dtype=np.int32), _surface(count)),
            "hemisphere": ("vertex", np.repeat(np.array(["L", "R"], dtype=object), count)),
            "vertex_index": ("vertex", np.tile(np.arange(count, dtype=np.int32), 2)),
            **_masks(members, subject, "vertex", 2 * count),
        }
    )
    return _finished(labels, subject, ("vertex",), found, nsd_partition(model))


def things_fmri_labels(metadata: Mapping[str, Any], subject: str) -> xr.Dataset:
    """Label the THINGS-fMRI models: voxels of one subject."""
    fmri, model = metadata["fmri"], metadata["encoding_model"]
    count = int(fmri["n_voxels"])
    ceiling = model.get("noise_ceiling_testset")
    found = {
        "encoding_accuracy": (model.get("correlation_results"), _ACCURACY),
        "noise_ceiling": (None if ceiling is None else as_fraction(ceiling), _CEILING),
    }
    places = np.asarray(fmri["voxel_coords"])
    labels = xr.Dataset(
        coords={
            "voxel": np.arange(count, dtype=np.int32),
            **{
                axis: ("voxel", places[:, number].astype(np.int32))
                for number, axis in enumerate("ijk")
            },
            **_masks(metadata["roi"], subject, "voxel", count),
        }
    )
    partition = {
        "train": things_ids(model.get("train_stimuli", ())),
        "test": things_ids(model.get("test_stimuli", ())),
    }
    return _finished(labels, subject, ("voxel",), found, partition)


def tvsd_labels(metadata: Mapping[str, Any], subject: str) -> xr.Dataset:
    """Label the TVSD models: electrodes (units) in V1, V4 and IT, and time.

    The published noise ceilings are percent; here they are fractions.
    """
    array = _first(metadata, "utah_array", "utah-array")
    model, roi = metadata["encoding_model"], metadata["roi"]
    areas = np.asarray(roi["roi_assignments"])
    members = {str(name): np.flatnonzero(areas == n) for n, name in enumerate(roi["roi_labels"])}
    found = {
        "encoding_accuracy": (model.get("correlation_results"), _ACCURACY),
        "ncsnr": (model.get("ncsnr"), _NCSNR),
        "noise_ceiling": (np.asarray(model["noise_ceiling"]) / 100, _CEILING),
    }
    labels = xr.Dataset(
        coords={
            "unit": np.arange(len(areas), dtype=np.int32),
            "electrode": ("unit", np.asarray(array["electrode_order"], np.int32)),
            "time": ("time", np.asarray(array["times"], np.float64), _SECONDS),
            **_masks(members, subject, "unit", len(areas)),
        }
    )
    return _finished(labels, subject, ("unit", "time"), found, {})


_FWRF_NAMES = """
V1 V2 V3 hV4 EBA FBA-2 OFA FFA-1 FFA-2 PPA RSC OPA OWFA VWFA-1 VWFA-2 mfs-words early midventral
midlateral midparietal parietal lateral ventral
"""
FWRF_ROIS = tuple(_FWRF_NAMES.split())
"""Of the fwRF models, in the order that numbers their voxels."""


def fwrf_labels(metadata: Mapping[str, Any], roi: str) -> xr.Dataset:
    """Label the voxels of one subject's fwRF model of a ROI.

    Parameters
    ----------
    metadata : mapping
        Of any era.
    roi : str
        Which ROI, one of `FWRF_ROIS`.

    Returns
    -------
    Dataset
        Coordinates of ``voxel``, in the C order of the mask: ``i``, ``j``, ``k``,
        ``encoding_accuracy``, ``noise_ceiling``, ``ncsnr`` and ``roi_mask (roi, voxel)``.
        ``voxel`` is the C index in the volume, plus the size of the volume for each ROI that comes
        before in the list: a voxel of two ROIs has a model, and a number, in each.

    Raises
    ------
    KeyError
        If something is not there.
    ModelError
        If it does not fit the mask.
    """
    fmri, model = metadata["fmri"], metadata["encoding_models"]
    accuracy = model.get("encoding_accuracy", model)
    mask = np.asarray(fmri["roi_mask_volume"], bool)
    places = np.nonzero(mask)
    count = len(places[0])
    first = FWRF_ROIS.index(roi) * mask.size if roi in FWRF_ROIS else 0
    about: dict[str, tuple[Any, Mapping[str, Any]]] = {
        "encoding_accuracy": (np.sqrt(accuracy["r2"]), {**_ACCURACY, "clipped_below": 0.0}),
        "noise_ceiling": (as_fraction(accuracy["noise_ceiling"]), _CEILING),
        "ncsnr": (fmri["ncsnr"], _NCSNR),
    }
    for name, (values, _) in about.items():
        if np.shape(values) != (count,):
            raise ModelError(
                f"{name} of {roi} has the shape {np.shape(values)}, its mask {count:,} voxels: "
                "metadata of different models"
            )
    volume = {
        "space": "func1pt8mm",
        "volume_shape": list(mask.shape),
        "affine": np.asarray(fmri["fmri_affine"], np.float64).ravel().tolist(),
    }
    numbers = (first + np.flatnonzero(mask)).astype(np.int32)
    return xr.Dataset(
        coords={
            "voxel": ("voxel", numbers, volume),
            **{
                axis: ("voxel", found.astype(np.int32))
                for axis, found in zip("ijk", places, strict=True)
            },
            **{
                name: ("voxel", np.asarray(values, np.float32), dict(attrs))
                for name, (values, attrs) in about.items()
            },
            "roi": np.array([roi], dtype=object),
            "roi_mask": (("roi", "voxel"), np.ones((1, count), bool)),
        }
    )


def nsd_partition(model: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the splits as image ids; the published numbers are 0-based 73k ids.

    Parameters
    ----------
    model : mapping
        The ``encoding_models`` of the metadata, of any era.

    Returns
    -------
    dict
        ``train``, ``val`` and ``test``, as far as they are known.
    """
    splits = model.get("train_val_test_nsd_image_splits", model)
    return {
        name: [f"nsd:{int(number):05d}" for number in splits[f"{name}_img_num"]]
        for name in ("train", "val", "test")
        if splits.get(f"{name}_img_num") is not None
    }


def things_ids(files: Iterable[Any]) -> list[str]:
    """Return ``things:aardvark_01b`` for paths such as ``aardvark/aardvark_01b.jpg``."""
    return [f"things:{PurePosixPath(str(file)).stem}" for file in files]


def as_fraction(values: Any) -> np.ndarray:
    """Return a noise ceiling as a fraction; above 1 it can only have been percent."""
    array = np.asarray(values, np.float64)
    return array / 100 if np.nanmax(array, initial=0) > 1 else array


def _masks(members: Mapping[str, Any], subject: str, dim: str, count: int) -> dict[str, Any]:
    mask = np.zeros((1, len(members), count), dtype=bool)
    for number, (name, positions) in enumerate(members.items()):
        indices = np.asarray(positions, np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= count):
            raise ModelError(
                f"the ROI {name!r} of {subject} names the {dim} {int(indices.max())}, there are "
                f"{count:,}: these metadata belong to other weights"
            )
        mask[0, number, indices] = True
    return {
        "roi": np.array(list(members), dtype=object),
        "roi_mask": (("subject", "roi", dim), mask),
    }


def _finished(
    labels: xr.Dataset,
    subject: str,
    dims: tuple[str, ...],
    found: Mapping[str, tuple[Any, Mapping[str, Any]]],
    partition: Mapping[str, list[str]],
) -> xr.Dataset:
    """Add the subject, what is known of each target, and which images the model has seen."""
    shape = tuple(labels.sizes[dim] for dim in dims)
    coords: dict[str, Any] = {"subject": np.array([subject], dtype=object)}
    for name, (values, attrs) in found.items():
        if values is not None:
            array = _shaped(np.asarray(values, np.float32), shape, name)
            coords[name] = (("subject", *dims), array[None], dict(attrs))
    ids = [image for images in partition.values() for image in images]
    kinds = [kind for kind, images in partition.items() for _ in images]
    if ids:
        coords["known_image"] = np.array(ids, dtype=object)
        coords["known_partition"] = (
            ("subject", "known_image"),
            np.array([kinds], dtype=object),
        )
    return labels.assign_coords(coords)


def _shaped(values: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Bring values to the order of the labels; some files have time first."""
    if values.shape == shape[::-1] != shape:
        return values.T
    if values.size != int(np.prod(shape)):
        raise ModelError(
            f"{name} has the shape {values.shape}, expected {shape}: metadata and weights are of "
            "different models"
        )
    return values.reshape(shape)


def _surface(count: int) -> dict[str, Any]:
    attrs: dict[str, Any] = {"n_vertices_lh": count}
    return {"space": "fsaverage", "density": "164k", **attrs} if count == FSAVERAGE else attrs


def _first(home: Mapping[str, Any], *names: str) -> Any:
    return next((home[name] for name in names if name in home), None)


def _strings(values: Iterable[Any]) -> np.ndarray:
    return np.array([str(value) for value in values], dtype=object)
