"""Recipes of image sets: the right images, in the right order, under the ids that join."""

from __future__ import annotations

import csv
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from PIL import Image

import nedx
from nedx.cli import main
from nedx.errors import CatalogError, StimulusError, UnknownIdError
from nedx.sources.berg.responses import open_responses
from nedx.synthesis import finalize, init, load_recipe, open_image_set, run, status, verify
from nedx.synthesis.recipes import recipe_names
from tests import tvshim  # noqa: F401 - must come before torchvision
from tests.berg.responses import write_responses
from tests.encoding.truth import SIDE, random_pixels
from tests.laziness import computes_at_most

COUNT = 12
ROUNDED = 2.0**-11


@pytest.fixture
def smaller(tmp_path):
    """Return a function that writes a recipe of nedx again, for a small set of its layout."""

    def write(name: str, folders: int = 3, **changes: object) -> Path:
        content = load_recipe(name).model_dump(mode="json")
        content.update({"count": COUNT, "size": SIDE, **changes})
        if content["source"]["kind"] == "folders":
            content["source"]["folders"] = folders
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def write_brick(path: Path, pixels: np.ndarray, name: str = "imgBrick") -> Path:
    with h5py.File(path, "w") as file:
        file[name] = pixels
    return path


def write_tree(root: Path, files: list[str], *, side: int = SIDE, suffix: str = ".png") -> dict:
    """Write an image of noise for each name; return pixels by name."""
    pixels = dict(zip(files, random_pixels(len(files), seed=3, side=side), strict=True))
    for name, image in pixels.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / name, format="PNG")
    return pixels


def imagenet_files() -> list[str]:
    """Return four files of each of three classes; numbers do not follow the classes."""
    classes = ["n01440764", "n01443537", "n01484850"]
    numbers = np.random.default_rng(0).permutation(50_000)[:COUNT].reshape(3, 4) + 1
    return [
        f"{name}/ILSVRC2012_val_{n:08d}.JPEG"
        for name, row in zip(classes, numbers, strict=True)
        for n in sorted(row)
    ]


def things_files() -> list[str]:
    return [
        f"{concept}/{concept}_{n:02d}{letter}.jpg"
        for concept in ("aardvark", "air_pump", "airbag")
        for n, letter in ((1, "b"), (2, "s"), (10, "s"), (11, "n"))
    ]


def expected_responses(pixels: np.ndarray, model: Path) -> np.ndarray:
    return nedx.open_images(pixels).ned.encode(model)["response"].values


def synthesised(place: Path):
    assert status(place).done == 0
    assert run(place, part="1/1", progress=False).done == status(place).total
    finalize(place)
    assert status(place).complete
    report = verify(place, recompute=1.0)
    assert report.ok
    assert report.largest_deviation <= 1e-6
    return nedx.open(place)


def test_nsd_from_its_file_to_a_store(tmp_path, smaller, model):
    pixels = random_pixels(COUNT, seed=1)
    brick = write_brick(tmp_path / "nsd_stimuli.hdf5", pixels)
    recipe = smaller("nsd-73k")
    with computes_at_most(0):
        init(brick, model, tmp_path / "a", recipe=recipe, block=4, device="cpu")
    # What the store needs to know is in it.
    recipe.unlink()
    stored = synthesised(tmp_path / "a")
    assert stored["image_id"].values.tolist() == [f"nsd:{i:05d}" for i in range(COUNT)]
    assert stored["nsd_id"].values.tolist() == list(range(COUNT))
    expected = expected_responses(pixels, model)
    np.testing.assert_allclose(stored["response"], expected, rtol=ROUNDED)
    np.testing.assert_allclose(
        stored.sel(image_id="nsd:00007")["response"], expected[:, 7], rtol=ROUNDED
    )
    assert stored.attrs["stimulus_recipe"] == "nsd-73k"
    assert "NSD" in stored.attrs["stimulus_license"]


def test_imagenet_in_the_order_of_torchvision(tmp_path, smaller, model):
    datasets = pytest.importorskip("torchvision.datasets")
    pixels = write_tree(tmp_path / "val", imagenet_files())
    init(tmp_path, model, tmp_path / "a", recipe=smaller("imagenet-val"), device="cpu")
    stored = synthesised(tmp_path / "a")
    told = datasets.ImageFolder(str(tmp_path / "val"))
    order = [Path(path).relative_to(tmp_path / "val").as_posix() for path, _ in told.samples]
    assert stored["filename"].values.tolist() == order
    assert stored["imagenet_label"].values.tolist() == told.targets
    assert stored["imagenet_class"].values.tolist() == [told.classes[t] for t in told.targets]
    assert stored["imagenet_label"].dtype == np.int16
    # The ids of the responses that were published.
    expected_ids = [f"imagenet-val:row-{i:05d}" for i in range(COUNT)]
    assert stored["image_id"].values.tolist() == expected_ids
    expected = expected_responses(np.stack([pixels[name] for name in order]), model)
    np.testing.assert_allclose(stored["response"], expected, rtol=ROUNDED)


