"""What all estimators of encoding models share: pairing, features, the model, its predictions."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
import xarray as xr
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import validate_data

from nedx.backbones.recipe import BackboneRecipe
from nedx.encoding.estimators import checks
from nedx.encoding.estimators.measured import Measured, measured, members, row_positions
from nedx.encoding.features import encode_features
from nedx.encoding.model import LinearEncoder
from nedx.encoding.recipe import EncoderRecipe
from nedx.encoding.weights import ROOT, fold
from nedx.errors import ModelError, close_matches
from nedx.linear.folds import fold_numbers
from nedx.linear.pca import StandardizedPCA, fit_pca
from nedx.linear.ridge import checked_penalties
from nedx.metrics.correlation import correlate
from nedx.store.location import Location

HELD_BYTES = 2**30
"""Responses smaller than this are read before the backbone runs, and kept; others streamed."""

_FLOATS = [np.float64, np.float32]
_FROM_DATASET = ("modality", "species", "dataset", "license", "citation")

Labelled = xr.Dataset | xr.DataTree


class UnfittedError(ModelError, NotFittedError):
    """An estimator that is asked to predict before it is fitted."""


@dataclass(frozen=True, eq=False)
class Regression:
    """How targets are read out of components.

    Attributes
    ----------
    coef : ndarray (component, target)
        Weights.
    intercept : ndarray (target,)
        In units of the responses.
    learnt : mapping of str to ndarray, (..., target)
        What else was found, by the name of the estimator's attribute.
    """

    coef: np.ndarray
    intercept: np.ndarray
    learnt: Mapping[str, np.ndarray]

    def part(self, targets: slice) -> Regression:
        """Return the regression of some targets."""
        learnt = {name: values[..., targets] for name, values in self.learnt.items()}
        return Regression(self.coef[:, targets], self.intercept[targets], learnt)


class Features(NamedTuple):
    """Features (image, feature) of the images to fit to, and what made them."""

    values: np.ndarray | da.Array
    recipe: BackboneRecipe
    widths: dict[str, int] | None


class EncoderEstimator(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Base of estimators: standardised features, components, one regression for all targets.

    A subclass gives ``__init__`` and ``_regress``.
    """

    model_: LinearEncoder
    n_features_in_: int
    backbone: str | BackboneRecipe
    layers: Sequence[str] | None
    pooling: str | None
    n_components: int | None
    groups: str | None = None
    repetitions: str = "mean"
    device: str = "auto"

    @property
    def recipe(self) -> BackboneRecipe:
        """The recipe of the backbone, with layers and pooling as asked for."""
        from nedx.backbones.registry import default_recipe

        changes: dict[str, Any] = {}
        if self.layers is not None:
            changes["layers"] = tuple(self.layers)
        if self.pooling is not None:
            changes["pooling"] = self.pooling
        if isinstance(self.backbone, str):
            return default_recipe(self.backbone, **changes)
        return BackboneRecipe.model_validate({**self.backbone.model_dump(), **changes})

    def fit(self, stimuli: Any, responses: Any = None) -> EncoderEstimator:
        """Fit to images and the responses to them.

        The backbone runs once, for all subjects. Responses below 1 GiB are read once, before it
        runs; larger ones are streamed while they are fitted.

        Parameters
        ----------
        stimuli : Dataset or ndarray (image, feature)
            ``pixels`` or ``features``; may hold images beyond those of the responses.
        responses : Dataset, DataTree or ndarray (image, *targets), optional
            ``response``; paired with the stimuli by ``image_id``, plain arrays by position.
            Repetitions and trials of an image are averaged. A DataTree holds subjects with
            neuroids of their own. Left out where `stimuli` holds both.

        Returns
        -------
        EncoderEstimator
            Itself.

        Raises
        ------
        ModelError
            If images of the responses are not among the stimuli; values are missing, infinite
            or constant; or subjects have other units.

        Warns
        -----
        NedxWarning
            If test images are among those fitted to, targets are constant, or images are fewer
            than components.
        """
        images, given = self._given(stimuli, responses)
        parts = members(given)
        each = self.repetitions == "each"
        found = {n: measured(ds, each=each, groups=self.groups) for n, ds in parts.items()}
        asked = self._components_asked(images)
        checks.check_labels(parts, found, asked)
        for one in found.values():
            self._check(one.values.sizes["image"], one.groups, asked)
        positions = row_positions(images, found)
        checks.check_stimuli_partition(images, parts, positions)
        found = {name: _held(name, one) for name, one in found.items()}
        union = np.unique(np.concatenate(list(positions.values())))
        features = self._features(images.isel(image=union))
        self.n_features_in_ = features.values.shape[1]
        bands = self._project(features)
        if not any(len(band.components) for band in bands):
            raise ModelError("all features are constant over the images: they hold no components")
        rows = {name: np.searchsorted(union, place) for name, place in positions.items()}
        fitted = self._readouts(found, rows, bands)
        checks.warn_of_still_streams(found, {name: one.coef for name, one in fitted.items()})
        self._keep(found, features, bands, fitted)
        return self

    def predict(self, stimuli: Any) -> Labelled | np.ndarray:
        """Predict responses: lazily for a Dataset, at once for an array of features.

        Returns
        -------
        Dataset, DataTree or ndarray (image, *targets)
        """
        model = self._fitted()
        if isinstance(stimuli, Labelled):
            from nedx.encoding.encode import encode

            return encode(stimuli, model, device=self.device)
        if model.is_ragged:
            raise ModelError(
                "subjects have neuroids of their own, which no array holds; give a Dataset"
            )
        x = validate_data(self, stimuli, reset=False, dtype=_FLOATS)
        weights = next(iter(model.members.values()))
        projected = x @ weights["projection"].values.astype(np.float64)
        projected -= weights["projection_offset"].values
        product = np.tensordot(projected, weights["readout"].values, axes=([1], [-1]))
        predicted: np.ndarray = product + weights["intercept"].values
        return predicted[:, 0] if self._one_target else predicted

    def score(self, stimuli: Any, responses: Any = None) -> float:
        """Return the mean over targets of Pearson's r between predicted and given responses.

        Targets whose r is not defined (constant responses) count as 0.

        Raises
        ------
        ModelError
            If the responses have other units or another normalisation than those fitted to.

        Warns
        -----
        NedxWarning
            If images are among those fitted to, or r is not defined for some targets.
        """
        if isinstance(stimuli, Labelled):
            return _mean_accuracy(self.evaluate(stimuli, responses))
        given = isinstance(responses, xr.Dataset)
        if given:
            checks.check_same_units(self._fitted().recipe, responses["response"].attrs)
        target = measured(responses).values.values if given else np.asarray(responses)
        predicted = np.asarray(self.predict(stimuli))
        if predicted.shape != target.shape:
            raise ModelError(f"predictions are {predicted.shape}, responses {target.shape}")
        r = correlate(np.moveaxis(predicted, 0, -1), np.moveaxis(target, 0, -1))
        return checks.mean_r(np.asarray(r))

    def evaluate(self, stimuli: Any, responses: Any = None, **options: Any) -> Labelled:
        """Compare predicted with given responses, beside the noise ceiling; lazily.

        Parameters
        ----------
        stimuli, responses
            As `fit` takes them; repetitions are kept for the ceiling.
        **options
            Of `nedx.score`, such as ``method=``.

        Returns
        -------
        Dataset or DataTree
            The responses with ``response_predicted``, ``accuracy`` and, where there are repeats,
            ``noise_ceiling`` and ``accuracy_normalized``.
        """
        from nedx.encoding.evaluating import evaluate

        model = self._fitted()
        images, given = self._given(stimuli, responses, reset=False)
        return evaluate(model, images, given, device=self.device, **options)

    def to_zarr(self, place: str | Path | Location) -> Location:
        """Write the fitted model; `nedx.load_model` opens it."""
        return self._fitted().to_zarr(place)

    def set_params(self, **params: Any) -> EncoderEstimator:
        """Set parameters; returns itself."""
        known = self.get_params(deep=False)
        for name in params:
            if name not in known:
                raise ModelError(f"no parameter {name!r}; {close_matches(name, known)}")
        changed: EncoderEstimator = super().set_params(**params)
        return changed

    def _check(self, images: int, groups: np.ndarray | None, components: int) -> None:
        """Refuse what cannot be fitted, before anything is read."""
        checks.check_parameters(self.n_components, self.repetitions, self.device)
        if hasattr(self, "alphas"):
            checked_penalties(self.alphas)
        if hasattr(self, "cv"):
            fold_numbers(images, self.cv, groups)

    @abstractmethod
    def _regress(
        self,
        scores: Sequence[np.ndarray],
        responses: np.ndarray | da.Array,
        groups: np.ndarray | None,
    ) -> Regression:
        """Fit responses (image, target) to the components (image, component) of each band."""

    def _readouts(
        self,
        found: Mapping[str, Measured],
        rows: Mapping[str, np.ndarray],
        bands: Sequence[StandardizedPCA],
    ) -> dict[str, Regression]:
        """Fit members; those that saw the same images together, for one decomposition of these."""
        together: dict[tuple[bytes, str], list[str]] = {}
        for name, one in found.items():
            same = rows[name].tobytes(), str(None if one.groups is None else list(one.groups))
            together.setdefault(same, []).append(name)
        fitted = {}
        for names in together.values():
            scores = [band.scores[rows[names[0]]] for band in bands]
            flat = [found[name].flat() for name in names]
            lazy = any(isinstance(one, da.Array) for one in flat)
            joined = flat[0] if len(flat) == 1 else (da if lazy else np).concatenate(flat, axis=1)
            fit = self._regress(scores, joined, found[names[0]].groups)
            edges = np.cumsum([0, *(one.shape[1] for one in flat)])
            for name, start, stop in zip(names, edges[:-1], edges[1:], strict=True):
                fitted[name] = fit.part(slice(start, stop))
        return {name: fitted[name] for name in found}

    def _project(self, features: Features) -> list[StandardizedPCA]:
        """Standardise features and find the components of each band, here of all together."""
        return [self._components(features.values)]

    def _components(self, features: Any) -> StandardizedPCA:
        """Find as many components as are asked for, or all that there are."""
        width = features.shape[1]
        count = width if self.n_components is None else self.n_components
        return fit_pca(features, count, device=self.device)

    def _components_asked(self, images: xr.Dataset) -> int:
        """Return how many components are asked for, at most as many as there are features."""
        asked = self.n_components or 0
        return min(asked, images.sizes.get("feature", asked))

    def _fitted(self) -> LinearEncoder:
        if not hasattr(self, "model_"):
            name = type(self).__name__
            raise UnfittedError(f"this {name} is not fitted: type .fit(stimuli, responses)")
        return self.model_

    def _given(
        self, stimuli: Any, responses: Any, *, reset: bool = True
    ) -> tuple[xr.Dataset, Labelled]:
        """Label plain arrays; check them as scikit-learn does."""
        if reset:
            self._one_target = False
        if responses is None and isinstance(stimuli, xr.Dataset):
            responses = stimuli
        if isinstance(stimuli, xr.DataTree):
            raise ModelError("stimuli are one Dataset, whatever subjects have seen of them")
        if isinstance(stimuli, xr.Dataset) and isinstance(responses, Labelled):
            return stimuli, responses
        if responses is None:
            raise ModelError(
                "there are no responses: requires y to be passed, but the target y is None"
            )
        if isinstance(responses, Labelled):
            x = validate_data(self, stimuli, reset=reset, dtype=_FLOATS)
            return _from_features(x), responses
        values = np.asarray(responses)
        if isinstance(stimuli, xr.Dataset):
            return stimuli, _from_array(values)
        flat = values.reshape(len(values), -1) if values.ndim > 2 else values
        x, y = validate_data(
            self, stimuli, flat, reset=reset, dtype=_FLOATS, multi_output=True, y_numeric=True
        )
        if reset:
            self._one_target = values.ndim == 1
        return _from_features(x), _from_array(y.reshape(values.shape))

    def _features(self, images: xr.Dataset) -> Features:
        """Run the backbone, or take the features that are given."""
        recipe = self.recipe
        ran = "features" not in images
        if ran:
            images = encode_features(images, recipe, device=self.device)
        array = images["features"].transpose("image", "feature")
        made_by = array.attrs.get("backbone")
        if made_by is not None:
            taken = BackboneRecipe.model_validate_json(made_by)
            taken = taken.model_copy(update={"batch_size": recipe.batch_size})
            if taken.model_copy(update={"image_size": recipe.image_size}) != recipe:
                raise ModelError(
                    f"these features were made by {taken}, this estimator's backbone is {recipe}"
                )
            recipe = taken
        widths = _widths(array) or ({"features": array.sizes["feature"]} if not ran else None)
        values = array.data
        if values.dtype.kind != "f":
            values = values.astype(np.float32)
        if not isinstance(values, da.Array):
            ids = images["image_id"].values if "image_id" in images.coords else None
            checks.check_features(values, ids)
        return Features(values, recipe, widths)

    def _keep(
        self,
        found: Mapping[str, Measured],
        features: Features,
        bands: Sequence[StandardizedPCA],
        fitted: Mapping[str, Regression],
    ) -> None:
        """Set what was learnt, and the model."""
        mean, scale = (np.concatenate([getattr(b, k) for b in bands]) for k in ("mean", "scale"))
        folded, offset = fold(mean, scale, _beside([b.components for b in bands]), 0 * mean)
        shared = {
            "projection": xr.Variable(("feature", "component"), folded),
            "projection_offset": xr.Variable("component", offset),
        }
        heads = {name: _head(one, fitted[name]) for name, one in found.items()}
        weights: Labelled
        if set(heads) == {ROOT}:
            weights = heads[ROOT].assign(shared)
        else:
            tree = {f"/{name}": head for name, head in heads.items()}
            weights = xr.DataTree.from_dict({"/": xr.Dataset(shared), **tree})
        recipe = self._encoder_recipe(found, features.recipe)
        self.model_ = LinearEncoder(weights, recipe, layer_widths=features.widths)
        for key in next(iter(fitted.values())).learnt:
            shaped = {
                name: one.learnt[key].reshape(*one.learnt[key].shape[:-1], *found[name].shape)
                for name, one in fitted.items()
            }
            setattr(self, key, shaped[ROOT] if set(shaped) == {ROOT} else shaped)

    def _encoder_recipe(
        self, found: Mapping[str, Measured], backbone: BackboneRecipe
    ) -> EncoderRecipe:
        first = next(iter(found.values()))
        attrs, about = first.values.attrs, first.labels.attrs
        known = {key: attrs[key] for key in checks.MADE_BY[1:] if key in attrs}
        known |= {key: about[key] for key in _FROM_DATASET if key in about}
        parts = [str(about[key]) for key in ("modality", "dataset") if key in about]
        kind = type(self).__name__.removesuffix("Encoder").lower()
        return EncoderRecipe(
            backbone=backbone,
            model_id="-".join([*parts, backbone.name, kind]),
            version="1",
            units=attrs.get("units", "1"),
            training_source=attrs.get("source"),
            training_data=_training_data(found),
            fitted_by=self._described(),
            **known,
        )

    def _described(self) -> str:
        """Return the class and the parameters that decide what is learnt."""
        elsewhere = ("backbone", "layers", "pooling", "device")
        params = self.get_params(deep=False).items()
        said = [f"{name}={value!r}" for name, value in params if name not in elsewhere]
        return f"{type(self).__name__}({', '.join(said)})"


