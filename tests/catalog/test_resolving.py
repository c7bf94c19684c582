import hashlib
import logging
import shutil

import fsspec
import numpy as np
import pytest
import xarray as xr
import yaml

import nedx.catalog
from nedx.catalog.layers import load_stack
from nedx.catalog.pulling import pull
from nedx.catalog.resolving import first_that_works, locate, mirrors, pulled_path
from nedx.errors import (
    CorruptStoreError,
    CredentialsError,
    NedxWarning,
    SelectionError,
    StoreError,
    UnknownIdError,
)
from nedx.store.location import Location
from nedx.store.manifest import MANIFEST
from nedx.store.writing import to_zarr
from tests.laziness import computes_at_most


def responses(value=0.0, subjects=("sub-01", "sub-02")):
    shape = (len(subjects), 4, 3)
    data = np.arange(np.prod(shape), dtype="f4").reshape(shape) + np.float32(value)
    attrs = {"units": "1", "normalization": "zscore", "source": "measured"}
    return xr.Dataset(
        {"response": (("subject", "image", "channel"), data, attrs)},
        coords={
            "subject": np.array(subjects, dtype=object),
            "channel": np.array(["O1", "Oz", "O2"], dtype=object),
            "image_id": ("image", np.array([f"set:{i}" for i in range(4)], dtype=object)),
        },
        attrs={"modality": "eeg", "title": "Test responses"},
    )


def stored(ds, place):
    ds.to_zarr(place, zarr_format=3, consolidated=True)
    return place


def listed(folder, urls, **changes):
    entry = {
        "id": "mine",
        "version": "1.0.0",
        "title": "Mine",
        "kind": "responses",
        "source": "measured",
        "modality": "eeg",
        "urls": urls,
        "license": "CC-BY-4.0",
        "citation": [{"doi": "10.1234/abc", "text": "A and B (2026)."}],
        **changes,
    }
    path = folder / "lab.yaml"
    path.write_text(yaml.safe_dump({"nedx_catalog": 1, "name": "lab", "entries": [entry]}))
    return path


@pytest.fixture(autouse=True)
def settings(tmp_path, monkeypatch):
    monkeypatch.setenv("NEDX_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("NEDX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NEDX_CATALOGS", raising=False)


pytestmark = pytest.mark.filterwarnings("ignore:Consolidated metadata")


def test_an_id_opens_lazily_with_what_was_selected(tmp_path):
    stored(responses(), tmp_path / "a.zarr")
    path = listed(tmp_path, ["a.zarr"])
    with computes_at_most(0):
        ds = nedx.catalog.open("mine@1", subject=2, channel="Oz", catalog=path)
    assert dict(ds.response.sizes) == {"subject": 1, "image": 4, "channel": 1}
    expected = responses().response.values[1:, :, 1:2]
    np.testing.assert_array_equal(ds.response.values, expected)


def test_data_say_which_entry_they_are(tmp_path):
    stored(responses().assign_attrs(license="CC0-1.0"), tmp_path / "a.zarr")
    ds = nedx.catalog.open("mine", catalog=listed(tmp_path, ["a.zarr"]))
    assert ds.attrs["id"] == "mine@1.0.0"
    assert ds.attrs["license"] == "CC0-1.0"
    assert ds.attrs["references"] == "https://doi.org/10.1234/abc"
    assert ds.attrs["title"] == "Test responses"


def test_paths_and_urls_open_without_a_catalog(tmp_path, monkeypatch):
    stored(responses(), tmp_path / "a.zarr")
    monkeypatch.chdir(tmp_path)
    with fsspec.open("memory://catalog-test/unused", "wb"):
        pass
    stored(responses(5), Location.of("memory://catalog-test/a.zarr").zarr_store(read_only=False))
    for place in (tmp_path / "a.zarr", str(tmp_path / "a.zarr"), "./a.zarr", "a.zarr"):
        assert float(nedx.catalog.open(place).response[0, 0, 0]) == 0
    assert float(nedx.catalog.open("memory://catalog-test/a.zarr").response[0, 0, 0]) == 5


def test_a_name_that_is_neither_id_nor_path_is_an_unknown_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownIdError, match="or give a path or URL"):
        nedx.catalog.open("a-name")
    with pytest.raises(StoreError, match="there is no Zarr store"):
        nedx.catalog.open("a.zarr")


