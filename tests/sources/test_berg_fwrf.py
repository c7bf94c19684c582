"""The published fwRF models: from their files to labelled responses."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import nedx
from nedx.compute.cache import models as loaded
from nedx.encoding.fwrf_model import FwrfEncoder
from nedx.errors import CorruptStoreError, ModelError, SelectionError, StimulusError, StoreError
from nedx.sources.berg import open_fwrf
from nedx.sources.berg.layout import BUCKET
from nedx.store.location import Location
from tests.berg.tree import write_fwrf
from tests.laziness import computes_at_most

COUNTS = {"V1": 9, "V2": 6, "lateral": 7}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEDX_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return the folder, and the content of each file by subject, ROI and half."""
    folder = tmp_path_factory.mktemp("berg")
    content = {}
    for subject in (1, 2):
        for roi, count in COUNTS.items():
            for split in (1, 2) if roi == "lateral" else (None,):
                made = write_fwrf(folder, subject, roi, count + subject, split=split)
                content[subject, roi, split] = made
    return folder, content


@pytest.fixture(scope="module")
def folder(written):
    return written[0]


def images(count=5, side=227):
    rng = np.random.default_rng(7)
    pixels = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return nedx.open_images(pixels, image_set="noise")


def predicted(content, subject, roi, pixels):
    """The formulas in torch's own functions, in float64; halves side by side."""
    splits = (1, 2) if roi == "lateral" else (None,)
    best = [content[subject, roi, split]["weights"]["best_params"] for split in splits]
    return np.concatenate([plain(b["enc"], b["fwrfs"][subject], pixels) for b in best], axis=1)


def plain(enc, head, pixels):
    state = {key: torch.from_numpy(np.asarray(value)).double() for key, value in enc.items()}

    def conv(x, name, **how):
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **how).relu()

    def norm(x, name):
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{name}.{key}"] for key in keys), eps=1e-5)

    def step(x, name):
        return conv(norm(x, f"enc.{name}.bn1"), f"enc.{name}.conv1", padding=1)

    x = torch.from_numpy(pixels).double().permute(0, 3, 1, 2) / 255 - state["mu"]
    c1 = F.max_pool2d(conv(x, "pre.conv1.0", stride=4, padding=2), 3, 2)
    c2 = conv(c1, "pre.conv2.0", padding=2)
    c3 = conv(norm(c2, "enc.bn1"), "enc.conv3")
    c4a = step(c3, "conv4a")
    c4b = step(c4a, "conv4b")
    c5a = step(F.max_pool2d(c4b, 3, 2, 1), "conv5a")
    c5b = step(c5a, "conv5b")
    c6a = step(c5b, "conv6a")
    c6b = step(c6a, "conv6b")
    maps = [
        torch.cat([c1, c2], 1),
        torch.cat([c3, c4a[:, :64], c4b[:, :64]], 1),
        torch.cat([c5a[:, :64], c5b[:, :64], c6a[:, :64], c6b], 1),
    ]

    def squash(value):
        return torch.log1p(value.abs()) * torch.tanh(value)

    pooled = []
    for number, each in enumerate(maps):
        fields = torch.from_numpy(head[f"rf{number}"]).double().flatten(1).softmax(1)
        pooled.append(torch.einsum("vs,nfs->nvf", fields, squash(each).flatten(2)))
    features = squash(torch.cat(pooled, 2))
    w, b = (torch.from_numpy(head[name]).double() for name in "wb")
    return ((features * w).sum(2) + b).numpy()


def close(found, expected, tolerance=1e-4):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.fixture(scope="module")
def truth(written):
    pixels = images()["pixels"].values
    return {
        (subject, roi): predicted(written[1], subject, roi, pixels)
        for subject in (1, 2)
        for roi in COUNTS
    }


@pytest.mark.parametrize("roi", COUNTS)
def test_responses_are_those_of_the_formulas(folder, truth, roi):
    model = open_fwrf(folder, subject=1, roi=roi)
    assert isinstance(model, FwrfEncoder)
    with computes_at_most(0):
        out = images().ned.encode(model)
    nedx.validate(out)
    assert out["response"].dims == ("image", "voxel")
    assert out["response"].dtype == np.float32
    close(out["response"].values, truth[1, roi])


def test_several_subjects_and_rois_are_a_tree(folder, truth):
    model = open_fwrf(folder, subject=[1, 2], roi=["V2", "V1", "lateral"])
    tree = images().ned.encode(model)
    nedx.validate(tree)
    for number in (1, 2):
        child = tree[f"sub-0{number}"]
        assert child["roi"].values.tolist() == ["V2", "V1", "lateral"]
        expected = np.concatenate([truth[number, r] for r in ("V2", "V1", "lateral")], axis=1)
        close(child["response"].values, expected)
        close(tree.ned.roi("V1")[f"sub-0{number}"]["response"].values, truth[number, "V1"])
    attrs = child["response"].attrs
    assert attrs["model_id"] == "fmri-nsd-fwrf"
    assert attrs["normalization"] == "zscore"
    assert "fwrf" in attrs["backbone"]
    assert child.attrs["license"] == "CC-BY-NC-4.0"


