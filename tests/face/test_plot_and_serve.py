"""The figure of the demo, and its server, against what was put in."""

from __future__ import annotations

import http.client
from urllib.parse import urlsplit

import numpy as np
import pytest
import xarray as xr

from nedx.demo import serve
from nedx.plot.images import plot_image_responses


def test_the_figure_shows_the_values():
    values = xr.DataArray(
        np.arange(6.0).reshape(3, 2), dims=("image", "roi"), coords={"roi": ["V1", "PPA"]}
    ).assign_attrs(units="percent", long_name="mean response")
    pixels = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), dtype=np.uint8)
    ax = plot_image_responses(values, pixels)
    np.testing.assert_array_equal(ax.images[0].get_array(), values.values.T)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["V1", "PPA"]
    assert len(ax.child_axes) == 3
    np.testing.assert_array_equal(ax.child_axes[1].images[0].get_array(), pixels[1])
    assert "percent" in ax.figure.axes[-1].get_ylabel()


@pytest.mark.parametrize("count", [2, 4])
def test_the_figure_refuses_images_that_do_not_fit(count):
    values = xr.DataArray(np.zeros((3, 2)), dims=("image", "roi"))
    with pytest.raises(ValueError, match=f"{count} images for 3"):
        plot_image_responses(values, np.zeros((count, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="one other"):
        plot_image_responses(values[0], np.zeros((3, 8, 8, 3), np.uint8))


@pytest.mark.parametrize(
    ("asked", "status", "body"),
    [
        (None, 200, b"0123456789"),
        ("bytes=2-4", 206, b"234"),
        ("bytes=7-", 206, b"789"),
        ("bytes=-3", 206, b"789"),
        ("bytes=8-99", 206, b"89"),
        ("bytes=99-", 416, b""),
    ],
)
def test_the_server_knows_byte_ranges(tmp_path, asked, status, body):
    (tmp_path / "a").write_bytes(b"0123456789")
    with serve(tmp_path) as (url, traffic):
        connection = http.client.HTTPConnection(urlsplit(url).netloc)
        connection.request("GET", "/a", headers={"Range": asked} if asked else {})
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (status, body)
        connection.close()
    assert (traffic.requests, traffic.bytes) == (1, len(body))


def test_the_server_serves_nothing_outside(tmp_path):
    (tmp_path / "secret").write_text("no")
    (tmp_path / "open").mkdir()
    with serve(tmp_path / "open") as (url, _):
        connection = http.client.HTTPConnection(urlsplit(url).netloc)
        connection.request("GET", "/../secret")
        assert connection.getresponse().status == 404
        connection.close()
