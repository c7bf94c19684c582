"""Trees of feature files in every published layout, against the arrays that were written."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from nedx.errors import SelectionError, SourceError
from nedx.sources.bdata.features import open_features
from tests.laziness import computes_at_most
from tests.sources.bdata.files import write_dense

SHAPES = {"conv1": (4, 6, 5), "conv2": (8, 3, 3), "fc6": (16,)}
NAMES = [f"Img{n:04d}" for n in (3, 1, 10, 2)]
RNG = np.random.default_rng(0)
VALUES = {
    layer: {name: RNG.standard_normal(shape).astype(np.float32) for name in NAMES}
    for layer, shape in SHAPES.items()
}
EXPECTED = {
    layer: np.stack([values[name] for name in sorted(NAMES)]) for layer, values in VALUES.items()
}


def write_tree(root, folder, *, python=True, names=NAMES, stem="{name}"):
    for layer, values in VALUES.items():
        place = root / folder.format(layer=layer)
        place.mkdir(parents=True)
        for name in names:
            path = place / f"{stem.format(layer=layer, name=name)}.mat"
            write_dense(path, "feat", values[name][None], python=python)


def check(ds):
    assert ds["label"].values.tolist() == sorted(NAMES)
    assert ds["image_index"].values.tolist() == [1, 2, 3, 4]
    for layer, expected in EXPECTED.items():
        np.testing.assert_array_equal(ds[f"feature_{layer}"].values, expected)


@pytest.fixture(scope="module")
def true(tmp_path_factory):
    root = tmp_path_factory.mktemp("true")
    write_tree(root, "{layer}")
    (root / "statistics.pkl").write_bytes(b"never read")
    return root


def test_true_features(true):
    with computes_at_most(0):
        ds = open_features(true, image_set="test")
    check(ds)
    assert ds["feature_conv1"].dims == ("image", "conv1_channel", "conv1_y", "conv1_x")
    assert ds["feature_fc6"].dims == ("image", "fc6_unit")
    assert ds["feature_fc6"].dtype == np.float32
    assert ds["feature_fc6"].attrs == {"units": "1", "layer": "fc6"}
    assert ds.sel(image_id="test:Img0010")["label"].item() == "Img0010"
    indexed = open_features(true, image_set="test", by_index=True, layers="fc6")
    assert list(indexed.data_vars) == ["feature_fc6"]
    assert indexed["image_id"].values.tolist() == ["test:1", "test:2", "test:3", "test:4"]


@settings(max_examples=20)
@given(st.data())
def test_any_selection_reads_what_it_names(true, data):
    images = data.draw(st.lists(st.integers(0, 3), max_size=5))
    channels = data.draw(st.lists(st.integers(0, 7), max_size=4))
    got = open_features(true, image_set="s")["feature_conv2"]
    got = got.isel(image=images, conv2_channel=channels, conv2_x=slice(1, None))
    np.testing.assert_array_equal(got.values, EXPECTED["conv2"][images][:, channels][..., 1:])


def test_one_image_is_one_file(true, tmp_path):
    write_tree(tmp_path, "{layer}")
    ds = open_features(tmp_path, image_set="s", layers=["fc6"])
    (tmp_path / "fc6" / "Img0003.mat").unlink()
    part = ds.sel(image_id=["s:Img0010"])["feature_fc6"].values
    np.testing.assert_array_equal(part[0], VALUES["fc6"]["Img0010"])


@pytest.mark.parametrize(
    ("layout", "folder", "stem"),
    [
        ("decoded", "{layer}/sub-01/ROI_VC", "{name}"),
        ("decoded-folder", "{layer}/sub-01/ROI_VC/decoded_features", "{name}"),
        (
            "shen2019",
            "natural/VGG19/{layer}/sub-01/ROI_VC",
            "natural-VGG19-{layer}-sub-01-ROI_VC-{name}",
        ),
        ("ho2023", "VGG19/{layer}/sub-022sub-01/ROI_VC/wholeVC/2400/220", "{name}"),
    ],
)
def test_decoded_features(tmp_path, layout, folder, stem):
    write_tree(tmp_path, folder, stem=stem, python=False)
    ds = open_features(tmp_path, layout=layout, image_set="s")
    check(ds)
    assert ds.attrs["roi"] == "ROI_VC"


def test_matlab_5_files_without_an_axis_of_images(tmp_path):
    for layer, values in VALUES.items():
        place = tmp_path / "natural/VGG19" / layer / "S1" / "VC"
        place.mkdir(parents=True)
        for name, value in values.items():
            savemat(place / f"natural-VGG19-{layer}-S1-VC-{name}.mat", {"feat": value})
    check(open_features(tmp_path, layout="shen2019", image_set="s"))


def test_folds_are_joined_and_doubles_refused(tmp_path):
    for fold, names in (("fold1", NAMES[:2]), ("fold2", NAMES[2:])):
        write_tree(tmp_path, f"{{layer}}/S1/VC/{fold}/decoded_features", names=names)
    check(open_features(tmp_path, layout="decoded-folds", image_set="s"))
    place = tmp_path / "fc6/S1/VC/fold2/decoded_features"
    write_dense(place / f"{NAMES[0]}.mat", "feat", VALUES["fc6"][NAMES[0]][None])
    with pytest.raises(SourceError, match="has 'Img0003' twice"):
        open_features(tmp_path, layout="decoded-folds", image_set="s", layers="fc6")


def test_channels_in_files_of_their_own(tmp_path):
    for layer, expected in EXPECTED.items():
        place = tmp_path / "VGG19" / layer / "chunk"
        place.mkdir(parents=True)
        if expected.ndim == 2:
            write_dense(place / "000.mat", "chunk", expected)
            continue
        for channel in range(expected.shape[1]):
            write_dense(place / f"{channel:03d}.mat", "chunk", expected[:, [channel]])
    ds = open_features(tmp_path, layout="chunked", image_set="s", labels=sorted(NAMES))
    check(ds)
    with pytest.raises(SourceError, match="hold 4 images and do not name them; none were named"):
        open_features(tmp_path, layout="chunked", image_set="s")
    with pytest.raises(SourceError, match="; 2 were named"):
        open_features(tmp_path, layout="chunked", image_set="s", labels=["a", "b"])


def test_choices_are_asked_for_and_checked(tmp_path):
    for subject in ("S1", "S2"):
        write_tree(tmp_path, f"{{layer}}/{subject}/VC")
    with pytest.raises(SelectionError, match="give subject=, one of: S1, S2"):
        open_features(tmp_path, layout="decoded", image_set="s")
    with pytest.raises(SelectionError, match="no subject is called 'S3'.*did you mean 'S"):
        open_features(tmp_path, layout="decoded", image_set="s", subject="S3")
    with pytest.raises(SelectionError, match="'sub' is no choice"):
        open_features(tmp_path, layout="decoded", image_set="s", sub="S1")
    with pytest.raises(SelectionError, match="no layer is called 'conv9': did you mean 'conv"):
        open_features(tmp_path, layout="decoded", image_set="s", subject="S1", layers="conv9")
    with pytest.raises(SelectionError, match="no layout is called 'decodet': did you mean"):
        open_features(tmp_path, layout="decodet", image_set="s")
    check(open_features(tmp_path, layout="decoded", image_set="s", subject="S2"))
    check(open_features(tmp_path, layout="{layer}/{who}/VC", image_set="s", who="S2"))


def test_trees_that_are_not_whole(tmp_path):
    write_tree(tmp_path, "{layer}")
    (tmp_path / "fc6" / "Img0003.mat").unlink()
    with pytest.raises(SourceError, match="not of the same images.*first is 'Img0003'"):
        open_features(tmp_path, image_set="s")
    write_dense(tmp_path / "conv2" / "Img0003.mat", "feat", np.zeros((1, 9, 3, 3), np.float32))
    odd = open_features(tmp_path, image_set="s", layers="conv2")["feature_conv2"]
    with pytest.raises(SourceError, match="of another network, or damaged"):
        odd.compute()
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="has no .mat files"):
        open_features(tmp_path / "empty", image_set="s")
    with pytest.raises(SourceError, match="there is no folder"):
        open_features(tmp_path / "absent", image_set="s")
