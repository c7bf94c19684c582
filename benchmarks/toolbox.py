"""Against the plain path of today's toolboxes: the same model, applied as they apply it.

The plain path is written here from what those toolboxes do: all images preprocessed at once
with Pillow and numpy, batches of 100, all taps stacked into one array, scikit-learn's scaler and
PCA, results grown with ``np.append``. The weights of network and readouts are random.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measuring import Row, at_least, interleave, ratio

N_IMAGES, SIDE, N_COMPONENTS, N_VERTICES = 100, 425, 250, 327_684
N_TRAINING = 250


def measure() -> list[Row]:
    """Compare speed in float32 and bf16, and the responses of each vertex."""
    import torch

    from nedx.backbones import default_recipe, load_backbone

    recipe = default_recipe("vit_b_32", seed=0)
    backbone = load_backbone(recipe)
    images = _photographs(N_IMAGES)
    with torch.inference_mode():
        parts = _fitted_parts(backbone)
    toolbox = _Toolbox(parts)
    kept: dict[str, np.ndarray] = {}

    def plain() -> None:
        kept["plain"] = toolbox.encode(backbone, recipe, images)

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        float32 = _nedx_way(parts, recipe, images, Path(folder) / "float32.zarr", kept, "float32")
        bf16 = _nedx_way(parts, recipe, images, Path(folder) / "bf16.zarr", kept, "bf16")
        seconds = interleave({"plain": plain, "float32": float32, "bf16": bf16}, rounds=5)
    note = (
        f"{N_IMAGES} images of {SIDE} px, {N_COMPONENTS} components, {N_VERTICES} vertices; both "
        "ways run the same network, which is most of the time: what batches of 100 lose to "
        "batches of 32 decides, and differs by machine"
    )
    amx = "amx_bf16" in _processor_flags()
    bf16_ratio = ratio(seconds["plain"], seconds["bf16"])
    return [
        at_least(
            "float32 vs plain path", ratio(seconds["plain"], seconds["float32"]), 1.25, note=note
        ),
        at_least("bf16 vs plain path", bf16_ratio, 4.0, note=note)
        if amx
        else Row(
            "bf16 vs plain path",
            bf16_ratio,
            "x",
            ">= 4 with AMX",
            None,
            "this processor has no AMX",
        ),
        at_least(
            "lowest r of a vertex, float32", _lowest_r(kept["plain"], kept["float32"]), 0.9999, "r"
        ),
        at_least("lowest r of a vertex, bf16", _lowest_r(kept["plain"], kept["bf16"]), 0.9999, "r"),
    ]


def _processor_flags() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def _photographs(count: int, *, first: int = 0) -> np.ndarray:
    """Draw images with natural statistics, which differ as photographs do."""
    from nedx.simulation.concepts import make_concepts
    from nedx.simulation.images import draw

    concepts = make_concepts()[first : first + count]
    drawn = [draw(concept, 1, np.random.default_rng(i))[0] for i, concept in enumerate(concepts)]
    size = (SIDE, SIDE)
    return np.stack([np.asarray(Image.fromarray(image).resize(size)) for image in drawn])


def _fitted_parts(backbone: Any) -> dict[str, np.ndarray]:
    """Standardise and find components on other images, as the toolboxes do; random readouts.

    Components of few images come from their Gram matrix: as scikit-learn's, but quicker.
    """
    import torch

    images = _photographs(N_TRAINING, first=N_IMAGES)
    taps: list[np.ndarray] = []
    features = []
    for start in range(0, N_TRAINING, 25):
        batch = np.stack([_plain_preprocess(image) for image in images[start : start + 25]])
        taps.clear()
        backbone.run(torch.from_numpy(batch), _collect_in(taps))
        features.append(np.concatenate(taps, axis=1))
    joined = np.concatenate(features)
    mean, scale = joined.mean(0, dtype=np.float64), joined.std(0, dtype=np.float64)
    scale[scale == 0] = 1
    standard = ((joined - mean) / scale).astype(np.float32)
    centre = standard.mean(0)
    standard -= centre
    variances, vectors = np.linalg.eigh((standard @ standard.T).astype(np.float64))
    largest = slice(None, -N_COMPONENTS - 1, -1)
    rows = vectors[:, largest] / np.sqrt(np.maximum(variances[largest], 1e-6))
    rng = np.random.default_rng(1)
    return {
        "scaler_mean": mean,
        "scaler_scale": scale,
        "components": (rows.T @ standard).astype(np.float32),
        "pca_mean": centre,
        "coef": rng.standard_normal((N_VERTICES, N_COMPONENTS), dtype=np.float32),
        "intercept": rng.standard_normal(N_VERTICES, dtype=np.float32),
    }


class _Toolbox:
    """scikit-learn objects that hold the same weights."""

    def __init__(self, parts: dict[str, np.ndarray]):
        from sklearn.decomposition import PCA
        from sklearn.linear_model import LinearRegression
        from sklearn.preprocessing import StandardScaler

        n_features = len(parts["scaler_mean"])
        self.scaler = StandardScaler()
        self.scaler.mean_ = parts["scaler_mean"]
        self.scaler.scale_ = parts["scaler_scale"]
        self.scaler.var_ = parts["scaler_scale"] ** 2
        self.scaler.n_features_in_ = n_features
        self.pca = PCA(N_COMPONENTS)
        self.pca.components_ = parts["components"]
        self.pca.mean_ = parts["pca_mean"]
        self.pca.n_features_in_ = n_features
        self.pca.explained_variance_ = np.ones(N_COMPONENTS, np.float32)
        self.readouts = []
        for half in np.split(np.arange(N_VERTICES), 2):
            readout = LinearRegression()
            readout.coef_ = parts["coef"][half]
            readout.intercept_ = parts["intercept"][half]
            readout.n_features_in_ = N_COMPONENTS
            self.readouts.append(readout)

    def encode(self, backbone: object, recipe: object, images: np.ndarray) -> np.ndarray:
        """Return (image, vertex), both hemispheres side by side."""
        import torch

        prepared = torch.from_numpy(np.stack([_plain_preprocess(image) for image in images]))
        halves = [np.empty((0, N_VERTICES // 2), np.float32) for _ in self.readouts]
        for start in range(0, len(images), 100):
            taps: list[np.ndarray] = []
            backbone.run(prepared[start : start + 100], _collect_in(taps))
            features = self.scaler.transform(np.concatenate(taps, axis=1))
            components = self.pca.transform(features)
            for i, readout in enumerate(self.readouts):
                predicted = readout.predict(components).astype(np.float32)
                halves[i] = np.append(halves[i], predicted, axis=0)
        return np.concatenate(halves, axis=1)


def _collect_in(taps: list[np.ndarray]) -> Callable[[str, Any], None]:
    return lambda _, tap: taps.append(tap.float().numpy())


def _plain_preprocess(image: np.ndarray) -> np.ndarray:
    """Resize to 256, crop 224, divide, normalise: Pillow and numpy."""
    resized = np.asarray(Image.fromarray(image).resize((256, 256), Image.Resampling.BILINEAR))
    cropped = resized[16:240, 16:240].astype(np.float32) / 255
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    return ((cropped - mean) / std).transpose(2, 0, 1)


def _nedx_way(
    parts: dict[str, np.ndarray],
    recipe: object,
    images: np.ndarray,
    place: Path,
    kept: dict[str, np.ndarray],
    precision: str,
):
    """Store the model, and return what encodes with it and keeps the responses."""
    import nedx
    from nedx.encoding import EncoderRecipe, LinearEncoder

    settings = recipe.model_copy(update={"precision": precision})
    coords = {
        "vertex": np.arange(N_VERTICES, dtype=np.int32),
        "hemisphere": ("vertex", np.repeat(np.array(["L", "R"], object), N_VERTICES // 2)),
    }
    made = EncoderRecipe(
        backbone=settings,
        model_id="toolbox-benchmark",
        units="1",
        normalization="zscore",
        normalization_scope="session",
        modality="fmri",
    )
    LinearEncoder.from_parts(**parts, recipe=made, dims=("vertex",), coords=coords).to_zarr(place)
    model = nedx.load_model(place)
    stimuli = nedx.open_images(images, image_set="noise")

    def encode() -> None:
        kept[precision] = stimuli.ned.encode(model, device="cpu")["response"].values

    return encode


def _lowest_r(reference: np.ndarray, other: np.ndarray) -> float:
    """Return the lowest correlation over images of any vertex."""
    a = reference - reference.mean(0)
    b = other - other.mean(0)
    return float(((a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0))).min())
