"""A small encoder, and what scikit-learn and plain torch say that it must predict."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from nedx.backbones import BackboneRecipe, load_backbone
from nedx.encoding import EncoderRecipe, LinearEncoder
from nedx.stimuli.preprocessing import preprocess

SIDE = 64
GABOR = BackboneRecipe(
    name="gabor",
    layers=("energy_0", "energy_1", "energy_2"),
    pooling="avg2",
    policy="raw01",
    batch_size=8,
    image_size=SIDE,
)


def random_pixels(count: int, seed: int = 0, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def stimuli(count: int = 20, seed: int = 0, chunk: int | None = 6) -> xr.Dataset:
    """Images of noise, each with an id."""
    ids = np.array([f"test:{i:03d}" for i in range(count)], dtype=object)
    pixels = xr.Variable(("image", "y", "x", "rgb"), random_pixels(count, seed))
    if chunk:
        pixels = pixels.chunk({"image": chunk})
    return xr.Dataset({"pixels": pixels}, coords={"image_id": ("image", ids)})


def features(pixels: np.ndarray, recipe: BackboneRecipe = GABOR) -> np.ndarray:
    """All layers side by side, in one forward pass."""
    import torch

    taps = []
    load_backbone(recipe).run(
        preprocess(pixels, recipe.policy), lambda _, tap: taps.append(tap.clone())
    )
    return torch.cat(taps, dim=1).numpy()


@dataclass
class Fitted:
    """Scaler, PCA and regression of scikit-learn for one subject."""

    scaler: object
    pca: object
    regression: object

    def predict(self, pixels: np.ndarray, recipe: BackboneRecipe = GABOR) -> np.ndarray:
        return self.regression.predict(
            self.pca.transform(self.scaler.transform(features(pixels, recipe)))
        )


def fit(targets: int, seed: int = 0, components: int = 12) -> Fitted:
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LinearRegression
    from sklearn.preprocessing import StandardScaler

    x = features(random_pixels(60, seed=100 + seed)).astype(np.float64)
    scaler = StandardScaler().fit(x)
    pca = PCA(components, svd_solver="full").fit(scaler.transform(x))
    p = pca.transform(scaler.transform(x))
    rng = np.random.default_rng(seed)
    y = p @ rng.normal(size=(components, targets)) + rng.normal(size=(60, targets))
    return Fitted(scaler, pca, LinearRegression().fit(p, y))


def encoder(fits: list[Fitted], *, own_projection: bool, dims, coords, **recipe) -> LinearEncoder:
    """Fold fits of several subjects into one model on a shared grid."""
    first = fits[0]
    parts = [
        (f.scaler.mean_, f.scaler.scale_, f.pca.components_, f.pca.mean_)
        for f in (fits if own_projection else [first])
    ]
    stacked = [np.stack(p) if own_projection else p[0] for p in zip(*parts, strict=True)]
    coef = np.stack([f.regression.coef_ for f in fits])
    intercept = np.stack([f.regression.intercept_ for f in fits])
    if "subject" not in dims:
        coef, intercept = coef[0], intercept[0]
    return LinearEncoder.from_parts(
        *stacked,
        coef,
        intercept,
        recipe=EncoderRecipe(backbone=GABOR, model_id="test", **recipe),
        dims=dims,
        coords=coords,
    )
