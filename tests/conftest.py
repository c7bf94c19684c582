"""What every test shares: one torch thread, a private cache, real data where they lie."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# Everyone sees the same examples; look for new ones with `pytest --hypothesis-profile explore`.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", derandomize=False, deadline=None)
settings.load_profile("repeatable")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _private_folders(tmp_path_factory):
    """Keep cache and settings of the person who runs the tests out of them."""
    base = tmp_path_factory.getbasetemp()
    # The workers of one run share what is generated once.
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    patch = pytest.MonkeyPatch()
    patch.setenv("NEDX_CACHE", str(shared / "nedx-cache"))
    patch.setenv("NEDX_CONFIG", str(shared / "nedx-config"))
    patch.delenv("NEDX_CATALOGS", raising=False)
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def _fresh_filesystems():
    """Forget S3 file systems: they keep the endpoint and keys that a test's environment had."""
    yield
    if "s3fs" in sys.modules:
        sys.modules["s3fs"].S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real recordings and weights; skip where it is absent."""
    folder = Path(os.environ.get("NEDX_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the real recordings are not at {folder}; set NEDX_SHARED_DATA")
    return folder
