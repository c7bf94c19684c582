"""BData files as they are published on figshare, fetched with resume, their hashes recorded.

Figshare gives each file an id of its own. The sha256 of what arrived first is kept in
``checksums.json`` beside the files: what is fetched again must be the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nedx.errors import CorruptStoreError
from nedx.selection import Subjects
from nedx.sources.things_eeg2.fetching import download
from nedx.sources.trials import chosen_subjects

FIGSHARE = "https://ndownloader.figshare.com/files/{id}"
"""Where a file with an id is."""
CHECKSUMS = "checksums.json"

HO2023: Mapping[str, Mapping[str, int]] = {
    "NaturalImageTraining": {
        "sub-01": 32712197,
        "sub-02": 32712488,
        "sub-03": 32718017,
        "sub-04": 32718266,
        "sub-05": 32719550,
    },
    "NaturalImageTest": {
        "sub-01": 32712131,
        "sub-02": 32712407,
        "sub-03": 32717852,
        "sub-04": 32718092,
        "sub-05": 32719436,
    },
    "ArtificialImageTest": {
        "sub-01": 32709608,
        "sub-02": 32712506,
        "sub-03": 32718050,
        "sub-04": 32718284,
        "sub-05": 32719568,
    },
}
"""Ho et al. 2023, figshare article 17985578: fMRI of 1,200 natural images shown 5 times each, of 50
others shown 24 times, and of 40 artificial ones."""
DEEPRECON: Mapping[str, Mapping[str, int]] = {
    "ImageNetTraining_fmriprep_volume_native": {
        "sub-01": 37838826,
        "sub-02": 37848333,
        "sub-03": 37850397,
    },
    "ImageNetTest_fmriprep_volume_native": {
        "sub-01": 37838595,
        "sub-02": 37848300,
        "sub-03": 37849986,
    },
}
"""Shen et al. 2019 (deep image reconstruction), prepared anew with fmriprep."""


def pull_ho2023(
    folder: str | Path, *, subject: Subjects | None = None, url: str | None = None
) -> Path:
    """Fetch the BData of Ho et al. 2023; arguments and errors are those of `fetch`."""
    return fetch(HO2023, folder, subject=subject, url=url)


def pull_deeprecon(
    folder: str | Path, *, subject: Subjects | None = None, url: str | None = None
) -> Path:
    """Fetch the BData of Shen et al. 2019; arguments and errors are those of `fetch`."""
    return fetch(DEEPRECON, folder, subject=subject, url=url)


def fetch(
    files: Mapping[str, Mapping[str, int]],
    folder: str | Path,
    *,
    subject: Subjects | None = None,
    url: str | None = None,
) -> Path:
    """Fetch BData files into a folder, from where `open_bdata` opens each.

    What is there already is not fetched again; what was cut off goes on where it stopped.

    Parameters
    ----------
    files : mapping
        Ids by what was shown and by subject, such as `HO2023`.
    folder : path
        Where to; files are called ``sub-01_NaturalImageTest.h5``.
    subject : str, int or sequence, optional
        Whose; all by default.
    url : str, optional
        Where a file is, with ``{id}`` in the place of its id; figshare by default.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    SelectionError
        If there is no such subject.
    StoreError
        If the server cannot be reached, or refuses; what arrived is kept.
    CorruptStoreError
        If a file is not the one that was fetched first; it is removed.
    """
    base = Path(folder).expanduser().absolute()
    known = sorted({name for subjects in files.values() for name in subjects})
    base.mkdir(parents=True, exist_ok=True)
    for label in chosen_subjects(subject, known, "this dataset"):
        for shown, ids in files.items():
            _fetch(base / f"{label}_{shown}.h5", ids[label], url or FIGSHARE)
    return base


def _fetch(target: Path, number: int, url: str) -> None:
    place = target.with_name(CHECKSUMS)
    recorded: dict[str, Any] = json.loads(place.read_text()) if place.is_file() else {}
    if target.is_file() and target.name in recorded:
        return
    download(url.format(id=number), target)
    with target.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    about = {"figshare_id": number, "sha256": found, "bytes": target.stat().st_size}
    expected = recorded.get(target.name, about)
    if expected["sha256"] != found:
        target.unlink()
        raise CorruptStoreError(
            f"{url.format(id=number)} is not what was fetched first: its sha256 is {found}, "
            f"{place} has {expected['sha256']}. It was removed; do the same again, or remove its "
            "entry there if the publishers have changed it"
        )
    recorded[target.name] = about
    place.write_text(json.dumps(recorded, indent=2, sort_keys=True) + "\n")
