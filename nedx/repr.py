"""``ds.ned`` as text, rich table or HTML, all from one card. Computes and reads nothing."""

from __future__ import annotations

import contextlib
import html
import json
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from nedx._roles import neuroid_dim, role_dim
from nedx._rules import find_kind

if TYPE_CHECKING:
    from rich.table import Table

_MISSING = "n/a"
_MOST_NAMES = 8
_MAIN = ("response", "response_predicted", "features", "pixels")
_PLURALS = {"vertex": "vertices"}


@dataclass(frozen=True)
class Card:
    """What there is to say about a Dataset: a title, and rows of a label and a value."""

    title: str
    rows: tuple[tuple[str, str], ...]


def describe(obj: xr.Dataset | xr.DataTree) -> Card:
    """Describe a Dataset or DataTree from its labels and attributes.

    Parameters
    ----------
    obj : Dataset or DataTree
        Responses, stimuli or features.

    Returns
    -------
    Card
        Missing facts that matter are ``"n/a"``.
    """
    if isinstance(obj, xr.DataTree):
        return _describe_tree(obj)
    kind = find_kind(obj) or "Dataset"
    rows = [*_origin(obj, kind), *_axes(obj), *_arrays(obj), *_provenance(_all_attrs(obj))]
    title = obj.attrs.get("title") or obj.attrs.get("dataset")
    return Card(f"nedx {kind}" + (f": {title}" if title else ""), tuple(rows))


def as_text(card: Card) -> str:
    """Return the card as aligned lines."""
    width = max((len(label) for label, _ in card.rows), default=0)
    lines = [f"  {label:<{width}}  {value}" for label, value in card.rows]
    return "\n".join([f"<{card.title}>", *lines])


