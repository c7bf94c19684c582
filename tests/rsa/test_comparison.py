import subprocess
import sys
from itertools import permutations

import numpy as np
import pytest
import scipy.stats
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from rsatoolbox.inference.noise_ceiling import boot_noise_ceiling
from rsatoolbox.rdm import RDMs, compare
from scipy.spatial.distance import squareform

from nedx.errors import SchemaError
from nedx.metrics.rsa import (
    compare_rdms,
    pairwise_decoding,
    rdm,
    rdm_noise_ceiling,
    rdm_permutation_test,
)
from tests.laziness import computes_at_most
from tests.memory import needs_proc
from tests.rsa.responses import repeated

NAMES = {
    "spearman": "spearman",
    "pearson": "corr",
    "kendall": "tau-a",
    "cosine": "cosine",
    "cosine_whitened": "cosine_cov",
}
METHODS = list(NAMES)


def matrices(*lead, images=9, seed=0, ties=False):
    """Return random RDMs (..., image, image_2) that are somewhat alike."""
    rng = np.random.default_rng(seed)
    pairs = images * (images - 1) // 2
    shared = np.random.default_rng(100).random(pairs)
    flat = shared + 0.7 * rng.random((*lead, pairs))
    if ties:
        flat = flat.round(1)
    values = np.stack([squareform(row) for row in flat.reshape(-1, pairs)])
    names = [f"set:{i}" for i in range(images)]
    return xr.DataArray(
        values.reshape(*lead, images, images),
        dims=[*("subject", "roi")[: len(lead)], "image", "image_2"],
        coords={"image_id": ("image", names), "image_id_2": ("image_2", names)},
        attrs={"units": "uV2"},
        name="rdm",
    )


def toolbox(a, b, method):
    flat = [np.stack([squareform(m) for m in z.values.reshape(-1, 9, 9)]) for z in (a, b)]
    return compare(RDMs(flat[0]), RDMs(flat[1]), NAMES[method])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_it_equals_rsatoolbox_for_every_pair_of_rdms(method, ties):
    a, b = matrices(3, ties=ties), matrices(4, seed=1, ties=ties).rename(subject="model")
    found = compare_rdms(a, b, method)
    assert found.dims == ("subject", "model")
    np.testing.assert_allclose(found, toolbox(a, b, method), atol=1e-12)
    assert found.attrs["units"] == "1"


