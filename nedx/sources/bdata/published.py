"""BData files as they are published on figshare, fetched with resume, their hashes recorded.

Figshare gives each file an id of its own. The sha256 of what arrived first is kept in
``checksums.json`` beside the files: what is fetched again must be the same.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from nedx.catalog.resolving import resolve
from nedx.errors import CorruptStoreError
from nedx.selection import Subjects, chosen_subjects
from nedx.sources.things_eeg2.fetching import download

FIGSHARE = "https://ndownloader.figshare.com/files/{id}"
"""Where a file with an id is."""
CHECKSUMS = "checksums.json"

_FILE = re.compile(r"(sub-\d+)_\w+")


def pull_ho2023(
    folder: str | Path, *, subject: Subjects | None = None, url: str | None = None
) -> Path:
    """Fetch the BData of Ho et al. 2023; arguments and errors are those of `fetch`."""
    return fetch("ho2023", folder, subject=subject, url=url)


def pull_deeprecon(
    folder: str | Path, *, subject: Subjects | None = None, url: str | None = None
) -> Path:
    """Fetch the BData of Shen et al. 2019; arguments and errors are those of `fetch`."""
    return fetch("deeprecon", folder, subject=subject, url=url)


def fetch(
    dataset: str,
    folder: str | Path,
    *,
    subject: Subjects | None = None,
    url: str | None = None,
) -> Path:
    """Fetch BData files into a folder, from where `open_bdata` opens each.

    What is there already is not fetched again; what was cut off goes on where it stopped.

    Parameters
    ----------
    dataset : str
        An entry of the catalog ``kamitani``; its provenance has the id of each file.
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
    entry = resolve(f"kamitani:{dataset}")
    base = Path(folder).expanduser().absolute()
    wanted = chosen_subjects(subject, entry.subjects, f"in {dataset}")
    base.mkdir(parents=True, exist_ok=True)
    for name, number in entry.provenance.items():
        match = _FILE.fullmatch(name)
        if match and match[1] in wanted:
            _fetch(base / f"{name}.h5", int(number or 0), url or FIGSHARE)
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
