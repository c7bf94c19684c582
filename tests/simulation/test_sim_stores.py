"""The simulated stores: valid, labelled, said to be simulated, true to their own truth."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from nedx.errors import UnknownIdError
from nedx.metrics.noise_ceiling import ncsnr, noise_ceiling_from_ncsnr
from nedx.schema import validate
from nedx.simulation import STORES, generate, open_simulation
from nedx.simulation.stores import build


def _r(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson correlation of columns."""
    a, b = a - a.mean(0), b - b.mean(0)
    return (a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0))


def _roi(ds: xr.Dataset, name: str) -> np.ndarray:
    return ds["roi_mask"].values[..., list(ds["roi"].values).index(name), :]


@pytest.fixture(scope="module")
def first():
    return open_simulation("sim-fmri", subject=1).load()


@pytest.fixture(scope="module")
def truth():
    return open_simulation("sim-fmri", group="truth/sub-01").load()


@pytest.mark.parametrize("name", STORES)
def test_stores_obey_the_schema_and_say_that_they_are_simulated(name):
    opened = open_simulation(name)
    validate(opened)
    nodes = opened.subtree if isinstance(opened, xr.DataTree) else [opened]
    truth = open_simulation(name, group="truth")
    assert truth["features"].sizes["feature"] == 64
    for node in [*nodes, truth]:
        assert node.attrs["source"] == "synthetic"
        assert "imulated" in node.attrs["title"]
        if "response" in node:
            assert node["response"].attrs["source"] == "synthetic"


def test_subjects_have_their_own_voxels():
    tree = open_simulation("sim-fmri")
    sizes = [child.sizes["voxel"] for child in tree.children.values()]
    assert list(tree.children) == ["sub-01", "sub-02", "sub-03"]
    assert len(set(sizes)) == 3


def test_rois_overlap(first):
    early = _roi(first, "V1") | _roi(first, "V2") | _roi(first, "V3")
    assert np.array_equal(early, _roi(first, "early"))
    assert np.array_equal(_roi(first, "V1v") | _roi(first, "V1d"), _roi(first, "V1"))
    assert not (_roi(first, "V1") & _roi(first, "V2")).any()
    assert (_roi(first, "ventral") & _roi(first, "FFA-1")).any()


def test_trials_are_signal_and_noise_of_the_stated_size(first, truth):
    noise = first["response"].values - truth["noise_free"].values[:, None]
    np.testing.assert_allclose(noise.std((0, 1)), truth["noise_sd"].values, rtol=0.08)
    assert np.abs(noise.mean((0, 1))).max() < 0.08
    # Trials of one image share nothing but the signal.
    assert abs(np.corrcoef(noise[:, 0].ravel(), noise[:, 1].ravel())[0, 1]) < 0.01


def test_repeats_tell_the_true_ceiling(first, truth):
    test = first["partition"].values == "test"
    estimated = noise_ceiling_from_ncsnr(ncsnr(first["response"].isel(image=test)), 4).values
    true = truth["noise_ceiling"].values
    assert np.abs(estimated - true).mean() < 0.04
    assert abs((estimated - true).mean()) < 0.01
    assert np.corrcoef(estimated, true)[0, 1] > 0.9


def test_no_model_beats_the_ceiling(first, truth):
    """The noise-free response itself correlates with the mean of the trials by its root."""
    test = first["partition"].values == "test"
    measured = first["response"].values[test].mean(1)
    found = _r(truth["noise_free"].values[test], measured)
    np.testing.assert_allclose(found, np.sqrt(truth["noise_ceiling"].values), atol=0.12)
    assert abs(np.mean(found - np.sqrt(truth["noise_ceiling"].values))) < 0.01


def test_linear_map_explains_what_it_says(truth):
    features = open_simulation("sim-fmri", group="truth")["features"].values
    test = truth["partition"].values == "test"
    predicted = features @ truth["linear_map"].values.T + truth["linear_map_intercept"].values
    left = (truth["noise_free"].values - predicted)[test].var(0)
    r2 = 1 - left / truth["noise_free"].values[test].var(0)
    np.testing.assert_allclose(r2, truth["linear_map_r2"].values, atol=0.01)
    assert np.median(r2) > 0.7


