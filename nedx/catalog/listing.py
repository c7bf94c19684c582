"""What there is, for people: tables, cards and citations, as text and as HTML."""

from __future__ import annotations

import html
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import xarray as xr

from nedx.catalog import entries as words
from nedx.catalog.entries import Entry, ModelCard
from nedx.catalog.layers import load_stack
from nedx.errors import CatalogError, UnknownIdError, close_matches

_COLUMNS = ("id", "version", "kind", "modality", "source", "dims", "title", "license", "catalog")
_PRINTED = _COLUMNS[:7]
_MOST_DIMS, _FEWEST_TITLE = 28, 20
"""Characters."""


class CatalogTable(Sequence[Entry]):
    """Entries of the catalogs, printed as a table.

    Parameters
    ----------
    entries : sequence of Entry
    """

    def __init__(self, entries: Sequence[Entry]):
        self._entries = tuple(entries)

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        """Iterate over the entries."""
        return iter(self._entries)

    def __getitem__(self, index: Any) -> Any:
        """Return the entry at a position, or a table of a slice."""
        found = self._entries[index]
        return CatalogTable(found) if isinstance(index, slice) else found

    def to_dataframe(self) -> pd.DataFrame:
        """Return a DataFrame, one row for each entry, indexed by id."""
        columns = [*_COLUMNS, "dataset", "stored_gb", "deprecated_by"]
        rows = [
            {
                **{name: getattr(entry, name, None) for name in columns},
                "stored_gb": entry.size.stored_gb,
            }
            for entry in self
        ]
        return pd.DataFrame(rows, columns=columns).set_index("id")

    def __repr__(self) -> str:
        """Return the table as text, as wide as the terminal."""
        if not self._entries:
            return "no entries; nedx.list() shows all there are"
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        columns = {
            name: cells
            for name, cells in zip(_COLUMNS, zip(*self._rows(), strict=True), strict=True)
            if name in _PRINTED
        }
        widths = {name: max(map(len, (name, *cells))) for name, cells in columns.items()}
        # An id must stay whole to be copied: the title takes what is left of the line, and the
        # sizes make room for it.
        fixed = sum(width + 2 for name, width in widths.items() if name not in ("title", "dims"))
        widths["dims"] = min(widths["dims"], _MOST_DIMS)
        if _width() - fixed - widths["dims"] - 2 < _FEWEST_TITLE:
            del widths["dims"]
        left = _width() - fixed - (widths.get("dims", -2) + 2)
        widths["title"] = min(widths["title"], max(left, _FEWEST_TITLE))
        for name, width in widths.items():
            table.add_column(name, no_wrap=name not in ("title", "dims"), width=width)
        for cells in zip(*(columns[name] for name in widths), strict=True):
            table.add_row(*map(Text, cells))
        return _as_text(table)

    def _repr_html_(self) -> str:
        head = "".join(f"<th style='text-align:left'>{name}</th>" for name in _COLUMNS)
        body = "".join(
            "<tr>"
            + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in row)
            + "</tr>"
            for row in self._rows()
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _rows(self) -> Iterator[tuple[str, ...]]:
        for entry in self:
            yield tuple(
                _dims(entry) if name == "dims" else str(getattr(entry, name) or "")
                for name in _COLUMNS
            )


