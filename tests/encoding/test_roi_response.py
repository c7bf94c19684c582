"""roi_response: the means of a plain loop, in one pass, for grids, single subjects and trees."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

import nedx
from nedx.encoding.roi_response import roi_response
from nedx.errors import SelectionError
from tests.encoding.truth import encoder, fit, random_pixels, stimuli
from tests.laziness import computes_at_most

IMAGES, VERTICES = 30, 50
ROIS = ["V1", "V2", "none"]
SUBJECTS = ["sub-01", "sub-03"]


def _text(values):
    return np.array(values, dtype=object)


def _values(seed=0, shape=(2, IMAGES, VERTICES)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _mask():
    mask = np.random.default_rng(1).random((2, 3, VERTICES)) < 0.3
    mask[:, 2] = False
    mask[1, 1] = False
    return mask


def grid(values, mask, chunks=(1, 7, 11)):
    coords = {
        "image_id": ("image", _text([f"t:{i}" for i in range(IMAGES)])),
        "subject": _text(SUBJECTS),
        "vertex": np.arange(VERTICES, dtype=np.int32),
        "hemisphere": ("vertex", _text(["L"] * 25 + ["R"] * 25)),
        "roi": _text(ROIS),
        "roi_group": ("roi", _text(["prf", "prf", "other"])),
        "roi_mask": (("subject", "roi", "vertex"), mask),
        "partition": (("subject", "image"), np.full((2, IMAGES), "test", object)),
        "encoding_accuracy": (("subject", "vertex"), np.tanh(_values(2, (2, VERTICES)))),
        "noise_ceiling": (("subject", "vertex"), np.abs(np.tanh(_values(3, (2, VERTICES))))),
    }
    attrs = {"units": "1", "normalization": "zscore", "normalization_scope": "session"}
    data = da.from_array(values, chunks=chunks)
    response = (("subject", "image", "vertex"), data, {**attrs, "source": "synthetic"})
    ds = xr.Dataset({"response": response}, coords, {"modality": "fmri", "model_id": "m"})
    return nedx.parse(ds)


def truth(values, mask):
    """Return means by a plain loop, (image, subject, roi)."""
    out = np.full((values.shape[1], len(values), mask.shape[1]), np.nan)
    for s in range(len(values)):
        for r in range(mask.shape[1]):
            if mask[s, r].any():
                out[:, s, r] = values[s][:, mask[s, r]].astype(np.float64).mean(axis=1)
    return out


@pytest.mark.parametrize("chunks", [(1, 7, 11), (2, 30, 50), (2, 4, 50)])
def test_means_are_those_of_a_plain_loop(chunks):
    values, mask = _values(), _mask()
    with computes_at_most(0):
        found = grid(values, mask, chunks).ned.roi_response()
    assert found["roi_response"].dims == ("image", "subject", "roi")
    assert found["roi_response"].dtype == np.float32
    np.testing.assert_allclose(found["roi_response"], truth(values, mask), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found["n_neuroids"].values, mask.sum(-1))
    assert np.isnan(found["roi_response"].sel(subject="sub-03", roi="V2")).all()
    assert found.sel(image_id="t:4").sizes == {"subject": 2, "roi": 3}
    assert found["roi_group"].values.tolist() == ["prf", "prf", "other"]
    assert found["partition"].dims == ("subject", "image")
    assert "vertex" not in found.dims
    assert found["roi_response"].attrs["units"] == "1"
    assert found["roi_response"].attrs["source"] == "synthetic"
    assert found.attrs["model_id"] == "m"


def test_what_is_known_of_neuroids_is_averaged_without_what_is_nan():
    mask = _mask()
    ds = grid(_values(), mask).load()
    accuracy = ds["encoding_accuracy"].values
    first = np.flatnonzero(mask[0, 0])[0]
    accuracy[0, first] = np.nan
    found = roi_response(ds, ["V1"])
    for s in range(2):
        expected = np.nanmean(accuracy[s, mask[s, 0]])
        np.testing.assert_allclose(found["mean_encoding_accuracy"][s, 0], expected, rtol=1e-5)
    expected = ds["noise_ceiling"].values[1, mask[1, 0]].mean()
    np.testing.assert_allclose(found["mean_noise_ceiling"][1, 0], expected, rtol=1e-5)
    assert "mean" in found["mean_noise_ceiling"].attrs["long_name"]


def test_nan_reaches_only_the_rois_it_belongs_to():
    values, mask = _values(), _mask()
    bad = np.flatnonzero(mask[0, 0] & ~mask[0, 1])[0]
    values[0, 5, bad] = np.nan
    with np.errstate(invalid="ignore"):
        found = roi_response(grid(values, mask))["roi_response"].values
    np.testing.assert_allclose(found, truth(values, mask), rtol=0, atol=1e-6)
    assert np.isnan(found[5, 0, 0])
    assert np.isfinite(found[5, 0, 1])


def test_each_block_is_read_once_and_others_not_at_all():
    mask = np.zeros((2, 3, VERTICES), bool)
    mask[:, 0, :15], mask[:, 1, 5:20] = True, True
    mask[:, 2, 40:] = True
    values, read = _values(), []

    def block(block_info=None):
        where = block_info[None]["array-location"]
        read.append(tuple(map(tuple, where)))
        return values[tuple(slice(*w) for w in where)]

    ds = grid(values, mask)
    lazy = da.map_blocks(
        block, chunks=((1, 1), (10,) * 3, (10,) * 5), dtype=np.float32, meta=values[:0, :0, :0]
    )
    ds["response"] = (ds["response"].dims, lazy, ds["response"].attrs)
    with dask.config.set(scheduler="synchronous"):
        whole = roi_response(ds).compute()
        assert len(read) == len(set(read)) == 2 * 3 * 3
        read.clear()
        one = roi_response(ds, ["V2", "V1"]).isel(image=[3]).compute()
        assert len(read) == len(set(read)) == 2 * 1 * 2
    np.testing.assert_allclose(whole["roi_response"], truth(values, mask), rtol=0, atol=1e-6)
    assert one["roi"].values.tolist() == ["V2", "V1"]
    expected = truth(values, mask)[[3]][..., [1, 0]]
    np.testing.assert_allclose(one["roi_response"], expected, rtol=0, atol=1e-6)


def test_predictions_of_a_model_are_averaged():
    fits = [fit(40, seed) for seed in range(2)]
    mask = np.random.default_rng(0).random((2, 2, 40)) < 0.3
    coords = {
        "subject": _text(SUBJECTS),
        "vertex": np.arange(40),
        "roi": _text(ROIS[:2]),
        "roi_mask": (("subject", "roi", "vertex"), mask),
    }
    model = encoder(fits, own_projection=True, dims=("subject", "vertex"), coords=coords)
    with computes_at_most(0):
        found = stimuli(8).ned.encode(model).ned.roi_response("V2")
    expected = truth(np.stack([f.predict(random_pixels(8)) for f in fits]), mask)[..., [1]]
    tolerance = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(found["roi_response"], expected, rtol=0, atol=tolerance)
    assert "pixels" not in found
    assert found["roi_response"].attrs["weights_sha256"]


def test_one_subject_and_further_dimensions():
    values, mask = _values(4, (IMAGES, VERTICES, 6)), _mask()[0, :2]
    ds = xr.Dataset(
        {"response": (("image", "unit", "time"), values, {"units": "Hz", "source": "measured"})},
        {
            "image_id": ("image", _text([f"t:{i}" for i in range(IMAGES)])),
            "unit": np.arange(VERTICES, dtype=np.int32),
            "time": ("time", np.arange(6) / 10, {"units": "s"}),
            "roi": _text(ROIS[:2]),
            "roi_mask": (("roi", "unit"), mask),
        },
        {"modality": "ephys", "subject_ids": ["monkeyF"]},
    )
    found = roi_response(nedx.parse(ds))
    assert found["roi_response"].dims == ("image", "subject", "roi", "time")
    assert found["subject"].values.tolist() == ["sub-monkeyF"]
    expected = np.stack([values[:, m].mean(axis=1) for m in mask], axis=1)[:, None]
    np.testing.assert_allclose(found["roi_response"], expected, rtol=0, atol=1e-6)
    del ds.attrs["subject_ids"]
    with pytest.raises(SelectionError, match="whose responses"):
        roi_response(ds)


def tree(images=(IMAGES, IMAGES)):
    """Two subjects with 20 and 35 voxels; V1 is both's, V2 the first's, V4 the second's."""
    nodes, values = {}, {}
    for s, (name, count, rois) in enumerate([("sub-01", 20, "12"), ("sub-02", 35, "14")]):
        values[name] = _values(s, (images[s], count))
        mask = np.random.default_rng(s).random((2, count)) < 0.5
        attrs = {"units": "percent", "source": "measured"}
        lazy = da.from_array(values[name], chunks=(8, 9))
        nodes[name] = xr.Dataset(
            {"response": (("image", "voxel"), lazy, attrs)},
            {
                "image_id": ("image", _text([f"t:{i}" for i in range(images[s])])),
                "voxel": np.arange(count, dtype=np.int32),
                "roi": _text([f"V{r}" for r in rois]),
                "roi_mask": (("roi", "voxel"), mask),
                "partition": ("image", _text(["train" if s else "test"] * images[s])),
            },
            {"modality": "fmri"},
        )
    top = xr.Dataset(attrs={"modality": "fmri", "dataset": "nsd"})
    return nedx.parse(xr.DataTree.from_dict({"/": top, **nodes})), values


