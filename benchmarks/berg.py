"""Published models against the plain path: the same files, applied as the toolboxes apply them.

The plain path is written here from what those toolboxes do: a file a subject loaded whole, all
images preprocessed at once, batches of 100, all taps stacked, scikit-learn's scaler, PCA and
regressions, results grown with ``np.append``; each subject and each ROI on its own. The files are
of the published names, keys, dtypes and sizes; their numbers, and the network's, are random.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measuring import Row, at_least, at_most, interleave, ratio
from benchmarks.toolbox import _collect_in, _photographs
from tests.berg.models import CHANNELS, FOLDER, TIMES, save
from tests.servers import HttpServer

WIDTH, COMPONENTS, VERTICES, BATCH = 12 * 50 * 768, 250, 163_842, 100
ONE, TEN = 300, 100
"""Images that one subject, and that ten subjects, are encoded for."""
SUBJECTS = 10
EEG, FSAVERAGE = "eeg-things_eeg_2-vit_b_32", "fmri-nsd_fsaverage-vit_b_32"
ROIS = {"V1v": (710, 444), "FFA-1": (552, 330), "PPA": (1859, 1250)}
OTHER_ROIS = {"early": (5758, 5634), "ventral": (9680, 9393), "lateral": (10253, 10535)}
REPETITIONS = tuple(f"rep-{r}" for r in range(1, 5))

# The peak of this process alone: what the one that starts it held is not counted.
SCRIPT = """
import re, sys
from pathlib import Path
from benchmarks import berg
berg.encode_once(sys.argv[1], Path(sys.argv[2]))
print(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def measure() -> list[Row]:
    """Write the files, turn them into Zarr models, and compare; about 15 minutes on two cores."""
    with tempfile.TemporaryDirectory() as name, _cache_in(Path(name, "cache")):
        root = Path(name)
        for subject in range(1, SUBJECTS + 1):
            _write_eeg(root, subject)
        _write_fsaverage(root)
        _write_photographs(root)
        return [*_one_subject(root), _ten_subjects(root), _three_rois(root), _readout(root)]


@contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    before = os.environ.get("NEDX_CACHE")
    os.environ["NEDX_CACHE"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("NEDX_CACHE")
        if before is not None:
            os.environ["NEDX_CACHE"] = before


def encode_once(way: str, root: Path) -> np.ndarray:
    """Encode 300 images for one subject, from the files on: what the memory is measured of."""
    if way == "plain":
        return _plain_eeg(_load(root, 1), _network(), _paths(root, ONE))
    return _nedx(EEG, root, ONE, subject=1)()


def _one_subject(root: Path) -> list[Row]:
    """Speed, agreement and memory of one EEG subject."""
    images, network, loaded = _paths(root, ONE), _network(), _load(root, 1)
    kept: dict[str, np.ndarray] = {}
    encode = _nedx(EEG, root, ONE, subject=1)
    seconds = interleave(
        {
            "plain": lambda: kept.update(plain=_plain_eeg(loaded, network, images)),
            "nedx": lambda: kept.update(nedx=encode()[0]),
        },
        rounds=3,
    )
    apart = np.abs(kept["plain"] - kept["nedx"]).max() / np.abs(kept["plain"]).max()
    peaks = {way: _peak(way, root) for way in ("plain", "nedx")}
    note = f"{ONE} JPEG files of 425 px, ViT-B/32, EEG of 4 x 63 x 140"
    return [
        at_least(
            "one EEG subject, plain / nedx, time",
            ratio(seconds["plain"], seconds["nedx"]),
            1.0,
            note=note,
        ),
        at_most(
            "one EEG subject, nedx / plain, peak memory",
            peaks["nedx"] / peaks["plain"],
            0.5,
            note=f"{peaks['nedx'] / 1e6:.2f} and {peaks['plain'] / 1e6:.2f} GB, whole processes",
        ),
        at_most("largest difference of the two / largest response", float(apart), 1e-4, ""),
    ]


def _ten_subjects(root: Path) -> Row:
    images, network = _paths(root, TEN), _network()
    loaded = [_load(root, subject) for subject in range(1, SUBJECTS + 1)]
    encode = _nedx(EEG, root, TEN, subject=list(range(1, SUBJECTS + 1)))
    seconds = interleave(
        {"plain": lambda: [_plain_eeg(one, network, images) for one in loaded], "nedx": encode},
        rounds=3,
    )
    note = f"{TEN} images; each subject has components of its own; weights in memory both ways"
    return at_least(
        "ten EEG subjects, plain / nedx, time",
        ratio(seconds["plain"], seconds["nedx"]),
        8.0,
        note=note,
    )


def _three_rois(root: Path) -> Row:
    images, network = _paths(root, TEN), _network()
    folder = root / FOLDER.format("fmri", "nsd_fsaverage", "vit_b_32")
    content = np.load(
        folder / "encoding_models_weights" / "weights_subject-01.npy", allow_pickle=True
    ).item()
    metadata = np.load(folder / "metadata" / "metadata_subject-01.npy", allow_pickle=True).item()
    scaler, pca = _fitted(content)
    halves = {side: _regression(content[f"{side}_reg_param"]) for side in ("lh", "rh")}
    rows = {
        (side, roi): metadata["fmri"][f"{side}_fsaverage_rois"][roi]
        for side in halves
        for roi in ROIS
    }

    def plain() -> list[np.ndarray]:
        found = []
        for roi in ROIS:
            chosen = [_columns(halves[side], rows[side, roi]) for side in halves]
            found += _plain(scaler, pca, chosen, network, images)
        return found

    encode = _nedx(FSAVERAGE, root, TEN, subject=1, roi=list(ROIS))
    seconds = interleave({"plain": plain, "nedx": encode}, rounds=3)
    note = f"{TEN} images; {', '.join(ROIS)} of both hemispheres"
    return at_least(
        "three ROIs of fsaverage, plain / nedx, time",
        ratio(seconds["plain"], seconds["nedx"]),
        2.5,
        note=note,
    )


def _readout(root: Path) -> Row:
    """Read one ROI's readout from the Zarr model, over HTTP, and count the bytes."""
    import nedx
    from nedx.sources.berg import open_model

    kept = open_model(root, FSAVERAGE, subject=1, backbone=_network()[1])
    place = Path(kept.ref.location.url)
    server = HttpServer(place.parent)
    model = nedx.load_model(f"{server.url}/{place.name}", roi="V1v")
    server.counter.forget()
    weights = [model.weights[name].variable.compute() for name in ("readout", "intercept")]
    sent = server.counter.bytes() / 1e6
    server.close()
    held = sum(each.nbytes for each in weights) / 1e6
    note = f"{weights[1].size:,} vertices, {held:.2f} MB of values, without their labels"
    return at_most("readout of V1v of one subject, read", sent, 2.0, "MB", note)


def _peak(way: str, root: Path) -> float:
    """Return the peak resident memory, in kB, of a process that does nothing else."""
    command = [sys.executable, "-c", SCRIPT, way, str(root)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout)


def _network() -> tuple[Any, Any]:
    from nedx.backbones import default_recipe, load_backbone

    recipe = default_recipe("vit_b_32", seed=0)
    return load_backbone(recipe), recipe


def _nedx(model_id: str, root: Path, count: int, **selection: Any) -> Callable[[], np.ndarray]:
    """Open the model of the files, turned into Zarr on first use, and return what encodes."""
    import nedx
    from nedx.backbones import default_recipe
    from nedx.sources.berg import open_model

    recipe = default_recipe("vit_b_32", seed=0)
    subject = selection.pop("subject")
    model = open_model(root, model_id, subject=subject, backbone=recipe)
    stimuli = nedx.open_images(root / "photographs").isel(image=slice(count))
    return lambda: stimuli.ned.encode(model, device="cpu", **selection)["response"].values


def _load(root: Path, subject: int) -> tuple[Any, Any, list[Any]]:
    folder = root / FOLDER.format("eeg", "things_eeg_2", "vit_b_32")
    path = folder / "encoding_models_weights" / f"weights_subject-{subject:02d}.npy"
    content = np.load(path, allow_pickle=True).item()
    scaler, pca = _fitted(content)
    return scaler, pca, [_regression(content["reg_param"][name]) for name in REPETITIONS]


def _plain_eeg(
    loaded: tuple[Any, Any, list[Any]], network: tuple[Any, Any], images: list[Path]
) -> np.ndarray:
    """Return (image, repetition, channel, time)."""
    scaler, pca, regressions = loaded
    found = _plain(scaler, pca, regressions, network, images)
    return np.stack([one.reshape(-1, len(CHANNELS), len(TIMES)) for one in found], axis=1)


def _plain(
    scaler: Any, pca: Any, regressions: list[Any], network: tuple[Any, Any], images: list[Path]
) -> list[np.ndarray]:
    """Return (image, target) of each regression."""
    import torch

    backbone, _ = network
    prepared = _prepared(images)
    found = [np.empty((0, len(each.intercept_)), np.float32) for each in regressions]
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            taps: list[np.ndarray] = []
            backbone.run(prepared[start : start + BATCH], _collect_in(taps))
            features = scaler.transform(np.hstack(taps))
            components = pca.transform(features)
            for i, regression in enumerate(regressions):
                predicted = regression.predict(components).astype(np.float32)
                found[i] = np.append(found[i], predicted, axis=0)
    return found


def _prepared(paths: list[Path]) -> Any:
    """Load all images, and preprocess them as one array: resize to 256, crop 224, normalise."""
    import torch

    images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    resized = torch.nn.functional.interpolate(
        pixels.float(), size=(256, 256), mode="bilinear", antialias=True
    )
    cropped = resized.round().to(torch.uint8)[..., 16:240, 16:240]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (cropped.float() / 255 - mean[:, None, None]) / std[:, None, None]


def _fitted(content: dict[str, Any]) -> tuple[Any, Any]:
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    scaler, pca = StandardScaler(), PCA(COMPONENTS)
    for made, name in ((scaler, "scaler_param"), (pca, "pca_param")):
        for key, value in content[name].items():
            setattr(made, key, value)
    return scaler, pca


def _regression(content: dict[str, Any]) -> Any:
    from sklearn.linear_model import LinearRegression

    made = LinearRegression()
    for key, value in content.items():
        setattr(made, key, value)
    return made


def _columns(regression: Any, rows: np.ndarray) -> Any:
    coef, intercept = regression.coef_[rows], regression.intercept_[rows]
    return _regression({"coef_": coef, "intercept_": intercept, "n_features_in_": COMPONENTS})


def _shared(rng: np.random.Generator) -> dict[str, Any]:
    """Draw scaler and components; of these only the sizes matter, and that sums stay moderate."""
    components = rng.standard_normal((COMPONENTS, WIDTH), dtype=np.float32)
    components /= np.float32(np.sqrt(WIDTH))
    scale = rng.uniform(0.5, 2, WIDTH)
    return {
        "scaler_param": {
            "scale_": scale,
            "mean_": rng.standard_normal(WIDTH),
            "var_": scale**2,
            "n_features_in_": WIDTH,
            "n_samples_seen_": np.int64(16_540),
        },
        "pca_param": {
            "components_": components,
            "mean_": 0.1 * rng.standard_normal(WIDTH, dtype=np.float32),
            "explained_variance_": np.ones(COMPONENTS, np.float32),
            "n_components_": COMPONENTS,
            "n_features_in_": WIDTH,
        },
    }


def _linear(rng: np.random.Generator, targets: int) -> dict[str, Any]:
    return {
        "coef_": rng.standard_normal((targets, COMPONENTS), dtype=np.float32),
        "intercept_": rng.standard_normal(targets, dtype=np.float32),
        "n_features_in_": COMPONENTS,
    }


def _write_photographs(root: Path) -> None:
    folder = root / "photographs"
    folder.mkdir()
    for number, image in enumerate(_photographs(ONE)):
        Image.fromarray(image).save(folder / f"{number:03d}.jpg", quality=92)


def _paths(root: Path, count: int) -> list[Path]:
    return sorted((root / "photographs").glob("*.jpg"))[:count]


def _write_eeg(root: Path, subject: int) -> None:
    rng = np.random.default_rng(subject)
    shape = (len(CHANNELS), len(TIMES))
    weights = {
        **_shared(rng),
        "reg_param": {name: _linear(rng, shape[0] * shape[1]) for name in REPETITIONS},
    }
    accuracy = {"correlation_averaged_repetitions": rng.uniform(0, 0.8, shape)}
    metadata = {
        "eeg": {"ch_names": list(CHANNELS), "times": TIMES},
        "encoding_models": accuracy,
    }
    folder = root / FOLDER.format("eeg", "things_eeg_2", "vit_b_32")
    save(folder / "encoding_models_weights" / f"weights_subject-{subject:02d}.npy", weights)
    save(folder / "metadata" / f"metadata_subject-{subject:02d}.npy", metadata)


def _write_fsaverage(root: Path) -> None:
    rng = np.random.default_rng(100)
    weights = {
        **_shared(rng),
        "lh_reg_param": _linear(rng, VERTICES),
        "rh_reg_param": _linear(rng, VERTICES),
    }
    fmri, model = {}, {}
    for number, side in enumerate(("lh", "rh")):
        # As many vertices as subject 1 has, scattered; V1v lies in early, the others apart.
        names = {name: counts[number] for name, counts in (ROIS | OTHER_ROIS).items()}
        order = rng.permutation(VERTICES)
        stops = np.cumsum(list(names.values()))
        rois = {
            name: np.sort(order[stop - count : stop])
            for (name, count), stop in zip(names.items(), stops, strict=True)
        }
        rois["early"] = np.union1d(rois["early"], rois["V1v"])
        fmri[f"{side}_fsaverage_rois"] = rois
        fmri[f"{side}_ncsnr"] = rng.uniform(0, 1, VERTICES).astype(np.float32)
        for name in ("correlation", "r2", "noise_ceiling"):
            model[f"{side}_{name}"] = rng.uniform(0, 1, VERTICES).astype(np.float32)
    folder = root / FOLDER.format("fmri", "nsd_fsaverage", "vit_b_32")
    save(folder / "encoding_models_weights" / "weights_subject-01.npy", weights)
    metadata = {"fmri": fmri, "encoding_models": model}
    save(folder / "metadata" / "metadata_subject-01.npy", metadata)
