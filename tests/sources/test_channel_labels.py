"""Regions, groups and places of electrodes, against the published lists and MNE's montage."""

from __future__ import annotations

import mne
import numpy as np
import pytest
import xarray as xr

import nedx
from nedx import scalp
from nedx.errors import SelectionError
from nedx.preprocessing.recipes import NICE_CHANNELS
from nedx.simulation import montage as simulated
from nedx.sources.things_eeg2 import open_preprocessed, open_raw
from tests.sources.eeg2_files import write_raw
from tests.sources.test_things_eeg2_preprocessed import write_nice

PUBLISHED = {
    "frontal": "Fp1 Fp2 AF7 AF3 AFz AF4 AF8 F7 F5 F3 F1 F2 F4 F6 F8",
    "central": "FC5 FC3 FC1 FCz FC2 FC4 FC6 C5 C3 C1 Cz C2 C4 C6",
    "parietal": "CP5 CP3 CP1 CPz CP2 CP4 CP6 P7 P5 P3 P1 Pz P2 P4 P6 P8",
    "temporal": "FT9 FT7 T7 TP9 TP7 TP8 TP10 T8 FT8 FT10",
    "occipital": "PO7 PO3 POz PO4 PO8 O1 Oz O2",
}
POSTERIOR = "P7 P5 P3 P1 Pz P2 P4 P6 P8 PO7 PO3 POz PO4 PO8 O1 Oz O2"
VISUAL = [50, 56, 57, 58, 60, 61, 62]
"""Positions in the order of the published files."""


def test_regions_are_the_published_lists():
    assert [len(names.split()) for names in PUBLISHED.values()] == [15, 14, 16, 10, 8]
    found = {name: scalp.region(name) for name in NICE_CHANNELS}
    assert found == {n: region for region, names in PUBLISHED.items() for n in names.split()}
    assert len(found) == 63
    assert dict(zip(simulated.CHANNELS, simulated.regions(), strict=True)) == found
    assert scalp.region("MLO11") is None
    assert scalp.labels(["Oz", "EOG"]) == {}


def test_places_are_those_of_mne():
    info = mne.create_info(list(NICE_CHANNELS), 250.0, "eeg")
    info.set_montage(mne.channels.make_standard_montage("easycap-M1"))
    expected = np.array([channel["loc"][:3] for channel in info["chs"]])
    places = scalp.places(NICE_CHANNELS)
    found = np.stack([places[axis][1] for axis in "xyz"], 1)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert scalp.places(["Oz", "EOG"]) == {}


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    """Open the same 63 channels through every reader that has them."""
    rng = np.random.default_rng(0)
    prepared, raw = tmp_path_factory.mktemp("prepared"), tmp_path_factory.mktemp("raw")
    values = {name: rng.normal(size=(n, 2, 63, 250)) for name, n in (("train", 6), ("test", 2))}
    write_nice(prepared, values)
    write_raw(raw)
    return {
        "prepared": open_preprocessed(prepared),
        "raw": open_raw(raw, recipe="nice_2024"),
        "simulated": nedx.open("sim-eeg", subject=1),
    }


@pytest.mark.parametrize("reader", ["prepared", "raw", "simulated"])
def test_every_reader_labels_and_selects_channels(readers, reader):
    ds: xr.Dataset = readers[reader]
    names = ds.channel.values.tolist()
    for region, published in PUBLISHED.items():
        chosen = ds.ned.sel(channel=region)
        assert set(chosen.channel.values) == set(published.split())
        assert set(chosen.region.values) == {region}
    visual = ds.ned.sel(channel="visual")
    assert visual.channel.values.tolist() == [NICE_CHANNELS[i] for i in VISUAL]
    assert ds.ned.sel(channel="posterior").channel.values.tolist() == POSTERIOR.split()
    assert ds.ned.sel(channel=["occipital", "Cz"]).sizes["channel"] == 9
    sides = dict(zip(names, ds.hemisphere.values, strict=True))
    assert (sides["O1"], sides["Oz"], sides["O2"]) == ("L", "midline", "R")
    places = {name: (ds.x.values[i], ds.y.values[i]) for i, name in enumerate(names)}
    assert places["Oz"][1] < places["Cz"][1] < places["AFz"][1]
    assert places["T7"][0] < places["Cz"][0] < places["T8"][0]
    assert ds.x.attrs["units"] == "m"
    with pytest.raises(SelectionError, match="did you mean 'visual'"):
        ds.ned.sel(channel="visul")


def test_readers_agree_on_places(readers):
    raw, prepared = readers["raw"], readers["prepared"]
    assert raw.channel.values.tolist() == prepared.channel.values.tolist()
    for axis in "xyz":
        np.testing.assert_allclose(prepared[axis].values, raw[axis].values, atol=1e-9)
    assert prepared.channel.attrs["montage"] == raw.channel.attrs["montage"] == "easycap-M1"
