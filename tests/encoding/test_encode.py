"""encode agrees with scikit-learn, computes nothing early, and only what is asked for."""

from __future__ import annotations

import threading

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import nedx.encoding.kernels as kernels
from nedx.compute.cache import models
from nedx.compute.planned import PlannedArray
from nedx.encoding import EncoderRecipe, LinearEncoder, encode, encode_features
from nedx.errors import ModelError, SelectionError, StimulusError
from tests.encoding.truth import GABOR, encoder, features, fit, random_pixels, stimuli
from tests.laziness import computes_at_most

SUBJECTS = np.array(["sub-01", "sub-02", "sub-03"], dtype=object)
TARGETS = 40


@pytest.fixture(scope="module")
def fits():
    return [fit(TARGETS, seed) for seed in range(3)]


@pytest.fixture(scope="module")
def mask():
    return np.random.default_rng(0).random((3, 2, TARGETS)) < 0.2


@pytest.fixture(scope="module", params=["own", "shared"])
def case(request, fits, mask):
    """A model of three subjects, and the true responses to the twenty test images."""
    own = request.param == "own"
    if not own:
        # The readouts of all on the first one's projection.
        fits = [type(f)(fits[0].scaler, fits[0].pca, f.regression) for f in fits]
    coords = {
        "subject": SUBJECTS,
        "vertex": np.arange(TARGETS),
        "roi": np.array(["V1", "V2"], dtype=object),
        "roi_mask": (("subject", "roi", "vertex"), mask),
        "encoding_accuracy": (("subject", "vertex"), np.full((3, TARGETS), 0.5, np.float32)),
    }
    model = encoder(fits, own_projection=own, dims=("subject", "vertex"), coords=coords)
    return model, np.stack([f.predict(random_pixels(20)) for f in fits])


def close(found, expected, tolerance=1e-5):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


class CountedImages:
    """Counts the images that reach the backbone, and the passes."""

    def __init__(self, monkeypatch):
        self.images = 0
        original = kernels.preprocessed

        def counted(read, count, *args):
            self.images += count
            return original(read, count, *args)

        monkeypatch.setattr(kernels, "preprocessed", counted)


@pytest.fixture
def counted(monkeypatch):
    return CountedImages(monkeypatch)


def test_agrees_with_scikit_learn(case):
    model, truth = case
    out = encode(stimuli(), model)
    assert out["response"].dims == ("subject", "image", "vertex")
    close(out["response"].values, truth)


def test_nothing_is_loaded_or_computed_early(case):
    model, _ = case
    _ = model.ref
    models.clear()
    loads = models.loads
    with computes_at_most(0):
        out = encode(stimuli(), model, subject=1, roi="V1", keep_components=True)
        out.isel(image=slice(3, 9))
    assert models.loads == loads
    assert models.nbytes == 0


def test_graph_carries_references_not_weights(case):
    import cloudpickle

    model, _ = case
    response = encode(stimuli(chunk=None).isel(image=slice(2)), model)["response"].data
    weights = sum(w.nbytes for w in model.weights.data_vars.values())
    task = next(
        t
        for t in dask.core.flatten([[response.dask[k]] for k in response.dask])
        if "response" in repr(t)
    )
    assert len(cloudpickle.dumps(task)) < min(weights, 20_000)


def test_selection_in_the_call(case, mask):
    model, truth = case
    out = encode(stimuli(), model, subject=["sub-03", 1], roi="V2")
    where = np.flatnonzero(mask[[0, 2], 1].any(axis=0))
    assert list(out["subject"].values) == ["sub-03", "sub-01"]
    np.testing.assert_array_equal(out["vertex"], where)
    assert list(out["roi"].values) == ["V2"]
    close(out["response"].values, truth[[2, 0]][:, :, where])


def test_selection_after_the_call_saves_the_work(case, counted):
    model, truth = case
    out = encode(stimuli(), model)
    part = out["response"].isel(subject=[1], image=[17, 2, 5], vertex=[30, 3])
    assert isinstance(part.variable._data, PlannedArray)
    models.clear()
    close(part.values, truth[[1]][:, [17, 2, 5]][:, :, [30, 3]])
    assert counted.images == 3
    readouts = [v for (_, _, p), v in models._held.items() if type(p).__name__ == "Readout"]
    assert [tuple(r.weights.shape) for r in readouts] == [(2, 12)]


