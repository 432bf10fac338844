"""Reading pictures: every form that real life sends, and clear errors for the rest."""

from __future__ import annotations

import contextlib
import errno
import io
import struct
import sys
import zlib
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mrad.errors import ImageError, ImageTooLargeError, MissingPackageError
from mrad.images.guard import code_of
from mrad.images.options import ReadOptions
from mrad.images.reader import guarded, load_image, read_image

PATTERN = np.zeros((6, 9, 3), np.uint8)
PATTERN[:3, :4] = (200, 30, 60)
PATTERN[3:, 4:] = (10, 220, 130)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels_of(image: Image.Image) -> np.ndarray:
    assert image.mode in ("L", "RGB")
    return np.asarray(image.convert("RGB"))


def test_grey_stays_grey_and_is_no_longer_the_callers():
    levels = np.arange(54, dtype=np.uint8).reshape(6, 9)
    for source in (levels, Image.fromarray(levels), encoded(Image.fromarray(levels))):
        found = read_image(source).image
        assert found.mode == "L"
        assert load_image(source).mode == "RGB"
        np.testing.assert_array_equal(np.asarray(found), levels)
    found, wanted = read_image(levels).image, levels.copy()
    levels[:] = 0
    np.testing.assert_array_equal(np.asarray(found), wanted)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "JPEG2000"])
def test_lossless_formats_give_their_pixels_from_bytes_paths_and_images(kind, tmp_path):
    image = Image.fromarray(PATTERN)
    options = {"WEBP": {"lossless": True}, "JPEG2000": {"irreversible": False}}.get(kind, {})
    data = encoded(image, kind, **options)
    path = tmp_path / "image"
    path.write_bytes(data)
    for source in (data, path, str(path), Image.open(path), image):
        np.testing.assert_array_equal(pixels_of(load_image(source)), PATTERN)


def test_grey_is_grey_in_every_channel():
    grey = np.arange(54, dtype=np.uint8).reshape(6, 9)
    for source in (encoded(Image.fromarray(grey)), grey, grey[..., None]):
        np.testing.assert_array_equal(pixels_of(load_image(source)), np.dstack([grey] * 3))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_full_range(kind):
    wide = np.array([[0, 257, 32_896, 65_535]], np.uint16)
    wanted = np.array([0, 1, 128, 255])
    for source in (encoded(Image.fromarray(wide), kind), wide, Image.fromarray(wide)):
        np.testing.assert_array_equal(pixels_of(load_image(source))[0, :, 0], wanted)


def test_32_bit_grey_is_read_by_its_values_and_negative_values_are_refused():
    for top in (65_535, 16_777_215):
        read = read_image(Image.fromarray(np.array([[0, top]], np.int32)))
        assert pixels_of(read.image)[0, :, 0].tolist() == [0, 255]
        assert "bit_depth_assumed" in map(code_of, read.warnings)
    with pytest.raises(ImageError, match="scale the image to 16 bit"):
        load_image(Image.fromarray(np.array([[-1, 5]], np.int32)))


def test_float_grey_lies_in_0_to_1():
    image = Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32))
    assert pixels_of(load_image(image))[0, :, 0].tolist() == [0, 128, 255]
    for bad in ([[0.0, 1.5]], [[-0.1, 0.0]], [[np.nan, 0.0]], [[np.inf, 0.0]]):
        with pytest.raises(ImageError, match="finite and within"):
            load_image(np.array(bad, np.float32))


def test_palette_cmyk_bilevel_and_ycbcr_become_the_colours_that_people_see():
    image = Image.fromarray(PATTERN)
    palette = image.convert("P", palette=Image.Palette.ADAPTIVE)
    np.testing.assert_array_equal(pixels_of(load_image(encoded(palette))), PATTERN)
    cmyk = encoded(image.convert("CMYK"), "TIFF")
    np.testing.assert_array_equal(pixels_of(load_image(cmyk)), PATTERN)
    bits = Image.fromarray(PATTERN[..., 0] > 100)
    assert bits.mode == "1"
    wanted = (PATTERN[..., 0] > 100) * 255
    np.testing.assert_array_equal(pixels_of(load_image(encoded(bits)))[..., 1], wanted)
    jpeg = encoded(image.resize((90, 60)).convert("CMYK"), "JPEG", quality=98)
    difference = pixels_of(load_image(jpeg)).astype(int) - np.asarray(image.resize((90, 60)))
    assert np.abs(difference).mean() < 8


