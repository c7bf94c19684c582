"""Decoding against Pillow, and what becomes of files that are not plain RGB."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nedx.errors import StimulusError
from nedx.stimuli import decoding
from nedx.stimuli.decoding import decode_image, in_threads, read_header


def smooth(y: int = 40, x: int = 56) -> np.ndarray:
    rows, columns = np.mgrid[:y, :x]
    bands = [rows * 255 / y, columns * 255 / x, (rows + columns) * 255 / (y + x)]
    return np.stack(bands, axis=-1).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture(params=["simplejpeg", "pillow"])
def decoder(request, monkeypatch):
    if request.param == "pillow":
        monkeypatch.setattr(decoding, "_simplejpeg", lambda: None)
    else:
        pytest.importorskip("simplejpeg")
    return request.param


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_is_what_pillow_decodes(decoder, options):
    data = encoded(Image.fromarray(smooth()), "JPEG", quality=90, **options)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    found = decode_image(data)
    assert found.dtype == np.uint8
    assert found.flags.writeable
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_lossless_kinds_come_back(kind, options, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(encoded(Image.fromarray(smooth()), kind, **options))
    np.testing.assert_array_equal(decode_image(path), smooth())
    assert read_header(path) == (40, 56)


def test_grey_is_repeated(decoder):
    grey = Image.fromarray(smooth()[..., 0])
    for kind in ("JPEG", "PNG"):
        data = encoded(grey, kind)
        found = decode_image(data)
        expected = np.asarray(Image.open(io.BytesIO(data)))
        assert found.shape == (40, 56, 3)
        for band in range(3):
            assert np.abs(found[..., band].astype(int) - expected).max() <= 1


def test_palettes_are_looked_up():
    palette = Image.fromarray(smooth()).quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(decode_image(encoded(palette, "PNG")), expected)


def test_one_bit_images_become_black_and_white():
    bits = Image.fromarray(smooth()).convert("1")
    assert set(np.unique(decode_image(encoded(bits, "PNG")))) == {0, 255}


def test_cmyk_is_converted_as_pillow_does(decoder):
    data = encoded(Image.fromarray(smooth()).convert("CMYK"), "JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode_image(data), expected)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_shows_mid_grey(kind):
    colour = np.full((8, 8, 4), (250, 10, 10, 255), np.uint8)
    colour[:4, :, 3] = 0
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    found = decode_image(encoded(Image.fromarray(colour), kind, **options))
    assert (found[:4] == 128).all()
    assert (found[4:] == (250, 10, 10)).all()


def test_transparent_colour_of_a_palette_shows_mid_grey():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 1)
    found = decode_image(encoded(image, "PNG", transparency=0))
    assert (found[0, 0] == (0, 0, 255)).all()
    assert (found[3, 3] == 128).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_images_stand_as_viewers_show_them(decoder, orientation, kind, tmp_path):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(kind, {})
    path = tmp_path / "image"
    path.write_bytes(encoded(Image.fromarray(smooth()), kind, exif=exif, **options))
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    found = decode_image(path)
    assert found.shape[:2] == read_header(path)
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_animations_give_their_first_frame():
    frames = [Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (10, 200)]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert (decode_image(data) == 10).all()


def test_sixteen_bit_grey_is_refused_by_header_and_by_decoding(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(path)
    for refuse in (decode_image, read_header):
        with pytest.raises(StimulusError, match="more than 8 bits"):
            refuse(path)


def broken(kind: str) -> bytes:
    whole = encoded(Image.fromarray(smooth(200, 200)), kind)
    return whole[: len(whole) // 2]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_half_a_file_is_an_error_never_half_an_image(decoder, kind):
    with pytest.raises(StimulusError):
        decode_image(broken(kind))


@pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8", b"\x89PNG\r\n\x1a\n"])
def test_rubbish_is_an_error(decoder, data, tmp_path):
    path = tmp_path / "rubbish"
    path.write_bytes(data)
    for refuse in (decode_image, read_header):
        with pytest.raises(StimulusError):
            refuse(path)


def test_headers_are_read_without_decoding(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("decoded")

    for kind in ("JPEG", "PNG", "WEBP"):
        Image.fromarray(smooth()).save(tmp_path / f"image.{kind.lower()}")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    for path in tmp_path.iterdir():
        assert read_header(path) == (40, 56)


def test_header_of_a_missing_file_is_an_error_of_the_system(tmp_path):
    with pytest.raises(StimulusError, match="No such file"):
        read_header(tmp_path / "absent.png")


def test_threads_keep_the_order_and_work_together():
    both = threading.Barrier(2, timeout=20)

    def work(item: int) -> int:
        if item < 2:
            both.wait()
        return item * 10

    assert in_threads(work, range(20), workers=2) == [10 * i for i in range(20)]


def test_threads_pass_errors_on():
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda x: 1 // x, [1, 0])


def test_decoding_many_at_once_gives_each_its_own(tmp_path: Path):
    levels = list(range(0, 250, 5))
    for level in levels:
        Image.fromarray(np.full((16, 16, 3), level, np.uint8)).save(tmp_path / f"{level}.jpg")
    found = in_threads(lambda i: decode_image(tmp_path / f"{i}.jpg").mean(), levels * 4)
    np.testing.assert_allclose(found, levels * 4, atol=1)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_files_that_were_cut_off_are_found_without_decoding_whole_ones(tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = tmp_path / f"whole.{suffix}"
    Image.fromarray(pixels).save(whole)
    assert read_header(whole) == (64, 64)
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(whole.read_bytes()[:-2000])
    with pytest.raises(StimulusError):
        read_header(cut)
    with whole.open("ab") as file:
        file.write(b"a camera's own data")
    assert read_header(whole) == (64, 64)
