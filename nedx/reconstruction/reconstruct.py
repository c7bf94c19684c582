"""reconstruct: pictures of what was seen, lazily and with labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import xarray as xr

from nedx.compute.batches import checked
from nedx.compute.devices import check_device, resolve_device
from nedx.errors import ModelError, close_matches
from nedx.metrics.repeats import labels_of
from nedx.reconstruction.generators.protocol import DatasetGenerator, Generator
from nedx.reconstruction.prior import EMBEDDING, ONE_STAGE
from nedx.reconstruction.rows import over_rows, variable
from nedx.selection import map_nodes

Given = TypeVar("Given", xr.Dataset, xr.DataTree)

KINDS = ("true_embedding", "one_stage", "two_stage")
"""Pictures of the embedding of the image itself, of that decoded, and of what the prior makes of
it: the upper bound, without and with the prior."""
PIXELS = "pixels_reconstructed"
_HINTS = {
    EMBEDDING: "Type: ds.ned.decode(decoder)",
    "latent": "Type: low_level.predict(responses), or nedx.encode_latents(images, encoder)",
}


def reconstruct(
    ds: Given,
    generator: Generator | DatasetGenerator,
    *,
    kinds: Sequence[str] | None = None,
    targets: xr.Dataset | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Given:
    """Make pictures of decoded embeddings, latents or features of a network.

    The seed of a picture comes from `seed` and its ``image_id``; subjects and kinds share it.

    Parameters
    ----------
    ds : Dataset or DataTree
        What the generator reads, in every child of a tree, with ``image_id``: ``embedding
        ([subject,] image | trial, feature)``, ``latent ([subject,] image | trial, latent_channel,
        latent_y, latent_x)``, or ``feature_<layer> ([subject,] image | trial, *unit)``.
    generator : Generator or DatasetGenerator
        One of `nedx.reconstruction.generators`, `FeatureInversion` of
        `nedx.reconstruction.inversion`, or anything of these protocols.
    kinds : sequence of {"true_embedding", "one_stage", "two_stage"}, optional
        Pictures of several embeddings side by side: of the images themselves (`targets`), as
        decoded, and as the prior made them (`apply_prior`). By default of ``embedding`` as it is.
    targets : Dataset, optional
        ``features (image, feature)`` for ``"true_embedding"``, joined by ``image_id``.
    seed : int
        Of the noise of generators that draw some.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    Returns
    -------
    Dataset or DataTree
        What was given, with ``pixels_reconstructed ([kind,] [subject,] image | trial, y, x, rgb)``
        uint8, lazily, and the coordinate ``kind`` where there are kinds. Selecting first saves the
        work.

    Raises
    ------
    ModelError
        If what the generator reads is not there or does not fit, targets are missing, or the
        Dataset holds images of another size.
    """
    check_device(device)
    if isinstance(generator, type):
        raise ModelError(f"{generator.__name__} is a class; type: {generator.__name__}(...)")
    if isinstance(generator, DatasetGenerator):
        if kinds is not None or targets is not None:
            raise ModelError(f"kinds and targets are of embeddings, not of {generator!r:.80}")
    elif not isinstance(generator, Generator):
        raise ModelError(
            f"a {type(generator).__name__} is no generator; see nedx.reconstruction.generators, "
            "and nedx.FeatureInversion for networks that make images of codes"
        )
    make = partial(_pictured, generator, kinds, targets, seed, device)
    return map_nodes(ds, make) if isinstance(ds, xr.DataTree) else make(ds)


def _pictured(
    generator: Generator | DatasetGenerator,
    kinds: Sequence[str] | None,
    targets: xr.Dataset | None,
    seed: int,
    device: str,
    ds: xr.Dataset,
) -> xr.Dataset:
    """Return a Dataset with its pictures."""
    if isinstance(generator, DatasetGenerator):
        return generator.reconstruct(ds, seed=seed, device=device)
    rows = _rows(ds, generator, kinds, targets)
    size = generator.check(tuple(rows.sizes[dim] for dim in generator.row_dims))
    check_size(ds, size)
    task = PictureTask(generator, size, seed, device)
    made = over_rows(rows, generator.row_dims, task)
    recipe = {"name": type(generator).__name__, **generator.describe()}
    attrs = made_by(recipe, generator.reads, seed)
    lead = [dim for dim in rows.dims if dim not in generator.row_dims]
    out = ds.assign({PIXELS: ((*lead, "y", "x", "rgb"), made, attrs)})
    return out.assign_coords(kind=rows["kind"]) if kinds else out


def _rows(
    ds: xr.Dataset,
    generator: Generator,
    kinds: Sequence[str] | None,
    targets: xr.Dataset | None,
) -> xr.DataArray:
    """Return what pictures are made of, ``([kind,] ..., *generator.row_dims)``."""
    if kinds is None:
        rows = variable(ds, generator.reads, _HINTS.get(generator.reads, ""))
    else:
        rows = _kinds(ds, generator, kinds, targets)
    lacking = [dim for dim in generator.row_dims if dim not in rows.dims]
    if lacking or rows.dtype.kind != "f":
        raise ModelError(
            f"{generator.reads!r} is {rows.dtype} {rows.dims}, expected floats over "
            f"{generator.row_dims}"
        )
    return rows


@dataclass(frozen=True)
class PictureTask:
    """Makes the pictures of one block of rows.

    Parameters
    ----------
    generator : Generator
        Of what.
    size : (int, int)
        Height and width, pixels.
    seed : int
        Of all pictures.
    device : str
        As the user gave it; resolved where the task runs.
    """

    generator: Generator
    size: tuple[int, int]
    seed: int
    device: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one picture."""
        return (*self.size, 3)

    @property
    def dtype(self) -> np.dtype:
        """Of pixels."""
        return np.dtype(np.uint8)

    def __call__(self, rows: np.ndarray, names: Sequence[object]) -> np.ndarray:
        """Return uint8 (row, y, x, rgb)."""
        values = rows.astype(np.float32)
        values = checked(values, values.shape, np.float32, self.generator.reads, names=names)
        seeds = [picture_seed(self.seed, name) for name in names]
        made = self.generator.make(values, seeds, resolve_device(self.device))
        return checked(made, (len(rows), *self.shape), np.uint8, "a generator's pictures")


