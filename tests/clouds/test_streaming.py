"""Reading from real servers of S3, Google and HTTP: values, requests, bytes, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from nedx.errors import CorruptStoreError, CredentialsError, StoreError
from nedx.store.opening import open_store
from nedx.store.pulling import pull
from nedx.store.writing import to_zarr
from tests.stored import stored_bytes

PROTOCOLS = ["s3", "gs", "http"]
STORES = ["plain.zarr", "sharded.zarr"]


@pytest.fixture(params=PROTOCOLS)
def cloud(request, clouds):
    server, url, options = clouds[request.param]
    server.counter.forget()
    return server, url, options


@pytest.mark.parametrize("name", STORES)
def test_opening_asks_once_for_metadata_and_once_for_each_label_together(cloud, name):
    server, url, options = cloud
    with server.counter.slow(0.05):
        open_store(f"{url}/{name}", subject=2, roi="V1", storage_options=options)
    asked = [seen.path.split(f"{name}/")[1].split("/")[0] for seen in server.counter.seen]
    assert asked[0] == "zarr.json"
    assert sorted(asked[1:]) == ["image_id", "roi", "roi_mask", "subject", "vertex"]
    assert len(asked) <= 8
    assert server.counter.most_at_once == 5


@pytest.mark.parametrize("name", STORES)
def test_one_roi_of_one_subject_transfers_what_its_chunks_hold(cloud, name, shelf, truth):
    server, url, options = cloud
    opened = open_store(f"{url}/{name}", subject=2, roi="V1", storage_options=options)
    images = np.random.default_rng(3).permutation(truth.sizes["image"])[:2]
    vertices = np.flatnonzero(truth["roi_mask"].values[1, 0])
    for rows in (images, np.arange(truth.sizes["image"])):
        server.counter.forget()
        values = opened["response"].isel(image=rows).values
        np.testing.assert_array_equal(
            values, truth["response"].values[1:, rows][..., vertices], strict=True
        )
        held = stored_bytes(shelf / name, [1], rows, vertices)
        assert held <= server.counter.bytes() <= 2 * held
        chunks = len({int(i) // 20 for i in rows})
        # Of a shard, the index is asked for first.
        assert server.counter.count() <= chunks * (1 if name == "plain.zarr" else 2)


@pytest.mark.parametrize("name", STORES)
def test_all_of_it_reads_back(cloud, name, truth):
    _, url, options = cloud
    opened = open_store(f"{url}/{name}", storage_options=options)
    for variable in ("response", "noise_ceiling", "roi_mask", "caption"):
        np.testing.assert_array_equal(opened[variable].values, truth[variable].values)


def test_pulled_copies_open_and_are_not_fetched_again(cloud, truth, tmp_path, monkeypatch):
    monkeypatch.setenv("NEDX_CACHE", str(tmp_path))
    server, url, options = cloud
    folder = pull(f"{url}/sharded.zarr", storage_options=options)
    np.testing.assert_array_equal(open_store(folder)["response"].values, truth["response"].values)
    server.counter.forget()
    assert pull(f"{url}/sharded.zarr", storage_options=options) == folder
    assert server.counter.count() == 0


def test_a_refusal_is_said_so(cloud):
    server, url, options = cloud
    with server.counter.faulty("403"), pytest.raises(CredentialsError, match="refuses access"):
        open_store(f"{url}/plain.zarr", storage_options=options)


def test_nothing_there_is_said_so(cloud):
    _, url, options = cloud
    with pytest.raises(StoreError, match=r"no Zarr store at .*nothing\.zarr"):
        open_store(f"{url}/nothing.zarr", storage_options=options)


def test_a_server_that_stumbles_is_asked_again(cloud, truth):
    server, url, options = cloud
    opened = open_store(f"{url}/plain.zarr", storage_options=options)
    with server.counter.faulty("503", match="response/c/", times=1):
        values = opened["response"][0, :40, :100].values
    np.testing.assert_array_equal(values, truth["response"].values[0, :40, :100])


@pytest.mark.parametrize("protocol", ["s3", "gs"])
def test_a_chunk_that_is_gone_is_an_error(protocol, clouds, truth, request):
    server, url, options = clouds[protocol]
    where = to_zarr(truth.isel(image=slice(40)), f"{url}/gone.zarr", storage_options=options)
    where.delete("response/c/0/0/0")
    opened = open_store(where.url, storage_options=options)
    with pytest.raises(CorruptStoreError, match="response/c/0/0/0 was written and is gone"):
        opened["response"].compute()


@pytest.mark.parametrize("protocol", ["s3", "gs"])
def test_what_is_written_to_a_cloud_reads_back(protocol, clouds, truth):
    _, url, options = clouds[protocol]
    part = truth.isel(image=slice(30))
    to_zarr(part, f"{url}/written.zarr", keep_bits=None, storage_options=options)
    opened = open_store(f"{url}/written.zarr", roi="V2", storage_options=options)
    vertices = np.arange(400, 600)
    np.testing.assert_array_equal(opened["response"].values, part["response"].values[..., vertices])


class TestS3Credentials:
    def test_anonymously_where_that_is_allowed(self, clouds, s3, truth):
        url = f"{clouds['s3'][1]}/plain.zarr"
        opened = open_store(url, anonymous=True, storage_options={"endpoint_url": s3.endpoint})
        row = opened["response"][0, 0].values
        np.testing.assert_array_equal(row, truth["response"].values[0, 0])

    def test_anonymously_where_it_is_not(self, s3, shelf):
        url = s3.upload(shelf / "plain.zarr", "private/plain.zarr")
        with pytest.raises(CredentialsError, match="AWS_ACCESS_KEY_ID"):
            open_store(url, anonymous=True, storage_options={"endpoint_url": s3.endpoint})

    def test_without_any(self, clouds, s3):
        url = f"{clouds['s3'][1]}/plain.zarr"
        with pytest.raises(CredentialsError, match=r"AWS_ACCESS_KEY_ID.*anonymous=True"):
            open_store(url, storage_options={"endpoint_url": s3.endpoint})

    def test_keys_and_endpoint_of_the_environment(self, clouds, s3, truth, monkeypatch):
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        s3.counter.forget()
        opened = open_store(f"{clouds['s3'][1]}/plain.zarr", subject=1)
        row = opened["response"][0, 0].values
        np.testing.assert_array_equal(row, truth["response"].values[0, 0])
        assert s3.counter.count() > 0


def test_google_is_not_asked_over_grpc():
    """gcsfs would wait a minute for each operation where that is refused."""
    import gcsfs

    assert gcsfs.GCSFileSystem is gcsfs.core.GCSFileSystem
