"""Files read from front to back, wherever they lie, in the memory they need and no more."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from nedx.errors import CorruptStoreError, NedxError, StoreError
from nedx.store.location import Location, remote_errors

_BUFFER = 2**20
_PART = 2**23
_AT_ONCE = 4


def url_of(location: Location, key: str) -> str:
    """Return the path or URL of a file, for messages."""
    return f"{location.url.rstrip('/')}/{key}"


@contextmanager
def opened(location: Location, key: str) -> Iterator[IO[bytes]]:
    """Open a file for reading; what fails, here or later, says which file and why.

    Parameters
    ----------
    location : Location
        A folder, bucket or web server.
    key : str
        The file in it.

    Yields
    ------
    file
        Seekable. A large ``readinto`` of a file far away fetches several parts at once, straight
        into the given memory.

    Raises
    ------
    CredentialsError, StoreError
        If the file is not there, is refused, or cannot be reached.
    """
    try:
        if location.is_local:
            with open(f"{location.filesystem()[1]}/{key}", "rb") as file:
                yield file
        else:
            with io.BufferedReader(_Parts(location, key), _BUFFER) as buffered:
                yield buffered
    except FileNotFoundError as error:
        raise StoreError(
            f"there is no file {url_of(location, key)}. Check the root, or fetch the file"
        ) from error
    except StoreError:
        raise
    except remote_errors() as error:
        raise location.failed(error, key) from error


@contextmanager
def damage_told(
    url: str, damage: tuple[type[Exception], ...], fault: str = "cut short or damaged"
) -> Iterator[None]:
    """Turn what a damaged file makes a reader raise into one error that names the file.

    Parameters
    ----------
    url : str
        The file.
    damage : tuple of exceptions
        What the reader raises of such files.
    fault : str
        What the file then is.

    Raises
    ------
    CorruptStoreError
        For these; errors of nedx pass as they are.
    """
    try:
        yield
    except NedxError:
        raise
    except damage as error:
        reason = str(error) or type(error).__name__
        raise CorruptStoreError(f"{url} is {fault} ({reason}). Fetch it again") from error


def inflated(file: IO[bytes]) -> IO[bytes]:
    """Return what a file holds, inflated on the way if it is compressed with zlib or gzip.

    Parameters
    ----------
    file : file
        Seekable, at its start.

    Returns
    -------
    file
        The same one, or one that can only be read from front to back.
    """
    start = file.read(2)
    file.seek(0)
    gzipped, compressed = start == b"\x1f\x8b", start[:1] == b"\x78"
    return io.BufferedReader(_Inflated(file), _BUFFER) if gzipped or compressed else file


class _Inflated(io.RawIOBase):
    """A compressed file as it was before."""

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.stream = zlib.decompressobj(zlib.MAX_WBITS | 32)

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the buffer as far as one step goes; at the end the checksum was right."""
        while not self.stream.eof:
            packed = self.stream.unconsumed_tail or self.file.read(_BUFFER)
            found = self.stream.decompress(packed, len(buffer))
            if found:
                buffer[: len(found)] = found
                return len(found)
            if not packed:
                raise EOFError("what is compressed has no end")
        return 0


class _Parts(io.RawIOBase):
    """A file far away. fsspec's own would hold a large read three times."""

    def __init__(self, location: Location, key: str):
        self.location, self.key = location, key
        self.filesystem, base = location.filesystem()
        self.path = f"{base}/{key}"
        self.size = self._asked_size()
        self.position = 0

    def _asked_size(self) -> int:
        found = self.location.patiently(self.key, self._told_size)
        if found is None:
            raise StoreError(
                f"the server of {url_of(self.location, self.key)} does not say how large it is, "
                "so that parts of it cannot be read: download the file"
            )
        return int(found)

    def _told_size(self) -> int | None:
        try:
            size: int | None = self.filesystem.info(self.path)["size"]
        except FileNotFoundError:
            # fsspec's http says so of whatever went wrong; a read tells what.
            self.filesystem.cat_file(self.path, 0, 1)
            size = self.filesystem.info(self.path)["size"]
        return size

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        self.position = max(0, start + offset)
        return self.position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the buffer as far as one round of requests goes."""
        stop = min(self.size, self.position + min(len(buffer), _PART * _AT_ONCE))
        if stop <= self.position:
            return 0
        starts = list(range(self.position, stop, _PART))
        stops = [*starts[1:], stop]
        parts = self.location.patiently(
            self.key,
            lambda: self.filesystem.cat_ranges(
                [self.path] * len(starts), starts, stops, on_error="raise"
            ),
        )
        for first, last, part in zip(starts, stops, parts, strict=True):
            if len(part) != last - first:
                raise StoreError(
                    f"of {url_of(self.location, self.key)} the server sent {len(part):,} bytes "
                    f"where {last - first:,} were asked for: download the file"
                )
            buffer[first - self.position : last - self.position] = part
        filled = stop - self.position
        self.position = stop
        return filled


def stamp(root: Location, key: str) -> str:
    """Return what changes when a file does: its size, and when it was written or its etag.

    Parameters
    ----------
    root : Location
        A folder or bucket.
    key : str
        The file in it, which is there.

    Returns
    -------
    str
    """
    filesystem, base = root.filesystem()
    info = filesystem.info(f"{base}/{key}")
    changed = next((info[k] for k in ("ETag", "mtime", "LastModified") if k in info), "")
    return f"{info.get('size')} {changed} "
