"""What encode returns obeys the schema, and says at the top what made it."""

from __future__ import annotations

import numpy as np
import pytest

import nedx


@pytest.fixture(scope="module")
def images():
    return nedx.open("sim-images").isel(image=slice(3))


@pytest.mark.parametrize(
    ("model", "selection"),
    [
        ("sim-fmri-gabor", {"subject": 1}),
        ("sim-fmri-gabor", {"subject": [1, 2]}),
        ("sim-fmri-fsaverage5-gabor", {"subject": [1, 3], "roi": "V1"}),
        ("sim-eeg-gabor", {"channel": ["Oz", "Pz"], "time": (0.0, 0.2)}),
    ],
)
def test_results_are_valid_and_say_what_made_them(images, model, selection, tmp_path):
    encoded = images.ned.encode(model, **selection)
    nedx.validate(encoded)
    attrs = encoded.attrs
    assert attrs["model_id"] == model
    assert attrs["source"] == "synthetic"
    assert len(attrs["weights_sha256"]) == 64
    if "subject" in selection and not isinstance(selection["subject"], list):
        place = tmp_path / "out.zarr"
        encoded.drop_vars("pixels").ned.to_zarr(place)
        nedx.validate(nedx.open(place))


def test_times_keep_their_units(images):
    encoded = images.ned.encode("sim-eeg-gabor", subject=1)
    assert encoded.time.attrs["units"] == "s"
    np.testing.assert_allclose(np.diff(encoded.time), 0.005, atol=1e-9)
