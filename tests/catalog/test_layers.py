import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import nedx.catalog
from nedx.catalog.layers import load_stack, packaged_files, split_places
from nedx.errors import CatalogError, UnknownIdError

ROOT = Path(__file__).resolve().parents[2]


def write(path, name, *entries):
    plain = {
        "version": "1.0.0",
        "title": "T",
        "kind": "stimuli",
        "source": "measured",
        "urls": ["x.zarr"],
        "license": "MIT",
    }
    raw = {"nedx_catalog": 1, "name": name, "entries": [{**plain, **e} for e in entries]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setenv("NEDX_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("NEDX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NEDX_CATALOGS", raising=False)
    return tmp_path / "config"


def test_the_packaged_catalog_names_the_simulated_stores(settings):
    simulated = [entry for entry in load_stack() if entry.catalog == "simulated"]
    kinds = {entry.id: entry.kind for entry in simulated}
    assert kinds == {
        "sim-images": "stimuli",
        "sim-fmri": "responses",
        "sim-fmri-fsaverage5": "responses",
        "sim-eeg": "responses",
        "sim-fmri-gabor": "model",
        "sim-fmri-fsaverage5-gabor": "model",
        "sim-eeg-gabor": "model",
    }
    assert all(entry.source == "synthetic" for entry in simulated)


def test_the_packaged_catalog_is_found_in_an_installed_wheel(tmp_path):
    # A wheel holds the folder inside the package: see force-include in pyproject.toml.
    shutil.copytree(ROOT / "nedx", tmp_path / "nedx", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "catalogs", tmp_path / "nedx" / "catalogs")
    code = "from nedx.catalog.layers import packaged_files as p; print(*p())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    names = ["berg.yaml", "kamitani.yaml", "simulated.yaml"]
    assert done.stdout.split() == [str(tmp_path / "nedx" / "catalogs" / name) for name in names]
    assert packaged_files() == [ROOT / "catalogs" / name for name in names]


def test_later_catalogs_win_with_a_note_and_can_be_named(settings, tmp_path, monkeypatch, caplog):
    write(settings / "catalogs.d" / "a.yaml", "user", {"id": "mine"}, {"id": "sim-eeg"})
    env = write(tmp_path / "env" / "b.yaml", "env", {"id": "mine", "title": "of env"})
    given = write(tmp_path / "c.yaml", "given", {"id": "mine", "title": "of given"})
    monkeypatch.setenv("NEDX_CATALOGS", str(env))
    with caplog.at_level(logging.INFO, logger="nedx.catalog.layers"):
        assert nedx.catalog.resolve("mine").title == "of env"
    assert "'mine' of the catalog 'env'" in caplog.text
    assert nedx.catalog.resolve("mine", catalog=given).title == "of given"
    assert nedx.catalog.resolve("user:mine", catalog=given).title == "T"
    assert nedx.catalog.resolve("sim-eeg").catalog == "user"
    assert nedx.catalog.resolve("simulated:sim-eeg").catalog == "simulated"
    with pytest.raises(UnknownIdError, match="no catalog 'usr'; did you mean 'user'"):
        nedx.catalog.resolve("usr:mine")
    with pytest.raises(UnknownIdError, match="not in the catalog 'env'"):
        nedx.catalog.resolve("env:sim-eeg")


def test_paths_are_relative_to_the_catalog(settings, tmp_path):
    path = write(tmp_path / "deep" / "c.yaml", "lab", {"id": "a", "urls": ["x.zarr", "gs://b/x"]})
    urls = nedx.catalog.resolve("a", catalog=path).urls
    assert urls == (str(tmp_path / "deep" / "x.zarr"), "gs://b/x")


def test_an_id_comes_with_its_versions_from_one_catalog(settings, tmp_path):
    user = [{"id": "a", "version": "9.0"}, {"id": "a", "version": "10.0"}]
    write(settings / "catalogs.d" / "a.yaml", "user", *user)
    given = write(tmp_path / "c.yaml", "given", {"id": "a", "version": "1.0"})
    assert nedx.catalog.resolve("a").version == "10.0"
    assert nedx.catalog.resolve("a", catalog=given).version == "1.0"


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("a", "2.0.0"),
        ("a@latest", "2.0.0"),
        ("a@1", "1.10.0"),
        ("a@1.2", "1.2.10"),
        ("a@1.2.9", "1.2.9"),
        ("a@3", "3.0.0"),
        ("lab:a@1.2", "1.2.10"),
        ("nedx://a@1.2", "1.2.10"),
    ],
)
def test_a_version_stands_for_the_highest_below_it(settings, tmp_path, asked, found):
    versions = ["1.2.9", "1.2.10", "1.10.0", "2.0.0", "3.0.0"]
    entries = [
        {"id": "a", "version": v, **({"deprecated_by": "a@2.0.0"} if v == "3.0.0" else {})}
        for v in versions
    ]
    path = write(tmp_path / "c.yaml", "lab", *entries)
    assert nedx.catalog.resolve(asked, catalog=path).version == found


