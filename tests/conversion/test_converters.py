"""Converters of known maps, against closed forms and other libraries."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from fastl2lir import FastL2LiR
from scipy.linalg import orthogonal_procrustes
from scipy.spatial.distance import cdist
from sklearn.linear_model import Ridge

import nedx
from nedx.conversion.hyperalignment import hyperalign
from nedx.conversion.optimal_transport import transport_map
from nedx.conversion.ridge import Gram
from nedx.errors import ModelError
from tests.conversion.simulated import centred_white, images, orthogonal, responses
from tests.laziness import computes_at_most


def zscored(values):
    return (values - values.mean(0)) / values.std(0, ddof=1)


def pair_of(seed=0, rows=90, sizes=(20, 26), noise=0.3, shuffle=True):
    rng = np.random.default_rng(seed)
    latents = rng.standard_normal((rows, 8))
    both = [
        latents @ rng.standard_normal((8, n)) + noise * rng.standard_normal((rows, n))
        for n in sizes
    ]
    both = [5 + 2 * values.astype(np.float32) for values in both]
    order = rng.permutation(rows) if shuffle else np.arange(rows)
    names = np.array(images(rows), dtype=object)
    one = responses(both[0], names, "sub-01")
    other = responses(both[1][order], names[order], "sub-02")
    return one, other, both


@pytest.mark.parametrize("shape", [(400, 60), (60, 400)])
@pytest.mark.parametrize("alpha", [300.0, 1.0, 1e-3])
# What numpy does on processors, torch does elsewhere: "cpu:0" is elsewhere here.
@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_small_penalties_are_not_lost_in_rounding(shape, alpha, device):
    rng = np.random.default_rng(8)
    latents = rng.standard_normal((shape[0], 4))
    x, y = (
        latents @ rng.standard_normal((4, n)) + noise * rng.standard_normal((shape[0], n))
        for n, noise in ((shape[1], 0.01), (5, 0.5))
    )
    x, y = zscored(x).astype(np.float32), zscored(y).astype(np.float32)
    gram = Gram(x, device)
    gram.solve(y, 1e5)
    found = gram.solve(y, alpha)
    assert found.dtype == np.float32
    expected = Ridge(alpha, fit_intercept=False, solver="svd").fit(x.astype(float), y).coef_.T
    assert np.abs(found - expected).max() < 3e-4 * np.abs(expected).max()
    with pytest.raises(ModelError, match=r"alpha 1e-12 is too small .* Type one from"):
        gram.solve(y, 1e-12)


@pytest.mark.parametrize("rows", [90, 15])
def test_ridge_is_the_published_solver_on_z_scores(rows):
    one, other, (x, y) = pair_of(rows=rows)
    converter = nedx.RidgeConverter(alpha=7.0, device="cpu").fit(one, other)
    oracle = FastL2LiR()
    oracle.fit(zscored(x), zscored(y), alpha=7.0, n_feat=x.shape[1])
    weights = converter.model_.weights(1, 2)
    np.testing.assert_allclose(weights["weight"], oracle.W, atol=1e-5)
    np.testing.assert_allclose(weights["bias"], oracle.b[0], atol=1e-5)
    with computes_at_most(0):
        out = one.ned.convert(converter)
    expected = oracle.predict(zscored(x)) * y.std(0, ddof=1) + y.mean(0)
    np.testing.assert_allclose(out["response"].values, expected, atol=2e-4)


def test_ridge_chooses_the_penalty_by_images():
    rng = np.random.default_rng(1)
    x = np.repeat(rng.standard_normal((40, 12)), 3, axis=0)
    x += 0.5 * rng.standard_normal(x.shape)
    y = x[:, :9] + 3 * np.repeat(rng.standard_normal((40, 9)), 3, axis=0)
    names = images(40)
    one, other = (
        responses(values.reshape(40, 3, -1), names, f"sub-0{n}") for n, values in ((1, x), (2, y))
    )
    alphas = [0.01, 1.0, 100.0, 1e4]
    converter = nedx.RidgeConverter(alphas=alphas, cv=5, device="cpu").fit(one, other)
    from sklearn.model_selection import GroupKFold

    xz, yz = zscored(x.astype(np.float32)), zscored(y.astype(np.float32))
    errors = []
    for alpha in alphas:
        parts = GroupKFold(5).split(xz, groups=np.repeat(names, 3))
        errors.append(
            sum(
                ((Ridge(alpha).fit(xz[a], yz[a]).predict(xz[b]) - yz[b]) ** 2).sum()
                for a, b in parts
            )
        )
    best = alphas[int(np.argmin(errors))]
    assert 0 < alphas.index(best) < 3
    assert converter.model_.recipe.pairs[0].alpha == {"all": best}
    expected = Ridge(best).fit(xz, yz).coef_.T
    np.testing.assert_allclose(converter.model_.weights(1, 2)["weight"], expected, atol=1e-4)


def test_hemispheres_are_mapped_apart_and_the_first_area_wins():
    one, other, (x, y) = pair_of()
    whole = nedx.RidgeConverter("whole", alpha=3.0, device="cpu").fit(one, other)
    weights = whole.model_.weights(1, 2)["weight"].values
    assert (weights[:10, 13:] == 0).all()
    assert (weights[10:, :13] == 0).all()
    xz, yz = zscored(x), zscored(y)
    left = Ridge(3.0, fit_intercept=False).fit(xz[:, :10], yz[:, :13]).coef_.T
    np.testing.assert_allclose(weights[:10, :13], left, atol=1e-5)

    def areas(ds, split):
        size = ds.sizes["voxel"]
        half = np.arange(size) % (size // 2)
        masks = np.stack([half < split + 2, half >= split])
        return ds.assign_coords(
            roi=np.array(["V1", "ROI_V2"], dtype=object), roi_mask=(("roi", "voxel"), masks)
        )

    one, other = areas(one, 4), areas(other, 6)
    parts = nedx.RidgeConverter("subarea", alpha=3.0, areas=["V1", "V2"], device="cpu")
    got = parts.fit(one, other).model_.weights(1, 2)["weight"].values
    expected = np.zeros_like(got)
    for side in (0, 1):
        for rows, columns in (
            (np.arange(6), np.arange(8)),
            (np.arange(4, 10), np.arange(6, 13)),
        ):
            rows, columns = rows + 10 * side, columns + 13 * side
            block = Ridge(3.0, fit_intercept=False).fit(xz[:, rows], yz[:, columns]).coef_.T
            grid = np.ix_(rows, columns)
            expected[grid] = np.where(expected[grid] != 0, expected[grid], block)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_procrustes_recovers_a_rotation():
    rng = np.random.default_rng(2)
    x = centred_white(400, 60, rng)
    turn = orthogonal(60, rng)
    names = images(400)
    one, other = responses(x, names, "sub-01"), responses(x @ turn, names, "sub-02")
    converter = nedx.ProcrustesConverter(device="cpu").fit(one, other)
    found = converter.model_.weights("sub-01", "sub-02")["weight"].values
    assert np.abs(found - turn).max() < 1e-5
    raw = rng.standard_normal((400, 60)) * np.linspace(0.5, 3, 60)
    one, other = responses(raw, names, "sub-01"), responses(raw @ turn, names, "sub-02")
    kept = nedx.ProcrustesConverter(standardize=False, device="cpu").fit(one, other)
    assert np.abs(kept.model_.weights(1, 2)["weight"].values - turn).max() < 1e-5


@pytest.mark.parametrize("sizes", [(14, 20), (20, 14)])
def test_procrustes_pads_the_smaller_side(sizes):
    one, other, (x, y) = pair_of(sizes=sizes)
    found = nedx.ProcrustesConverter(device="cpu").fit(one, other).model_.weights(1, 2)
    width = max(sizes)
    padded = [np.pad(zscored(v).astype(float), ((0, 0), (0, width - v.shape[1]))) for v in (x, y)]
    turn = orthogonal_procrustes(*padded)[0][: sizes[0], : sizes[1]]
    np.testing.assert_allclose(found["weight"], turn, atol=1e-5)


def test_hyperalignment_of_two_is_procrustes():
    one, other, _ = pair_of(sizes=(20, 14))
    found = nedx.HyperalignmentConverter(device="cpu").fit(one, other).model_.weights(1, 2)
    plain = nedx.ProcrustesConverter(device="cpu").fit(one, other).model_.weights(1, 2)
    np.testing.assert_allclose(found["weight"], plain["weight"], atol=1e-5)


def test_hyperalignment_takes_several_subjects_of_unequal_size():
    rng = np.random.default_rng(3)
    latents = rng.standard_normal((300, 12))
    sizes = (25, 12, 18)
    frames = [np.linalg.qr(rng.standard_normal((n, 12)))[0].T for n in sizes]
    maps = hyperalign([latents @ frame for frame in frames])
    for frame, turn in zip(frames, maps, strict=True):
        assert turn.shape == (frame.shape[1], 25)
        np.testing.assert_allclose(turn @ turn.T, np.eye(len(turn)), atol=1e-10)
    # Without noise every subject comes to the same place, so that all pairs are exact.
    for i in range(3):
        for j in range(3):
            there = latents @ frames[i] @ maps[i] @ maps[j].T
            np.testing.assert_allclose(there, latents @ frames[j], atol=1e-8)
    names = images(300)
    tree = xr.DataTree.from_dict(
        {
            f"sub-0{n}": responses(latents @ frame + 0.1, names, f"sub-0{n}")
            for n, frame in enumerate(frames, 1)
        }
    )
    fitted = nedx.HyperalignmentConverter(standardize=False, device="cpu").fit(tree, pairs="all")
    assert len(fitted.model_.pairs) == 6
    made = tree["sub-03"].to_dataset().ned.convert(fitted, subject=1)
    np.testing.assert_allclose(made["response"].values, latents @ frames[0] + 0.1, atol=1e-4)
    there, back = (
        nedx.HyperalignmentConverter(device="cpu").fit(tree, pairs=pairs).model_.weights(1, 2)
        for pairs in ([(1, 2), (2, 3)], iter([(3, 2), (2, 1), (1, 2)]))
    )
    xr.testing.assert_identical(there, back)


def sinkhorn(cost, reg, tolerance):
    """Return the entropic plan, by plain scaling in float64."""
    kernel = np.exp(-cost / reg)
    rows, columns = (np.full(n, 1 / n) for n in cost.shape)
    right = np.ones(cost.shape[1])
    for _ in range(100_000):
        left = rows / (kernel @ right)
        right = columns / (kernel.T @ left)
        plan = left[:, None] * kernel * right
        if np.abs(plan.sum(1) - rows).max() < tolerance:
            return plan
    raise AssertionError("did not converge")


@pytest.mark.parametrize("cost", ["euclidean", "normalized_sqeuclidean"])
def test_transport_is_sinkhorn_in_both_conventions(cost):
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((30, 9)), rng.standard_normal((30, 7))
    if cost == "euclidean":
        expected = sinkhorn(cdist(x.T, y.T), 0.5, 1e-12) * 9
        found, converged = transport_map(x, y, cost, reg=0.5)
        np.testing.assert_allclose(found.sum(1), 1, atol=0.02)
        tolerance = 5e-3
    else:
        distance = cdist(x.T, y.T, "sqeuclidean")
        expected = sinkhorn(distance / distance.max(), 0.05, 1e-12) * 7
        found, converged = transport_map(x, y, cost, reg=0.05)
        np.testing.assert_allclose(found.sum(0), 1, atol=1e-4)
        tolerance = 1e-4
    assert converged
    np.testing.assert_allclose(found, expected, atol=tolerance)


def test_transport_finds_voxels_that_changed_places():
    rng = np.random.default_rng(5)
    x = rng.standard_normal((200, 15))
    order = rng.permutation(15)
    names = images(200)
    one, other = responses(x, names, "sub-01"), responses(x[:, order], names, "sub-02")
    fitted = nedx.OptimalTransportConverter("normalized_sqeuclidean", device="cpu").fit(one, other)
    weights = fitted.model_.weights(1, 2)["weight"].values
    np.testing.assert_allclose(weights, np.eye(15)[:, order], atol=1e-3)


def test_simulated_cortex_is_converted_nearly_as_well_as_noise_allows():
    """Ridge reaches 95 % of the optimum; there and back beats two repeats of the original."""
    rng = np.random.default_rng(6)
    rows, held, size, repeats = 1500, 200, 40, 4
    turn = orthogonal(size, rng)
    spectrum = np.linspace(1.6, 0.5, size)
    signal = rng.standard_normal((rows + held, size)) * spectrum
    signals = [signal, signal @ turn]
    names = images(rows + held)
    part = np.array(["train"] * rows + ["test"] * held, dtype=object)
    one, other = (
        responses(
            each[:, None] + 0.7 * rng.standard_normal((rows + held, repeats, size)),
            names,
            f"sub-0{n}",
            partition=("image", part),
        )
        for n, each in enumerate(signals, 1)
    )
    tree = xr.DataTree.from_dict({"sub-01": one, "sub-02": other})
    converter = nedx.RidgeConverter(device="cpu").fit(tree, pairs="all")
    assert not {"test"} & set(converter.model_.known_images)
    test = one.isel(image=slice(rows, None))
    made = test.ned.convert(converter)["response"].mean("repetition").values

    def r(a, b):
        a, b = zscored(a), zscored(b)
        return (a * b).sum(0) / (len(a) - 1)

    truth = signals[1][rows:]
    # The best linear guess from means of noisy repeats, with the true covariances.
    covariance = np.diag(spectrum**2) + 0.49 / repeats * np.eye(size)
    best = np.linalg.solve(covariance, np.diag(spectrum**2)) @ turn
    mean = test["response"].mean("repetition").values
    assert r(made, truth).mean() / r(mean @ best, truth).mean() >= 0.95
    back = test.ned.convert(converter).ned.convert(converter)["response"].values
    original = test["response"].values
    repeated = r(original[:, 0], original[:, 1]).mean()
    assert r(back[:, 0], original[:, 0]).mean() > repeated
    means = r(original[:, :2].mean(1), original[:, 2:].mean(1)).mean()
    assert r(back.mean(1), original.mean(1)).mean() > means


def test_a_gram_matrix_serves_all_targets_of_a_subject():
    rng = np.random.default_rng(7)
    latents = rng.standard_normal((60, 6))
    names = images(60)
    tree = xr.DataTree.from_dict(
        {
            f"sub-0{n}": responses(
                latents @ rng.standard_normal((6, 9 + n)) + rng.standard_normal((60, 9 + n)),
                names,
                f"sub-0{n}",
            )
            for n in range(1, 6)
        }
    )
    for alpha in (5.0, "cv"):
        fitted = nedx.RidgeConverter(alpha=alpha, device="cpu").fit(tree, pairs="all")
        assert len(fitted.model_.pairs) == 20
        assert fitted.grams_ == 5
    alone = nedx.RidgeConverter(alpha=5.0, device="cpu").fit(
        tree["sub-04"].to_dataset(), tree["sub-02"].to_dataset()
    )
    shared = nedx.RidgeConverter(alpha=5.0, device="cpu").fit(tree, pairs="all")
    np.testing.assert_array_equal(
        alone.model_.weights(4, 2)["weight"], shared.model_.weights(4, 2)["weight"]
    )
    table = {("sub-01", "sub-02"): 5.0, (2, 1): {"all": 50.0}}
    by_table = nedx.RidgeConverter(alpha=table, device="cpu")
    by_table.fit(tree, pairs=[(1, 2), (2, 1)])
    assert [pair.alpha for pair in by_table.model_.recipe.pairs] == [{"all": 5.0}, {"all": 50.0}]