def test_mirrors_are_tried_in_order(tmp_path, caplog):
    stored(responses(1), tmp_path / "second.zarr")
    stored(responses(2), tmp_path / "third.zarr")
    path = listed(tmp_path, ["first.zarr", "second.zarr", "third.zarr"])
    with caplog.at_level(logging.WARNING, logger="nedx.catalog.resolving"):
        ds = nedx.catalog.open("mine", catalog=path)
    assert float(ds.response[0, 0, 0]) == 1
    assert "first.zarr failed" in caplog.text
    assert locate("mine", catalog=path).url == str(tmp_path / "second.zarr")


def test_when_all_mirrors_fail_each_is_named_with_its_reason(tmp_path):
    (tmp_path / "broken.zarr").mkdir()
    (tmp_path / "broken.zarr" / "zarr.json").write_text("{")
    path = listed(tmp_path, ["gone.zarr", "broken.zarr", "http://127.0.0.1:9/x.zarr"])
    with pytest.raises(StoreError) as caught:
        nedx.catalog.open("mine", catalog=path)
    message = str(caught.value)
    assert "mine@1.0.0: none of its 3 mirrors" in message
    for url in ("gone.zarr: ", "broken.zarr: ", "http://127.0.0.1:9/x.zarr: "):
        assert url in message
    away = listed(tmp_path, ["gone.zarr", "http://127.0.0.1:9/x.zarr"])
    with pytest.raises(StoreError, match="none of its 2 mirrors"):
        locate("mine", catalog=away)


def test_one_place_that_fails_keeps_its_own_error(tmp_path):
    path = listed(tmp_path, ["gone.zarr"])
    with pytest.raises(StoreError, match="gone.zarr"):
        nedx.catalog.open("mine", catalog=path)


def test_a_wrong_selection_is_not_blamed_on_the_mirror(tmp_path):
    stored(responses(), tmp_path / "a.zarr")
    path = listed(tmp_path, ["a.zarr", "b.zarr"])
    with pytest.raises(SelectionError, match="sub-07"):
        nedx.catalog.open("mine", subject=7, catalog=path)


def test_mirrors_that_all_refuse_ask_for_credentials(tmp_path):
    path = listed(tmp_path, ["s3://a/x.zarr", "gs://b/x.zarr"])
    entry = load_stack(path).find("mine")

    def refuse(place):
        raise place.refused(PermissionError("403"))

    with pytest.raises(CredentialsError, match="AWS_ACCESS_KEY_ID[\\s\\S]*GOOGLE"):
        first_that_works(entry, mirrors(entry), refuse)


def test_storage_words_and_arguments_reach_the_place(tmp_path):
    words = {"anonymous": True, "requester_pays": True}
    path = listed(tmp_path, ["s3://a/x.zarr", "https://b.org/x.zarr"], storage=words)
    entry = load_stack(path).find("mine")
    s3, https = mirrors(entry)
    assert s3 == Location("s3://a/x.zarr", True, (("requester_pays", True),))
    assert https == Location("https://b.org/x.zarr", True, ())
    options = {"endpoint_url": "http://127.0.0.1:1"}
    s3, _ = mirrors(entry, anonymous=False, storage_options=options)
    assert s3.anonymous is False
    assert dict(s3.options) == {"requester_pays": True, **options}


def test_a_pulled_copy_is_preferred_when_it_is_complete(tmp_path):
    to_zarr(responses(1), tmp_path / "a.zarr", keep_bits=None)
    remote = "memory://catalog-pull/a.zarr"
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(tmp_path / "a.zarr"), "/catalog-pull/", recursive=True)
    path = listed(tmp_path, ["memory://catalog-pull/gone.zarr", remote])
    copy = pulled_path(load_stack(path).find("mine"))
    assert copy == tmp_path / "cache" / "pulled" / "mine" / "1.0.0"
    shutil.copytree(tmp_path / "a.zarr" / "response", copy / "response")
    assert locate("mine", catalog=path).url == remote
    assert pull("mine", catalog=path) == copy
    filesystem.rm("/catalog-pull", recursive=True)
    assert locate("mine", catalog=path).url == str(copy)
    assert float(nedx.catalog.open("mine", catalog=path).response[0, 0, 0]) == 1
    assert pull("mine", catalog=path) == copy


