"""``xr.open_dataset("nedx://id", engine="nedx")``.

xarray imports this module whenever it guesses an engine, so it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import xarray as xr
from xarray.backends import BackendEntrypoint

from nedx.errors import CatalogError


class NedxBackendEntrypoint(BackendEntrypoint):
    """Opens what a nedx catalog names, without dask; ``chunks=`` of xarray wraps it."""

    description = "Open responses, stimuli and features of a nedx catalog: nedx://id@version"
    url = "https://pypi.org/project/nedx"
    supports_groups = True

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        subject: Any = None,
        roi: Any = None,
        channel: Any = None,
        time: Any = None,
        group: str | None = None,
        anonymous: bool | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> xr.Dataset:
        """Open the Dataset of an id; the arguments are those of `nedx.open`."""
        opened = _open(
            filename_or_obj,
            **{"subject": subject, "roi": roi, "channel": channel, "time": time},
            **{"group": group, "anonymous": anonymous, "storage_options": storage_options},
        )
        if isinstance(opened, xr.DataTree):
            raise CatalogError(
                f"{filename_or_obj} holds subjects with axes of their own ({', '.join(opened)}); "
                "pass subject=, or use xr.open_datatree"
            )
        return opened.drop_vars(_listed(drop_variables), errors="ignore")

    def open_datatree(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        subject: Any = None,
        roi: Any = None,
        channel: Any = None,
        time: Any = None,
        anonymous: bool | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> xr.DataTree:
        """Open all subjects of an id; the arguments are those of `nedx.open`."""
        opened = _open(
            filename_or_obj,
            **{"subject": subject, "roi": roi, "channel": channel, "time": time},
            **{"anonymous": anonymous, "storage_options": storage_options},
        )
        tree = opened if isinstance(opened, xr.DataTree) else xr.DataTree(opened)
        names = _listed(drop_variables)
        return tree.map_over_datasets(lambda ds: ds.drop_vars(names, errors="ignore"))

    def open_groups_as_dict(
        self, filename_or_obj: Any, *, drop_variables: str | Iterable[str] | None = None
    ) -> dict[str, xr.Dataset]:
        """Open all subjects of an id as a dict of path to Dataset."""
        tree = self.open_datatree(filename_or_obj, drop_variables=drop_variables)
        return {node.path: node.to_dataset(inherit=False) for node in tree.subtree}

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether it is a ``nedx://`` address; stores of other names are not nedx's to guess."""
        return isinstance(filename_or_obj, str) and filename_or_obj.startswith("nedx://")


def _open(place: Any, **arguments: Any) -> Any:
    from nedx.catalog.resolving import open as open_by_name
    from nedx.catalog.resolving import resolve

    text = str(place)
    if not text.startswith("nedx://"):
        raise CatalogError(f"engine='nedx' opens nedx://id, not {text!r}; use nedx.open for a path")
    if resolve(text).kind == "model":
        raise CatalogError(f"{text} is a model, not data; type nedx.load_model({text[7:]!r})")
    return open_by_name(text, chunks=None, **arguments)


def _listed(names: str | Iterable[str] | None) -> list[str]:
    if names is None:
        return []
    return [names] if isinstance(names, str) else list(names)
