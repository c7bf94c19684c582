"""What decoders are fitted to: responses of each subject, paired with targets and checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import xarray as xr

from nedx.decoding.fitting_in import channel_faults, checked_response
from nedx.errors import ModelError, SelectionError, close_matches
from nedx.metrics.repeats import labels_of
from nedx.preprocessing.repetitions import average_repetitions, stack_repetitions
from nedx.schema import role_dim, sample_dim, subject_label

Responses = xr.Dataset | xr.DataTree
ANYBODY = "anybody"
"""Stands for the subject of responses that do not say whose they are."""
_ALIKE = ("units", "normalization", "normalization_scope", "transform")


@dataclass(frozen=True, eq=False)
class Samples:
    """Responses of one subject, and what is to be decoded from them.

    Attributes
    ----------
    subject : str
        Label.
    response : DataArray (sample[, repetition], channel, time)
        Lazily, without coordinates.
    rows : ndarray of int64, (n,)
        Which samples of it these are.
    target : ndarray of int64, (n,)
        The row of each among the targets.
    image_id : ndarray of object, (n,)
        For errors.
    index : int
        Which subject of its network this is.
    scheduler : str, optional
        Of dask, to read by; by default the caller's.
    """

    subject: str
    response: xr.DataArray = field(repr=False)
    rows: np.ndarray = field(repr=False)
    target: np.ndarray = field(repr=False)
    image_id: np.ndarray = field(repr=False)
    index: int = 0
    scheduler: str | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def repetitions(self) -> int:
        """How many each sample has."""
        return int(self.response.sizes.get("repetition", 1))

    @property
    def shape(self) -> tuple[int, int]:
        """Channels and times."""
        channels, times = self.response.shape[-2:]
        return channels, times

    def select(self, chosen: np.ndarray) -> Samples:
        """Return some of these samples, by mask or positions."""
        return replace(
            self,
            rows=self.rows[chosen],
            target=self.target[chosen],
            image_id=self.image_id[chosen],
        )

    def pieces(self) -> list[np.ndarray]:
        """Return which samples lie in one block of the responses, sorted, block by block."""
        chunks = self.response.chunks
        stops = np.cumsum(chunks[0]) if chunks else np.array([self.response.shape[0]])
        block = np.searchsorted(stops, self.rows, side="right")
        order = np.lexsort((self.rows, block))
        return np.split(order, np.flatnonzero(np.diff(block[order])) + 1)

    def read(self, chosen: np.ndarray, *, mean: bool) -> np.ndarray:
        """Return float32 (n, repetition, channel, time) of some; one repetition of the mean.

        What is stored as float16, and not averaged, stays so.
        """
        rows = self.rows[chosen]
        first, span = int(rows.min()), int(np.ptp(rows)) + 1
        # Slices of dask arrays cost a fraction of what lists of positions do.
        dense = span <= 2 * len(rows)
        lazy = self.response.isel(sample=slice(first, first + span) if dense else rows)
        how = {} if self.scheduler is None else {"scheduler": self.scheduler}
        values: np.ndarray = lazy.compute(**how).values
        if dense and not np.array_equal(rows, np.arange(first, first + span)):
            values = values[rows - first]
        if values.ndim == 4 and mean:
            return values.mean(1, dtype=np.float32, keepdims=True)
        if values.dtype != np.float16:
            values = values.astype(np.float32, copy=False)
        return values[:, None] if values.ndim == 3 else values


def by_subject(responses: Responses) -> dict[str, xr.Dataset]:
    """Return the responses of each subject, without dimension of subjects; checks that they agree.

    Raises
    ------
    ModelError
        If there is nothing to decode, images have no ids, or subjects have other channels, times
        or units.
    """
    found = dict(each_subject(responses))
    if not found:
        raise ModelError("no child of this DataTree holds a 'response'")
    (first, reference), *others = found.items()
    faults = []
    for subject, ds in found.items():
        checked_response(ds)
        if "image_id" not in ds.coords:
            raise ModelError(
                f"the responses of {subject!r} have no 'image_id' to find targets by. Type: "
                f"ds.assign_coords(image_id=('{sample_dim(ds)}', names))"
            )
        faults += [f"{subject}: {fault}" for fault in channel_faults(ds["channel"].values, ())]
    for subject, ds in others:
        for dim in ("channel", "time"):
            if not ds.get_index(dim).equals(reference.get_index(dim)):
                faults.append(f"{subject} has other {dim}s than {first}, or in another order")
        mine, theirs = (each["response"].attrs for each in (reference, ds))
        faults += [
            f"{name} of {subject} is {theirs.get(name)!r}, of {first} {mine.get(name)!r}"
            for name in _ALIKE
            if mine.get(name) != theirs.get(name)
        ]
    if faults:
        raise ModelError("these responses cannot be fitted: " + "; ".join(faults))
    return found


def each_subject(responses: Responses) -> Iterator[tuple[str, xr.Dataset]]:
    """Yield label and responses of each subject, without dimension of subjects."""
    if isinstance(responses, xr.DataTree):
        for name, child in responses.children.items():
            if "response" in child.to_dataset():
                yield subject_label(str(name)), child.to_dataset(inherit=True)
        return
    if not isinstance(responses, xr.Dataset):
        raise ModelError(
            f"responses are a Dataset or DataTree with 'response' and 'image_id', not "
            f"{type(responses).__name__}"
        )
    dim = role_dim(responses, "subject")
    if dim is None:
        yield whose(responses) or ANYBODY, responses
        return
    if dim not in responses.coords:
        raise ModelError(f"the dimension {dim!r} has no labels to tell subjects by")
    for i, name in enumerate(responses[dim].values):
        yield subject_label(str(name)), responses.isel({dim: i})


def whose(ds: xr.Dataset) -> str | None:
    """Return the subject of responses without a dimension of subjects, if they say it."""
    if "subject" in ds.coords and ds["subject"].size == 1:
        return subject_label(str(ds["subject"].values.reshape(-1)[0]))
    ids = np.atleast_1d(ds.attrs.get("subject", ds.attrs.get("subject_ids", [])))
    return subject_label(str(ids[0])) if len(ids) == 1 else None


def paired(
    subject: str,
    ds: xr.Dataset,
    targets: Mapping[str, int],
    average: bool | int,  # noqa: FBT001
) -> tuple[Samples, Samples]:
    """Return the samples to train on, and those to choose by, of all images.

    Parameters
    ----------
    subject : str
        Label.
    ds : Dataset
        Its responses.
    targets : mapping of str to int
        The row of each image among the targets.
    average : bool or int
        Of single trials: whether to average those of each image, or how many of them.

    Returns
    -------
    tuple of Samples
        The second are means over all trials of an image.

    Raises
    ------
    ModelError
        If an image has no target, or images have other numbers of trials and some are drawn.
    """
    missing = [str(name) for name in labels_of(ds, "image_id") if name not in targets]
    if missing:
        raise ModelError(
            f"{len(missing)} of {ds['image_id'].size} images of {subject!r} have no target, first "
            f"{missing[0]!r}; {close_matches(missing[0], targets)}"
        )
    if role_dim(ds, "trial") is None:
        both = _samples(subject, ds, targets)
        return both, both
    means = _samples(subject, average_repetitions(ds), targets)
    if average is True:
        return means, means
    if average is False:
        return _samples(subject, ds, targets), means
    try:
        stacked = stack_repetitions(ds)
    except SelectionError as error:
        raise ModelError(
            f"average_trials={average} draws from as many trials of each image, those of "
            f"{subject!r} differ in number. Type: average_trials=True or False, or "
            "ds.ned.stack_repetitions(count)"
        ) from error
    return _samples(subject, stacked, targets), means


def _samples(subject: str, ds: xr.Dataset, targets: Mapping[str, int]) -> Samples:
    array = checked_response(ds).drop_vars(list(ds["response"].coords))
    names = [*("sample", "repetition")[: array.ndim - 2], "channel", "time"]
    array = array.rename({d: n for d, n in zip(array.dims, names, strict=True) if d != n})
    ids = labels_of(ds, "image_id").astype(object)
    rows = np.array([targets[name] for name in ids], np.int64)
    return Samples(subject, array, np.arange(len(ids)), rows, ids)
