"""Published models by their ids, from a bucket of the published name."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import nedx
from nedx.errors import SelectionError
from nedx.sources.berg import open_fwrf
from nedx.sources.berg.layout import BUCKET
from tests.berg import models as tree
from tests.berg.tree import write_fwrf

EEG = "eeg-things_eeg_2-vit_b_32"
VIT_WIDTH = 12 * 50 * 768


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEDX_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a copy of the published tree, as wide as the real ViT-B/32."""
    folder = tmp_path_factory.mktemp("berg")
    for subject in (1, 2):
        tree.write_eeg(folder, subject, VIT_WIDTH)
    return folder


@pytest.fixture
def served(s3, folder, monkeypatch):
    s3.fill(BUCKET.removeprefix("s3://"), folder)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    s3.counter.forget()
    return s3


def test_an_id_leads_to_the_bucket_and_fetches_the_subjects_asked_for(served):
    model = nedx.load_model(EEG, subject=2)
    assert model.subjects == ("sub-02",)
    assert served.counter.count("subject-01") == 0
    assert sum(model.layer_widths.values()) == VIT_WIDTH
    images = xr.Dataset(
        {"pixels": (("image", "y", "x", "rgb"), np.zeros((2, 224, 224, 3), np.uint8))}
    )
    served.counter.forget()
    out = images.ned.encode(EEG, subject=2, channel=["Oz", "Cz"], time=(0.1, 0.2))
    assert dict(out["response"].sizes) == {
        "subject": 1,
        "image": 2,
        "repetition": 4,
        "channel": 2,
        "time": 21,
    }
    assert served.counter.bytes("subject-02") == 0
    assert out["response"].attrs["model_id"] == EEG
    assert out.attrs["license"] == "CC-BY-NC-4.0"
    opened = nedx.open(EEG, subject=2, channel="Oz")
    assert opened.weights.sizes["channel"] == 1


@pytest.mark.parametrize(
    ("selection", "said"),
    [
        ({"channel": "Ozz"}, "unknown channel 'Ozz'.*'Oz'"),
        ({"roi": "V1"}, "roi"),
        ({"time": (9, 10)}, "time"),
    ],
)
def test_what_the_model_does_not_have_is_told_before_its_weights_are_fetched(
    served, tmp_path, selection, said
):
    with pytest.raises(SelectionError, match=said):
        nedx.open(EEG, subject=[1, 2], **selection)
    assert served.counter.bytes("metadata_subject") > 0
    assert served.counter.count("weights", "GET") == 0
    assert not list((tmp_path / "cache").rglob("*.zarr*"))


def test_fwrf_has_no_channels_and_says_so_before_anything_is_fetched(served):
    with pytest.raises(SelectionError, match="channel"):
        nedx.open("fmri-nsd-fwrf", channel="Oz")
    assert served.counter.count() == 0


def test_pull_makes_a_zarr_model_of_each_subject(served, tmp_path):
    kept = nedx.pull(EEG, subject=[1, 2])
    assert len(list(kept.glob("sub-0[12]-*.zarr"))) == 2
    served.counter.forget()
    one = nedx.pull(EEG, subject=1, into=tmp_path / "mine.zarr")
    assert served.counter.bytes("weights") == 0
    features = np.random.default_rng(0).standard_normal((3, VIT_WIDTH), dtype=np.float32)
    ds = xr.Dataset({"features": (("image", "feature"), features)})
    whole = ds.ned.encode(nedx.load_model(one), channel="Oz")["response"]
    of_two = ds.ned.encode(EEG, subject=[1, 2], channel="Oz")["response"]
    np.testing.assert_allclose(whole[0], of_two[0], rtol=1e-5, atol=1e-5)
    with pytest.raises(SelectionError, match="no subject 'sub-11' in"):
        nedx.pull(EEG, subject=11)


def test_of_fwrf_models_the_roi_asked_for_is_fetched(s3, tmp_path, monkeypatch):
    folder = tmp_path / "berg"
    for subject in (1, 2):
        for roi in ("V1", "V2"):
            write_fwrf(folder, subject, roi, 5)
    s3.fill(BUCKET.removeprefix("s3://"), folder)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    s3.counter.forget()
    noise = np.random.default_rng(0).integers(0, 256, (2, 227, 227, 3), dtype=np.uint8)
    images = xr.Dataset({"pixels": (("image", "y", "x", "rgb"), noise)})
    found = images.ned.encode("fmri-nsd-fwrf", subject=1, roi="V2")["response"].values
    expected = images.ned.encode(open_fwrf(folder, subject=1, roi="V2"))["response"].values
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert s3.counter.count("sub-02") == s3.counter.count("roi-V1") == 0
    size = next(folder.rglob("*sub-01_roi-V2.pt")).stat().st_size
    # The parameters after the last epoch, half of a file, stay there; pieces have 1 MB.
    assert s3.counter.bytes(r"roi-V2\.pt") < 0.75 * size
    path = nedx.pull("fmri-nsd-fwrf", subject=1, roi=["V1", "V2"])
    assert {place.name[:10] for place in path.glob("*.zarr")} == {"sub-01-V1-", "sub-01-V2-"}
