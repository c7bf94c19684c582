"""The same store behind each protocol; servers start once."""

from __future__ import annotations

import pytest

from tests.servers import GcsServer, HttpServer, S3Server
from tests.stored import responses, write


@pytest.fixture(scope="session")
def truth():
    return responses(n_images=120, n_vertices=600)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory, truth):
    folder = tmp_path_factory.mktemp("clouds")
    write(truth, folder / "plain.zarr")
    write(truth, folder / "sharded.zarr", sharded=True)
    return folder


@pytest.fixture(scope="session")
def s3():
    patch = pytest.MonkeyPatch()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        patch.delenv(name, raising=False)
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("AWS_CONFIG_FILE", "/dev/null")
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    server = S3Server()
    yield server
    server.close()
    patch.undo()


@pytest.fixture(scope="session")
def gcs():
    server = GcsServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def web(shelf):
    server = HttpServer(shelf)
    yield server
    server.close()


@pytest.fixture(scope="session")
def clouds(s3, gcs, web, shelf):
    """For each protocol: (server, URL of the shelf, storage options)."""
    for name in ("plain.zarr", "sharded.zarr"):
        s3_url = s3.upload(shelf / name, f"public/{name}", public=True)
        gs_url = gcs.upload(shelf / name, f"shelf/{name}")
    return {
        "s3": (s3, s3_url.rpartition("/")[0], s3.options),
        "gs": (gcs, gs_url.rpartition("/")[0], gcs.options),
        "http": (web, web.url, {}),
    }
