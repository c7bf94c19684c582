import http.server
import json
import logging
import threading
from pathlib import Path

import fsspec
import pytest
import yaml

import nedx.catalog
from nedx.catalog.entries import MAX_BYTES
from nedx.catalog.fetching import fetch_catalog
from nedx.catalog.layers import load_stack
from nedx.errors import CatalogError, NedxWarning


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked.append((self.path, self.headers.get("If-None-Match")))
        if server.moved_to:
            self.send_response(302)
            self.send_header("Location", server.moved_to)
            self.end_headers()
            return
        etag = f'"{hash(server.body)}"'
        if server.status == 200 and self.headers.get("If-None-Match") == etag:
            server.unchanged += 1
            self.send_response(304)
            self.end_headers()
            return
        self.send_response(server.status)
        if server.etags:
            self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(server.body) + server.short_by))
        self.end_headers()
        self.wfile.write(server.body)

    def log_message(self, *args):
        logging.getLogger(__name__).debug("%s", args)


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("NEDX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NEDX_CONFIG", str(tmp_path / "config"))
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.asked, made.unchanged, made.status, made.moved_to = [], 0, 200, None
    made.etags, made.short_by = True, 0
    made.home = f"http://127.0.0.1:{made.server_address[1]}"
    made.url = f"{made.home}/catalog.yaml"
    made.body = body(made.home)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def body(home, **changes):
    entry = {
        "id": "far",
        "version": "1.0.0",
        "title": "Far away",
        "kind": "stimuli",
        "source": "measured",
        "urls": [f"{home}/far.zarr"],
        "license": "MIT",
        **changes,
    }
    return yaml.safe_dump({"nedx_catalog": 1, "name": "far", "entries": [entry]}).encode()


def make_old(cache: Path, seconds: float):
    (path,) = (cache / "catalogs").glob("*.json")
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({**kept, "fetched": kept["fetched"] - seconds}))


def test_an_unchanged_catalog_is_asked_for_by_its_etag_and_not_sent_again(server):
    for _ in range(3):
        assert nedx.catalog.resolve("far", catalog=server.url).catalog == "far"
    assert [etag for _, etag in server.asked] == [None, *[f'"{hash(server.body)}"'] * 2]
    assert server.unchanged == 2


def test_a_changed_catalog_is_read_again(server):
    assert fetch_catalog(server.url).entries[0].title == "Far away"
    server.body = body(server.home, title="Moved")
    assert fetch_catalog(server.url).entries[0].title == "Moved"
    assert server.unchanged == 0


def test_a_server_without_etags_is_read_each_time(server):
    server.etags = False
    fetch_catalog(server.url)
    assert fetch_catalog(server.url).entries[0].id == "far"
    assert [etag for _, etag in server.asked] == [None, None]


def test_offline_the_copy_is_used_and_its_age_named(server, tmp_path):
    fetch_catalog(server.url)
    make_old(tmp_path / "cache", 3 * 86400 + 60)
    server.shutdown()
    server.server_close()
    with pytest.warns(NedxWarning, match=r"cannot be reached .*copy made 3 days ago"):
        assert nedx.catalog.resolve("far", catalog=server.url).title == "Far away"


def test_a_server_in_trouble_is_like_no_server(server):
    fetch_catalog(server.url)
    server.status = 503
    with pytest.warns(NedxWarning, match="less than a minute ago"):
        assert fetch_catalog(server.url).entries


def test_offline_without_a_copy_is_an_error_when_asked_for(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(CatalogError, match="cannot be reached and no copy"):
        load_stack(server.url)


def test_offline_without_a_copy_the_environment_is_left_out(server, monkeypatch):
    monkeypatch.setenv("NEDX_CATALOGS", server.url)
    assert nedx.catalog.resolve("far").title == "Far away"
    other = server.url.replace("catalog.yaml", "other.yaml")
    server.shutdown()
    server.server_close()
    monkeypatch.setenv("NEDX_CATALOGS", other)
    with pytest.warns(NedxWarning, match=r"left out: .*other.yaml"):
        assert nedx.catalog.resolve("sim-eeg").catalog == "simulated"


def test_a_refused_catalog_does_not_replace_the_copy(server):
    fetch_catalog(server.url)
    server.body = body(server.home, urls=["file:///etc/passwd"])
    with pytest.raises(CatalogError, match="local file"):
        fetch_catalog(server.url)
    server.status = 404
    with pytest.warns(NedxWarning, match="copy"):
        assert fetch_catalog(server.url).entries[0].urls == (f"{server.home}/far.zarr",)


def test_a_catalog_cut_short_is_not_taken_for_whole(server):
    server.short_by = 10
    with pytest.raises(CatalogError, match="cannot be reached"):
        fetch_catalog(server.url)


def test_an_endless_catalog_is_refused_for_its_size(server):
    server.body = b"#" * (2 * MAX_BYTES)
    with pytest.raises(CatalogError, match="larger than"):
        fetch_catalog(server.url)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_a_redirect_leads_to_no_local_file(server, target):
    server.moved_to = target
    with pytest.raises(CatalogError):
        fetch_catalog(server.url)


def test_a_catalog_in_memory_is_no_place_for_a_catalog(server):
    with fsspec.open("memory://c.yaml", "wb") as file:
        file.write(server.body)
    with pytest.raises(CatalogError, match="read from a path, or from https://"):
        load_stack("memory://c.yaml")


def test_a_spoiled_copy_counts_as_none(server, tmp_path, caplog):
    fetch_catalog(server.url)
    (path,) = (tmp_path / "cache" / "catalogs").glob("*.json")
    path.write_text("{")
    assert fetch_catalog(server.url).entries
    assert "cannot be read" in caplog.text
    assert server.asked[-1][1] is None
