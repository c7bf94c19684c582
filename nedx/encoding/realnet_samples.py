"""What a ReAlnet is trained on: images, and the responses of each subject to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from nedx.compute.batches import prefetch
from nedx.decoding.batches import Batch, Stream
from nedx.decoding.samples import Responses, by_subject, paired
from nedx.decoding.splitting import Split, split_concepts
from nedx.encoding.estimators.checks import check_images
from nedx.errors import ModelError, StimulusError, close_matches
from nedx.metrics.repeats import labels_of
from nedx.schema import neuroid_dim, role_dim, sample_dim
from nedx.stimuli.preprocessing import policy, preprocess

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Trials:
    """Images, and who responded how to them.

    Attributes
    ----------
    pixels : DataArray (image, y, x, rgb)
        uint8, lazily.
    image_id : ndarray of object, (image,)
        Of the pixels.
    subjects : dict of str to Dataset
        Responses of each, by channel and time.
    subject_axis : bool
        Whether the responses have a dimension of subjects, or are a tree of them.
    split : Split
        What each image is for.
    """

    pixels: xr.DataArray
    image_id: np.ndarray
    subjects: dict[str, xr.Dataset]
    subject_axis: bool
    split: Split

    def stream(self, subject: str, kind: str, batch_size: int) -> Stream | None:
        """Return the responses of a subject to the images of a partition, if there are any.

        Repetitions of an image are averaged.
        """
        rows = {str(name): row for row, name in enumerate(self.image_id)}
        means, _ = paired(subject, self.subjects[subject], rows, average=True)
        chosen = means.select(self.split.of(means.image_id) == kind)
        return Stream([chosen], batch_size, average=True) if len(chosen) else None


def pair_trials(
    stimuli: xr.Dataset, responses: Responses | None, share: float, seed: int, policy_name: str
) -> Trials:
    """Pair responses with images, and hold out concepts; reads labels alone.

    Parameters
    ----------
    stimuli : Dataset
        ``pixels (image, y, x, rgb)`` uint8 with ``image_id``.
    responses : Dataset or DataTree, optional
        ``response ([subject,] image | trial[, repetition], channel, time)``; by default that of
        the stimuli. ``category`` and ``partition`` are taken from here, or from the stimuli.
    share : float
        Of the concepts to hold out.
    seed : int
        Of the draw.
    policy_name : str
        Of the images.

    Returns
    -------
    Trials

    Raises
    ------
    StimulusError
        If there are no pixels, or they do not fit the policy.
    ModelError
        If responses and images do not belong together.
    """
    responses = stimuli if responses is None else responses
    ids = _square_images(stimuli, policy_name)
    _check_dims(responses)
    subjects = {name: _told(name, ds, stimuli, ids) for name, ds in by_subject(responses).items()}
    split = split_concepts(list(subjects.values()), share, seed)
    axis = isinstance(responses, xr.DataTree) or role_dim(responses, "subject") is not None
    return Trials(stimuli["pixels"], ids, subjects, axis, split)


def image_pairs(
    trials: Trials, stream: Stream, policy_name: str, rng: np.random.Generator | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield images and responses, made in threads while the caller works on those before.

    Parameters
    ----------
    trials : Trials
        Whose images.
    stream : Stream
        Responses; their targets are positions of images.
    policy_name : str
        Of the images.
    rng : Generator, optional
        Decides the order; as they come by default.

    Yields
    ------
    tuple of tensor (n, 3, y, x) and tensor (n, channel * time)
        float32, on the CPU.
    """
    import torch

    chosen = policy(policy_name)

    def make(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        images = preprocess(trials.pixels.isel(image=batch.target).values, chosen, "cpu")
        return images, torch.from_numpy(batch.response).flatten(1)

    drawn: Any = stream.epoch(rng)
    yield from prefetch(make, drawn)  # type: ignore[arg-type]


def _square_images(stimuli: xr.Dataset, policy_name: str) -> np.ndarray:
    """Return the ids of images that a ReAlnet can see."""
    ids = check_images(stimuli, policy_name, "ReAlnets")
    y, x = policy(policy_name).output_shape(*stimuli["pixels"].shape[1:3])
    if y != x:
        raise StimulusError(
            f"a ReAlnet sees square images, these are {y} x {x} by the policy {policy_name!r}. "
            "Type: policy='train'"
        )
    return ids


def _check_dims(responses: Responses) -> None:
    """Raise ModelError for responses that are not by channel and time."""
    nodes = responses.children.values() if isinstance(responses, xr.DataTree) else [responses]
    for node in nodes:
        ds = node.to_dataset() if isinstance(node, xr.DataTree) else node
        if "response" not in ds:
            if isinstance(responses, xr.DataTree):
                continue
            raise ModelError(
                f"there is no 'response' to train on, only {', '.join(map(str, ds.data_vars))}. "
                "Type: encoder.fit(images, responses)"
            )
        array = ds["response"]
        if neuroid_dim(array) != "channel" or role_dim(array, "time") is None:
            raise ModelError(
                "a ReAlnet predicts channels by times, the responses are by "
                f"{list(map(str, array.dims))}. For voxels, type: nedx.FwrfTrainer()"
            )


def _told(subject: str, ds: xr.Dataset, stimuli: xr.Dataset, ids: np.ndarray) -> xr.Dataset:
    """Return responses that say the category and the partition of their images."""
    own = labels_of(ds, "image_id")
    places = {str(name): i for i, name in enumerate(ids)}
    missing = [str(name) for name in own if name not in places]
    if missing:
        raise ModelError(
            f"{len(missing)} of {len(own)} images of the responses of {subject!r} are not among "
            f"the stimuli, first {missing[0]!r}; {close_matches(missing[0], places)}"
        )
    dim, rows = sample_dim(ds), [places[name] for name in own]
    for name in ("category", "partition"):
        if name not in stimuli or stimuli[name].dims != ("image",):
            continue
        found = labels_of(stimuli, name).astype(object)[rows]
        if name not in ds or ds[name].dims != (dim,):
            ds = ds.assign_coords({name: (dim, found)})
        elif name == "partition":
            _check_untested(subject, own, labels_of(ds, name), found)
    return ds


def _check_untested(subject: str, ids: np.ndarray, own: np.ndarray, of_images: np.ndarray) -> None:
    """Raise ModelError where only one of both calls an image a test image."""
    both = np.flatnonzero((own == "test") != (of_images == "test"))
    if both.size:
        raise ModelError(
            f"{both.size} images of {subject!r} are {str(own[both[0]])!r} by the responses and "
            f"{str(of_images[both[0]])!r} by the stimuli, first {ids[both[0]]!r}. Drop the "
            "'partition' that is wrong"
        )
