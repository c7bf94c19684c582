"""The build state of an unfinished store: its plan, who writes what, and what is done.

All of it is one small JSON object a fact below ``_nedx/``, so that any number of runs can share
it on any object store:

- ``plan.json``: recipe, options and blocks; written last when a store is created
- ``template.json``: the objects written with the metadata
- ``ledger/<block>.json``: written after the data of a block, with its objects
- ``claims/<block>.json``: created exclusively by the run that is at a block
- ``runs/<run>.json``: the heartbeat of a run
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nedx.errors import BlockClaimedError, IncompleteStoreError, StoreError, StoreExistsError
from nedx.store.layout import Block
from nedx.store.location import Location
from nedx.store.manifest import STATE, StoredObject

PLAN = f"{STATE}/plan.json"
TEMPLATE = f"{STATE}/template.json"
CREATING = f"{STATE}/creating.json"
STALE_SECONDS = 300.0
"""A run on another host is dead when it has not been heard of for so long."""

_BEAT_SECONDS = 20.0
_PLAN_VERSION = 1
_log = logging.getLogger(__name__)
_active: set[str] = set()


@dataclass(frozen=True)
class StorePlan:
    """What an unfinished store shall become.

    Parameters
    ----------
    recipe : dict of str to str
        Parts of the recipe and a fingerprint of each.
    blocks : tuple of Block
        What there is to write.
    streamed : dict of str to tuple of str
        Group to the variables that are written block by block.
    dims : dict of str to str
        Group to its sample dimension.
    keep_bits : int or None
        Mantissa bits kept of float32.
    extra : dict
        What else a caller wants to find again, as JSON.
    resume : str
        What to type to resume.
    """

    recipe: Mapping[str, str]
    blocks: tuple[Block, ...]
    streamed: Mapping[str, tuple[str, ...]]
    dims: Mapping[str, str]
    keep_bits: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    resume: str = ""

    @property
    def fingerprint(self) -> str:
        """Hex sha256 of the recipe."""
        return recipe_fingerprint(self.recipe)

    def to_bytes(self) -> bytes:
        """Return the plan as JSON."""
        return _json({"version": _PLAN_VERSION, **asdict(self)})

    @classmethod
    def read(cls, location: Location) -> StorePlan:
        """Read the plan of an unfinished store.

        Raises
        ------
        IncompleteStoreError
            If there is none.
        StoreError
            If there is no store, or a newer nedx wrote it.
        """
        try:
            content = json.loads(location.read(PLAN))
        except FileNotFoundError as error:
            if not location.exists():
                raise StoreError(
                    f"there is no store at {location.url}. Check the path, or begin one: "
                    f"nedx synth init IMAGES MODEL {location.url}"
                ) from error
            raise IncompleteStoreError(
                f"{location.url} has no {PLAN}, so there is nothing to resume; "
                "type to_zarr(..., overwrite=True) to write it anew"
            ) from error
        if content.pop("version") != _PLAN_VERSION:
            raise StoreError(f"{location.url} was begun by another nedx; finish it with that one")
        content["blocks"] = tuple(Block(**block) for block in content["blocks"])
        content["streamed"] = {k: tuple(v) for k, v in content["streamed"].items()}
        return cls(**content)


def recipe_fingerprint(recipe: Mapping[str, str]) -> str:
    """Return the hex sha256 of the parts of a recipe."""
    return hashlib.sha256(json.dumps(dict(recipe), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Run:
    """A process that writes; workers that it feeds write in its name."""

    id: str
    host: str
    pid: int
    born: str
    started: float

    @classmethod
    def here(cls) -> Run:
        """Return a new run of this process."""
        pid = os.getpid()
        return cls(uuid.uuid4().hex[:12], socket.gethostname(), pid, _born(pid), time.time())


@contextmanager
def alive(location: Location, run: Run) -> Iterator[None]:
    """Keep a run known as living: a heartbeat until the block is left, whatever happens."""
    key = f"{STATE}/runs/{run.id}.json"
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(_BEAT_SECONDS):
            try:
                location.write(key, _json({**asdict(run), "beat": time.time()}))
            except OSError as error:
                _log.warning("the heartbeat at %s failed: %s", location.url, error)

    location.write(key, _json({**asdict(run), "beat": time.time()}))
    _active.add(run.id)
    thread = threading.Thread(target=beat, name=f"nedx-heartbeat-{run.id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        _active.discard(run.id)
        location.delete(key)


def claim(location: Location, block: Block, run: Run) -> None:
    """Claim a block for a run.

    Claims of dead runs are taken over. Should two runs take over the same claim in the same
    moment, both write the same bytes to the same whole objects: work is lost, never data.

    Raises
    ------
    BlockClaimedError
        If a living run is at it.
    """
    key = _claim_key(block)
    content = _json({**asdict(run), "block": block.index, "claimed": time.time()})
    for _ in range(3):
        try:
            location.create(key, content)
        except StoreExistsError:
            holder = _read_claim(location, key)
            if holder is not None and holder.get("id") == run.id:
                return
            if holder is not None and _is_alive(location, holder):
                raise BlockClaimedError(_claimed_message(location, block, holder)) from None
            location.delete(key)
            continue
        return
    raise BlockClaimedError(f"block {block.index} of {location.url} keeps being claimed by others")


def release(location: Location, block: Block, run: Run) -> None:
    """Give a block up, where it is the run's own."""
    key = _claim_key(block)
    holder = _read_claim(location, key)
    if holder is not None and holder.get("id") == run.id:
        location.delete(key)


