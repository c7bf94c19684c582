"""`open_images` on every kind of source, and on every kind of bad input."""

from __future__ import annotations

import hashlib
import logging

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from nedx.compute.planned import PlannedArray
from nedx.errors import StimulusError
from nedx.stimuli import add_sha256, image_sha256, open_images, sources
from nedx.stimuli.images import natural_key
from tests.laziness import computes_at_most


def noise(count: int = 6, y: int = 12, x: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, y, x, 3), dtype=np.uint8)


def save(folder, images: dict[str, np.ndarray]) -> None:
    for name, image in images.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        options = {"lossless": True} if path.suffix == ".webp" else {}
        Image.fromarray(image).save(path, **options)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    names = ["img10.png", "img2.png", "zoo/lion.webp", "zoo/cub/1.png", "home/cat.PNG"]
    images = dict(zip(names, noise(5), strict=True))
    save(folder, images)
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_text("not an image")
    return folder, images


def test_a_nested_folder(photos):
    folder, images = photos
    ds = open_images(folder)
    order = ["home/cat.PNG", "img2.png", "img10.png", "zoo/cub/1.png", "zoo/lion.webp"]
    assert ds.filename.values.tolist() == order
    assert ds.image_id.values.tolist() == [
        *("photos:home/cat", "photos:img2", "photos:img10"),
        *("photos:zoo/cub/1", "photos:zoo/lion"),
    ]
    assert ds.category.values.tolist() == ["home", "", "", "zoo/cub", "zoo"]
    assert set(ds.stimulus_set.values) == {"photos"}
    assert ds.pixels.dims == ("image", "y", "x", "rgb")
    assert ds.pixels.dtype == np.uint8
    assert ds.pixels.attrs["units"] == "1"
    assert ds.attrs["stimulus_type"] == "image"
    assert isinstance(ds.pixels.data, PlannedArray)
    np.testing.assert_array_equal(ds.pixels, [images[name] for name in order])


def test_labels_select_images(photos):
    folder, images = photos
    one = open_images(folder).sel(image_id="photos:zoo/lion")
    np.testing.assert_array_equal(one.pixels, images["zoo/lion.webp"])


def test_a_flat_folder_has_no_categories(tmp_path):
    save(tmp_path / "flat", {"a.png": noise(1)[0]})
    assert "category" not in open_images(tmp_path / "flat").coords


def test_the_name_of_the_set_can_be_given(photos):
    ds = open_images(photos[0], image_set="things")
    assert ds.image_id.values[0] == "things:home/cat"


def test_a_list_of_paths_keeps_its_order(photos):
    folder, images = photos
    ds = open_images([folder / "zoo/lion.webp", str(folder / "img2.png")])
    assert ds.filename.values.tolist() == ["lion.webp", "img2.png"]
    assert ds.image_id.values.tolist() == ["photos:lion", "photos:img2"]
    np.testing.assert_array_equal(ds.pixels, [images["zoo/lion.webp"], images["img2.png"]])


def test_one_file(photos):
    folder, images = photos
    np.testing.assert_array_equal(open_images(folder / "img2.png").pixels, [images["img2.png"]])


def test_an_array():
    images = noise()
    ds = open_images(images, image_set="mine", chunks={"image": 4})
    np.testing.assert_array_equal(ds.pixels, images)
    assert ds.image_id.values.tolist() == [f"mine:{i:05d}" for i in range(6)]
    assert ds.chunks["image"] == (4, 2)


def test_a_list_of_arrays_of_several_sizes():
    images = [noise(1, 12, 16)[0], noise(1, 20, 10)[0]]
    ds = open_images(images, fit="pad", size=20)
    found = ds.pixels.values
    np.testing.assert_array_equal(found[1][:, 5:15], images[1])
    assert (found[1][:, :5] == 128).all()
    assert ds.attrs["image_fit"] == {"fit": "pad", "size": [20, 20]}


def test_ids_can_be_given():
    ds = open_images(noise(2), image_ids=["nsd:00007", "nsd:00009"])
    assert ds.image_id.values.tolist() == ["nsd:00007", "nsd:00009"]
    with pytest.raises(StimulusError, match="2 images, and 1 image_ids"):
        open_images(noise(2), image_ids=["nsd:00007"])


