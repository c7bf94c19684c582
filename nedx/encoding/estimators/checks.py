"""What is wrong with data for a fit, said before the pass over them begins."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import dask.array as da
import numpy as np
import xarray as xr

from nedx.compute.devices import check_device
from nedx.encoding.estimators.measured import Measured
from nedx.encoding.recipe import EncoderRecipe
from nedx.errors import ModelError, NedxWarning, StimulusError
from nedx.metrics.repeats import labels_of
from nedx.stimuli.preprocessing import check_pixels

MADE_BY = ("units", "normalization", "normalization_scope", "transform")
"""Attributes of a response that decide what its numbers mean."""
_HELD = ("test", "val")


def check_parameters(components: int | None, repetitions: str, device: str) -> None:
    """Refuse parameters of all estimators that mean nothing, before anything is read."""
    check_device(device)
    if components is not None and (not isinstance(components, int | np.integer) or components < 1):
        raise ModelError(f"n_components is {components!r}; type a whole number from 1")
    if repetitions not in ("mean", "each"):
        raise ModelError(f"repetitions is {repetitions!r}; type 'mean' or 'each'")


def check_images(stimuli: xr.Dataset, policy: str, who: str) -> np.ndarray:
    """Return the ids of images that networks are trained on.

    Parameters
    ----------
    stimuli : Dataset
        ``pixels (image, y, x, rgb)`` uint8 with ``image_id``.
    policy : str
        Of the images.
    who : str
        Is fitted to them.

    Returns
    -------
    ndarray of object, (image,)

    Raises
    ------
    StimulusError
        If there are no pixels or ids, or pixels do not fit the policy.
    ModelError
        If images have one name.
    """
    if not isinstance(stimuli, xr.Dataset):
        raise StimulusError(
            f"{who} are fitted to a Dataset of images, not {type(stimuli).__name__}. Type: "
            "nedx.open_images(images)"
        )
    if "pixels" not in stimuli:
        raise StimulusError(
            f"{who} are fitted to 'pixels', found {', '.join(map(str, stimuli.data_vars))}. "
            "Type: nedx.open_images('folder')"
        )
    if "image_id" not in stimuli.coords:
        raise StimulusError("the stimuli have no 'image_id' to pair responses with them by")
    check_pixels(stimuli["pixels"].dtype, stimuli["pixels"].shape, policy)
    ids = labels_of(stimuli, "image_id")
    names, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise ModelError(
            f"several of the stimuli are called {str(names[counts > 1][0])!r}; image_id must be "
            "unique"
        )
    return ids.astype(object)


def check_labels(
    responses: Mapping[str, xr.Dataset], found: Mapping[str, Measured], components: int
) -> None:
    """Refuse what the labels show to be wrong; reads no values.

    Parameters
    ----------
    responses : mapping of str to Dataset
        Of each member, as given.
    found : mapping of str to Measured
        The same, one row an image.
    components : int
        Principal components asked for.

    Raises
    ------
    ModelError
        If there are fewer than two images, or members have other units or normalisations.

    Warns
    -----
    NedxWarning
        If images are marked as held out, or are fewer than components.
    """
    (first, one), *others = found.items()
    for name, other in others:
        differing = different_units(one.values.attrs, other.values.attrs)
        if differing:
            raise ModelError(
                f"{name} and {first} differ in {differing}; bring them to the same, or fit each "
                "on its own"
            )
    for name, ds in responses.items():
        _check_partition(name, ds)
    fewest = min(m.values.sizes["image"] for m in found.values())
    if fewest < 2:
        raise ModelError(f"a fit needs images to differ in; found n_samples = {fewest}")
    if components > fewest - 1:
        warnings.warn(
            f"{components} components cannot be found in {fewest} images, {fewest - 1} are used; "
            f"type n_components={fewest - 1} or fewer",
            NedxWarning,
            stacklevel=4,
        )


def check_values(name: str, one: Measured) -> None:
    """Refuse responses in memory that cannot be fitted.

    Raises
    ------
    ModelError
        If values are NaN or infinite.

    Warns
    -----
    NedxWarning
        If targets do not vary over the images.
    """
    flat = one.flat()
    where = f"{name}: " if name else ""
    bad = ~np.isfinite(flat)
    if bad.any():
        rows, columns = np.flatnonzero(bad.any(1)), np.flatnonzero(bad.any(0))
        ids = rows if one.image_id is None else one.image_id[rows]
        raise ModelError(
            f"{where}responses hold NaN or infinity for {len(rows)} of {len(flat)} images, first "
            f"{ids[:3].tolist()}, in {len(columns)} of {flat.shape[1]} targets, first "
            f"{columns[:3].tolist()}: drop these"
        )
    still = np.flatnonzero((flat == flat[:1]).all(0))
    if len(still):
        _warn_of_constants(name, one, still)


def check_features(features: np.ndarray, ids: np.ndarray | None) -> None:
    """Refuse features in memory that cannot be fitted to.

    Raises
    ------
    ModelError
        If values are NaN or infinite, or no feature varies over the images.
    """
    finite = np.isfinite(features).all(1)
    if not finite.all():
        bad = np.flatnonzero(~finite)[:5]
        names = bad if ids is None else ids[bad]
        raise ModelError(
            f"features hold NaN or infinity for {int((~finite).sum())} of {len(features)} images, "
            f"first {names.tolist()}: drop these images, or compute their features again"
        )
    still = int((features == features[:1]).all(0).sum())
    if still == features.shape[1]:
        raise ModelError(
            f"all {still} features are constant over the images: these images cannot be told "
            "apart; check that their features are of different images"
        )


def different_units(first: Mapping[str, object], second: Mapping[str, object]) -> str:
    """Say in which of units, normalisation and transform two responses differ; may be empty."""
    pairs = {key: (first.get(key), second.get(key)) for key in MADE_BY}
    return ", ".join(f"{key} ({a!r} and {b!r})" for key, (a, b) in pairs.items() if a != b)


def check_same_units(recipe: EncoderRecipe, attrs: Mapping[str, object]) -> None:
    """Refuse to compare predictions with responses of other units or normalisation.

    Raises
    ------
    ModelError
        Naming what differs.
    """
    trained = {key: getattr(recipe, key) for key in MADE_BY}
    differing = different_units(trained, {"units": "1", **attrs})
    if differing:
        raise ModelError(
            f"the model was fitted to other responses than these: they differ in {differing}. "
            "Bring both to the same, or correct the attributes of 'response'"
        )


def check_stimuli_partition(
    stimuli: xr.Dataset,
    responses: Mapping[str, xr.Dataset],
    positions: Mapping[str, np.ndarray],
) -> None:
    """Warn where the stimuli, and not the responses, say that an image is held out."""
    if "partition" not in stimuli.coords or stimuli["partition"].dims != ("image",):
        return
    kinds = stimuli["partition"].values.astype(str)
    for name, ds in responses.items():
        if "partition" in ds.coords and np.isin(ds["partition"].values.astype(str), _HELD).any():
            continue
        count = int(np.isin(kinds[positions[name]], _HELD).sum())
        if count:
            warnings.warn(
                f"{name + ': ' if name else ''}{count} of {len(positions[name])} images to fit to "
                "are held out by the 'partition' of the stimuli: no score on them can be trusted. "
                "Leave the responses to these images out",
                NedxWarning,
                stacklevel=4,
            )


def warn_of_still_streams(found: Mapping[str, Measured], coefs: Mapping[str, np.ndarray]) -> None:
    """Warn of constant targets among streamed ones: nothing but 0 weighs their components."""
    for name, one in found.items():
        if not isinstance(one.values.data, da.Array):
            continue
        still = np.flatnonzero((coefs[name] == 0).all(0))
        if len(still):
            _warn_of_constants(name, one, still)


def mean_r(r: np.ndarray) -> float:
    """Average r over targets; those without one count as 0, and are warned of."""
    undefined = int(np.isnan(r).sum())
    if undefined:
        warnings.warn(
            f"{undefined} of {r.size} targets have no r and count as 0: their responses, or what "
            "is predicted, are constant or hold NaN",
            NedxWarning,
            stacklevel=4,
        )
    return float(np.nan_to_num(r).mean())


def _warn_of_constants(name: str, one: Measured, still: np.ndarray) -> None:
    places = [_target(one, int(i)) for i in still[:3]]
    warnings.warn(
        f"{name + ': ' if name else ''}{len(still)} of {int(np.prod(one.shape))} targets are "
        f"constant over the images, first {'; '.join(places)}: what is predicted is that "
        "constant. Drop them",
        NedxWarning,
        stacklevel=5,
    )


def _check_partition(name: str, ds: xr.Dataset) -> None:
    if "partition" not in ds.coords:
        return
    kinds = ds["partition"].values.astype(str)
    held_out = {kind for kind in np.unique(kinds) if kind in _HELD}
    if not held_out:
        return
    count = int(np.isin(kinds, list(held_out)).sum())
    warnings.warn(
        f"{name + ': ' if name else ''}{count} of {kinds.size} images to fit to are of the "
        f"partition {' and '.join(sorted(held_out))!r}: no score on them can be trusted. Type: "
        "responses.isel(image=(responses.partition == 'train').values)",
        NedxWarning,
        stacklevel=5,
    )


def _target(one: Measured, position: int) -> str:
    """Name a target by its labels."""
    places = np.unravel_index(position, one.shape)
    labels = {
        dim: one.labels[dim].values[i] if dim in one.labels.coords else i
        for dim, i in zip(one.dims, places, strict=True)
    }
    return ", ".join(f"{dim} {label}" for dim, label in labels.items())
