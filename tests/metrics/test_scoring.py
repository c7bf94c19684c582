"""Predictions are compared with responses of the same scale only, by the metric asked for."""

import numpy as np
import pytest
import xarray as xr
from sklearn.metrics import r2_score

import nedx
from nedx.errors import NedxWarning, SchemaError
from tests.laziness import computes_at_most
from tests.metrics.simulated import simulated


@pytest.fixture
def ds():
    array, signal = simulated(images=200)
    return xr.Dataset({"response": array, "response_predicted": 0.8 * signal + 0.1}).isel(
        voxel=slice(1, None)
    )


def test_r2_and_determination_are_compared_with_the_ceiling_itself(ds):
    mean = ds.response.mean("repetition").values
    wanted = {
        "r2": [
            np.corrcoef(a, b)[0, 1] ** 2
            for a, b in zip(mean.T, ds.response_predicted.values.T, strict=True)
        ],
        "determination": r2_score(mean, ds.response_predicted.values, multioutput="raw_values"),
    }
    for metric, values in wanted.items():
        with computes_at_most(0):
            scored = ds.chunk(image=30).ned.score(metric=metric)
        np.testing.assert_allclose(scored.accuracy, values, rtol=1e-5)
        normalized = scored.accuracy / ds.ned.noise_ceiling()
        np.testing.assert_allclose(scored.accuracy_normalized, normalized, rtol=1e-5)
        assert scored.accuracy.attrs["metric"] == metric
        assert scored.accuracy_normalized.attrs["long_name"].endswith("by noise_ceiling")


def test_an_unknown_metric_is_named(ds):
    with pytest.raises(ValueError, match="'pearson_r', 'r2', 'determination', not 'rho'"):
        nedx.score(ds, metric="rho")


@pytest.mark.parametrize(
    ("measured", "predicted", "said"),
    [
        ({"units": "percent"}, {"units": "1"}, "units of response is 'percent'"),
        (
            {"units": "1", "normalization": "zscore", "normalization_scope": "session"},
            {"units": "1", "normalization": "zscore", "normalization_scope": "baseline"},
            "normalization_scope of response is 'session'",
        ),
        ({"normalization": "zscore"}, {"normalization": "none"}, "normalization of response"),
    ],
)
def test_other_units_or_normalizations_are_refused_before_anything_is_computed(
    ds, measured, predicted, said
):
    ds.response.attrs = measured
    ds.response_predicted.attrs = predicted
    with computes_at_most(0), pytest.raises(SchemaError, match=said) as raised:
        ds.chunk(image=30).ned.score()
    assert "predict with a model fitted to responses in these units" in str(raised.value)
    ds.response_predicted.attrs = measured
    assert "accuracy" in ds.ned.score()


def test_every_fault_of_scale_is_in_one_message(ds):
    ds.response.attrs = {"units": "uV", "normalization": "none"}
    ds.response_predicted.attrs = {"units": "1", "normalization": "zscore"}
    with pytest.raises(SchemaError, match=r"(?s)units of response.*normalization of response"):
        ds.ned.score()


def test_the_ceiling_of_every_subject_of_a_tree():
    one, _ = simulated(images=30, seed=1)
    tree = xr.DataTree.from_dict(
        {
            "sub-01": xr.Dataset({"response": one}),
            "sub-02": one.isel(voxel=[1]).to_dataset(name="response"),
        }
    )
    found = tree.ned.noise_ceiling(method="leave_one_out")
    for name in ("sub-01", "sub-02"):
        wanted = tree[name].to_dataset().ned.noise_ceiling(method="leave_one_out")
        np.testing.assert_array_equal(found[name].noise_ceiling, wanted)


def test_many_float16_repeats_do_not_overflow():
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((6, 1, 2))
    values = (600 + 50 * signal + rng.standard_normal((6, 300, 2))).astype("f2")
    for lazy in (False, True):
        response = xr.DataArray(values, dims=("image", "repetition", "channel"))
        predicted = xr.DataArray(signal[:, 0], dims=("image", "channel"))
        ds = xr.Dataset({"response": response, "response_predicted": predicted})
        found = nedx.score(ds.chunk(image=2) if lazy else ds)
        assert float(found.accuracy.min()) > 0.99


def test_a_ceiling_of_other_means_than_are_compared_is_told(ds):
    # An encoding model is compared with fewer repeats than the stored ceiling is of.
    stored = ds.assign(noise_ceiling=ds.ned.noise_ceiling())
    stored.ned.score()
    fewer = stored.isel(repetition=slice(2))
    with pytest.warns(NedxWarning, match="over 4 repetitions, but means over 2 .*drop_vars"):
        fewer.ned.score()
    fewer.drop_vars("noise_ceiling").ned.score()
