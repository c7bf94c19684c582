"""The published linearised models, opened from the files of the toolbox that made them.

Each subject's file is read once, folded, and kept as a Zarr model in the cache, where a ROI is
read alone. The toolbox is the Brain Encoding Response Generator, formerly the Neural Encoding
Dataset, of Gifford and colleagues.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from nedx.backbones.recipe import BackboneRecipe
from nedx.backbones.registry import default_recipe
from nedx.config import cache_dir
from nedx.errors import ModelError, SelectionError, StoreExistsError, close_matches
from nedx.schema import subject_label
from nedx.selection import Subjects
from nedx.sources.berg import labels
from nedx.sources.berg.layout import Files, find_files, layout_of
from nedx.sources.berg.pickles import read_npy
from nedx.store.location import Location

if TYPE_CHECKING:
    from nedx.catalog.entries import Entry
    from nedx.encoding.model import LinearEncoder

logger = logging.getLogger(__name__)

LICENSE = "CC-BY-NC-4.0"
_WEIGHTS = {
    "vit_b_32": "https://download.pytorch.org/models/vit_b_32-d86f8d99.pth",
    "alexnet": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
}


@dataclass(frozen=True)
class _Family:
    """What models of one training dataset have in common."""

    label: Any
    dims: tuple[str, ...]
    about: Mapping[str, str]


_NED = {"normalization_scope": "session"}
"""NED standardised the EEG of each session, its successor does not: the two are never mixed."""

_FMRI = {"modality": "fmri", "species": "human", "units": "1", "normalization": "zscore"}
_FAMILIES = {
    "things_eeg_2": _Family(
        labels.eeg_labels,
        ("channel", "repetition", "time"),
        {
            "modality": "eeg",
            "species": "human",
            "units": "1",
            "normalization": "zscore",
            "normalization_scope": "baseline",
            "transform": "csd",
            "dataset": "things-eeg2",
            "training_data": "THINGS-EEG2: 16,540 images, one regression for each of 4 repetitions",
        },
    ),
    "nsd_fsaverage": _Family(
        labels.fsaverage_labels,
        ("vertex",),
        {
            **_FMRI,
            "normalization_scope": "session",
            "dataset": "nsd",
            "training_data": "NSD: the subject's own images, mean over repetitions",
        },
    ),
    "things_meg_1": _Family(
        labels.meg_labels,
        ("channel", "time"),
        {
            "modality": "meg",
            "species": "human",
            "units": "1",
            "normalization": "zscore",
            "normalization_scope": "baseline",
            "dataset": "things-meg1",
            "training_data": "THINGS-MEG1: 22,248 images, single trials",
        },
    ),
    "things_fmri_1": _Family(
        labels.things_fmri_labels,
        ("voxel",),
        {
            **_FMRI,
            "normalization_scope": "session",
            "dataset": "things-fmri1",
            "training_data": "THINGS-fMRI1",
        },
    ),
    "tvsd": _Family(
        labels.tvsd_labels,
        ("unit", "time"),
        {
            "modality": "ephys",
            "species": "macaque",
            "units": "1",
            "normalization": "zscore",
            "normalization_scope": "session",
            "dataset": "tvsd",
            "training_data": "TVSD: multi-unit activity, mean over repetitions",
        },
    ),
}


def open_entry(entry: Entry, place: Location, selection: Mapping[str, Any]) -> LinearEncoder:
    """Open the model that a catalog entry names; only the subjects selected are fetched."""
    return open_model(place, entry.id, subject=selection.get("subject"))


def open_model(
    root: str | Path | Location,
    model_id: str,
    *,
    subject: Subjects | None = None,
    split: str | None = None,
    backbone: BackboneRecipe | None = None,
) -> LinearEncoder:
    """Open a published model from a folder or a bucket.

    Parameters
    ----------
    root : str, Path or Location
        What holds the folder ``encoding_models``: a copy, or
        ``s3://brain-encoding-response-generator``.
    model_id : str
        The published id, for example ``"fmri-nsd_fsaverage-vit_b_32"``.
    subject : str, int or sequence, optional
        Only the files of these are fetched, 0.5 to 2 GB each, once; all subjects by default.
    split : str, optional
        Training split of a THINGS-MEG model: ``"full"`` (default), ``"split1"`` to ``"split4"``.
    backbone : BackboneRecipe, optional
        In place of the published one: trained weights that lie elsewhere, or the preprocessing
        policy ``"train"``, with which the ViT models were fitted, instead of ``"berg"``, with
        which the toolbox applies them.

    Returns
    -------
    LinearEncoder
        Predicts ``([subject,] image, repetition, channel, time)``, ``(.., channel, time)``,
        ``(.., vertex)`` or ``(.., voxel)``.

    Raises
    ------
    UnknownIdError, SelectionError
        If there is no such model, subject or split.
    StoreError
        If a file is missing, cut short or not what it should be.
    ModelError
        If weights, metadata and backbone do not fit together.
    """
    from nedx.encoding.joining import join_models

    at = Location.of(root)
    wanted = _subjects(model_id, subject)
    recipe = _backbone(model_id, backbone)
    files = {name: find_files(at, model_id, name, split) for name in wanted}
    return join_models(
        {name: _converted(one, model_id, name, recipe, split) for name, one in files.items()}
    )


def _subjects(model_id: str, subject: Subjects | None) -> list[str]:
    known = layout_of(model_id).labels()
    if subject is None:
        return list(known)
    one = isinstance(subject, str | int | np.integer)
    wanted = [subject_label(name) for name in ([subject] if one else subject)]  # type: ignore
    for name in wanted:
        if name not in known:
            raise SelectionError(
                f"{model_id} has no subject {name!r}; {close_matches(name, known)}"
            )
    return list(dict.fromkeys(wanted))


def _backbone(model_id: str, given: BackboneRecipe | None) -> BackboneRecipe:
    if given is not None:
        return given
    name = model_id.rpartition("-")[2]
    if name not in _WEIGHTS:
        raise ModelError(
            f"{model_id} was fitted to a network with random weights, which were not published. "
            "Give the file that you have of them: "
            "backbone=default_recipe('alexnet', weights=Weights(source='alexnet.pth'))"
        )
    return default_recipe(name, weights={"source": _WEIGHTS[name]})


def _converted(
    files: Files, model_id: str, subject: str, backbone: BackboneRecipe, split: str | None
) -> Location:
    """Return the Zarr model of one subject, made now unless it lies in the cache."""
    stamp = "".join(_stamp(files.root, key) for key in (*files.weights, files.metadata))
    text = "\n".join([files.weights_url, stamp, split or "", backbone.model_dump_json()])
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    place = Location.of(cache_dir() / "berg" / model_id / f"{subject}-{digest}.zarr")
    if place.exists("zarr.json"):
        return place
    logger.info("reading %s, once; it is kept in %s", files.weights_url, place.url)
    model = _read(files, model_id, subject, backbone, split)
    os.makedirs(os.path.dirname(place.url), exist_ok=True)
    try:
        model.to_zarr(place)
    except StoreExistsError:
        logger.info("another process was faster: %s", place.url)
    return place


def _stamp(root: Location, key: str) -> str:
    """Return what changes when a file does: its size, and when it was written or its etag."""
    filesystem, base = root.filesystem()
    info = filesystem.info(f"{base}/{key}")
    changed = next((info[k] for k in ("ETag", "mtime", "LastModified") if k in info), "")
    return f"{info.get('size')} {changed} "


def _read(
    files: Files, model_id: str, subject: str, backbone: BackboneRecipe, split: str | None
) -> LinearEncoder:
    """Read one subject's files, and fold them into a model."""
    from nedx.encoding.model import LinearEncoder
    from nedx.encoding.recipe import EncoderRecipe

    _, dataset, _ = model_id.split("-", 2)
    family = _FAMILIES[dataset]
    metadata = read_npy(files.root, files.metadata)
    try:
        labelled = family.label(metadata, subject)
    except KeyError as error:
        raise ModelError(
            f"{files.metadata} at {files.root.url} has no {error}; it holds "
            f"{', '.join(map(str, metadata))}. Fetch the file again"
        ) from error
    weights = _weights(files)
    try:
        folded = _folded(weights, family.dims, labelled, labels.time_first(metadata))
    except (KeyError, AttributeError) as error:
        raise ModelError(
            f"{files.weights_url} has no {error}; it holds {', '.join(map(str, weights))}. It is "
            f"not the weights of {model_id}, or of an era that nedx does not know"
        ) from error
    _check_width(files, folded.sizes["feature"], backbone)
    recipe = EncoderRecipe(
        backbone=backbone,
        model_id=model_id,
        version="1",
        training_source="measured",
        split=split,
        license=LICENSE,
        citation="Gifford et al., the Brain Encoding Response Generator (formerly NED)",
        **{**family.about, **(_NED if len(files.weights) > 1 else {})},
    )
    try:
        return LinearEncoder(folded, recipe)
    except ModelError as error:
        raise ModelError(f"{files.weights_url}: {error}") from error


