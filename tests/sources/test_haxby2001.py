"""The real recording as published: values, labels and how well categories are decoded."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

import nedx
from nedx.errors import SelectionError, SourceError
from nedx.preprocessing.blocks import block_averages
from nedx.sources.haxby2001 import open_haxby
from nedx.sources.importing import import_source
from tests.laziness import computes_at_most


@pytest.fixture(scope="module")
def folder(shared_data):
    place = shared_data / "haxby2001_pymvpa"
    if not place.is_dir():
        pytest.skip(f"the recording is not at {place}")
    return place


def test_values_and_labels(folder):
    with computes_at_most(0):
        ds = open_haxby(folder)
    assert dict(ds.response.sizes) == {"trial": 1452, "voxel": 530}
    assert ds.attrs["stimulus_identity"] == "none"
    nedx.validate(ds)
    inside = nibabel.load(folder / "mask.nii.gz").get_fdata() > 0
    volumes = nibabel.load(folder / "bold.nii.gz").get_fdata()[inside].T
    run = ds.run.values == 3
    expected = 100 * (volumes[run] / volumes[run].mean(0) - 1)
    np.testing.assert_allclose(ds.response.values[run], expected, atol=1e-4)
    assert int((ds.category == "face").sum()) == 108
    assert ds.onset.values[120:123].tolist() == [300.0, 0.0, 2.5]


def test_categories_are_decoded_as_the_readme_says(folder, tmp_path):
    """Eight categories, one run left out: .740 in the readme, chance is .125."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_score

    import_source("haxby2001", folder, tmp_path / "haxby.zarr")
    with computes_at_most(0):
        blocks = block_averages(nedx.open(str(tmp_path / "haxby.zarr")))
    nedx.validate(blocks)
    assert blocks.sizes["trial"] == 12 * 8
    assert set(blocks.n_volumes.values.tolist()) == {9}
    scores = cross_val_score(
        LogisticRegression(max_iter=2000),
        blocks.response.values,
        blocks.category.values.astype(str),
        groups=blocks.run.values,
        cv=LeaveOneGroupOut(),
    )
    assert scores.mean() >= 0.74


def test_blocks_of_a_folder_that_lacks_a_line(folder, tmp_path):
    import shutil

    for name in ("bold.nii.gz", "mask.nii.gz", "attributes_literal.txt"):
        shutil.copyfile(folder / name, tmp_path / name)
    lines = (folder / "attributes_literal.txt").read_text().splitlines()
    (tmp_path / "attributes_literal.txt").write_text("\n".join(lines[:-1]))
    with pytest.raises(SourceError, match="1,452 volumes.*1,451 lines"):
        open_haxby(tmp_path)
    with pytest.raises(SelectionError, match="'percent' or 'zscore'"):
        open_haxby(folder, normalize="none")
