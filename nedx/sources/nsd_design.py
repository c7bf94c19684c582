"""The experiment design of NSD: which image every trial showed, and the published splits."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import xarray as xr

from nedx.errors import SelectionError, SourceError, StoreError
from nedx.sources.trials import earlier_presentations
from nedx.store.location import Location

DESIGN = "nsddata/experiments/nsd/nsd_expdesign.mat"
TRIALS = 750
"""Of a session."""
SESSIONS = (40, 40, 32, 30, 40, 32, 40, 30)
"""Scanned of each subject."""
IMAGES = 73_000
_SPLIT_SESSIONS = 30
"""All subjects have these; the test images were shown three times within them."""
_TEST_REPETITIONS = 3


def trial_labels(root: Location, subject: int, sessions: list[int]) -> xr.Dataset:
    """Label the trials of a subject from ``nsd_expdesign.mat``.

    The trials of session s are entries 750 (s - 1) + 1 to 750 s of ``masterordering``, which
    counts the columns of ``subjectim`` from 1, which holds 73k ids from 1.

    Parameters
    ----------
    root : Location
        What holds the folder ``nsddata``.
    subject : int
        1 to 8.
    sessions : list of int
        Counted from 1, in the order wanted.

    Returns
    -------
    Dataset
        Coordinates of ``trial``: ``image_id`` (``"nsd:00000"``), ``nsd_id`` (int32, from 0),
        ``session`` (int16, from 1), ``trial_in_session`` (int16, from 0), ``repetition`` (int16,
        from 0, over all sessions of the subject), ``is_shared``, ``partition``: ``"train"`` are
        the images of this subject only, ``"test"`` the shared ones that were shown three times
        within the first 30 sessions, ``"val"`` the other shared ones.

    Raises
    ------
    StoreError
        If the file is not there.
    SourceError
        If it is damaged, or does not count from 1.
    """
    ordering, images, shared_count = _read_design(root, subject)
    scanned = SESSIONS[subject - 1]
    shown = images[ordering[: scanned * TRIALS]]
    starts = [(session - 1) * TRIALS for session in sessions]
    trials = np.concatenate([np.arange(start, start + TRIALS) for start in starts])
    if len(trials) and trials.max() >= len(shown):
        raise SourceError(
            f"{root.url}/{DESIGN} has {len(shown):,} trials of subject {subject}, too few for "
            f"session {max(sessions)} of {TRIALS} trials each: it belongs to other betas"
        )
    shared = ordering[: len(shown)] < shared_count
    ids = shown[trials].astype(np.int32)
    columns: dict[str, Any] = {
        "image_id": np.array([f"nsd:{number:05d}" for number in ids.tolist()], dtype=object),
        "nsd_id": ids,
        "session": np.repeat(np.array(sessions, np.int16), TRIALS),
        "trial_in_session": np.tile(np.arange(TRIALS, dtype=np.int16), len(sessions)),
        "repetition": earlier_presentations(shown)[trials],
        "is_shared": shared[trials],
        "partition": _partition(shown, shared)[trials],
    }
    about = {
        "nsd_id": "73k id, counted from 0",
        "session": "session, counted from 1",
        "trial_in_session": "trial within the session, counted from 0",
        "repetition": "earlier presentations of the image to the subject",
    }
    return xr.Dataset(
        coords={
            name: ("trial", values, {"long_name": about[name]} if name in about else {})
            for name, values in columns.items()
        }
    )


def chosen_sessions(subject: int, wanted: list[int] | None, there: list[int]) -> list[int]:
    """Return the sessions to open: all that were scanned, or those asked for.

    Raises
    ------
    SelectionError
        If there is no such session.
    SourceError
        If the files of one are missing; names those that are there.
    """
    scanned = list(range(1, SESSIONS[subject - 1] + 1))
    sessions = scanned if wanted is None else wanted
    if never := [session for session in sessions if session not in scanned]:
        raise SelectionError(
            f"subject {subject} has the sessions 1 to {scanned[-1]}, counted from 1, not {never}"
        )
    if len(set(sessions)) != len(sessions) or not sessions:
        raise SelectionError(f"name each session once, and at least one, not {sessions}")
    if missing := [session for session in sessions if session not in there]:
        raise SourceError(
            f"the betas of {_listed(missing)} of subject {subject} are missing; those of "
            f"{_listed(there)} are there. Fetch them, or type sessions={there[:3]}"
        )
    return sessions


def _listed(sessions: list[int]) -> str:
    if not sessions:
        return "no session"
    named = ", ".join(map(str, sessions[:8])) + (", ..." if len(sessions) > 8 else "")
    return f"session{'s' if len(sessions) > 1 else ''} {named}"


def _load(root: Location) -> dict[str, Any]:
    from scipy.io import loadmat

    url = f"{root.url}/{DESIGN}"
    try:
        found: dict[str, Any] = loadmat(io.BytesIO(root.read(DESIGN)))
    except FileNotFoundError as error:
        raise StoreError(
            f"there is no file {url}, without which nobody knows which image a trial showed. "
            "Check the root, which holds the folder nsddata, or fetch the file"
        ) from error
    except (ValueError, TypeError, EOFError, OSError, NotImplementedError) as error:
        if isinstance(error, StoreError):
            raise
        raise SourceError(
            f"{url} is damaged or no MATLAB file ({error}). Fetch it again"
        ) from error
    if lacking := [
        name for name in ("masterordering", "subjectim", "sharedix") if name not in found
    ]:
        raise SourceError(f"{url} lacks {', '.join(lacking)}: it is another file")
    return found


def _read_design(root: Location, subject: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the ordering (trial,) and the images of a subject (column,), both from 0.

    The first columns, as many as the last value says, are shared by all subjects.
    """
    found = _load(root)
    ordering = np.ravel(found["masterordering"]).astype(np.int64) - 1
    every = np.atleast_2d(found["subjectim"]).astype(np.int64)
    shared = np.ravel(found["sharedix"]).astype(np.int64)
    faults = []
    if every.shape[0] < subject:
        faults.append(f"subjectim has {every.shape[0]} subjects, not subject {subject}")
    if ordering.min() < 0 or ordering.max() >= every.shape[1]:
        faults.append(f"masterordering does not count the {every.shape[1]:,} columns from 1")
    if every.min() < 1 or every.max() > IMAGES:
        faults.append(f"subjectim does not count the {IMAGES:,} images from 1")
    if set(every[0, : len(shared)].tolist()) != set(shared.tolist()):
        faults.append("sharedix is not the first columns of subjectim")
    if faults:
        raise SourceError(f"{root.url}/{DESIGN} is not as published: {'; '.join(faults)}")
    return ordering, every[subject - 1] - 1, len(shared)


def _partition(shown: np.ndarray, shared: np.ndarray) -> np.ndarray:
    early, counts = np.unique(shown[: _SPLIT_SESSIONS * TRIALS], return_counts=True)
    tested = np.isin(shown, early[counts == _TEST_REPETITIONS]) & shared
    return np.where(tested, "test", np.where(shared, "val", "train")).astype(object)
