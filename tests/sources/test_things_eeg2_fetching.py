"""Fetching from a real server on this machine, with connections that break."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest

import nedx
from nedx.cli import main
from nedx.errors import CorruptStoreError, SelectionError, StoreError
from nedx.sources.things_eeg2 import fetching, open_raw, pull
from nedx.sources.things_eeg2.fetching import IMAGES, METADATA_ID, RAW, download
from tests.servers import HttpServer
from tests.sources.eeg2_files import write_raw


@pytest.fixture
def server(tmp_path):
    served = tmp_path / "served"
    served.mkdir()
    server = HttpServer(served)
    yield server
    server.close()


def publish(tmp_path, server, subject=1):
    """Put the archive of one subject, and the metadata, where their ids say."""
    folder = write_raw(tmp_path / "made", subject)
    with zipfile.ZipFile(server.root / RAW[folder.name], "w", zipfile.ZIP_DEFLATED) as packed:
        for path in folder.rglob("*.npy"):
            packed.write(path, path.relative_to(folder.parent))
    metadata = tmp_path / "made" / "image_set" / "image_metadata.npy"
    (server.root / METADATA_ID).write_bytes(metadata.read_bytes())


def test_what_is_fetched_opens(tmp_path, server):
    publish(tmp_path, server)
    arguments = {"subject": 1, "url": server.url + "/{id}"}
    folder = pull(tmp_path / "here", **arguments)
    fetched = open_raw(folder, recipe="nice_2024")
    made = open_raw(tmp_path / "made", recipe="nice_2024")
    np.testing.assert_array_equal(fetched.onset, made.onset)
    assert not list(folder.rglob("*.zip*"))
    assert not list(folder.rglob("*.partial*"))
    server.counter.forget()
    pull(folder, **arguments)
    assert server.counter.count() == 0


def test_it_is_pulled_by_its_name_and_imported(tmp_path, server, monkeypatch, capsys):
    publish(tmp_path, server)
    monkeypatch.setattr(fetching, "OSF", server.url + "/{id}")
    folder = tmp_path / "here"
    assert main(["pull", "things-eeg2", "--subject", "1", "--into", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["Raw_data", "image_set"]
    with pytest.raises(SelectionError, match="no subject 'sub-11'"):
        nedx.pull("things-eeg2", subject=11, into=folder)


def test_a_broken_connection_goes_on_at_its_byte(tmp_path, server):
    data = np.random.default_rng(0).bytes(3_000_000)
    (server.root / "file").write_bytes(data)
    with server.counter.faulty("truncate", times=2):
        download(f"{server.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == data
    ranges = [seen.range for seen in server.counter.seen]
    assert ranges == [None, "bytes=1500000-", "bytes=2250000-"]
    assert [path.name for path in tmp_path.glob("file*")] == ["file"]


def test_another_run_goes_on(tmp_path, server):
    data = np.random.default_rng(0).bytes(1_000_000)
    (server.root / "file").write_bytes(data)
    (tmp_path / "file.partial").write_bytes(data[:400_000])
    (tmp_path / "file.partial.json").write_text('{"size": 1000000, "etag": null}')
    download(f"{server.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == data
    assert server.counter.seen[0].range == "bytes=400000-"


def test_a_file_that_has_changed_is_fetched_anew(tmp_path, server):
    (server.root / "file").write_bytes(b"b" * 50_000)
    (tmp_path / "file.partial").write_bytes(b"a" * 400)
    (tmp_path / "file.partial.json").write_text('{"size": 40000, "etag": null}')
    download(f"{server.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"b" * 50_000


def test_a_server_without_ranges(tmp_path, server):
    (server.root / "file").write_bytes(b"b" * 50_000)
    (tmp_path / "file.partial").write_bytes(b"b" * 400)
    (tmp_path / "file.partial.json").write_text('{"size": 50000, "etag": null}')
    with server.counter.faulty("norange"):
        download(f"{server.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"b" * 50_000


def test_what_fails(tmp_path, server):
    arguments = {"url": server.url + "/{id}"}
    with pytest.raises(StoreError, match="404.*do the same again"):
        pull(tmp_path / "here", what="metadata", **arguments)
    with server.counter.faulty("403"), pytest.raises(StoreError, match="403"):
        pull(tmp_path / "here", what="metadata", **arguments)
    with pytest.raises(SelectionError, match="no subject 'sub-11'"):
        pull(tmp_path / "here", subject=11, **arguments)
    with pytest.raises(SelectionError, match="no part is called 'rawdata'"):
        pull(tmp_path / "here", what="rawdata", **arguments)
    (server.root / IMAGES["training_images"]).write_bytes(b"PK no archive")
    with pytest.raises(CorruptStoreError, match="was removed"):
        pull(tmp_path / "here", what="images", **arguments)
    with zipfile.ZipFile(server.root / IMAGES["training_images"], "w") as packed:
        packed.writestr("../../outside.jpg", b"x")
    with pytest.raises(CorruptStoreError, match="outside"):
        pull(tmp_path / "here", what="images", **arguments)
    assert not list(tmp_path.rglob("outside.jpg"))