def test_things_in_the_order_of_its_table(tmp_path, smaller, model):
    files = things_files()
    pixels = write_tree(tmp_path / "images", files)
    recipe = smaller("things")
    plain = open_image_set(recipe, tmp_path / "images")
    assert plain["filename"].values.tolist() == files
    order = [files[i] for i in np.random.default_rng(4).permutation(COUNT)]
    with (tmp_path / "image_paths.csv").open("w", newline="") as file:
        csv.writer(file).writerows([f"images/{name}"] for name in order)
    init(tmp_path, model, tmp_path / "a", recipe=recipe, device="cpu", subject="1")
    stored = synthesised(tmp_path / "a")
    stems = [Path(name).stem for name in order]
    assert stored["image_id"].values.tolist() == [f"things:{stem}" for stem in stems]
    assert stored["things_concept"].values.tolist() == [name.split("/")[0] for name in order]
    expected = expected_responses(np.stack([pixels[name] for name in order]), model)[:1]
    np.testing.assert_allclose(stored["response"], expected, rtol=ROUNDED)
    with (tmp_path / "image_paths.csv").open("a") as file:
        file.write("images/airbag/airbag_99s.jpg\n")
    with pytest.raises(
        StimulusError, match=r"image_paths.csv lists 13 .* first is airbag.airbag_99s"
    ):
        open_image_set(recipe, tmp_path)


@pytest.mark.parametrize("name", ["nsd-73k", "imagenet-val", "things"])
def test_they_join_the_responses_that_were_published(tmp_path, smaller, name):
    image_set = {"nsd-73k": "nsd"}.get(name, name.replace("-", "_"))
    # The design of NSD that comes with the responses needs more images than twelve.
    written = write_responses(tmp_path, image_set, count=40 if image_set == "nsd" else COUNT)
    recipe, source, labels = smaller(name), tmp_path / "images", ["nsd_id"]
    if name == "nsd-73k":
        source = write_brick(tmp_path / "nsd_stimuli.hdf5", random_pixels(COUNT))
    elif name == "imagenet-val":
        write_tree(source, imagenet_files())
        labels = ["imagenet_label"]
    else:
        recipe, labels = smaller(name, folders=4), ["filename", "things_concept"]
        write_tree(source, list(written.metadata["things_labels"]["image_paths"].values()))
    where = {"modality": "fmri", "dataset": "nsd", "model": "fwrf", "image_set": image_set}
    published = open_responses(tmp_path, **where, roi="V1", subject=1)
    images = open_image_set(recipe, source)
    assert images["image_id"].values.tolist() == published["image_id"].values[:COUNT].tolist()
    some = images.isel(image=[7, 2, 9])
    joined = published.sel(image_id=some["image_id"].values)
    np.testing.assert_array_equal(joined["response"].values, written.values[[7, 2, 9]])
    for label in [*labels, "stimulus_set"]:
        assert some[label].values.tolist() == joined[label].values.tolist()
        assert some[label].dtype == joined[label].dtype
    means = joined.ned.roi_response()["roi_response"]
    expected = written.values[[7, 2, 9]].mean(axis=1)
    np.testing.assert_allclose(means.values[:, 0, 0], expected, rtol=0, atol=1e-6)


def test_other_sizes_are_cropped_and_may_be_chosen(tmp_path, smaller):
    write_tree(tmp_path / "images", things_files(), side=SIDE + 10)
    recipe = smaller("things")
    images = open_image_set(recipe, tmp_path)
    assert images["pixels"].shape == (COUNT, SIDE, SIDE, 3)
    assert images.attrs["image_fit"] == {"fit": "crop", "size": [SIDE, SIDE]}
    assert open_image_set(recipe, tmp_path, size=50)["pixels"].shape[1:3] == (50, 50)
    with pytest.raises(StimulusError, match="size"):
        open_image_set(recipe, tmp_path, sizes=50)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux counts what is read")
