"""`RidgeEncoder`: fit a linear encoding model, with the manners of scikit-learn."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from nedx.backbones.recipe import BackboneRecipe
from nedx.encoding.model import LinearEncoder
from nedx.encoding.recipe import EncoderRecipe
from nedx.errors import ModelError, close_matches
from nedx.linear.folds import CrossValidation
from nedx.linear.pca import fit_pca
from nedx.linear.ridge import fit_ridge
from nedx.schema import role_dim, sample_dim
from nedx.store.location import Location

ALPHAS = tuple(float(alpha) for alpha in np.logspace(0, 7, 15))
"""The penalties tried by default."""

_FROM_RESPONSE = ("normalization", "normalization_scope", "transform")
_FROM_DATASET = ("modality", "species", "dataset", "license", "citation")


class RidgeEncoder:
    """Standardise features, project them on principal components, regress responses on these.

    Components and ridge are exact; each target has its own penalty, chosen by cross-validation
    over the training images alone.

    Parameters
    ----------
    backbone : str or BackboneRecipe
        The network, by name or with all it needs (weights, precision).
    layers : sequence of str, optional
        Layers tapped; the recipe's by default.
    pooling : str, optional
        As in `BackboneRecipe`; the recipe's by default.
    n_components : int
        Principal components; fewer where there are fewer images or features.
    alphas : sequence of float
        Penalties tried, on the scale of scikit-learn's ``Ridge``.
    cv : int, str or ndarray
        Contiguous folds; or "loo", "gcv", the fold of each image, as `fit_ridge` takes it.

    Attributes
    ----------
    model_ : LinearEncoder
        What was fitted.
    alpha_ : ndarray (*targets)
        The penalty of each target.
    cv_score_ : ndarray (alpha, *targets)
        Cross-validated R2 of each penalty.

    Examples
    --------
    >>> encoder = nedx.RidgeEncoder(backbone="vit_b_32").fit(images, responses)
    >>> predicted = encoder.predict(new_images).response.compute()
    """

    model_: LinearEncoder
    alpha_: np.ndarray
    cv_score_: np.ndarray

    def __init__(
        self,
        backbone: str | BackboneRecipe = "squeezenet1_1",
        layers: Sequence[str] | None = None,
        pooling: str | None = None,
        n_components: int = 300,
        alphas: Sequence[float] = ALPHAS,
        cv: CrossValidation = 5,
    ):
        self.backbone = backbone
        self.layers = layers
        self.pooling = pooling
        self.n_components = n_components
        self.alphas = alphas
        self.cv = cv

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

    def fit(
        self,
        stimuli: xr.Dataset | np.ndarray,
        responses: xr.Dataset | np.ndarray | None = None,
    ) -> RidgeEncoder:
        """Fit to images and the responses to them.

        Parameters
        ----------
        stimuli : Dataset or ndarray (image, feature)
            ``pixels`` or ``features``; may hold images beyond those of the responses.
        responses : Dataset or ndarray (image, target), optional
            ``response``; paired with the stimuli by ``image_id``. Repetitions and trials of an
            image are averaged. Left out where `stimuli` holds both.

        Returns
        -------
        RidgeEncoder
            Itself.

        Raises
        ------
        ModelError
            If images of the responses are not among the stimuli, or values are missing.
        """
        target, labels = _target(stimuli if responses is None else responses)
        features = self._features(_paired(stimuli, target))
        flat = target.values.reshape(target.shape[0], -1)
        if len(features) != len(flat):
            raise ModelError(f"{len(features)} rows of features, {len(flat)} of responses")
        pca = fit_pca(features, self.n_components)
        ridge = fit_ridge(pca.scores, flat, self.alphas, self.cv)
        shape = target.shape[1:]
        self.alpha_ = ridge.alpha.reshape(shape)
        self.cv_score_ = ridge.score.reshape(-1, *shape)
        self.model_ = LinearEncoder.from_parts(
            pca.mean,
            pca.scale,
            pca.components,
            np.zeros_like(pca.mean),
            ridge.coef.T,
            ridge.intercept,
            recipe=self._encoder_recipe(target, labels),
            dims=tuple(str(dim) for dim in target.dims[1:]),
            coords=labels,
        )
        return self

    def predict(self, stimuli: xr.Dataset | np.ndarray) -> xr.Dataset | xr.DataTree | np.ndarray:
        """Predict responses: lazily for a Dataset, at once for an array of features.

        Returns
        -------
        Dataset or ndarray (image, *targets)
        """
        model = self._fitted()
        if isinstance(stimuli, xr.Dataset):
            from nedx.encoding.encode import encode

            return encode(stimuli, model)
        weights = next(iter(model.members.values()))
        projected = np.asarray(stimuli) @ weights["projection"].values
        projected -= weights["projection_offset"].values
        product = np.tensordot(projected, weights["readout"].values, axes=([1], [-1]))
        return product + weights["intercept"].values

    def score(
        self,
        stimuli: xr.Dataset | np.ndarray,
        responses: xr.Dataset | np.ndarray | None = None,
    ) -> float:
        """Return the mean over targets of Pearson's r between predicted and given responses."""
        target, _ = _target(stimuli if responses is None else responses)
        chosen = _paired(stimuli, target)
        if isinstance(chosen, xr.Dataset):
            chosen = self._features(chosen)
        predicted = np.asarray(self.predict(chosen)).reshape(target.shape[0], -1)
        measured = target.values.reshape(target.shape[0], -1)
        predicted = predicted - predicted.mean(0)
        measured = measured - measured.mean(0)
        norms = np.linalg.norm(predicted, axis=0) * np.linalg.norm(measured, axis=0)
        return float(np.mean((predicted * measured).sum(0) / np.where(norms > 0, norms, 1)))

    def to_zarr(self, place: str | Path | Location) -> Location:
        """Write the fitted model; `nedx.load_model` opens it."""
        return self._fitted().to_zarr(place)

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: FBT001, FBT002
        """Return the parameters, as scikit-learn asks for them."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> RidgeEncoder:
        """Set parameters; returns itself."""
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise ModelError(f"no parameter {name!r}; {close_matches(name, known)}")
            setattr(self, name, value)
        return self

    def _fitted(self) -> LinearEncoder:
        if not hasattr(self, "model_"):
            raise ModelError("this RidgeEncoder is not fitted: type .fit(stimuli, responses)")
        return self.model_

    def _features(self, stimuli: xr.Dataset | np.ndarray) -> np.ndarray:
        if not isinstance(stimuli, xr.Dataset):
            return stimuli
        if "features" not in stimuli:
            from nedx.encoding.features import encode_features

            stimuli = encode_features(stimuli, self.recipe)
        return np.asarray(stimuli.transpose("image", "feature", ...)["features"].values)

    def _encoder_recipe(self, target: xr.DataArray, labels: xr.Dataset) -> EncoderRecipe:
        found = {key: target.attrs[key] for key in _FROM_RESPONSE if key in target.attrs}
        found |= {key: labels.attrs[key] for key in _FROM_DATASET if key in labels.attrs}
        source = target.attrs.get("source")
        return EncoderRecipe(
            backbone=self.recipe,
            model_id="-".join(
                [
                    *(str(labels.attrs[k]) for k in ("modality", "dataset") if k in labels.attrs),
                    self.recipe.name,
                    "ridge",
                ]
            ),
            version="1",
            units=target.attrs.get("units", "1"),
            training_source=source,
            training_data=f"{target.shape[0]} images",
            **found,
        )


def _target(responses: xr.Dataset | np.ndarray) -> tuple[xr.DataArray, xr.Dataset]:
    """Return responses (image, *targets), one row an image, and the labels of the targets."""
    if isinstance(responses, np.ndarray):
        flat = responses if responses.ndim > 1 else responses[:, None]
        axes = ["unit"] if flat.ndim == 2 else ["channel", "time"]
        sizes = dict(zip(axes, flat.shape[1:], strict=True))
        labels = xr.Dataset(coords={axis: np.arange(size) for axis, size in sizes.items()})
        return xr.DataArray(flat, dims=("image", *axes)), labels
    if "response" not in responses:
        raise ModelError(f"there is no 'response', only {list(responses.data_vars)}")
    array = responses["response"]
    with xr.set_options(keep_attrs=True):
        if (repetition := role_dim(responses, "repetition")) is not None:
            array = array.mean(repetition, skipna=True)
        sample = sample_dim(responses)
        array = array.transpose(sample, ...)
        if sample == "trial":
            ids, which = np.unique(array["image_id"].values.astype(str), return_inverse=True)
            rows = [array.values[which == i].mean(0) for i in range(len(ids))]
            array = xr.DataArray(np.stack(rows), dims=("image", *array.dims[1:]), attrs=array.attrs)
            array = array.assign_coords(image_id=("image", ids.astype(object)))
    dims = set(array.dims[1:])
    kept = {
        name: variable
        for name, variable in responses.variables.items()
        if (name in responses.coords or name == "roi_mask") and set(variable.dims) <= dims | {"roi"}
    }
    labels = xr.Dataset(kept, attrs=responses.attrs).set_coords(
        [name for name in kept if name in responses.coords]
    )
    bare = {dim: np.arange(array.sizes[dim]) for dim in dims if dim not in labels.sizes}
    return array, labels.assign_coords(bare)


def _paired(stimuli: xr.Dataset | np.ndarray, target: xr.DataArray) -> xr.Dataset | np.ndarray:
    """Return the stimuli of the responses, in their order."""
    if not isinstance(stimuli, xr.Dataset) or "image_id" not in target.coords:
        return stimuli
    places = {str(name): i for i, name in enumerate(stimuli["image_id"].values)}
    wanted = [str(name) for name in target["image_id"].values]
    missing = [name for name in wanted if name not in places]
    if missing:
        raise ModelError(
            f"{len(missing)} of {len(wanted)} images of the responses are not among the stimuli, "
            f"first {missing[0]!r}; {close_matches(missing[0], places)}"
        )
    return stimuli.isel(image=np.array([places[name] for name in wanted]))
