"""What goes to disk: checked attributes, plain strings, rounded floats, a checksum on all of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from nedx.errors import StoreError
from nedx.store.layout import ArrayLayout, Layout

DTYPES = ("float32", "float16")
_PIECE = 2**18


def round_mantissa(values: np.ndarray, keep_bits: int | None) -> np.ndarray:
    """Round float32 to a number of explicit mantissa bits, to nearest and ties to even.

    Parameters
    ----------
    values : float32 array
        Any shape.
    keep_bits : int or None
        Bits kept of the 23; the relative error is at most ``2**-(keep_bits + 1)``. None or 23
        keeps all.

    Returns
    -------
    float32 array
        NaN and infinities are kept, and values that would round to infinity are cut instead.
    """
    if keep_bits is None or keep_bits >= 23 or values.dtype != np.float32:
        return values
    flat = np.ascontiguousarray(values).reshape(-1)
    rounded = np.empty_like(flat)
    # Piece by piece, each of which stays in the cache from step to step.
    for start in range(0, flat.size, _PIECE):
        piece = slice(start, start + _PIECE)
        rounded[piece] = _rounded(flat[piece], 23 - keep_bits)
    return rounded.reshape(values.shape)


def _rounded(values: np.ndarray, shift: int) -> np.ndarray:
    mask = np.uint32(0xFFFFFFFF ^ ((1 << shift) - 1))
    bits = values.view(np.uint32)
    rounded = bits >> np.uint32(shift)
    rounded &= np.uint32(1)
    rounded += np.uint32((1 << (shift - 1)) - 1)
    rounded += bits
    rounded &= mask
    special = ~np.isfinite(values)
    if special.any():
        rounded[special] = bits[special]
    result: np.ndarray = rounded.view(np.float32)
    overflowed = np.isinf(result) & ~special
    if overflowed.any():
        rounded[overflowed] = bits[overflowed] & mask
    return result


def stored_dtype(dtype: np.dtype, name: str) -> np.dtype:
    """Return the dtype on disk of streamed data: floats become ``name``, others stay."""
    return np.dtype(name) if dtype.kind == "f" else dtype


def as_stored(values: np.ndarray, dtype: np.dtype, keep_bits: int | None) -> np.ndarray:
    """Cast and round computed values to what the store holds.

    Raises
    ------
    StoreError
        If a cast would lose more than precision.
    """
    if values.dtype.kind != dtype.kind:
        raise StoreError(
            f"the values computed are {values.dtype}, the store holds {dtype} as the Dataset said; "
            f"give them their dtype first, as ds.astype({str(values.dtype)!r})"
        )
    if values.dtype == dtype:
        return round_mantissa(values, keep_bits)
    if dtype == np.float16 and values.size:
        largest = np.nanmax(np.abs(values[np.isfinite(values)]), initial=0.0)
        if largest > np.finfo(np.float16).max:
            raise StoreError(
                f"float16 holds values up to 65504, and {largest:g} was found; "
                "type to_zarr(..., dtype='float32')"
            )
    return round_mantissa(values.astype(dtype), keep_bits)


def prepare(ds: xr.Dataset, where: str = "the Dataset") -> xr.Dataset:
    """Return a Dataset that Zarr can hold without loss; nothing lazy is computed.

    Parameters
    ----------
    ds : Dataset
        Any Dataset.
    where : str
        How to call it in an error.

    Returns
    -------
    Dataset
        Without the encoding of where it was read from (old chunks and shards would be taken
        over), strings as objects (fixed-width ones have no Zarr v3 specification), attributes
        as JSON.

    Raises
    ------
    StoreError
        For a MultiIndex, for dtypes that Zarr cannot hold, for attributes that are not JSON: all
        of them in one message.
    """
    faults: list[str] = []
    for dim, index in ds.indexes.items():
        if index.nlevels > 1:
            faults.append(
                f"{dim!r} is a MultiIndex, which cannot be stored; type ds.reset_index({dim!r})"
            )
    faults += _attr_faults(ds.attrs, where)
    for name, var in ds.variables.items():
        faults += _attr_faults(var.attrs, f"{name!r}")
        if var.dtype.kind not in "biufcUTOmM":
            faults.append(
                f"{name!r} has dtype {var.dtype}; "
                + (
                    "type ds[name].astype(str)"
                    if var.dtype.kind == "S"
                    else "expected numbers or str"
                )
            )
    if faults:
        lines = "\n".join(f"  - {fault}" for fault in faults)
        raise StoreError(f"{where} cannot be stored:\n{lines}")
    plain = ds.drop_encoding()
    indexed = [name for name in plain.xindexes if name not in plain.dims]
    plain = plain.drop_indexes(indexed) if indexed else plain
    plain = plain.assign_attrs({str(k): _plain(v) for k, v in ds.attrs.items()})
    for name, var in ds.variables.items():
        attrs = {str(k): _plain(v) for k, v in var.attrs.items()}
        if var.dtype.kind in "UTO":
            plain = _with(plain, name, _as_strings(var, str(name)), attrs)
        else:
            plain[name].attrs = attrs
    return plain


def template(
    ds: xr.Dataset, layout: Layout, *, dtype: str, keep_bits: int | None
) -> tuple[xr.Dataset, dict[str, dict[str, Any]]]:
    """Return what the metadata are made of: empty streamed arrays, all else in memory.

    Returns
    -------
    template : Dataset
        Streamed variables are lazy zeros that are never computed.
    encoding : dict
        For `xarray.Dataset.to_zarr`.
    """
    made = ds.copy()
    encoding: dict[str, dict[str, Any]] = {}
    for key, var in ds.variables.items():
        name = str(key)
        stored = var.dtype
        if name in layout.streamed:
            # One number a sample, such as an onset, is small and stays exact.
            keep = keep_bits if var.ndim > 1 else None
            stored = stored_dtype(var.dtype, dtype) if var.ndim > 1 else var.dtype
            attrs = dict(var.attrs)
            attrs.pop("significant_bits", None)
            if stored == np.float32 and keep is not None and keep < 23:
                attrs["significant_bits"] = keep
            zeros = da.zeros(var.shape, chunks=-1, dtype=stored)
            made[name] = (var.dims, zeros, attrs)
        encoding[name] = array_encoding(stored, layout.arrays[name])
    return made, encoding


def array_encoding(dtype: np.dtype, layout: ArrayLayout) -> dict[str, Any]:
    """Return the encoding of one array: compressed, and a crc32c on every chunk."""
    packed = (
        ZstdCodec(level=5)
        if dtype.kind in "UTO"
        # Level 5 takes twice the time, and saves 1 % of rounded responses.
        else BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle")
    )
    encoding: dict[str, Any] = {"compressors": [packed, Crc32cCodec()]}
    if layout.chunks:
        encoding["chunks"] = layout.chunks
        if layout.shards:
            encoding["shards"] = layout.shards
    return encoding


def _with(ds: xr.Dataset, name: Any, values: np.ndarray, attrs: Mapping[str, Any]) -> xr.Dataset:
    var = xr.Variable(ds[name].dims, values, attrs)
    return ds.assign_coords({name: var}) if name in ds.coords else ds.assign({name: var})


def _as_strings(var: xr.Variable, name: str) -> np.ndarray:
    values = np.asarray(var.values)
    plain = values.astype(object)
    wrong = {type(v).__name__ for v in plain.ravel() if not isinstance(v, str)}
    if wrong:
        raise StoreError(
            f"{name!r} holds {', '.join(sorted(wrong))} beside or instead of str; use '' for what "
            "is missing, and numbers of one dtype elsewhere"
        )
    return plain


def _attr_faults(attrs: Mapping[Any, Any], where: str) -> list[str]:
    faults = []
    for key, value in attrs.items():
        try:
            json.dumps(_plain(value))
        except (TypeError, ValueError):
            faults.append(
                f"attribute {key!r} of {where} is a {type(value).__name__}, which is not JSON; "
                "use str, numbers, lists and dicts"
            )
    return faults


def _plain(value: Any) -> Any:
    """Turn numpy scalars, arrays and tuples into JSON; leave the rest."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return value
