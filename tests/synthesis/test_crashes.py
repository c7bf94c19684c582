"""Whatever is killed, what was finished stays, and a resume ends at the same bytes."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import nedx
from nedx.errors import BlockClaimedError, StoreError
from nedx.synthesis import clusters, finalize, local_cluster, run, status, verify
from tests.signals import heed_interruptions
from tests.synthesis.conftest import store_bytes

distributed = pytest.importorskip("distributed")

ROOT = Path(__file__).resolve().parents[2]
TOTAL = 6

# A run that rests after every block, so that a signal meets it in the middle.
RUN = """
import sys, time
from nedx.synthesis import run

if __name__ == "__main__":
    place, part, workers, rest = sys.argv[1:]
    run(
        place,
        part=part or None,
        workers=int(workers),
        progress=lambda done, total: time.sleep(float(rest) if done else 0),
    )
"""


def _start(tmp_path, place, part="", workers=1, rest=0.0):
    script = tmp_path / "run.py"
    script.write_text(RUN)
    return subprocess.Popen(
        [sys.executable, str(script), str(place), part, str(workers), str(rest)],
        env=_environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_interruptions,
    )


def _environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def _wait_for(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def _ledger(place: Path) -> dict[str, int]:
    """Return when each finished block was noted."""
    return {p.name: p.stat().st_mtime_ns for p in (place / "_nedx/ledger").glob("*.json")}


def _claims(place: Path) -> set[str]:
    return {p.name for p in (place / "_nedx/claims").glob("*.json")}


def _resume_and_compare(place: Path, uninterrupted: Path, in_flight: int) -> None:
    """Go on; nothing that was finished is computed again, and the end is the same."""
    before, claimed = _ledger(place), _claims(place)
    assert 0 < len(before) < TOTAL
    assert len(claimed - set(before)) <= in_flight
    run(place, part="1/1", progress=False)
    after = _ledger(place)
    assert len(after) == TOTAL
    assert {name: after[name] for name in before} == before
    run(place, progress=False)
    assert store_bytes(place) == store_bytes(uninterrupted)
    assert verify(place).ok


def test_two_processes_write_two_parts(tmp_path, planned, uninterrupted):
    place = planned(tmp_path / "a")
    processes = [_start(tmp_path, place, part) for part in ("1/2", "2/2")]
    for process in processes:
        assert process.wait(120) == 0, process.stderr.read()
    assert status(place).done == TOTAL
    finalize(place)
    assert store_bytes(place) == store_bytes(uninterrupted)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_client_is_resumed(tmp_path, planned, uninterrupted, signum):
    place = planned(tmp_path / "a")
    process = _start(tmp_path, place, rest=0.5)
    _wait_for(lambda: len(_ledger(place)) >= 2 or process.poll() is not None)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    if signum == signal.SIGINT:
        assert f"nedx synth run {place}" in errors
        assert _claims(place) == set()
    _resume_and_compare(place, uninterrupted, in_flight=1)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_client_with_workers_is_resumed(tmp_path, planned, uninterrupted, signum):
    place = planned(tmp_path / "a")
    process = _start(tmp_path, place, workers=2, rest=30)
    _wait_for(lambda: _ledger(place) or process.poll() is not None)
    if signum == signal.SIGINT:
        # As a terminal does it: all processes are told.
        os.killpg(process.pid, signum)
        _, errors = process.communicate(timeout=60)
        assert f"nedx synth run {place}" in errors
    else:
        # Its workers notice, and end; what they are at is finished, or given up.
        process.kill()
        process.communicate(timeout=60)
    _settle(place)
    _resume_and_compare(place, uninterrupted, in_flight=2)


def _settle(place: Path) -> None:
    known = -1
    while known != len(_ledger(place)):
        known = len(_ledger(place))
        time.sleep(1)


def test_two_live_runs_do_not_mix(tmp_path, planned, uninterrupted):
    place = planned(tmp_path / "a")
    process = _start(tmp_path, place, rest=0.2)
    # It is stopped while it holds its first block, for which it loads torch and the model.
    _wait_for(lambda: _claims(place) or process.poll() is not None)
    process.send_signal(signal.SIGSTOP)
    try:
        assert _claims(place) - set(_ledger(place)) == {"000000.json"}
        with pytest.raises(BlockClaimedError, match=f"pid {process.pid}.*part="):
            run(place, progress=False)
        assert len(status(place).running) == 1
        assert f"pid {process.pid}" in str(status(place))
    finally:
        process.send_signal(signal.SIGCONT)
        assert process.wait(120) == 0, process.stderr.read()
    assert store_bytes(place) == store_bytes(uninterrupted)


def test_a_full_disk_is_told_and_resumed(tmp_path, planned, uninterrupted):
    place = planned(tmp_path / "a")
    run(place, part="1/3", progress=False)
    largest = max(p.stat().st_size for p in (place / "response").rglob("c/*/*/*"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, hard))
    try:
        with pytest.raises(StoreError, match="(?s)make room.*nedx synth run"):
            run(place, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status(place).done == 2
    _resume_and_compare(place, uninterrupted, in_flight=0)


@contextmanager
def _processes(tmp_path: Path) -> Iterator[tuple[list[subprocess.Popen], str]]:
    """Start a scheduler and two workers, one of them said to have a GPU."""
    file = tmp_path / "scheduler.json"
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--nthreads", "1"]
    worker += ["--scheduler-file", str(file), "--no-dashboard", "--death-timeout", "5"]
    quiet = {"env": _environment(), "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    commands = [
        [*scheduler, "--port", "0", "--no-dashboard", "--scheduler-file", str(file)],
        [*worker, "--no-nanny", "--name", "gpu", "--resources", "GPU=1"],
        [*worker, "--no-nanny", "--name", "cpu"],
    ]
    started = [subprocess.Popen(command, **quiet) for command in commands]
    try:
        _wait_for(file.exists)
        with distributed.Client(scheduler_file=str(file)) as client:
            client.wait_for_workers(2, timeout=90)
            address = client.scheduler.address
        yield started, address
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_gpu_workers_are_chosen_and_a_killed_scheduler_is_told(tmp_path, planned, uninterrupted):
    place, other = planned(tmp_path / "a"), planned(tmp_path / "b")
    with _processes(tmp_path) as (processes, address):
        with distributed.Client(address) as client, distributed.get_task_stream(client) as stream:
            assert run(place, client=client, progress=False).complete
            names = {
                where: info["id"] for where, info in client.scheduler_info()["workers"].items()
            }
        assert set(names.values()) == {"gpu", "cpu"}
        workers = [names[t["worker"]] for t in stream.data if "nedx-write" in str(t["key"])]
        assert len(workers) == TOTAL
        assert set(workers) == {"gpu"}
        assert store_bytes(place) == store_bytes(uninterrupted)

        def kill_the_scheduler(done, total):
            if done == 2:
                processes[0].kill()

        with pytest.raises(StoreError, match="(?s)cluster was lost.*nedx synth run"):
            run(other, client=address, progress=kill_the_scheduler)
    _settle(other)
    _resume_and_compare(other, uninterrupted, in_flight=2)


def test_a_cluster_that_is_not_there_is_told(tmp_path, planned, monkeypatch):
    monkeypatch.setattr(clusters, "CONNECT_TIMEOUT", "1s")
    place = planned(tmp_path / "a")
    with pytest.raises(StoreError, match="no dask scheduler answers at tcp://127.0.0.1:9"):
        run(place, client="tcp://127.0.0.1:9", progress=False)
    assert status(place).running == ()


def test_a_killed_worker_is_replaced(tmp_path, planned, uninterrupted, images, model, monkeypatch):
    # As dask leaves it in a process that has run a cluster before.
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    place = planned(tmp_path / "a")
    with local_cluster(2, threads=1) as client:
        victim = next(iter(client.run(os.getpid).values()))

        def kill(done, total):
            if done == 2:
                os.kill(victim, signal.SIGKILL)

        assert run(place, client=client, progress=kill).complete
        # The nanny gives a worker that it starts again the same environment.
        client.wait_for_workers(2, timeout=60)
        for environment in client.run(lambda: dict(os.environ)).values():
            assert environment["MALLOC_MMAP_THRESHOLD_"] == str(2**30)
            assert environment["MALLOC_TRIM_THRESHOLD_"] == str(2**28)
            assert environment["OMP_NUM_THREADS"] == "1"
    assert os.environ["MALLOC_TRIM_THRESHOLD_"] == "65536"
    assert "MALLOC_MMAP_THRESHOLD_" not in os.environ
    assert store_bytes(place) == store_bytes(uninterrupted)
    expected = nedx.open_images(images).ned.encode(model)["response"].values
    np.testing.assert_allclose(nedx.open_store(place)["response"], expected, rtol=2.0**-11)
