"""The published fwRF models of NSD, opened from the files of the toolbox that made them.

Each file, of one subject and ROI, is read once and kept as a Zarr model in the cache, where some
voxels are read alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nedx.backbones.registry import default_recipe
from nedx.errors import ModelError, SelectionError, StoreError, close_matches
from nedx.schema import subject_label
from nedx.selection import Names, Subjects
from nedx.sources.berg.kept import kept
from nedx.sources.berg.labels import FWRF_ROIS, fwrf_labels, nsd_partition
from nedx.sources.berg.pickles import read_npy, read_pt
from nedx.sources.berg.streams import url_of
from nedx.store.location import Location

if TYPE_CHECKING:
    from nedx.encoding.fwrf_model import FwrfEncoder

MODEL_ID = "fmri-nsd-fwrf"
_FOLDER = "encoding_models/modality-fmri/train_dataset-nsd/model-fwrf"
_SUBJECTS = tuple(f"sub-{number:02d}" for number in range(1, 9))


def open_fwrf(
    root: str | Path | Location, *, subject: Subjects | None = None, roi: Names | None = None
) -> FwrfEncoder:
    """Open the published fwRF models from a folder or a bucket.

    Parameters
    ----------
    root : str, Path or Location
        What holds the folder ``encoding_models``: a copy, or
        ``s3://brain-encoding-response-generator``.
    subject : str, int or sequence, optional
        Only the files of these are fetched; all subjects by default.
    roi : str or sequence, optional
        Only the files of these are fetched, 20 to 250 MB each, once; all 23 by default.

    Returns
    -------
    FwrfEncoder
        Predicts ``(image, voxel)``, a subject's own voxels, one ROI after the other.

    Raises
    ------
    SelectionError
        If there is no such subject or ROI.
    StoreError
        If a file is missing, cut short or not what it should be.
    ModelError
        If weights and metadata do not fit together.
    """
    from nedx.encoding.fwrf_model import FwrfEncoder, join_fwrf
    from nedx.encoding.opening import open_model

    at = Location.of(root)
    subjects = _chosen(subject, _SUBJECTS, "subject")
    rois = _chosen(roi, FWRF_ROIS, "ROI")
    models = []
    for name in subjects:
        for area in rois:
            opened = open_model(_converted(at, name, area))
            if not isinstance(opened, FwrfEncoder):
                raise ModelError(f"the cache holds another model in the place of {name}, {area}")
            models.append(opened)
    return join_fwrf(models)


def _chosen(wanted: Any, there: Sequence[str], what: str) -> list[str]:
    if wanted is None:
        return list(there)
    asked = [wanted] if isinstance(wanted, str | int | np.integer) else list(wanted)
    names = [subject_label(str(one)) if what == "subject" else str(one) for one in asked]
    for name in names:
        if name not in there:
            raise SelectionError(f"{MODEL_ID} has no {what} {name!r}; {close_matches(name, there)}")
    if not names:
        raise SelectionError(f"the selection is empty; {MODEL_ID} has {what}s {', '.join(there)}")
    return list(dict.fromkeys(names))


def _converted(root: Location, subject: str, roi: str) -> Location:
    """Return the Zarr model of one subject and ROI, made now unless it lies in the cache."""
    weights, metadata = _files(root, subject, roi)
    return kept(
        root,
        (*weights, metadata),
        MODEL_ID,
        f"{subject}-{roi}",
        lambda place: _convert(root, weights, metadata, subject, roi, place),
    )


def _files(root: Location, subject: str, roi: str) -> tuple[tuple[str, ...], str]:
    """Return the keys of the weights, one or two halves, and of the metadata."""
    stem = f"{_FOLDER}/encoding_models_weights/weights_{subject}_roi-{roi}"
    eras = ((f"{stem}.pt",), (f"{stem}_split-1.pt", f"{stem}_split-2.pt"))
    weights = next((keys for keys in eras if all(root.exists(key) for key in keys)), None)
    metadata = f"{_FOLDER}/metadata/metadata_{subject}_roi-{roi}.npy"
    lacking = " or ".join(keys[-1] for keys in eras) if weights is None else metadata
    if weights is None or not root.exists(metadata):
        raise StoreError(
            f"the files of {MODEL_ID}, {subject}, {roi} are not all at {root.url}: looked for "
            f"{lacking}. Check the root, which holds the folder 'encoding_models', or fetch the "
            "file again"
        )
    return weights, metadata


def _convert(
    root: Location, weights: tuple[str, ...], metadata: str, subject: str, roi: str, place: Location
) -> None:
    from nedx.encoding.fwrf_store import write_fwrf

    about = read_npy(root, metadata)
    try:
        labels = fwrf_labels(about, roi)
        known = nsd_partition(about["encoding_models"])
    except KeyError as error:
        raise ModelError(
            f"{url_of(root, metadata)} has no {error}; it holds {', '.join(map(str, about))}. "
            "Fetch the file again"
        ) from error
    states = [_state(root, key, subject) for key in weights]
    counts = [len(head["b"]) for _, head in states]
    if sum(counts) != labels.sizes["voxel"]:
        raise ModelError(
            f"{url_of(root, weights[0])} predicts {sum(counts):,} voxels, the metadata name "
            f"{labels.sizes['voxel']:,}: these files are of different models"
        )
    ids = [image for images in known.values() for image in images]
    kinds = [kind for kind, images in known.items() for _ in images]
    labels = labels.assign_coords(
        nedx_trunk=("voxel", np.repeat(np.arange(len(counts), dtype=np.int16), counts)),
        known_image=np.array(ids, dtype=object),
        known_partition=("known_image", np.array(kinds, dtype=object)),
    )
    heads = [head for _, head in states]
    write_fwrf(place, _recipe(), {subject: (labels, heads)}, [trunk for trunk, _ in states])


def _state(
    root: Location, key: str, subject: str
) -> tuple[Mapping[str, np.ndarray], dict[str, np.ndarray]]:
    """Read trunk and head of a file, and check that they are what the formulas need."""
    from nedx.encoding.fwrf import head_of, load_trunk

    url, number = url_of(root, key), int(subject.removeprefix("sub-"))
    content = read_pt(root, key)
    try:
        best = content["best_params"]
        trunk, head = best["enc"], best["fwrfs"][number]
    except (KeyError, TypeError) as error:
        raise ModelError(
            f"{url} has no {error} of the best epoch; it holds {', '.join(map(str, content))}. It "
            f"is not a fwRF model of {subject}, or of an era that nedx does not know"
        ) from error
    try:
        load_trunk(trunk)
        head_of(head)
    except ModelError as error:
        raise ModelError(f"{url}: {error}") from error
    return trunk, {name: np.asarray(values) for name, values in head.items()}


def _recipe() -> Any:
    from nedx.encoding.recipe import EncoderRecipe

    return EncoderRecipe(
        backbone=default_recipe("gnet"),
        model_id=MODEL_ID,
        version="1",
        units="1",
        normalization="zscore",
        normalization_scope="session",
        modality="fmri",
        species="human",
        dataset="nsd",
        training_data="NSD: single trials of up to 9,000 images of the subject's own",
        training_source="measured",
        license="CC-BY-NC-4.0",
        citation="Gifford et al., the Brain Encoding Response Generator (formerly NED)",
    )