def test_pair_maps_reproduce_the_other_subject(truth):
    other = open_simulation("sim-fmri", group="truth/sub-02").load()
    test = truth["partition"].values == "test"
    pair = truth["pair_into"].values @ other["pair_out_of"].values
    found = _r(truth["noise_free"].values[test] @ pair, other["noise_free"].values[test])
    assert np.median(found) > 0.95
    assert found.min() > 0.7


def test_receptive_fields_are_where_the_truth_says(first, truth):
    """Images whose contrast lies in the field drive a V1 voxel: reverse correlation."""
    from nedx.simulation.energy import contrast_energy
    from nedx.simulation.images import DEGREES

    stimuli = open_simulation("sim-images")
    some = np.arange(0, stimuli.sizes["image"], 2)
    energy = np.square(contrast_energy(stimuli["pixels"].isel(image=some).values))
    # The pattern of contrast within an image, whatever its mean.
    local = np.log(energy[:, 1:].mean((1, 2)) + 1e-6)
    local -= local.mean((1, 2), keepdims=True)
    local = local.reshape(len(some), 16, 2, 16, 2).mean((2, 4))
    voxels = np.flatnonzero(_roi(first, "V1") & (truth["rf_size"].values < 0.75))[::6]
    signal = truth["noise_free"].values[np.ix_(some, voxels)]
    signal = (signal - signal.mean(0)) / signal.std(0)
    maps = np.einsum("iyx,iv->vyx", local, signal).reshape(len(voxels), -1)
    peak = maps.argmax(1)
    centres = (np.arange(16) + 0.5) * DEGREES / 16 - DEGREES / 2
    off = np.hypot(
        centres[peak % 16] - truth["rf_x"].values[voxels],
        -centres[peak // 16] - truth["rf_y"].values[voxels],
    )
    assert np.median(off) < 0.8


def test_shared_grid_has_left_before_right_and_its_own_rois():
    ds = open_simulation("sim-fmri-fsaverage5")
    assert ds.sizes["vertex"] == 20_484
    assert (ds["hemisphere"].values[:10_242] == "L").all()
    assert (ds["hemisphere"].values[10_242:] == "R").all()
    np.testing.assert_array_equal(ds["vertex_index"].values, np.tile(np.arange(10_242), 2))
    masks = _roi(ds, "V1")
    assert not np.array_equal(masks[0], masks[1])
    face = _roi(ds, "FFA-1")
    assert not face[1, :10_242].any()
    assert face[1, 10_242:].any()


def test_vertices_outside_visual_cortex_carry_noise_only():
    ds = open_simulation("sim-fmri-fsaverage5")
    truth = open_simulation("sim-fmri-fsaverage5", group="truth")
    outside = ~ds["roi_mask"].values.any(1)[0]
    assert outside.sum() > 19_000
    signal = truth["noise_free"].isel(subject=0).values
    assert not signal[:, outside].any()
    assert not truth["noise_ceiling"].isel(subject=0).values[outside].any()
    response = ds["response"].isel(subject=0).values.astype("f4")
    # The mean of 3 trials of unit noise.
    assert response[:, outside].std() == pytest.approx(3**-0.5, rel=0.01)
    assert truth["pair_into"].isel(subject=0).values[outside].any() == 0


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    build("sim-fmri", tmp_path / "again.zarr")
    manifests = [
        json.loads(Path(place, "_nedx/manifest.json").read_text())
        for place in (generate("sim-fmri").url, tmp_path / "again.zarr")
    ]
    ours, again = (
        {key: value for key, value in manifest["objects"].items() if "/c" in key}
        for manifest in manifests
    )
    assert len(ours) > 20
    assert ours == again


def test_two_processes_get_one_store(tmp_path, monkeypatch):
    images = Path(generate("sim-images").url)
    folder = tmp_path / "simulation" / images.parent.name
    folder.mkdir(parents=True)
    (folder / images.name).symlink_to(images)
    monkeypatch.setenv("NEDX_CACHE", str(tmp_path))
    code = "from nedx.simulation import generate; print(generate('sim-eeg').url)"
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    places = {process.communicate(timeout=200)[0].strip() for process in running}
    assert places == {str(folder / "sim-eeg.zarr")}
    assert not list(folder.glob("*.partial"))
    assert json.loads((folder / "sim-eeg.zarr" / "zarr.json").read_text())["attributes"]


def test_unknown_names_are_refused():
    with pytest.raises(UnknownIdError, match="sim-fmri"):
        generate("sim-fmir")