def made_by(recipe: Mapping[str, Any], reads: str, seed: int) -> dict[str, Any]:
    """Return the attributes of pictures: what made them, of what, and with which seed."""
    return {
        "long_name": "reconstructed image",
        "generator": json.dumps(recipe),
        "reads": reads,
        "seed": seed,
        "torch_version": version("torch"),
        "code_version": version("nedx"),
    }


def picture_seed(seed: int, name: object) -> int:
    """Return the seed of one picture: of its ``image_id`` and the seed of all."""
    digest = hashlib.sha256(f"nedx picture {seed} {name}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


def _kinds(
    ds: xr.Dataset, generator: Generator, kinds: Sequence[str], targets: xr.Dataset | None
) -> xr.DataArray:
    if not kinds:
        raise ModelError(f"kinds is empty; name some of {', '.join(KINDS)}")
    if generator.reads != EMBEDDING:
        raise ModelError(f"kinds are of embeddings; {type(generator).__name__} reads latents")
    found = [_of_kind(ds, kind, targets) for kind in kinds]
    widths = {kind: array.sizes["feature"] for kind, array in zip(kinds, found, strict=True)}
    if len(set(widths.values())) > 1:
        raise ModelError(f"one generator reads one width, the embeddings have {widths}")
    dim = xr.Variable("kind", np.array(list(kinds), dtype=object))
    return xr.concat(xr.broadcast(*found), dim).transpose("kind", *ds[EMBEDDING].dims)


def _of_kind(ds: xr.Dataset, kind: str, targets: xr.Dataset | None) -> xr.DataArray:
    if kind not in KINDS:
        raise ModelError(f"no kind is called {kind!r}: {close_matches(kind, KINDS)}")
    now = variable(ds, EMBEDDING, _HINTS[EMBEDDING])
    if kind == "true_embedding":
        return _bare(_true(now, targets), now)
    if ("prior_sha256" in now.attrs) == (kind == "two_stage"):
        return _bare(now, now)
    if kind == "two_stage":
        raise ModelError("no prior was applied yet; type ds.ned.apply_prior(prior)")
    before = variable(ds, ONE_STAGE, "")
    if "feature" not in before.dims:
        raise ModelError(
            "what was decoded is of another width than what the prior makes: no generator reads "
            "both. Leave out the kind 'one_stage'"
        )
    return _bare(before, now)


def _bare(array: xr.DataArray, now: xr.DataArray) -> xr.DataArray:
    """Drop labels but for image_id, so that kinds join by position; all have the images of one."""
    kept = {"image_id": now["image_id"].variable} if "image_id" in now.coords else {}
    return xr.DataArray(array.variable, coords=kept)


def _true(now: xr.DataArray, targets: xr.Dataset | None) -> xr.DataArray:
    if targets is None:
        raise ModelError("the kind 'true_embedding' needs targets=, a Dataset with 'features'")
    features = variable(targets, "features", "Type: nedx.encode_features(images, backbone)")
    if "image_id" not in features.coords or "image_id" not in now.coords:
        raise ModelError("embeddings and targets are joined by image_id, which one of them lacks")
    index = pd.Index(labels_of(features, "image_id"))
    wanted = labels_of(now, "image_id")
    if not index.is_unique:
        raise ModelError("an image_id occurs twice among the targets")
    positions = index.get_indexer(wanted)
    if (positions < 0).any():
        missing = wanted[positions < 0]
        raise ModelError(f"{len(missing)} images have no target, such as {str(missing[0])!r}")
    dim = now["image_id"].dims[0]
    values = features.variable.isel(image=positions)
    return xr.DataArray(values.data, dims=[dim if d == "image" else d for d in values.dims])


def check_size(ds: xr.Dataset, size: tuple[int, int]) -> None:
    """Raise ModelError if a Dataset holds images of another size than the pictures."""
    here = {dim: ds.sizes[dim] for dim in ("y", "x") if dim in ds.sizes}
    if here and here != dict(zip("yx", size, strict=True)):
        raise ModelError(
            f"the generator makes pictures of {size[0]} x {size[1]} pixels, and this Dataset holds "
            f"images of {here}. Type: ds.drop_dims(['y', 'x']).ned.reconstruct(...)"
        )
