"""Expressions that select voxels: ``ROI_V1 + ROI_V2``, ``(ROI_VC - ROI_V1) & ROI_LH_VC = 1``.

The language of bdpy: a key stands for where its row is 1, ``*`` in it for any text, of which all
matches count. ``=`` binds most; ``|`` or ``+`` (or), ``&`` (and) and ``-`` (without) bind alike,
from left to right; ``@`` (where) binds least. A key with signs in it is put in quotes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from fnmatch import translate

import numpy as np
import xarray as xr

from nedx.errors import SelectionError, close_matches
from nedx.schema import neuroid_dim
from nedx.sources.bdata.reading import BLOCKS, HEMISPHERES

_TOKEN = re.compile(
    r"""\s*(?:(?P<quoted>"[^"]*"|'[^']*')|(?P<sign>[()=|&+@-])|(?P<word>[^\s()=|&+@"'-]+))"""
)
_BINDING = {"=": 10, "|": 5, "&": 5, "+": 5, "-": 5, "@": 3}

Rows = Callable[[str], np.ndarray]
"""Returns the row of a key, (neuroid,)."""


def select_expression(ds: xr.Dataset, expression: str) -> xr.Dataset:
    """Select neuroids by an expression, lazily.

    Parameters
    ----------
    ds : Dataset
        Has ``roi_mask (roi, <neuroid>)``. Coordinates of numbers along the neuroids are keys,
        too, by the names they have in BData, and so are ``VoxelData`` (all), ``VertexLeft`` and
        ``VertexRight``.
    expression : str
        For example ``"ROI_V1 + ROI_V2"``. ``ROI_VC`` is ``ROI_VC = 1``; ``ROI_VC = 0`` is all but
        these. ``A @ B`` is A where B is, and binds least.

    Returns
    -------
    Dataset
        Only the neuroids for which it is true, which may be none; ROIs stay as they are.

    Raises
    ------
    SelectionError
        If a key is unknown (names the close matches), or the expression is malformed.
    """
    dim = neuroid_dim(ds)
    if dim is None:
        raise SelectionError("an expression selects neuroids, and there are none here")
    keys = _keys(ds, dim)
    chosen = evaluate(expression, lambda key: _row(keys, key, ds))
    return ds.isel({dim: np.flatnonzero(chosen)})


def evaluate(expression: str, rows: Rows) -> np.ndarray:
    """Evaluate an expression.

    Parameters
    ----------
    expression : str
    rows : callable (str)
        Returns bool (neuroid,) for a key.

    Returns
    -------
    ndarray of bool, (neuroid,)

    Raises
    ------
    SelectionError
        If the expression is malformed.
    """
    tokens = list(_tokens(expression))
    found, rest = _expression(tokens, 0, rows, expression)
    if rest:
        raise _malformed(expression, f"{rest[0][1]!r} is one too many")
    if isinstance(found, float):
        raise _malformed(expression, "a number alone selects nothing")
    return found


Token = tuple[str, str]


def _tokens(expression: str) -> Iterator[Token]:
    position = 0
    text = expression.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _malformed(expression, f"a quote is not closed: {text[position:].strip()}")
        kind = str(match.lastgroup)
        yield kind, match[kind].strip("\"'") if kind == "quoted" else match[kind]
        position = match.end()


def _expression(
    tokens: list[Token], least: int, rows: Rows, whole: str
) -> tuple[np.ndarray | float, list[Token]]:
    """Evaluate as far as operators bind more than ``least``; return what is left."""
    left, rest = _operand(tokens, rows, whole)
    while rest and rest[0] != ("sign", ")"):
        sign = rest[0][1] if rest[0][0] == "sign" else ""
        if sign not in _BINDING:
            raise _malformed(whole, f"an operator is missing before {rest[0][1]!r}")
        if _BINDING[sign] <= least:
            break
        right, rest = _expression(rest[1:], _BINDING[sign], rows, whole)
        left = _applied(sign, left, right, whole)
    return left, rest


def _operand(tokens: list[Token], rows: Rows, whole: str) -> tuple[np.ndarray | float, list[Token]]:
    if not tokens:
        raise _malformed(whole, "it ends where a key is expected")
    (kind, text), rest = tokens[0], tokens[1:]
    if (kind, text) == ("sign", "("):
        found, rest = _expression(rest, 0, rows, whole)
        if not rest:
            raise _malformed(whole, "a parenthesis is not closed")
        return found, rest[1:]
    if kind == "sign":
        raise _malformed(whole, f"{text!r} stands where a key is expected")
    if kind == "word" and text.isdigit():
        return float(text), rest
    return rows(text), rest


def _applied(
    sign: str, left: np.ndarray | float, right: np.ndarray | float, whole: str
) -> np.ndarray:
    if sign == "=":
        if isinstance(left, float) or not isinstance(right, float):
            raise _malformed(whole, "'=' stands between a key and a number")
        return left == right
    if isinstance(left, float) or isinstance(right, float):
        raise _malformed(whole, f"{sign!r} stands between keys, not numbers")
    found: np.ndarray = left | right if sign in "|+" else left & (~right if sign == "-" else right)
    return found


def _malformed(expression: str, fault: str) -> SelectionError:
    return SelectionError(
        f"{expression!r} cannot be understood: {fault}. Keys are joined by + & - @, for example "
        "'ROI_V1 + ROI_V2'; a key with such signs in it is put in quotes"
    )


def _keys(ds: xr.Dataset, dim: str) -> Mapping[str, np.ndarray]:
    """Return bool (neuroid,) by key: ROIs, and coordinates of numbers where they are 1."""
    count = ds.sizes[dim]
    keys = {key: np.ones(count, bool) for key, block in BLOCKS.items() if block == dim}
    for name, coord in ds.coords.items():
        if coord.dims == (dim,) and coord.dtype.kind in "biuf" and name != dim:
            keys[str(coord.attrs.get("bdata_key", name))] = coord.values == 1
    if "hemisphere" in ds.coords:
        sides = ds["hemisphere"].values
        keys.update({key: sides == side for key, side in HEMISPHERES.items()})
    if "roi_mask" in ds and "roi" in ds.coords:
        others = [d for d in ds["roi_mask"].dims if d not in ("roi", dim)]
        mask = ds["roi_mask"].any(others).transpose("roi", dim).values
        keys.update({str(name): mask[row] for row, name in enumerate(ds["roi"].values)})
    return keys


def _row(keys: Mapping[str, np.ndarray], key: str, ds: xr.Dataset) -> np.ndarray:
    if "*" in key:
        pattern = re.compile(translate(key.replace("[", "[[]").replace("?", "[?]")))
        matches = [row for name, row in keys.items() if pattern.match(name)]
        if matches:
            found: np.ndarray = np.any(matches, axis=0)
            return found
    elif key in keys:
        return keys[key]
    samples = [str(n) for n, c in ds.coords.items() if str(c.attrs.get("bdata_key", n)) == key]
    hint = f"it labels samples: type ds[{samples[0]!r}]" if samples else close_matches(key, keys)
    raise SelectionError(f"unknown key {key!r}: {hint or 'there are no keys here'}")
