"""Gaussian receptive fields and their ridge: known fields are found, and applied lazily."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

import nedx
from nedx.backbones import BackboneRecipe, load_backbone
from nedx.encoding.fwrf_gaussian import GaussianFwrfEncoder, map_shapes, run_maps
from nedx.encoding.fwrf_ridge import FwrfRidgeEncoder
from nedx.errors import ModelError, NedxWarning
from nedx.linear.receptive_field_grid import (
    CandidateSearch,
    candidate_grid,
    gaussian_fields,
    pool_maps,
)
from tests.laziness import computes_at_most

DEGREES = 8.0
SIDE = 64
GABOR = BackboneRecipe(
    name="gabor",
    layers=("energy_1", "energy_2"),
    policy="raw01",
    pooling="flatten",
    image_size=SIDE,
)
FIELDS = np.array([[-2.1, 1.3, 0.7], [1.0, -1.6, 1.2], [0.2, 2.4, 0.8], [2.2, 1.9, 1.0]])
GRID = {"sizes": (0.7, 1.0, 1.4), "spacing": 1.0, "device": "cpu"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEDX_CACHE", str(tmp_path / "cache"))


def stimuli(count=300, seed=0, side=SIDE):
    """Noise of several scales, so that energy differs from place to place."""
    rng = np.random.default_rng(seed)
    out = np.full((count, side, side), 127.0)
    for cell in (2, 4, 8):
        size = side // cell
        noise = rng.standard_normal((count, size, size))
        noise *= rng.exponential(1, (count, 4, 4)).repeat(size // 4, 1).repeat(size // 4, 2)
        out += 20 * noise.repeat(cell, 1).repeat(cell, 2)
    pixels = out.clip(0, 255).astype(np.uint8)[..., None].repeat(3, -1)
    seen = nedx.open_images(pixels, image_set="toy")
    return seen.assign_attrs(visual_degrees=DEGREES)


def sigma(x):
    return np.log1p(np.abs(x)) * np.tanh(x)


def gaussians(fields, side, degrees=DEGREES):
    """Densities at the centres of the positions, by scipy; y upwards."""
    across = (np.arange(side) + 0.5) / side * degrees - degrees / 2
    places = np.stack(np.meshgrid(across, -across), -1).reshape(-1, 2)
    found = [multivariate_normal(f[:2], f[2] ** 2).pdf(places) for f in fields]
    return np.stack([each / each.sum() for each in found])


def energies(pixels):
    """The maps of the backbone, float64, (image, channel, y, x) of each layer."""
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    return [m.double().numpy() for m in run_maps(load_backbone(GABOR), batch)]


def pooled(maps, fields, degrees=DEGREES):
    parts = [
        np.einsum("ncp,kp->nkc", each.reshape(*each.shape[:2], -1), weights)
        for each in maps
        for weights in [gaussians(fields, each.shape[-1], degrees)]
    ]
    return np.concatenate(parts, 2)


def responses(seen, values, **coords):
    attrs = {"units": "1", "normalization": "zscore", "normalization_scope": "session"}
    return xr.Dataset(
        {"response": (("image", "voxel"), np.asarray(values, np.float32), attrs)},
        coords={"image_id": ("image", seen["image_id"].values), **coords},
        attrs={"modality": "fmri", "dataset": "toy", "source": "synthetic"},
    )


def known(seen, noise=0.3, seed=5):
    """Voxels of known fields and weights, some noise, z-scored."""
    rng = np.random.default_rng(seed)
    features = sigma(pooled(energies(seen["pixels"].values), FIELDS))
    features = (features - features.mean(0)) / features.std(0)
    weights = rng.uniform(0.5, 1.5, features.shape[1:])
    signal = (features * weights).sum(2)
    signal = (signal - signal.mean(0)) / signal.std(0)
    return signal, signal + noise * rng.standard_normal(signal.shape)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    seen = stimuli()
    signal, values = known(seen)
    ds = responses(seen.isel(image=slice(260)), values[:260])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEDX_CACHE", str(tmp_path_factory.mktemp("fitted")))
        yield seen, signal, FwrfRidgeEncoder(GABOR, **GRID).fit(seen, ds)


def test_known_receptive_fields_are_found(fitted):
    """Within the spacing of the grid; new images are predicted."""
    seen, signal, encoder = fitted
    labels = encoder.model_.members["sub-01"]
    spacing = DEGREES / (np.ceil(DEGREES / labels["rf_size"].values) - 1)
    assert (np.abs(labels["rf_x"].values - FIELDS[:, 0]) <= spacing).all()
    assert (np.abs(labels["rf_y"].values - FIELDS[:, 1]) <= spacing).all()
    assert (np.abs(np.log2(labels["rf_size"].values / FIELDS[:, 2])) <= 0.55).all()
    assert labels["rf_x"].attrs["units"] == "degree"
    unseen = seen.isel(image=slice(260, None))
    predicted = unseen.ned.encode(encoder)["response"].values
    r = [np.corrcoef(a, b)[0, 1] for a, b in zip(predicted.T, signal[260:].T, strict=True)]
    assert min(r) > 0.9
    assert (labels["encoding_r2"].values > 0.6).all()
    score = encoder.score(unseen, responses(unseen, signal[260:]))
    assert score == pytest.approx(np.mean(r), abs=1e-4)


def test_the_model_is_applied_by_the_formula_lazily_and_kept(fitted, tmp_path):
    seen, _, encoder = fitted
    new = stimuli(7, seed=9)
    encoder.to_zarr(tmp_path / "model.zarr")
    with computes_at_most(0):
        model = nedx.load_model(tmp_path / "model.zarr")
        out = new.ned.encode(model, device="cpu")
    assert isinstance(model, GaussianFwrfEncoder)
    nedx.validate(out)
    labels = model.members["sub-01"]
    fields = np.stack([labels[n].values for n in ("rf_x", "rf_y", "rf_size")], 1)
    features = sigma(pooled(energies(new["pixels"].values), fields.astype(float)))
    import zarr

    group = zarr.open_group(str(tmp_path / "model.zarr"))["sub-01"]
    expected = (features * group["w"][...].astype(float)).sum(2) + group["b"][...]
    scale = np.abs(expected).max()
    np.testing.assert_allclose(out["response"].values, expected, atol=1e-4 * scale)
    some = out.isel(voxel=[3, 1], image=slice(2, 6))["response"]
    np.testing.assert_allclose(some.values, expected[2:6][:, [3, 1]], atol=1e-4 * scale)
    assert out["rf_size"].dims == ("voxel",)
    again = nedx.load_model(tmp_path / "model.zarr").to_zarr(tmp_path / "again.zarr")
    second = nedx.load_model(again)
    assert second.weights_sha256 == model.weights_sha256
    assert nedx.verify(tmp_path / "again.zarr").ok
    values = new.ned.encode(second, device="cpu")["response"].values
    np.testing.assert_array_equal(values, out["response"].values)


def test_images_held_out_are_named(fitted):
    seen, _, encoder = fitted
    out = seen.ned.encode(encoder)
    kinds, counts = np.unique(out["partition"].values.astype(str), return_counts=True)
    assert dict(zip(kinds, counts, strict=True)) == {"train": 234, "unseen": 40, "val": 26}


@settings(deadline=None, max_examples=8)
@given(chunk=st.integers(1, 20), batch=st.integers(1, 20))
def test_chunks_do_not_change_results(fitted, chunk, batch):
    seen, _, encoder = fitted
    some = seen.isel(image=slice(20))
    whole = some.ned.encode(encoder, device="cpu")["response"].values
    parts = some.chunk(image=chunk).ned.encode(encoder, device="cpu", batch_size=batch)
    assert np.abs(parts["response"].values - whole).max() <= 1e-6 * np.abs(whole).max()


def test_memory_does_not_change_the_fit(fitted):
    seen, _, encoder = fitted
    _, values = known(seen)
    ds = responses(seen.isel(image=slice(260)), values[:260])
    small = FwrfRidgeEncoder(GABOR, **GRID, memory=4 * 260 * 8 * 100).fit(seen, ds)
    assert small.model_.weights_sha256 == encoder.model_.weights_sha256


def test_subjects_with_their_own_voxels_and_trials():
    seen = stimuli(120)
    _, values = known(seen)
    parts = np.array(["train"] * 90 + ["val"] * 20 + ["test"] * 10, dtype=object)
    twice = responses(seen, values[:, :3]).isel(image=np.repeat(np.arange(110), 2))
    tree = xr.DataTree.from_dict(
        {"sub-01": responses(seen, values[:, 3:]), "sub-02": twice.rename(image="trial")}
    )
    known_parts = seen.assign_coords(partition=("image", parts))
    encoder = FwrfRidgeEncoder(GABOR, **GRID).fit(known_parts, tree)
    once = FwrfRidgeEncoder(GABOR, **GRID).fit(known_parts, responses(seen, values[:, :3]))
    out = seen.ned.encode(encoder)
    assert out["sub-01"]["response"].sizes["voxel"] == 1
    np.testing.assert_allclose(
        out["sub-02"]["response"].values, seen.ned.encode(once)["response"].values, atol=1e-5
    )
    assert sorted(set(out["sub-01"]["partition"].values)) == ["test", "train", "val"]


def test_the_grid_is_that_of_the_formula():
    found = candidate_grid(8.0, (1.0, 3.0, 9.0), 1.5)
    by_size = {size: found[found[:, 2] == size] for size in (1.0, 3.0, 9.0)}
    assert [len(each) for each in by_size.values()] == [36, 4, 1]
    assert sorted(set(by_size[1.0][:, 0].round(6))) == [-4, -2.4, -0.8, 0.8, 2.4, 4]
    assert {tuple(each) for each in by_size[3.0][:, :2]} == {(-4, -4), (-4, 4), (4, -4), (4, 4)}
    assert by_size[9.0][0].tolist() == [0, 0, 9]
    with pytest.raises(ModelError, match="must be positive"):
        candidate_grid(8.0, (1.0, 0.0), 1.5)


def test_fields_are_normalised_gaussians():
    np.testing.assert_allclose(
        gaussian_fields(FIELDS, 13, DEGREES), gaussians(FIELDS, 13), atol=1e-6
    )
    narrow = gaussian_fields(np.array([[0.3, 0.3, 1e-4]]), 4, 4.0).reshape(4, 4)
    assert narrow[1, 2] == 1


@pytest.mark.parametrize("compress", [True, False])
def test_maps_are_pooled_as_the_formula_says(compress):
    rng = np.random.default_rng(0)
    maps = [rng.standard_normal((2, 3, side, side)) for side in (9, 5)]
    tensors = [torch.from_numpy(each).float() for each in maps]
    found = pool_maps(tensors, FIELDS, DEGREES, compress=compress).numpy()
    expected = pooled(maps, FIELDS).transpose(1, 0, 2)
    np.testing.assert_allclose(found, sigma(expected) if compress else expected, atol=1e-6)


def test_the_search_finds_what_scikit_learn_finds(monkeypatch):
    """Every candidate and penalty fitted one by one; blocks of voxels do not matter."""
    monkeypatch.setattr("nedx.linear.receptive_field_grid._VOXELS_AT_A_TIME", 3)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 60, 6)) * rng.uniform(1, 9, 6) + rng.uniform(-5, 5, 6)
    x[:, :, 5] = 2.0
    y = np.einsum("vnf,vf->nv", x[[0, 1, 1, 3, 2, 0, 3]], rng.standard_normal((7, 6)))
    y = y + 10 * rng.standard_normal(y.shape) + 3
    alphas = np.array([0.1, 10.0, 300.0])
    search = CandidateSearch(alphas, y[:40].astype("f4"), y[40:].astype("f4"), 6)
    losses, fits = [], []
    for candidate in range(4):
        search.offer(candidate, x[candidate, :40], x[candidate, 40:])
        scaler = StandardScaler().fit(x[candidate, :40])
        for alpha in alphas:
            fit = Ridge(alpha).fit(scaler.transform(x[candidate, :40]), y[:40])
            predicted = fit.predict(scaler.transform(x[candidate, 40:]))
            losses.append(((predicted - y[40:]) ** 2).mean(0))
            fits.append(predicted)
    best = np.argmin(losses, 0)
    np.testing.assert_array_equal(search.candidate, best // 3)
    np.testing.assert_array_equal(search.alpha, alphas[best % 3])
    np.testing.assert_allclose(search.loss, np.min(losses, 0), rtol=1e-4)
    for voxel, which in enumerate(best):
        predicted = x[search.candidate[voxel], 40:] @ search.coef[voxel] + search.intercept[voxel]
        np.testing.assert_allclose(predicted, fits[which][:, voxel], atol=1e-3)


def test_policies_that_crop_show_less():
    encoder = FwrfRidgeEncoder("squeezenet1_1", degrees=8.0)
    recipe, aperture = encoder._seen(encoder.recipe, stimuli(1))
    assert aperture == pytest.approx(8 * 224 / 256)
    assert recipe.image_size == 224
    assert map_shapes(recipe) == {"fire6": (384, 13)}


@pytest.mark.parametrize(
    ("alphas", "word", "count", "noise"),
    [((1e4, 3e5), "smaller", 60, 0.01), ((1e-3, 1.0), "larger", 24, 0.5)],
)
def test_penalties_that_end_too_early_are_warned_of(alphas, word, count, noise):
    seen = stimuli(count)
    ds = responses(seen, known(seen, noise=noise)[1])
    encoder = FwrfRidgeEncoder(GABOR, sizes=(1.4,), alphas=alphas, holdout=0.4, device="cpu")
    with pytest.warns(NedxWarning, match=f"add {word} alphas"):
        encoder.fit(seen, ds)


def test_it_has_the_manners_of_scikit_learn():
    encoder = FwrfRidgeEncoder(GABOR, sizes=(1.0,))
    assert clone(encoder).get_params() == encoder.get_params()
    with pytest.raises(ModelError, match=r"not fitted: type .fit"):
        encoder.predict(stimuli(1))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"backbone": "alexnet", "layers": ["classifier.2"]}, "no square map"),
        ({"alphas": ()}, "must be positive"),
        ({"alphas": (-1.0,)}, "must be positive"),
        ({"sizes": (-1.0,)}, "must be positive"),
        ({"holdout": 1.0}, "holdout is 1.0"),
        ({"device": "gpu"}, "unknown device"),
    ],
)
def test_bad_parameters_are_refused(parameters, message):
    seen = stimuli(12)
    ds = responses(seen, np.random.default_rng(0).standard_normal((12, 2)))
    with pytest.raises(ModelError, match=message):
        FwrfRidgeEncoder(**{"backbone": GABOR, **GRID, **parameters}).fit(seen, ds)


def test_bad_data_are_refused():
    seen = stimuli(12)
    values = np.random.default_rng(0).standard_normal((12, 2))
    ds = responses(seen, values)
    with pytest.raises(ModelError, match="degrees=8.4"):
        FwrfRidgeEncoder(GABOR, **GRID).fit(seen.drop_attrs(), ds)
    with pytest.raises(ModelError, match="32 x 64 pixels"):
        FwrfRidgeEncoder(GABOR, **GRID).fit(seen.isel(y=slice(32)), ds)
    values[3, 1] = np.nan
    with pytest.raises(ModelError, match="NaN or infinite"):
        FwrfRidgeEncoder(GABOR, **GRID).fit(seen, responses(seen, values))
    values[:, 1] = 1
    with pytest.raises(ModelError, match="one response to all training images"):
        FwrfRidgeEncoder(GABOR, **GRID).fit(seen, responses(seen, values))
    with pytest.raises(ModelError, match="among the training and the validation"):
        FwrfRidgeEncoder(GABOR, **GRID).fit(seen, ds, ds.isel(image=slice(3)))