def test_one_pass_for_all_subjects_and_target_blocks(case, counted, monkeypatch):
    import nedx.encoding.plans as plans

    model, truth = case
    # Blocks of responses of 7 vertices, so that many depend on one block of components.
    monkeypatch.setattr(plans, "BLOCK_BYTES", 4 * 12 * 7)
    out = encode(stimuli(), model)
    assert out["response"].data.numblocks == (3, 4, 6)
    close(out["response"].compute(scheduler="threads").values, truth)
    assert counted.images == 20


def test_results_computed_together_share_the_pass(case, counted):
    model, truth = case
    if "subject" in model.weights["projection"].dims:
        pytest.skip("a subject alone needs another projection")
    out = encode(stimuli(), model)
    first, second = dask.compute(
        out["response"].isel(subject=[0]), out["response"].isel(subject=[2])
    )
    close(first.values, truth[[0]])
    close(second.values, truth[[2]])
    assert counted.images == 20


@given(data=st.data())
@settings(max_examples=25)
def test_any_chunking_gives_the_same(case, data):
    model, _ = case
    ds = stimuli(chunk=None)
    whole = encode(ds, model)["response"].values
    cuts = sorted(data.draw(st.sets(st.integers(1, 19), max_size=6)))
    lengths = tuple(int(n) for n in np.diff([0, *cuts, 20]))
    again = encode(ds.chunk(image=lengths, y=40), model)["response"].values
    close(again, whole, 1e-6)


@given(data=st.data())
@settings(max_examples=25)
def test_any_indexing_agrees_with_numpy(case, data):
    model, truth = case
    response = encode(stimuli(), model)["response"]
    expected = truth
    for axis, dim in enumerate(response.dims):
        size = response.sizes[dim]
        key = data.draw(
            st.one_of(
                st.slices(size).filter(lambda s, n=size: len(range(n)[s]) > 0),
                st.lists(st.integers(-size, size - 1), min_size=1, max_size=4),
            )
        )
        response = response.isel({dim: key})
        expected = expected[(slice(None),) * axis + (key,)]
    close(response.values, expected)


def test_integer_and_boolean_indexing(case):
    model, truth = case
    response = encode(stimuli(), model)["response"]
    close(response.isel(subject=1, image=4).values, truth[1, 4])
    chosen = np.arange(TARGETS) % 3 == 0
    close(response[:, :, chosen].values, truth[:, :, chosen])


def test_components_are_kept_and_reused(case, counted):
    model, truth = case
    kept = (
        encode(stimuli(), model, keep_components=True).drop_vars(["response", "pixels"]).compute()
    )
    counted.images = 0
    again = encode(kept, model, subject=[3, 1])
    close(again["response"].values, truth[[2, 0]])
    assert counted.images == 0


def test_components_of_another_model_are_refused(case, fits):
    model, _ = case
    kept = encode(stimuli(), model, keep_components=True).drop_vars("response")
    other = encoder([fit(5, 9)], own_projection=False, dims=("unit",), coords={})
    with pytest.raises(ModelError, match="made by another model"):
        encode(kept, other)
    with pytest.raises(ModelError, match="precision"):
        encode(kept, model, precision="bf16")


def test_features_stand_in_for_pixels(case, counted):
    model, truth = case
    ds = encode_features(stimuli(), GABOR).drop_vars("pixels").compute()
    np.testing.assert_allclose(ds["features"], features(random_pixels(20)), rtol=1e-5, atol=1e-5)
    assert list(ds["layer"].values[[0, -1]]) == ["energy_0", "energy_2"]
    counted.images = 0
    close(encode(ds, model)["response"].values, truth)
    assert counted.images == 0
    other = GABOR.model_copy(update={"pooling": "mean"}).model_dump_json()
    foreign = ds.assign(features=ds["features"].assign_attrs(backbone=other))
    with pytest.raises(ModelError, match="another backbone"):
        encode(foreign, model)


