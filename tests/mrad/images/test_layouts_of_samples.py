"""Brothers of `tests/cases`: other depths, byte orders, layouts, turns and kinds of alpha."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from mrad.errors import ImageError
from mrad.images.guard import code_of
from mrad.images.reader import read_image
from tests.cases import CASES

GREY = np.ascontiguousarray(np.asarray(Image.open(CASES / "images" / "a_base8.png"))[:120])
RGB = np.ascontiguousarray(np.dstack([GREY, np.roll(GREY, 20, 1), 255 - GREY]))
Array = np.ndarray


def tiff(values: Array, **facts: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, metadata=None, **facts)
    return buffer.getvalue()


def pages(*arrays: Array) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for array in arrays:
            writer.write(array, photometric="minisblack", metadata=None, contiguous=False)
    return buffer.getvalue()


def with_preview() -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(np.ascontiguousarray(GREY[::4, ::4]), subifds=1, metadata=None)
        writer.write(GREY, metadata=None)
    return buffer.getvalue()


def wide(values: Array, bits: int) -> Array:
    return np.round(values / 255 * (2**bits - 1)).astype(np.uint16)


def chunk(png: bytes, kind: bytes, body: bytes) -> bytes:
    """The PNG with one more chunk behind its header."""
    crc = zlib.crc32(kind + body)
    return png[:33] + struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc) + png[33:]


def netpbm(head: str, values: Array) -> bytes:
    return head.encode() + values.tobytes()


def grey_alpha(level: int) -> Array:
    return np.dstack([GREY, np.full_like(GREY, level)])


def rgba(level: int) -> Array:
    return np.dstack([RGB, np.full_like(GREY, level)])


def darkened(values: Array, level: int) -> Array:
    return np.round(values * (level / 255)).astype(np.uint8)


STORED = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: lambda a: np.rot90(a, -1),
}  # fmt: skip
MAX = 281

GREYS: dict[str, Callable[[], bytes]] = {
    "10 bits packed": lambda: tiff(wide(GREY, 10), bitspersample=10, photometric="minisblack"),
    "14 bits packed, inverted": lambda: tiff(
        16383 - wide(GREY, 14), bitspersample=14, photometric="miniswhite"
    ),
    "10 in 16, MaxSampleValue, inverted": lambda: tiff(
        1023 - wide(GREY, 10), photometric="miniswhite", extratags=[(MAX, "H", 1, 1023)]
    ),
    "14 in 16, SMaxSampleValue": lambda: tiff(
        wide(GREY, 14), photometric="minisblack", extratags=[(341, "H", 1, 16383)]
    ),
    "16 bits, big-endian, tiles, LZW, predictor": lambda: tiff(
        GREY.astype(np.uint16) * 257, byteorder=">", tile=(64, 64), compression="lzw",
        predictor=True, photometric="minisblack",
    ),
    "BigTIFF in strips": lambda: tiff(GREY, bigtiff=True, rowsperstrip=8, compression="zstd"),
    "half floats": lambda: tiff((GREY / 255).astype(np.float16), photometric="minisblack"),
    "JPEG 2000 of 16 bit in TIFF": lambda: tiff(
        GREY.astype(np.uint16) * 257, compression="jpeg2000", photometric="minisblack"
    ),
    "PGM, 10 bits, as text": lambda: b"P2 160 120 1023\n"
    + b" ".join(b"%d" % value for value in wide(GREY, 10).ravel()),
    "PGM, 14 bits, with a remark": lambda: netpbm(
        "P5 # of a camera\n160 120\n16383\n", wide(GREY, 14).astype(">u2")
    ),
    "PAM, 12 bits": lambda: netpbm(
        "P7\nWIDTH 160\nHEIGHT 120\nDEPTH 1\nMAXVAL 4095\nTUPLTYPE GRAYSCALE\nENDHDR\n",
        wide(GREY, 12).astype(">u2"),
    ),
    "PFM, big-endian": lambda: netpbm(
        "Pf\n160 120\n1.0\n", np.ascontiguousarray(GREY[::-1] / 255).astype(">f4")
    ),
    "sBIT 14, in the upper bits": lambda: chunk(
        imagecodecs.png_encode(wide(GREY, 14) << 2), b"sBIT", bytes([14])
    ),
    "sBIT 10, grey and alpha": lambda: chunk(
        imagecodecs.png_encode(np.dstack([wide(GREY, 10), np.full(GREY.shape, 65535, np.uint16)])),
        b"sBIT", bytes([10, 10]),
    ),
    "lossless JPEG of 12 bit": lambda: imagecodecs.jpeg_encode(
        wide(GREY, 12), lossless=True, bitspersample=12
    ),
    "lossless JPEG of 8 bit": lambda: imagecodecs.jpeg_encode(GREY, lossless=True),
    "JPEG 2000 of 10 bit": lambda: imagecodecs.jpeg2k_encode(
        wide(GREY, 10), codecformat="j2k", bitspersample=10, reversible=True
    ),
    "a colour map for 16 bits": lambda: tiff(
        GREY.astype(np.uint16) * 257, photometric="palette",
        colormap=np.stack([np.arange(65536, dtype=np.uint16)] * 3),
    ),
}  # fmt: skip
RGBS: dict[str, Callable[[], bytes]] = {
    "planes of 16 bit in tiles": lambda: tiff(
        np.moveaxis(RGB.astype(np.uint16) * 257, -1, 0), planarconfig="separate", tile=(32, 48),
        photometric="rgb",
    ),
    "12 bits packed in planes": lambda: tiff(
        np.moveaxis(wide(RGB, 12), -1, 0), bitspersample=12, planarconfig="separate",
        photometric="rgb",
    ),
    "12 in 16, MaxSampleValue": lambda: tiff(
        wide(RGB, 12), photometric="rgb", extratags=[(MAX, "H", 3, (4095,) * 3)]
    ),
    "inks in planes": lambda: tiff(
        np.moveaxis(np.asarray(Image.fromarray(RGB).convert("CMYK")), -1, 0),
        photometric="separated", planarconfig="separate",
    ),
    "PFM, little-endian": lambda: netpbm(
        "PF\n160 120\n-1.0\n", np.ascontiguousarray(RGB[::-1] / 255).astype("<f4")
    ),
    "PPM of 12 bits": lambda: netpbm("P6\n160 120\n4095\n", wide(RGB, 12).astype(">u2")),
}  # fmt: skip
WARNED: dict[str, tuple[str, Array, Callable[[], bytes]]] = {
    "14 bits in a PNG": ("bit_depth_assumed", GREY, lambda: imagecodecs.png_encode(wide(GREY, 14))),
    "32 bits of which 12 are used": (
        "bit_depth_assumed", GREY, lambda: tiff(wide(GREY, 12).astype(np.uint32)),
    ),
    "64 bits": ("bit_depth_assumed", GREY, lambda: tiff(GREY.astype(np.uint64))),
    "alpha of 0, 16 bits": (
        "alpha_ignored", RGB, lambda: imagecodecs.png_encode(rgba(0).astype(np.uint16) * 257),
    ),
    "darkened by alpha, said so": (
        "premultiplied", RGB,
        lambda: tiff(darkened(rgba(255), 200), photometric="rgb", extrasamples=["assocalpha"]),
    ),
    "darkened by alpha, not said": (
        "premultiplied", GREY, lambda: imagecodecs.png_encode(darkened(grey_alpha(255), 128)),
    ),
    "a noisy first page": (
        "page_chosen", GREY,
        lambda: pages(np.random.default_rng(0).integers(0, 3, GREY.shape, np.uint8), GREY),
    ),
    "a preview, the picture below it": ("page_chosen", GREY, with_preview),
    "RGB that is called YCbCr": (
        "colours_doubtful", np.dstack([GREY] * 3),
        lambda: tiff(np.dstack([GREY] * 3), photometric="ycbcr"),
    ),
    "samples of no name": (
        "samples_ignored", GREY,
        lambda: tiff(RGB, photometric="minisblack", planarconfig="contig"),
    ),
}  # fmt: skip


def apart(data: bytes, wanted: Array) -> int:
    wanted = np.dstack([wanted] * 3) if wanted.ndim == 2 else wanted
    return int(np.abs(np.asarray(read_image(data).image.convert("RGB")).astype(int) - wanted).max())


@pytest.mark.parametrize("name", [*GREYS, *RGBS])
def test_what_a_file_states_is_honoured_in_silence(name):
    data, wanted = (GREYS[name](), GREY) if name in GREYS else (RGBS[name](), RGB)
    assert apart(data, wanted) <= 1
    assert not [text for text in read_image(data).warnings if code_of(text) != "zero_tail"]


@pytest.mark.parametrize("name", WARNED)
def test_what_it_leaves_open_is_said(name):
    code, wanted, make = WARNED[name]
    data = make()
    assert apart(data, wanted) <= 2
    assert list(map(code_of, read_image(data).warnings)) == [code]


@pytest.mark.parametrize("tag", range(1, 9))
def test_tags_of_orientation_are_honoured_in_every_layout(tag):
    stored = np.ascontiguousarray(STORED[tag](GREY))
    colours = np.ascontiguousarray(STORED[tag](RGB))
    turn = {"extratags": [(274, "H", 1, tag)]}
    exif = Image.Exif()
    exif[274] = tag
    png = imagecodecs.png_encode(stored.astype(np.uint16) * 257)
    for data in (
        tiff(stored, photometric="minisblack", **turn),
        tiff(stored.astype(np.uint16) * 257, compression="zlib", photometric="minisblack", **turn),
        chunk(png, b"eXIf", exif.tobytes()[6:]),
    ):
        assert apart(data, GREY) <= 1
    buffer = io.BytesIO()
    Image.fromarray(colours).convert("CMYK").save(buffer, "TIFF", tiffinfo={274: tag})
    assert apart(buffer.getvalue(), RGB) <= 3
    planes = tiff(np.moveaxis(colours, -1, 0), planarconfig="separate", photometric="rgb", **turn)
    assert apart(planes, RGB) <= 1


@pytest.mark.parametrize("values", [GREY - 300.0, GREY * 1e6])
def test_floats_without_a_range_are_refused(values):
    with pytest.raises(ImageError, match="scale it first"):
        read_image(tiff(values.astype(np.float32), photometric="minisblack"))
