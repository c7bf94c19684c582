"""Chunks are what readers want, shards bound the objects, blocks fit in memory."""

from __future__ import annotations

import math

import dask.array as da
import pytest
import xarray as xr

from nedx.errors import AlignmentError, StoreError
from nedx.store.layout import MAX_OBJECTS, ArrayLayout, plan_dataset, plan_layout

SHAPES = [
    (("image", "vertex"), (73000, 327684)),
    (("subject", "image", "vertex"), (8, 73000, 327684)),
    (("image", "channel", "time"), (16540, 63, 140)),
    (("subject", "image", "channel", "time"), (10, 16540, 63, 140)),
    (("image", "repetition", "channel", "time"), (16540, 4, 63, 140)),
    (("trial", "channel", "time"), (30000, 271, 281)),
    (("image", "channel", "time"), (1000, 63, 1000)),
    (("image", "voxel"), (10000, 3000)),
    (("image", "vertex"), (1000, 20484)),
    (("image", "feature"), (100000, 460800)),
    (("subject", "vertex", "component"), (8, 327684, 250)),
]


def _dataset(dims, shape, dtype="f4"):
    return xr.Dataset({"response": (dims, da.zeros(shape, dtype=dtype, chunks=-1))})


@pytest.mark.parametrize(("dims", "shape"), SHAPES)
def test_chunks_are_1_to_4_mb_and_shards_bound_the_objects(dims, shape):
    layout = plan_dataset(_dataset(dims, shape))
    array = layout.arrays["response"]
    assert 1e6 <= 4 * math.prod(array.chunks) <= 4e6
    plain = ArrayLayout(array.chunks)
    assert (array.shards is not None) == (plain.objects(shape) > MAX_OBJECTS)
    if array.shards:
        assert array.objects(shape) < plain.objects(shape) / 8
        assert 4 * math.prod(array.shards) <= 320e6
    if layout.streamed:
        assert 4 * math.prod(shape) / layout.size * layout.block <= 384e6
        axis = dims.index(layout.dim)
        assert layout.block % array.unit[axis] == 0


def test_eeg_chunks_hold_whole_images_of_one_subject():
    array = plan_layout(("subject", "image", "channel", "time"), (10, 16540, 63, 140), "f4")
    assert array.chunks[0] == 1
    assert 64 <= array.chunks[1] <= 256
    assert array.chunks[2:] == (63, 140)


def test_pixels_are_cut_between_images_only():
    ds = xr.Dataset(
        {"pixels": (("image", "y", "x", "rgb"), da.zeros((10000, 425, 425, 3), dtype="u1"))}
    )
    array = plan_dataset(ds).arrays["pixels"]
    assert array.chunks[1:] == (425, 425, 3)
    assert 1e6 <= math.prod(array.chunks) <= 4e6


def test_coordinates_are_one_chunk(responses):
    layout = plan_dataset(responses)
    assert layout.arrays["image_id"].chunks == (20,)
    assert layout.arrays["cortex"].chunks == (6,)
    assert layout.streamed == ("response",)


def test_variables_of_different_width_share_blocks():
    ds = xr.Dataset(
        {
            "wide": (("image", "vertex"), da.zeros((5000, 327684), dtype="f4", chunks=-1)),
            "narrow": (("image", "component"), da.zeros((5000, 10), dtype="f4", chunks=-1)),
        }
    )
    layout = plan_dataset(ds)
    for name in layout.streamed:
        assert layout.block % layout.arrays[name].unit[0] == 0
    assert layout.block * 4 * 327694 <= 384e6
    ranges = layout.ranges()
    assert ranges[0] == (0, layout.block)
    assert ranges[-1][1] == 5000


def test_a_shard_that_cuts_chunks_is_refused():
    with pytest.raises(AlignmentError, match="no multiple"):
        ArrayLayout((4, 3), (6, 3))


def test_a_layout_of_what_is_not_there_names_the_close_match(responses):
    with pytest.raises(StoreError, match="did you mean 'response'"):
        plan_dataset(responses, chunks={"reponse": {"image": 4}})
    with pytest.raises(StoreError, match="did you mean 'image'"):
        plan_dataset(responses, chunks={"response": {"images": 4}})