def test_transparency_lies_over_white_whatever_way_it_is_stored():
    rgba = np.dstack([PATTERN, np.full((6, 9), 255, np.uint8)])
    rgba[0, 0, 3] = 0
    rgba[0, 1, 3] = 128
    images = [Image.fromarray(rgba), rgba, encoded(Image.fromarray(rgba))]
    for source in images:
        found = pixels_of(load_image(source))
        assert found[0, 0].tolist() == [255, 255, 255]
        np.testing.assert_allclose(found[0, 1], PATTERN[0, 1] * 0.5 + 127.5, atol=2)
        np.testing.assert_array_equal(found[1:], PATTERN[1:])
    half = np.where(np.arange(9) < 4, 0, 255).astype(np.uint8) * np.ones((6, 1), np.uint8)
    grey = Image.fromarray(np.dstack([PATTERN[..., 0], half]), "LA")
    assert pixels_of(load_image(grey))[:, :4].min() == 255
    palette = Image.fromarray((half > 0).astype(np.uint8), "P")
    palette.putpalette([9, 9, 9, 0, 0, 0])
    read = read_image(encoded(palette, transparency=0))
    assert pixels_of(read.image)[0, :, 0].tolist() == [255] * 4 + [0] * 5
    assert list(map(code_of, read.warnings)) == ["transparency"]


