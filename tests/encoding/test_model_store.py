"""Models on disk: nothing is lost, one ROI is read alone, damage is noticed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.storage import WrapperStore

from nedx.compute.cache import models
from nedx.encoding import EncoderRecipe, LinearEncoder, encode, load_model
from nedx.errors import CorruptStoreError, ModelError, SelectionError, StoreError, StoreExistsError
from nedx.store.location import Location
from tests.encoding.truth import GABOR, random_pixels, stimuli
from tests.laziness import computes_at_most


def random_model(vertices: int = 3000, subjects: int = 2, components: int = 16) -> LinearEncoder:
    """A model on a shared grid with overlapping ROIs scattered over it."""
    rng = np.random.default_rng(0)
    mask = np.zeros((subjects, 3, vertices), bool)
    for s in range(subjects):
        mask[s, 0, rng.choice(vertices, 200, replace=False)] = True
        mask[s, 1, rng.choice(vertices, 150, replace=False)] = True
        mask[s, 2] = mask[s, 0] & (rng.random(vertices) < 0.5)
    labels = {
        "subject": np.array([f"sub-{s + 1:02d}" for s in range(subjects)], dtype=object),
        "vertex": np.arange(vertices),
        "roi": np.array(["V1", "FFA-1", "V1v"], dtype=object),
        "roi_mask": (("subject", "roi", "vertex"), mask),
        "hemisphere": ("vertex", np.repeat(np.array(["L", "R"], object), vertices // 2)),
        "noise_ceiling": (
            ("subject", "vertex"),
            rng.random((subjects, vertices), dtype=np.float32),
            {"units": "1", "n_repetitions": 3},
        ),
    }
    weights = xr.Dataset(
        {
            "projection": (("feature", "component"), rng.normal(size=(96, components))),
            "projection_offset": ("component", rng.normal(size=components)),
            "readout": (
                ("subject", "vertex", "component"),
                rng.normal(size=(subjects, vertices, components)),
            ),
            "intercept": (("subject", "vertex"), rng.normal(size=(subjects, vertices))),
        },
        coords=labels,
    )
    return LinearEncoder(weights, EncoderRecipe(backbone=GABOR, model_id="grid", version="1.2"))


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture
def stored(model, tmp_path):
    model.to_zarr(tmp_path / "model.zarr")
    return load_model(tmp_path / "model.zarr")


class CountingStore(WrapperStore):
    """Adds up the bytes that are read, by array."""

    read: dict[str, int] = {}

    async def get(self, key, prototype, byte_range=None):
        value = await self._store.get(key, prototype, byte_range)
        if value is not None:
            name = key.split("/c/")[0] if "/c/" in key else "metadata"
            CountingStore.read[name] = CountingStore.read.get(name, 0) + len(value)
        return value


@pytest.fixture
def count_bytes(monkeypatch):
    original = Location.zarr_store

    def counting(self, *, read_only=True):
        store = original(self, read_only=read_only)
        return CountingStore(store) if read_only else store

    monkeypatch.setattr(Location, "zarr_store", counting)
    CountingStore.read = {}
    models.clear()
    yield CountingStore.read
    models.clear()


def test_a_round_trip_keeps_everything(model, stored):
    assert stored.recipe == model.recipe
    assert stored.layer_widths == {"energy_0": 32, "energy_1": 32, "energy_2": 32}
    xr.testing.assert_equal(stored.weights.load(), model.weights)
    assert stored.weights["noise_ceiling"].attrs == {"units": "1", "n_repetitions": 3}
    assert stored.weights["hemisphere"].dtype == object
    assert stored.ref == model.ref


def test_opening_reads_no_weights(model, tmp_path, count_bytes):
    model.to_zarr(tmp_path / "m.zarr")
    with computes_at_most(0):
        opened = load_model(tmp_path / "m.zarr").sel(subject=1, roi="V1")
    assert not [name for name in count_bytes if name in ("readout", "intercept", "projection")]
    assert repr(opened).count("\n") > 5
    assert "<table>" in opened._repr_html_()


@pytest.mark.parametrize("roi", ["V1", "V1v"])
def test_one_roi_reads_its_own_bytes(tmp_path, count_bytes, roi):
    model = random_model(vertices=20_000, subjects=2, components=64)
    model.to_zarr(tmp_path / "m.zarr")
    stored = load_model(tmp_path / "m.zarr")
    count_bytes.clear()
    out = encode(stimuli(4), stored, subject=2, roi=roi)["response"].compute()
    own = out.sizes["vertex"] * 64 * 4
    assert count_bytes["readout"] <= 1.2 * own
    assert count_bytes["intercept"] <= 0.15 * own + 20_000
    whole = model.weights["readout"].nbytes
    assert own < whole / 50


def test_selected_values_are_those_of_the_labels(model, stored):
    part = stored.sel(subject=2, roi=["FFA-1", "V1v"])
    expected = model.sel(subject=2, roi=["FFA-1", "V1v"]).weights
    xr.testing.assert_equal(part.weights.load(), expected)
    rows = stored.weights["readout"][0, [5, 1, 2999, 1], [3, 0]]
    xr.testing.assert_equal(rows.load(), model.weights["readout"][0, [5, 1, 2999, 1], [3, 0]])


def test_a_selection_can_be_stored(stored, tmp_path):
    stored.sel(subject=2, roi="V1").to_zarr(tmp_path / "v1.zarr")
    again = load_model(tmp_path / "v1.zarr")
    ds = stimuli(4)
    expected = encode(ds, stored, subject=2, roi="V1")["response"].values
    np.testing.assert_array_equal(encode(ds, again)["response"].values, expected)
    with pytest.raises(SelectionError, match="FFA-1"):
        again.sel(roi="FFA-1")


def test_sharded_models_read_like_others(tmp_path):
    model = random_model(vertices=9000, subjects=1, components=8)
    model.to_zarr(tmp_path / "m.zarr")
    array = zarr.open_array(str(tmp_path / "m.zarr"), path="readout", mode="r")
    assert array.shards == (1, 4096, 8)
    assert array.chunks == (1, 64, 8)
    xr.testing.assert_equal(load_model(tmp_path / "m.zarr").weights.load(), model.weights)


def test_existing_places_are_left_alone(model, tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(StoreExistsError, match="not changed"):
        model.to_zarr(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_nothing_is_left_of_a_failed_write(model, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zarr, "consolidate_metadata", full)
    with pytest.raises(OSError, match="No space"):
        model.to_zarr(tmp_path / "m.zarr")
    assert list(tmp_path.iterdir()) == []


def test_a_flipped_byte_is_noticed(stored, tmp_path):
    chunks = sorted((tmp_path / "model.zarr" / "readout" / "c").rglob("*"))
    chunk = next(path for path in chunks if path.is_file())
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(bytes(data))
    models.clear()
    with pytest.raises(CorruptStoreError, match="readout"):
        encode(stimuli(4), stored)["response"].compute()


def test_places_that_hold_no_model(stored, tmp_path):
    with pytest.raises(StoreError, match="no model"):
        load_model(tmp_path / "nothing.zarr")
    xr.Dataset({"response": ("image", [1.0])}).to_zarr(tmp_path / "r.zarr", zarr_format=3)
    with pytest.raises(ModelError, match="not a model"):
        load_model(tmp_path / "r.zarr")
    path = tmp_path / "model.zarr" / "zarr.json"
    meta = json.loads(path.read_text())
    meta["attributes"]["nedx_schema_version"] = "9.0"
    path.write_text(json.dumps(meta))
    with pytest.raises(StoreError, match="pip install -U nedx"):
        load_model(tmp_path / "model.zarr")


def test_memory_stores(model):
    place = "memory://models/grid.zarr"
    model.to_zarr(place)
    with pytest.raises(StoreExistsError):
        model.to_zarr(place)
    ds = stimuli(4)
    expected = encode(ds, model, roi="V1")["response"].values
    models.clear()
    np.testing.assert_array_equal(encode(ds, place, roi="V1")["response"].values, expected)


def test_weights_that_do_not_fit_are_refused(model):
    weights = model.weights.drop_vars("intercept")
    with pytest.raises(ModelError, match="missing intercept"):
        LinearEncoder(weights, model.recipe)
    with pytest.raises(ModelError, match="features"):
        LinearEncoder(model.weights.isel(feature=slice(90)), model.recipe).to_zarr("memory://x")


def test_a_fitted_model_is_cached_by_content(model):
    again = random_model()
    assert again is not model
    assert again.ref == model.ref
    assert again.ref.location == model.ref.location
    changed = model.weights.copy(deep=True)
    changed["intercept"][0, 0] += 1
    assert LinearEncoder(changed, model.recipe).ref != model.ref


def test_responses_follow_the_formula(model):
    ds = stimuli(5)
    from tests.encoding.truth import features

    f = features(random_pixels(5)).astype(np.float64)
    w = model.weights
    p = f @ w["projection"].values - w["projection_offset"].values
    expected = np.einsum("svc,ic->siv", w["readout"].values, p)
    expected += w["intercept"].values[:, None]
    found = encode(ds, model)["response"].values
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
