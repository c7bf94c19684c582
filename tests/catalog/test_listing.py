import pytest
import xarray as xr
import yaml

import nedx.catalog
from nedx.catalog import layers
from nedx.errors import CatalogError, UnknownIdError


@pytest.fixture(autouse=True)
def lab(tmp_path, monkeypatch):
    monkeypatch.setenv("NEDX_CONFIG", str(tmp_path / "config"))
    plain = {
        "version": "1.0.0",
        "kind": "responses",
        "source": "measured",
        "license": "CC-BY-4.0",
        "urls": ["x.zarr"],
    }
    entries = [
        {
            "id": "nsd-fsaverage",
            "title": "Responses to <b>scenes</b> [red]",
            "modality": "fmri",
            "dataset": "nsd",
            "subjects": ["sub-01", "sub-08"],
            "dims": {"subject": 2, "image": 73000},
            "size": {"stored_gb": 12.5},
            "citation": [
                {
                    "doi": "10.1038/s41593-021-00962-x",
                    "bibtex": "@article{allen2022,\n year={2022}}",
                },
                {"text": "Second and third (2023)."},
            ],
        },
        {"id": "nsd-fsaverage", "version": "0.9", "title": "Old", "modality": "fmri"},
        {"id": "fmri-encoder", "title": "Encoder of NSD", "kind": "model", "modality": "fmri"},
    ]
    path = tmp_path / "lab.yaml"
    raw = {"nedx_catalog": 1, "name": "lab", "entries": [{**plain, **e} for e in entries]}
    path.write_text(yaml.safe_dump(raw))
    monkeypatch.setenv("NEDX_CATALOGS", str(path))
    simulated = [file for file in layers.packaged_files() if file.stem == "simulated"]
    monkeypatch.setattr(layers, "packaged_files", lambda: simulated)


def ids(table):
    return [entry.id for entry in table]


def test_the_newest_version_of_each_id_is_listed_once():
    table = nedx.catalog.list()
    assert len(table) == 9
    assert table[[e.id for e in table].index("nsd-fsaverage")].version == "1.0.0"
    assert ids(table) == sorted(ids(table))


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"kind": "model", "modality": "eeg"}, ["sim-eeg-gabor"]),
        ({"source": "measured"}, ["fmri-encoder", "nsd-fsaverage"]),
        ({"dataset": "nsd"}, ["nsd-fsaverage"]),
        ({"subject": 8}, ["nsd-fsaverage"]),
        ({"subject": "sub-08", "kind": "model"}, []),
        ({"dataset": "no such"}, []),
    ],
)
def test_what_is_listed_can_be_narrowed(asked, found):
    assert ids(nedx.catalog.list(**asked)) == found


def test_a_word_that_catalogs_do_not_use_is_an_error():
    with pytest.raises(CatalogError, match="kind='modle' is not known; did you mean 'model'"):
        nedx.catalog.list(kind="modle")


def test_search_finds_all_words_and_puts_ids_first():
    assert ids(nedx.catalog.search("NSD")) == ["nsd-fsaverage", "fmri-encoder"]
    assert ids(nedx.catalog.search("surface GABOR")) == ["sim-fmri-fsaverage5-gabor"]
    assert ids(nedx.catalog.search("10.1038")) == ["nsd-fsaverage"]
    assert len(nedx.catalog.search("")) == 9
    assert repr(nedx.catalog.search("zebra")).startswith("no entries")


def test_a_table_is_text_html_and_a_dataframe():
    table = nedx.catalog.list(modality="fmri")
    text = repr(table)
    assert "sim-fmri-fsaverage5-gabor" in text
    assert "image: 73,000" in text
    assert "[red]" in text
    assert max(map(len, text.splitlines())) <= 120
    assert "&lt;b&gt;scenes&lt;/b&gt;" in table._repr_html_()
    frame = table.to_dataframe()
    assert frame.loc["nsd-fsaverage", "stored_gb"] == 12.5
    assert frame.loc["sim-fmri", "kind"] == "responses"
    assert len(table[:2]) == 2
    assert isinstance(table[:2], type(table))


def test_a_card_says_all_there_is():
    card = nedx.catalog.describe("nsd-fsaverage")
    text = repr(card)
    for part in ("0.9, 1.0.0", "12.5 GB", "CC-BY-4.0", "sub-01, sub-08", "10.1038", "[red]"):
        assert part in text, text
    assert "<b>scenes" not in card._repr_html_()
    assert 'nedx.load_model("fmri-encoder")' in repr(nedx.catalog.describe("fmri-encoder"))
    assert "synthetic (simulated)" in repr(nedx.catalog.describe("sim-eeg"))
    with pytest.raises(UnknownIdError):
        nedx.catalog.describe("nothing")


def test_citing_an_id_gives_text_and_bibtex():
    citation = nedx.catalog.cite("nsd-fsaverage")
    assert "https://doi.org/10.1038/s41593-021-00962-x" in str(citation)
    assert "Second and third (2023)." in citation.text
    assert citation.bibtex.startswith("@article{allen2022")
    assert "@misc{nsd-fsaverage-1.0.0-2,\n  title = {Second and third (2023).}" in citation.bibtex
    assert "Synthetic data" in str(nedx.catalog.cite("sim-fmri"))
    assert "&lt;b&gt;" in citation._repr_html_()


def test_citing_data_reads_their_attributes():
    ds = xr.Dataset(attrs={"id": "nsd-fsaverage@1.0.0", "model_id": "fmri-encoder"})
    text = str(nedx.catalog.cite(ds))
    assert "10.1038" in text
    assert "Encoder of NSD (fmri-encoder@1.0.0" in text
    gone = xr.DataTree(
        xr.Dataset(
            attrs={"id": "gone@1.0", "references": "https://doi.org/10.1/x", "license": "MIT"}
        )
    )
    assert str(nedx.catalog.cite(gone)).split("\n") == [
        "gone@1.0",
        "https://doi.org/10.1/x",
        "License: MIT",
    ]
    with pytest.raises(CatalogError, match="do not say where they come from"):
        nedx.catalog.cite(xr.Dataset())