def test_transparency_that_is_the_same_everywhere_carries_no_picture():
    for value in (0, 128):
        clear = np.full((6, 9), value, np.uint8)
        grey = Image.fromarray(np.dstack([PATTERN[..., 0], clear]), "LA")
        for source in (
            np.dstack([PATTERN, clear]),
            encoded(grey),
            Image.fromarray(np.dstack([PATTERN, clear])),
        ):
            read = read_image(source)
            np.testing.assert_array_equal(pixels_of(read.image)[..., 0], PATTERN[..., 0])
            assert list(map(code_of, read.warnings)) == ["alpha_ignored"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    image = Image.fromarray(PATTERN)
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = load_image(encoded(image, "PNG", exif=exif))
    turned = {
        1: PATTERN,
        2: PATTERN[:, ::-1],
        3: PATTERN[::-1, ::-1],
        4: PATTERN[::-1],
        5: PATTERN.transpose(1, 0, 2),
        6: np.rot90(PATTERN, -1),
        7: PATTERN[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(PATTERN, 1),
    }[orientation]
    np.testing.assert_array_equal(pixels_of(upright), turned)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations_give_their_first_frame(kind):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert pixels_of(load_image(data))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP"])
def test_truncated_images_are_refused_and_named(kind, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), kind)
    path = tmp_path / f"cut.{kind.lower()}"
    for share in (0.02, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ImageError, match=r"cut\."):
            load_image(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (bytes(99), "zeros only"),
        (b"%PDF-1.4 something", "a PDF document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", "a film"),
        (b"PK\3\4" + bytes(30), "a ZIP archive"),
        (b"\xff\x0a" + bytes(range(40)), "JPEG XL"),
        (b"just words", "a text file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "the image"),
    ],
)
def test_what_is_no_image_is_refused(data, message):
    with pytest.raises(ImageError, match=message):
        load_image(data)


def test_missing_files_and_folders_are_image_errors(tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        load_image(tmp_path / "gone.png")
    with pytest.raises(ImageError):
        load_image(tmp_path)


DAMAGED = {
    "cut": lambda data: data[: len(data) // 2],
    "cut and closed": lambda data: data[: len(data) // 2] + b"\xff\xd9",
    "zeros at the end": lambda data: data[: len(data) // 2] + bytes(len(data) // 2),
    "garbled": lambda data: data[: len(data) // 2] + data[:60] + data[len(data) // 2 + 60 :],
}


@pytest.mark.parametrize("how", DAMAGED)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_missing_parts_are_never_shown_as_grey_unless_allowed(kind, how):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = DAMAGED[how](encoded(Image.fromarray(noise), kind))
    with pytest.raises(ImageError, match=r"part\.x.*(ends early|damaged|missing)"):
        read_image(data, options=ReadOptions(name="part.x"))
    with contextlib.suppress(ImageError):  # zeros may leave nothing to show
        read = read_image(data, options=ReadOptions(allow_truncated=True))
        assert "truncated" in map(code_of, read.warnings)


def test_a_file_without_compression_that_ends_in_zeros_is_told():
    noise = np.random.default_rng(0).integers(1, 255, (64, 64, 3), dtype=np.uint8)
    for kind in ("BMP", "TIFF", "PPM"):
        whole = encoded(Image.fromarray(noise), kind)
        assert not read_image(whole).warnings
        half = noise.copy()
        half[32:] = 0
        if kind == "BMP":
            half = half[::-1]
        cut = encoded(Image.fromarray(half), kind)
        if kind != "TIFF":  # its directory may lie behind the pixels
            assert "zero_tail" in map(code_of, read_image(cut).warnings)


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_bits_in_a_wide_container_are_assumed_aloud_or_taken_as_told(bits):
    ramp = np.linspace(0, 2**bits - 1, 54).astype(np.uint16).reshape(6, 9)
    wanted = np.round(ramp / (2**bits - 1) * 255).astype(int)
    for source in (ramp, Image.fromarray(ramp), encoded(Image.fromarray(ramp))):
        read = read_image(source)
        np.testing.assert_array_equal(pixels_of(read.image)[..., 0], wanted)
        assert list(map(code_of, read.warnings)) == ["bit_depth_assumed"]
        told = read_image(source, options=ReadOptions(bit_depth=bits))
        np.testing.assert_array_equal(pixels_of(told.image)[..., 0], wanted)
        assert not told.warnings
        dark = read_image(source, options=ReadOptions(assume={"integer": 16}))
        np.testing.assert_array_equal(pixels_of(dark.image)[..., 0], np.round(ramp / 257))
        other = read_image(source, options=ReadOptions(bit_depth=8))
        assert "bit_depth_differs" in map(code_of, other.warnings)


def test_a_blank_or_small_first_page_is_not_the_picture():
    page = np.random.default_rng(0).integers(0, 255, (20, 30), dtype=np.uint8)
    pages = [np.zeros((5, 7), np.uint8), np.zeros((20, 30), np.uint8), page, page[::-1]]
    first, *rest = map(Image.fromarray, pages)
    data = encoded(first, "TIFF", save_all=True, append_images=rest)
    read = read_image(data)
    np.testing.assert_array_equal(pixels_of(read.image)[..., 0], page)
    assert (read.page, read.pages) == (2, 4)
    assert "of 4 pages, page 3" in read.warnings[0]


def test_constant_pictures_are_told():
    for level in (0, 128, 255):
        read = read_image(np.full((40, 40), level, np.uint8))
        assert list(map(code_of, read.warnings)) == ["uniform"]
    busy = np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8)
    assert not read_image(busy).warnings


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises a size and holds one compressed row of nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_bombs_are_refused_by_their_header_before_anything_is_decoded():
    for width, height in ((20_000, 20_000), (65_500, 65_500), (2**31 - 1, 2**31 - 1)):
        with pytest.raises(ImageTooLargeError):
            load_image(png_header(width, height))
    with pytest.raises(ImageTooLargeError, match="10 x 8 pixels, more than the limit of 79"):
        load_image(np.zeros((8, 10), np.uint8), max_pixels=79)
    assert load_image(np.zeros((8, 10), np.uint8), max_pixels=80).size == (10, 8)
    with pytest.raises(ImageTooLargeError, match="raise max_pixels"):
        load_image(encoded(Image.new("L", (10, 8))), max_pixels=79)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 2), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((4, 4), np.int64),
        np.zeros((4, 4), object),
        np.zeros((0, 4), np.uint8),
    ],
)
def test_arrays_that_are_no_images_are_refused(array):
    with pytest.raises(ImageError):
        load_image(array)


def test_what_is_of_no_known_type_is_an_image_error():
    for thing in (None, 3, [1, 2], io.BytesIO(b"x")):
        with pytest.raises(ImageError):
            load_image(thing)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_flipped_byte_gives_an_image_or_an_image_error(data):
    noise = np.random.default_rng(1).integers(0, 255, (12, 10, 3), dtype=np.uint8)
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]))
    broken = bytearray(encoded(Image.fromarray(noise), kind))
    place = data.draw(st.integers(0, len(broken) - 1))
    broken[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ImageError):  # any other error fails the test
        assert load_image(bytes(broken)).mode == "RGB"


def test_the_input_of_a_caller_is_not_changed(tmp_path):
    array = np.full((4, 5), 7, np.uint16)
    load_image(array)
    assert (array == 7).all()
    image = Image.fromarray(PATTERN)
    load_image(image).putpixel((0, 0), (1, 2, 3))
    np.testing.assert_array_equal(np.asarray(image), PATTERN)


def test_what_this_machine_lacks_is_not_blamed_on_the_file(tmp_path, monkeypatch):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.jpg")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "simplejpeg", None)
        with pytest.raises(MissingPackageError, match="pip install 'simplejpeg'"):
            read_image(tmp_path / "a.jpg")
    for error, raised in (
        (MemoryError(), MemoryError),
        (OSError(errno.EMFILE, "Too many open files"), OSError),
        (
            ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package"),
            MissingPackageError,
        ),
        (OSError(errno.EIO, "Input/output error"), ImageError),
        (OSError("broken data stream"), ImageError),
    ):
        with pytest.raises(raised) as found:
            guarded(partial(fail, error), "a.jpg")
        assert ("damaged" in str(found.value)) == (str(error) == "broken data stream")


def fail(error):
    raise error
