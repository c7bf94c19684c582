import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from rsatoolbox.data import Dataset
from rsatoolbox.data.noise import prec_from_residuals
from rsatoolbox.rdm import calc_rdm

from nedx.errors import SchemaError, SelectionError
from nedx.metrics.rsa import rdm
from tests.laziness import computes_at_most
from tests.memory import needs_proc
from tests.rsa.responses import as_trials, repeated


def toolbox(values, method, noise=None):
    """Return the RDM of (image, repetition, channel) by rsatoolbox."""
    images, repetitions, _ = values.shape
    names, sessions = (index.ravel() for index in np.indices((images, repetitions)))
    data = Dataset(
        values.reshape(images * repetitions, -1).astype("f8"),
        obs_descriptors={"image": names, "session": sessions},
    )
    folds = {"cv_descriptor": "session"} if method == "crossnobis" else {}
    return calc_rdm(data, method, descriptor="image", noise=noise, **folds).get_matrices()[0]


def residuals(values):
    return (values - values.mean(axis=1, keepdims=True)).reshape(-1, values.shape[-1])


METHODS = ["correlation", "euclidean", "crossnobis"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("offset", [0, 1e4])
def test_it_equals_rsatoolbox_at_every_time(method, offset):
    responses = repeated() + offset
    found = rdm(responses, method)
    assert found.dims == ("image", "image_2", "time")
    for t in range(3):
        expected = toolbox(responses.values[..., t] - offset, method)
        # Large means cost rsatoolbox its digits, so that it is given none.
        np.testing.assert_allclose(found[..., t], expected, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_single_precision_agrees_to_a_millionth_of_the_largest(method):
    responses = repeated(images=40, channels=300, times=1, dtype="f4")
    found = rdm(responses, method)
    assert found.dtype == np.float32
    expected = toolbox(responses.values[..., 0], method)
    np.testing.assert_allclose(found[..., 0], expected, atol=1e-6 * abs(expected).max())


@pytest.mark.parametrize("method", METHODS)
def test_trials_in_any_order_are_the_same(method):
    responses = repeated()
    folds = {"folds": "session"} if method == "crossnobis" else {}
    trials = as_trials(responses)
    found = rdm(trials.chunk(trial=5), method, block_size=3, **folds)
    assert list(found.image_id.values) == [f"set:{i}" for i in range(7)]
    np.testing.assert_allclose(found, rdm(responses, method), atol=1e-12)


def test_repeats_of_trials_are_numbered_where_nothing_says_which_they_are():
    trials = as_trials(repeated()).drop_vars("session")
    order = np.argsort(trials.image_id.values, kind="stable")
    expected = toolbox(trials.values[order, :, 0].reshape(7, 4, 5), "crossnobis")
    np.testing.assert_allclose(rdm(trials, "crossnobis")[..., 0], expected, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=15)
@given(
    block_size=st.integers(1, 8),
    chunks=st.tuples(*[st.integers(1, 7)] * 4),
    noise=st.sampled_from([None, "shrinkage"]),
)
def test_any_chunking_gives_the_same_and_nothing_is_computed_before(
    method, block_size, chunks, noise
):
    responses = repeated()
    lazy = responses.chunk(dict(zip(responses.dims, chunks, strict=True)))
    with computes_at_most(0):
        found = rdm(lazy, method, noise=noise, block_size=block_size)
    expected = rdm(responses, method, noise=noise)
    np.testing.assert_allclose(found.compute(scheduler="sync"), expected, atol=1e-10)


@pytest.mark.parametrize("method", ["euclidean", "crossnobis"])
def test_noise_of_residuals_whitens_as_rsatoolbox_does(method):
    responses = repeated(images=12)
    found = rdm(responses, method, noise="shrinkage")
    diagonal = rdm(responses, method, noise="diagonal")
    for t in range(3):
        values = responses.values[..., t]
        options = {"dof": 12 * 3, "method": "shrinkage_eye"}
        name = "mahalanobis" if method == "euclidean" else method
        precision = prec_from_residuals(residuals(values), **options)
        expected = toolbox(values, name, precision)
        np.testing.assert_allclose(found[..., t], expected, rtol=1e-8)
        given = rdm(responses[..., [t]], method, noise=precision)
        np.testing.assert_allclose(given[..., 0], expected, rtol=1e-8)
        precision = prec_from_residuals(residuals(values), dof=12 * 3, method="diag")
        np.testing.assert_allclose(diagonal[..., t], toolbox(values, name, precision), rtol=1e-8)
    assert found.attrs["units"] == "1"


def test_crossnobis_of_noise_alone_is_zero_on_average_and_euclidean_is_not():
    rng = np.random.default_rng(1)
    noise = xr.DataArray(
        rng.standard_normal((60, 4, 200)), dims=("image", "repetition", "voxel"), name="response"
    )
    above = np.triu_indices(60, 1)
    crossed, squared = (rdm(noise, method).values[above] for method in ("crossnobis", "euclidean"))
    # The variance of a distance is about 8 / (4 * 3 * 200): pairs share images, hence the 5.
    assert abs(crossed.mean()) < 5 * np.sqrt(8 / (12 * 200) / 60)
    assert squared.mean() == pytest.approx(2 / 4, rel=0.02)


def test_a_window_of_time_may_be_one_pattern():
    responses = repeated()
    found = rdm(responses, over=("channel", "time"))
    assert found.dims == ("image", "image_2")
    expected = toolbox(responses.values.reshape(7, 4, -1), "correlation")
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("form", ["repetitions", "trials"])
@pytest.mark.parametrize("method", ["euclidean", "crossnobis"])
def test_conditions_may_be_categories(form, method):
    responses = repeated(images=6)
    categories = ["face", "house", "face", "tool", "house", "tool"]
    labelled = responses.assign_coords(category=("image", categories))
    folds = {}
    if form == "trials":
        labelled, folds = as_trials(responses), {"folds": "session"}
        of_image = dict(zip(responses.image_id.values, categories, strict=True))
        names = [of_image[name] for name in labelled.image_id.values]
        labelled = labelled.assign_coords(category=("trial", names))
    found = rdm(labelled, method, by="category", **folds)
    assert found.dims == ("category", "category_2", "time")
    assert list(found.category_2.values) == ["face", "house", "tool"]
    means = np.stack([responses.values[[a, b]].mean(axis=0) for a, b in ((0, 2), (1, 4), (3, 5))])
    np.testing.assert_allclose(found[..., 1], toolbox(means[..., 1], method), atol=1e-12)


def test_absent_repeats_are_left_out_of_means():
    responses = repeated()
    responses[2, 3] = np.nan
    expected = rdm(responses.mean("repetition", skipna=True))
    np.testing.assert_allclose(rdm(responses.chunk(image=2)), expected)


def test_labels_units_and_dims_say_what_it_is():
    subjects = repeated(dtype="f4").expand_dims(subject=["sub-01", "sub-02"])
    found = rdm(subjects, "euclidean")
    assert found.dims == ("subject", "image", "image_2", "time")
    assert found.attrs["units"] == "uV2"
    assert found.attrs["source"] == "synthetic"
    assert found.time.attrs == {"units": "s"}
    assert list(found.image_id_2.values) == list(found.image_id.values)
    assert rdm(subjects).attrs["units"] == "1"
    assert rdm(subjects.assign_attrs(units="uV m-2"), "euclidean").attrs["units"] == "(uV m-2)2"


def test_a_constant_pattern_has_no_correlation():
    responses = repeated(dtype="f4").mean("repetition", dtype="f4")
    responses[2] = 0.1
    found = rdm(responses).values
    assert np.isnan(found[2]).all()
    assert np.isnan(found).sum() == (2 * 7 - 1) * 3
    assert np.isfinite(rdm(responses, "euclidean")).all()


def test_what_cannot_be_compared_is_said_first():
    responses = repeated()
    with pytest.raises(SchemaError, match="one image only"):
        rdm(responses.isel(image=[0]))
    with pytest.raises(SchemaError, match="two folds or more, found 1"):
        rdm(responses.isel(repetition=[0]), "crossnobis")
    with pytest.raises(SchemaError, match="no repeats"):
        rdm(responses.isel(repetition=0), "crossnobis")
    with pytest.raises(SelectionError, match="over='chanel'.*did you mean 'channel'"):
        rdm(responses, over="chanel")
    with pytest.raises(SelectionError, match="no coordinate 'categry'"):
        rdm(responses.assign_coords(category=("image", list("abcdefg"))), by="categry")
    with pytest.raises(ValueError, match="method is one of 'correlation'"):
        rdm(responses, "cosine")
    with pytest.raises(TypeError, match="classifier"):
        rdm(responses, classifier="svm")
    with pytest.raises(SelectionError, match=r"noise is a matrix \(5, 5\)"):
        rdm(responses, "euclidean", noise=np.eye(4))
    ragged = as_trials(responses).isel(trial=slice(1, None))
    with pytest.raises(SchemaError, match="1 conditions are absent from a fold: set:"):
        rdm(ragged, "crossnobis", folds="session")


def test_absent_presentations_are_left_out_in_both_layouts():
    responses = repeated()
    responses[0, 0, 2, 1] = np.nan
    by_trial = rdm(as_trials(responses))
    expected = rdm(responses)
    assert np.isfinite(expected).all()
    order = [list(by_trial.image_id.values).index(i) for i in expected.image_id.values]
    found = by_trial.isel(image=order, image_2=order)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_nan_is_an_error_when_computed(method):
    responses = repeated()
    responses[0, :, 2, 1] = np.nan
    with pytest.raises(SchemaError, match="1 of .* patterns hold NaN"):
        rdm(responses, method).compute(scheduler="sync")


SCRIPT = """
import dask, numpy as np, xarray as xr
import dask.array as da
from nedx.metrics.rsa import rdm
from tests.memory import peak_kib
data = xr.DataArray(
    da.random.default_rng(0).standard_normal((12_000, 64), chunks=(1000, 64), dtype="f4"),
    dims=("image", "voxel"), name="response",
)
rdm(data[:2048], block_size=1024).mean().compute(scheduler="sync")
before = peak_kib()
mean = float(rdm(data, block_size=1024).mean().compute(scheduler="sync"))
assert abs(mean - 1) < 0.01, mean
print((peak_kib() - before) // 1024)
"""


@needs_proc
def test_no_matrix_of_all_images_is_ever_held():
    # 12,000 x 12,000 float32 are 549 MiB, a block of 1,024 is 4.
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 100