@dataclass(frozen=True, repr=False)
class Card:
    """All that a catalog says of one entry.

    Attributes
    ----------
    entry : Entry
    versions : tuple of str
        All versions of this id in the same catalog, oldest first.
    """

    entry: Entry
    versions: tuple[str, ...]

    def rows(self) -> tuple[tuple[str, str], ...]:
        """Return name and text of what is known, in the order of the card."""
        entry = self.entry
        size = entry.size
        rows = {
            "id": entry.reference,
            "versions": ", ".join(self.versions),
            "summary": entry.summary,
            "kind": entry.kind,
            "modality": entry.modality,
            "source": "synthetic (simulated)" if entry.source == "synthetic" else entry.source,
            "dataset": entry.dataset,
            "subjects": ", ".join(entry.subjects),
            "rois": ", ".join(entry.rois),
            "dims": _dims(entry),
            **_said(entry.card),
            "stored": f"{size.stored_gb:g} GB" if size.stored_gb is not None else None,
            "in memory": f"{size.logical_gb:g} GB" if size.logical_gb is not None else None,
            "license": entry.license,
            "citation": str(_citation_of(entry)) if entry.citation else None,
            "from": _origin(entry),
            "fingerprint": entry.fingerprint,
            "provenance": "\n".join(f"{k}: {v}" for k, v in entry.provenance.items()),
            "deprecated by": entry.deprecated_by,
            "catalog": entry.catalog,
            "open with": _how_to_open(entry),
        }
        return tuple((name, text) for name, text in rows.items() if text)

    def __repr__(self) -> str:
        """Return the card as text."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, show_header=False, title_justify="left")
        table.title = Text(self.entry.title, style="bold")
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, text in self.rows():
            table.add_row(name, Text(text))
        return _as_text(table)

    def _repr_html_(self) -> str:
        body = "".join(
            f"<tr><th style='text-align:left'>{name}</th>"
            f"<td style='text-align:left;white-space:pre-line'>{html.escape(text)}</td></tr>"
            for name, text in self.rows()
        )
        return f"<b>{html.escape(self.entry.title)}</b><table>{body}</table>"


@dataclass(frozen=True)
class CitationText:
    """How to cite data or a model: ``print`` it, or take ``.bibtex``.

    Attributes
    ----------
    text : str
        References as sentences, one a line.
    bibtex : str
        BibTeX entries.
    """

    text: str
    bibtex: str

    def __str__(self) -> str:
        """Return the references as sentences."""
        return self.text

    def _repr_html_(self) -> str:
        bibtex = f"<pre>{html.escape(self.bibtex)}</pre>" if self.bibtex else ""
        return f"<p style='white-space:pre-line'>{html.escape(self.text)}</p>{bibtex}"


def list(
    *,
    kind: str | None = None,
    modality: str | None = None,
    source: str | None = None,
    dataset: str | None = None,
    subject: str | int | None = None,
    roi: str | None = None,
    catalog: str | Path | None = None,
) -> CatalogTable:
    """List what the catalogs name, the newest version of each id.

    Parameters
    ----------
    kind : {"responses", "stimuli", "features", "model"}, optional
    modality : {"fmri", "eeg", "meg", "ieeg", "ephys"}, optional
    source : {"synthetic", "measured"}, optional
    dataset : str, optional
        For example ``"nsd"``.
    subject : str or int, optional
        Only entries that say that they hold this subject.
    roi : str, optional
        Only entries that say that they hold this ROI, for example ``"V1"``.
    catalog : str or Path, optional
        One more catalog, by path or URL.

    Returns
    -------
    CatalogTable

    Raises
    ------
    CatalogError
        If a word is not one of those that catalogs use.
    """
    asked = {"kind": kind, "modality": modality, "source": source}
    closed = {"kind": words.Kind, "modality": words.Modality, "source": words.Source}
    for name, value in asked.items():
        options = get_args(closed[name])
        if value is not None and value not in options:
            raise CatalogError(f"{name}={value!r} is not known; {close_matches(value, options)}")
    asked["dataset"] = dataset
    found = [
        entry
        for entry in load_stack(catalog).latest()
        if all(value in (None, getattr(entry, name)) for name, value in asked.items())
    ]
    if subject is not None:
        from nedx.selection import subject_label

        label = subject_label(subject)
        found = [e for e in found if label in {subject_label(own) for own in e.subjects}]
    if roi is not None:
        found = [e for e in found if roi in e.rois]
    return CatalogTable(found)


def search(text: str, *, catalog: str | Path | None = None) -> CatalogTable:
    """Find the entries that hold every word of ``text``, those with it in the id first.

    Parameters
    ----------
    text : str
        Words in any order; upper and lower case are the same.
    catalog : str or Path, optional
        One more catalog, by path or URL.

    Returns
    -------
    CatalogTable
    """
    asked = text.casefold().split()
    found = [e for e in load_stack(catalog).latest() if all(w in _haystack(e) for w in asked)]
    return CatalogTable(
        sorted(found, key=lambda e: (not all(w in e.id.casefold() for w in asked), e.id))
    )


def describe(reference: str, *, catalog: str | Path | None = None) -> Card:
    """Return all that a catalog says of ``[catalog:]id[@version]``.

    Parameters
    ----------
    reference : str
    catalog : str or Path, optional
        One more catalog, by path or URL.

    Returns
    -------
    Card

    Raises
    ------
    UnknownIdError
        If no catalog names it.
    """
    stack = load_stack(catalog)
    entry = stack.find(reference)
    same = stack.versions(entry.id, entry.catalog)
    return Card(entry, tuple(one.version for one in same))


def cite(
    what: str | Entry | xr.Dataset | xr.DataTree, *, catalog: str | Path | None = None
) -> CitationText:
    """Say how to cite data or a model.

    Parameters
    ----------
    what : str, Entry, Dataset or DataTree
        An id, or data: their attributes ``id`` and ``model_id`` are looked up in the
        catalogs, and ``references`` and ``license`` are given as they stand.
    catalog : str or Path, optional
        One more catalog, by path or URL.

    Returns
    -------
    CitationText

    Raises
    ------
    UnknownIdError
        If no catalog names the id.
    CatalogError
        If the attributes say nothing that could be cited.
    """
    if isinstance(what, Entry):
        return _citation_of(what)
    if isinstance(what, str):
        return _citation_of(load_stack(catalog).find(what))
    return _citation_of_data(what.attrs, catalog)


def _citation_of(entry: Entry) -> CitationText:
    texts, bibtex = [], []
    for number, citation in enumerate(entry.citation, 1):
        link = f"https://doi.org/{citation.doi}" if citation.doi else ""
        texts.append(" ".join(part for part in (citation.text, link) if part) or entry.title)
        key = f"{entry.id}-{entry.version}" + (f"-{number}" if number > 1 else "")
        doi = f",\n  doi = {{{citation.doi}}}" if citation.doi else ""
        made = f"@misc{{{key},\n  title = {{{citation.text or entry.title}}}{doi}\n}}"
        bibtex.append((citation.bibtex or made).strip())
    said = f"{entry.title} ({entry.reference}, {entry.license})."
    if entry.source == "synthetic":
        said += " Synthetic data."
    if not bibtex:
        bibtex.append(
            f"@misc{{{entry.id}-{entry.version},\n  title = {{{entry.title}}},\n"
            f"  version = {{{entry.version}}}\n}}"
        )
    return CitationText("\n".join([said, *texts]), "\n\n".join(bibtex))


def _citation_of_data(attrs: dict[Any, Any], catalog: str | Path | None) -> CitationText:
    found = []
    model = attrs.get("model_id")
    version = f"@{attrs['model_version']}" if attrs.get("model_version") else ""
    stack = load_stack(catalog)
    for name in (attrs.get("id"), f"{model}{version}" if model else None):
        try:
            found += [_citation_of(stack.find(str(name)))] if name else []
        except UnknownIdError:
            # Data outlive the catalogs that named them; their own attributes still speak.
            found += [CitationText(str(name), "")]
    listed = "\n".join(one.text for one in found)
    said = [
        str(attrs[name])
        for name in ("title", "creator_name", "institution", "references")
        if attrs.get(name) and str(attrs[name]) not in listed
    ]
    if attrs.get("license") and str(attrs["license"]) not in listed:
        said.append(f"License: {attrs['license']}")
    if not found and not said:
        raise CatalogError(
            "these data do not say where they come from: they have none of the attributes id, "
            "model_id, title and references. Type nedx.cite(id) with the id they were opened by"
        )
    text = "\n".join([*(one.text for one in found), *said])
    return CitationText(text, "\n\n".join(one.bibtex for one in found if one.bibtex))


def _haystack(entry: Entry) -> str:
    parts: tuple[str | None, ...] = (
        *(entry.id, entry.title, entry.summary, entry.kind, entry.modality, entry.source),
        *(entry.dataset, entry.license, *entry.keywords, *entry.subjects, *entry.rois, *entry.dims),
        *(text for c in entry.citation for text in (c.doi, c.text)),
        *(str(value) for value in entry.provenance.values()),
        *(text for text in _said(entry.card).values()),
    )
    return " ".join(part for part in parts if part).casefold()


def _dims(entry: Entry) -> str:
    return ", ".join(f"{name}: {size:,}" for name, size in entry.dims.items())


def _said(card: ModelCard) -> dict[str, str | None]:
    """Return what a card says, under the names that people read."""
    splits = ", ".join(f"{name} {count:,}" for name, count in card.splits.items())
    return {
        "training data": card.training_data,
        "splits": f"{splits} images" if splits else None,
        "preprocessing": card.preprocessing,
        "output": card.output,
        "units": card.units,
        "accuracy": card.accuracy,
    }


def _origin(entry: Entry) -> str:
    if entry.external:
        return f"not run by nedx: {entry.external}" if entry.kind == "model" else entry.external
    return "\n".join(entry.urls) or f"generated on this machine ({entry.generator})"


def _how_to_open(entry: Entry) -> str | None:
    if entry.external:
        return None
    verb = "load_model" if entry.kind == "model" else "open"
    # Of such a model each subject is a file of its own, often of gigabytes.
    one = f', subject="{entry.subjects[0]}"' if entry.reader and entry.subjects else ""
    return f'nedx.{verb}("{entry.id}"{one})'


def _as_text(table: Any) -> str:
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=_width(), no_color=True, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _width() -> int:
    """Return the width of the terminal in characters, 120 where there is none."""
    from rich.console import Console

    terminal = Console()
    return terminal.width if terminal.is_terminal else 120
