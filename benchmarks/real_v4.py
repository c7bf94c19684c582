"""Real recordings: a plain ridge on real SqueezeNet features predicts held-out photographs.

Macaque V4 (Cowley et al. 2023) and SqueezeNet 1.1 as published; five folds over the photographs,
each fitted, stored, loaded again, and applied lazily to pixels that it never saw.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import xarray as xr

from benchmarks.measuring import Row, at_least

LAYER, COMPONENTS, FOLDS = "fire6", 300, 5
# Median r over neurons that an ordinary pipeline reaches with these settings, two decimals.
ORDINARY = {"190923": 0.58, "210325": 0.55}
# Median over the neurons of 210325, as the README of the recordings states them.
STATED = {"split-half r": 0.61, "noise_ceiling": 0.75, "sqrt(noise_ceiling)": 0.87}


def measure() -> list[Row]:
    """Report the correlation of each neuron, where there are repeats beside its ceiling."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("NEDX_SHARED_DATA", beside))
    if not (folder / "v4_cowley2023").is_dir():
        return [Row("real V4 recordings", None, note="absent; set NEDX_SHARED_DATA")]
    rows, neurons = [], {}
    for recording, ordinary in ORDINARY.items():
        scored = score_held_out(folder, recording)
        neurons[recording] = {
            name: [round(float(value), 4) for value in scored[name]] for name in scored
        }
        low, median, high = np.percentile(scored["r"], [25, 50, 75])
        note = f"quartiles {low:.2f} to {high:.2f}; an ordinary pipeline: {ordinary}"
        if "sqrt_noise_ceiling" in scored:
            note += f"; sqrt(noise_ceiling) {float(scored['sqrt_noise_ceiling'].median()):.2f}"
        if "accuracy_normalized" in scored:
            corrected = float(scored["accuracy_normalized"].median())
            note += f"; noise-corrected median {corrected:.2f}"
        name = f"{recording}: median r of {scored.sizes['unit']} neurons, held-out images"
        rows.append(at_least(name, float(median), ordinary - 0.005, "", note))
        if "sqrt_noise_ceiling" in scored:
            rows += _ceilings(recording, scored["sqrt_noise_ceiling"].values ** 2)
    target = Path(__file__).parent / "results" / "real_v4_neurons.json"
    target.write_text(json.dumps(neurons, indent=1) + "\n")
    return rows


def _ceilings(recording: str, ceiling: np.ndarray) -> list[Row]:
    """Compare ceilings (unit,) with what the README states; r of halves by Spearman-Brown."""
    found = {
        "split-half r": ceiling / (2 - ceiling),
        "noise_ceiling": ceiling,
        "sqrt(noise_ceiling)": np.sqrt(ceiling),
    }
    rows = []
    for name, stated in STATED.items():
        median = float(np.median(found[name]))
        passed = abs(median - stated) <= 0.01
        rows.append(Row(f"{recording}: median {name}", median, "", f"{stated} +- 0.01", passed))
    return rows


def score_held_out(folder: Path, recording: str) -> xr.Dataset:
    """Return ``r (unit)`` and, where there are raw repeats, its ceiling and their quotient."""
    import nedx
    from nedx.backbones import Weights, default_recipe
    from nedx.metrics.correlation import pearson_r
    from nedx.metrics.noise_ceiling import split_half
    from nedx.sources.v4_cowley2023 import open_responses, open_stimuli

    stimuli = open_stimuli(folder / "v4_cowley2023", recording)
    responses = open_responses(folder / "v4_cowley2023", recording)
    weights = next((folder / "weights" / "squeezenet_v1.1_keras_notop").glob("*.h5"))
    recipe = default_recipe("squeezenet1_1", weights=Weights(source=str(weights)), layers=(LAYER,))
    predicted = []
    for fold in range(FOLDS):
        held = np.arange(responses.sizes["image"]) % FOLDS == fold
        encoder = nedx.RidgeEncoder(recipe, n_components=COMPONENTS)
        encoder.fit(stimuli.isel(image=~held), responses.isel(image=~held))
        with tempfile.TemporaryDirectory() as place:
            encoder.to_zarr(f"{place}/encoder.zarr")
            model = nedx.load_model(f"{place}/encoder.zarr")
            lazy = stimuli.isel(image=held).ned.encode(model)["response"]
            predicted.append(lazy.transpose("image", "unit").compute())
    joined = xr.concat(predicted, "image").sel(image_id=responses["image_id"].values)
    scored = xr.Dataset({"r": pearson_r(responses["response"], joined, "image")})
    if recording == "210325":
        trials = open_responses(folder / "v4_cowley2023", recording, repeats="trials")
        scored["sqrt_noise_ceiling"] = np.sqrt(split_half(trials))
        scored["accuracy_normalized"] = scored["r"] / scored["sqrt_noise_ceiling"]
    return scored