def refuse_live_creator(location: Location) -> None:
    """Raise where another process of this machine is beginning the same store."""
    holder = _read_claim(location, CREATING)
    if holder is None or holder.get("host") != socket.gethostname():
        return
    pid = int(holder["pid"])
    if pid != os.getpid() and _exists(pid) and _born(pid) == holder.get("born", ""):
        raise BlockClaimedError(
            f"{location.url} is being created by pid {pid} on this machine; wait for it, or stop it"
        )


def record(location: Location, block: Block, objects: Mapping[str, StoredObject]) -> None:
    """Note in the ledger that a block is done; call it after its data are written."""
    location.write(
        f"{STATE}/ledger/{block.name}.json",
        _json({"block": asdict(block), "objects": dict(sorted(objects.items()))}),
    )


def recorded(location: Location, block: Block) -> dict[str, StoredObject] | None:
    """Return the objects that the ledger knows of a block; None where it is not done."""
    return _read_objects(location, f"{STATE}/ledger/{block.name}.json")


def write_template(location: Location, objects: Mapping[str, StoredObject]) -> None:
    """Note the objects that were written with the metadata."""
    location.write(TEMPLATE, _json({"objects": dict(sorted(objects.items()))}))


def read_template(location: Location) -> dict[str, StoredObject]:
    """Return the objects that were written with the metadata."""
    return _read_objects(location, TEMPLATE) or {}


def live_runs(location: Location) -> list[dict[str, Any]]:
    """List the runs that are writing now."""
    found = []
    for key in location.list(f"{STATE}/runs"):
        try:
            holder = json.loads(location.read(key))
        except (FileNotFoundError, ValueError):
            continue
        if _is_alive(location, holder):
            found.append(holder)
    return found


def sizes(location: Location, prefix: str = "") -> dict[str, int]:
    """Return the sizes of all objects below ``prefix``, by key."""
    filesystem, path = location.filesystem()
    filesystem.invalidate_cache()
    root = path.rstrip("/") + "/"
    try:
        found = filesystem.find(f"{root}{prefix}" if prefix else path, detail=True)
    except FileNotFoundError:
        return {}
    return {name[len(root) :]: int(info["size"]) for name, info in found.items()}


def clear(location: Location) -> None:
    """Remove the build state, the plan last: until then a resume finds its way."""
    for name in ("claims", "runs", "ledger"):
        location.delete(f"{STATE}/{name}", recursive=True)
    for key in (TEMPLATE, CREATING, PLAN):
        location.delete(key)


def _claim_key(block: Block) -> str:
    return f"{STATE}/claims/{block.name}.json"


def _read_objects(location: Location, key: str) -> dict[str, StoredObject] | None:
    try:
        content = json.loads(location.read(key))
        return {k: StoredObject(int(v[0]), str(v[1])) for k, v in content["objects"].items()}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, IndexError):
        # Half a note is no note: the block is written again.
        return None


def _read_claim(location: Location, key: str) -> dict[str, Any] | None:
    """Read a claim; None where there is none, or where its writer died while writing it."""
    for attempt in range(5):
        try:
            content: dict[str, Any] = json.loads(location.read(key))
        except FileNotFoundError:
            return None
        except ValueError:
            # Another run is between creating and filling it.
            time.sleep(0.02 * 2**attempt)
            continue
        return content
    return None


def _is_alive(location: Location, holder: Mapping[str, Any]) -> bool:
    try:
        beat = json.loads(location.read(f"{STATE}/runs/{holder['id']}.json"))["beat"]
    except (FileNotFoundError, ValueError, KeyError):
        # A run that ended, however, takes its heartbeat with it.
        return False
    if holder.get("host") != socket.gethostname():
        return time.time() - float(beat) < STALE_SECONDS
    pid = int(holder["pid"])
    if pid == os.getpid():
        return holder["id"] in _active
    return _exists(pid) and _born(pid) == holder.get("born", "")


def _claimed_message(location: Location, block: Block, holder: Mapping[str, Any]) -> str:
    age = max(0.0, time.time() - float(holder.get("claimed", time.time())))
    return (
        f"block {block.index} of {location.url} is being written by run {holder.get('id')} "
        f"(host {holder.get('host')}, pid {holder.get('pid')}, for {age:.0f} s). Wait for it, stop "
        f"it, or write another part beside it with part='1/2'. A run that died is taken over by "
        f"itself, after {STALE_SECONDS / 60:.0f} minutes where it was on another host."
    )


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _born(pid: int) -> str:
    """Return when a process started, in ticks since boot: a pid alone comes back after a while."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[19]


def _json(content: Any) -> bytes:
    return (json.dumps(content, sort_keys=True) + "\n").encode()