@pytest.mark.parametrize("method", METHODS)
def test_dims_that_both_have_go_together(method):
    a, b = matrices(3, 2), matrices(3, seed=1)
    found = compare_rdms(a, b, method)
    for s in range(3):
        expected = toolbox(a[s], b[s], method)[:, 0]
        np.testing.assert_allclose(found.sel(subject=s), expected, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@given(first=st.integers(1, 9), second=st.integers(1, 9), lead=st.integers(1, 3))
@settings(max_examples=5)
def test_any_chunking_gives_the_same_and_nothing_is_computed_before(method, first, second, lead):
    a, b = matrices(3), matrices(2, seed=1).rename(subject="model")
    lazy = a.chunk(subject=lead, image=first, image_2=second), b.chunk(image=second, image_2=first)
    for z in lazy:
        for name in ("image_id", "image_id_2"):
            z[name].load()
    with computes_at_most(0):
        found = compare_rdms(*lazy, method)
        ceiling = rdm_noise_ceiling(lazy[0], method)
    np.testing.assert_allclose(
        found.compute(scheduler="sync"), compare_rdms(a, b, method), atol=1e-12
    )
    expected = rdm_noise_ceiling(a, method)
    xr.testing.assert_allclose(ceiling.compute(scheduler="sync"), expected.compute())


@pytest.mark.parametrize("method", METHODS)
def test_images_are_joined_by_their_ids(method):
    a, b = matrices(2), matrices(2, seed=1)
    order = np.random.default_rng(0).permutation(9)
    shuffled = b.isel(image=order, image_2=order)
    np.testing.assert_allclose(
        compare_rdms(a, shuffled, method), compare_rdms(a, b, method), atol=1e-12
    )
    # As xarray reads them from Zarr.
    strings = shuffled["image_id"].values.astype(np.dtypes.StringDType())
    read = shuffled.drop_indexes("image_id", errors="ignore").assign_coords(
        image_id=("image", strings)
    )
    xr.testing.assert_equal(compare_rdms(a, read, method), compare_rdms(a, shuffled, method))


@pytest.mark.parametrize("method", METHODS)
def test_the_noise_ceiling_equals_that_of_rsatoolbox(method):
    rdms = matrices(5, 2)
    found = rdm_noise_ceiling(rdms, method)
    for roi in range(2):
        flat = np.stack([squareform(m) for m in rdms.values[:, roi]])
        lower, upper = boot_noise_ceiling(RDMs(flat), NAMES[method])
        assert float(found.noise_ceiling_lower[roi]) == pytest.approx(lower, abs=1e-12)
        assert float(found.noise_ceiling_upper[roi]) == pytest.approx(upper, abs=1e-12)
    assert (found.noise_ceiling_lower < found.noise_ceiling_upper).all()


def test_over_time_with_a_model_and_with_decoding():
    responses = repeated(images=8)
    model = rdm(repeated(images=8, times=1, seed=4).isel(time=0), "euclidean")
    found = compare_rdms(rdm(responses), model)
    assert found.dims == ("time",)
    assert found.time.attrs == {"units": "s"}
    above = np.triu_indices(8, 1)
    expected = scipy.stats.spearmanr(rdm(responses).values[..., 1][above], model.values[above])
    assert float(found[1]) == pytest.approx(expected.statistic)
    decoded = pairwise_decoding(responses)
    for method in METHODS:
        assert np.isfinite(compare_rdms(decoded, model, method)).all()


@pytest.mark.parametrize("method", METHODS)
def test_an_rdm_that_holds_nan_or_is_constant_is_like_none(method):
    a = matrices(3)
    a[0, 1, 2] = a[0, 2, 1] = np.nan
    a[1] = 0
    found = compare_rdms(a, matrices(seed=1), method).values
    assert np.isnan(found[:2]).all()
    assert np.isfinite(found[2])


@pytest.mark.parametrize("method", ["spearman", "pearson", "cosine"])
def test_the_permutation_test_against_all_permutations(method):
    a, b = (matrices(images=5, seed=s) for s in (0, 1))
    names = {"spearman": scipy.stats.spearmanr, "pearson": scipy.stats.pearsonr}
    above = np.triu_indices(5, 1)

    def similarity(x, y):
        if method == "cosine":
            return x @ y / np.linalg.norm(x) / np.linalg.norm(y)
        return names[method](x, y).statistic

    observed = similarity(a.values[above], b.values[above])
    null = [
        similarity(a.values[above], b.values[np.ix_(order, order)][above])
        for order in permutations(range(5))
    ]
    exact = np.mean(np.array(null) >= observed - 1e-12)
    found = rdm_permutation_test(a.chunk(image=2), b, method, n_permutations=4000, seed=3)
    assert float(found.similarity) == pytest.approx(observed)
    # Five standard errors of a share of 4,000 draws.
    assert float(found.p_value) == pytest.approx(exact, abs=5 * np.sqrt(exact / 4000) + 1e-3)


def test_unrelated_rdms_have_p_values_that_are_uniform_and_related_ones_small():
    rng = np.random.default_rng(2)
    noise = rng.random((100, 190))
    values = np.stack([squareform(row) for row in noise])
    names = {"image_id": ("image", [f"set:{i}" for i in range(20)])}
    a = xr.DataArray(values[:60], dims=("model", "image", "image_2"), coords=names)
    b = xr.DataArray(values[60], dims=("image", "image_2"), coords=names)
    p = rdm_permutation_test(a, b, n_permutations=199).p_value.values
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01
    assert float(rdm_permutation_test(b + 0.1 * a[0], b, n_permutations=199).p_value) == 1 / 200


def test_what_cannot_be_compared_is_said_first():
    a = matrices(2)
    with pytest.raises(SchemaError, match="1 of the first are absent from the second, 0"):
        compare_rdms(a, a.isel(image=slice(8), image_2=slice(8)))
    with pytest.raises(SchemaError, match="nothing is joined by position"):
        compare_rdms(a, a.drop_vars(["image_id", "image_id_2"]))
    with pytest.raises(SchemaError, match="dims such as image and image_2"):
        compare_rdms(a.isel(image_2=0), a)
    with pytest.raises(SchemaError, match="labels of a dim that both have differ"):
        compare_rdms(a.assign_coords(subject=["a", "b"]), a.assign_coords(subject=["a", "c"]))
    with pytest.raises(ValueError, match="method is one of 'spearman'"):
        compare_rdms(a, a, "euclidean")
    with pytest.raises(ValueError, match="method is 'spearman', 'pearson' or 'cosine'"):
        rdm_permutation_test(a, a, "kendall")
    with pytest.raises(SchemaError, match="needs two of 'subject' or more, found 1"):
        rdm_noise_ceiling(a.isel(subject=[0]))
    with pytest.raises(SchemaError, match="found 0"):
        rdm_noise_ceiling(a.isel(subject=0))


def test_too_many_images_are_not_ranked():
    import dask.array as da

    data = da.zeros((30_000, 2), chunks=(5000, 2), dtype="f4")
    names = {"image_id": ("image", np.arange(30_000).astype(str))}
    made = rdm(xr.DataArray(data, dims=("image", "voxel"), coords=names))
    with pytest.raises(SchemaError, match="30,000 images are too many for spearman"):
        compare_rdms(made, made)
    compare_rdms(made, made, "pearson")


SCRIPT = """
import dask, numpy as np, xarray as xr
import dask.array as da
from nedx.metrics.rsa import compare_rdms, rdm
from tests.memory import peak_kib
def made(seed, images):
    data = da.random.default_rng(seed).standard_normal((images, 64), chunks=(1000, 64), dtype="f4")
    names = {"image_id": ("image", np.arange(images).astype(str))}
    return rdm(xr.DataArray(data, dims=("image", "voxel"), coords=names), block_size=1024)
compare_rdms(made(0, 2048), made(1, 2048), "pearson").compute(scheduler="sync")
before = peak_kib()
found = compare_rdms(made(0, 10_000), made(1, 10_000), "pearson").compute(scheduler="sync")
assert abs(float(found)) < 0.01, found
print((peak_kib() - before) // 1024)
"""


@needs_proc
def test_linear_methods_never_hold_an_rdm():
    # 10,000 x 10,000 float32 are 381 MiB, and there are two of them.
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 300