def test_nothing_is_decoded_at_opening(photos, monkeypatch):
    decoded = []
    decode = sources.decode_image
    monkeypatch.setattr(sources, "decode_image", lambda p: decoded.append(p) or decode(p))
    with computes_at_most(0):
        ds = open_images(photos[0])
        some = ds.isel(image=[3, 1]).sel(image_id="photos:img2")
        repr(ds), ds._repr_html_()
    assert decoded == []
    some.pixels.values  # noqa: B018
    assert [path.rsplit("/", 1)[-1] for path in decoded] == ["img2.png"]


@pytest.fixture
def brick(tmp_path):
    h5py = pytest.importorskip("h5py")
    images = noise(20, 10, 10)
    with h5py.File(tmp_path / "nsd_stimuli.hdf5", "w") as file:
        file.create_dataset("imgBrick", data=images, chunks=(3, 10, 10, 3))
    return tmp_path / "nsd_stimuli.hdf5", images


def test_the_brick_of_nsd(brick):
    path, images = brick
    ds = open_images(path, image_set="nsd", chunks=7)
    assert ds.image_id.values[3] == "nsd:00003"
    np.testing.assert_array_equal(ds.nsd_id, np.arange(20))
    np.testing.assert_array_equal(ds.pixels, images)
    chosen = [5, 6, 7, 2, 19, 0, 5]
    np.testing.assert_array_equal(ds.pixels[chosen], images[chosen])
    some = ds.sel(image_id=["nsd:00017", "nsd:00004"])
    np.testing.assert_array_equal(some.pixels, images[[17, 4]])
    np.testing.assert_array_equal(some.nsd_id, [17, 4])
    some.pixels.data.plan.source.close()
    np.testing.assert_array_equal(some.pixels, images[[17, 4]])


