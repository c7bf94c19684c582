"""Killed processes, full disks, Ctrl-C, two runs at once: what was finished stays."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from nedx.errors import BlockClaimedError, StoreError
from nedx.store import ledger
from nedx.store.layout import plan_dataset
from nedx.store.location import Location
from nedx.store.running import run_blocks
from nedx.store.verifying import verify
from nedx.store.writing import BlockWriter, to_zarr
from tests.signals import heed_interruptions

ROOT = Path(__file__).resolve().parents[2]

JOB = """
import sys, time, os
import dask.array as da, numpy as np, xarray as xr
from nedx.store.layout import plan_dataset
from nedx.store.writing import to_zarr

def slow(block, block_info=None):
    start = block_info[0]["array-location"][0][0]
    with open(sys.argv[2], "a") as log:
        log.write(f"{start}\\n")
    time.sleep(float(sys.argv[3]))
    return block

values = np.random.default_rng(0).normal(size=(40, 30)).astype("f4")
data = da.from_array(values, chunks=(4, 30), name="v").map_blocks(
    slow, meta=np.empty((0, 0), "f4"), name="slow"
)
ds = xr.Dataset({"response": (("image", "voxel"), data)})
layout = plan_dataset(ds, chunks={"response": {"image": 4, "voxel": 10}}, block=4)
to_zarr(ds, sys.argv[1], layout=layout, recipe="r", resume=True)
"""


def _start(place, log, seconds):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(JOB), str(place), str(log), str(seconds)]
    return subprocess.Popen(
        command, env=env, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interruptions
    )


def _wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def _lines(log):
    return [int(line) for line in log.read_text().split()] if log.exists() else []


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_writer_is_resumed_to_the_same_bytes(tmp_path, store_bytes, signum):
    place, log = tmp_path / "cut", tmp_path / "log"
    process = _start(place, log, 0.2)
    done = place / "_nedx" / "ledger"
    _wait_for(lambda: done.is_dir() and len(list(done.glob("*.json"))) >= 3)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    if signum == signal.SIGINT:
        assert "KeyboardInterrupt" in errors
        assert "resume=True" in errors
        assert not list((place / "_nedx").glob("claims/*"))
    finished = len(list(done.glob("*.json")))
    before = _lines(log)
    assert _start(place, log, 0).wait(60) == 0
    again = _lines(log)[len(before) :]
    assert len(again) == 10 - finished
    # One block at a time was in flight: only that one may be computed twice.
    assert len(set(before) & set(again)) <= 1

    assert _start(tmp_path / "whole", tmp_path / "log2", 0).wait(60) == 0
    assert store_bytes(place) == store_bytes(tmp_path / "whole")
    assert verify(place).ok


def test_a_living_run_is_left_alone_and_named(tmp_path):
    place, log = tmp_path / "a", tmp_path / "log"
    process = _start(place, log, 30)
    try:
        _wait_for(lambda: _lines(log))
        writer = BlockWriter.resume(place, "r")
        ds = xr.Dataset({"response": (("image", "voxel"), np.zeros((40, 30), "f4"))})
        with pytest.raises(BlockClaimedError, match="block 0 .*") as caught:
            run_blocks(writer, ds)
        assert f"pid {process.pid}" in str(caught.value)
        assert socket.gethostname() in str(caught.value)
        assert "part=" in str(caught.value)
        # The others may be written beside it.
        assert run_blocks(BlockWriter.resume(place, "r"), ds, part=(2, 2)) == 5
        assert len(writer.status().running) == 1
    finally:
        process.kill()
        process.wait()
    assert run_blocks(BlockWriter.resume(place, "r"), ds) == 5
    writer.finalize()


def _claimed(tmp_path, responses, layout, **claim):
    writer = BlockWriter.create(responses, tmp_path / "a", "r", layout=layout)
    location = Location.of(tmp_path / "a")
    other = {"id": "other", "host": "elsewhere", "pid": 1, "born": "", "claimed": time.time()}
    location.write("_nedx/claims/000000.json", json.dumps({**other, **claim}).encode())
    return writer, location


def test_a_run_elsewhere_is_dead_after_five_minutes_of_silence(tmp_path, responses, small_blocks):
    writer, location = _claimed(tmp_path, responses, small_blocks(responses))
    beat = {"id": "other", "beat": time.time() - 100}
    location.write("_nedx/runs/other.json", json.dumps(beat).encode())
    with pytest.raises(BlockClaimedError, match="host elsewhere, pid 1"):
        run_blocks(writer, responses)
    beat["beat"] -= ledger.STALE_SECONDS
    location.write("_nedx/runs/other.json", json.dumps(beat).encode())
    assert run_blocks(writer, responses) == 3


def test_a_claim_that_was_never_filled_is_taken_over(tmp_path, responses, small_blocks):
    writer, location = _claimed(tmp_path, responses, small_blocks(responses))
    location.write("_nedx/claims/000000.json", b"")
    assert run_blocks(writer, responses) == 3


def test_a_creation_cut_short_begins_anew_unless_its_run_lives(tmp_path, responses):
    location = Location.of(tmp_path / "a")
    here = ledger.Run.here()
    parent = {"id": "p", "host": here.host, "pid": os.getppid(), "started": 0.0}
    location.write(ledger.CREATING, json.dumps({**parent, "born": "1"}).encode())
    with pytest.raises(StoreError, match="resume=True"):
        to_zarr(responses, tmp_path / "a")
    stat = Path(f"/proc/{os.getppid()}/stat").read_text()
    born = stat.rpartition(")")[2].split()[19]
    location.write(ledger.CREATING, json.dumps({**parent, "born": born}).encode())
    with pytest.raises(BlockClaimedError, match=f"pid {os.getppid()}"):
        to_zarr(responses, tmp_path / "a", resume=True)
    location.write(ledger.CREATING, json.dumps({**parent, "born": "1"}).encode())
    to_zarr(responses, tmp_path / "a", resume=True)
    assert verify(tmp_path / "a").ok


def test_a_pid_that_came_back_is_not_the_run_that_died(tmp_path, responses, small_blocks):
    here = ledger.Run.here()
    claim = {"id": "old", "host": here.host, "pid": os.getppid(), "born": "1"}
    writer, location = _claimed(tmp_path, responses, small_blocks(responses), **claim)
    location.write("_nedx/runs/old.json", json.dumps({"id": "old", "beat": time.time()}).encode())
    assert run_blocks(writer, responses) == 3


def _fill_up(place, ds, layout):
    with pytest.raises(StoreError, match="(?s)make room.*resume=True") as caught:
        to_zarr(ds, place, layout=layout, recipe="r", keep_bits=None)
    assert isinstance(caught.value.__cause__, OSError)
    writer = BlockWriter.resume(place, "r")
    assert 0 < len(writer.pending()) < len(writer.blocks)
    return writer


def test_a_full_disk_keeps_what_was_finished(tmp_path, store_bytes):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here; the limit on file sizes is tested")
    try:
        values = np.random.default_rng(0).integers(0, 2**31, size=(64, 8000), dtype=np.int32)
        ds = xr.Dataset({"response": (("image", "voxel"), values)})
        layout = plan_dataset(ds, chunks={"response": {"image": 8}}, block=8)
        writer = _fill_up(disk / "a", ds, layout)
        done = len(writer.blocks) - len(writer.pending())
        assert verify(disk / "a").bad == []
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        assert run_blocks(writer, ds) == len(writer.blocks) - done
        writer.finalize()
        to_zarr(ds, tmp_path / "whole", layout=layout, recipe="r", keep_bits=None)
        assert store_bytes(disk / "a") == store_bytes(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_write_cut_short_by_a_limit_is_told_and_resumed(tmp_path):
    values = np.zeros((32, 30000), np.int32)
    values[16:] = np.random.default_rng(0).integers(0, 2**31, size=(16, 30000))
    ds = xr.Dataset({"response": (("image", "voxel"), values)})
    layout = plan_dataset(ds, chunks={"response": {"image": 8}}, block=8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        writer = _fill_up(tmp_path / "a", ds, layout)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert run_blocks(writer, ds) == 2
    writer.finalize()
    assert verify(tmp_path / "a").ok


def _broken_at_8(responses):
    def fail(block, block_info=None):
        if block_info[0]["array-location"][1][0] == 8:
            raise RuntimeError("broken image")
        return block

    data = responses.response.data.rechunk((2, 8, 6))
    data = data.map_blocks(fail, meta=np.empty((0, 0, 0), "f4"))
    return responses.assign(response=(responses.response.dims, data))


def test_a_block_that_fails_stops_no_other(tmp_path, responses, small_blocks):
    layout = small_blocks(responses)
    writer = BlockWriter.create(responses, tmp_path / "a", "r", layout=layout)
    with pytest.raises(RuntimeError, match="broken image"):
        run_blocks(writer, _broken_at_8(responses), workers=3)
    assert [b.start for b in writer.pending()] == [8]
    assert not list((tmp_path / "a/_nedx/claims").iterdir())
    assert not list((tmp_path / "a/_nedx/runs").iterdir())
    assert run_blocks(writer, responses) == 1


def test_a_block_that_fails_on_a_cluster_is_told(tmp_path, responses, small_blocks):
    distributed = pytest.importorskip("distributed")
    layout = small_blocks(responses)
    writer = BlockWriter.create(responses, tmp_path / "a", "r", layout=layout)
    with distributed.Client(
        processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None
    ) as client:
        with pytest.raises(RuntimeError, match="broken image"):
            run_blocks(writer, _broken_at_8(responses), client=client, retries=0)
        assert run_blocks(writer, responses, client=client) >= 1
    assert writer.pending() == []


def test_killed_workers_of_a_cluster_lose_nothing(tmp_path, store_bytes):
    distributed = pytest.importorskip("distributed")
    values = np.random.default_rng(0).normal(size=(40, 30)).astype("f4")
    data = da.from_array(values, chunks=(4, 30)).map_blocks(_pause, meta=np.empty((0, 0), "f4"))
    ds = xr.Dataset({"response": (("image", "voxel"), data)})
    layout = plan_dataset(ds, chunks={"response": {"image": 4}}, block=4)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        victim = next(iter(client.run(os.getpid).values()))
        seen = []

        def progress(done, total):
            seen.append((done, total))
            if done == 2:
                os.kill(victim, signal.SIGKILL)

        writer = BlockWriter.create(ds, tmp_path / "a", "r", layout=layout)
        assert run_blocks(writer, ds, client=client, progress=progress) == 10
        assert seen[-1] == (10, 10)
        writer.finalize()
    to_zarr(ds, tmp_path / "whole", layout=layout, recipe="r")
    assert store_bytes(tmp_path / "a") == store_bytes(tmp_path / "whole")


def _pause(block):
    time.sleep(0.05)
    return block