def test_a_part_is_a_part_of_the_whole(folder, truth):
    model = open_fwrf(folder, subject=1, roi=["V1", "V2"])
    ds = images().ned.encode(model)
    out, whole = ds["response"], ds["response"].values
    again = images().ned.encode(model)["response"].values
    np.testing.assert_array_equal(whole, again)
    some = out[[4, 1], [12, 0, 3]].values
    close(some, whole[[4, 1]][:, [12, 0, 3]], 1e-6)
    close(out[2:3].values, whole[2:3], 1e-6)
    alone = images().ned.encode(model, roi="V2")["response"].values
    close(alone, whole[:, ds["roi_mask"].sel(roi="V2").values], 1e-6)
    close(images().chunk(image=2).ned.encode(model)["response"].values, whole, 1e-6)
    close(images().ned.encode(model, batch_size=1)["response"].values, whole, 1e-6)


def test_voxels_are_where_the_mask_says(folder, written):
    ds = images().ned.encode(open_fwrf(folder, subject=2, roi=["V1", "V2"]))
    for number, roi in enumerate(("V1", "V2")):
        metadata = written[1][2, roi, None]["metadata"]
        mask = metadata["fmri"]["roi_mask_volume"]
        part = ds.ned.roi(roi)
        values = np.random.default_rng(0).standard_normal(mask.shape)
        places = tuple(part[axis].values for axis in "ijk")
        np.testing.assert_array_equal(values[places], values[mask])
        expected = np.flatnonzero(mask) + number * mask.size
        np.testing.assert_array_equal(part["voxel"].values, expected)
        model = metadata["encoding_models"]
        np.testing.assert_allclose(part["encoding_accuracy"] ** 2, model["r2"], rtol=1e-6)
        np.testing.assert_allclose(part["noise_ceiling"], model["noise_ceiling"], rtol=1e-6)
        np.testing.assert_allclose(part["ncsnr"], metadata["fmri"]["ncsnr"], rtol=1e-6)
    assert ds["voxel"].attrs["volume_shape"] == list(mask.shape)
    trusted = ds.ned.trusted(min_accuracy=0.5)
    assert (trusted["encoding_accuracy"] >= 0.5).all()
    assert 0 < trusted.sizes["voxel"] < ds.sizes["voxel"]


def test_images_that_the_subject_was_shown_are_named(folder, written):
    splits = written[1][1, "V1", None]["metadata"]["encoding_models"]
    known = [splits[f"{name}_img_num"][0] for name in ("train", "val", "test")]
    ids = np.array([*(f"nsd:{number:05d}" for number in known), "things:x", "nsd:99999"], object)
    ds = nedx.open_images(images()["pixels"].values, image_ids=ids.tolist())
    out = ds.ned.encode(open_fwrf(folder, subject=1, roi="V1"))
    assert out["partition"].values.tolist() == ["train", "val", "test", "unseen", "unseen"]


def test_what_is_left_out_is_not_loaded(folder, monkeypatch):
    model = open_fwrf(folder, subject=1, roi=["V1", "V2"])
    loaded.clear()
    before = loaded.loads
    images(2).ned.encode(model)["response"][:, 3:5].compute()
    # The arrays of two stores' groups at most, one trunk and one head.
    kinds = [type(part).__name__ for _, _, part in list(loaded._held)[-(loaded.loads - before) :]]
    assert sorted(kinds) == ["Arrays", "Arrays", "HeadPart", "TrunkPart"]
    head = next(value for value in loaded._held.values() if type(value).__name__ == "FwrfHead")
    assert len(head) == 2


def test_equal_trunks_run_once(tmp_path, monkeypatch):
    write_fwrf(tmp_path, 1, "lateral", 8, split=1)
    write_fwrf(tmp_path, 1, "lateral", 8, split=2)
    first, second = sorted(tmp_path.rglob("*split-*.pt"))
    halves = [torch.load(path, weights_only=False) for path in (first, second)]
    halves[1]["best_params"]["enc"] = halves[0]["best_params"]["enc"]
    torch.save(halves[1], second)
    model = open_fwrf(tmp_path, subject=1, roi="lateral")
    runs = []
    walk = nedx.backbones.gnet.GNet.walk
    monkeypatch.setattr(
        nedx.backbones.gnet.GNet, "walk", lambda *given: runs.append(1) or walk(*given)
    )
    images(3).ned.encode(model)["response"].compute()
    assert len(runs) == 1