def test_projected_features():
    projection = np.random.default_rng(0).normal(size=(96, 5)).astype(np.float32)
    ds = encode_features(stimuli(), GABOR, projection=projection)
    expected = features(random_pixels(20)) @ projection
    close(ds["features"].values, expected)
    close(ds["features"].isel(image=[3, 1], feature=[4, 0]).values, expected[[3, 1]][:, [4, 0]])


def test_measured_response_gets_a_prediction_beside_it(case):
    model, truth = case
    ds = stimuli().assign_coords(subject=SUBJECTS[[1, 0]], vertex=[9, 2, 30])
    ds["response"] = ("subject", "image", "vertex"), np.zeros((2, 20, 3), np.float32)
    out = encode(ds, model)
    close(out["response_predicted"].values, truth[[1, 0]][:, :, [9, 2, 30]])
    assert (out["response"] == 0).all()
    chosen = encode(ds, model, subject="sub-01")
    with pytest.raises(SelectionError, match="lacks"):
        encode(ds, model, subject=3)
    with pytest.raises(SelectionError, match="lacks 1 of 3"):
        encode(ds.assign_coords(vertex=[9, 2, 99]), model)
    assert chosen is not None


def test_times_and_channels():
    fits = [fit(12, 5)]
    times = np.array([0.0, 0.1, 0.2, 0.3])
    coords = {
        "channel": np.array(["Oz", "Pz", "Cz"], dtype=object),
        "time": ("time", times, {"units": "s"}),
    }
    model = encoder(
        fits,
        own_projection=False,
        dims=("channel", "time"),
        coords=coords,
        modality="eeg",
        units="uV",
    )
    truth = fits[0].predict(random_pixels(20)).reshape(20, 3, 4)
    out = encode(stimuli(), model, channel=["Cz", "Oz"], time=(0.1, 0.2))
    assert out["response"].dims == ("image", "channel", "time")
    assert out["response"].attrs["units"] == "uV"
    close(out["response"].values, truth[:, [2, 0]][:, :, 1:3])


def test_provenance_and_labels_travel(case):
    model, _ = case
    out = encode(stimuli(), model, batch_size=4)
    attrs = out["response"].attrs
    assert attrs["source"] == "synthetic"
    assert attrs["model_id"] == "test"
    assert attrs["batch_size"] == 4
    assert len(attrs["weights_sha256"]) == 64
    assert '"policy": "raw01"' in attrs["image_preprocessing"]
    assert {"torch_version", "code_version", "compute_dtype", "device_kind", "units"} <= set(attrs)
    assert out["encoding_accuracy"].dims == ("subject", "vertex")
    assert not [name for name in out.variables if str(name).startswith("nedx_")]


def test_bf16_is_close_and_recorded(case):
    model, truth = case
    ds = encode_features(stimuli(), GABOR).drop_vars("pixels")
    ds["features"].attrs.pop("backbone")
    out = encode(ds, model, precision="bf16")
    assert out["response"].attrs["compute_dtype"] == "bf16"
    found = out["response"].values
    for s in range(3):
        assert np.corrcoef(found[s].ravel(), truth[s].ravel())[0, 1] > 0.999


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"subject": 4}, "sub-04"),
        ({"roi": "V3"}, "V3"),
        ({"channel": "Oz"}, "Oz"),
        ({"time": 0.1}, "time"),
    ],
)
def test_unknown_names(case, arguments, match):
    model, _ = case
    with computes_at_most(0), pytest.raises(SelectionError, match=match):
        encode(stimuli(), model, **arguments)


def test_bad_images_are_refused_before_any_work(case):
    model, _ = case
    ds = stimuli()
    with computes_at_most(0):
        with pytest.raises(StimulusError, match="float32"):
            encode(ds.assign(pixels=ds["pixels"].astype("float32")), model)
        with pytest.raises(StimulusError, match="64 x 64"):
            encode(ds.isel(y=slice(32)), model)
        with pytest.raises(StimulusError, match="nothing to encode"):
            encode(ds.drop_vars("pixels"), model)
        with pytest.raises(ModelError, match="unknown device"):
            encode(ds, model, device="gpu")
        with pytest.raises(ModelError, match="precision"):
            encode(ds, model, precision="int8")


