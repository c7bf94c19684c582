"""convert: labels, laziness, selection, stores, published folders."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import nedx
from nedx.compute import cache
from nedx.conversion.published import import_converter, read_alphas
from nedx.errors import ModelError, SourceError
from tests.conversion.simulated import images, responses
from tests.laziness import computes_at_most
from tests.sources.bdata.files import write_dense


def subjects(sizes=(12, 15, 9), rows=50, seed=0, repeats=2):
    rng = np.random.default_rng(seed)
    latents = rng.standard_normal((rows, 6))
    made = {}
    for n, size in enumerate(sizes, 1):
        values = (latents @ rng.standard_normal((6, size)))[:, None]
        values = values + 0.5 * rng.standard_normal((rows, repeats, size)) + n
        masks = np.stack([np.arange(size) < 5, np.arange(size) >= 5])
        made[f"sub-0{n}"] = responses(
            values,
            images(rows),
            f"sub-0{n}",
            roi=np.array(["V1", "V2"], dtype=object),
            roi_mask=(("roi", "voxel"), masks),
            noise_ceiling=("voxel", np.full(size, 0.5, np.float32)),
        )
    return made


@pytest.fixture(scope="module")
def three():
    return subjects()


@pytest.fixture(scope="module")
def fitted(three):
    tree = xr.DataTree.from_dict(three)
    return nedx.RidgeConverter(alpha=2.0, device="cpu").fit(tree, pairs="all")


@pytest.fixture(scope="module")
def whole(three, fitted):
    return three["sub-01"].ned.convert(fitted, subject=2)["response"].values


def by_hand(ds, converter, source, target):
    weights = converter.model_.weights(source, target)
    x = ds["response"].values.astype(float)
    z = (x - weights["source_mean"].values) / weights["source_deviation"].values
    found = z @ weights["weight"].values + weights["bias"].values
    return found * weights["target_deviation"].values + weights["target_mean"].values


def test_labels_units_and_origin_are_the_target_s(three, fitted):
    with computes_at_most(0):
        out = three["sub-01"].ned.convert(fitted, subject=2)
    nedx.validate(out)
    assert out["response"].dims == ("image", "repetition", "voxel")
    target = three["sub-02"]
    for name in ("voxel", "hemisphere", "roi", "roi_mask"):
        np.testing.assert_array_equal(out[name].values, target[name].values)
    assert "noise_ceiling" not in out.coords
    assert out["image_id"].values.tolist() == images(50)
    assert set(out["partition"].values) == {"train"}
    attrs = out["response"].attrs
    assert attrs["units"] == "1"
    assert attrs["normalization"] == "zscore"
    assert attrs["source"] == "synthetic"
    assert attrs["converted_from"] == "sub-01"
    assert attrs["weights_sha256"] == fitted.model_.weights_sha256
    assert out.attrs["subject"] == "sub-02"
    assert out.attrs["subject_ids"] == ["sub-02"]
    assert out.attrs["preprocessing"][-1] == {
        "step": "convert",
        "source": "sub-01",
        "target": "sub-02",
    }
    expected = by_hand(three["sub-01"], fitted, 1, 2)
    np.testing.assert_allclose(out["response"].values, expected, atol=1e-4)
    onwards = out.ned.convert(fitted, subject="sub-03")
    assert onwards.sizes["voxel"] == 9
    assert onwards.attrs["subject"] == "sub-03"


def test_several_sources_and_targets(three, fitted):
    made = three["sub-01"].ned.convert(fitted)
    assert list(made.children) == ["sub-02", "sub-03"]
    into = xr.DataTree.from_dict(three).ned.convert(fitted, subject="sub-02")
    assert list(into.children) == ["sub-01", "sub-03"]
    np.testing.assert_array_equal(
        into["sub-01"]["response"].values, made["sub-02"]["response"].values
    )
    assert into["sub-03"].attrs["subject"] == "sub-02"
    with pytest.raises(nedx.errors.SelectionError, match="choose one: subject='sub-01'"):
        xr.DataTree.from_dict(three).ned.convert(fitted)


@settings(max_examples=25)
@given(
    chunk=st.integers(1, 50),
    voxels=st.lists(st.integers(0, 14), min_size=1, max_size=6),
    rows=st.lists(st.integers(0, 49), min_size=1, max_size=5),
)
def test_any_chunks_and_any_selection_give_the_same(three, fitted, whole, chunk, voxels, rows):
    some = three["sub-01"].chunk(image=chunk, voxel=5).ned.convert(fitted, subject=2)
    picked = some["response"].isel(image=rows, voxel=voxels)
    np.testing.assert_allclose(picked.values, whole[np.ix_(rows, [0, 1], voxels)], atol=2e-5)


def test_a_roi_reads_its_own_columns_only(three, tmp_path):
    rng = np.random.default_rng(1)
    names = images(40)
    one = responses(rng.standard_normal((40, 8)), names, "sub-01")
    masks = np.arange(600)[None] >= 560
    other = responses(
        rng.standard_normal((40, 600)),
        names,
        "sub-02",
        roi=np.array(["FFA"], dtype=object),
        roi_mask=(("roi", "voxel"), masks),
    )
    fitted = nedx.ProcrustesConverter(device="cpu").fit(one, other)
    place = fitted.to_zarr(tmp_path / "converter.zarr")
    whole = one.ned.convert(fitted)["response"].values
    # Columns of other ROIs lie in chunks of their own: they can be gone.
    for number in (0, 1):
        (tmp_path / f"converter.zarr/pairs/sub-01-to-sub-02/weight/c/0/{number}").unlink()
    cache.models.clear()
    opened = nedx.load_model(place.url)
    out = one.ned.convert(opened)
    before = cache.models.loads
    np.testing.assert_allclose(out.ned.roi("FFA")["response"].values, whole[:, 560:], atol=1e-5)
    assert cache.models.loads > before


def test_a_stored_model_is_the_same(three, fitted, tmp_path):
    place = fitted.to_zarr(tmp_path / "converter.zarr")
    assert nedx.verify(place.url).ok
    with pytest.raises(nedx.errors.StoreExistsError):
        fitted.to_zarr(tmp_path / "converter.zarr")
    opened = nedx.load_model(str(tmp_path / "converter.zarr"))
    assert opened.recipe == fitted.model_.recipe
    assert opened.weights_sha256 == fitted.model_.weights_sha256
    assert opened.known_images.tolist() == images(50)
    ours = three["sub-02"].ned.convert(str(tmp_path / "converter.zarr"), subject="03")
    theirs = three["sub-02"].ned.convert(fitted, subject=3)
    xr.testing.assert_identical(ours.drop_vars("partition"), theirs.drop_vars("partition"))
    assert "sub-01 to sub-02" in repr(opened)
    only = opened.sel(source=2, subject=3)
    only.to_zarr(tmp_path / "one.zarr")
    again = nedx.load_model(str(tmp_path / "one.zarr"))
    assert again.pairs == (("sub-02", "sub-03"),)
    np.testing.assert_array_equal(
        again.weights(2, 3)["weight"], fitted.model_.weights(2, 3)["weight"]
    )
    out = three["sub-01"].ned.convert(fitted, subject=2)
    out.ned.to_zarr(tmp_path / "out.zarr")
    back = nedx.open(str(tmp_path / "out.zarr"))
    np.testing.assert_allclose(back["response"].values, out["response"].values, atol=1e-2)


def test_what_is_fitted_again_is_kept_once(three):
    tree = xr.DataTree.from_dict(three)
    fit = nedx.RidgeConverter(alpha=3.0, device="cpu").fit
    first, again = (fit(tree, pairs=[(1, 2)]).model_ for _ in range(2))
    assert first.ref.location == again.ref.location
    renamed = three["sub-02"].assign_coords(voxel=1000 + np.arange(15, dtype=np.int32))
    other = fit(three["sub-01"], renamed).model_
    # The same weights, of other voxels.
    assert other.weights_sha256 == first.weights_sha256
    assert other.ref.location != first.ref.location
    assert three["sub-01"].ned.convert(other)["voxel"].values[0] == 1000


def test_neuroids_are_found_by_label_whatever_their_order(three, fitted):
    expected = three["sub-01"].ned.convert(fitted, subject=2)["response"].values
    shuffled = three["sub-01"].isel(voxel=np.random.default_rng(0).permutation(12))
    np.testing.assert_allclose(
        shuffled.ned.convert(fitted, subject=2)["response"].values, expected, atol=1e-5
    )


def test_strings_of_any_kind_are_labels(three, tmp_path):
    def made_of(kind):
        made = {}
        for name, ds in three.items():
            ds = ds.drop_indexes("image_id").assign_coords(
                partition=("image", np.repeat(["train", "test"], 25).astype(object))
            )
            labels = ("image_id", "hemisphere", "partition", "roi")
            made[name] = ds.assign_coords({k: ds[k].compute().astype(kind) for k in labels})
        return xr.DataTree.from_dict(made)

    variable, plain = made_of(np.dtypes.StringDType()), made_of(object)
    fitted = [
        nedx.RidgeConverter("whole", alpha=2.0, device="cpu").fit(tree, pairs=[(1, 2)])
        for tree in (variable, plain)
    ]
    assert fitted[0].model_.weights_sha256 == fitted[1].model_.weights_sha256
    fitted[0].to_zarr(tmp_path / "converter.zarr")
    for tree in (variable, plain):
        out = tree["sub-01"].to_dataset().ned.convert(str(tmp_path / "converter.zarr"))
        assert out.sizes["voxel"] == 15
        assert out.ned.roi("V2").sizes["voxel"] == 10


def test_converted_voxels_lie_in_the_target_s_volume(three, fitted, tmp_path):
    one, other, _ = three.values()
    matrix = np.diag([2.0, 2.0, 2.0, 1.0])
    one, other = (
        ds.assign(affine=(("row", "col"), scale * matrix)).assign_attrs(
            volume_shape=[size] * 3, montage=f"montage {size}"
        )
        for ds, scale, size in ((one, 1, 5), (other, 2, 7))
    )
    fitted = nedx.ProcrustesConverter(device="cpu").fit(one, other)
    fitted.to_zarr(tmp_path / "converter.zarr")
    for model in (fitted, str(tmp_path / "converter.zarr")):
        out = one.ned.convert(model)
        np.testing.assert_array_equal(out["affine"].values, 2 * matrix)
        assert out.attrs["volume_shape"] == [7, 7, 7]
        assert out.attrs["montage"] == "montage 7"
    # Of a target that says nothing of it, that of the source is not kept.
    silent = one.ned.convert(nedx.ProcrustesConverter(device="cpu").fit(one, three["sub-02"]))
    assert "affine" not in silent.variables
    assert "volume_shape" not in silent.attrs


def test_no_images_and_images_without_names(three, fitted):
    one = three["sub-01"]
    none = one.isel(image=[]).ned.convert(fitted, subject=2)["response"].compute()
    assert none.shape == (0, 2, 15)
    nameless = one.drop_vars("image_id").ned.convert(fitted, subject=2)
    np.testing.assert_array_equal(
        nameless["response"].values, one.ned.convert(fitted, subject=2)["response"].values
    )
    assert "partition" not in nameless


def test_repeats_are_paired_as_recorded_and_averaged_where_they_differ():
    rng = np.random.default_rng(2)
    names = np.array(images(30), dtype=object)
    x, y = rng.standard_normal((30, 3, 7)), rng.standard_normal((30, 3, 8))
    one = responses(x, names, "sub-01")
    grid = responses(y, names, "sub-02")
    order = rng.permutation(90)
    trials = xr.Dataset(
        {
            "response": (
                ("trial", "voxel"),
                y.reshape(90, 8)[order].astype(np.float32),
                grid["response"].attrs,
            )
        },
        {
            "image_id": ("trial", np.repeat(names, 3)[order]),
            "repetition": ("trial", np.tile(np.arange(3), 30)[order]),
            "voxel": grid["voxel"].values,
        },
        {"modality": "fmri", "subject": "sub-02"},
    )
    by_grid = nedx.ProcrustesConverter(device="cpu").fit(one, grid).model_
    by_trial = nedx.ProcrustesConverter(device="cpu").fit(one, nedx.parse(trials)).model_
    assert by_trial.recipe.pairs[0].n_samples == 90
    np.testing.assert_allclose(
        by_trial.weights(1, 2)["weight"], by_grid.weights(1, 2)["weight"], atol=1e-5
    )
    fewer = nedx.parse(trials.isel(trial=slice(0, 80)))
    kept = nedx.ProcrustesConverter(device="cpu").fit(one, fewer).model_
    assert kept.recipe.pairs[0].n_samples == len(set(fewer["image_id"].values.tolist()))
    shared = sorted(set(fewer["image_id"].values.tolist()))
    means = x.astype(np.float32).mean(1)[[list(names).index(name) for name in shared]]
    np.testing.assert_allclose(kept.weights(1, 2)["source_mean"], means.mean(0), atol=1e-5)


def published(folder, bias=True):
    rng = np.random.default_rng(3)
    parts = {
        "M": rng.standard_normal((9 + bias, 7)),
        "x_mean": rng.standard_normal((1, 9)),
        "x_norm": 1 + rng.random((1, 9)),
        "y_mean": rng.standard_normal((1, 7)),
        "y_norm": 1 + rng.random((1, 7)),
    }
    folder.mkdir()
    for key, value in parts.items():
        name = "transformation" if key == "M" else key
        write_dense(folder / f"{name}.mat", key, value.astype(np.float32))
    return parts


@pytest.mark.parametrize("bias", [True, False])
def test_a_published_folder_converts(tmp_path, bias):
    parts = published(tmp_path / "model", bias)
    with h5py.File(tmp_path / "model/transformation.mat") as file:
        assert file["M"].shape == (7, 9 + bias)
    x = np.random.default_rng(4).standard_normal((20, 9))
    one = responses(x, images(20), "sub-01")
    other = responses(np.zeros((2, 7)), images(2), "sub-02")
    model = import_converter(tmp_path / "model", 1, 2, target_responses=other)
    out = one.ned.convert(model)
    z = (x - parts["x_mean"]) / parts["x_norm"]
    z = np.hstack([z, np.ones((20, 1))]) if bias else z
    expected = z @ parts["M"] * parts["y_norm"] + parts["y_mean"]
    np.testing.assert_allclose(out["response"].values, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(out["voxel"].values, other["voxel"].values)
    model.to_zarr(tmp_path / "model.zarr")
    again = one.ned.convert(str(tmp_path / "model.zarr"))
    np.testing.assert_array_equal(again["response"].values, out["response"].values)
    with pytest.raises(ModelError, match="sub-01 has no 'response'"):
        import_converter(tmp_path / "model", 1, 2, source_responses=one.drop_vars("response"))
    with pytest.raises(SourceError, match="9 voxels, the converter 7"):
        import_converter(tmp_path / "model", 1, 2, target_responses=one)


def test_a_published_table_of_penalties(tmp_path):
    table = tmp_path / "converter_params.csv"
    table.write_text(
        ",Source,Target,Number of samples,Alpha,ROI,Method\n"
        "0,sub-01,sub-02,2400,220,VC,wholeVC\n1,sub-01,sub-02,6000,620,VC,wholeVC\n"
        "2,sub-02,sub-01,2400,300,VC,subareawise\n"
    )
    assert read_alphas(table, 2400) == {("sub-01", "sub-02"): 220.0}
    with pytest.raises(SourceError, match="no penalties of 10 samples"):
        read_alphas(table, 10)
    table.write_text("Source,Target,Number of samples,Alpha,Method\nsub-01,sub-02,many,2,wholeVC\n")
    with pytest.raises(SourceError, match="samples or penalties that are no numbers"):
        read_alphas(table)
