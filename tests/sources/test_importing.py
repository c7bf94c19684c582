"""The registry of sources, and the blocks that an import writes."""

from __future__ import annotations

import importlib
import inspect

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from nedx.cli import main
from nedx.errors import SelectionError
from nedx.schema import parse
from nedx.sources.importing import SOURCES, aligned_layouts, import_source


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_takes_its_arguments(name):
    source = SOURCES[name]
    opener = getattr(importlib.import_module(source.module), source.function)
    known = inspect.signature(opener).parameters
    for argument in source.arguments:
        assert argument.name in known, argument.name
        needed = known[argument.name].default is inspect.Parameter.empty
        assert argument.required == needed, argument.name


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["import", name, "--help"])
    assert caught.value.code == 0
    assert SOURCES[name].summary.split()[0] in capsys.readouterr().out


def test_an_unknown_source(tmp_path):
    with pytest.raises(SelectionError, match="did you mean 'nsd'"):
        import_source("nds", tmp_path, tmp_path / "out.zarr")


def recording(lengths, session=True):
    count = sum(lengths)
    response = da.zeros((count, 3000), chunks=(tuple(lengths), -1), dtype=np.float32)
    attrs = {"modality": "fmri", "source": "measured", "stimulus_identity": "none"}
    coords = {
        "category": ("trial", np.full(count, "a", dtype=object)),
        "voxel": np.arange(3000, dtype=np.int32),
    }
    if session:
        coords["session"] = ("trial", np.ones(count, np.int16))
    variables = {"response": (("trial", "voxel"), response, {"units": "percent"})}
    return parse(xr.Dataset(variables, coords, attrs))


def test_a_block_is_what_one_task_reads():
    layout = aligned_layouts(recording([750, 750, 750]))[""]
    assert layout.block == 750
    assert 750 % layout.arrays["response"].chunks[0] == 0


@pytest.mark.parametrize(
    ("lengths", "session"),
    [([50, 50], True), ([750, 740, 750], True), ([127, 127], True), ([750, 750], False)],
)
def test_other_tasks_have_blocks_as_usual(lengths, session):
    assert aligned_layouts(recording(lengths, session)) == {}