def test_subjects_with_their_own_voxels_stand_side_by_side():
    data, values = tree()
    with computes_at_most(0):
        found = data.ned.roi_response()
    assert found["roi_response"].dims == ("image", "subject", "roi")
    assert found["roi"].values.tolist() == ["V1", "V2", "V4"]
    for name in values:
        own = data[name].to_dataset()
        for roi in ("V1", "V2", "V4"):
            got = found["roi_response"].sel(subject=name, roi=roi).values
            if roi not in own["roi"].values:
                assert np.isnan(got).all()
                assert int(found["n_neuroids"].sel(subject=name, roi=roi)) == 0
                continue
            mask = own["roi_mask"].sel(roi=roi).values
            expected = values[name][:, mask].mean(axis=1)
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
            assert int(found["n_neuroids"].sel(subject=name, roi=roi)) == mask.sum()
    assert found["n_neuroids"].dtype == np.int32
    partition = found["partition"].transpose("subject", "image").values
    assert partition[:, 0].tolist() == ["test", "train"]
    assert found.attrs["dataset"] == "nsd"
    only = roi_response(data, "V4")
    assert only["roi"].values.tolist() == ["V4"]
    assert only["subject"].values.tolist() == ["sub-02"]


def test_what_cannot_be_averaged_is_said():
    data, _ = tree(images=(IMAGES, 12))
    with pytest.raises(SelectionError, match="same images"):
        roi_response(data)
    with pytest.raises(SelectionError, match="V9"):
        roi_response(tree()[0], "V9")
    ds = grid(_values(), _mask())
    with pytest.raises(SelectionError, match="V3"):
        roi_response(ds, "V3")
    with pytest.raises(SelectionError, match="roi_mask"):
        roi_response(ds.drop_vars(["roi_mask", "roi"]))
    with pytest.raises(SelectionError, match="no responses"):
        roi_response(ds.drop_vars("response"))


def test_a_store_of_means_opens_again_and_is_small(tmp_path):
    values, mask = _values(), _mask()
    expected = truth(values, mask)
    roi_response(grid(values, mask)).ned.to_zarr(tmp_path / "rois.zarr", keep_bits=None)
    assert nedx.verify(tmp_path / "rois.zarr").ok
    found = nedx.open(tmp_path / "rois.zarr")
    np.testing.assert_allclose(found["roi_response"], expected, rtol=0, atol=1e-6)
    assert found.sel(image_id="t:7")["roi_response"].dims == ("subject", "roi")
    np.testing.assert_array_equal(found["n_neuroids"].values, mask.sum(-1))


def test_whole_sets_are_stored_in_small_chunks():
    from nedx.store.layout import plan_dataset

    lazy = da.zeros((73_000, 8, 24), chunks=(1000, 8, 24), dtype=np.float32)
    layout = plan_dataset(xr.Dataset({"roi_response": (("image", "subject", "roi"), lazy)}))
    chunk = layout.arrays["roi_response"].chunks
    assert 4 * np.prod(chunk) < 2e6
    assert layout.arrays["roi_response"].objects(lazy.shape) <= 2000
