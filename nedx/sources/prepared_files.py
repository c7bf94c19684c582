"""Pickled recordings that others prepared: a folder a subject, a file for training and for test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nedx.errors import SelectionError, SourceError
from nedx.schema import subject_label
from nedx.selection import Subjects, chosen_subjects
from nedx.sources.mapped_pickles import open_pickled

_SAME_TIME = 1e-6


@dataclass(frozen=True)
class PreparedFile:
    """One file: whose layout it has, and what it holds.

    Parameters
    ----------
    path : Path
    partition : str
        ``"train"`` or ``"test"``.
    flavour : str
        Who writes such files.
    key : str
        How it calls its values.
    held : mapping of str to object
        All that the file names.
    times : ndarray of float64, (time,)
        Of the samples it holds, s.
    """

    path: Path
    partition: str
    flavour: str
    key: str
    held: Mapping[str, Any]
    times: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """The values (..., channel, time), mapped and not read."""
        found: np.ndarray = self.held[self.key]
        return found


def named_values(path: Path, keys: Mapping[str, str]) -> tuple[Mapping[str, Any], str]:
    """Open a pickled dictionary that names channels, times and values.

    Parameters
    ----------
    path : Path
    keys : mapping of str to str
        How files call their values, and who writes such files.

    Returns
    -------
    mapping of str to object
        What the file holds; arrays are mapped.
    str
        How it calls its values.

    Raises
    ------
    SourceError
        If one of these is not there.
    """
    held = open_pickled(path)
    key = next((key for key in keys if isinstance(held.get(key), np.ndarray)), None)
    if key is None or "ch_names" not in held or "times" not in held:
        raise SourceError(
            f"{path} holds {', '.join(map(str, held))}; expected ch_names, times and one of "
            f"{', '.join(keys)}"
        )
    return held, key


def subject_folders(
    folder: Path, names: Mapping[str, Sequence[str]], subject: Subjects | None
) -> dict[str, Path]:
    """Return the folder of each subject that is asked for.

    Parameters
    ----------
    folder : Path
        With folders ``sub-01``, ...; or one of these.
    names : mapping of str to sequence of str
        What the files of each partition may be called.
    subject : str, int or sequence, optional
        Which; the one whose files lie in a folder that does not say it.

    Raises
    ------
    SourceError
        If there is none.
    SelectionError
        If one is not there, or nothing says whose the files are.
    """
    there = {path.name: path for path in sorted(folder.glob("sub-*")) if path.is_dir()}
    known = [name for some in names.values() for name in some]
    if not there and any((folder / name).is_file() for name in known):
        one = folder.name if folder.name.startswith("sub-") else subject
        if not isinstance(one, str | int):
            raise SelectionError(f"{folder} does not say whose its files are; give subject=1")
        there = {subject_label(one): folder}
    if not there:
        raise SourceError(f"{folder} holds no folders sub-01, ... with {' or '.join(known[:2])}")
    return {label: there[label] for label in chosen_subjects(subject, there, f"in {folder}")}


def partition_files(
    folder: Path,
    names: Mapping[str, Sequence[str]],
    opened: Callable[[Path, str], PreparedFile],
) -> list[PreparedFile]:
    """Open the files of one subject, at most one of each partition.

    Raises
    ------
    SourceError
        If there is none, or they do not belong together.
    """
    there = [(folder / name, partition) for partition, some in names.items() for name in some]
    files = [opened(path, partition) for path, partition in there if path.is_file()]
    if not files:
        raise SourceError(f"{folder} holds none of {', '.join(path.name for path, _ in there)}")
    first = files[0]
    for other in files[1:]:
        same = (
            other.flavour == first.flavour
            and list(other.held["ch_names"]) == list(first.held["ch_names"])
            and other.values.shape[-2:] == first.values.shape[-2:]
            and np.allclose(other.times, first.times, rtol=0, atol=_SAME_TIME)
        )
        if not same or other.partition == first.partition:
            raise SourceError(
                f"{other.path} and {first.path} differ in layout, channels or times, or are of the "
                "same images: keep files of one release in a folder"
            )
    return files
