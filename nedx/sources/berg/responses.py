"""Pre-generated responses to NSD, ImageNet and THINGS images, opened where their files lie.

The Neural Encoding Dataset (NED) of Gifford and colleagues published, until 2025, what its models
predict for about 150,000 images: an HDF5 file for each subject (of fMRI: and ROI), and beside it
the labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from nedx.compute.planned import PlannedArray
from nedx.errors import ModelError
from nedx.schema import parse
from nedx.selection import Subjects
from nedx.sources.berg.hdf5 import RowsPlan, StoredRows, open_rows
from nedx.sources.berg.labels import eeg_labels, fwrf_labels, nsd_partition, things_ids
from nedx.sources.berg.pickles import read_npy
from nedx.sources.berg.response_files import (
    DATASET,
    WantedResponses,
    find_metadata,
    find_responses,
)
from nedx.sources.berg.streams import url_of
from nedx.store.location import Location
from nedx.store.writing import to_zarr

_NSD_IMAGES = 73_000
_NSD_SESSIONS = (40, 40, 32, 30, 40, 32, 40, 30)
"""Scanned of each NSD subject; 750 images were shown in each."""

_RESPONSE = {
    "long_name": "predicted response",
    "units": "1",
    "normalization": "zscore",
    "normalization_scope": "session",
}


def open_responses(
    root: str | Path | Location,
    *,
    modality: str,
    dataset: str,
    model: str,
    image_set: str,
    subject: Subjects | None = None,
    roi: str | None = None,
) -> xr.Dataset | xr.DataTree:
    """Open pre-generated responses, lazily; only labels are read.

    Parameters
    ----------
    root : str, Path or Location
        What holds the folder ``pregenerated_insilico_neural_responses`` (before October 2024:
        ``synthetic_neural_responses``): a folder, a bucket or a web server.
    modality : {"fmri", "eeg"}
        Of the responses.
    dataset, model : str
        What the model was trained on, and its name, as folders spell them: ``"nsd"`` and
        ``"fwrf"``, or ``"things_eeg_2"`` and ``"vit_b_32"``.
    image_set : {"nsd", "imagenet_val", "things"}
        The images: 73,000, 50,000 or 26,107.
    subject : str, int or sequence, optional
        All that are there by default.
    roi : str, optional
        Needed for fMRI, whose files hold one ROI each.

    Returns
    -------
    Dataset or DataTree
        ``response``, float32 z-scores within session: of fMRI ``(image, voxel)`` of one subject,
        and of several a DataTree with a child for each; of EEG
        ``(subject, image, repetition, channel, time)``. Of the images that
        are selected whole rows are read, of the others nothing.

        ``image_id`` is ``nsd:00000`` (0-based, as ``nsd_id``), ``things:aardvark_01b``, or
        ``imagenet-val:row-00000``: rows of ImageNet are in the order of torchvision, by the
        folder of the class and then by file name, so that which file ``ILSVRC2012_val_00000001``
        is a row is known only from a copy of the images. ``partition ([subject,] image)`` says
        what was training data, ``seen_by_subject (image)`` what an NSD subject was shown.

    Raises
    ------
    SelectionError
        If there is no such image set, subject or ROI; names those that there are.
    StoreError, CorruptStoreError
        If a file is missing, cut short or damaged, or the server does not answer.
    ModelError
        If a file is of another kind, or does not fit its metadata.
    """
    wanted = WantedResponses(Location.of(root), modality, dataset, model, image_set, roi)
    found = find_responses(wanted, subject)
    parts = {name: _read_part(wanted, name, key) for name, key in found.items()}
    if modality == "fmri":
        nodes = {name: _fmri(wanted, part) for name, part in parts.items()}
        if subject is not None and len(nodes) == 1:
            return parse(next(iter(nodes.values())))
        top = xr.Dataset(attrs=_attrs(wanted, list(nodes)))
        return parse(xr.DataTree.from_dict({"/": top, **nodes}))
    return parse(_eeg(wanted, list(parts.values())))


def import_responses(
    root: str | Path | Location,
    out: str | Path | Location,
    *,
    modality: str,
    dataset: str,
    model: str,
    image_set: str,
    subject: Subjects | None = None,
    roi: str | None = None,
) -> Location:
    """Write pre-generated responses to a Zarr store; begun before, it goes on.

    Parameters
    ----------
    root, modality, dataset, model, image_set, subject, roi
        As `open_responses` takes them.
    out : str, Path or Location
        The store. Values keep 10 bits of their mantissa, a relative error of 5e-4.

    Returns
    -------
    Location
        Of the finished store.

    Raises
    ------
    SelectionError, StoreError, ModelError
        As of `open_responses`; nothing is written then.
    StoreExistsError
        If there is something else at ``out``.
    """
    responses = open_responses(
        root,
        modality=modality,
        dataset=dataset,
        model=model,
        image_set=image_set,
        subject=subject,
        roi=roi,
    )
    return to_zarr(responses, out, resume=True)


@dataclass(frozen=True)
class _Part:
    """One subject's file and what is said of it."""

    subject: str
    rows: StoredRows
    metadata: Mapping[str, Any]
    metadata_url: str
    images: Mapping[str, Any]


