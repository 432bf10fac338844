"""Preprocessing: the paper's for every image that real life sends, and clear errors for the rest."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mrad.errors import ImageError, ImageTooLargeError, MaskError
from mrad.images.preprocess import OPENAI_MEAN, OPENAI_STD, Preprocess, load_image, load_mask

PATTERN = np.zeros((6, 9, 3), np.uint8)
PATTERN[:3, :4] = (200, 30, 60)
PATTERN[3:, 4:] = (10, 220, 130)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels_of(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


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


def test_32_bit_grey_in_16_bit_range_is_read_and_other_values_are_refused():
    good = Image.fromarray(np.array([[0, 65_535]], np.int32))
    assert pixels_of(load_image(good))[0, :, 0].tolist() == [0, 255]
    for bad in ([[0, 70_000]], [[-1, 5]]):
        with pytest.raises(ImageError, match="scale the image to 16 bit"):
            load_image(Image.fromarray(np.array(bad, np.int32)))


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
    grey = Image.fromarray(np.dstack([PATTERN[..., 0], np.zeros((6, 9), np.uint8)]), "LA")
    assert pixels_of(load_image(grey)).min() == 255
    palette = Image.new("P", (3, 2), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    assert pixels_of(load_image(encoded(palette, transparency=1))).min() == 255


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
        (b"", "known format"),
        (b"%PDF-1.4 something", "known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "known format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "known format"),
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


def test_pixels_are_the_resized_image_less_mean_over_deviation():
    image = Image.fromarray(np.random.default_rng(2).integers(0, 255, (50, 70, 3), np.uint8))
    pixels = Preprocess(28)(image)
    resized = np.asarray(image.resize((28, 28), Image.Resampling.BICUBIC)) / 255
    wanted = (resized - OPENAI_MEAN) / OPENAI_STD
    assert pixels.shape == (3, 28, 28)
    assert pixels.is_contiguous()
    np.testing.assert_allclose(pixels.numpy(), wanted.transpose(2, 0, 1), atol=1e-6)
    other = Preprocess(28, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))(image)
    np.testing.assert_allclose(other.numpy(), resized.transpose(2, 0, 1) * 2 - 1, atol=1e-6)


def test_masks_are_true_above_zero_in_every_form(tmp_path):
    wanted = np.zeros((6, 9), bool)
    wanted[2:4, 3:7] = True
    grey = (wanted * 3).astype(np.uint8)
    alpha = np.dstack([grey] * 3 + [np.full((6, 9), 255, np.uint8)])
    palette = Image.fromarray(wanted.astype(np.uint8), "L").convert("P")
    path: Path = tmp_path / "mask.png"
    Image.fromarray(grey).save(path)
    wide = Image.fromarray(wanted.astype(np.uint16) * 300)
    sources = [wanted, grey, wanted.astype(float), alpha, Image.fromarray(alpha)]
    for source in (*sources, path, path.read_bytes(), Image.fromarray(wanted), palette, wide):
        np.testing.assert_array_equal(load_mask(source, (9, 6)), wanted)


def test_masks_that_do_not_belong_to_the_image_are_refused(tmp_path):
    with pytest.raises(MaskError, match=r"the mask is \(9, 6\) but its image is \(6, 9\)"):
        load_mask(np.zeros((6, 9), bool), (6, 9))
    for bad in (b"nonsense", tmp_path / "gone.png"):
        with pytest.raises(MaskError, match="cannot be read"):
            load_mask(bad, (6, 9))
    with pytest.raises(MaskError):
        load_mask(np.zeros((2, 2, 2, 2)), (2, 2))


@pytest.mark.parametrize("side", [96, 264])
def test_resizing_tensors_is_pillows_resizing_within_two_levels(demo_images: Path, side: int):
    files = sorted((demo_images / "query").glob("*/*.*"))[:3]
    rng = np.random.default_rng(0)
    noise = [  # both shrink, rows most; both shrink, columns most; one grows; both grow
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for height, width in ((700, 300), (300, 640), (300, 50), (50, 300), (side, 400), (41, 50))
    ]
    preprocess = Preprocess(side)
    scale = 255 * torch.tensor(preprocess.std).view(3, 1, 1)
    assert files
    for image in [*(load_image(file) for file in files), *noise]:
        levels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        apart = ((preprocess.resize(levels) - preprocess(image)) * scale).abs()
        assert float(apart.max()) < 2.01, image.size
        assert float((apart > 0.5).float().mean()) < 0.01, image.size
