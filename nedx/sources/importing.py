"""``nedx import``: published recordings, opened lazily by their source, written as one store.

To add a source, write a function that opens it and add one line to `SOURCES`::

    "name": Source("nedx.sources.module", "open_something", "what it is", (Argument(...), ...))

The function takes the root of the published files (a `Location`) and the arguments by name, reads
labels only, and returns lazy responses that obey the schema: a Dataset, or a DataTree with a child
for each subject. What was done to the values is in their attributes. The command line and
`import_source` know the rest: options, resuming, blocks and verification.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from nedx.errors import CorruptStoreError, SelectionError, SourceError, close_matches
from nedx.schema import neuroid_dim, role_dim
from nedx.store.building import dataset_groups
from nedx.store.layout import MAX_OBJECTS, Layout, plan_dataset
from nedx.store.location import Location
from nedx.store.writing import BlockWriter, to_zarr

_CHUNK_BYTES = 2_000_000
_CHUNK_SAMPLES, _FEWEST_SAMPLES = 64, 16


def words(text: str) -> list[str]:
    """Read ``1,2`` as two words."""
    return [word.strip() for word in text.split(",") if word.strip()]


@dataclass(frozen=True)
class Argument:
    """What a source is asked for, beside its root.

    Parameters
    ----------
    name : str
        The keyword of its function; ``--name`` in a shell, with dashes for underscores.
    help : str
        One line.
    type : callable
        Makes the value of a word from the shell: ``str``, ``int``, ``float``, `words`, or
        ``bool`` for a flag.
    choices : tuple of str
        What it may be; empty where anything may.
    required : bool
        Whether it must be given.
    """

    name: str
    help: str = ""
    type: Callable[[str], Any] = str
    choices: tuple[str, ...] = ()
    required: bool = False


@dataclass(frozen=True)
class Source:
    """A published format.

    Parameters
    ----------
    module, function : str
        What opens it, imported when it is asked for.
    summary : str
        What it is, for ``nedx import --help``.
    arguments : tuple of Argument
        Of the function.
    """

    module: str
    function: str
    summary: str
    arguments: tuple[Argument, ...] = ()

    def open(self, root: str | Path | Location, **arguments: Any) -> xr.Dataset | xr.DataTree:
        """Open the responses lazily; arguments and errors are those of the function."""
        opener = getattr(importlib.import_module(self.module), self.function)
        opened: xr.Dataset | xr.DataTree = opener(Location.of(root), **arguments)
        return opened


_SUBJECT = Argument("subject", "for example 1,2; all by default", words)
_SESSIONS = Argument("sessions", "counted from 1: 1,2,3; all by default", words)
_MISSING = Argument("missing", "values that are not finite", choices=("error", "zero"))
_ROI = Argument("roi", "only voxels of these, for example V1,FFA1", words)
_BETAS = Argument("normalize", "within each session", choices=("zscore", "none"))
_TIMECOURSES = Argument("normalize", "within each run", choices=("percent", "zscore"))

SOURCES: dict[str, Source] = {
    "bdata": Source(
        "nedx.sources.bdata.reading",
        "open_bdata",
        "responses and labels of one subject in BData: HDF5 or MATLAB 5",
        (
            Argument("subject", "for example 1; by default as the file is called"),
            Argument("stimulus", "the label of the image, such as image_index"),
            Argument("image_set", "names the images: image_id is <image-set>:<name>"),
            Argument("block", "the key of the responses; VoxelData by default"),
            Argument("modality", choices=("fmri", "eeg", "meg", "ieeg", "ephys")),
            Argument("units", "such as percent, or 1 with a normalization"),
            Argument("normalization", "such as zscore, where units are 1"),
            Argument("normalization_scope", "such as run"),
        ),
    ),
    "berg": Source(
        "nedx.sources.berg.responses",
        "open_responses",
        "pre-generated responses of NED (later BERG), HDF5",
        (
            Argument("modality", choices=("fmri", "eeg"), required=True),
            Argument("dataset", "trained on: nsd or things_eeg_2", required=True),
            Argument("model", "fwrf or vit_b_32", required=True),
            Argument("image_set", choices=("nsd", "imagenet_val", "things"), required=True),
            _SUBJECT,
            Argument("roi", "needed for fMRI, for example V1"),
        ),
    ),
    "bids": Source(
        "nedx.sources.bids",
        "open_bids",
        "fMRI volumes of a BIDS dataset with their events: NIfTI",
        (
            Argument("subject", "for example 1 or sub-CSI1", required=True),
            Argument("task", "the label in the file names; all by default"),
            Argument("session", "the label in the file names; all by default"),
            Argument("space", "the label in the file names; none by default"),
            Argument("derivatives", "the folder of the volumes, such as derivatives/fmriprep"),
            Argument("mask", "a NIfTI file in the dataset"),
            Argument("image_set", "names the images: image_id is <image-set>:<name>"),
            Argument("stimulus", "the column of the image"),
            Argument("category", "the column of the kind of event"),
            Argument("sampling_rate", "Hz, where onsets are samples", float),
            Argument("delay", "seconds by which responses follow", float),
            _TIMECOURSES,
            _MISSING,
        ),
    ),
    "brainio": Source(
        "nedx.sources.brainio",
        "open_brainio",
        "an assembly of BrainIO or Brain-Score: netCDF",
        (
            Argument("modality", choices=("fmri", "eeg", "meg", "ieeg", "ephys"), required=True),
            Argument("units", "such as Hz or percent, where the file does not tell"),
            Argument("normalization", "such as zscore, where units are 1"),
            Argument("normalization_scope", "such as session"),
            Argument("image_set", "names the images: image_id is <image-set>:<stimulus id>"),
            Argument("stimuli", "the CSV of the stimulus set"),
            Argument("time_units", "of the time bins", choices=("ms", "s")),
        ),
    ),
    "features": Source(
        "nedx.sources.feature_files",
        "open_feature_file",
        "features of THINGS that others computed: .pt of CLIP and UBP, .npy of NeuroBridge",
        (
            Argument("images", "image_metadata.npy, where the file names no images"),
            Argument("partition", "found by the number of images", choices=("train", "test")),
            Argument("of", "image by default", choices=("image", "text", "eeg")),
            Argument("variant", "where a file holds several, such as avg or 0"),
        ),
    ),
    "haxby2001": Source(
        "nedx.sources.haxby2001",
        "open_haxby",
        "fMRI of faces, houses and six other categories, one subject: NIfTI",
        (_TIMECOURSES, _MISSING),
    ),
    "laion-fmri": Source(
        "nedx.sources.laion_fmri",
        "open_laion_fmri",
        "single-trial betas of LAION-fMRI: NIfTI",
        (
            _SUBJECT,
            _SESSIONS,
            _ROI,
            Argument(
                "ceiling",
                "Noiseceiling12rep by default",
                choices=("Noiseceiling12rep", "Noiseceiling4rep", "NoiseceilingAllrep"),
            ),
            _BETAS,
            _MISSING,
        ),
    ),
    "mne": Source(
        "nedx.sources.mne_files",
        "open_mne",
        "epochs or evoked responses of MNE (FIF), epochs of EEGLAB (set)",
        (
            Argument("channel_type", choices=("eeg", "csd", "mag", "grad", "ecog", "seeg")),
            Argument("image_id", "the column of the metadata that names the image"),
            Argument("subject", "for example 1"),
        ),
    ),
    "nsd": Source(
        "nedx.sources.nsd",
        "open_nsd",
        "single-trial betas of the Natural Scenes Dataset: HDF5, NIfTI or MGH",
        (
            _SUBJECT,
            Argument("space", choices=("func1pt8mm", "func1mm", "fsaverage")),
            _SESSIONS,
            Argument("mask", "voxels of a family of ROIs, such as nsdgeneral, or all"),
            Argument("betas", "the version: betas_fithrf_GLMdenoise_RR by default"),
            _BETAS,
            _MISSING,
        ),
    ),
    "things-eeg2": Source(
        "nedx.sources.things_eeg2",
        "open_raw",
        "raw recordings of THINGS-EEG2, prepared as published",
        (
            _SUBJECT,
            Argument(
                "recipe",
                "berg_2025 by default",
                choices=("eeg_encoding_2022", "nice_2024", "ned_2024", "berg_2025", "realnet_2024"),
            ),
            _SESSIONS,
            Argument("image_metadata", "image_metadata.npy, where it is not beside the root"),
            Argument("montage", "of MNE, or a .vhdr; by default the session's, else easycap-M1"),
        ),
    ),
    "things-fmri": Source(
        "nedx.sources.things_fmri",
        "open_things_fmri",
        "single-trial betas of THINGS-fMRI, table format: HDF5 and CSV",
        (_SUBJECT, _ROI, _BETAS, _MISSING),
    ),
    "things-eeg2-preprocessed": Source(
        "nedx.sources.things_eeg2",
        "open_preprocessed",
        "THINGS-EEG2 as it was prepared by its authors, NICE, UBP or NeuroBridge",
        (
            _SUBJECT,
            Argument("image_metadata", "image_metadata.npy, where it is not beside the root"),
            Argument("normalization", "where files do not tell", choices=("whitened", "zscore")),
            Argument("units", "of voltages that are neither", choices=("uV", "V")),
        ),
    ),
    "things-meg": Source(
        "nedx.sources.things_meg",
        "open_things_meg",
        "epochs of THINGS-MEG as its authors publish them: FIF",
        (
            _SUBJECT,
            Argument("image_paths", "the list of the images of THINGS: image_paths.csv"),
            Argument("zero_shot", "leave out training trials of tested concepts", bool),
        ),
    ),
    "things-meg-prepared": Source(
        "nedx.sources.things_meg_prepared",
        "open_things_meg_prepared",
        "THINGS-MEG as ATM or NeuroBridge prepared it: pickles",
        (
            _SUBJECT,
            Argument("images", "the folder of training_images and test_images", required=True),
            Argument("channels", "names of the sensors, where files have none", words),
            Argument(
                "normalization",
                "where files do not tell",
                choices=("baseline", "zscore", "whitened"),
            ),
        ),
    ),
}
"""All sources by the name that ``nedx import`` knows them by."""


def import_source(
    source: str,
    root: str | Path | Location,
    out: str | Path | Location,
    *,
    overwrite: bool = False,
    progress: bool = False,
    **arguments: Any,
) -> Location:
    """Write published recordings to a store; begun before, it goes on.

    Parameters
    ----------
    source : str
        A name in `SOURCES`, such as ``"nsd"``.
    root : str, Path or Location
        The published files: a folder or a bucket.
    out : str, Path or Location
        The store. Values keep 10 bits of their mantissa, a relative error of 5e-4. Memory holds
        two blocks: one that is read, one that is written.
    overwrite : bool
        Delete what is at ``out`` first.
    progress : bool
        Show a bar.
    **arguments
        Of the source.

    Returns
    -------
    Location
        Of the finished store.

    Raises
    ------
    SelectionError
        If there is no such source; names those there are.
    StoreError, SourceError
        If files are missing, damaged or do not belong together. No store is left behind, but for
        one of which blocks are finished: that can be resumed.
    """
    if source not in SOURCES:
        raise SelectionError(f"no source is called {source!r}: {close_matches(source, SOURCES)}")
    opened = SOURCES[source].open(root, **arguments)
    place = Location.of(out)
    was_there = place.exists()
    try:
        return to_zarr(
            opened,
            place,
            overwrite=overwrite,
            resume=not overwrite,
            layout=aligned_layouts(opened),
            progress=progress,
        )
    except (SourceError, CorruptStoreError):
        if not was_there and not BlockWriter.resume(place).status().done:
            place.delete(recursive=True)
        raise


def aligned_layouts(ds: xr.Dataset | xr.DataTree) -> dict[str, Layout]:
    """Choose blocks that hold what one task of a source reads, where that is one session.

    A source whose task reads a whole session, such as a z-score within session, would read it
    again for each block that holds a part of it.

    Parameters
    ----------
    ds : Dataset or DataTree
        Lazy responses.

    Returns
    -------
    dict of str to Layout
        By group; only of groups whose tasks are all of one length, above that of a chunk, and,
        where there is time, each a session.
    """
    found: dict[str, Layout] = {}
    for group, node in dataset_groups(ds).items():
        layout = _aligned(node) if "response" in node else None
        if layout is not None:
            found[group] = layout
    return found


def _aligned(ds: xr.Dataset) -> Layout | None:
    response = ds["response"]
    dim = role_dim(response, "trial") or role_dim(response, "stimulus")
    lengths = dict(zip(response.dims, response.chunks or (), strict=False)).get(dim, ())
    step = max(lengths, default=0)
    if "session" not in ds.coords or step <= _CHUNK_SAMPLES or set(lengths[:-1]) - {step}:
        return None
    if role_dim(response, "time") is not None and not _is_cut_by_session(ds, lengths):
        return None
    samples = max(n for n in range(1, _CHUNK_SAMPLES + 1) if step % n == 0)
    if samples < _FEWEST_SAMPLES:
        return None
    neuroid = neuroid_dim(response)
    rest = response.dtype.itemsize * samples
    for other, size in response.sizes.items():
        rest *= 1 if other in (dim, neuroid) else size
    wide = max(1, min(response.sizes[neuroid], _CHUNK_BYTES // rest))
    chunks = {"response": {str(dim): samples, str(neuroid): wide}}
    shards = None
    if len(lengths) * (step // samples) * -(-response.sizes[neuroid] // wide) > MAX_OBJECTS:
        shards = {"response": {str(dim): step}}
    return plan_dataset(ds, chunks=chunks, shards=shards, block=step)


def _is_cut_by_session(ds: xr.Dataset, lengths: Sequence[int]) -> bool:
    """Whether each task holds one session, and each session is one task."""
    sessions = np.split(ds["session"].values, np.cumsum(lengths)[:-1])
    found = [np.unique(part).tolist() for part in sessions]
    return all(len(one) == 1 for one in found) and len(np.unique(found)) == len(found)
