"""Fetching published BData from a real server on this machine."""

from __future__ import annotations

import hashlib
import json

import pytest

import nedx
from nedx.errors import CorruptStoreError, SelectionError, StoreError
from nedx.sources.bdata import published
from nedx.sources.bdata.published import pull_ho2023
from nedx.sources.bdata.reading import open_bdata
from tests.servers import HttpServer
from tests.sources.bdata.files import bdata_parts, write_bdata

IDS = (32712488, 32712407, 32712506)


@pytest.fixture
def server(tmp_path):
    served = tmp_path / "served"
    served.mkdir()
    server = HttpServer(served)
    for seed, number in enumerate(IDS):
        write_bdata(served / str(number), bdata_parts(seed=seed))
    yield server
    server.close()


def test_files_are_fetched_once_and_their_hashes_kept(tmp_path, server):
    folder = pull_ho2023(tmp_path / "here", subject=2, url=server.url + "/{id}")
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        "checksums.json",
        "sub-02_ArtificialImageTest.h5",
        "sub-02_NaturalImageTest.h5",
        "sub-02_NaturalImageTraining.h5",
    ]
    recorded = json.loads((folder / "checksums.json").read_text())
    for name in names[1:]:
        data = (folder / name).read_bytes()
        assert recorded[name]["sha256"] == hashlib.sha256(data).hexdigest()
        assert recorded[name]["bytes"] == len(data)
    assert recorded["sub-02_NaturalImageTest.h5"]["figshare_id"] == 32712407
    ds = open_bdata(folder / "sub-02_NaturalImageTest.h5")
    assert ds.attrs["subject_ids"] == ["sub-02"]
    assert ds["image_id"].values[0].startswith("NaturalImageTest:")
    server.counter.forget()
    pull_ho2023(folder, subject=2, url=server.url + "/{id}")
    assert server.counter.count() == 0


def test_another_file_under_the_same_id_is_refused(tmp_path, server):
    url = server.url + "/{id}"
    folder = pull_ho2023(tmp_path / "here", subject=2, url=url)
    (folder / "sub-02_NaturalImageTest.h5").unlink()
    (server.root / "32712407").write_bytes(b"something else")
    with pytest.raises(CorruptStoreError, match="is not what was fetched first"):
        pull_ho2023(folder, subject=2, url=url)
    assert not (folder / "sub-02_NaturalImageTest.h5").exists()


def test_datasets_are_pulled_by_name(tmp_path, server, monkeypatch):
    monkeypatch.setattr(published, "FIGSHARE", server.url + "/{id}")
    folder = nedx.pull("ho2023", subject="sub-02", into=tmp_path / "here")
    assert (folder / "sub-02_NaturalImageTraining.h5").is_file()
    with pytest.raises(SelectionError, match="no subject 'sub-06' in "):
        nedx.pull("ho2023", subject=6, into=tmp_path / "here")
    with pytest.raises(StoreError, match="cannot be read"):
        nedx.pull("deeprecon", subject=1, into=tmp_path / "there")


def test_the_catalog_names_every_file_and_says_what_to_type():
    entries = [nedx.catalog.resolve(name) for name in ("kamitani:ho2023", "deeprecon")]
    files = [
        {name: number for name, number in entry.provenance.items() if name.startswith("sub-")}
        for entry in entries
    ]
    assert [len(some) for some in files] == [15, 6]
    assert len({number for some in files for number in some.values()}) == 21
    for entry, some in zip(entries, files, strict=True):
        assert {name.partition("_")[0] for name in some} == set(entry.subjects)
    assert files[0]["sub-02_NaturalImageTest"] == 32712407
    with pytest.raises(StoreError, match=r'is no store: .*nedx.pull\("ho2023", subject=1\)'):
        nedx.open("ho2023")
    with pytest.raises(StoreError, match="is no store: .*open_features, decoders by .*import_dec"):
        nedx.open("ho2023-features")
    described = repr(nedx.describe("ho2023"))
    assert "not run by nedx" not in described
    assert "nedx import bdata" in " ".join(described.split())
