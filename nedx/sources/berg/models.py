"""The published linearised models, opened from the files of the toolbox that made them.

Each subject's file is read once, folded, and kept as a Zarr model in the cache, where a ROI is
read alone. The toolbox is the Brain Encoding Response Generator, formerly the Neural Encoding
Dataset, of Gifford and colleagues.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import xarray as xr

from nedx.backbones.recipe import BackboneRecipe
from nedx.backbones.registry import default_recipe
from nedx.errors import ModelError, SelectionError
from nedx.selection import Subjects, chosen_subjects, resolve
from nedx.sources.berg import labels
from nedx.sources.berg.folding import folded_weights, read_weights
from nedx.sources.berg.kept import kept
from nedx.sources.berg.layout import Files, find_files, layout_of
from nedx.sources.berg.pickles import read_npy
from nedx.store.location import Location

if TYPE_CHECKING:
    from nedx.catalog.entries import Entry
    from nedx.encoding.kinds import Encoder
    from nedx.encoding.model import LinearEncoder

LICENSE = "CC-BY-NC-4.0"
_WEIGHTS = {
    "vit_b_32": "https://download.pytorch.org/models/vit_b_32-d86f8d99.pth",
    "alexnet": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
}

Preprocessing = Literal["berg", "train"]

_TRAINED_WITH = {
    "eeg-things_eeg_2-vit_b_32": "train",
    "fmri-nsd_fsaverage-vit_b_32": "train",
    "eeg-things_eeg_2-alexnet": "berg",
    "eeg-things_eeg_2-alexnet_untrained": "berg",
    "meg-things_meg_1-vit_b_32": "berg",
}
"""The policy of the images that each was fitted to, as far as its training code tells."""


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


def open_entry(entry: Entry, place: Location, selection: Mapping[str, Any]) -> Encoder:
    """Open the model that a catalog entry names; only what is selected is fetched."""
    from nedx.sources.berg.fwrf import MODEL_ID, open_fwrf

    given = {name: value for name, value in selection.items() if value is not None}
    subject = given.pop("subject", None)
    if entry.id == MODEL_ID:
        roi = given.pop("roi", None)
        # Voxels have neither channels nor times: said before anything is fetched.
        resolve(xr.Dataset(coords={"voxel": np.arange(1)}), **given)
        return open_fwrf(place, subject=subject, roi=roi)
    return _open(place, entry.id, subject=subject, selection=given)


def open_model(
    root: str | Path | Location,
    model_id: str,
    *,
    subject: Subjects | None = None,
    split: str | None = None,
    backbone: BackboneRecipe | None = None,
    preprocessing: Preprocessing | None = None,
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
        Of THINGS-fMRI one has to be named: its subjects have voxels of their own.
    split : str, optional
        Training split of a THINGS-MEG model: ``"full"`` (default), ``"split1"`` to ``"split4"``.
    backbone : BackboneRecipe, optional
        In place of the published one: trained weights that lie elsewhere. Its own policy counts
        unless ``preprocessing`` is given.
    preprocessing : {"berg", "train"}, optional
        ``"berg"`` (default), as the toolbox prepares images for prediction, or ``"train"``, as
        they were prepared when the weights were fitted. For the EEG and fsaverage models of the
        ViT these differ: the toolbox enlarges the central 87.5 %, the fit saw whole squares.
        For the models of MEG, of NED and of EEG with AlexNet they do not. Results record the
        policy in ``image_preprocessing``.

    Returns
    -------
    LinearEncoder
        Predicts ``([subject,] image, repetition, channel, time)``, ``(.., channel, time)``,
        ``(.., vertex)`` or ``(.., voxel)``.

    Raises
    ------
    UnknownIdError, SelectionError
        If there is no such model, subject, split or preprocessing.
    StoreError
        If a file is missing, cut short or not what it should be.
    ModelError
        If weights, metadata and backbone do not fit together.
    """
    return _open(
        root,
        model_id,
        subject=subject,
        split=split,
        backbone=backbone,
        preprocessing=preprocessing,
    )


def _open(
    root: str | Path | Location,
    model_id: str,
    *,
    subject: Subjects | None = None,
    split: str | None = None,
    backbone: BackboneRecipe | None = None,
    preprocessing: Preprocessing | None = None,
    selection: Mapping[str, Any] | None = None,
) -> LinearEncoder:
    """Open a model; a selection is not made, only refused where no subject has it."""
    from nedx.encoding.joining import join_models

    at = Location.of(root)
    wanted = _subjects(model_id, subject)
    policy = _checked(preprocessing, given=backbone is not None)
    recipe = _backbone(model_id, backbone)
    files = {name: find_files(at, model_id, name, split) for name in wanted}
    check = _checker(files, model_id, selection or {})
    return join_models(
        {
            name: _converted(
                one, model_id, name, _prepared(recipe, one, model_id, policy), split, check
            )
            for name, one in files.items()
        }
    )


