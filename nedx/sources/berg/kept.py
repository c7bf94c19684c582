"""What was made of published files, kept in the cache under what it was made of."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

from nedx.config import cache_dir
from nedx.errors import StoreExistsError
from nedx.sources.berg.streams import stamp, url_of
from nedx.store.location import Location

logger = logging.getLogger(__name__)


def kept(
    root: Location,
    keys: Sequence[str],
    model_id: str,
    name: str,
    write: Callable[[Location], Any],
    settings: str = "",
) -> Location:
    """Return the Zarr model that was made of files, made now unless it lies in the cache.

    Parameters
    ----------
    root : Location
        A folder or bucket.
    keys : sequence of str
        The files in it. Made anew where one of them has changed.
    model_id, name : str
        Where to keep it: ``<cache>/berg/<model_id>/<name>-<digest>.zarr``.
    write : callable (Location)
        Reads the files, and writes the model, whole or not at all.
    settings : str
        What else decides the model.

    Returns
    -------
    Location
    """
    url = url_of(root, keys[0])
    text = "\n".join([url, *(stamp(root, key) for key in keys), settings])
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    place = Location.of(cache_dir() / "berg" / model_id / f"{name}-{digest}.zarr")
    if place.exists("zarr.json"):
        return place
    logger.info("reading %s, once; it is kept in %s", url, place.url)
    os.makedirs(os.path.dirname(place.url), exist_ok=True)
    try:
        write(place)
    except StoreExistsError:
        logger.info("another process was faster: %s", place.url)
    return place
