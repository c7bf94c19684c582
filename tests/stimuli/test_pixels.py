"""Lazy pixels: exact under any selection, from any thread and process, in bounded memory."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import dask
import numpy as np
import pytest
from dask.base import tokenize
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nedx.compute.planned import PlannedArray
from nedx.stimuli import open_images, sources
from nedx.stimuli.pixels import PixelPlan, chunk_images, plan_pixels
from tests.laziness import computes_at_most
from tests.memory import needs_proc

SHAPE = (11, 4, 5, 3)
IMAGES = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)


class CountingSource:
    """Images in memory, and which of them were read."""

    shape = SHAPE

    def __init__(self):
        self.reads: list[int] = []

    def __dask_tokenize__(self):
        return "counting", id(self)

    def read(self, indices):
        self.reads += indices.tolist()
        return IMAGES[indices]

    def portion(self, indices):
        return self, indices

    def close(self):
        pass


def indexers(size: int):
    slices = st.slices(size)
    positions = st.lists(st.integers(-size, size - 1), max_size=8).map(
        lambda p: np.array(p, dtype=np.int64)
    )
    masks = st.lists(st.booleans(), min_size=size, max_size=size).map(np.array)
    return st.one_of(slices, positions, masks, st.integers(-size, size - 1))


def by_numpy(array: np.ndarray, key: tuple) -> np.ndarray:
    """Index one axis after the other, the last first, so that integers drop no axis too early."""
    for axis in reversed(range(len(key))):
        array = array[(slice(None),) * axis + (key[axis],)]
    return array


@settings(max_examples=80)
@given(
    st.tuples(*(indexers(size) for size in SHAPE)),
    indexers(SHAPE[0]),
    st.integers(1, 12),
)
def test_any_selection_equals_numpy(key, first, chunk):
    lazy = plan_pixels(CountingSource(), chunk)
    np.testing.assert_array_equal(lazy[first].compute(), IMAGES[first])
    np.testing.assert_array_equal(lazy[key].compute(), by_numpy(IMAGES, key))


@settings(max_examples=60)
@given(
    st.one_of(st.slices(SHAPE[0]), st.lists(st.integers(0, 10), min_size=1, max_size=9)),
    st.data(),
)
def test_only_selected_images_are_read_in_one_go_or_in_steps(first, data):
    source = CountingSource()
    lazy = plan_pixels(source, 3)
    taken = np.arange(SHAPE[0])[first]
    second = data.draw(st.slices(len(taken))) if len(taken) else slice(None)
    left = taken[second]
    np.testing.assert_array_equal(lazy[first][second].compute(), IMAGES[left])
    assert sorted(source.reads) == sorted(left.tolist())


def test_selections_of_pixels_are_cut_after_reading():
    lazy = plan_pixels(CountingSource(), 3)
    part = lazy[:, 1:3][:, :, ::-1][:, :, :, 0:1][2:7]
    assert isinstance(part, PlannedArray)
    assert not part.plan.is_whole
    assert lazy[3:5].plan.is_whole
    assert part.shape == part.plan.shape == (5, 2, 5, 1)
    np.testing.assert_array_equal(part.compute(), IMAGES[2:7, 1:3, ::-1, 0:1])


def test_building_and_selecting_reads_nothing():
    source = CountingSource()
    with computes_at_most(0):
        lazy = plan_pixels(source, 2)
        lazy[[3, 1]][:, 1:2]
        lazy[lazy.shape[0] - 1]
        lazy.astype(np.float32).mean(axis=0)
    assert source.reads == []


def test_names_follow_contents(tmp_path):
    path = tmp_path / "a.png"

    def name() -> str:
        return open_images(tmp_path).pixels.data.name

    Image.fromarray(IMAGES[0]).save(path)
    first = name()
    assert first == name()
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(path)
    assert first != name()
    assert open_images(IMAGES).pixels.data.name == open_images(IMAGES.copy()).pixels.data.name
    assert open_images(IMAGES).pixels.data.name != open_images(IMAGES[::-1]).pixels.data.name


def test_names_tell_long_selections_apart():
    """A printed array of more than 1000 numbers leaves out its middle."""
    source = open_images(np.zeros((3000, 1, 1, 3), np.uint8), chunks=3000).pixels.data
    first, second = np.arange(3000), np.arange(3000)
    second[1500] = 0
    assert source[first].name != source[second].name


def test_a_source_keeps_its_token_through_a_pickle(tmp_path):
    Image.fromarray(IMAGES[0]).save(tmp_path / "a.png")
    for opened in (open_images(tmp_path), open_images(IMAGES)):
        plan = opened.pixels.data.plan
        again = pickle.loads(pickle.dumps(plan))
        assert tokenize(again) == tokenize(plan)
        np.testing.assert_array_equal(again.build().compute(), opened.pixels)


def test_blocks_travel_without_the_other_images(tmp_path):
    for i in range(50):
        Image.fromarray(IMAGES[0]).save(tmp_path / f"{i}.png")
    plan = open_images(tmp_path, chunks=5).pixels.data.plan
    block = plan.block(10, 15)
    assert len(block) == 5
    assert b"12.png" in pickle.dumps(block)
    assert b"16.png" not in pickle.dumps(block)
    assert block.read(slice(1, 3)).shape == (2, 4, 5, 3)
    memory = open_images(np.zeros((1000, 8, 8, 3), np.uint8)).pixels.data.plan
    assert len(pickle.dumps(memory.block(10, 20))) < 10_000


def test_pixels_compute_in_other_processes(tmp_path):
    for i, image in enumerate(IMAGES):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    lazy = open_images(tmp_path, chunks=4).pixels
    with dask.config.set(scheduler="processes", num_workers=1):
        np.testing.assert_array_equal(lazy.compute(), IMAGES)


def test_a_source_that_breaks_its_promise_is_caught():
    source = CountingSource()
    source.read = lambda indices: IMAGES[indices].astype(np.int16)
    with pytest.raises(RuntimeError, match="int16 .* was promised"):
        plan_pixels(source, 3).compute()


@pytest.mark.parametrize("kind", ["files", "array", "brick"])
def test_many_threads_read_what_one_reads(kind, tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (30, 9, 9, 3), dtype=np.uint8)
    if kind == "array":
        source = open_images(images).pixels.data.plan.source
    elif kind == "files":
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / f"{i}.png")
        source = open_images(tmp_path).pixels.data.plan.source
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(tmp_path / "brick.h5", "w") as file:
            file["imgBrick"] = images
        source = open_images(tmp_path / "brick.h5").pixels.data.plan.source
    start = threading.Barrier(6, timeout=30)

    def read(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        start.wait()
        same = True
        for turn in range(25):
            chosen = rng.integers(0, 30, 5)
            same &= bool(np.array_equal(source.read(chosen), images[chosen]))
            if turn % 10 == seed:
                source.close()
        return same

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(read, range(6)))


def test_two_threads_decode_at_the_same_time(tmp_path, monkeypatch):
    both = threading.Barrier(2, timeout=30)
    decode = sources.decode_image

    def wait(path):
        both.wait()
        return decode(path)

    monkeypatch.setattr(sources, "decode_image", wait)
    for i in range(2):
        Image.fromarray(IMAGES[i]).save(tmp_path / f"{i}.png")
    lazy = open_images(tmp_path, chunks=1).pixels
    with dask.config.set(scheduler="threads", num_workers=2):
        np.testing.assert_array_equal(lazy.compute(), IMAGES[:2])


@given(st.integers(1, 200_000), st.integers(1, 3000), st.integers(1, 3000))
def test_a_block_holds_16_to_64_megabytes(count, y, x):
    chunk = chunk_images((count, y, x, 3))
    nbytes = chunk * y * x * 3
    assert 1 <= chunk <= count
    assert nbytes <= 64 * 2**20
    assert nbytes >= 12 * 2**20 or chunk == count or chunk == 1


def test_a_plan_without_images_is_empty():
    plan = PixelPlan(CountingSource(), np.arange(0), 4)
    assert PlannedArray(plan).compute().shape == (0, 4, 5, 3)


MEMORY = """
import sys
from nedx.stimuli import open_images
from tests.memory import peak_kib

ds = open_images(sys.argv[1])
blocks = ds.pixels.data.blocks
ds.isel(image=[0]).pixels.values
before = peak_kib()
total = 0
for start in range(0, ds.sizes["image"], 64):
    total += ds.pixels[start : start + 64].values.shape[0]
after = peak_kib()
print(total, (after - before) // 1024)
"""


@needs_proc
def test_memory_stays_bounded_over_2000_images(tmp_path):
    """All of them would be 369 MB; a block of 64 is 12 MB."""
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    first = tmp_path / "0000.jpg"
    Image.fromarray(image).resize((248, 248)).save(first)
    for i in range(1, 2000):
        (tmp_path / f"{i:04d}.jpg").hardlink_to(first)
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    total, grown = map(int, done.stdout.split())
    assert total == 2000
    assert grown < 80
