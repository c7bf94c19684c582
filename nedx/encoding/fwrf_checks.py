"""What is wrong with the samples of a fwRF model, said before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from nedx.encoding.estimators.checks import different_units
from nedx.errors import ModelError, close_matches

if TYPE_CHECKING:
    from nedx.encoding.fwrf_samples import Samples


def check_disjoint(
    every: Sequence[tuple[Samples, np.ndarray]],
    training: Mapping[str, Samples],
    held: Mapping[str, Samples],
    ids: np.ndarray,
) -> None:
    """Raise ModelError where nothing is to be trained on, or what is trained on is held out."""
    trained = np.unique(np.concatenate([each.image for each in training.values()]))
    for each, parts in every:
        if not len(training[each.subject]):
            raise ModelError(
                f"{each.subject!r} has no training images: partition says "
                f"{', '.join(sorted(set(map(str, parts))))} of {len(each)} samples"
            )
        found = {"test": each.image[parts == "test"]}
        found["validation"] = held[each.subject].image if each.subject in held else each.image[:0]
        for kind, images in found.items():
            # Of all subjects: the trunk is theirs together.
            both = np.intersect1d(trained, images)
            if len(both):
                raise ModelError(
                    f"{len(both)} images of {each.subject!r} are among the training and the {kind} "
                    f"images, first {ids[both[0]]!r}: an image belongs to one of them. Set "
                    "'partition' to 'train', 'val' or 'test' by image"
                )


def check_untested(stimuli: xr.Dataset, training: Mapping[str, Samples], ids: np.ndarray) -> None:
    """Raise ModelError where the stimuli call an image a test image that is trained on."""
    if "partition" not in stimuli or stimuli["partition"].dims != ("image",):
        return
    tested = np.flatnonzero(stimuli["partition"].values.astype(str) == "test")
    for subject, samples in training.items():
        both = np.intersect1d(tested, samples.image)
        if len(both):
            raise ModelError(
                f"{len(both)} training images of {subject!r} are test images by the 'partition' of "
                f"the stimuli, first {ids[both[0]]!r}. Leave these responses out, or drop the "
                "partition that is wrong"
            )


def check_units(pairs: Sequence[tuple[str, xr.Dataset]]) -> None:
    """Raise ModelError where responses have other units or normalisations than the first."""
    (first, one), *others = pairs
    for name, other in others:
        differing = different_units(one["response"].attrs, other["response"].attrs)
        if differing:
            raise ModelError(
                f"the responses of {name} and of {first} differ in {differing}; bring them to the "
                "same"
            )


def voxel_positions(subject: str, known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return where voxels lie among those that are known; they are paired by label.

    Raises
    ------
    ModelError
        If a label is not known, or says of several voxels which it is.
    """
    if np.array_equal(known, wanted):
        return np.arange(len(known))
    places = {str(label): i for i, label in enumerate(known)}
    missing = [str(label) for label in wanted if str(label) not in places]
    if missing:
        raise ModelError(
            f"{len(missing)} of {len(wanted)} voxels of {subject!r} are not among the "
            f"{len(known)} fitted to, first {missing[0]!r}; {close_matches(missing[0], places)}"
        )
    if len(places) < len(known):
        raise ModelError(
            f"voxels of {subject!r} share labels, and these are in another order than those "
            "fitted to; give them in the same order"
        )
    return np.array([places[str(label)] for label in wanted], np.int64)