def _mean_accuracy(scored: Labelled) -> float:
    nodes = scored.children.values() if isinstance(scored, xr.DataTree) else [scored]
    each = [np.asarray(node["accuracy"].data).reshape(-1) for node in nodes]
    return checks.mean_r(np.concatenate(each))


def _beside(components: Sequence[np.ndarray]) -> np.ndarray:
    """Return components (component, feature) of bands as one matrix, 0 outside their own band."""
    if len(components) == 1:
        return components[0]
    rows, columns = zip(*(one.shape for one in components), strict=True)
    joined = np.zeros((sum(rows), sum(columns)), np.float32)
    for one, row, column in zip(components, np.cumsum(rows), np.cumsum(columns), strict=True):
        joined[row - one.shape[0] : row, column - one.shape[1] : column] = one
    return joined


def _held(name: str, one: Measured) -> Measured:
    """Read responses that are small, and check them; large ones are checked as they stream."""
    if isinstance(one.values.data, da.Array):
        if one.values.nbytes > HELD_BYTES:
            return one
        one = Measured(one.values.compute(), one.labels, one.image_id, one.groups)
    checks.check_values(name, one)
    return one


def _head(one: Measured, fit: Regression) -> xr.Dataset:
    """Label the readout of a member, and say which images it has seen."""
    ds = one.labels.assign(
        readout=((*one.dims, "component"), fit.coef.T.reshape(*one.shape, -1)),
        intercept=(one.dims, fit.intercept.reshape(one.shape)),
    )
    if one.image_id is None:
        return ds
    kinds = np.full(len(one.image_id), "train", dtype=object)
    return ds.assign_coords(
        known_image=("known_image", one.image_id), known_partition=("known_image", kinds)
    )


