"""Writing a store: a template, idempotent blocks, a ledger, and a finish that proves it whole."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import xarray as xr
import zarr

from nedx.errors import AlignmentError, IncompleteStoreError, StoreError
from nedx.store import ledger
from nedx.store.aligning import aligned, check_written, dims_of, put_block
from nedx.store.building import (
    check_recipe,
    chosen_layouts,
    dataset_groups,
    dataset_recipe,
    is_metadata,
    make_plan,
    mark_complete,
    prepared_groups,
    recipe_parts,
    refuse_existing,
    refuse_own_source,
    remove_leftovers,
    write_template,
)
from nedx.store.codecs import DTYPES
from nedx.store.layout import Block, Layout, by_range
from nedx.store.location import Location
from nedx.store.manifest import (
    MANIFEST,
    STATE,
    Manifest,
    RecordingStore,
    StoredObject,
    read_manifest,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WriteStatus:
    """How far a store is.

    Parameters
    ----------
    url : str
        Where it is.
    done, total : int
        Blocks.
    complete : bool
        Whether it is finished: all blocks, manifest and status.
    running : tuple of str
        The runs that are writing now.
    resume : str
        What to type to go on.
    """

    url: str
    done: int
    total: int
    complete: bool
    running: tuple[str, ...] = ()
    resume: str = ""

    def __str__(self) -> str:
        if self.complete:
            return f"{self.url} is complete"
        text = f"{self.url} is unfinished: {self.done} of {self.total} blocks are written"
        if self.running:
            return f"{text}, and being written by {', '.join(self.running)}"
        return f"{text}. To go on, type: {self.resume}"


@dataclass(frozen=True)
class BlockWriter:
    """Writes a store block by block; made by `create` or `resume`. It can be pickled.

    Parameters
    ----------
    location : Location
        Where the store is.
    plan : StorePlan
        What it shall become.
    run : Run
        In whose name blocks are claimed.
    """

    location: Location
    plan: ledger.StorePlan
    run: ledger.Run

    @classmethod
    def create(
        cls,
        ds: xr.Dataset | xr.DataTree,
        place: str | Path | Location,
        recipe: str | Mapping[str, str],
        *,
        overwrite: bool = False,
        dtype: Literal["float32", "float16"] = "float32",
        keep_bits: int | None = 10,
        layout: Layout | Mapping[str, Layout] | None = None,
        extra: Mapping[str, Any] | None = None,
        resume: str | None = None,
    ) -> BlockWriter:
        """Begin a store: metadata, coordinates and all that has no sample dimension.

        Parameters
        ----------
        ds : Dataset or DataTree
            What will be there at the end. What has the sample dimension is not computed.
        place : str, Path or Location
            Where; it must not exist.
        recipe : str or dict of str to str
            Fingerprint of what makes the data, or its parts; a resume must give the same.
        overwrite : bool
            Delete what is at ``place``.
        dtype : {"float32", "float16"}
            Of streamed floats.
        keep_bits : int or None
            Mantissa bits of float32 that are kept; None keeps all.
        layout : Layout, or mapping of group to Layout, optional
            Chosen by `plan_dataset` if None.
        extra : dict, optional
            JSON to keep in the plan.
        resume : str, optional
            What a user types to resume; said in errors.

        Returns
        -------
        BlockWriter

        Raises
        ------
        StoreExistsError
            If there is something already; nothing was changed.
        StoreError
            If the Dataset cannot be stored.
        """
        location = Location.of(place)
        if dtype not in DTYPES:
            raise StoreError(f"dtype is one of {', '.join(DTYPES)}, not {dtype!r}")
        if keep_bits is not None and not 1 <= keep_bits <= 23:
            raise StoreError(f"keep_bits is 1 to 23, or None to keep all, not {keep_bits}")
        groups = prepared_groups(ds)
        layouts = chosen_layouts(groups, layout)
        plan = make_plan(groups, layouts, recipe, location, keep_bits, extra, resume)
        groups[""].attrs["nedx_blocks"] = len(plan.blocks)
        if overwrite:
            refuse_own_source(location, dataset_groups(ds))
        refuse_existing(location, overwrite=overwrite)
        run = ledger.Run.here()
        location.create(ledger.CREATING, json.dumps(asdict(run)).encode())
        try:
            write_template(location, groups, layouts, dtype=dtype, keep_bits=keep_bits)
            location.write(ledger.PLAN, plan.to_bytes())
        except BaseException:
            # There was nothing before, and there is nothing to keep.
            location.delete(recursive=True)
            raise
        location.delete(ledger.CREATING)
        return cls(location, plan, run)

    @classmethod
    def resume(
        cls, place: str | Path | Location, recipe: str | Mapping[str, str] | None = None
    ) -> BlockWriter:
        """Go on with an unfinished store.

        Parameters
        ----------
        place : str, Path or Location
            Where it is.
        recipe : str or dict of str to str, optional
            As given to `create`; not compared if None.

        Returns
        -------
        BlockWriter

        Raises
        ------
        StoreError
            If it was begun with another recipe.
        IncompleteStoreError
            If there is nothing to resume.
        """
        location = Location.of(place)
        plan = ledger.StorePlan.read(location)
        if recipe is not None:
            check_recipe(location, plan.recipe, recipe_parts(recipe))
        return cls(location, plan, ledger.Run.here())

    @property
    def blocks(self) -> tuple[Block, ...]:
        """All blocks, in order."""
        return self.plan.blocks

    @property
    def recipe(self) -> str:
        """Fingerprint of the recipe."""
        return self.plan.fingerprint

    def pending(
        self, part: str | tuple[int, int] | None = None, *, rehash: bool = False
    ) -> list[Block]:
        """List the blocks that are not done.

        Done is what the ledger knows and whose objects are there in their size.

        Parameters
        ----------
        part : "i/n" or (i, n), optional
            Only the blocks of part i of n, counted from 1.
        rehash : bool
            Read the objects and compare their hashes too.
        """
        mine = _part(self.blocks, part)
        found = ledger.sizes(self.location)
        noted = {key for key in found if key.startswith(f"{STATE}/ledger/")}
        return [
            block
            for block in mine
            if f"{STATE}/ledger/{block.name}.json" not in noted
            or not self._is_whole(block, found, rehash=rehash)
        ]

    def _is_whole(self, block: Block, found: Mapping[str, int], *, rehash: bool) -> bool:
        objects = ledger.recorded(self.location, block)
        if objects is None or any(found.get(key) != o.size for key, o in objects.items()):
            return False
        return not rehash or all(
            StoredObject.of(self.location.read(key)) == o for key, o in objects.items()
        )

    @contextmanager
    def claimed(self, block: Block) -> Iterator[bool]:
        """Hold a block while it is computed and written.

        Yields
        ------
        bool
            False where another run has finished it meanwhile.

        Raises
        ------
        BlockClaimedError
            If a living run is at it.
        """
        ledger.claim(self.location, block, self.run)
        try:
            yield bool(self.pending_one(block))
        finally:
            ledger.release(self.location, block, self.run)

    def pending_one(self, block: Block) -> bool:
        """Whether a block is not done."""
        objects = ledger.recorded(self.location, block)
        if objects is None:
            return True
        filesystem, path = self.location.filesystem()
        filesystem.invalidate_cache()
        for key, item in objects.items():
            try:
                if filesystem.info(f"{path}/{key}")["size"] != item.size:
                    return True
            except FileNotFoundError:
                return True
        return False

    def write(self, block: Block, ds: xr.Dataset) -> dict[str, StoredObject]:
        """Write a block, whole objects only, and note it in the ledger. Idempotent.

        Parameters
        ----------
        block : Block
            One of `blocks`.
        ds : Dataset
            All streamed variables of the group, for the samples of the block, computed.

        Returns
        -------
        dict of str to StoredObject
            What was written.

        Raises
        ------
        AlignmentError
            If ``ds`` is not exactly that block.
        """
        if block not in self.blocks:
            raise AlignmentError(f"{block} is no block of {self.location.url}")
        names = self.plan.streamed[block.group]
        dim = self.plan.dims[block.group]
        if missing := [name for name in names if name not in ds]:
            raise AlignmentError(f"{block} needs {', '.join(missing)} too")
        store = RecordingStore(self.location.zarr_store(read_only=False))
        prefix = f"{block.group}/" if block.group else ""
        for name in names:
            array = zarr.open_array(store, path=prefix + name, mode="r+")
            # Given to open_array, this setting is dropped without a word.
            array = array.with_config({"write_empty_chunks": True})
            values = aligned(ds[name], array, block, dim)
            axis = dims_of(array).index(dim)
            keep_bits = self.plan.keep_bits if array.ndim > 1 else None
            put_block(array, axis, block, values, keep_bits)
            check_written(array, axis, block, store.written, prefix + name)
        ledger.record(self.location, block, store.written)
        return store.written

    def status(self) -> WriteStatus:
        """Say how much is done, by the ledger."""
        pending = self.pending()
        total = len(self.blocks)
        running = tuple(f"{r['host']} (pid {r['pid']})" for r in ledger.live_runs(self.location))
        return WriteStatus(
            self.location.url, total - len(pending), total, False, running, self.plan.resume
        )

    def finalize(self) -> Manifest:
        """Finish the store: check that all is there, clean up, write status and manifest.

        Returns
        -------
        Manifest

        Raises
        ------
        IncompleteStoreError
            If blocks are missing.
        """
        if self.location.exists(MANIFEST):
            # A run died after the manifest, while it removed the build state.
            ledger.clear(self.location)
            return read_manifest(self.location)
        pending = self.pending()
        if pending:
            first = ", ".join(str(block.index) for block in pending[:5])
            raise IncompleteStoreError(
                f"{len(pending)} of {len(self.blocks)} blocks of {self.location.url} are not "
                f"written (first: {first}). To go on, type: {self.plan.resume}"
            )
        objects = dict(ledger.read_template(self.location))
        for block in self.blocks:
            objects.update(ledger.recorded(self.location, block) or {})
        remove_leftovers(self.location, objects)
        mark_complete(self.location)
        metadata = [key for key in ledger.sizes(self.location) if is_metadata(key)]
        objects.update({key: StoredObject.of(self.location.read(key)) for key in metadata})
        manifest = Manifest(objects, self.recipe)
        self.location.write(MANIFEST, manifest.to_bytes())
        ledger.clear(self.location)
        return manifest


def to_zarr(
    ds: xr.Dataset | xr.DataTree,
    place: str | Path | Location,
    *,
    overwrite: bool = False,
    resume: bool = False,
    anonymous: bool | None = None,
    storage_options: Mapping[str, Any] | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    keep_bits: int | None = 10,
    layout: Layout | Mapping[str, Layout] | None = None,
    recipe: str | Mapping[str, str] | None = None,
    client: Any = None,
    workers: int = 1,
    progress: bool = False,
) -> Location:
    """Write a Dataset, or one per subject, to a Zarr store that can be verified and resumed.

    Parameters
    ----------
    ds : Dataset or DataTree
        Lazy or not. Variables along ``image`` or ``trial`` are computed and written block by
        block; memory holds ``workers`` blocks, of one worker two.
    place : str, Path or Location
        Where; an existing store is refused.
    overwrite : bool
        Delete what is at ``place`` first.
    resume : bool
        Go on with an unfinished store made from the same data; begins where there is none.
    anonymous, storage_options
        How to reach ``place``.
    dtype : {"float32", "float16"}
        Of streamed floats.
    keep_bits : int or None
        Mantissa bits of float32 that are kept: 10 keeps a relative error of 5e-4. None is exact.
    layout : Layout, or mapping of group to Layout, optional
        From `plan_dataset`; chosen if None.
    recipe : str or dict of str to str, optional
        Identity of the data, for `resume`; by default taken from them and from their graph.
    client : distributed.Client, optional
        Compute and write on a cluster, one task a block.
    workers : int
        Blocks at a time, in threads, without ``client``.
    progress : bool
        Show a bar.

    Returns
    -------
    Location

    Raises
    ------
    StoreExistsError
        If there is something at ``place``; nothing was changed.
    StoreError
        If the data cannot be stored, or a store to resume was made from others.
    """
    from nedx.store.running import run_blocks

    location = Location.of(place, anonymous=anonymous, storage_options=storage_options)
    parts = recipe if recipe is not None else dataset_recipe(ds, dtype, keep_bits)
    writer = begin(
        ds,
        location,
        parts,
        overwrite=overwrite,
        resume=resume,
        dtype=dtype,
        keep_bits=keep_bits,
        layout=layout,
    )
    if writer is None:
        return location
    run_blocks(writer, ds, client=client, workers=workers, progress=progress)
    writer.finalize()
    return location


def begin(
    ds: xr.Dataset | xr.DataTree,
    location: Location,
    recipe: str | Mapping[str, str],
    *,
    overwrite: bool = False,
    resume: bool = False,
    dtype: Literal["float32", "float16"] = "float32",
    keep_bits: int | None = 10,
    layout: Layout | Mapping[str, Layout] | None = None,
) -> BlockWriter | None:
    """Create a store, or go on with it; None where it is complete already.

    Arguments and errors are those of `to_zarr`.
    """
    if overwrite and resume:
        raise StoreError("give overwrite=True or resume=True, not both")
    parts = recipe_parts(recipe)
    if resume and location.exists(MANIFEST) and not location.exists(ledger.PLAN):
        check_recipe(location, read_manifest(location).recipe, parts)
        return None
    if resume and location.exists(ledger.PLAN):
        return BlockWriter.resume(location, parts)
    again = resume and location.exists(ledger.CREATING)
    if again:
        ledger.refuse_live_creator(location)
    return BlockWriter.create(
        ds,
        location,
        parts,
        overwrite=overwrite or again,
        dtype=dtype,
        keep_bits=keep_bits,
        layout=layout,
    )


def _part(blocks: Sequence[Block], part: str | tuple[int, int] | None) -> list[Block]:
    if part is None:
        return list(blocks)
    try:
        index, count = (int(p) for p in (part.split("/") if isinstance(part, str) else part))
    except ValueError as error:
        raise StoreError(f"a part is 'i/n', such as '3/20', not {part!r}") from error
    if not 1 <= index <= count:
        raise StoreError(f"part {part!r} is not there: the parts of {count} are 1 to {count}")
    return [block for unit in by_range(blocks)[index - 1 :: count] for block in unit]
