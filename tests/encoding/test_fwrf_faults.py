"""fwRF models: voxels are paired by label, units compared, held-out responses checked."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from nedx.encoding.fwrf_ridge import FwrfRidgeEncoder
from nedx.encoding.fwrf_samples import check_values, split_samples
from nedx.encoding.fwrf_training import FwrfTrainer
from nedx.errors import ModelError, NedxWarning
from nedx.linear.receptive_field_grid import CandidateSearch
from tests.encoding.test_fwrf_ridge import GABOR, known, responses, stimuli
from tests.encoding.test_fwrf_training import toy

pytestmark = pytest.mark.filterwarnings("ignore:.*at the end of the penalties")
ENCODER = {"sizes": (1.2,), "spacing": 1.5, "device": "cpu"}
TURNED = [2, 0, 3, 1]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEDX_CACHE", str(tmp_path / "cache"))


def recorded(count=90):
    seen = stimuli(count)
    ds = responses(seen, known(seen)[1], voxel=np.arange(100, 104, dtype=np.int32))
    return seen, ds.isel(image=slice(60)), ds.isel(image=slice(60, count))


def changed(ds, **attrs):
    return ds.assign(response=ds["response"].assign_attrs(attrs))


def with_nan(ds):
    values = ds["response"].values.copy()
    values[3, 1] = np.nan
    return ds.assign(response=ds["response"].copy(data=values))


def test_voxels_are_paired_by_label_when_they_are_scored():
    seen, train, test = recorded()
    encoder = FwrfRidgeEncoder(GABOR, **ENCODER).fit(seen, train)
    score = encoder.score(seen, test)
    assert encoder.score(seen, test.isel(voxel=TURNED)) == pytest.approx(score, abs=1e-6)
    each = [encoder.score(seen, test.isel(voxel=[i])) for i in range(4)]
    assert np.mean(each) == pytest.approx(score, abs=1e-6)
    with pytest.raises(ModelError, match="1 of 1 voxels of 'sub-01' are not among the 4"):
        encoder.score(seen, test.isel(voxel=[0]).assign_coords(voxel=[7]))
    with pytest.raises(ModelError, match="2 voxels of sub-01 without labels, 4 are predicted"):
        encoder.score(seen, test.isel(voxel=[2, 0]).drop_vars("voxel"))
    with pytest.raises(ModelError, match=r"units \('1' and 'V'\)"):
        encoder.score(seen, changed(test, units="V"))
    with pytest.raises(ModelError, match="test responses of 'sub-01' are NaN"):
        encoder.score(seen, with_nan(test))
    with pytest.warns(NedxWarning, match="54 of 60 images of 'sub-01' were used in training"):
        encoder.score(seen, train)


def test_voxels_to_choose_by_are_paired_by_label():
    seen, train, test = recorded()
    fit = [
        FwrfRidgeEncoder(GABOR, **ENCODER).fit(seen, train, held).model_.members["sub-01"]
        for held in (test, test.isel(voxel=TURNED))
    ]
    np.testing.assert_array_equal(fit[0]["encoding_r2"], fit[1]["encoding_r2"])
    with pytest.raises(ModelError, match="1 of 4 voxels of 'sub-01' are not among"):
        FwrfRidgeEncoder(GABOR, **ENCODER).fit(
            seen, train, test.assign_coords(voxel=[100, 101, 102, 999])
        )


def test_held_out_responses_are_checked_before_the_network_runs(monkeypatch):
    seen, train, test = recorded()
    monkeypatch.setattr(FwrfRidgeEncoder, "_pooled", lambda *_: pytest.fail("the network ran"))
    encoder = FwrfRidgeEncoder(GABOR, **ENCODER)
    with pytest.raises(ModelError, match="validation responses of 'sub-01' are NaN"):
        encoder.fit(seen, train, with_nan(test))
    with pytest.raises(ModelError, match=r"normalization \('zscore' and 'none'\)"):
        encoder.fit(seen, train, changed(test, normalization="none"))
    tree = xr.DataTree.from_dict({"/sub-01": train, "/sub-02": changed(train, units="V")})
    with pytest.raises(ModelError, match="sub-02 and of sub-01 differ in units"):
        encoder.fit(seen, tree)
    twice = xr.concat([seen, seen.isel(image=[4])], "image")
    with pytest.raises(ModelError, match="several of the stimuli are called 'toy:00004'"):
        encoder.fit(twice, train)
    with pytest.raises(ModelError, match="must be positive"):
        FwrfRidgeEncoder(GABOR, alphas=(np.nan, 1.0), **ENCODER).fit(seen, train)


def test_nothing_is_explained_of_what_does_not_vary():
    seen, train, test = recorded()
    values = test["response"].values.copy()
    values[:, 1] = 1
    held = test.assign(response=test["response"].copy(data=values))
    fit = FwrfRidgeEncoder(GABOR, **ENCODER).fit(seen, train, held).model_.members["sub-01"]
    assert np.isnan(fit["encoding_r2"].values).tolist() == [False, True, False, False]


def test_rounding_of_constant_features_is_no_signal():
    """A feature of 0.1 and its neighbour in float32, whose standard deviation is no 0."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((40, 3)).astype(np.float32)
    features[:, 2] = np.where(
        rng.random(40) < 0.5, np.float32(0.1), np.nextafter(0.1, 1, dtype="f4")
    )
    y = (features[:, :2] @ np.ones((2, 1)) + 0.1 * rng.standard_normal((40, 1))).astype(np.float32)
    search = CandidateSearch(np.array([1.0]), y[:30], y[30:], 3)
    search.offer(0, features[:30], features[30:])
    assert np.abs(search.coef[0, 2]) < 1


def test_a_training_is_known_by_all_of_its_responses():
    """Responses to other images have the same range, and are no reason to go on."""
    seen, ds = toy()
    values = ds["response"].values.copy()
    values[[0, 1]] = values[[1, 0]]
    swapped = ds.assign(response=ds["response"].copy(data=values))
    whole, lazy, other = (
        check_values(split_samples(seen, each, None, "fwrf").training["sub-01"])
        for each in (ds, ds.chunk(image=5), swapped)
    )
    assert whole == lazy
    assert whole != other


def test_a_trainer_scores_by_label():
    seen, ds = toy(test=6)
    labelled = ds.assign_coords(voxel=np.array([5, 6, 7], np.int32))
    trainer = FwrfTrainer(max_epochs=1, batch_size=4, device="cpu").fit(seen, labelled)
    test = labelled.isel(image=slice(12, 18))
    turned = trainer.score(seen, test.isel(voxel=[2, 0, 1]))
    assert turned == pytest.approx(trainer.score(seen, test), abs=1e-6)
