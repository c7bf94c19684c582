"""The published models by their ids: what the catalog says, and what it leads to."""

import re
import shlex
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml

import nedx
from nedx.cli import _parser
from nedx.errors import CatalogError, ModelError, SelectionError
from nedx.sources.berg.layout import BUCKET, LAYOUTS
from tests.berg.tree import FSAVERAGE_ROIS, FWRF_ROIS

EEG = "eeg-things_eeg_2-vit_b_32"


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("NEDX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NEDX_CONFIG", str(tmp_path / "config"))
    monkeypatch.delenv("NEDX_CATALOGS", raising=False)


def published():
    return [entry for entry in nedx.list(kind="model") if entry.catalog == "berg"]


def test_every_model_that_is_read_is_listed_under_its_own_id():
    run = {entry.id for entry in published() if not entry.external}
    assert run == {*LAYOUTS, "fmri-nsd-fwrf"}
    for entry in published():
        assert entry.license
        assert entry.citation
    for entry in (one for one in published() if not one.external):
        assert entry.urls == (BUCKET,)
        assert entry.license == "CC-BY-NC-4.0"
        assert entry.card.splits
        assert entry.card.units


def test_subjects_and_rois_are_those_of_the_files():
    for model_id, layout in LAYOUTS.items():
        assert nedx.describe(model_id).entry.subjects == tuple(layout.labels())
    assert nedx.describe("fmri-nsd_fsaverage-vit_b_32").entry.rois == FSAVERAGE_ROIS
    assert nedx.describe("fmri-nsd-fwrf").entry.rois == FWRF_ROIS
    assert len(nedx.describe("fmri-things_fmri_1-vit_b_32").entry.rois) == 29


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"modality": "meg"}, {"meg-things_meg_1-vit_b_32"}),
        ({"dataset": "things-eeg2"}, {f"eeg-things_eeg_2-{m}" for m in ("vit_b_32", "alexnet")}),
        ({"roi": "mTL-bodies"}, {"fmri-nsd_fsaverage-vit_b_32", "fmri-nsd_fsaverage-alexnet"}),
        ({"roi": "V1"}, {"fmri-nsd-fwrf", "fmri-things_fmri_1-vit_b_32"}),
        ({"subject": "F"}, {"utah_array-tvsd-vit_b_32"}),
        ({"subject": 10, "modality": "eeg"}, {EEG}),
    ],
)
def test_models_are_listed_by_what_one_looks_for(asked, found):
    listed = nedx.list(kind="model", source="measured", **asked)
    assert found <= {entry.id for entry in listed}
    for entry in listed:
        assert asked.get("roi", "V1") in entry.rois or "roi" not in asked
        assert asked.get("modality", entry.modality) == entry.modality


def test_a_card_says_what_one_should_know_before_trusting_a_model():
    text = repr(nedx.describe(EEG))
    for part in (
        "train 16,540, test 200 images",
        "z-scored",
        "policy 'berg'",
        "r = 0.74",
        "CC-BY-NC-4.0",
        "10.1016/j.neuroimage.2022.119754",
        'nedx.load_model("eeg-things_eeg_2-vit_b_32", subject="sub-01")',
    ):
        assert part in text, text
    assert "training data" in nedx.describe(EEG)._repr_html_()
    assert [entry.id for entry in nedx.search("squashed receptive")] == []
    assert "fmri-nsd-fwrf" in {entry.id for entry in nedx.search("receptive field NSD")}


@pytest.mark.parametrize("verb", [nedx.open, nedx.load_model, nedx.pull])
@pytest.mark.parametrize("model_id", ["fmri-bmd-s3d", "brainscore_vision", "fmri-nsd-mem"])
def test_models_that_nedx_does_not_run_say_so(verb, model_id):
    with pytest.raises(ModelError, match=f"nedx does not run {model_id}.*licence.*nedx.cite"):
        verb(model_id)
    assert str(nedx.cite(model_id))
    assert "not run by nedx" in repr(nedx.describe(model_id))
    assert "open with" not in repr(nedx.describe(model_id))


def test_encoding_with_a_model_that_nedx_does_not_run_says_so():
    images = xr.Dataset({"pixels": (("image", "y", "x", "rgb"), np.zeros((1, 8, 8, 3), np.uint8))})
    with pytest.raises(ModelError, match="takes videos, nedx images"):
        images.ned.encode("fmri-bmd-s3d")


def test_what_is_copied_whole_takes_no_selection(tmp_path):
    with pytest.raises(SelectionError, match="sim-images is copied whole; type nedx.open"):
        nedx.pull("sim-images", subject=1)


def test_a_catalog_from_the_network_cannot_name_a_reader():
    from nedx.catalog.entries import parse_catalog

    entry = {
        "id": "x",
        "version": "1.0.0",
        "title": "T",
        "kind": "model",
        "source": "measured",
        "modality": "eeg",
        "urls": ["s3://somewhere"],
        "reader": "berg",
        "license": "MIT",
    }
    raw = {"nedx_catalog": 1, "name": "far", "entries": [entry]}
    with pytest.raises(CatalogError, match="reader: a catalog from the network may not name code"):
        parse_catalog(yaml.safe_dump(raw).encode(), "https://host/c.yaml", remote=True)
    raw["entries"] = [{**entry, "reader": "breg"}]
    with pytest.raises(CatalogError, match="'breg' is not a reader; did you mean 'berg'"):
        parse_catalog(yaml.safe_dump(raw).encode(), "c.yaml", remote=False)
    raw["entries"] = [{**entry, "kind": "responses"}]
    with pytest.raises(CatalogError, match="a reader needs urls, and kind 'model'"):
        parse_catalog(yaml.safe_dump(raw).encode(), "c.yaml", remote=False)


def test_the_page_beside_the_catalog_names_every_model_and_what_there_is():
    page = (Path(__file__).parents[2] / "catalogs" / "BERG.md").read_text()
    patterns = [name for name in re.findall(r"`([\w*.-]+)`", page) if "-" in name or "_" in name]
    others = "huze", "mosaic", "brainscore", "and others"
    for entry in published():
        named = any(fnmatch(entry.id, pattern) for pattern in patterns)
        assert named or (entry.external and any(word in page for word in others)), entry.id
    for target in re.findall(r"\]\(([^)#]+)\)", page):
        assert (Path(__file__).parents[2] / "catalogs" / target).exists(), target
    for code in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        compile(code, "BERG.md", "exec")
    for block in re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL):
        for line in block.replace("\\\n", " ").strip().splitlines():
            assert _parser().parse_args(shlex.split(line)[1:]).command
