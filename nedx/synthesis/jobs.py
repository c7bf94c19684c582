"""The verbs of a batch job: init, run, status, finalize, verify; and all of them at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
import zarr

from nedx.errors import ModelError, StoreError
from nedx.store.building import dataset_groups, make_plan
from nedx.store.codecs import as_stored
from nedx.store.layout import Block
from nedx.store.ledger import PLAN
from nedx.store.location import Location
from nedx.store.manifest import MANIFEST, Manifest, read_manifest
from nedx.store.opening import open_store
from nedx.store.running import Progress, run_blocks
from nedx.store.verifying import VerifyReport
from nedx.store.verifying import verify as verify_store
from nedx.store.writing import BlockWriter, WriteStatus, begin
from nedx.synthesis.clusters import connected, local_cluster, worker_resources
from nedx.synthesis.recipe import SynthesisRecipe, build
from nedx.synthesis.recipes import ImageSetRecipe, load_recipe


def init(
    images: str | Path,
    model: str | Path,
    place: str | Path | Location,
    *,
    recipe: ImageSetRecipe | str | Path | None = None,
    overwrite: bool = False,
    anonymous: bool | None = None,
    storage_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> WriteStatus:
    """Plan a synthesis: write the labels and the recipe, compute nothing.

    Parameters
    ----------
    images : str or Path
        A folder, an HDF5 brick, a Zarr store or a catalog id of stimuli. Every machine that runs
        the job must reach it under this name.
    model : str or Path
        Catalog id, path or URL of the model.
    place : str, Path or Location
        Where the store shall be.
    recipe : ImageSetRecipe, str or Path, optional
        What ``images`` are: ``"nsd-73k"``, ``"imagenet-val"``, ``"things"``, or the path of a
        recipe of your own. It gives them their ids, order and size, and is kept in the store.
    overwrite : bool
        Delete what is at ``place``.
    anonymous, storage_options
        How to reach ``place``.
    **options
        Further fields of `SynthesisRecipe`: ``subject``, ``roi``, ``precision``, ...

    Returns
    -------
    WriteStatus

    Raises
    ------
    StoreExistsError
        If there is something at ``place``.
    NedxError
        If images, model or selection are not right: nothing is written then.
    """
    location = Location.of(place, anonymous=anonymous, storage_options=storage_options)
    given = {name: _plain(value) for name, value in options.items()}
    if recipe is not None and not isinstance(recipe, ImageSetRecipe):
        recipe = load_recipe(recipe)
    job = SynthesisRecipe(
        images=_everywhere(images), image_set=recipe, model=_everywhere(model), **given
    )
    built = job.build()
    writer = BlockWriter.create(
        built.data,
        location,
        built.parts,
        overwrite=overwrite,
        dtype=job.dtype,
        keep_bits=job.keep_bits,
        layout=built.layouts,
        extra={"synthesis": job.model_dump(mode="json")},
        resume=f"nedx synth run {location.url}",
    )
    return writer.status()


def run(
    place: str | Path | Location,
    *,
    part: str | tuple[int, int] | None = None,
    client: Any = None,
    workers: int | None = None,
    progress: bool | Progress = True,
    anonymous: bool | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> WriteStatus:
    """Write the blocks that are not done; seal the store when none is left.

    Parameters
    ----------
    place : str, Path or Location
        Where `init` planned the store.
    part : "i/n" or (i, n), optional
        Only part i of n, from 1; every part can run on a machine of its own. Parts do not seal the
        store: type ``nedx synth finalize`` when all are done.
    client : distributed.Client or str, optional
        A cluster, or the address of its scheduler.
    workers : int, optional
        Processes on this machine, without ``client``; one, in this process, by default.
    progress : bool or callable
        Show a bar, or call with (done, total).
    anonymous, storage_options
        How to reach ``place``.

    Returns
    -------
    WriteStatus

    Raises
    ------
    StoreError
        If images, model or settings are not those that the store was begun with.
    BlockClaimedError
        If another living run is at the same blocks.
    """
    location = Location.of(place, anonymous=anonymous, storage_options=storage_options)
    if location.exists(MANIFEST):
        finalize(location)
        return status(location)
    built = _recipe_of(location).build()
    # Compares images, model and settings with those of the plan.
    writer = BlockWriter.resume(location, built.parts)
    with cluster(client, workers) as client:
        resources = worker_resources(client)
        run_blocks(
            writer, built.data, client=client, part=part, progress=progress, resources=resources
        )
    if part is None:
        writer.finalize()
    return status(location)


def status(
    place: str | Path | Location,
    *,
    anonymous: bool | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> WriteStatus:
    """Say how far a store is."""
    location = Location.of(place, anonymous=anonymous, storage_options=storage_options)
    if location.exists(MANIFEST):
        root = zarr.open_group(location.zarr_store(), mode="r")
        total = int(root.attrs.get("nedx_blocks", 0))  # type: ignore[arg-type]
        return WriteStatus(location.url, total, total, complete=True)
    return BlockWriter.resume(location).status()


def finalize(
    place: str | Path | Location,
    *,
    anonymous: bool | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Manifest:
    """Check that all blocks are done, and seal the store with its manifest.

    Raises
    ------
    IncompleteStoreError
        If blocks are missing.
    """
    location = Location.of(place, anonymous=anonymous, storage_options=storage_options)
    if location.exists(MANIFEST) and not location.exists(PLAN):
        return read_manifest(location)
    return BlockWriter.resume(location).finalize()


def synthesize(
    ds: xr.Dataset,
    model: Any,
    place: str | Path | Location,
    *,
    client: Any = None,
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dtype: Literal["float32", "float16"] = "float32",
    keep_bits: int | None = 10,
    block: int | None = None,
    progress: bool | Progress = False,
    anonymous: bool | None = None,
    storage_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Location:
    """Encode images and write the responses, block by block, in one call.

    Parameters
    ----------
    ds : Dataset
        Stimuli: ``pixels (image, y, x, rgb)`` or ``features (image, feature)``.
    model : str or LinearEncoder
        As in `nedx.encode`.
    place : str, Path or Location
        Where the store shall be.
    client : distributed.Client or str, optional
        A cluster, or the address of its scheduler.
    workers : int, optional
        Processes on this machine, without ``client``.
    resume : bool
        Go on with an unfinished store of the same images and model.
    overwrite : bool
        Delete what is at ``place``.
    dtype, keep_bits
        As in `nedx.to_zarr`.
    block : int, optional
        Images that one task computes and writes; chosen if None.
    progress : bool or callable
        Show a bar, or call with (done, total).
    anonymous, storage_options
        How to reach ``place``.
    **options
        Further arguments of `nedx.encode`: ``subject``, ``roi``, ``device``, ...

    Returns
    -------
    Location

    Raises
    ------
    StoreExistsError
        If there is something at ``place``.
    StoreError
        If an unfinished store was begun with other images or another model.
    """
    location = Location.of(place, anonymous=anonymous, storage_options=storage_options)
    storage: dict[str, Any] = {"dtype": dtype, "keep_bits": keep_bits}
    built = build(ds, model, options, storage, block=block)
    writer = begin(
        built.data,
        location,
        built.parts,
        overwrite=overwrite,
        resume=resume,
        layout=built.layouts,
        **storage,
    )
    if writer is None:
        return location
    with cluster(client, workers) as client:
        resources = worker_resources(client)
        run_blocks(writer, built.data, client=client, progress=progress, resources=resources)
    writer.finalize()
    return location


@dataclass(frozen=True)
class RecomputeReport:
    """What `verify` found when it checked bytes and computed blocks again.

    Parameters
    ----------
    store : VerifyReport
        Of the bytes.
    blocks : tuple of int
        Blocks that were computed again.
    largest_deviation : float
        Between stored and computed responses, relative to the largest response.
    """

    store: VerifyReport
    blocks: tuple[int, ...] = ()
    largest_deviation: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether bytes are as written, and responses the same within what was rounded off."""
        # Rounding happens on either side of a boundary when values differ in their last bits.
        return self.store.ok and self.largest_deviation <= 2e-3

    def __str__(self) -> str:
        if not self.blocks:
            return str(self.store)
        numbers = ", ".join(str(block) for block in self.blocks)
        return (
            f"{self.store}\ncomputed again: block {numbers}; largest deviation "
            f"{self.largest_deviation:.2e} of the largest response"
        )