def test_an_unknown_version_lists_the_versions(settings, tmp_path):
    entries = [{"id": "a", "version": v} for v in ("1.10", "1.9")]
    path = write(tmp_path / "c.yaml", "lab", *entries)
    with pytest.raises(UnknownIdError, match=r"no version 1.1; there are: 1.9, 1.10$"):
        nedx.catalog.resolve("a@1.1", catalog=path)


def test_an_unknown_id_names_what_comes_close(settings):
    with pytest.raises(UnknownIdError, match="did you mean 'sim-fmri'"):
        nedx.catalog.resolve("sim-frmi")
    with pytest.raises(UnknownIdError, match=r"expected \[catalog:\]id\[@version\]"):
        nedx.catalog.resolve("sim fmri")
    with pytest.raises(UnknownIdError, match="expected"):
        nedx.catalog.resolve("sim-fmri@one")


def test_a_catalog_that_is_not_there_or_faulty_is_named(settings, tmp_path, monkeypatch):
    with pytest.raises(CatalogError, match=r"none.yaml, which does not exist"):
        load_stack(tmp_path / "none.yaml")
    monkeypatch.setenv("NEDX_CATALOGS", str(tmp_path / "gone.yaml"))
    with pytest.raises(CatalogError, match=r"NEDX_CATALOGS names the catalog .*gone.yaml"):
        load_stack()
    monkeypatch.delenv("NEDX_CATALOGS")
    write(settings / "catalogs.d" / "a.yaml", "user", {"id": "a", "kind": "modle"})
    with pytest.raises(CatalogError, match=r"a.yaml is refused[\s\S]*entries\[0\] \(a\).kind"):
        load_stack()


def test_a_changed_file_is_read_again(settings, tmp_path):
    path = write(tmp_path / "c.yaml", "lab", {"id": "a"})
    assert nedx.catalog.resolve("a", catalog=path).title == "T"
    write(path, "lab", {"id": "a", "title": "Another title"})
    assert nedx.catalog.resolve("a", catalog=path).title == "Another title"


def test_a_folder_of_catalogs_is_read(settings, tmp_path, monkeypatch):
    write(tmp_path / "all" / "a.yaml", "one", {"id": "a"})
    write(tmp_path / "all" / "b.yml", "two", {"id": "b"})
    monkeypatch.setenv("NEDX_CATALOGS", str(tmp_path / "all"))
    assert {"a", "b"} <= {entry.id for entry in load_stack()}


def test_places_are_split_at_commas_and_path_separators():
    text = f"/a/b.yaml{os.pathsep}https://h.org:8080/c.yaml,gs://b/d.yaml{os.pathsep}e.yaml, "
    expected = ["/a/b.yaml", "https://h.org:8080/c.yaml", "gs://b/d.yaml", "e.yaml"]
    assert split_places(text) == expected