def _checker(
    files: Mapping[str, Files], model_id: str, selection: Mapping[str, Any]
) -> Callable[[], None]:
    """Return what refuses a selection by the metadata, so that no weights are fetched in vain.

    Called where weights are about to be read. ROIs may differ by subject: one has to have it.
    """

    @cache
    def check() -> None:
        refusals = []
        for name, one in files.items() if selection else ():
            try:
                resolve(_labelled(one, model_id, name)[1], **selection)
            except SelectionError as error:
                refusals.append(error)
        if refusals and len(refusals) == len(files):
            raise refusals[0]

    return check


def _subjects(model_id: str, subject: Subjects | None) -> list[str]:
    known = layout_of(model_id).labels()
    return chosen_subjects(subject, known, f"in {model_id}")


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


def _checked(preprocessing: str | None, *, given: bool) -> str | None:
    """Return the name of the preprocessing; None leaves that of a given backbone."""
    if preprocessing is None:
        return None if given else "berg"
    if preprocessing not in get_args(Preprocessing):
        raise SelectionError(
            f"unknown preprocessing {preprocessing!r}; type preprocessing='berg', as the toolbox "
            "prepares images, or preprocessing='train', as they were when the weights were fitted"
        )
    return preprocessing


def _prepared(
    backbone: BackboneRecipe, files: Files, model_id: str, preprocessing: str | None
) -> BackboneRecipe:
    """Return the backbone with the policy that the name stands for, for this file."""
    if preprocessing is None:
        return backbone
    if preprocessing == "train" and not (files.of_ned or model_id in _TRAINED_WITH):
        raise SelectionError(
            f"nedx does not know how images were prepared when {model_id} was fitted; type "
            "preprocessing='berg', as the toolbox prepares them"
        )
    name = "berg" if preprocessing == "berg" or files.of_ned else _TRAINED_WITH[model_id]
    return backbone.model_copy(update={"policy": name})


def _converted(
    files: Files,
    model_id: str,
    subject: str,
    backbone: BackboneRecipe,
    split: str | None,
    check: Callable[[], None],
) -> Location:
    """Return the Zarr model of one subject, made now unless it lies in the cache."""

    def write(place: Location) -> None:
        check()
        _read(files, model_id, subject, backbone, split).to_zarr(place)

    return kept(
        files.root,
        (*files.weights, files.metadata),
        model_id,
        subject,
        write,
        f"{split or ''}{backbone.model_dump_json()}",
    )


def _read(
    files: Files, model_id: str, subject: str, backbone: BackboneRecipe, split: str | None
) -> LinearEncoder:
    """Read one subject's files, and fold them into a model."""
    from nedx.encoding.model import LinearEncoder
    from nedx.encoding.recipe import EncoderRecipe

    family = _family(model_id)
    metadata, labelled = _labelled(files, model_id, subject)
    weights = read_weights(files)
    time_first = labels.time_first(metadata) or "chunks" in weights
    try:
        folded = folded_weights(
            weights, family.dims, labelled, time_first=time_first, shared=files.of_ned
        )
    except (KeyError, AttributeError) as error:
        raise ModelError(
            f"{files.weights_url} has no {error}; it holds {', '.join(map(str, weights))}. It is "
            f"not the weights of {model_id}, or of an era that nedx does not know"
        ) from error
    _check_width(files, model_id, folded.sizes["feature"], backbone)
    recipe = EncoderRecipe(
        backbone=backbone,
        model_id=model_id,
        version="1",
        training_source="measured",
        split=split,
        license=LICENSE,
        citation="Gifford et al., the Brain Encoding Response Generator (formerly NED)",
        **{**family.about, **(_NED if files.of_ned else {})},
    )
    try:
        return LinearEncoder(folded, recipe)
    except ModelError as error:
        raise ModelError(f"{files.weights_url}: {error}") from error


def _family(model_id: str) -> _Family:
    return _FAMILIES[model_id.split("-", 2)[1]]


def _labelled(files: Files, model_id: str, subject: str) -> tuple[dict[str, Any], xr.Dataset]:
    """Read the metadata of one subject; return them, and the labels of the targets."""
    metadata = read_npy(files.root, files.metadata)
    try:
        return metadata, _family(model_id).label(metadata, subject)
    except KeyError as error:
        raise ModelError(
            f"{files.metadata} at {files.root.url} has no {error}; it holds "
            f"{', '.join(map(str, metadata))}. Fetch the file again"
        ) from error


def _check_width(files: Files, model_id: str, width: int, backbone: BackboneRecipe) -> None:
    from nedx.backbones import feature_layout

    widths = feature_layout(backbone)
    network = model_id.rpartition("-")[2].removesuffix("_untrained")
    if width != sum(widths.values()):
        raise ModelError(
            f"{files.weights_url} was fitted to {width:,} features, {backbone.name} has "
            f"{sum(widths.values()):,}: give the one that it was fitted to, with all its layers. "
            f"Type: backbone=default_recipe({network!r})"
        )
