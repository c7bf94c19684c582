"""Writing to S3: the same bytes as on disk, and exclusive claims."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

from nedx.errors import BlockClaimedError, StoreExistsError
from nedx.store import ledger
from nedx.store.location import Location
from nedx.store.manifest import read_manifest
from nedx.store.running import run_blocks
from nedx.store.verifying import verify
from nedx.store.writing import BlockWriter, to_zarr
from tests.servers import S3Server


@pytest.fixture(scope="module")
def s3():
    pytest.importorskip("s3fs")
    server = S3Server()
    yield server
    server.close()


def test_a_store_on_s3_is_written_resumed_and_verified(s3, responses, tmp_path, small_blocks):
    layout = small_blocks(responses)
    place = Location.of("s3://nedx/written", storage_options=s3.options)
    writer = BlockWriter.create(responses, place, "r", layout=layout)
    assert run_blocks(writer, responses, part="1/2") == 2
    assert not verify(place).complete
    with pytest.raises(StoreExistsError, match="resume=True"):
        to_zarr(responses, place)
    to_zarr(responses, place, layout=layout, recipe="r", resume=True, workers=2)
    assert verify(place).ok

    to_zarr(responses, tmp_path / "a", layout=layout, recipe="r")
    on_disk, on_s3 = read_manifest(Location.of(tmp_path / "a")), read_manifest(place)
    differ = {k for k, item in on_disk.objects.items() if on_s3.objects.get(k) != item}
    assert differ <= {"zarr.json"}
    assert set(place.list()) == {*on_s3.objects, "_nedx/manifest.json"}
    stored = zarr.open_array(place.zarr_store(), path="response", mode="r")
    np.testing.assert_allclose(stored[:], responses.response, rtol=2**-11)


def test_one_block_has_one_writer_on_s3(s3, responses, small_blocks):
    place = Location.of("s3://nedx/claimed", storage_options=s3.options)
    writer = BlockWriter.create(responses, place, "r", layout=small_blocks(responses))
    first, second = (BlockWriter.resume(place) for _ in range(2))
    with ledger.alive(place, first.run), first.claimed(writer.blocks[1]) as mine:
        assert mine
        with pytest.raises(BlockClaimedError, match=first.run.id):
            run_blocks(second, responses)
    assert run_blocks(second, responses) == 2
