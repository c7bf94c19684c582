"""``events.tsv`` of BIDS as datasets write them: ids that look like numbers, onsets in samples."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nedx.errors import SourceError, StoreError, close_matches
from nedx.store.location import Location

STIMULUS_COLUMNS = ("stim_file", "stimulus_name", "stim", "stimulus", "stimname")
"""Where datasets say which image was shown, in the order in which they are looked for."""
CATEGORY_COLUMNS = ("trial_type", "stim_type", "event_type", "ImgType", "object")
"""Where they say of which kind an event is."""
MISSING = ("n/a", "")
_DAY = 86_400.0
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".gif", ".webp")


@dataclass(frozen=True, eq=False)
class Events:
    """The events of one run.

    Parameters
    ----------
    onset, duration : numpy.ndarray of float64, (event,)
        Seconds from the beginning of the run; a missing duration is 0.
    stimulus : numpy.ndarray of str, (event,)
        Name of the image, without folder and ending; empty where none was shown.
    category : numpy.ndarray of str, (event,)
        The kind of event; empty where it is not said.
    columns : mapping of str to arrays of str, (event,)
        All columns as they are written: ids keep their zeros.
    """

    onset: np.ndarray
    duration: np.ndarray
    stimulus: np.ndarray
    category: np.ndarray
    columns: Mapping[str, np.ndarray]


def read_events(
    root: Location,
    key: str,
    *,
    stimulus: str | None = None,
    category: str | None = None,
    sampling_rate: float | None = None,
) -> Events:
    """Read the events of one run.

    Parameters
    ----------
    root : Location
        A folder or bucket.
    key : str
        The file in it, ``.tsv`` or ``.tsv.gz``.
    stimulus, category : str, optional
        The columns of the image and of the kind of event; the first of `STIMULUS_COLUMNS` and
        `CATEGORY_COLUMNS` that is there by default.
    sampling_rate : float, optional
        Hz; given, onsets and durations are samples of it. BIDS has seconds, but not every
        dataset does.

    Returns
    -------
    Events

    Raises
    ------
    StoreError
        If the file is not there.
    SourceError
        If a column is missing, an onset is no number, or onsets can be no seconds.
    """
    url = f"{root.url}/{key}"
    rows = _rows(root, key, url)
    names = list(rows[0]) if rows else []
    if lacking := [name for name in ("onset", "duration") if name not in names]:
        raise SourceError(f"{url} lacks {' and '.join(lacking)}; it has {', '.join(names)}")
    columns = {name: np.array([row[name] for row in rows], dtype=object) for name in names}
    rate = 1.0 if sampling_rate is None else sampling_rate
    onset = _numbers(columns["onset"], url, "onset", None) / rate
    if onset.max() > _DAY:
        raise SourceError(
            f"the last onset in {url} is {onset.max():,.0f}, which would be "
            f"{onset.max() / 3600:,.0f} hours: these are samples, not seconds. Type "
            "sampling_rate=1000, or what it was, in Hz"
        )
    shown = _column(columns, stimulus, STIMULUS_COLUMNS, url)
    kinds = _column(columns, category, CATEGORY_COLUMNS, url)
    return Events(
        onset,
        _numbers(columns["duration"], url, "duration", 0.0) / rate,
        np.array([_image_name(name) for name in shown], dtype=object),
        np.array(["" if name in MISSING else name for name in kinds], dtype=object),
        columns,
    )


def _rows(root: Location, key: str, url: str) -> list[dict[str, str]]:
    try:
        data = root.read(key)
    except FileNotFoundError as error:
        raise StoreError(f"there is no file {url}. Check the root, or fetch the file") from error
    try:
        text = (gzip.decompress(data) if key.endswith(".gz") else data).decode("utf-8-sig")
    except (EOFError, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise SourceError(f"{url} is cut short or no text ({error}). Fetch it again") from error
    rows = list(csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))
    if not rows:
        raise SourceError(f"{url} has no events")
    if torn := [n for n, row in enumerate(rows, 2) if None in row or None in row.values()]:
        raise SourceError(f"line {torn[0]} of {url} has other columns than the first line")
    return rows


def _numbers(column: np.ndarray, url: str, name: str, missing: float | None) -> np.ndarray:
    found = []
    for line, text in enumerate(column, start=2):
        if missing is not None and (text in MISSING or text.lower() == "nan"):
            found.append(missing)
            continue
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if not np.isfinite(number):
            raise SourceError(f"{name} in line {line} of {url} is {text!r}, no number")
        found.append(number)
    return np.array(found, np.float64)


def _column(
    columns: Mapping[str, np.ndarray], asked: str | None, known: Sequence[str], url: str
) -> np.ndarray:
    if asked is not None and asked not in columns:
        raise SourceError(f"{url} has no column {asked!r}: {close_matches(asked, columns)}")
    name = asked or next((one for one in known if one in columns), None)
    count = len(columns["onset"])
    return columns[name] if name is not None else np.full(count, "", dtype=object)


def _image_name(text: str) -> str:
    if text in MISSING:
        return ""
    name = text.replace("\\", "/").rpartition("/")[2]
    stem, dot, ending = name.rpartition(".")
    # The id 2766534.015976 ends with no file type.
    return stem if dot and f".{ending.lower()}" in _IMAGES else name
