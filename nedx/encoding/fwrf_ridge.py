"""`FwrfRidgeEncoder`: a Gaussian receptive field and a ridge for each voxel."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import xarray as xr
from sklearn.base import BaseEstimator

from nedx.backbones.recipe import BackboneRecipe
from nedx.compute import cache
from nedx.compute.batches import batches, checked
from nedx.compute.devices import check_device, forward_slot, resolve_device
from nedx.encoding.estimators.base import UnfittedError
from nedx.encoding.fwrf_gaussian import (
    GaussianFwrfEncoder,
    map_shapes,
    run_maps,
    write_gaussian,
)
from nedx.encoding.fwrf_samples import (
    Responses,
    Split,
    check_values,
    encoder_recipe,
    hold_out,
    result_labels,
    split_samples,
)
from nedx.encoding.fwrf_scoring import image_correlations
from nedx.encoding.keeping import keep_model
from nedx.encoding.loading import Network, backbone_ref
from nedx.encoding.opening import open_model
from nedx.encoding.recipe import EncoderRecipe
from nedx.errors import ModelError, NedxWarning
from nedx.linear.receptive_field_grid import CandidateSearch, candidate_grid, pool_maps
from nedx.store.location import Location

if TYPE_CHECKING:
    from nedx.stimuli.preprocessing import ImagePolicy

ALPHAS = tuple(float(alpha) for alpha in np.logspace(0, 6, 7))
"""The penalties tried by default."""
_FRACTIONS = tuple(float(each) for each in np.geomspace(1 / 32, 1 / 4, 6))
_DEGREES = {"units": "degree"}


class FwrfRidgeEncoder(BaseEstimator):
    """Give each voxel a Gaussian receptive field on the maps of a network, and a ridge on these.

    The classical fit of feature-weighted receptive fields (St-Yves & Naselaris 2018, NeuroImage
    180): for each Gaussian of a grid all maps are pooled under it, standardised, and a ridge is
    solved exactly for all penalties; each voxel keeps the Gaussian and the penalty that predict
    images held out best.

    Parameters
    ----------
    backbone : str or BackboneRecipe
        The network, by name or with all it needs (weights, precision).
    layers : sequence of str, optional
        Layers that are maps; the recipe's by default.
    degrees : float, optional
        Side of the images, their shorter one, in degrees of visual angle; by default what the
        stimuli say in ``visual_degrees``.
    sizes : sequence of float, optional
        Standard deviations of the Gaussians, degrees; by default six from a 32nd to a quarter of
        what the network sees.
    spacing : float
        The most between two centres, in standard deviations.
    alphas : sequence of float
        Penalties tried, on the scale of scikit-learn's ``Ridge`` on standardised features.
    compress : bool
        Whether pooled features pass through ``log(1 + |x|) tanh(x)``.
    holdout : float
        Fraction of the training images to choose by, where none are of the partition ``"val"``.
    seed : int
        Of the images held out.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    memory : float
        Bytes of pooled features at a time; the network runs once for each part of the grid.

    Attributes
    ----------
    model_ : GaussianFwrfEncoder
        What was fitted; its voxels have ``rf_x``, ``rf_y`` and ``rf_size``, degrees.
    candidates_ : ndarray (candidate, 3)
        The grid: x, y and size, degrees.
    alpha_ : dict of str to ndarray (voxel,)
        The penalty of each voxel, by subject.

    Examples
    --------
    >>> encoder = nedx.FwrfRidgeEncoder("alexnet", layers=["features.2"], degrees=8.4)
    >>> sizes = encoder.fit(images, responses).model_.members["sub-01"].rf_size
    """

    model_: GaussianFwrfEncoder
    candidates_: np.ndarray
    alpha_: dict[str, np.ndarray]

    def __init__(
        self,
        backbone: str | BackboneRecipe = "squeezenet1_1",
        layers: Sequence[str] | None = None,
        degrees: float | None = None,
        sizes: Sequence[float] | None = None,
        spacing: float = 1.4,
        alphas: Sequence[float] = ALPHAS,
        compress: bool = True,  # noqa: FBT001, FBT002
        holdout: float = 0.1,
        seed: int = 0,
        device: str = "auto",
        memory: float = 1e9,
    ):
        self.backbone = backbone
        self.layers = layers
        self.degrees = degrees
        self.sizes = sizes
        self.spacing = spacing
        self.alphas = alphas
        self.compress = compress
        self.holdout = holdout
        self.seed = seed
        self.device = device
        self.memory = memory

    @property
    def recipe(self) -> BackboneRecipe:
        """The recipe of the backbone, with the layers asked for and maps as they are."""
        from nedx.backbones.registry import default_recipe

        changes: dict[str, Any] = {"pooling": "flatten"}
        if self.layers is not None:
            changes["layers"] = tuple(self.layers)
        if isinstance(self.backbone, str):
            return default_recipe(self.backbone, **changes)
        return BackboneRecipe.model_validate({**self.backbone.model_dump(), **changes})

    def fit(
        self,
        stimuli: xr.Dataset,
        responses: Responses | None = None,
        validation: Responses | None = None,
    ) -> FwrfRidgeEncoder:
        """Fit to images and the responses to them.

        Images are streamed; of each subject the mean response to each image is held, float32.

        Parameters
        ----------
        stimuli : Dataset
            ``pixels (image, y, x, rgb)`` uint8; may hold images beyond those of the responses.
        responses : Dataset or DataTree, optional
            ``response ([subject,] image | trial[, repetition], voxel)``, paired with the images
            by ``image_id``; of a tree each child is one subject's. Left out where `stimuli` hold
            both. Repetitions and trials of an image are averaged. ``partition``, here or among
            the stimuli, says what is fitted to (``"train"``) and chosen by (``"val"``); images of
            ``"test"`` are left out.
        validation : Dataset or DataTree, optional
            Responses of the same voxels to choose by, instead of ``"val"``.

        Returns
        -------
        FwrfRidgeEncoder
            Itself.

        Raises
        ------
        StimulusError
            If images do not fit.
        ModelError
            If a layer is no map, images are both fitted to and held out, responses are missing or
            constant, or a parameter is out of range.
        """
        self._check_parameters()
        recipe = self.recipe
        split = self._split(stimuli, responses, validation, recipe.policy)
        recipe, aperture = self._seen(recipe, stimuli)
        channels = sum(count for count, _ in map_shapes(recipe).values())
        relative = [fraction * aperture for fraction in _FRACTIONS]
        sizes = relative if self.sizes is None else list(self.sizes)
        self.candidates_ = candidate_grid(aperture, sizes, self.spacing)
        for samples in split.training.values():
            check_values(samples)
        own = stimuli if responses is None else responses
        fitted = encoder_recipe(split, own, recipe, "fwrf_ridge", self)
        searches = self._search(split, recipe, aperture, channels)
        self.alpha_ = {name: search.alpha for name, (search, *_) in searches.items()}
        self.model_ = self._stored(split, searches, fitted, aperture)
        return self

    def predict(self, stimuli: xr.Dataset) -> xr.Dataset | xr.DataTree:
        """Predict responses, lazily, as `encode` does."""
        from nedx.encoding.encode import encode

        return encode(stimuli, self._fitted(), device=self.device)

    def score(self, stimuli: xr.Dataset, responses: Responses | None = None) -> float:
        """Return the mean over voxels of Pearson's r between predicted and given responses.

        Repetitions and trials of an image are averaged; every response counts, of whatever
        partition.
        """
        found = image_correlations(
            self._fitted(), self.predict, stimuli, responses, self.recipe.policy
        )
        return float(np.concatenate(list(found.values())).mean())

    def to_zarr(self, place: str | Path | Location) -> Location:
        """Write the fitted model; `nedx.load_model` opens it."""
        return self._fitted().to_zarr(place)

    def _fitted(self) -> GaussianFwrfEncoder:
        if not hasattr(self, "model_"):
            raise UnfittedError(
                "this FwrfRidgeEncoder is not fitted: type .fit(stimuli, responses)"
            )
        return self.model_

    def _check_parameters(self) -> None:
        check_device(self.device)
        if not len(self.alphas) or not all(a > 0 for a in self.alphas) or self.memory <= 0:
            raise ModelError(f"alphas {self.alphas!r} and memory {self.memory} must be positive")

    def _split(
        self,
        stimuli: xr.Dataset,
        responses: Responses | None,
        validation: Responses | None,
        policy: str,
    ) -> Split:
        """Return what to fit to and to choose by; the latter is drawn where nothing says it."""
        split = split_samples(stimuli, responses, validation, policy)
        if not split.validation:
            split = hold_out(split, self.holdout, self.seed)
        for name in split.training:
            if name not in split.validation:
                raise ModelError(f"{name!r} has no validation images: set 'partition' to 'val'")
        return split

    def _seen(self, recipe: BackboneRecipe, stimuli: xr.Dataset) -> tuple[BackboneRecipe, float]:
        """Return the recipe with the size of its images, and the degrees that they show."""
        from nedx.stimuli.preprocessing import policy

        pixels, chosen = stimuli["pixels"], policy(recipe.policy)
        degrees = self.degrees or pixels.attrs.get("visual_degrees")
        degrees = degrees or stimuli.attrs.get("visual_degrees")
        if degrees is None:
            raise ModelError(
                "nothing says how large the images were seen. Type: degrees=8.4, the side of the "
                "images in degrees of visual angle, or set stimuli.attrs['visual_degrees']"
            )
        y, x = chosen.output_shape(*pixels.shape[1:3])
        if y != x:
            raise ModelError(
                f"receptive fields lie on square images, the network would see {y} x {x} pixels. "
                "Type: nedx.open_images(source, fit='crop')"
            )
        size = recipe.image_size or y
        recipe = recipe.model_copy(update={"image_size": size})
        return recipe, float(degrees) * _shown(chosen)

    def _search(
        self, split: Split, recipe: BackboneRecipe, aperture: float, channels: int
    ) -> dict[str, tuple[CandidateSearch, np.ndarray, np.ndarray]]:
        """Try all of the grid on each subject.

        Returns
        -------
        dict of str to tuple
            The search, and where training and held-out images are among all that were run.
        """
        members = {name: (split.training[name], split.validation[name]) for name in split.training}
        images = np.unique(np.concatenate([s.image for pair in members.values() for s in pair]))
        searches = {}
        for name, pair in members.items():
            (trained, y), (held, z) = pair[0].image_means(), pair[1].finite_means()
            search = CandidateSearch(np.sort(np.asarray(self.alphas, float)), y, z, channels)
            searches[name] = (
                search,
                np.searchsorted(images, trained),
                np.searchsorted(images, held),
            )
        step = max(1, int(self.memory // (4 * len(images) * channels)))
        for part in batches(len(self.candidates_), step):
            pooled = self._pooled(split, images, recipe, self.candidates_[part], aperture)
            for number, features in enumerate(pooled, part.start):
                for search, trained, held in searches.values():
                    search.offer(number, features[trained], features[held])
        for search, *_ in searches.values():
            _warn_of_edges(search)
        return searches

    def _pooled(
        self,
        split: Split,
        images: np.ndarray,
        recipe: BackboneRecipe,
        fields: np.ndarray,
        aperture: float,
    ) -> np.ndarray:
        """Run the network once; return float32 (candidate, image, feature)."""
        from nedx.encoding.kernels import preprocessed
        from nedx.stimuli.preprocessing import policy

        device = resolve_device(self.device)
        backbone = cache.get(backbone_ref(recipe), device, Network())
        channels = sum(count for count, _ in map_shapes(recipe).values())
        out = np.empty((len(fields), len(images), channels), np.float32)

        def read(part: slice) -> np.ndarray:
            return split.pixels.isel(image=images[part]).values

        chosen, height, done = policy(recipe.policy), recipe.batch_size, 0
        for batch in preprocessed(read, len(images), chosen, height, device):
            with forward_slot(device):
                maps = run_maps(backbone, batch)
                pooled = pool_maps(maps, fields, aperture, compress=self.compress)
                out[:, done : done + len(batch)] = pooled.cpu().numpy()
            done += len(batch)
        return checked(out, out.shape, np.float32, "pooled features")

    def _stored(
        self,
        split: Split,
        searches: Mapping[str, tuple[CandidateSearch, np.ndarray, np.ndarray]],
        recipe: EncoderRecipe,
        aperture: float,
    ) -> GaussianFwrfEncoder:
        """Put the weights where models are read from, and open them."""
        members, arrays = {}, dict[str, np.ndarray]()
        for name, (search, *_) in searches.items():
            fields = self.candidates_[search.candidate].astype(np.float32)
            head = {"field": fields, "w": search.coef, "b": search.intercept}
            arrays |= {f"{name}.{key}": values for key, values in head.items()}
            members[name] = (_labels(split, name, fields, search), [head])
        place = keep_model(
            recipe,
            {name: labels for name, (labels, _) in members.items()},
            arrays | {"aperture": np.array(aperture), "compress": np.array(self.compress)},
            lambda place: write_gaussian(
                place, recipe, members, aperture=aperture, compress=self.compress
            ),
        )
        return cast(GaussianFwrfEncoder, open_model(place))


def _labels(split: Split, name: str, fields: np.ndarray, search: CandidateSearch) -> xr.Dataset:
    x, y, size = fields.T
    spread = search.held.var(0)
    # What is constant over the held-out images, but for rounding, has no variance to explain.
    varies = spread > 1e-12 * np.square(search.held).mean(0)
    explained = np.where(varies, 1 - search.loss / np.where(varies, spread, 1), np.nan)
    return result_labels(split, name).assign_coords(
        nedx_trunk=("voxel", np.zeros(len(fields), np.int16)),
        rf_x=("voxel", x, {**_DEGREES, "long_name": "receptive field centre, to the right"}),
        rf_y=("voxel", y, {**_DEGREES, "long_name": "receptive field centre, upwards"}),
        rf_size=("voxel", size, {**_DEGREES, "long_name": "receptive field sigma"}),
        encoding_r2=(
            "voxel",
            explained.astype(np.float32),
            {
                "long_name": "variance explained",
                "units": "1",
                "test_set": "validation images, by which receptive field and penalty were chosen",
            },
        ),
    )


def _warn_of_edges(search: CandidateSearch) -> None:
    for end, word in ((-1, "smaller"), (1, "larger")):
        count = search.at_the_edge()[end]
        if count > 0.1 * len(search.alpha):
            warnings.warn(
                f"{count} of {len(search.alpha)} voxels are best at the end of the penalties, "
                f"{search.alphas[-1 if end > 0 else 0]:g}, and still "
                f"improve there: add {word} alphas",
                NedxWarning,
                stacklevel=4,
            )


def _shown(policy: ImagePolicy) -> float:
    """Return which part of the shorter side of an image a policy leaves."""
    return policy.crop / policy.resize if policy.crop and policy.resize else 1.0