def _read_part(wanted: WantedResponses, subject: str, key: str) -> _Part:
    """Read the labels of one file, and where its values lie."""
    metadata_key = find_metadata(wanted, subject, key)
    metadata = read_npy(wanted.root, metadata_key)
    rows = open_rows(wanted.root, key, DATASET)
    url = url_of(wanted.root, metadata_key)
    with _explained(url, metadata):
        images = _image_labels(wanted.image_set, metadata, rows, subject)
    return _Part(subject, rows, metadata, url, images)


@contextmanager
def _explained(url: str, metadata: Mapping[str, Any]) -> Iterator[None]:
    try:
        yield
    except (KeyError, IndexError) as error:
        raise ModelError(
            f"{url} lacks something ({type(error).__name__}: {error}); it holds "
            f"{', '.join(map(str, metadata))}. It belongs to other responses, or is damaged: fetch "
            "it again"
        ) from error


def _image_labels(
    image_set: str, metadata: Mapping[str, Any], rows: StoredRows, subject: str
) -> dict[str, Any]:
    """Return the coordinates of the images, but for what differs between subjects."""
    count = rows.shape[0]
    if image_set == "nsd":
        named = 1 + int(np.max(metadata["nsd_labels"]["subjectim"], initial=-1))
        if not named <= count <= _NSD_IMAGES:
            raise _misfit(rows, f"between {named:,} and {_NSD_IMAGES:,} images")
        found: dict[str, Any] = {
            "image_id": [f"nsd:{number:05d}" for number in range(count)],
            "nsd_id": np.arange(count, dtype=np.int32),
        }
    elif image_set == "imagenet_val":
        labels = metadata["imagenet_val_labels"]
        numbers = np.asarray(labels["label_number"], np.int16)
        found = {
            "image_id": [f"imagenet-val:row-{row:05d}" for row in range(len(numbers))],
            "imagenet_label": numbers,
            "category": [str(labels["label_names"][number]) for number in numbers.tolist()],
        }
    else:
        labels = metadata["things_labels"]
        concepts = np.asarray(labels["image_concept_index"]).tolist()
        files = [str(labels["image_paths"][row]) for row in range(len(concepts))]
        found = {
            "image_id": things_ids(files),
            "things_concept": [str(labels["unique_id"][concept]) for concept in concepts],
            "filename": files,
        }
    if len(found["image_id"]) != count:
        raise _misfit(rows, f"{len(found['image_id']):,} images")
    found["stimulus_set"] = [image_set.replace("_", "-")] * count
    return {name: ("image", _column(values)) for name, values in found.items()}


def _column(values: Any) -> np.ndarray:
    return values if isinstance(values, np.ndarray) else np.array(values, dtype=object)


def _misfit(rows: StoredRows, expected: str) -> ModelError:
    return ModelError(
        f"{rows.url} has the shape {rows.shape}, its metadata describe {expected}: the two are not "
        "of the same responses. Fetch both again"
    )


def _fmri(wanted: WantedResponses, part: _Part) -> xr.Dataset:
    """Return the responses of the voxels of one subject's ROI."""
    if len(part.rows.shape) != 2:
        raise _misfit(part.rows, "(image, voxel)")
    with _explained(part.metadata_url, part.metadata):
        labels = fwrf_labels(part.metadata, str(wanted.roi))
        known = nsd_partition(part.metadata["encoding_models"])
        seen = _seen(wanted, part)
    if labels.sizes["voxel"] != part.rows.shape[1]:
        raise _misfit(part.rows, f"{labels.sizes['voxel']:,} voxels")
    ids = part.images["image_id"][1]
    images = {**part.images, **seen}
    if known:
        images["partition"] = ("image", _partition(ids, known))
    return xr.Dataset(
        {"response": _response(("image", "voxel"), [part.rows], _RESPONSE, is_stacked=False)},
        {**images, **labels.coords},
        _attrs(wanted, [part.subject]),
    )


