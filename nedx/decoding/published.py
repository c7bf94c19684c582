"""Decoders of features that others have published, as models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from nedx.decoding.feature_decoder import kept_model
from nedx.decoding.feature_decoder_model import FeatureModel
from nedx.decoding.feature_decoder_recipe import WHOLE, FeatureDecoderRecipe
from nedx.decoding.feature_decoder_samples import MADE_BY, checked_responses, neuroid_labels
from nedx.decoding.feature_decoder_storing import (
    UNIT_ARRAYS,
    UNITS_PER_CHUNK,
    FeatureModelWriter,
)
from nedx.decoding.samples import whose
from nedx.errors import SourceError
from nedx.schema import subject_label
from nedx.selection import Names
from nedx.sources.bdata.decoders import LAYOUT, open_decoders
from nedx.sources.bdata.reading import told_by_name
from nedx.store.location import Location
from nedx.store.models import partial_model

_NORMS = ("response_mean", "response_deviation")
_UNITS_AT_ONCE = 16 * UNITS_PER_CHUNK


def import_decoder(
    root: str | Path | Location,
    *,
    responses: xr.Dataset | None = None,
    layout: str = LAYOUT,
    layers: Names | None = None,
    **choices: str,
) -> FeatureModel:
    """Read the published decoders of one subject and ROI, to be applied and stored as any other.

    Features are ``((x - x_mean) / x_norm) @ W + b``, times ``y_norm``, plus ``y_mean``. Weights are
    kept as float32. Voxels that did not vary while decoders were fitted, whose ``x_norm`` is 0, are
    only centred.

    Parameters
    ----------
    root : str, Path or Location
        What the folders of the layers lie in.
    responses : Dataset, optional
        Responses ``(sample, voxel)`` of the subject, with exactly the voxels of the decoders, in
        their order: their labels and units are then those of the model. Without them voxels are
        told by position, and responses must not name a unit.
    layout : str
        Folders from there to the files.
    layers : str or sequence of str, optional
        Which; all by default.
    **choices
        What to take where there are several: ``subject="sub-01", roi="ROI_VC"``.

    Returns
    -------
    FeatureModel

    Raises
    ------
    SelectionError
        If a layer or choice is not there, or several are and none was chosen.
    SourceError
        If files are missing or do not belong together, layers are of different fits, nothing says
        whose decoders they are, or responses have other voxels or are of another subject.
    StoreError, CorruptStoreError, ModelError
        As of `nedx.sources.bdata.decoders.open_decoder`.

    Examples
    --------
    >>> model = import_decoder("decoders/VGG19", subject="sub-01", roi="ROI_VC")
    >>> decoded = test.ned.select("ROI_VC").ned.decode(model)
    """
    tree = open_decoders(root, layout=layout, layers=layers, **choices)
    found = {str(name): node.to_dataset() for name, node in tree.children.items()}
    norms = _shared_norms(found)
    url = Location.of(root).url
    subject = _subject(tree.attrs.get("subject"), responses, url)
    size = len(norms["response_mean"])
    neuroid, made, labels = _as_recorded(responses, size, subject)
    recipe = FeatureDecoderRecipe(
        layers={name: tuple(ds.attrs["unit_shape"]) for name, ds in found.items()},
        subjects={subject: size},
        rois=(str(tree.attrs.get("roi", WHOLE)),),
        neuroid=neuroid,
        n_voxels=max(ds.sizes["selected"] for ds in found.values()),
        model_id="published",
        **made,
    )
    group = f"{subject}/{recipe.rois[0]}"
    with partial_model() as partial:
        writer = FeatureModelWriter(partial)
        writer.subject(subject, labels)
        writer.voxels(group, {"position": np.arange(size), **norms})
        for name, ds in found.items():
            _write_layer(writer, f"{group}/{name}", ds)
        return kept_model(partial, writer, recipe, [], {subject: labels})


def _shared_norms(layers: Mapping[str, xr.Dataset]) -> dict[str, np.ndarray]:
    """Return what voxels are standardised by, the same for all layers.

    Raises
    ------
    SourceError
        If layers differ in it, or it cannot standardise.
    """
    first, *others = layers
    for layer in others:
        for name in _NORMS:
            own, reference = layers[layer][name].values, layers[first][name].values
            if own.shape != reference.shape:
                fault = f"take {len(reference):,} and {len(own):,} voxels"
            elif not np.array_equal(own, reference, equal_nan=True):
                fault = "standardise their voxels by other responses"
            else:
                continue
            raise SourceError(
                f"the decoders of {first} and {layer} {fault}, so that they are of different fits: "
                f"import them apart, by layers={layer!r}"
            )
    norms = {name: layers[first][name].values for name in _NORMS}
    if not all(np.isfinite(values).all() for values in norms.values()):
        raise SourceError(f"x_mean or x_norm of {first} hold NaN: these decoders decode nothing")
    deviation = norms["response_deviation"]
    return {**norms, "response_deviation": np.where(deviation == 0, 1, deviation)}


def _subject(folder: str | None, responses: xr.Dataset | None, url: str) -> str:
    """Return the subject that a folder names, or responses."""
    named = None if folder is None else subject_label(told_by_name(folder)[0] or folder)
    given = None if responses is None else whose(responses)
    if named is None and given is None:
        raise SourceError(
            f"nothing says whose decoders are in {url}: write {{subject}} in the layout, or give "
            "responses= of the subject"
        )
    if named is not None and given is not None and named != given:
        raise SourceError(f"the decoders in {url} are of {named}, the responses of {given}")
    return str(named or given)


def _as_recorded(
    responses: xr.Dataset | None, size: int, subject: str
) -> tuple[str, dict[str, Any], xr.Dataset]:
    """Return the neuroid dim of responses, what their numbers mean, and labels of the neuroids."""
    if responses is None:
        return "voxel", {}, xr.Dataset()
    array = checked_responses(responses)
    neuroid = str(array.dims[-1])
    if array.sizes[neuroid] != size:
        raise SourceError(
            f"the responses of {subject} have {array.sizes[neuroid]:,} {neuroid}s, the decoders "
            f"{size:,}: select those that they were fitted to, as by ds.ned.select('ROI_VC')"
        )
    made = {name: array.attrs.get(name, otherwise) for name, otherwise in MADE_BY.items()}
    return neuroid, made, neuroid_labels(responses)


def _write_layer(writer: FeatureModelWriter, group: str, ds: xr.Dataset) -> None:
    """Write the weights of a layer; each of its files is read once."""
    some = ds[list(UNIT_ARRAYS)]
    for part in _blocks(some["weight"].chunksizes["unit"]):
        block = some.isel(unit=part).compute()
        arrays = {name: block[name].values for name in UNIT_ARRAYS}
        writer.units(group, ds.sizes["unit"], part, arrays)


def _blocks(files: Sequence[int]) -> Iterator[slice]:
    """Join the units of whole files to blocks."""
    start = stop = 0
    for units in files:
        stop += units
        if stop - start >= _UNITS_AT_ONCE:
            yield slice(start, stop)
            start = stop
    if stop > start:
        yield slice(start, stop)