def verify(
    place: str | Path | Location,
    *,
    sample: float = 1.0,
    recompute: float = 0.0,
    seed: int = 0,
    anonymous: bool | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> RecomputeReport:
    """Check the hashes of a store, and compute some of its blocks again.

    Parameters
    ----------
    place : str, Path or Location
        A finished store.
    sample : float
        Part of the objects whose hash is checked, 0 to 1.
    recompute : float
        Part of the blocks that are computed again, 0 to 1; at least one block if above 0.
    seed : int
        Which blocks.
    anonymous, storage_options
        How to reach ``place``.

    Returns
    -------
    RecomputeReport

    Raises
    ------
    ModelError
        If the store does not say how it was made.
    """
    location = Location.of(place, anonymous=anonymous, storage_options=storage_options)
    report = verify_store(location, sample=sample, seed=seed)
    if recompute <= 0 or not report.complete:
        return RecomputeReport(report)
    stored = open_store(location)
    made_by = stored.attrs.get("nedx_synthesis")
    if made_by is None:
        raise ModelError(
            f"{location.url} does not say how it was synthesised, so it cannot be computed again; "
            "stores of 'nedx synth init' do"
        )
    recipe = SynthesisRecipe(**made_by)
    expected = recipe.build()
    was, now = dataset_groups(stored), dataset_groups(expected.data)
    _check_same_labels(location, was, now)
    plan = make_plan(now, expected.layouts, "", location, recipe.keep_bits, None, None)
    count = min(len(plan.blocks), max(1, round(recompute * len(plan.blocks))))
    chosen = np.random.default_rng(seed).choice(len(plan.blocks), count, replace=False)
    chosen.sort()
    deviations = [
        _deviation(block, was[block.group], now[block.group], recipe)
        for block in (plan.blocks[i] for i in chosen)
    ]
    return RecomputeReport(report, tuple(chosen.tolist()), max(deviations))


def _check_same_labels(
    location: Location, was: Mapping[str, xr.Dataset], now: Mapping[str, xr.Dataset]
) -> None:
    """Raise where a store is not all of what its recipe makes, as a selection of it is."""
    for group, ds in now.items():
        if "response" not in ds:
            continue
        sizes = was[group]["response"].sizes if group in was else {}
        if dict(sizes) != dict(ds["response"].sizes):
            raise ModelError(
                f"{location.url} is not all that its recipe makes (group {group!r} differs in "
                "size), so it cannot be computed again"
            )


def _deviation(
    block: Block, stored: xr.Dataset, built: xr.Dataset, recipe: SynthesisRecipe
) -> float:
    """Return the largest difference of a block, relative to its largest response."""
    span = slice(block.start, block.stop)
    lazy = built["response"].isel(image=span)
    was = np.asarray(stored["response"].isel(image=span).transpose(*lazy.dims).values, np.float32)
    computed = lazy.values
    now = np.asarray(as_stored(computed, np.dtype(recipe.dtype), recipe.keep_bits), np.float32)
    return float(np.abs(was - now).max() / max(np.abs(now).max(), np.finfo(np.float32).tiny))


@contextmanager
def cluster(client: Any, workers: int | None) -> Iterator[Any]:
    """Give the client to use: of a cluster by address, of one on this machine, or None."""
    if client is not None:
        with connected(client) as known:
            yield known
    elif workers is not None and workers > 1:
        with local_cluster(workers) as started:
            yield started
    else:
        yield None


def _recipe_of(location: Location) -> SynthesisRecipe:
    plan = BlockWriter.resume(location).plan
    content = plan.extra.get("synthesis")
    if content is None:
        raise StoreError(
            f"{location.url} was not begun by 'nedx synth init', so there is no recipe to run; "
            f"to go on, type: {plan.resume}"
        )
    return SynthesisRecipe(**content)


def _everywhere(place: str | Path) -> str:
    """Make a path absolute, so that a job can run from another folder."""
    path = Path(place).expanduser()
    return str(path.absolute()) if path.exists() else str(place)


def _plain(value: Any) -> Any:
    """Return a selection as JSON keeps it."""
    if isinstance(value, slice):
        return value.start, value.stop
    return tuple(value) if isinstance(value, list) else value
