"""From real recordings to a tested model: photographs, raw repeats and real SqueezeNet weights."""

from __future__ import annotations

import numpy as np
import pytest

import nedx
from nedx.metrics.split_half import split_half
from nedx.sources.v4_cowley2023 import open_responses, open_stimuli

RECORDING = "210325"


@pytest.fixture(scope="module")
def road(shared_data, tmp_path_factory):
    recordings = shared_data / "v4_cowley2023"
    weights = next((shared_data / "weights" / "squeezenet_v1.1_keras_notop").glob("*.h5"), None)
    if not recordings.is_dir() or weights is None:
        pytest.skip(f"the V4 recordings or the weights are not at {shared_data}")
    folder = tmp_path_factory.mktemp("road")
    nedx.to_zarr(open_stimuli(recordings, RECORDING), folder / "images.zarr")
    trials = open_responses(recordings, RECORDING, repeats="trials")
    nedx.to_zarr(trials, folder / "responses.zarr")
    result = nedx.fit(
        {
            "name": "v4-squeezenet-ridge",
            "stimuli": str(folder / "images.zarr"),
            "responses": str(folder / "responses.zarr"),
            "split": {"test_fraction": 0.2},
            "backbone": {
                "name": "squeezenet1_1",
                "layers": ["fire6"],
                "weights": {"source": str(weights)},
            },
            "estimator": {"parameters": {"n_components": 300}},
            "evaluation": {"ceiling": "split_half"},
            "output": str(folder / "fitted"),
        }
    )
    return result, trials


def test_neurons_are_predicted_up_to_their_ceiling(road):
    result, trials = road
    weights = result.model.members[""]
    r = weights["encoding_accuracy"].values
    ceiling = np.sqrt(weights["noise_ceiling"].values)
    assert r.shape == (50,)
    # An ordinary pipeline reaches .55 with four fifths of the images; a fifth varies by .05.
    assert np.median(r) > 0.5
    assert np.median(r / ceiling) > 0.6
    assert (r < ceiling + 0.1).all()
    # The ceiling of the images held out is that of all, within what a fifth of them can say.
    everything = np.sqrt(split_half(trials).values)
    assert np.median(ceiling) == pytest.approx(np.median(everything), abs=0.05)


def test_figures_and_card_say_what_was_reached(road):
    result, _ = road
    for said in ("512 images", "RidgeEncoder", "Hz", "GPL-3.0", "Cowley", "ceiling of r"):
        assert said in result.card, said
    assert result.figures
    assert all(figure.stat().st_size > 5_000 for figure in result.figures)
    assert nedx.verify(result.place).ok