def _weights(files: Files) -> dict[str, Any]:
    """Read scaler, components and regressions: from one file, or from three of NED."""
    if len(files.weights) == 1:
        return read_npy(files.root, files.weights[0])
    names = ("scaler_param", "pca_param", "reg_param")
    return {name: read_npy(files.root, key) for name, key in zip(names, files.weights, strict=True)}


def _check_width(files: Files, width: int, backbone: BackboneRecipe) -> None:
    from nedx.backbones import feature_layout

    widths = feature_layout(backbone)
    if width != sum(widths.values()):
        raise ModelError(
            f"{files.weights_url} was fitted to {width:,} features, {backbone.name} has "
            f"{sum(widths.values()):,}: give the backbone that it was fitted to, backbone="
        )


def _folded(
    weights: Mapping[str, Any],
    dims: tuple[str, ...],
    labelled: xr.Dataset,
    time_first: bool,  # noqa: FBT001
) -> xr.Dataset:
    """Fold scaler, components and regressions into projection and readout."""
    from nedx.encoding.weights import fold

    scaler = weights["scaler_param"]
    regressions = _regressions(weights)
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
    return labelled.assign(
        projection=(("subject", "feature", "component"), projection[None]),
        projection_offset=(("subject", "component"), np.concatenate([o for _, o in parts])[None]),
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
    if "components_" in pca:
        return [(pca["components_"], pca["mean_"])]
    return [(pca[name].components_, pca[name].mean_) for name in sorted(pca)]


def _regressions(weights: Mapping[str, Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return coefficients and intercepts: of each repetition, of both hemispheres, or of all."""
    if "lh_reg_param" in weights:
        halves = [weights["lh_reg_param"], weights["rh_reg_param"]]
        joined = [np.concatenate([half[name] for half in halves]) for name in _LINEAR]
        return [(joined[0], joined[1])]
    found = weights["reg_param"]
    fits = [found] if "coef_" in found else [found[name] for name in sorted(found)]
    return [(fit["coef_"], fit["intercept_"]) for fit in fits]


_LINEAR = ("coef_", "intercept_")


def _check_targets(coef: np.ndarray, shape: list[int]) -> None:
    if len(coef) != int(np.prod(shape)):
        raise ModelError(
            f"the regression predicts {len(coef):,} targets, the metadata name "
            f"{' x '.join(map(str, shape))}: these files are of different models"
        )
