"""The accessors, the repr, and what `import nedx` brings with it."""

from __future__ import annotations

import html
import importlib
import io
import pickle
import subprocess
import sys
from html.parser import HTMLParser

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import nedx
from nedx.errors import StoreError
from nedx.repr import as_html, as_rich, as_text, describe
from tests.laziness import computes_at_most


def test_import_is_light():
    code = (
        "import sys, nedx; heavy = {'torch', 'gcsfs', 's3fs', 'distributed', 'h5py', 'sklearn', "
        "'matplotlib', 'transformers', 'timm', 'zarr'}; "
        "print(sorted(heavy & {name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", nedx.__all__)
def test_every_public_name_is_there(name):
    assert getattr(nedx, name) is getattr(nedx, name)
    assert name in dir(nedx)


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'opne'"):
        importlib.import_module("nedx").__getattr__("opne")


def test_accessor_keeps_nothing(eeg):
    ds = eeg.chunk(image=1)
    plain = len(pickle.dumps(ds))
    repr(ds.ned)
    ds.ned.sel(subject=1).compute()
    assert list(vars(ds.ned)) == ["_obj"]
    assert len(pickle.dumps(ds)) - plain < 1000
    assert pickle.loads(pickle.dumps(ds)).ned.neuroid_dim == "channel"


def test_accessor_does_what_the_functions_do(eeg, fmri, tree):
    assert nedx.ned(eeg).neuroid_dim == eeg.ned.neuroid_dim == "channel"
    assert eeg.ned.sample_dim == "image"
    xr.testing.assert_identical(
        eeg.ned.sel(subject=2, channel="Oz", time=(0, 0.2)),
        eeg.isel(subject=[1], channel=[3], time=slice(1, 4)),
    )
    assert fmri.ned.roi("FFA-1").sizes["vertex"] == 2
    assert fmri.ned.roi_mean("V1").response.dims == ("subject", "image")
    assert list(nedx.ned(tree).sel(subject=1).children) == ["sub-01"]
    assert tree.ned.roi("V1")["sub-02"].sizes["voxel"] == 3
    means = tree.ned.roi_mean("V1")
    np.testing.assert_allclose(means["sub-01"].response, [1, 6, 11, 16])
    eeg.ned.validate()
    tree.ned.validate()
    xr.testing.assert_identical(eeg.ned.parse(), nedx.parse(eeg))


def test_verify_needs_a_store(eeg, tree):
    for obj in (eeg, tree):
        with pytest.raises(StoreError, match="not opened from a store"):
            obj.ned.verify()


def test_verify_the_store_it_was_opened_from(tree, tmp_path):
    place = nedx.to_zarr(tree, tmp_path / "ragged.zarr")
    opened = nedx.open_store(place)
    opened.ned.validate()
    assert opened.ned.verify().ok
    assert opened.ned.sel(subject=2).ned.verify().ok
    assert opened["sub-01"].to_dataset().ned.verify().ok
    chunk = next(
        p for p in (tmp_path / "ragged.zarr").rglob("sub-02/response/c/**/*") if p.is_file()
    )
    chunk.write_bytes(b"\0" * chunk.stat().st_size)
    assert not opened.ned.verify().ok


def test_repr_says_what_it_is(eeg, fmri, stimuli, tree):
    text = repr(eeg.assign_attrs(title="Three images").ned)
    for said in ("Three images", "measured", "sub-01, sub-02", "-0.1 to 0.4 s", "10 Hz", "'uV'"):
        assert said in text
    assert "synthetic" in repr(fmri.ned)
    assert "V1, FFA-1" in repr(fmri.ned)
    assert "8" in repr(fmri.ned)
    assert "pixels" in repr(stimuli.ned)
    assert "7 voxels" in repr(tree.ned)
    assert "n/a" in repr(stimuli.ned)
    assert repr(xr.Dataset().ned).startswith("<nedx Dataset>")


def test_repr_computes_nothing(eeg, fmri):
    mask = fmri.roi_mask.copy(data=da.from_array(fmri.roi_mask.values, chunks=1))
    lazy = fmri.chunk(image=2).assign_coords(roi_mask=mask)
    with computes_at_most(0):
        for obj in (lazy, eeg.chunk(), xr.DataTree.from_dict({"/sub-01": lazy})):
            repr(obj.ned)
            obj.ned._repr_html_()
            obj.ned.__rich__()
    assert "lazy, chunks 3 x 2 x 8" in repr(lazy.ned)


def test_repr_reads_no_labels_that_are_not_in_memory(eeg, tmp_path):
    path = tmp_path / "a.zarr"
    long = eeg.assign_coords(roi=("region_of_interest", np.array(["V1"], dtype=object)))
    long.to_zarr(path, zarr_format=3, consolidated=False)
    opened = xr.open_zarr(path, chunks=None, consolidated=False)
    assert not opened.variables["roi"]._in_memory
    assert "ROIs" in repr(opened.ned)
    assert not opened.variables["roi"]._in_memory


class _Text(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.said = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.said.append(data)


def test_html_is_escaped_and_the_same_as_the_text(eeg):
    evil = eeg.assign_attrs(title="<script>alert(1)</script>", license="[bold]&<b>")
    card = describe(evil)
    parser = _Text()
    parser.feed(as_html(card))
    assert set(parser.tags) == {"div", "strong", "table", "tr", "th", "td"}
    assert parser.said == [card.title, *(part for row in card.rows for part in row)]
    assert html.escape("<script>") in as_html(card)
    for label, value in card.rows:
        assert label in as_text(card)
        assert value in as_text(card)


def test_rich_takes_text_as_it_is(eeg):
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(as_rich(describe(eeg.assign_attrs(license="[red]CC0[/red]"))))
    assert "[red]CC0[/red]" in console.export_text()
