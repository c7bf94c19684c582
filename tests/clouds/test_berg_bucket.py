"""Published models straight from a bucket of the published name."""

from __future__ import annotations

import numpy as np
import pytest

from nedx.errors import CorruptStoreError, CredentialsError, StoreError
from nedx.sources.berg import open_model
from nedx.sources.berg.layout import BUCKET
from nedx.store.location import Location
from tests.berg import models as tree
from tests.encoding.truth import GABOR, features, random_pixels, stimuli

MODEL = "eeg-things_eeg_2-vit_b_32"
WIDTH = features(random_pixels(1)).shape[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("berg")
    for subject in (1, 2, 3):
        tree.write_eeg(folder, subject, WIDTH)
    return folder


@pytest.fixture(scope="module")
def bucket(s3, folder):
    url = s3.fill(BUCKET.removeprefix("s3://"), folder)
    return Location.of(url, anonymous=True, storage_options={"endpoint_url": s3.endpoint})


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEDX_CACHE", str(tmp_path / "cache"))


def test_only_the_files_of_the_subject_are_read_once(s3, bucket, folder):
    s3.counter.forget()
    model = open_model(bucket, MODEL, subject=2, backbone=GABOR)
    files = list(folder.rglob("*subject-02.npy"))
    assert s3.counter.count("subject-0[13]") == 0
    sizes = sum(path.stat().st_size for path in files)
    assert sizes <= s3.counter.bytes("subject-02") < 1.01 * sizes
    s3.counter.forget()
    again = open_model(bucket, MODEL, subject=2, backbone=GABOR)
    assert s3.counter.bytes("subject-02") == 0
    local = open_model(folder, MODEL, subject=2, backbone=GABOR)
    responses = [stimuli(3).ned.encode(m)["response"].values for m in (model, again, local)]
    np.testing.assert_array_equal(responses[0], responses[1])
    np.testing.assert_array_equal(responses[0], responses[2])


def test_a_bucket_that_does_not_answer():
    nowhere = Location.of(
        BUCKET, anonymous=True, storage_options={"endpoint_url": "http://127.0.0.1:9"}
    )
    with pytest.raises(StoreError, match="brain-encoding-response-generator"):
        open_model(nowhere, MODEL, subject=1, backbone=GABOR)


def test_a_bucket_that_refuses_half_way(s3, bucket, tmp_path):
    with (
        s3.counter.faulty("403", match="weights_subject-03"),
        pytest.raises(CredentialsError, match="generator refuses access"),
    ):
        open_model(bucket, MODEL, subject=3, backbone=GABOR)
    assert not list((tmp_path / "cache").rglob("*.zarr*"))


def test_a_file_cut_short_in_the_bucket(s3, folder, tmp_path):
    other = tmp_path / "other"
    tree.write_eeg(other, 1, WIDTH)
    weights = next(other.rglob("weights*"))
    weights.write_bytes(weights.read_bytes()[:-5000])
    url = s3.fill("cut-short", other)
    place = Location.of(url, anonymous=True, storage_options={"endpoint_url": s3.endpoint})
    with pytest.raises(CorruptStoreError, match=r"weights_subject-01.npy .*Fetch it again"):
        open_model(place, MODEL, subject=1, backbone=GABOR)