def _training_data(found: Mapping[str, Measured]) -> str:
    """Say how many images were fitted to, and which, as a hash of their ids."""
    ids = [one.image_id for one in found.values()]
    if any(one is None for one in ids):
        return f"{max(one.values.sizes['image'] for one in found.values())} images"
    names = sorted({str(label) for one in ids if one is not None for label in one})
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    return f"{len(names)} images (sha256 of their sorted ids: {digest[:16]})"


def _widths(features: xr.DataArray) -> dict[str, int] | None:
    """Return the features of each layer, where labels say which layer each is of."""
    if "layer" not in features.coords:
        return None
    layers = features["layer"].values.astype(str)
    return {str(layer): int((layers == layer).sum()) for layer in dict.fromkeys(layers)}


def _from_features(x: np.ndarray) -> xr.Dataset:
    return xr.Dataset({"features": (("image", "feature"), x)})


def _from_array(values: np.ndarray) -> xr.Dataset:
    """Label responses (image, target), (image, channel, time), or of one target (image,)."""
    if values.ndim not in (1, 2, 3):
        raise ModelError(
            f"responses are an array of shape {values.shape}; expected (image, target) or "
            "(image, channel, time). Of more dims, give a Dataset"
        )
    values = values[:, None] if values.ndim == 1 else values
    dims = ("image", "unit") if values.ndim == 2 else ("image", "channel", "time")
    return xr.Dataset({"response": (dims, values)})
