"""Real servers of the storage protocols on this machine; they count what is asked of them.

Each server has ``seen`` (the requests, in order), ``count()``, ``bytes()`` and ``forget()``, and
misbehaves on demand: ``with server.faulty("503", match="/c/", times=2): ...``.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

STATUS_FAULTS = ("403", "429", "500", "503")


@dataclass(frozen=True)
class Seen:
    """One request and what was answered."""

    method: str
    path: str
    range: str | None
    status: int
    sent: int


@dataclass
class Fault:
    """How to misbehave: a status, "reset", "truncate", "corrupt" or "norange"."""

    mode: str
    match: str = ""
    times: int = 10**9


@dataclass
class Counter:
    """What a server has seen; safe to use from its threads."""

    seen: list[Seen] = field(default_factory=list)
    fault: Fault | None = None
    delay: float = 0.0
    most_at_once: int = 0
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def forget(self) -> None:
        with self._lock:
            self.seen.clear()
            self.most_at_once = 0

    def matching(self, match: str = "", method: str = "") -> list[Seen]:
        return [s for s in self.seen if re.search(match, s.path) and s.method.startswith(method)]

    def count(self, match: str = "", method: str = "") -> int:
        return len(self.matching(match, method))

    def bytes(self, match: str = "") -> int:
        return sum(s.sent for s in self.matching(match, "GET"))

    def note(self, method: str, path: str, range_: str | None, status: int, sent: int) -> None:
        with self._lock:
            self.seen.append(Seen(method, path, range_, status, sent))

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Hold a request open, so that those sent together are seen together."""
        with self._lock:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            time.sleep(self.delay)
            yield
        finally:
            with self._lock:
                self._now -= 1

    @contextmanager
    def slow(self, delay: float) -> Iterator[None]:
        """Answer after ``delay`` seconds, to see which requests overlap."""
        self.delay = delay
        try:
            yield
        finally:
            self.delay = 0.0

    @contextmanager
    def faulty(self, mode: str, *, match: str = "", times: int = 10**9) -> Iterator[Fault]:
        self.fault = Fault(mode, match, times)
        try:
            yield self.fault
        finally:
            self.fault = None

    def next_fault(self, path: str) -> str | None:
        with self._lock:
            fault = self.fault
            if fault is None or fault.times <= 0 or not re.search(fault.match, path):
                return None
            fault.times -= 1
            return fault.mode


def parse_range(text: str | None, size: int) -> tuple[int, int] | None:
    """Return (start, stop) of a Range header; None for none; ValueError if not satisfiable."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", text or "")
    if match is None or match[0] == "bytes=-":
        return None
    first, last = match.groups()
    if first == "":
        return max(0, size - int(last)), size
    start, stop = int(first), min(size, int(last) + 1 if last else size)
    if start >= size or stop <= start:
        raise ValueError(text)
    return start, stop


class _FileHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, server: HttpServer, *args: object) -> None:
        self.owner = server
        super().__init__(*args)

    def do_GET(self) -> None:
        with self.owner.counter.busy():
            self._answer(with_body=True)

    def do_HEAD(self) -> None:
        with self.owner.counter.busy():
            self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        fault = self.owner.counter.next_fault(path)
        if fault in STATUS_FAULTS:
            return self._send(int(fault), {}, fault.encode(), with_body)
        if fault == "reset":
            self.owner.counter.note(self.command, path, self.headers["Range"], 0, 0)
            self.close_connection = True
            return self.connection.close()
        target = (self.owner.root / path.lstrip("/")).resolve()
        if not target.is_relative_to(self.owner.root) or not target.is_file():
            return self._send(404, {}, b"", with_body)
        data = target.read_bytes()
        try:
            span = None if fault == "norange" else parse_range(self.headers["Range"], len(data))
        except ValueError:
            return self._send(416, {"Content-Range": f"bytes */{len(data)}"}, b"", with_body)
        headers = {"Accept-Ranges": "bytes"}
        if span is not None:
            headers["Content-Range"] = f"bytes {span[0]}-{span[1] - 1}/{len(data)}"
            data = data[slice(*span)]
        if fault == "corrupt" and data:
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]
        self._send(200 if span is None else 206, headers, data, with_body, cut=fault == "truncate")

    def _send(
        self, status: int, headers: dict[str, str], data: bytes, with_body: bool, cut: bool = False
    ) -> None:
        self.owner.counter.note(
            self.command,
            unquote(urlsplit(self.path).path),
            self.headers["Range"],
            status,
            len(data) if with_body else 0,
        )
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = self.close_connection or cut

    def log_message(self, *args: object) -> None:
        """Keep the tests' output clean."""


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are no news here."""


class HttpServer:
    """Serves a folder over HTTP with byte ranges (first-last, first-, and suffix)."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).resolve()
        self.counter = Counter()
        self._httpd = _QuietServer(("127.0.0.1", 0), partial(_FileHandler, self))
        threading.Thread(target=self._httpd.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._httpd.server_port}"

    def close(self) -> None:
        self._httpd.shutdown()
        self._httpd.server_close()