def as_rich(card: Card) -> Table:
    """Return the card as a rich table; its text is never read as markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(card.title), title_justify="left", show_header=False, box=None)
    for label, value in card.rows:
        table.add_row(Text(label, style="bold"), Text(value))
    return table


def as_html(card: Card) -> str:
    """Return the card as HTML, everything in it escaped."""
    rows = "".join(
        f'<tr><th style="text-align:left">{html.escape(label)}</th>'
        f'<td style="text-align:left">{html.escape(value)}</td></tr>'
        for label, value in card.rows
    )
    title = html.escape(card.title)
    return f"<div><strong>{title}</strong><table>{rows}</table></div>"


def _describe_tree(tree: xr.DataTree) -> Card:
    subjects = [name for name, child in tree.children.items() if find_kind(child.dataset)]
    rows = []
    if subjects:
        first = tree.children[subjects[0]].to_dataset(inherit=True)
        rows += _origin(first.assign_attrs({**first.attrs, **tree.attrs}), find_kind(first) or "")
    rows.append(("subjects", _names(subjects) if subjects else _MISSING))
    for name in subjects:
        ds = tree.children[name].to_dataset(inherit=True)
        sizes = ", ".join(_counted(size, str(dim)) for dim, size in _main_sizes(ds).items())
        rows.append((name, sizes))
    children = [_all_attrs(tree.children[name].dataset) for name in subjects[:1]]
    rows += _provenance({**(children[0] if children else {}), **tree.attrs})
    title = tree.attrs.get("title") or tree.attrs.get("dataset")
    return Card("nedx DataTree" + (f": {title}" if title else ""), tuple(rows))


def _main_sizes(ds: xr.Dataset) -> Mapping[Hashable, int]:
    for name in _MAIN:
        if name in ds.data_vars:
            return ds[name].sizes
    return ds.sizes


def _origin(ds: xr.Dataset, kind: str) -> list[tuple[str, str]]:
    """Say what was recorded, and whether it was."""
    if kind != "responses":
        return []
    source = ds.attrs.get("source")
    for name in _MAIN:
        if name in ds.data_vars:
            source = ds[name].attrs.get("source", source)
            break
    return [
        ("source", _plain(source)),
        ("modality", _plain(ds.attrs.get("modality"))),
        *([("species", _plain(ds.attrs["species"]))] if "species" in ds.attrs else []),
    ]


def _axes(ds: xr.Dataset) -> list[tuple[str, str]]:
    rows = []
    subject = role_dim(ds, "subject")
    if subject is not None:
        rows.append(("subjects", _labels(ds, subject)))
    elif "subject" in ds.coords and ds["subject"].ndim == 0:
        rows.append(("subject", _labels(ds, "subject")))
    for role, label in (("stimulus", "images"), ("trial", "trials"), ("repetition", "repetitions")):
        dim = role_dim(ds, role)
        if dim is not None:
            size = f" of {ds.sizes['y']} x {ds.sizes['x']} pixels" if "rgb" in ds.dims else ""
            rows.append((label, f"{ds.sizes[dim]:,}{size}"))
    neuroid = neuroid_dim(ds)
    if neuroid is not None:
        space = [
            str({**ds.attrs, **ds[neuroid].attrs}.get(key))
            for key in ("space", "density", "montage")
            if {**ds.attrs, **ds[neuroid].attrs}.get(key)
        ]
        where = f" ({', '.join(space)})" if space else ""
        rows.append((_PLURALS.get(neuroid, f"{neuroid}s"), f"{ds.sizes[neuroid]:,}{where}"))
    if "roi" in ds.dims or "roi" in ds.coords:
        rows.append(("ROIs", _labels(ds, "roi")))
    rows += _time_row(ds)
    return rows


def _time_row(ds: xr.Dataset) -> list[tuple[str, str]]:
    dim = role_dim(ds, "time")
    if dim is None or dim not in ds.coords or not ds.sizes[dim]:
        return []
    times = ds[dim]
    values = times.values
    units = times.attrs.get("units", "")
    text = f"{values[0]:g} to {values[-1]:g} {units}, {_counted(values.size, 'sample')}"
    rate = times.attrs.get("sampling_frequency", ds.attrs.get("sampling_frequency"))
    if rate is None and values.size > 1 and np.allclose(np.diff(values), values[1] - values[0]):
        rate = 1 / (values[1] - values[0])
    return [("time", text + (f", {rate:g} Hz" if rate is not None else ""))]


def _arrays(ds: xr.Dataset) -> list[tuple[str, str]]:
    """Say of each main variable its dims, dtype, unit, size, chunks, shards and where it is."""
    rows = []
    for name in _MAIN:
        if name not in ds.data_vars:
            continue
        array = ds[name]
        parts = [f"({', '.join(map(str, array.dims))}) {array.dtype}"]
        if units := array.attrs.get("units"):
            scale = array.attrs.get("normalization")
            parts.append(f"units {units!r}" + (f" ({scale})" if scale else ""))
        parts.append(_bytes(array.size * array.dtype.itemsize))
        if array.chunks is not None:
            parts.append(
                f"lazy, chunks {_shape([max(sizes, default=0) for sizes in array.chunks])}"
            )
        elif array.variable._in_memory:
            parts.append("in memory")
        else:
            parts.append("lazy")
        if shards := array.encoding.get("shards"):
            parts.append(f"shards {_shape(shards)}")
        rows.append((name, ", ".join(parts)))
    ceilings = [str(n) for n in ("noise_ceiling", "ncsnr", "encoding_accuracy") if n in ds]
    if ceilings:
        rows.append(("also", ", ".join(ceilings)))
    return rows


def _all_attrs(ds: xr.Dataset) -> dict[Hashable, Any]:
    """Return the attributes of a Dataset, and those by which its main variable says its origin."""
    main = next((ds[name].attrs for name in _MAIN if name in ds.data_vars), {})
    origin = ("model_id", "model_version", "image_preprocessing")
    return {**{name: main[name] for name in origin if name in main}, **ds.attrs}


def _provenance(attrs: Mapping[Hashable, Any]) -> list[tuple[str, str]]:
    rows = []
    if model := _versioned(attrs):
        rows.append(("model", model))
    if "image_preprocessing" in attrs:
        rows.append(("preprocessing", _plain(attrs["image_preprocessing"])))
    if "nedx_status" in attrs:
        rows.append(("store", _plain(attrs["nedx_status"])))
    rows.append(("licence", _plain(attrs.get("license"))))
    return rows


def _versioned(attrs: Mapping[Hashable, Any]) -> str:
    model, version = attrs.get("model_id"), attrs.get("model_version")
    return "" if not model else f"{model}@{version}" if version else str(model)


def _labels(ds: xr.Dataset, name: str) -> str:
    """Name the labels that memory holds; count those it does not."""
    if name not in ds.coords or not ds[name].variable._in_memory:
        return f"{ds.sizes.get(name, 1):,}"
    return _names([str(label) for label in np.atleast_1d(ds[name].values)])


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMES])
    return shown if len(names) <= _MOST_NAMES else f"{shown}, ... ({len(names):,})"


def _plain(value: Any) -> str:
    """Return an attribute on one line of bounded length."""
    if value is None or value == "":
        return _MISSING
    if isinstance(value, str) and value.startswith("{"):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if isinstance(value, Mapping):
        name = value.get("name") or value.get("policy")
        value = name or ", ".join(f"{k}={v}" for k, v in value.items())
    text = " ".join(str(value).split())
    return text if len(text) <= 160 else text[:157] + "..."


def _counted(count: int, noun: str) -> str:
    plural = _PLURALS.get(noun, f"{noun}s")
    return f"{count:,} {noun if count == 1 else plural}"


def _shape(sizes: Any) -> str:
    return " x ".join(str(size) for size in sizes)


def _bytes(count: int) -> str:
    if count < 1000:
        return f"{count} B"
    power = min(int(math.log(count, 1000)), 5)
    return f"{count / 1000**power:.3g} {' kMGTP'[power]}B"
