"""The real recordings as published, against what their README says."""

from __future__ import annotations

import numpy as np
import pytest

from nedx.errors import SelectionError
from nedx.sources.v4_cowley2023 import open_responses, open_stimuli, recordings


@pytest.fixture(scope="module")
def folder(shared_data):
    place = shared_data / "v4_cowley2023"
    if not place.is_dir():
        pytest.skip(f"the V4 recordings are not at {place}")
    return place


@pytest.mark.parametrize(
    ("recording", "units", "images"),
    [("190923", 33, 1200), ("190929", 33, 1200), ("210224", 67, 800), ("210325", 50, 640)],
)
def test_every_recording_pairs_with_its_photographs(folder, recording, units, images):
    responses, stimuli = open_responses(folder, recording), open_stimuli(folder, recording)
    assert dict(responses.response.sizes) == {"image": images, "unit": units}
    assert responses.response.attrs["units"] == "Hz"
    assert list(responses.image_id.values) == list(stimuli.image_id.values)
    assert stimuli.pixels.shape == (images, 112, 112, 3)
    counts = np.load(folder / "responses_repeat_averaged" / f"responses_{recording}.npy")
    np.testing.assert_allclose(responses.response.values.T, counts * 10, rtol=1e-6)


def test_the_mean_of_the_repeats_is_the_averaged_file(folder):
    trials = open_responses(folder, "210325", repeats="trials")
    mean = trials.response.groupby("image_id").mean().sortby("image_id")
    average = open_responses(folder, "210325")
    np.testing.assert_allclose(mean.values, average.response.values, atol=1e-4)
    counts = trials.repetition.groupby("image_id").count()
    assert (int(counts.min()), int(counts.max())) == (6, 10)


def test_split_halves_agree_as_the_readme_says(folder):
    """Spearman-Brown of the median split-half r is about .75."""
    common = open_responses(folder, "210325", repeats="common")
    assert common.response.dims == ("image", "repetition", "unit")
    assert common.sizes["repetition"] == 6
    values = common.response.values
    first, second = values[:, ::2].mean(1), values[:, 1::2].mean(1)
    r = [np.corrcoef(a, b)[0, 1] for a, b in zip(first.T, second.T, strict=True)]
    # Six of up to ten repeats give a little less than all of them.
    assert 0.45 < np.median(r) < 0.65


def test_photographs_are_read_as_they_are_packed(folder):
    import io
    import zipfile

    from PIL import Image

    pixels = open_stimuli(folder, "190923").pixels[6].compute().values
    with zipfile.ZipFile(folder / "images" / "images_190923.zip") as packed:
        data = packed.read("images_190923/image0007.jpg")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    # Two decoders of JPEG may differ by a grey level or two.
    assert np.abs(pixels.astype(int) - expected).max() <= 3


def test_recordings_that_are_not_there(folder):
    assert recordings(folder) == ["190923", "190929", "210224", "210325"]
    with pytest.raises(SelectionError, match="did you mean"):
        open_responses(folder, "190924")
    with pytest.raises(SelectionError, match="no recording"):
        open_stimuli(folder, "1")
    with pytest.raises(SelectionError, match="only their mean"):
        open_responses(folder, "190923", repeats="trials")