def test_of_the_whole_of_nsd_only_the_rows_asked_for_are_read(tmp_path):
    path, rows = tmp_path / "nsd_stimuli.hdf5", [0, 41_234, 72_999]
    pixels = random_pixels(3, seed=5, side=425)
    with h5py.File(path, "w") as file:
        # Space is set aside and not filled, so that 40 GB take three images of the disk.
        create = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        create.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        create.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple((73_000, 425, 425, 3))
        h5py.h5d.create(file.id, b"imgBrick", h5py.h5t.NATIVE_UINT8, space, create)
        for row, image in zip(rows, pixels, strict=True):
            file["imgBrick"][row] = image
    if path.stat().st_blocks * 512 > 10**9:
        pytest.skip("this file system has no sparse files")
    before = _bytes_read()
    images = open_image_set("nsd-73k", tmp_path)
    assert images.sizes["image"] == 73_000
    some = pickle.loads(pickle.dumps(images.sel(image_id=[f"nsd:{row:05d}" for row in rows])))
    np.testing.assert_array_equal(some["pixels"].values, pixels)
    assert some["nsd_id"].values.tolist() == rows
    assert _bytes_read() - before < 3 * pixels[0].nbytes + 1_000_000


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def test_the_recipes_are_those_of_the_published_responses():
    assert recipe_names() == ["imagenet-val", "nsd-73k", "things"]
    counts = {name: load_recipe(name).count for name in recipe_names()}
    assert counts == {"imagenet-val": 50_000, "nsd-73k": 73_000, "things": 26_107}
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.id == name
        assert recipe.license
        assert "http" in recipe.images


def test_a_wrong_source_is_told_before_any_work(tmp_path, smaller, model):
    nsd, things, imagenet = (smaller(n) for n in ("nsd-73k", "things", "imagenet-val"))
    write_brick(tmp_path / "few.hdf5", random_pixels(COUNT - 1))
    write_brick(tmp_path / "other.hdf5", random_pixels(COUNT), name="images")
    write_brick(tmp_path / "wide.hdf5", random_pixels(COUNT, side=SIDE + 1))
    write_brick(tmp_path / "grey.hdf5", random_pixels(COUNT)[..., 0])
    (tmp_path / "nothing").mkdir()
    write_tree(tmp_path / "less", things_files()[:-1])
    write_tree(tmp_path / "two", [f.replace("airbag", "air_pump") for f in things_files()[:4]])
    write_tree(tmp_path / "flat", [Path(f).name for f in imagenet_files()])
    write_tree(tmp_path / "named", things_files())
    cases = [
        (nsd, "few.hdf5", "found 11 images .* expected 12.*nsd_stimuli"),
        (nsd, "other.hdf5", "has no 'imgBrick'; there are: images"),
        (nsd, "wide.hdf5", "expected 64 x 64 pixels; sizes found .* 65 x 65"),
        (nsd, "grey.hdf5", "'imgBrick': pixels must have axes"),
        (nsd, "nothing", "no nsd_stimuli.hdf5 in"),
        (nsd, "absent.hdf5", "does not exist"),
        (nsd, "s3://bucket/nsd_stimuli.hdf5", "no path of this machine"),
        (things, "less", "found 11 images .* expected 12.*osf.io"),
        (things, "two", "found 4 images"),
        (things, "nothing", "found 0 images"),
        (things, "few.hdf5", "is no folder"),
        (imagenet, "flat", "12 images and no folder for each class.*torchvision"),
        (imagenet, "named", "unexpected names, the first is 'aardvark'"),
    ]
    for recipe, name, message in cases:
        source = name if "://" in name else tmp_path / name
        with pytest.raises(StimulusError, match=message):
            init(source, model, tmp_path / "a", recipe=recipe)
    assert not (tmp_path / "a").exists()


def test_a_wrong_recipe_is_told_with_all_its_faults(tmp_path, smaller, images, model):
    with pytest.raises(UnknownIdError, match="'nsd-73k'"):
        init(images, model, tmp_path / "a", recipe="nsd73k")
    with pytest.raises(UnknownIdError, match=r"mine\.yaml"):
        load_recipe(tmp_path / "mine.yaml")
    bad = smaller("things", image_id="things:{stem.__class__}", count=0, code="x")
    with pytest.raises(CatalogError, match=r"(?s)count.*image_id.*code"):
        load_recipe(bad)
    (tmp_path / "b.yaml").write_text("!!python/object/apply:os.getcwd []")
    with pytest.raises(CatalogError, match="data-only"):
        load_recipe(tmp_path / "b.yaml")
    for change in ({"labels": {"things_concept": "folder"}}, {"image_id": "nsd:{stem}"}):
        with pytest.raises(CatalogError, match="rows only"):
            load_recipe(smaller("nsd-73k", **change))


def test_the_shell_plans_by_a_recipe(smaller, tmp_path, model, capsys):
    brick = write_brick(tmp_path / "nsd_stimuli.hdf5", random_pixels(COUNT))
    place = tmp_path / "out.zarr"
    words = ["synth", "init", str(brick), str(model), str(place)]
    assert main([*words, "--recipe", "nsd-37k"]) == 1
    assert "did you mean 'nsd-73k'" in capsys.readouterr().err
    assert main([*words, "--recipe", "nsd-73k"]) == 1
    assert "expected 425 x 425 pixels" in capsys.readouterr().err
    assert not place.exists()
    assert main([*words, "--recipe", str(smaller("nsd-73k"))]) == 0
    assert main(["synth", "run", str(place), "--quiet"]) == 0
    assert nedx.open(str(place))["image_id"].values[3] == "nsd:00003"