def test_a_model_is_written_and_opened_again(folder, truth, tmp_path):
    model = open_fwrf(folder, roi=["V2", "lateral"], subject=[1, 2]).sel(subject=2)
    some = model.isel({"voxel": np.array([14, 2, 0, 10])})
    for name, one in (("model", model), ("some", some)):
        one.to_zarr(tmp_path / name)
    again = nedx.load_model(tmp_path / "model", roi="lateral")
    close(images().ned.encode(again)["response"].values, truth[2, "lateral"])
    whole = np.concatenate([truth[2, "V2"], truth[2, "lateral"]], axis=1)
    few = images().ned.encode(tmp_path / "some")["response"].values
    close(few, whole[:, [14, 2, 0, 10]])
    place = nedx.synthesize(images(), model, tmp_path / "out.zarr", progress=False)
    close(nedx.open(place.url)["response"].values, whole, 2.0**-10)
    assert "2 voxels" not in repr(model)
    assert "16" not in repr(some)
    assert "sub-02" in model._repr_html_()


def test_it_is_kept_and_not_read_again(folder, tmp_path):
    moved = tmp_path / "berg"
    shutil.copytree(folder, moved)
    open_fwrf(moved, subject=1, roi="V1")
    kept = list((tmp_path / "cache" / "berg" / "fmri-nsd-fwrf").glob("*.zarr"))
    assert [path.name[:10] for path in kept] == ["sub-01-V1-"]
    stamp = (kept[0] / "zarr.json").stat().st_mtime_ns
    open_fwrf(moved, subject=1, roi="V1")
    assert (kept[0] / "zarr.json").stat().st_mtime_ns == stamp


def test_a_bucket_that_does_not_answer():
    options = {"endpoint_url": "http://127.0.0.1:9"}
    nowhere = Location.of(BUCKET, anonymous=True, storage_options=options)
    with pytest.raises(StoreError, match="brain-encoding-response-generator"):
        open_fwrf(nowhere, subject=1, roi="V1")


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"subject": 9}, "no subject 'sub-09'.*did you mean"),
        ({"roi": "V1v"}, "has no ROI 'V1v'; did you mean 'V1'"),
        ({"roi": []}, "the selection is empty"),
    ],
)
def test_what_the_model_does_not_have(folder, asked, match):
    with pytest.raises(SelectionError, match=match):
        open_fwrf(folder, **asked)


def test_files_that_are_not_there(folder, tmp_path):
    with pytest.raises(StoreError, match=r"sub-03, V1 are not all at .*roi-V1_split-2\.pt"):
        open_fwrf(folder, subject=3, roi="V1")
    moved = tmp_path / "berg"
    shutil.copytree(folder, moved)
    next(moved.rglob("weights_sub-01_roi-lateral_split-2.pt")).unlink()
    with pytest.raises(StoreError, match="sub-01, lateral are not all"):
        open_fwrf(moved, subject=1, roi="lateral")
    next(moved.rglob("metadata_sub-01_roi-V1.npy")).unlink()
    with pytest.raises(StoreError, match=r"metadata_sub-01_roi-V1\.npy"):
        open_fwrf(moved, subject=1, roi="V1")


def damaged(tmp_path, change, name="weights_sub-01_roi-V1.pt"):
    write_fwrf(tmp_path, 1, "V1", 5)
    path = next(tmp_path.rglob(name))
    change(path)
    with pytest.raises((CorruptStoreError, ModelError)) as raised:
        open_fwrf(tmp_path, subject=1, roi="V1")
    assert not list((tmp_path / "cache").rglob("*.zarr*"))
    return str(raised.value)


def test_damaged_and_foreign_files(tmp_path):
    def cut(path):
        path.write_bytes(path.read_bytes()[:-4000])

    def foreign(path):
        content = torch.load(path, weights_only=False)
        torch.save({**content, "callback": shutil.rmtree}, path)

    def without(path):
        content = torch.load(path, weights_only=False)
        del content["best_params"]
        torch.save(content, path)

    def narrow(path):
        content = torch.load(path, weights_only=False)
        head = content["best_params"]["fwrfs"][1]
        head["w"] = head["w"][:, :700]
        torch.save(content, path)

    def fewer(path):
        content = torch.load(path, weights_only=False)
        head = content["best_params"]["fwrfs"][1]
        content["best_params"]["fwrfs"][1] = {key: value[:4] for key, value in head.items()}
        torch.save(content, path)

    assert "fetch" in damaged(tmp_path, cut).lower()
    assert "rmtree" in damaged(tmp_path, foreign)
    assert "'best_params'" in damaged(tmp_path, without)
    assert "w is (5, 700), expected (5, 768)" in damaged(tmp_path, narrow)
    assert "predicts 4 voxels, the metadata name 5" in damaged(tmp_path, fewer)


def test_images_that_do_not_fit(folder):
    model = open_fwrf(folder, subject=1, roi="V1")
    wide = images().isel(y=slice(100))
    with pytest.raises(StimulusError, match="square"):
        wide.ned.encode(model)
    with pytest.raises(StimulusError, match="takes 'pixels'"):
        images().drop_vars("pixels").ned.encode(model)
    with pytest.raises(ModelError, match="no components to keep"):
        images().ned.encode(model, keep_components=True)
    with pytest.raises(SelectionError):
        images().ned.encode(model, channel="Oz")