def test_a_brick_of_full_size_opens_at_once(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "nsd_stimuli.hdf5"
    with h5py.File(path, "w") as file:
        shape = (73_000, 425, 425, 3)
        brick = file.create_dataset("imgBrick", shape, "uint8", chunks=(1, 425, 425, 3))
        brick[72_999] = 7
    ds = open_images(path)
    assert ds.pixels.shape == shape
    assert ds.image_id.values[-1] == "nsd:72999"
    assert (ds.isel(image=[-1, 5]).pixels.values[:, 0, 0, 0] == [7, 0]).all()
    assert 16 <= ds.pixels.data.chunksize[0] * 425 * 425 * 3 / 2**20 <= 64


def test_a_brick_is_fitted(brick):
    path, images = brick
    ds = open_images(path, fit="crop", size=(6, 10))
    np.testing.assert_array_equal(ds.pixels, images[:, 2:8])


def test_bricks_say_what_they_hold(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "file.h5"
    with h5py.File(path, "w") as file:
        file["deep/stimuli"] = np.zeros((2, 3, 227, 227), np.int16)
    with pytest.raises(StimulusError, match=r"deep/stimuli int16 \(2, 3, 227, 227\).*key="):
        open_images(path)
    with pytest.raises(StimulusError, match="must be uint8, these are int16"):
        open_images(path, key="deep/stimuli")
    with pytest.raises(StimulusError, match="has no 'stimuli'"):
        open_images(path, key="stimuli")
    path.write_bytes(b"no HDF5")
    with pytest.raises(StimulusError, match="is not an HDF5 file"):
        open_images(path)


def stored(tmp_path, name="pixels"):
    images = noise(20, 8, 8)
    ids = np.array([f"set:{i:05d}" for i in range(20)], dtype=object)
    ds = xr.Dataset({name: (("image", "y", "x", "rgb"), images)}, {"image_id": ("image", ids)})
    chunks = {name: {"chunks": (4, 8, 8, 3)}}
    ds.to_zarr(tmp_path / "images.zarr", zarr_format=3, consolidated=True, encoding=chunks)
    return tmp_path / "images.zarr", images


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_a_zarr_store(tmp_path):
    path, images = stored(tmp_path)
    ds = open_images(path)
    np.testing.assert_array_equal(ds.pixels, images)
    some = ds.sel(image_id=["set:00017", "set:00004", "set:00005"])
    np.testing.assert_array_equal(some.pixels, images[[17, 4, 5]])
    assert ds.pixels.data.plan.source.shape == (20, 8, 8, 3)
    assert ds.chunks["image"][0] % 4 == 0
    cropped = open_images(path, fit="crop", size=(4, 8))
    np.testing.assert_array_equal(cropped.pixels, images[:, 2:6])


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_a_zarr_store_under_another_name(tmp_path):
    path, images = stored(tmp_path, "stimuli")
    np.testing.assert_array_equal(open_images(path, key="stimuli").pixels, images)
    with pytest.raises(StimulusError, match="has no 'pixels'.*stimuli"):
        open_images(path)


def test_a_dataset():
    ids = np.array(["a:1", "a:2"], dtype=object)
    ds = xr.Dataset(
        {"pixels": (("image", "y", "x", "rgb"), noise(2))}, {"image_id": ("image", ids)}
    )
    for given in (ds, ds.chunk(image=1), open_images(ds)):
        found = open_images(given)
        np.testing.assert_array_equal(found.pixels, ds.pixels)
        np.testing.assert_array_equal(found.sel(image_id="a:2").pixels, ds.pixels[1])
    with pytest.raises(StimulusError, match="has no 'pixels'"):
        open_images(ds.rename(pixels="images"))


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(StimulusError, match=r"no images in .*; it is empty.*\.png"):
        open_images(tmp_path)
    (tmp_path / "notes.txt").write_text("words")
    with pytest.raises(StimulusError, match=r"it holds \.txt"):
        open_images(tmp_path)


def test_a_missing_folder_names_the_close_ones(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(StimulusError, match="no file or folder.*did you mean 'photos'"):
        open_images(tmp_path / "photo")


@pytest.mark.parametrize(
    ("images", "advice"),
    [
        (noise().astype(np.int64), r"int64, 0 to 255. Type: images.astype\(np.uint8\)"),
        (noise().astype(np.float64), r"float64, 0 to 255. Type: images.round\(\)"),
        (noise() / np.float32(255), r"float32, 0 to 1. Type: \(255 \* images\)"),
        (noise().astype(np.int64) * 5, "no range of pixels"),
        (noise() - 100.0, "no range of pixels"),
        (np.full((2, 8, 8, 3), np.nan), "NaN"),
        (np.zeros((2, 3, 32, 32), np.uint8), r"transpose\(0, 2, 3, 1\)"),
        (np.zeros((0, 32, 32, 3), np.uint8), "holds no images"),
        ([], "list of images is empty"),
        ([3, 4], "this one holds int"),
        ([noise(1)[0], noise(1)[0] / 255], "image 1 of the list"),
    ],
)
def test_wrong_arrays_say_what_to_type(images, advice):
    with pytest.raises(StimulusError, match=advice):
        open_images(images)


def test_numpy_files_say_what_to_type(tmp_path):
    np.save(tmp_path / "images.npy", noise())
    with pytest.raises(StimulusError, match="np.load"):
        open_images(tmp_path / "images.npy")


def test_sizes_that_differ_are_an_error_until_said(tmp_path):
    save(tmp_path, {"a.png": noise(1, 12, 16)[0], "b.png": noise(1, 30, 20)[0]})
    with pytest.raises(StimulusError, match=r'12 x 16 \(1 image\).*fit="crop", size=12'):
        open_images(tmp_path)
    for fit in ("crop", "resize", "pad"):
        assert open_images(tmp_path, fit=fit, size=10).pixels.values.shape == (2, 10, 10, 3)


@pytest.fixture
def damaged(tmp_path):
    folder = tmp_path / "damaged"
    save(folder, {f"{i}.jpg": image for i, image in enumerate(noise(4, 60, 60))})
    (folder / "0.jpg").write_bytes(b"")
    (folder / "1.jpg").write_bytes(b"not an image")
    half = (folder / "2.jpg").read_bytes()
    (folder / "2.jpg").write_bytes(half[: len(half) * 2 // 3])
    return folder


def test_broken_headers_are_all_named_at_opening(damaged):
    with pytest.raises(StimulusError) as caught:
        open_images(damaged)
    message = str(caught.value)
    assert "3 images cannot be decoded" in message
    assert "0.jpg: the file is empty" in message
    assert "1.jpg: it is not an image" in message
    assert "2.jpg: " in message
    assert 'errors="skip"' in message


def test_files_broken_between_their_ends_are_all_named_at_reading(tmp_path):
    folder = tmp_path / "damaged"
    save(folder, {f"{i}.png": image for i, image in enumerate(noise(4, 60, 60))})
    for name in ("0.png", "2.png"):
        content = bytearray((folder / name).read_bytes())
        content[60:90] = bytes(30)
        (folder / name).write_bytes(content)
    ds = open_images(folder)
    assert ds.sizes["image"] == 4
    np.testing.assert_equal(ds.isel(image=[1, 3]).pixels.values.shape, (2, 60, 60, 3))
    with pytest.raises(StimulusError, match=r"(?s)2 images cannot be decoded.*0\.png.*2\.png"):
        ds.pixels.compute()


def test_broken_files_can_be_left_out(damaged, caplog):
    with caplog.at_level(logging.WARNING):
        ds = open_images(damaged, errors="skip")
    assert ds.filename.values.tolist() == ["3.jpg"]
    assert ds.attrs["skipped_images"] == ["0.jpg", "1.jpg", "2.jpg"]
    assert len(caplog.records) == 3
    assert ds.pixels.values.shape == (1, 60, 60, 3)
    (damaged / "3.jpg").unlink()
    with pytest.raises(StimulusError, match="none of the 3 images"):
        open_images(damaged, errors="skip")


def test_a_missing_file_of_a_list_is_named(photos):
    with pytest.raises(StimulusError, match="absent.png: No such file"):
        open_images([photos[0] / "img2.png", photos[0] / "absent.png"])


def test_the_folder_of_work_and_the_empty_path(photos, monkeypatch):
    monkeypatch.chdir(photos[0])
    assert open_images(".").image_id.values[0] == "photos:home/cat"
    with pytest.raises(StimulusError, match="path is empty"):
        open_images("")


@pytest.mark.parametrize("as_list", [True, False])
def test_images_on_servers_are_to_be_copied(as_list):
    url = "https://example.org/lion.jpg"
    with pytest.raises(StimulusError, match=r"Copy the files first.*filesystem\('https'\)"):
        open_images([url] if as_list else url)


def test_a_file_that_goes_away_is_named(photos):
    ds = open_images(photos[0])
    (photos[0] / "img2.png").unlink()
    with pytest.raises(StimulusError, match="img2.png: No such file"):
        ds.pixels.compute()


def test_ids_that_are_not_unique_are_an_error(tmp_path):
    image = noise(1)[0]
    save(tmp_path / "set", {"a.png": image, "a.jpg": image, "b.png": image})
    with pytest.raises(StimulusError, match="several times: 'set:a'"):
        open_images(tmp_path / "set")


def test_nonsense_arguments_are_named(photos):
    with pytest.raises(StimulusError, match="errors='ignore'"):
        open_images(photos[0], errors="ignore")
    with pytest.raises(StimulusError, match="chunks must be"):
        open_images(photos[0], chunks=0)


def test_natural_order():
    names = ["img10", "img2", "a/b", "img02", "img2b", "10", "9", "a"]
    expected = ["9", "10", "a", "a/b", "img02", "img2", "img2b", "img10"]
    assert sorted(names, key=natural_key) == expected


def test_hashes_are_those_of_the_pixels():
    images = noise(5, 4, 6)
    with computes_at_most(0):
        ds = add_sha256(open_images(images, chunks=2))
    expected = [hashlib.sha256(b"4x6:" + image.tobytes()).hexdigest() for image in images]
    assert ds.sha256.values.tolist() == expected
    assert image_sha256(images[0]) == expected[0]
    assert image_sha256(images[0].reshape(6, 4, 3)) != expected[0]