def _seen(wanted: WantedResponses, part: _Part) -> dict[str, Any]:
    """Return which images an NSD subject was shown; of other subjects this is not known.

    The trials of session s are entries 750 s to 750 (s + 1) of ``masterordering``, which point
    into the subject's row of ``subjectim``; both count from 0.
    """
    if wanted.image_set != "nsd" or wanted.dataset.partition("_")[0] != "nsd":
        return {}
    number = int(part.subject.removeprefix("sub-")) - 1
    design = part.metadata["nsd_labels"]
    trials = np.ravel(design["masterordering"])[: 750 * _NSD_SESSIONS[number]]
    shown = np.zeros(part.rows.shape[0], bool)
    shown[np.asarray(design["subjectim"])[number, trials]] = True
    about = {"long_name": "shown to the subject in the sessions that were scanned"}
    return {"seen_by_subject": ("image", shown, about)}


def _partition(ids: np.ndarray, known: Mapping[str, Sequence[str]]) -> np.ndarray:
    kinds = {image: name for name, images in known.items() for image in images}
    return np.array([kinds.get(image, "unseen") for image in ids], dtype=object)


def _eeg(wanted: WantedResponses, parts: list[_Part]) -> xr.Dataset:
    """Return the responses of the channels of subjects that share a montage."""
    found = []
    for part in parts:
        with _explained(part.metadata_url, part.metadata):
            labels = eeg_labels(part.metadata, part.subject)
        row = tuple(labels.sizes[dim] for dim in ("repetition", "channel", "time"))
        if part.rows.shape[1:] != row:
            raise _misfit(part.rows, f"(image, repetition, channel, time) with {row}")
        found.append(labels)
    first = parts[0]
    ids = first.images["image_id"][1]
    for part, labels in zip(parts, found, strict=True):
        if not np.array_equal(ids, part.images["image_id"][1]) or not all(
            labels[dim].equals(found[0][dim]) for dim in ("channel", "time")
        ):
            raise ModelError(
                f"images, channels or times of {part.subject} are not those of {first.subject}: "
                "open the two one by one, subject="
            )
    own = [name for name in ("encoding_accuracy", "ncsnr", "noise_ceiling") if name in found[0]]
    coords: dict[str, Any] = {
        **first.images,
        **{name: found[0][name] for name in ("channel", "channel_type", "repetition", "time")},
        **{name: xr.Variable.concat([o[name].variable for o in found], "subject") for name in own},
    }
    if all("known_image" in one.coords for one in found):
        partitions = [_eeg_partition(ids, one) for one in found]
        coords["partition"] = (("subject", "image"), np.stack(partitions))
    names = [part.subject for part in parts]
    dims = ("subject", "image", "repetition", "channel", "time")
    ds = xr.Dataset(coords={"subject": np.array(names, dtype=object), **coords})
    attrs = {**_RESPONSE, "transform": "csd"}
    rows = [part.rows for part in parts]
    response = _response(dims, rows, attrs, is_stacked=True)
    return ds.assign(response=response).assign_attrs(_attrs(wanted, names))


def _eeg_partition(ids: np.ndarray, labels: xr.Dataset) -> np.ndarray:
    images, kinds = labels["known_image"].values, labels["known_partition"].values[0]
    return _partition(ids, {kind: images[kinds == kind].tolist() for kind in set(kinds.tolist())})


def _response(
    dims: tuple[str, ...], rows: list[StoredRows], attrs: Mapping[str, Any], *, is_stacked: bool
) -> xr.Variable:
    plan = RowsPlan.whole(tuple(rows), is_stacked=is_stacked)
    return xr.Variable(dims, PlannedArray(plan), dict(attrs))


def _attrs(wanted: WantedResponses, subjects: list[str]) -> dict[str, Any]:
    return {
        "title": f"Responses of {wanted.model_id} to {wanted.image_set}",
        "source": "synthetic",
        "modality": wanted.modality,
        "species": "human",
        "license": "CC-BY-NC-4.0",
        "references": "Gifford et al., the Neural Encoding Dataset (now BERG)",
        "model_id": wanted.model_id,
        "training_dataset": wanted.dataset,
        "stimulus_type": "image",
        "subject_ids": subjects,
    }
