"""Where the files of pre-generated responses lie, in the folders and names of three eras."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from nedx.errors import SelectionError, StoreError, close_matches
from nedx.schema import subject_label
from nedx.selection import Subjects
from nedx.sources.berg.streams import url_of
from nedx.store.location import Location, remote_errors

DATASET = "synthetic_neural_responses"
"""The one dataset in each file; also how file names begin."""

IMAGE_SETS = ("nsd", "imagenet_val", "things")
MODALITIES = ("fmri", "eeg")
_TOPS = ("pregenerated_insilico_neural_responses", "synthetic_neural_responses")
"""The folder that holds them since October 2024, and before."""


@dataclass(frozen=True)
class WantedResponses:
    """Which responses are asked for, and how their files may be called.

    Parameters
    ----------
    root : Location
        What holds the folder of one of the eras.
    modality, dataset, model, image_set : str
        As folders spell them.
    roi : str or None
        Of fMRI.

    Raises
    ------
    SelectionError
        If there is no such modality or image set, or a ROI is asked for that is not of fMRI.
    """

    root: Location
    modality: str
    dataset: str
    model: str
    image_set: str
    roi: str | None

    def __post_init__(self) -> None:
        for what, name, options in (
            ("image set", self.image_set, IMAGE_SETS),
            ("modality", self.modality, MODALITIES),
        ):
            if name not in options:
                message = f"{what} {name!r} is unknown: {close_matches(name, options)}"
                raise SelectionError(message)
        if self.roi is not None and self.modality != "fmri":
            raise SelectionError(f"roi= is of fMRI, {self.modality} has none: leave it out")

    @property
    def model_id(self) -> str:
        """The id of the model, such as ``"fmri-nsd-fwrf"``."""
        return f"{self.modality}-{self.dataset}-{self.model}"

    @property
    def beginnings(self) -> list[str]:
        """What the key of a file may begin with, newest first."""
        nested = (
            f"modality-{self.modality}/train_dataset-{self.dataset}/model-{self.model}"
            f"/imageset-{self.image_set}"
        )
        # Until May 2024 file names said it all.
        long = (
            f"{DATASET}_training_dataset-{self.dataset}_model-{self.model}"
            f"_imageset-{self.image_set}"
        )
        short = [f"{top}/{nested}/{DATASET}" for top in _TOPS]
        return [*short, f"{_TOPS[1]}/{nested}/{long}", f"{_TOPS[1]}/{long}"]

    def keys(self, subject: str) -> list[str]:
        """Return the keys that the file of a subject may have."""
        roi = f"_roi-{self.roi}" if self.roi else ""
        return [f"{beginning}_{subject}{roi}.h5" for beginning in self.beginnings]

    def listed(self) -> dict[tuple[str, str], str]:
        """Return the keys of what is there, by subject and ROI ("" for EEG)."""
        there: dict[tuple[str, str], str] = {}
        for beginning in self.beginnings:
            try:
                keys = self.root.list(beginning.rpartition("/")[0])
            except remote_errors() as error:
                raise self.root.failed(error, beginning) from error
            pattern = re.compile(rf"{re.escape(beginning)}_(sub-[^_/]+?)(?:_roi-([^/]+))?\.h5")
            for match in filter(None, map(pattern.fullmatch, keys)):
                there.setdefault((match[1], match[2] or ""), match[0])
        return there


def find_responses(wanted: WantedResponses, subject: Subjects | None) -> dict[str, str]:
    """Return the key of the file of each subject.

    Parameters
    ----------
    wanted : WantedResponses
    subject : str, int or sequence, optional
        All that are there by default, which needs a place whose files can be listed.

    Returns
    -------
    dict of str to str
        By label, such as ``"sub-01"``.

    Raises
    ------
    SelectionError
        If the subject or the ROI is not there; names those that are.
    StoreError
        If there is nothing, or the place cannot be reached.
    """
    if wanted.modality == "fmri" and wanted.roi is None:
        rois = ", ".join(sorted({roi for _, roi in wanted.listed()}))
        raise SelectionError(f"say of which ROI, roi=; there are: {rois or 'none'}")
    if subject is None:
        there = wanted.listed()
        found = {who: key for (who, roi), key in there.items() if roi == (wanted.roi or "")}
        if not found:
            # To some file systems, what does not answer is empty.
            _is_there(wanted.root, wanted.keys("sub-01")[0])
            raise _missing(wanted, min((who for who, _ in there), default="sub-01"), there)
        return dict(sorted(found.items()))
    given = [subject] if isinstance(subject, str | int | np.integer) else list(subject)
    if not given:
        raise SelectionError("the selection is empty: name a subject, or leave it out for all")
    names = dict.fromkeys(subject_label(one) for one in given)
    return {name: _found(wanted, name) for name in names}


def _found(wanted: WantedResponses, subject: str) -> str:
    for key in wanted.keys(subject):
        if _is_there(wanted.root, key):
            return key
    raise _missing(wanted, subject, wanted.listed())


def _missing(
    wanted: WantedResponses, subject: str, there: Mapping[tuple[str, str], str]
) -> Exception:
    """Return the error for a file that is not there: what is, or where it was looked for."""
    subjects = sorted({who for who, _ in there})
    rois = sorted({roi for who, roi in there if who == subject})
    if subjects and subject not in subjects:
        return SelectionError(
            f"no responses of {subject!r} are at {wanted.root.url}; there are those of: "
            f"{', '.join(subjects)}"
        )
    if rois:
        return SelectionError(
            f"no responses of the ROI {wanted.roi!r} of {subject} are at {wanted.root.url}; "
            f"there are: {', '.join(rois)}"
        )
    return StoreError(
        f"no responses of {wanted.model_id} to {wanted.image_set} are at {wanted.root.url}: looked "
        f"for {' or '.join(wanted.keys(subject))}. Check the root, which holds the folder "
        f"{_TOPS[0]!r} or {_TOPS[1]!r}; of a web server that lists nothing, name subject="
    )


def find_metadata(wanted: WantedResponses, subject: str, key: str) -> str:
    """Return the key of the metadata that belong to a file of responses.

    Raises
    ------
    StoreError
        If they are missing.
    """
    folder, _, name = key.removesuffix(".h5").rpartition("/")
    roi = f"_roi-{wanted.roi}" if wanted.roi else ""
    names = [name.replace(DATASET, f"{DATASET}_metadata", 1), f"{DATASET}_metadata_{subject}{roi}"]
    keys = list(dict.fromkeys(f"{folder}/{one}.npy" for one in names))
    found = next((one for one in keys if _is_there(wanted.root, one)), None)
    if found is None:
        raise StoreError(
            f"the metadata of {url_of(wanted.root, key)}, without which its axes have no labels, "
            f"are missing: looked for {' or '.join(keys)}. Fetch the file, too"
        )
    return found


def _is_there(root: Location, key: str) -> bool:
    """Whether there is a file; `Location.exists` would begin to download it over http."""
    filesystem, base = root.filesystem()
    path = f"{base}/{key}"
    # fsspec's http says "not found" of whatever went wrong; a read of one byte tells what.
    for request in (partial(filesystem.info, path), partial(filesystem.cat_file, path, 0, 1)):
        try:
            root.patiently(key, request)
        except FileNotFoundError:
            continue
        return True
    return False
