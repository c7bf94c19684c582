"""How close trained decoders come to the ideal one: 200-way zero-shot retrieval on sim-eeg.

The ideal linear decoder is the posterior mean of the features given the mean of the four test
trials, from the simulation's own map and noise and the law of its training features. sim-eeg has
450 images to train on, far too few for any decoder of 8,820 channels and times to come near it: so
that what is measured is the training and not the want of data, networks are trained on 8,000
images drawn from the same law (`nedx.simulate_eeg`), written to a store and streamed from it. They
are tested on sim-eeg's own 200 test images, one of each of 200 concepts that no training image is
of. What the 450 images give stands beside it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from benchmarks.measuring import Row, at_least, at_most
from nedx.decoding.augmentation import Noise

SUBJECT = "sub-01"
IMAGES = 8000
NERV: dict[str, Any] = {
    "network": "nervformer_v2",
    "lr": 5e-4,
    "epochs": 6,
    "warmup": 0.25,
    "augmentation": (Noise(sd=0.5),),
    "network_options": {"dropout": 0.25},
}
PROJECT: dict[str, Any] = {"network": "eeg_project", "epochs": 20}
CHANCE = 4 / 200
"""Four of 200 are exceeded by chance in one run of 270."""


def measure() -> list[Row]:
    """Report top-1 of both networks over that of the ideal decoder, and on shuffled labels."""
    import nedx

    test = nedx.open("sim-eeg", subject=SUBJECT)
    truth = nedx.open("sim-eeg", group="truth")[["features"]].load().astype("f4")
    kept = test["partition"].values == "test"
    means, gallery = test.isel(image=kept).ned.average_repetitions(), truth.isel(image=kept)
    best = top_k(ideal(means), gallery)
    title = "sim-eeg, 200-way top-1: ideal linear decoder"
    rows = [Row(title, best[0], "", note=f"top-5 {best[1]:.3f}; {SUBJECT}, mean of 4 trials")]
    with tempfile.TemporaryDirectory() as folder:
        nedx.simulate_eeg(IMAGES, subject=SUBJECT).ned.to_zarr(
            Path(folder) / "drawn.zarr", dtype="float16"
        )
        drawn = nedx.open_store(Path(folder) / "drawn.zarr")
        for name, options in (("EEGProject", PROJECT), ("NERV", NERV)):
            found = trained(drawn, None, options, means, gallery)
            note = f"top-1 {found[0]:.3f}, top-5 {found[1]:.3f}; {IMAGES:,} drawn images"
            title = f"sim-eeg, 200-way top-1 over the ideal's: {name}"
            rows.append(at_least(title, found[0] / best[0], 0.8, "", note))
        for name, options in (("EEGProject", PROJECT), ("NERV", NERV)):
            part = drawn.isel(image=slice(2000))
            found = trained(part, shuffled(part), {**options, "epochs": 2}, means, gallery)
            title = f"sim-eeg, 200-way top-1, labels shuffled: {name}"
            rows.append(at_most(title, found[0], CHANCE, "", "chance is 0.005"))
    found = trained(test, truth, {}, means, gallery)
    title = "sim-eeg, 200-way top-1 over the ideal's: EEGProject, 450 images of the store"
    note = f"top-1 {found[0]:.3f}, top-5 {found[1]:.3f}; too few images to come near"
    return [*rows, Row(title, found[0] / best[0], "", note=note)]


def trained(
    responses: xr.Dataset,
    targets: xr.Dataset | None,
    options: dict[str, Any],
    test: xr.Dataset,
    gallery: xr.Dataset,
) -> tuple[float, float]:
    """Return top-1 and top-5 of a decoder trained on some responses."""
    import nedx

    decoder = nedx.EEGDecoder(**options).fit(responses, targets)
    return top_k(test.ned.decode(decoder)["embedding"].values[0], gallery)


def shuffled(ds: xr.Dataset) -> xr.Dataset:
    """Return the features of a Dataset, given to other images."""
    order = np.random.default_rng(0).permutation(ds.sizes["image"])
    values = ds["features"].values[order]
    return xr.Dataset({"features": (("image", "feature"), values)}).assign_coords(
        image_id=ds["image_id"].variable
    )


def ideal(means: xr.Dataset) -> np.ndarray:
    """Return the posterior mean of the features (image, feature) given means of four trials.

    ``y = W f + b + n`` with ``f ~ N(mu, C)`` and ``n ~ N(0, S x T / 4)``: channels are correlated
    as ``exp(-distance / 6 cm)``, times as ``0.9 ^ lag``.
    """
    import nedx
    from nedx.simulation import eeg
    from nedx.simulation.montage import positions

    truth = nedx.open("sim-eeg", group="truth")
    known = truth["features"].values[truth["partition"].values == "train"].astype(float)
    weights, intercept = (part.astype(float) for part in eeg.linear_map(SUBJECT))
    places, sd = positions(), eeg.noise_sd(SUBJECT).astype(float)
    distance = np.linalg.norm(places[:, None] - places, axis=-1)
    lag = np.abs(np.subtract.outer(np.arange(eeg.TIMES.size), np.arange(eeg.TIMES.size)))
    space = np.linalg.inv(np.linalg.cholesky(np.outer(sd, sd) * np.exp(-distance / 0.06)))
    time = np.linalg.inv(np.linalg.cholesky(0.9**lag))

    def whitened(values: np.ndarray) -> np.ndarray:
        """White noise of (channel, time, n), as (channel * time, n)."""
        white = np.einsum("dc,ut,ctn->dun", space, time, values, optimize=True)
        return white.reshape(-1, values.shape[-1])

    left = means["response"].values[0].astype(float) - intercept
    left = np.moveaxis(left, 0, -1) - np.einsum("ctf,f->ct", weights, known.mean(0))[..., None]
    w = whitened(weights)
    precision = np.linalg.inv(np.cov(known.T)) + eeg.EEG_REPETITIONS * w.T @ w
    found = np.linalg.solve(precision, eeg.EEG_REPETITIONS * w.T @ whitened(left))
    return found.T + known.mean(0)


def top_k(embedding: np.ndarray, gallery: xr.Dataset) -> tuple[float, float]:
    """Return how often the true one of the gallery is first, and among five, by cosine."""
    e, g = (
        values / np.linalg.norm(values, axis=1, keepdims=True)
        for values in (embedding, gallery["features"].values)
    )
    similarity = e @ g.T
    above = (similarity >= np.diag(similarity)[:, None]).sum(1)
    return float((above <= 1).mean()), float((above <= 5).mean())
