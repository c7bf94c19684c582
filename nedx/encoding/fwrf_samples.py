"""What fwRF models are fitted to: samples of each subject, split and checked before any work."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from sklearn.base import BaseEstimator

from nedx.backbones.recipe import BackboneRecipe
from nedx.encoding.estimators.checks import check_images
from nedx.encoding.fwrf_checks import (
    check_disjoint,
    check_units,
    check_untested,
    voxel_positions,
)
from nedx.encoding.recipe import EncoderRecipe, recipe_of
from nedx.errors import ModelError, SelectionError, close_matches
from nedx.schema import neuroid_dim, role_dim, sample_dim, subject_label

ALL = "all"
"""The ROI that all voxels belong to where the responses name none."""
_WINDOW_BYTES = 2**27
_ELSEWHERE = ("backbone", "layers", "device", "checkpoint", "memory")

Responses = xr.Dataset | xr.DataTree


@dataclass(frozen=True)
class Samples:
    """Images that one subject saw, and the responses to them.

    Attributes
    ----------
    subject : str
        Label.
    labels : Dataset
        Coordinates of the voxels, with ``roi`` and ``roi_mask (roi, voxel)``.
    response : DataArray (sample, voxel)
        Lazily; samples are single trials, or images.
    rows : ndarray of int64, (n,)
        Which samples of it these are.
    image : ndarray of int64, (n,)
        The position of the image of each among the stimuli.
    """

    subject: str
    labels: xr.Dataset
    response: xr.DataArray
    rows: np.ndarray
    image: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def voxels(self) -> int:
        """How many."""
        return self.response.sizes["voxel"]

    def read(self, chosen: np.ndarray) -> np.ndarray:
        """Return float32 (len(chosen), voxel) of some of these samples."""
        order = np.argsort(self.rows[chosen], kind="stable")
        held = self.response.isel(sample=self.rows[chosen][order]).values
        values = np.empty(held.shape, np.float32)
        values[order] = held
        return values

    def select(self, chosen: np.ndarray) -> Samples:
        """Return some of these samples."""
        return replace(self, rows=self.rows[chosen], image=self.image[chosen])

    def in_order_of(self, voxels: np.ndarray) -> Samples:
        """Return the same samples, their voxels in the order of some labels."""
        own = self.labels["voxel"].values
        if np.array_equal(own, voxels):
            return self
        order = voxel_positions(self.subject, own, voxels)
        response = self.response.isel(voxel=order)
        return replace(self, labels=self.labels.isel(voxel=order), response=response)

    def finite_means(self, what: str = "validation") -> tuple[np.ndarray, np.ndarray]:
        """Return `image_means`, or raise ModelError where there is none."""
        images, means = self.image_means()
        bad = np.flatnonzero(~np.isfinite(means).all(1))
        if bad.size:
            raise ModelError(
                f"{what} responses of {self.subject!r} are NaN or infinite for {bad.size} of "
                f"{len(images)} images: leave these images out"
            )
        return images, means

    def windows(self, rng: np.random.Generator | None = None) -> Iterator[np.ndarray]:
        """Yield which samples to read at a time: whole chunks, in random order with `rng`."""
        chunk = np.searchsorted(self._stops(), self.rows, side="right")
        parts = np.split(
            np.argsort(chunk, kind="stable"), np.flatnonzero(np.diff(np.sort(chunk))) + 1
        )
        if rng is not None:
            parts = [parts[i] for i in rng.permutation(len(parts))]
        most = max(1, _WINDOW_BYTES // (4 * self.voxels))
        held: list[np.ndarray] = []
        for part in parts:
            if held and sum(map(len, held)) + len(part) > most:
                yield np.concatenate(held)
                held = []
            held.append(part)
        yield np.concatenate(held)

    def image_means(self) -> tuple[np.ndarray, np.ndarray]:
        """Average the samples of each image.

        Returns
        -------
        tuple of ndarray of int64, (image,) and ndarray of float32, (image, voxel)
            Positions among the stimuli, sorted, and means.
        """
        images, which, counts = np.unique(self.image, return_inverse=True, return_counts=True)
        sums = np.zeros((len(images), self.voxels))
        for window in self.windows():
            np.add.at(sums, which[window], self.read(window))
        return images, (sums / counts[:, None]).astype(np.float32)

    def _stops(self) -> np.ndarray:
        """Return where the chunks of the responses end; what lies in memory has no chunks."""
        chunks = self.response.chunks
        return np.cumsum(chunks[0]) if chunks else np.arange(1, self.response.sizes["sample"] + 1)


@dataclass(frozen=True)
class Split:
    """Samples to fit to and to choose by, and which images each subject's are.

    Attributes
    ----------
    pixels : DataArray (image, y, x, rgb)
        uint8, lazily.
    image_id : ndarray of object, (image,)
        Of the pixels.
    training, validation : dict of str to Samples
        By subject; a subject without validation samples has none.
    partition : dict of str to dict
        For each subject the partition of each image that is known, by ``image_id``.
    """

    pixels: xr.DataArray
    image_id: np.ndarray
    training: dict[str, Samples]
    validation: dict[str, Samples]
    partition: dict[str, dict[str, str]]


def split_samples(
    stimuli: xr.Dataset,
    responses: Responses | None,
    validation: Responses | None,
    policy: str,
) -> Split:
    """Pair responses with images, and hold out what ``partition`` says; reads labels alone.

    Parameters
    ----------
    stimuli : Dataset
        ``pixels (image, y, x, rgb)`` uint8 with ``image_id``.
    responses : Dataset or DataTree, optional
        ``response ([subject,] image | trial[, repetition], voxel)``; of a tree each child is one
        subject's; by default that of the stimuli. Each is of the partition that it says itself,
        or else that its image is of among the stimuli; without any all are for training.
    validation : Dataset or DataTree, optional
        Instead of those of the partition ``"val"``.
    policy : str
        Of the images.

    Returns
    -------
    Split

    Raises
    ------
    StimulusError
        If there are no pixels, or they do not fit the policy.
    ModelError
        If responses and images do not fit together, or images are trained on and held out.
    """
    responses = stimuli if responses is None else responses
    ids = _check_given(stimuli, responses, validation, policy)
    paired = list(_paired(stimuli, responses))
    kinds = [(each.subject, ds) for each, ds in paired]
    every = [(each, _partition(each, ds, stimuli)) for each, ds in paired]
    training = {each.subject: each.select(parts == "train") for each, parts in every}
    held = {each.subject: each.select(parts == "val") for each, parts in every}
    known = {each.subject: dict(zip(ids[each.image], parts, strict=True)) for each, parts in every}
    if validation is not None:
        given = list(_paired(stimuli, validation))
        kinds += [(f"{each.subject} to choose by", ds) for each, ds in given]
        pairs = [(each, _partition(each, ds, stimuli)) for each, ds in given]
        held = _given(pairs, training)
        for name, each in held.items():
            known[name] |= dict.fromkeys(ids[each.image], "val")
            known[name] |= dict.fromkeys(ids[training[name].image], "train")
    check_units(kinds)
    check_disjoint(every, training, held, ids)
    check_untested(stimuli, training, ids)
    held = {name: each for name, each in held.items() if len(each)}
    return Split(stimuli["pixels"], ids, training, held, known)


def _check_given(
    stimuli: xr.Dataset, responses: Responses, validation: Responses | None, policy: str
) -> np.ndarray:
    """Return the ids of the images; raise unless labelled images and responses were given."""
    for given in (responses, validation):
        if given is not None and not isinstance(given, xr.Dataset | xr.DataTree):
            raise ModelError(
                f"responses are a Dataset or DataTree with 'response' and 'image_id', not "
                f"{type(given).__name__}"
            )
    return check_images(stimuli, policy, "fwRF models")


def _given(
    pairs: Sequence[tuple[Samples, np.ndarray]], training: Mapping[str, Samples]
) -> dict[str, Samples]:
    """Return what was given to choose by, which must not be test images."""
    held = {}
    for each, parts in pairs:
        own = training.get(each.subject)
        if own is None or own.voxels != each.voxels:
            raise ModelError(
                f"the validation responses of {each.subject!r} are of {each.voxels} voxels, the "
                f"training responses {'of ' + str(own.voxels) if own else 'of others'}: "
                f"{close_matches(each.subject, training)} Give the same subjects and voxels"
            )
        if (parts == "test").any():
            raise ModelError(
                f"{int((parts == 'test').sum())} of the validation responses of {each.subject!r} "
                "are to test images, which no model may be chosen by. Type: "
                "validation=responses.isel(image=responses.partition == 'val')"
            )
        held[each.subject] = each.in_order_of(own.labels["voxel"].values)
    return held


def _paired(stimuli: xr.Dataset, responses: Responses) -> Iterator[tuple[Samples, xr.Dataset]]:
    """Yield all samples of each subject, with the Dataset that they come from."""
    places = {str(name): i for i, name in enumerate(stimuli["image_id"].values)}
    for subject, ds in _subjects(responses):
        dim = sample_dim(ds)
        array = _checked_response(ds, subject).rename({dim: "sample"})
        if "image_id" not in ds.coords:
            raise ModelError(f"the responses of {subject!r} have no 'image_id' to find images by")
        named = ds["image_id"].values.astype(str)
        missing = [str(name) for name in named if name not in places]
        if missing:
            raise ModelError(
                f"{len(missing)} of {len(named)} images of the responses of {subject!r} are not "
                f"among the stimuli, first {missing[0]!r}; {close_matches(missing[0], places)}"
            )
        repeated = role_dim(ds, "repetition")
        if repeated is not None:
            array = array.transpose("sample", repeated, "voxel")
            named = np.repeat(named, array.sizes[repeated])
            array = array.rename(sample="image").stack(
                sample=("image", repeated), create_index=False
            )
        image = np.array([places[name] for name in named], np.int64)
        array = array.transpose("sample", "voxel")
        yield Samples(subject, _labels(ds), array, np.arange(len(image)), image), ds


def _checked_response(ds: xr.Dataset, subject: str) -> xr.DataArray:
    """Return the response without its labels, if it is one of voxels."""
    if "response" not in ds:
        raise ModelError(f"there is no 'response' of {subject!r}, only {list(ds.data_vars)}")
    neuroid = neuroid_dim(ds)
    if neuroid != "voxel":
        raise ModelError(
            f"fwRF models predict voxels, the responses of {subject!r} are by {neuroid!r}. Type: "
            f"responses.rename({neuroid}='voxel')"
        )
    array = ds["response"].reset_coords(drop=True)
    foreign = [d for d in array.dims if d not in ("voxel", sample_dim(ds), "repetition")]
    if foreign:
        raise ModelError(
            f"fwRF models predict (image, voxel), the responses have {foreign}, too. Type: "
            f"responses.isel({foreign[0]}=0)"
        )
    if array.dtype.kind != "f":
        raise ModelError(f"responses are floats, those of {subject!r} are {array.dtype}")
    return array.drop_vars(list(array.coords))


def _subjects(responses: Responses) -> Iterator[tuple[str, xr.Dataset]]:
    """Yield the label and the Dataset of each subject."""
    if isinstance(responses, xr.DataTree):
        children = {
            name: child.to_dataset(inherit=True) for name, child in responses.children.items()
        }
        found = {subject_label(str(n)): ds for n, ds in children.items() if "response" in ds}
        if not found:
            raise ModelError("no child of this DataTree holds a 'response'")
        yield from found.items()
        return
    dim = role_dim(responses, "subject")
    if dim is None:
        yield _one_subject(responses), responses
        return
    if dim not in responses.coords:
        raise SelectionError(f"the dimension {dim!r} has no labels to name heads by")
    for i, name in enumerate(responses[dim].values):
        yield subject_label(str(name)), responses.isel({dim: i})


def _one_subject(ds: xr.Dataset) -> str:
    if "subject" in ds.coords and ds["subject"].size == 1:
        return subject_label(str(ds["subject"].values.reshape(-1)[0]))
    ids = np.atleast_1d(ds.attrs.get("subject_ids", []))
    return subject_label(str(ids[0])) if len(ids) == 1 else subject_label(1)


def _partition(samples: Samples, ds: xr.Dataset, stimuli: xr.Dataset) -> np.ndarray:
    """Return the partition of each sample, object (sample,)."""
    dim = sample_dim(ds)
    if "partition" in ds and ds["partition"].dims == (dim,):
        own = ds["partition"].values.astype(str)
        return np.repeat(own, len(samples) // max(1, len(own))).astype(object)
    if "partition" in stimuli and stimuli["partition"].dims == ("image",):
        return stimuli["partition"].values.astype(str).astype(object)[samples.image]
    return np.full(len(samples), "train", dtype=object)


def _labels(ds: xr.Dataset) -> xr.Dataset:
    """Return the coordinates of the voxels; without ROIs all belong to one."""
    kept = {
        name: variable
        for name, variable in ds.variables.items()
        if (name in ds.coords or name == "roi_mask")
        and variable.dims
        and set(variable.dims) <= {"roi", "voxel"}
    }
    labels = xr.Dataset(kept).pipe(lambda each: each.set_coords(list(each.data_vars)))
    if "voxel" not in labels.coords:
        labels = labels.assign_coords(voxel=np.arange(ds.sizes["voxel"], dtype=np.int32))
    if "roi" not in labels.coords or "roi_mask" not in labels:
        labels = labels.drop_vars(["roi", "roi_mask"], errors="ignore").assign_coords(
            roi=np.array([ALL], dtype=object),
            roi_mask=(("roi", "voxel"), np.ones((1, ds.sizes["voxel"]), bool)),
        )
    return labels


def hold_out(split: Split, fraction: float, seed: int) -> Split:
    """Hold out some of the training images, drawn at random, for all subjects the same.

    Raises
    ------
    ModelError
        If too few images are left on one side.
    """
    if not 0 < fraction < 1:
        raise ModelError(f"holdout is {fraction}; it is a fraction of the training images, as 0.1")
    trained = np.unique(np.concatenate([each.image for each in split.training.values()]))
    count = max(1, round(fraction * len(trained)))
    drawn = np.random.default_rng(seed).permutation(trained)[:count]
    is_held = {name: np.isin(each.image, drawn) for name, each in split.training.items()}
    training = {name: each.select(~is_held[name]) for name, each in split.training.items()}
    held = {name: each.select(is_held[name]) for name, each in split.training.items()}
    for name in training:
        if not len(training[name]) or not len(held[name]):
            raise ModelError(
                f"{count} of {len(trained)} images held out leave {name!r} without training or "
                "validation images: change holdout, or give validation=responses"
            )
    names = split.image_id[drawn].tolist()
    partition = {
        name: {**known, **{n: "val" for n in names if n in known}}
        for name, known in split.partition.items()
    }
    return replace(split, training=training, validation=held, partition=partition)


def without_partition(responses: Responses) -> Responses:
    """Return responses that do not say what is held out."""
    if isinstance(responses, xr.DataTree):
        return responses.map_over_datasets(lambda ds: ds.drop_vars("partition", errors="ignore"))
    return responses.drop_vars("partition", errors="ignore")


def check_values(samples: Samples) -> str:
    """Read all responses once, and refuse what cannot be fitted.

    Returns
    -------
    str
        sha256 of the checksum of each sample's responses, by which they are known again.

    Raises
    ------
    ModelError
        If a response is NaN or infinite, or a voxel always responds alike.
    """
    low, high = np.full(samples.voxels, np.inf), np.full(samples.voxels, -np.inf)
    rows = np.zeros(len(samples), np.uint32)
    missing = np.zeros(samples.voxels, bool)
    for window in samples.windows():
        values = samples.read(window)
        rows[window] = [zlib.crc32(row.tobytes()) for row in values]
        missing |= ~np.isfinite(values).all(0)
        low, high = np.minimum(low, values.min(0)), np.maximum(high, values.max(0))
    for what, fault, advice in (
        ("NaN or infinite responses", missing, "Leave these voxels or their trials out"),
        ("one response to all training images", low == high, "Leave these voxels out"),
    ):
        if fault.any():
            names = samples.labels["voxel"].values[fault]
            raise ModelError(
                f"{int(fault.sum())} of {samples.voxels} voxels of {samples.subject!r} have "
                f"{what}: {', '.join(map(str, names[:5]))}{', ...' if len(names) > 5 else ''}. "
                f"{advice}. Type: responses.isel(voxel=keep)"
            )
    return hashlib.sha256(rows.tobytes()).hexdigest()


def result_labels(split: Split, subject: str) -> xr.Dataset:
    """Return the labels of a subject's voxels, and which images the model has seen."""
    known = split.partition[subject]
    return split.training[subject].labels.assign_coords(
        known_image=np.array(list(known), dtype=object),
        known_partition=("known_image", np.array(list(known.values()), dtype=object)),
    )


def encoder_recipe(
    split: Split,
    responses: Responses,
    backbone: BackboneRecipe,
    kind: str,
    estimator: BaseEstimator,
) -> EncoderRecipe:
    """Return what the fitted model is a model of, from what the responses say of themselves."""
    _, ds = next(_subjects(responses))
    response = ds["response"].attrs
    about: Mapping[str, Any] = ds.attrs
    if isinstance(responses, xr.DataTree):
        about = {str(k): v for k, v in {**responses.attrs, **ds.attrs}.items()}
    samples = sum(map(len, split.training.values()))
    return recipe_of(
        EncoderRecipe,
        response,
        about,
        kind,
        backbone=backbone,
        fitted_by=described(estimator),
        training_data=f"{samples} samples of {len(split.training)} subjects",
    )


def described(estimator: BaseEstimator) -> str:
    """Return the class and the parameters that decide what is learnt."""
    params = estimator.get_params(deep=False).items()
    said = [f"{name}={value!r}" for name, value in params if name not in _ELSEWHERE]
    return f"{type(estimator).__name__}({', '.join(said)})"
