"""Pulling: whole, checked, resumed, and nothing twice."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from nedx.errors import CorruptStoreError, IncompleteStoreError, StoreError, StoreExistsError
from nedx.store import location, pulling
from nedx.store.manifest import MANIFEST
from nedx.store.opening import open_store
from nedx.store.pulling import pull


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("NEDX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(location, "FIRST_DELAY", 0.001)


def test_a_copy_opens_and_the_second_pull_transfers_nothing(web, truth):
    url = f"{web.url}/sharded.zarr"
    folder = pull(url)
    np.testing.assert_array_equal(open_store(folder)["response"].values, truth["response"].values)
    web.counter.forget()
    assert pull(url) == folder
    assert web.counter.count() == 0


def test_a_copy_is_byte_by_byte_the_store(web, shelf, tmp_path):
    folder = pull(f"{web.url}/plain.zarr", into=tmp_path / "copy.zarr", progress=True)
    source = {p.relative_to(shelf / "plain.zarr") for p in (shelf / "plain.zarr").rglob("*")}
    assert source == {p.relative_to(folder) for p in folder.rglob("*")}
    for path in source:
        if (folder / path).is_file():
            assert (folder / path).read_bytes() == (shelf / "plain.zarr" / path).read_bytes()


def test_an_interrupted_pull_goes_on_where_it_stopped(web):
    url = f"{web.url}/plain.zarr"
    with web.counter.faulty("403", match="/response/c/1/"), pytest.raises(StoreError):
        pull(url)
    got = {seen.path for seen in web.counter.seen if seen.status == 200}
    web.counter.forget()
    folder = pull(url)
    again = {seen.path for seen in web.counter.seen if seen.status == 200}
    assert len(got & again) <= 1 + pulling._AT_ONCE, "only the manifest and what was under way"
    assert len(again) < len(list(folder.rglob("*")))
    assert not list(folder.rglob("*.partial"))


def test_a_copy_that_was_damaged_later_is_mended(web):
    folder = pull(f"{web.url}/sharded.zarr")
    shard = folder / "response" / "c" / "0" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:-1])
    web.counter.forget()
    pull(f"{web.url}/sharded.zarr")
    assert [s.path for s in web.counter.matching("/c/")] == ["/sharded.zarr/response/c/0/0/0"]


@pytest.mark.parametrize(
    ("mode", "match"),
    [
        *((mode, "/response/c/") for mode in ("503", "reset", "truncate", "corrupt")),
        *((mode, "manifest") for mode in ("503", "reset", "truncate")),
    ],
)
def test_what_the_network_spoils_is_fetched_again(mode, match, web, truth):
    with web.counter.faulty(mode, match=match, times=1):
        folder = pull(f"{web.url}/sharded.zarr")
    np.testing.assert_array_equal(open_store(folder)["response"].values, truth["response"].values)


def test_an_object_that_differs_from_the_manifest_is_named(shelf, tmp_path):
    source = shutil.copytree(shelf / "plain.zarr", tmp_path / "source.zarr")
    chunk = source / "response" / "c" / "0" / "1" / "1"
    data = bytearray(chunk.read_bytes())
    data[50] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(CorruptStoreError, match=r"response/c/0/1/1 differs.*nedx verify"):
        pull(source, into=tmp_path / "copy.zarr")
    assert not (tmp_path / "copy.zarr" / "response" / "c" / "0" / "1" / "1").exists()
    assert not (tmp_path / "copy.zarr" / MANIFEST).exists()
    chunk.unlink()
    with pytest.raises(CorruptStoreError, match="response/c/0/1/1 was written and is gone"):
        pull(source, into=tmp_path / "copy.zarr")


def test_a_folder_with_other_things_is_left_alone(shelf, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(StoreExistsError, match=r"thesis\.txt"):
        pull(shelf / "plain.zarr", into=mine)
    assert [p.name for p in mine.iterdir()] == ["thesis.txt"]


def test_a_store_without_a_manifest_is_refused(truth, tmp_path):
    truth.to_zarr(tmp_path / "foreign.zarr", zarr_format=3)
    with pytest.raises(IncompleteStoreError, match="manifest"):
        pull(tmp_path / "foreign.zarr")


def test_a_manifest_cannot_write_outside_of_the_folder(shelf, tmp_path):
    source = shutil.copytree(shelf / "sharded.zarr", tmp_path / "evil.zarr")
    manifest = (source / MANIFEST).read_text()
    (source / MANIFEST).write_text(manifest.replace("caption/c/0", "../../evil"))
    with pytest.raises(CorruptStoreError, match="outside"):
        pull(source, into=tmp_path / "in" / "copy.zarr")
    assert not (tmp_path / "evil").exists()