def test_a_store_of_another_fingerprint_is_not_pulled(tmp_path):
    to_zarr(responses(1), tmp_path / "a.zarr")
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(tmp_path / "a.zarr"), "/catalog-print/", recursive=True)
    manifest = (tmp_path / "a.zarr" / MANIFEST).read_bytes()
    right = "sha256:" + hashlib.sha256(manifest).hexdigest()
    urls = ["memory://catalog-print/a.zarr"]
    wrong = listed(tmp_path, urls, fingerprint="sha256:" + "0" * 64)
    with pytest.raises(CorruptStoreError, match="is not what the catalog 'lab' names as mine"):
        pull("mine", catalog=wrong)
    assert not (tmp_path / "cache" / "pulled").exists()
    copy = pull("mine", catalog=listed(tmp_path, urls, fingerprint=right))
    assert (copy / "zarr.json").is_file()


def test_what_is_deprecated_says_what_to_open(tmp_path):
    stored(responses(), tmp_path / "a.zarr")
    path = listed(tmp_path, ["a.zarr"], deprecated_by="better@2")
    with pytest.warns(NedxWarning, match="open 'better@2' instead"):
        nedx.catalog.open("mine", catalog=path)


def test_a_relative_name_with_a_version_is_never_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sim-fmri@9").mkdir()
    with pytest.raises(UnknownIdError, match="no version 9"):
        nedx.catalog.open("sim-fmri@9")


class TestEngine:
    @pytest.fixture
    def _in_environment(self, tmp_path, monkeypatch):
        stored(responses(), tmp_path / "a.zarr")
        monkeypatch.setenv("NEDX_CATALOGS", str(listed(tmp_path, ["a.zarr"])))

    @pytest.mark.usefixtures("_in_environment")
    def test_xarray_opens_an_address(self):
        ds = xr.open_dataset("nedx://mine@1.0", engine="nedx")
        assert ds.response.chunks is None
        np.testing.assert_array_equal(ds.response, responses().response)
        chosen = xr.open_dataset("nedx://mine", engine="nedx", subject="2", channel=["O2"])
        np.testing.assert_array_equal(chosen.response, responses().response[1:, :, 2:])

    @pytest.mark.usefixtures("_in_environment")
    def test_xarray_guesses_the_engine_and_wraps_chunks(self):
        ds = xr.open_dataset("nedx://mine", chunks={"image": 2}, drop_variables="image_id")
        assert ds.response.chunks == ((2,), (2, 2), (3,))
        assert "image_id" not in ds.variables

    @pytest.mark.usefixtures("_in_environment")
    def test_xarray_opens_a_tree(self):
        tree = xr.open_datatree("nedx://mine", engine="nedx")
        np.testing.assert_array_equal(tree.response, responses().response)

    def test_other_stores_are_not_guessed(self):
        from nedx.catalog.engine import NedxBackendEntrypoint

        engine = NedxBackendEntrypoint()
        assert engine.guess_can_open("nedx://mine")
        assert not engine.guess_can_open("mine.zarr")
        assert not engine.guess_can_open(b"nedx://")

    def test_a_model_or_a_path_is_not_opened_as_data(self):
        with pytest.raises(ValueError, match=r"nedx.load_model\('sim-eeg-gabor'\)"):
            xr.open_dataset("nedx://sim-eeg-gabor", engine="nedx")
        with pytest.raises(ValueError, match="use nedx.open"):
            xr.open_dataset("x.zarr", engine="nedx")


def test_the_engine_imports_nothing_heavy():
    import subprocess
    import sys

    code = (
        "import sys, nedx.catalog.engine; "
        "print([m for m in ('torch', 'pydantic', 'yaml', 'rich', 'gcsfs') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
