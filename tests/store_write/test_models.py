"""Models in the cache: written whole, called by what is in them, opened if they are models."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from pydantic import BaseModel

import nedx
from nedx.errors import ModelError, StoreExistsError
from nedx.store.location import Location
from nedx.store.models import (
    ModelWriter,
    create_array,
    keep,
    keep_partial,
    open_labels,
    open_root,
    partial_model,
    stored_recipe,
    write_whole,
)


class Recipe(BaseModel):
    width: int


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEDX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def write(place, values=(0, 1, 2)):
    writer = ModelWriter(Location.of(place))
    group = writer.root.require_group("part")
    create_array(group, "weight", (len(values),), "float32", dims=("unit",))[...] = values
    strings = np.array(["a", "b"], dtype=np.dtypes.StringDType())
    writer.labels(xr.Dataset(coords={"name": ("known", strings)}))
    writer.finish(Recipe(width=3), model_type="none", weights_sha256="0" * 64)


def test_what_is_written_is_opened_and_verified(tmp_path):
    location = write_whole(tmp_path / "model.zarr", write)
    root = open_root(location)
    assert root["part/weight"][:].tolist() == [0, 1, 2]
    recipe, sha256 = stored_recipe(Recipe, location, dict(root.attrs))
    assert recipe == Recipe(width=3)
    assert sha256 == "0" * 64
    assert open_labels(location, "")["name"].values.tolist() == ["a", "b"]
    assert nedx.verify(location.url).ok
    with pytest.raises(StoreExistsError, match="was not changed"):
        write_whole(tmp_path / "model.zarr", write)


def test_chunks_of_zeros_are_written(tmp_path):
    """One that is absent was lost."""
    write_whole(tmp_path / "model.zarr", lambda place: write(place, (0, 0)))
    (tmp_path / "model.zarr/part/weight/c/0").unlink()
    assert not nedx.verify(str(tmp_path / "model.zarr")).ok


def test_nothing_is_left_of_what_fails(tmp_path, cache):
    def fail(place):
        write(place)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "model.zarr", fail)
    with pytest.raises(KeyboardInterrupt), partial_model() as partial:
        fail(partial)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert not list(cache.iterdir())


def test_equal_models_lie_in_the_cache_once(cache):
    places = []
    for _ in range(2):
        with partial_model() as partial:
            write(partial)
            places.append(keep_partial(partial, "the same"))
    places.append(keep("the same", fail_if_called))
    assert len(set(places)) == 1
    assert [path.name for path in cache.iterdir()] == [places[0].url.rpartition("/")[2]]
    assert keep("another", write) != places[0]


def fail_if_called(place):
    raise AssertionError(place)


@pytest.mark.parametrize("lost", ["recipe", "weights_sha256"])
def test_recipes_that_are_not_valid_are_said_to_be(tmp_path, lost):
    location = write_whole(tmp_path / "model.zarr", write)
    attrs = dict(open_root(location).attrs)
    del attrs[lost]
    with pytest.raises(ModelError, match=f"recipe of the decoder at .*model.zarr.*{lost}"):
        stored_recipe(Recipe, location, attrs, "decoder")
