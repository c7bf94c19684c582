"""verify names every object that is not as it was written."""

from __future__ import annotations

import pytest
import xarray as xr

from nedx.errors import CorruptStoreError, IncompleteStoreError, StoreError
from nedx.store.running import run_blocks
from nedx.store.verifying import verify
from nedx.store.writing import BlockWriter, to_zarr
from tests.servers import HttpServer


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_a_good_store_is_good(responses, tmp_path, small_blocks):
    to_zarr(responses, tmp_path / "a", layout=small_blocks(responses))
    report = verify(tmp_path / "a")
    assert report.ok
    report.raise_if_bad()
    assert report.objects_checked == report.objects_total > 10
    few = verify(tmp_path / "a", sample=0.1)
    assert few.ok
    assert few.objects_checked == -(-report.objects_total // 10)


@pytest.mark.parametrize(
    "key", ["response/c/1/2/0", "image_id/c/0", "zarr.json", "response/zarr.json"]
)
def test_a_flipped_byte_is_named(responses, tmp_path, small_blocks, key):
    to_zarr(responses, tmp_path / "a", layout=small_blocks(responses))
    _flip(tmp_path / "a" / key)
    report = verify(tmp_path / "a")
    assert [bad.key for bad in report.bad] == [key]
    assert "sha256" in report.bad[0].reason
    with pytest.raises(CorruptStoreError, match=key):
        report.raise_if_bad()


def test_sizes_are_checked_whatever_the_sample(responses, tmp_path, small_blocks):
    to_zarr(responses, tmp_path / "a", layout=small_blocks(responses))
    path = tmp_path / "a/response/c/0/1/0"
    path.write_bytes(path.read_bytes()[:-3])
    (tmp_path / "a/voxel/c/0").unlink()
    report = verify(tmp_path / "a", sample=0.01)
    assert {bad.key for bad in report.bad} == {"response/c/0/1/0", "voxel/c/0"}


def test_an_unfinished_store_says_how_far_it_is(responses, tmp_path, small_blocks):
    writer = BlockWriter.create(
        responses, tmp_path / "a", "r", layout=small_blocks(responses), resume="do this again"
    )
    run_blocks(writer, responses, part="1/2")
    report = verify(tmp_path / "a")
    assert not report.complete
    assert not report.ok
    assert report.bad == []
    assert "2 of 3 blocks" in str(report)
    assert "do this again" in str(report)
    with pytest.raises(IncompleteStoreError, match="do this again"):
        report.raise_if_bad()
    _flip(tmp_path / "a/response/c/0/0/0")
    assert [bad.key for bad in verify(tmp_path / "a").bad] == ["response/c/0/0/0"]


def test_what_is_no_store_of_nedx_is_said(responses, tmp_path):
    with pytest.raises(StoreError, match="no store"):
        verify(tmp_path / "nothing")
    xr.Dataset({"a": ("x", [1.0])}).to_zarr(tmp_path / "other", zarr_format=3, consolidated=False)
    with pytest.raises(StoreError, match="no manifest"):
        verify(tmp_path / "other")
    with pytest.raises(StoreError, match="above 0 to 1"):
        verify(tmp_path / "other", sample=0)


def test_a_damaged_manifest_is_said(responses, tmp_path):
    to_zarr(responses, tmp_path / "a")
    path = tmp_path / "a/_nedx/manifest.json"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CorruptStoreError, match="no manifest"):
        verify(tmp_path / "a")


def test_a_store_is_verified_over_http(responses, tmp_path, small_blocks):
    to_zarr(responses, tmp_path / "a", layout=small_blocks(responses))
    server = HttpServer(tmp_path)
    try:
        report = verify(f"{server.url}/a")
        assert report.ok
        assert report.fingerprint == verify(tmp_path / "a").fingerprint
        (tmp_path / "a/response/c/0/1/0").unlink()
        assert [str(bad) for bad in verify(f"{server.url}/a").bad] == ["response/c/0/1/0: missing"]
    finally:
        server.close()
