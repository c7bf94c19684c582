"""A job does what encode does, whole, in parts or again, and can be checked afterwards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

import nedx
import nedx.encoding.kernels as kernels
from nedx.cli import main
from nedx.errors import IncompleteStoreError, ModelError, StoreError, StoreExistsError
from nedx.store.layout import by_range
from nedx.store.location import Location
from nedx.store.manifest import StoredObject, read_manifest
from nedx.store.writing import BlockWriter
from nedx.synthesis import SynthesisRecipe, finalize, init, run, status, synthesize, verify
from tests.encoding.truth import random_pixels
from tests.laziness import computes_at_most
from tests.synthesis.conftest import BLOCK, COUNT, random_encoder, store_bytes

# Rounding to 10 bits: half a unit in the last place kept.
ROUNDED = 2.0**-11


def test_init_computes_nothing_and_says_how_to_go_on(tmp_path, images, model):
    with computes_at_most(0):
        found = init(images, model, tmp_path / "a", block=BLOCK)
    assert (found.done, found.total, found.complete) == (0, COUNT // BLOCK, False)
    assert f"nedx synth run {tmp_path / 'a'}" in str(found)
    assert not list((tmp_path / "a/response").glob("c/**/*"))
    with pytest.raises(StoreExistsError):
        init(images, model, tmp_path / "a")


def test_a_job_writes_what_encode_computes(tmp_path, planned, images, model):
    place = planned(tmp_path / "a")
    seen = []
    found = run(place, progress=lambda done, total: seen.append((done, total)))
    assert found.complete
    assert seen == [(done, 6) for done in range(7)]
    stored = nedx.open_store(place)
    expected = nedx.open_images(images).ned.encode(model)["response"]
    assert stored["response"].dims == expected.dims
    np.testing.assert_allclose(stored["response"], expected.values, rtol=ROUNDED)
    np.testing.assert_array_equal(stored["image_id"].values, expected["image_id"].values)
    assert stored["response"].attrs["source"] == "synthetic"
    assert "pixels" not in stored
    # Nothing is left to do, and nothing is done.
    before = store_bytes(place)
    assert run(place).complete
    assert finalize(place) == read_manifest(Location.of(place))
    assert store_bytes(place) == before


def test_synthesize_does_it_in_one_call(tmp_path, images, model, uninterrupted):
    ds = nedx.open_images(images)
    location = ds.ned.synthesize(model, tmp_path / "a", block=BLOCK, device="cpu")
    assert location.url == str(tmp_path / "a")
    found = store_bytes(tmp_path / "a")
    expected = store_bytes(uninterrupted)
    chunks = [key for key in expected if key.startswith("response/c/")]
    assert len(chunks) == 12
    assert all(found[key] == expected[key] for key in chunks)
    # Done already: nothing happens. Anything else is refused.
    ds.ned.synthesize(model, tmp_path / "a", block=BLOCK, device="cpu", resume=True)
    with pytest.raises(StoreExistsError):
        ds.ned.synthesize(model, tmp_path / "a", block=BLOCK)
    with pytest.raises(StoreError, match="another recipe"):
        synthesize(ds, model, tmp_path / "a", block=BLOCK, resume=True, keep_bits=None)


def test_a_selection_is_part_of_the_recipe(tmp_path, images, model):
    init(images, model, tmp_path / "a", subject=["2"], block=BLOCK, keep_bits=None)
    run(tmp_path / "a", progress=False)
    stored = nedx.open_store(tmp_path / "a")
    assert list(stored["subject"].values) == ["sub-02"]
    expected = nedx.open_images(images).ned.encode(model)["response"].sel(subject=["sub-02"])
    np.testing.assert_allclose(stored["response"], expected, rtol=1e-5, atol=1e-5)


def _change_a_plan(place: Path, **changes: object) -> None:
    plan = json.loads((place / "_nedx/plan.json").read_text())
    plan["extra"]["synthesis"].update(changes)
    (place / "_nedx/plan.json").write_text(json.dumps(plan))


@pytest.mark.parametrize("change", ["precision", "roi", "model", "images", "keep_bits"])
def test_another_job_is_not_resumed(tmp_path, planned, images, change):
    place = planned(tmp_path / "a")
    run(place, part="1/6", progress=False)
    before = store_bytes(place)
    if change == "model":
        other = random_encoder({"sub-01": 300, "sub-02": 300}, ragged=False, seed=1)
        other.to_zarr(tmp_path / "other.zarr")
        _change_a_plan(place, model=str(tmp_path / "other.zarr"))
        names = "model"
    elif change == "images":
        shutil.copytree(images, tmp_path / "noise")
        Image.fromarray(random_pixels(1, seed=9)[0]).save(tmp_path / "noise/003.png", optimize=True)
        _change_a_plan(place, images=str(tmp_path / "noise"))
        names = "images"
    elif change == "precision":
        _change_a_plan(place, precision="bf16")
        names = "backbone"
    elif change == "keep_bits":
        _change_a_plan(place, keep_bits=7)
        names = "storage"
    else:
        _change_a_plan(place, subject=["1"])
        names = "selection"
    with pytest.raises(StoreError, match=f"another recipe: {names} differ"):
        run(place, progress=False)
    found = store_bytes(place)
    found.pop("_nedx/plan.json")
    before.pop("_nedx/plan.json")
    assert found == before


def test_copied_images_are_the_same_images(tmp_path, planned, images, uninterrupted):
    place = planned(tmp_path / "a")
    shutil.copytree(images, tmp_path / "noise", copy_function=shutil.copyfile)
    _change_a_plan(place, images=str(tmp_path / "noise"))
    assert run(place, progress=False).complete
    found, expected = store_bytes(place), store_bytes(uninterrupted)
    assert found["response/c/0/0/0"] == expected["response/c/0/0/0"]


def test_parts_do_not_seal_and_finalize_does(tmp_path, planned, uninterrupted):
    place = planned(tmp_path / "a")
    assert run(place, part="2/2", progress=False).done == 3
    with pytest.raises(IncompleteStoreError, match="3 of 6 blocks"):
        finalize(place)
    assert status(place).done == 3
    found = run(place, part=(1, 2), progress=False)
    assert (found.done, found.complete) == (6, False)
    finalize(place)
    assert status(place).complete
    assert store_bytes(place) == store_bytes(uninterrupted)


def test_subjects_with_their_own_voxels_share_the_backbone(
    tmp_path, images, ragged_model, monkeypatch
):
    seen = []
    original = kernels.preprocessed
    monkeypatch.setattr(
        kernels,
        "preprocessed",
        lambda read, count, *rest: seen.append(count) or original(read, count, *rest),
    )
    init(images, ragged_model, tmp_path / "a", block=BLOCK)
    writer = BlockWriter.resume(tmp_path / "a")
    assert len(writer.blocks) == 18
    assert [len(unit) for unit in by_range(writer.blocks)] == [3] * 6
    found = run(tmp_path / "a", part="1/2", progress=False)
    assert found.done == 9
    assert seen == [BLOCK] * 3
    assert run(tmp_path / "a", progress=False).complete
    assert sum(seen) == COUNT
    stored = nedx.open_store(tmp_path / "a")
    expected = nedx.open_images(images).ned.encode(ragged_model)
    for name in ("sub-01", "sub-02", "sub-03"):
        np.testing.assert_allclose(
            stored[name]["response"], expected[name]["response"].values, rtol=ROUNDED
        )
    report = verify(tmp_path / "a", recompute=0.5)
    assert report.ok
    assert len(report.blocks) == 9


def _alter(place: Path, size: float) -> None:
    """Change every value of the store, and all hashes with them."""
    array = zarr.open_array(place, path="response", mode="r+")
    array[:] = array[:] + np.float32(size)
    manifest = json.loads((place / "_nedx/manifest.json").read_text())
    for key in manifest["objects"]:
        held = StoredObject.of((place / key).read_bytes())
        manifest["objects"][key] = {"size": held.size, "sha256": held.sha256}
    (place / "_nedx/manifest.json").write_text(json.dumps(manifest))


def test_verify_computes_again_and_finds_other_values(tmp_path, uninterrupted):
    report = verify(uninterrupted, recompute=0.5)
    assert report.ok
    assert len(report.blocks) == 3
    assert report.largest_deviation <= 1e-6
    assert "computed again" in str(report)
    assert verify(uninterrupted).blocks == ()
    assert len(verify(uninterrupted, recompute=0.01).blocks) == 1

    shutil.copytree(uninterrupted, tmp_path / "a")
    _alter(tmp_path / "a", 0.1)
    assert verify(tmp_path / "a").ok
    report = verify(tmp_path / "a", recompute=0.5)
    assert not report.ok
    assert report.largest_deviation > 2e-3


def test_verify_says_why_it_cannot_compute_again(tmp_path, uninterrupted):
    nedx.to_zarr(nedx.open_store(uninterrupted).isel(image=slice(0, 8)), tmp_path / "few")
    with pytest.raises(ModelError, match="not all that its recipe makes"):
        verify(tmp_path / "few", recompute=1.0)
    plain = nedx.open_store(uninterrupted).drop_attrs(deep=False)
    nedx.to_zarr(plain, tmp_path / "plain")
    with pytest.raises(ModelError, match="does not say how"):
        verify(tmp_path / "plain", recompute=1.0)


def test_a_store_of_another_origin_is_no_job(tmp_path, uninterrupted):
    ds = nedx.open_store(uninterrupted)
    BlockWriter.create(ds, tmp_path / "a", "r")
    with pytest.raises(StoreError, match="not begun by 'nedx synth init'"):
        run(tmp_path / "a")
    with pytest.raises(StoreError, match="no store at|nothing to resume"):
        run(tmp_path / "b")


def test_bad_options_are_told_before_anything_is_written(tmp_path, images, model):
    with pytest.raises(nedx.errors.NedxError, match="sub-09"):
        init(images, model, tmp_path / "a", subject="9")
    with pytest.raises(nedx.errors.NedxError):
        init(tmp_path / "no images", model, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_recipe_is_json(images, model):
    recipe = SynthesisRecipe(images=str(images), model=str(model), time=(0.1, None), subject=("1",))
    assert SynthesisRecipe(**json.loads(recipe.model_dump_json())) == recipe


def test_the_shell_does_all_of_it(tmp_path, images, model, capsys, monkeypatch):
    monkeypatch.chdir(images.parent)
    place = str(tmp_path / "a")
    assert main(["synth", "init", "noise", str(model), place, "--subject", "1"]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["synth", "status", place]) == 0
    assert "0 of 1 blocks" in capsys.readouterr().out
    assert main(["synth", "run", place, "--part", "1/1", "--quiet"]) == 0
    assert main(["synth", "finalize", place]) == 0
    assert main(["synth", "status", place, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["complete"] is True
    assert main(["synth", "verify", place, "--recompute", "50%"]) == 0
    assert "computed again" in capsys.readouterr().out