def test_features_that_are_not_finite_name_the_images(case):
    model, _ = case
    ds = encode_features(stimuli(), GABOR).drop_vars("pixels").compute()
    ds["features"][7, 3] = np.nan
    with pytest.raises(ModelError, match="test:007"):
        encode(ds, model)["response"].compute()


def test_threads_load_once(case):
    model, _ = case
    _ = model.ref
    response = encode(stimuli(chunk=1), model)["response"]
    models.clear()
    before = models.loads
    response.compute(scheduler="threads", num_workers=8)
    # Backbone, array handles, projection, and a readout for each subject.
    assert models.loads - before == 6
    assert threading.active_count() < 50


def test_partition_says_what_was_trained_on():
    f = fit(5, 3)
    model = encoder(
        [f],
        own_projection=False,
        dims=("unit",),
        coords={
            "known_image": np.array(["test:001", "test:002"], dtype=object),
            "known_partition": ("known_image", np.array(["train", "test"], dtype=object)),
        },
    )
    out = encode(stimuli(), model)
    assert out["partition"].values.tolist().count("train") == 1
    assert out["partition"].values[:4].tolist() == ["unseen", "train", "test", "unseen"]
    assert "known_image" not in out.dims


def test_ragged_subjects(fits):
    shared = encoder([fits[0]], own_projection=False, dims=("voxel",), coords={})
    root = shared.weights[["projection", "projection_offset"]]
    children = {}
    truth = {}
    for i, count in enumerate((5, 8)):
        f = type(fits[0])(fits[0].scaler, fits[0].pca, fits[i].regression)
        weights = shared.weights.isel(voxel=slice(count))
        children[f"sub-0{i + 1}"] = (
            weights[["readout", "intercept"]]
            .assign(
                readout=(("voxel", "component"), f.regression.coef_[:count]),
                intercept=("voxel", f.regression.intercept_[:count]),
            )
            .assign_coords(
                voxel=np.arange(count),
                roi=np.array(["V1"], dtype=object),
                roi_mask=(("roi", "voxel"), np.arange(count)[None] < 3),
            )
        )
        truth[f"sub-0{i + 1}"] = f.predict(random_pixels(20))[:, :count]
    tree = xr.DataTree.from_dict({"/": root, **{f"/{k}": v for k, v in children.items()}})
    model = LinearEncoder(tree, EncoderRecipe(backbone=GABOR, model_id="ragged"))
    out = encode(stimuli(), model)
    assert isinstance(out, xr.DataTree)
    for name, expected in truth.items():
        close(out[name]["response"].values, expected)
        assert out[name]["image_id"].size == 20
    one = encode(stimuli(), model, subject=2, roi="V1")
    assert isinstance(one, xr.Dataset)
    close(one["response"].values, truth["sub-02"][:, :3])
    with pytest.raises(SelectionError, match="sub-03"):
        encode(stimuli(), model, subject=3)
    measured = xr.DataTree.from_dict(
        {
            f"/{name}": stimuli()
            .assign(response=(("image", "voxel"), np.zeros((20, ds.sizes["voxel"]), np.float32)))
            .assign_coords(voxel=ds["voxel"].values)
            for name, ds in children.items()
        }
    )
    beside = encode(measured, model)
    close(beside["sub-02"]["response_predicted"].values, truth["sub-02"])


def test_ragged_subjects_with_projections_of_their_own(fits, counted):
    singles = [
        encoder([f], own_projection=False, dims=("voxel",), coords={"voxel": np.arange(TARGETS)})
        for f in fits
    ]
    tree = xr.DataTree.from_dict(
        {
            f"/sub-0{i + 1}": single.weights.isel(voxel=slice(3 + i))
            for i, single in enumerate(singles)
        }
    )
    model = LinearEncoder(tree, EncoderRecipe(backbone=GABOR, model_id="ragged"))
    out = encode(stimuli(), model, subject=[1, 3]).compute()
    for i in (0, 2):
        expected = fits[i].predict(random_pixels(20))[:, : 3 + i]
        close(out[f"sub-0{i + 1}"]["response"].values, expected)
    assert counted.images == 20