class _CountingApp:
    """WSGI middleware that counts, and refuses on demand."""

    def __init__(self, app: object, counter: Counter) -> None:
        self.app = app
        self.counter = counter

    def __call__(self, environ: dict, start_response: object) -> list[bytes]:
        path = environ["PATH_INFO"]
        method, range_ = environ["REQUEST_METHOD"], environ.get("HTTP_RANGE")
        with self.counter.busy():
            fault = self.counter.next_fault(path)
            if fault in STATUS_FAULTS:
                self.counter.note(method, path, range_, int(fault), 0)
                start_response(f"{fault} Fault", [("Content-Length", "0")])
                return [b""]
            status = []

            def started(line: str, headers: list, exc_info: object = None) -> object:
                status.append(int(line.split()[0]))
                return start_response(line, headers, exc_info)

            answer = self.app(environ, started)
            body = b"".join(answer)
            if hasattr(answer, "close"):
                answer.close()
            self.counter.note(method, path, range_, status[0], len(body))
            return [body]


class S3Server:
    """moto's S3, with one bucket ``nedx``; ``credentials`` and ``options`` reach it."""

    bucket = "nedx"
    credentials = {"key": "test", "secret": "test"}

    def __init__(self) -> None:
        import boto3
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.counter = Counter()
        self._moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._moto.start()
        self._moto._server.app = _CountingApp(self._moto._server.app, self.counter)
        host, port = self._moto.get_host_and_port()
        self.endpoint = f"http://{host}:{port}"
        self._client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )
        self._client.create_bucket(Bucket=self.bucket)
        self.counter.forget()

    @property
    def options(self) -> dict[str, object]:
        return {"endpoint_url": self.endpoint, **self.credentials}

    def fill(self, bucket: str, folder: Path) -> str:
        """Make a public bucket of another name hold a folder; returns its URL."""
        self._client.create_bucket(Bucket=bucket)
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            key = path.relative_to(folder).as_posix()
            body = path.read_bytes()
            self._client.put_object(Bucket=bucket, Key=key, Body=body, ACL="public-read")
        self.counter.forget()
        return f"s3://{bucket}"

    def upload(self, folder: Path, prefix: str, *, public: bool = False) -> str:
        """Put a folder into the bucket; returns its URL."""
        acl = {"ACL": "public-read"} if public else {}
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                key = f"{prefix}/{path.relative_to(folder).as_posix()}"
                self._client.put_object(Bucket=self.bucket, Key=key, Body=path.read_bytes(), **acl)
        self.counter.forget()
        return f"s3://{self.bucket}/{prefix}"

    def close(self) -> None:
        self._moto.stop()


class GcsServer:
    """An emulator of Google's JSON API, with one bucket ``nedx`` and suffix ranges that work."""

    bucket = "nedx"

    def __init__(self) -> None:
        from gcp_storage_emulator import server as emulator
        from gcp_storage_emulator.storage import Storage

        logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
        self.counter = counter = Counter()
        self._storage = Storage(use_memory_fs=True)
        self._storage.create_bucket(self.bucket, {})
        lock = threading.Lock()

        class Request(emulator.Request):
            def get_header(self, key: str, default: object = None) -> object:
                value = super().get_header(key, default)
                if key.lower() != "range" or not str(value).startswith("bytes=-"):
                    return value
                params = self.params
                data = self._request_handler.storage.get_file(
                    params["bucket_name"], params["object_id"]
                )
                return f"bytes={max(0, len(data) - int(value[7:]))}-"

        emulator.Request = Request

        class Handler(emulator.RequestHandler):
            def parse_request(self) -> bool:
                self.answered, self.sent = 0, 0
                return super().parse_request()

            def send_response(self, code: int, message: str | None = None) -> None:
                self.answered = code
                super().send_response(code, message)

            def send_header(self, keyword: str, value: str) -> None:
                if keyword == "Content-Length":
                    self.sent = int(value)
                super().send_header(keyword, value)

            def _counted(self, answer: object) -> None:
                path = unquote(urlsplit(self.path).path)
                with counter.busy():
                    fault = counter.next_fault(path)
                    if fault in STATUS_FAULTS:
                        self.send_error(int(fault))
                    else:
                        with lock:
                            answer()
                counter.note(self.command, path, self.headers["Range"], self.answered, self.sent)

            def do_GET(self) -> None:
                self._counted(super().do_GET)

            def do_POST(self) -> None:
                self._counted(super().do_POST)

            def do_PUT(self) -> None:
                self._counted(super().do_PUT)

            def do_DELETE(self) -> None:
                self._counted(super().do_DELETE)

        self._httpd = _QuietServer(("127.0.0.1", 0), partial(Handler, self._storage))
        threading.Thread(target=self._httpd.serve_forever, args=(0.05,), daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self._httpd.server_port}"

    @property
    def options(self) -> dict[str, object]:
        return {"endpoint_url": self.endpoint, "token": "anon"}

    def upload(self, folder: Path, prefix: str) -> str:
        """Put a folder into the bucket; returns its URL."""
        from nedx.store.location import Location

        target = Location.of(f"gs://{self.bucket}/{prefix}", storage_options=self.options)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                target.write(path.relative_to(folder).as_posix(), path.read_bytes())
        self.counter.forget()
        return target.url

    def close(self) -> None:
        self._httpd.shutdown()
        self._httpd.server_close()
