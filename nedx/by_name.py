"""`verify` and `cite` for all that `nedx.open` opens: ids of catalogs, paths and URLs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from nedx.catalog import listing
from nedx.catalog.entries import Entry
from nedx.catalog.resolving import locate
from nedx.store import verifying
from nedx.store.location import Location
from nedx.store.verifying import VerifyReport

if TYPE_CHECKING:
    from nedx.encoding.kinds import Encoder


def verify(
    place: str | Path | Location,
    *,
    sample: float = 1.0,
    seed: int = 0,
    anonymous: bool | None = None,
    storage_options: Mapping[str, Any] | None = None,
    catalog: str | Path | None = None,
) -> VerifyReport:
    """Compare the objects of a store with the hashes in its manifest.

    Parameters
    ----------
    place : str, Path or Location
        An id, a path or a URL.
    sample, seed, anonymous, storage_options
        As in `nedx.store.verifying.verify`.
    catalog : str or Path, optional
        One more catalog to look in.

    Returns
    -------
    VerifyReport
        ``report.ok``, and what is bad.

    Raises
    ------
    UnknownIdError
        If no catalog names the id.
    StoreError
        If there is no store, or one that nedx did not write.
    """
    where = locate(place, anonymous=anonymous, storage_options=storage_options, catalog=catalog)
    return verifying.verify(where, sample=sample, seed=seed)


def cite(
    what: str | Path | Location | Entry | xr.Dataset | xr.DataTree | Encoder,
    *,
    catalog: str | Path | None = None,
) -> listing.CitationText:
    """Say how to cite data or a model.

    Parameters
    ----------
    what : str, Path, Location, Entry, Dataset, DataTree or Encoder
        An id, the path or URL of a store, data or a model. Of data that a model made, the model
        is cited.
    catalog : str or Path, optional
        One more catalog to look in.

    Returns
    -------
    CitationText
        ``print`` it, or take ``.bibtex``.

    Raises
    ------
    UnknownIdError
        If no catalog names the id.
    CatalogError
        If the attributes say nothing that could be cited.
    """
    if isinstance(what, str) and "/" not in what and not Path(what).exists():
        return listing.cite(what, catalog=catalog)
    if isinstance(what, str | Path | Location):
        what = read(what)
    return listing.cite(what if isinstance(what, Entry) else _signed(what), catalog=catalog)


def read(
    place: str | Path | Location,
    *,
    anonymous: bool | None = None,
    catalog: str | Path | None = None,
) -> xr.Dataset | xr.DataTree | Encoder:
    """Open what lies at a place, data or a model, by what its metadata say it is.

    Parameters
    ----------
    place : str, Path or Location
        An id, a path or a URL.
    anonymous : bool, optional
        Read without credentials.
    catalog : str or Path, optional
        One more catalog to look in.

    Returns
    -------
    Dataset, DataTree or Encoder

    Raises
    ------
    StoreError
        If nothing can be opened there.
    """
    where = locate(place, anonymous=anonymous, catalog=catalog)
    if _is_model(where):
        from nedx.encoding.model import load_model

        return load_model(where)
    from nedx.store.opening import open_store

    return open_store(where)


def _is_model(where: Location) -> bool:
    try:
        metadata = json.loads(where.read("zarr.json"))
    except (FileNotFoundError, ValueError):
        # `open_store` says what is wrong.
        return False
    return metadata.get("attributes", {}).get("nedx_kind") == "model"


def _signed(data: xr.Dataset | xr.DataTree | Encoder) -> xr.Dataset:
    """Return an empty Dataset with all attributes that say what made these data."""
    if not isinstance(data, xr.Dataset | xr.DataTree):
        recipe = data.recipe
        said = {"model_id": recipe.model_id, "model_version": recipe.version}
        said |= {"license": recipe.license or "", "references": recipe.citation or ""}
        return xr.Dataset(attrs=said)
    nodes = data.subtree if isinstance(data, xr.DataTree) else [data]
    made_by = {
        name: value
        for node in nodes
        for variable in node.data_vars.values()
        for name, value in variable.attrs.items()
        if name in ("model_id", "model_version")
    }
    return xr.Dataset(attrs={**made_by, **data.attrs})
