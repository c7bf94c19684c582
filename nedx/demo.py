"""The main job, end to end on one machine: images, responses, a store, a stream, a figure."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import numpy as np
import xarray as xr
from rich.console import Console
from rich.progress import track

import nedx
from nedx.errors import StoreExistsError

MODEL = "sim-fmri-fsaverage5-gabor"
SUBJECTS = (1, 2, 3)
SUBJECT = 1
ROIS = ("V1", "V2", "V3", "hV4", "FFA-1", "PPA")

_IMAGES = 48
_SHOWN = 12
_MARKER = ".nedx-demo"


@dataclass
class Traffic:
    """How many requests a server has answered, and with how many bytes."""

    requests: int = 0
    bytes: int = 0
    lock: Any = field(default_factory=threading.Lock, repr=False)

    def count(self, size: int) -> None:
        """Add one answer."""
        with self.lock:
            self.requests += 1
            self.bytes += size


def run_demo(into: Path, console: Console) -> None:
    """Encode a folder of images, store the responses, stream a piece, and plot it.

    Parameters
    ----------
    into : Path
        The folder for ``images/``, ``responses.zarr`` and ``figure.png``. A folder of an earlier
        demo is used again.
    console : Console
        Where to say what happens.

    Raises
    ------
    StoreExistsError
        If the folder holds anything else; nothing in it is changed.
    """
    _prepare(into)
    folder = make_images(into / "images", console)

    console.print(f"1. nedx.open_images({str(folder)!r})")
    images = nedx.open_images(folder)
    console.print(images.ned)

    console.print(f"\n2. images.ned.encode({MODEL!r}, subject={list(SUBJECTS)})   (lazy)")
    responses = images.ned.encode(MODEL, subject=list(SUBJECTS))
    console.print(responses.ned)

    store = into / "responses.zarr"
    console.print(f"\n3. responses.drop_vars('pixels').ned.to_zarr({str(store)!r})")
    responses.drop_vars("pixels").ned.to_zarr(store, overwrite=True, progress=True)
    stored = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())

    with serve(into) as (url, traffic):
        console.print(f"\n4. nedx.open_store('{url}/responses.zarr', subject={SUBJECT}, roi=[...])")
        piece = nedx.open_store(f"{url}/responses.zarr", subject=SUBJECT, roi=list(ROIS))
        console.print(piece.ned)
        means = piece.ned.roi_mean(list(ROIS)).response.isel(image=slice(_SHOWN)).compute()
        console.print(
            f"streamed {traffic.bytes / 1e6:.2f} MB in {traffic.requests} requests; the store "
            f"holds {stored / 1e6:.1f} MB"
        )

    figure = into / "figure.png"
    draw(means.isel(subject=0), images.pixels[:_SHOWN].values, figure)
    console.print(f"\n5. the figure is {figure} (simulated responses of subject {SUBJECT})")


def _prepare(into: Path) -> None:
    if into.exists() and any(into.iterdir()) and not (into / _MARKER).exists():
        raise StoreExistsError(
            f"{into} holds other things than a demo. Type: nedx demo --into another_folder"
        )
    into.mkdir(parents=True, exist_ok=True)
    (into / _MARKER).touch()


def make_images(folder: Path, console: Console) -> Path:
    """Write one PNG of each of the first test concepts of ``sim-images`` into sub-folders.

    Parameters
    ----------
    folder : Path
        Made where needed; images that are there already are kept.
    console : Console
        Shows the progress.

    Returns
    -------
    Path
        The folder.
    """
    from PIL import Image

    source = cast(xr.Dataset, nedx.open("sim-images"))
    unseen = np.flatnonzero(source["partition"].values != "train")
    _, first = np.unique(source["category"].values[unseen].tolist(), return_index=True)
    chosen = source.isel(image=unseen[np.sort(first)[:_IMAGES]])
    pixels = chosen["pixels"].values
    names = zip(chosen["category"].values, chosen["image_id"].values, strict=True)
    for image, (category, image_id) in track(
        list(zip(pixels, names, strict=True)), "drawing images", console=console, transient=True
    ):
        path = folder / str(category) / f"{str(image_id).partition(':')[2]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            Image.fromarray(image).save(path)
    return folder


def draw(responses: xr.DataArray, pixels: np.ndarray, path: Path) -> None:
    """Draw ROI responses under their images into a PNG.

    Parameters
    ----------
    responses : DataArray (roi, image)
        In memory.
    pixels : ndarray (image, y, x, 3), uint8
        The images.
    path : Path
        The file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from nedx.plot.images import plot_image_responses

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    plot_image_responses(responses.assign_attrs(long_name="mean response"), pixels, ax=axes)
    axes.set_xlabel(f"simulated responses of {responses['subject'].item()} to images never seen")
    figure.savefig(path, dpi=150)


@contextmanager
def serve(folder: Path) -> Iterator[tuple[str, Traffic]]:
    """Serve a folder read-only over HTTP on the loopback address, with byte ranges.

    Parameters
    ----------
    folder : Path
        What to serve.

    Yields
    ------
    url : str
        For example ``"http://127.0.0.1:40123"``.
    traffic : Traffic
        Counts what is sent.
    """
    traffic = Traffic()
    handler = partial(_Handler, folder.resolve(), traffic)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", traffic
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD for the files of one folder."""

    protocol_version = "HTTP/1.1"

    def __init__(self, root: Path, traffic: Traffic, *rest: Any):
        self.root, self.traffic = root, traffic
        super().__init__(*rest)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        path = (self.root / unquote(urlsplit(self.path).path).lstrip("/")).resolve()
        if not path.is_relative_to(self.root) or not path.is_file():
            self._send(404, b"", {}, with_body=with_body)
            return
        data = path.read_bytes()
        start, stop = _byte_range(self.headers.get("Range", ""), len(data))
        if (start, stop) == (0, len(data)):
            self._send(200, data, {}, with_body=with_body)
        elif start >= stop:
            headers = {"Content-Range": f"bytes */{len(data)}"}
            self._send(416, b"", headers, with_body=with_body)
        else:
            headers = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
            self._send(206, data[start:stop], headers, with_body=with_body)

    def _send(self, status: int, data: bytes, headers: dict[str, str], *, with_body: bool) -> None:
        self.traffic.count(len(data) if with_body else 0)
        self.send_response(status)
        headers = {**headers, "Accept-Ranges": "bytes", "Content-Length": str(len(data))}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Say nothing: the demo counts what is sent."""


def _byte_range(header: str, size: int) -> tuple[int, int]:
    """Return the bytes that a Range header asks for (first-last, first-, or -suffix)."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header)
    if match is None or match[0] == "bytes=-":
        return 0, size
    first, last = match.groups()
    if not first:
        return max(size - int(last), 0), size
    return int(first), min(int(last) + 1, size) if last else size
