"""`FeatureDecoder`: the features of networks, unit by unit, from responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from sklearn.base import BaseEstimator

from nedx.backbones.recipe import BackboneRecipe
from nedx.compute.devices import check_device
from nedx.compute.references import ModelRef
from nedx.decoding.decode import decode
from nedx.decoding.feature_decoder_alpha import checked_penalties, choose_alphas
from nedx.decoding.feature_decoder_layers import TrueFeatures, needed_images, origin, true_features
from nedx.decoding.feature_decoder_model import FeatureModel
from nedx.decoding.feature_decoder_recipe import FeatureDecoderRecipe
from nedx.decoding.feature_decoder_samples import (
    LABEL,
    MADE_BY,
    Trials,
    checked_responses,
    neuroid_labels,
    read_trials,
    roi_positions,
    standardization,
    standardized,
    trial_labels,
)
from nedx.decoding.feature_decoder_storing import FeatureModelWriter
from nedx.decoding.samples import Responses, each_subject
from nedx.encoding.estimators.base import UnfittedError
from nedx.encoding.loading import LOADER
from nedx.encoding.storing import hash_variables
from nedx.errors import ModelError
from nedx.linear.l2lir import BLOCK_BYTES, L2LiRInputs, check_penalty
from nedx.linear.streaming import Matrix, column_blocks
from nedx.metrics.repeats import labels_of
from nedx.preprocessing.repetitions import average_repetitions
from nedx.schema import role_dim, sample_dim
from nedx.selection import Names
from nedx.store.location import Location
from nedx.store.models import keep_partial, partial_model

_FROM_DATASET = ("dataset", "license", "citation")


class FeatureDecoder(BaseEstimator):
    """Decode the features of network layers from responses, each unit from its own voxels.

    The method of Horikawa & Kamitani 2017, Nature Communications 8:15037, as Shen et al. 2019,
    PLoS Computational Biology 15:e1006633, and Ho et al. 2023, NeuroImage 271:120007, use it: for
    each unit the voxels are chosen that correlate best, and it is regressed on these with a ridge
    penalty. Responses are standardised over all trials, features over the images.

    Parameters
    ----------
    backbone : str or BackboneRecipe
        The network, where features are computed of images. A name alone has random weights; of
        VGG19 with its weights `nedx.reconstruction.inversion.vgg19_encoder` has the recipe.
    layers : str or sequence of str, optional
        Which; by default all that are given, or of ``"vgg19"`` its 19 layers before the rectifiers
        (``conv1_1`` to ``conv5_4``, ``fc6`` to ``fc8``), of other networks those of their recipe.
    roi : str or sequence of str, optional
        ROIs, each with a decoder of its own; all neuroids by default.
    n_voxels : int
        Chosen for each unit; all, where there are no more.
    alpha : float, sequence of float or "cv"
        The penalty, of the bias too. Among several, or with ``"cv"`` among 1, 10 ... 10,000, one
        is chosen for each ROI and layer by how well left-out images are decoded.
    folds : int
        Of that cross-validation.
    groups : str, optional
        A label of trials, such as ``"run"``, whose values stay in one fold; by default the image.
        Trials of images that are left out are never fitted to.
    exclusive : str, optional
        A label, such as ``"category"``, that trials to fit to must not share with left-out ones.
    average : bool
        Average the trials of each image before the fit, rather than fit to single trials.
    memory : int
        Bytes for a block of units, beside one ROI's responses and their Gram matrix.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    Attributes
    ----------
    model_ : FeatureModel
        What was fitted; its weights lie in the cache until they are written elsewhere.

    Examples
    --------
    >>> decoder = nedx.FeatureDecoder(layers=["conv5_4", "fc6"], roi=["V1", "HVC"])
    >>> decoded = test.ned.decode(decoder.fit(images, train))
    """

    model_: FeatureModel

    def __init__(
        self,
        backbone: str | BackboneRecipe = "vgg19",
        layers: Names | None = None,
        *,
        roi: Names | None = None,
        n_voxels: int = 500,
        alpha: float | str | Sequence[float] = 100.0,
        folds: int = 5,
        groups: str | None = None,
        exclusive: str | None = None,
        average: bool = False,
        memory: int = BLOCK_BYTES,
        device: str = "auto",
    ):
        self.backbone = backbone
        self.layers = layers
        self.roi = roi
        self.n_voxels = n_voxels
        self.alpha = alpha
        self.folds = folds
        self.groups = groups
        self.exclusive = exclusive
        self.average = average
        self.memory = memory
        self.device = device

    @property
    def recipe(self) -> BackboneRecipe:
        """The recipe of the network, with the layers asked for, maps kept whole."""
        from nedx.backbones.registry import default_recipe

        layers = self._wanted
        if not isinstance(self.backbone, str):
            changes = {} if layers is None else {"layers": layers}
            return BackboneRecipe.model_validate({**self.backbone.model_dump(), **changes})
        if layers is None and self.backbone == "vgg19":
            from nedx.backbones.vgg import VGG19

            layers = tuple(VGG19.aliases)
        given = {} if layers is None else {"layers": layers}
        return default_recipe(self.backbone, pooling="flatten", **given)

    def fit(self, stimuli: xr.Dataset, responses: Responses) -> FeatureDecoder:
        """Fit to features of images and the responses to these, paired by ``image_id``.

        Parameters
        ----------
        stimuli : Dataset
            ``feature_<layer> (image, ...)``, ``features (image, feature)`` with ``layer
            (feature)``, or ``pixels (image, y, x, rgb)``, of which features are computed.
        responses : Dataset or DataTree
            ``response ([subject,] trial | image[, repetition], <neuroid>)``, of one subject or of
            several. Those of the ``partition`` ``"test"`` are left out.

        Returns
        -------
        FeatureDecoder
            This one.

        Raises
        ------
        ModelError
            If images have no features, ROIs or layers are absent, or values are NaN.
        """
        self._check_options()
        subjects = dict(each_subject(responses))
        if not subjects:
            raise ModelError("no child of this DataTree holds a 'response'")
        subjects = {name: _without_test(ds, name) for name, ds in subjects.items()}
        if self.average:
            subjects = {name: _averaged(ds) for name, ds in subjects.items()}
        rois = [self.roi] if isinstance(self.roi, str) else self.roi
        for ds in subjects.values():
            trial_labels(ds, self.groups, self.exclusive)
        places = {name: roi_positions(ds, rois, name) for name, ds in subjects.items()}
        attrs = _shared_attrs(subjects)
        stimuli = needed_images(stimuli, {name: _shown(ds, name) for name, ds in subjects.items()})
        with true_features(stimuli, self.recipe, self._wanted, self.device) as layers:
            attrs["backbone"] = origin(stimuli, self.recipe)
            with partial_model() as partial:
                self.model_ = self._write(partial, subjects, places, layers, attrs)
        return self

    def predict(self, responses: xr.Dataset | xr.DataTree) -> Any:
        """Decode other responses of the same subjects, lazily; see `nedx.decode`."""
        return decode(responses, self._fitted(), device=self.device)

    def to_zarr(self, place: str | Path | Location) -> Location:
        """Write the decoder; `nedx.load_model` opens it."""
        return self._fitted().to_zarr(place)

    @property
    def _wanted(self) -> tuple[str, ...] | None:
        """The layers that were asked for."""
        layers = (self.layers,) if isinstance(self.layers, str) else self.layers
        return None if layers is None else tuple(layers)

    def _check_options(self) -> None:
        alphas = checked_penalties(self.alpha)
        check_penalty(min(alphas), None)
        if not isinstance(self.n_voxels, int | np.integer) or self.n_voxels < 1:
            raise ModelError(f"n_voxels is {self.n_voxels!r}; type a whole number from 1")
        if len(alphas) > 1 and not (isinstance(self.folds, int | np.integer) and self.folds > 1):
            raise ModelError(f"folds is {self.folds!r}; type a whole number from 2")
        for name, chosen in (("layers", self._wanted), ("roi", self.roi)):
            if chosen is not None and not len(chosen):
                raise ModelError(f"{name} is empty; leave it out for all")
        check_device(self.device)

    def _fitted(self) -> FeatureModel:
        if not hasattr(self, "model_"):
            raise UnfittedError(
                "this FeatureDecoder is not fitted yet; type: .fit(stimuli, responses)"
            )
        return self.model_

    def _write(
        self,
        partial: Location,
        subjects: Mapping[str, xr.Dataset],
        places: Mapping[str, Mapping[str, np.ndarray]],
        layers: Mapping[str, TrueFeatures],
        attrs: Mapping[str, Any],
    ) -> FeatureModel:
        """Fit into a folder of the cache, which is then called by what is in it."""
        writer = FeatureModelWriter(partial)
        alphas: dict[str, float] = {}
        known: dict[str, None] = {}
        labels = {subject: neuroid_labels(ds) for subject, ds in subjects.items()}
        for subject, ds in subjects.items():
            writer.subject(subject, labels[subject])
            used = np.unique(np.concatenate(list(places[subject].values())))
            some = ds if used.size == ds.sizes[_neuroid(ds)] else ds.isel({_neuroid(ds): used})
            trials = read_trials(some, subject, self.groups, self.exclusive)
            known.update(dict.fromkeys(trials.images))
            for roi, positions in places[subject].items():
                chosen = trials.values[:, np.searchsorted(used, positions)]
                group = f"{subject}/{roi}"
                alphas |= self._fit_roi(writer, group, trials, chosen, positions, layers)
        first = next(iter(subjects.values()))
        recipe = FeatureDecoderRecipe(
            layers={name: one.shape for name, one in layers.items()},
            subjects={n: ds["response"].sizes[_neuroid(ds)] for n, ds in subjects.items()},
            rois=tuple(next(iter(places.values()))),
            neuroid=_neuroid(first),
            n_voxels=self.n_voxels,
            alpha=alphas,
            averaged=self.average,
            training_data=f"responses to {len(known):,} images",
            **attrs,
        )
        return kept_model(partial, writer, recipe, list(known), labels)

    def _fit_roi(
        self,
        writer: FeatureModelWriter,
        group: str,
        trials: Trials,
        chosen: np.ndarray,
        positions: np.ndarray,
        layers: Mapping[str, TrueFeatures],
    ) -> dict[str, float]:
        """Fit all layers to the responses of one ROI, whose Gram matrix is computed once.

        ``chosen (trial, voxel)`` are these, at ``positions`` among the neuroids of the subject.
        """
        mean, deviation = standardization(chosen)
        arrays = {
            "position": positions,
            "response_mean": mean,
            "response_deviation": np.where(deviation > 0, deviation, 1),
        }
        writer.voxels(group, arrays)
        alphas = self._alphas(chosen, trials, layers)
        x = standardized(chosen, mean, deviation)
        inputs = L2LiRInputs(x, rows=trials.rows, dtype=x.dtype, device=self.device)
        for layer, one in layers.items():
            units = Matrix(one.of_images(trials.images), f"features of {layer!r}", x.dtype)
            for part in column_blocks(units, inputs.block_width(self.memory, self.n_voxels)):
                y = units.columns(part).whole().numpy()
                block = self._fit_units(inputs, y, alphas[layer])
                writer.units(f"{group}/{layer}", units.shape[1], part, block)
        return {f"{group}/{layer}": alpha for layer, alpha in alphas.items()}

    def _alphas(
        self, x: np.ndarray, trials: Trials, layers: Mapping[str, TrueFeatures]
    ) -> dict[str, float]:
        """Return the penalty of each layer."""
        alphas = checked_penalties(self.alpha)
        if len(alphas) == 1:
            return dict.fromkeys(layers, alphas[0])
        return choose_alphas(x, trials, layers, alphas, self.n_voxels, self.folds, self.device)

    def _fit_units(self, inputs: L2LiRInputs, y: np.ndarray, alpha: float) -> dict[str, np.ndarray]:
        """Fit units of ``y (image, unit)``; those that do not vary get no weights."""
        import torch

        mean, deviation = standardization(y)
        z = torch.from_numpy(standardized(y, mean, deviation))
        found = inputs.fit(z, alpha, self.n_voxels)
        return {
            "index": found.index,
            "weight": found.weight,
            "bias": found.bias,
            "feature_mean": mean,
            "feature_deviation": deviation,
        }


def kept_model(
    partial: Location,
    writer: FeatureModelWriter,
    recipe: FeatureDecoderRecipe,
    known: Sequence[str],
    labels: Mapping[str, xr.Dataset],
) -> FeatureModel:
    """Finish a model of `partial_model`, all but whose recipe is written, and keep it.

    Parameters
    ----------
    partial : Location
        Where it was written.
    writer : FeatureModelWriter
        What wrote it.
    recipe : FeatureDecoderRecipe
    known : sequence of str
        The ``image_id`` of what it was fitted to.
    labels : mapping of str to Dataset
        What the neuroids of each subject are called.
    """
    seen = xr.Dataset(
        coords={
            "known_image": np.array(known, dtype=object),
            "known_partition": ("known_image", np.array(["train"] * len(known), dtype=object)),
        }
    )
    sha256 = writer.finish(recipe, seen)
    named = hash_variables({"": seen, **labels}, ("known_image", LABEL))
    place = keep_partial(partial, f"{recipe.model_dump_json()}{sha256}{named}")
    return FeatureModel(recipe, ModelRef(LOADER, place, recipe.model_dump_json(), sha256), seen)


def _neuroid(ds: xr.Dataset) -> str:
    return str(checked_responses(ds).dims[-1])


def _averaged(ds: xr.Dataset) -> xr.Dataset:
    has_trials = role_dim(ds, "trial") is not None or role_dim(ds, "repetition") is not None
    return average_repetitions(ds) if has_trials else ds


def _without_test(ds: xr.Dataset, subject: str) -> xr.Dataset:
    """Return the samples that may be fitted to: all but those of the ``partition`` "test"."""
    dim = sample_dim(ds)
    if "partition" not in ds.coords or ds["partition"].dims != (dim,):
        return ds
    kept = np.flatnonzero(labels_of(ds, "partition") != "test")
    if not len(kept) and ds.sizes[dim]:
        raise ModelError(
            f"all responses of {subject!r} are of the partition 'test': none to fit to"
        )
    return ds.isel({dim: kept}) if len(kept) < ds.sizes[dim] else ds


def _shown(ds: xr.Dataset, subject: str) -> list[str]:
    """Return the images of a subject's responses."""
    if "image_id" not in ds.coords:
        raise ModelError(
            f"the responses of {subject!r} have no 'image_id' to find features by. Type: "
            f"ds.assign_coords(image_id=('{sample_dim(ds)}', names))"
        )
    images = [str(name) for name in dict.fromkeys(labels_of(ds, "image_id"))]
    if len(images) < 2:
        raise ModelError(
            f"the responses of {subject!r} are to {len(images)} image: a decoder is fitted to "
            "responses to two or more"
        )
    return images


def _shared_attrs(subjects: Mapping[str, xr.Dataset]) -> dict[str, Any]:
    """Return what responses say of themselves; all subjects must say the same of their units."""
    (first, reference), *others = subjects.items()
    made = {k: reference["response"].attrs.get(k, v) for k, v in MADE_BY.items()}
    for name, ds in others:
        theirs = {k: ds["response"].attrs.get(k, v) for k, v in MADE_BY.items()}
        if _neuroid(ds) != _neuroid(reference):
            raise ModelError(
                f"responses of {name} are of {_neuroid(ds)}s, of {first} of "
                f"{_neuroid(reference)}s: fit a decoder to each"
            )
        if theirs != made:
            raise ModelError(
                f"responses of {name} are {theirs}, of {first} {made}: bring them to the same"
            )
    about = {k: str(reference.attrs[k]) for k in _FROM_DATASET if reference.attrs.get(k)}
    source = reference["response"].attrs.get("source", reference.attrs.get("source"))
    known = {"training_source": source} if source in ("measured", "synthetic") else {}
    return {**made, **about, **known}
