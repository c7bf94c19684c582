"""Errors for humans: what was found, what was expected, what to type next."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class NedxError(Exception):
    """Base of every error that nedx raises on purpose."""


class NedxWarning(UserWarning):
    """Base of every warning that nedx gives; each says what to do about it."""


class SchemaError(NedxError, ValueError):
    """A Dataset does not obey the nedx schema; ``faults`` lists every fault found."""

    def __init__(self, subject: str, faults: Sequence[str]):
        self.faults = list(faults)
        lines = "\n".join(f"  - {fault}" for fault in self.faults)
        count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        super().__init__(f"{subject} does not obey the nedx schema ({count}):\n{lines}")


class SelectionError(NedxError, KeyError):
    """A subject, ROI, channel, time window or image that is not there."""

    def __str__(self) -> str:
        return str(self.args[0])


class StimulusError(NedxError, ValueError):
    """Images of a wrong dtype, range, size or number, or that cannot be decoded."""


class ModelError(NedxError, ValueError):
    """A model that cannot be loaded, or does not fit the data it is given."""


class SourceError(NedxError, ValueError):
    """Published recordings that lack something, or whose files do not belong together."""


class StoreError(NedxError, OSError):
    """A Zarr store that cannot be opened, read or written."""


class StoreExistsError(StoreError, FileExistsError):
    """A path that exists already; nothing was changed on it."""


class NotDataError(StoreError):
    """A store that holds a model where data were asked for."""


class IncompleteStoreError(StoreError):
    """A half-written store."""


class CorruptStoreError(StoreError):
    """Bytes that differ from what was written."""


class BlockClaimedError(StoreError):
    """Another live run is writing the same block."""


class AlignmentError(StoreError, ValueError):
    """A write that does not cover whole blocks."""


class CredentialsError(StoreError, PermissionError):
    """A store that needs credentials, or refuses those given."""


class CatalogError(NedxError, ValueError):
    """A catalog that cannot be read, or that asks for what a catalog may not."""


class UnknownIdError(CatalogError, KeyError):
    """An id that no catalog names."""

    def __str__(self) -> str:
        return str(self.args[0])


class MissingExtraError(NedxError, ImportError):
    """An optional dependency that is not installed."""


def close_matches(name: object, options: Iterable[object], count: int = 3) -> str:
    """Say which of ``options`` come closest to ``name``, or list the first few.

    Parameters
    ----------
    name : object
        What was asked for.
    options : iterable
        What there is.
    count : int
        The most names to give.

    Returns
    -------
    str
        For example ``"did you mean 'V1v' or 'V1d'?"``; empty when there are no options.
    """
    texts = [str(option) for option in options]
    near = difflib.get_close_matches(str(name), texts, n=count, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(text) for text in near) + "?"
    if not texts:
        return ""
    shown = ", ".join(texts[:12])
    return f"there are: {shown}" + (", ..." if len(texts) > 12 else "")


def faults_of(error: ValidationError, whole: str) -> str:
    """Say what pydantic found at fault: where, why, and what was given.

    Parameters
    ----------
    error : pydantic.ValidationError
    whole : str
        What to call the place of a fault that is of no single field.
    """
    faults = [
        f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}, not {fault['input']!r}"
        if fault["loc"]
        else f"{whole}: {fault['msg']}"
        for fault in error.errors()
    ]
    return "; ".join(faults)


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say how to install it.

    Parameters
    ----------
    module : str
        The module to import.
    extra : str
        The extra of nedx that brings it.

    Returns
    -------
    module

    Raises
    ------
    MissingExtraError
        If the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        message = f"{module} is not installed. Type: pip install 'nedx[{extra}]'"
        raise MissingExtraError(message) from error
