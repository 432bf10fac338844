"""The everyday formats: by Pillow, and by decoders that keep 16 bit or notice missing data."""

from __future__ import annotations

import io
import re
import struct
import threading
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from mrad.errors import ImageError
from mrad.images.decoding.depth import Stated, white_of
from mrad.images.decoding.raster import Raster, check_size
from mrad.images.formats import PILLOW
from mrad.images.options import ReadOptions

ORIENTATION = 0x0112
LOOKED_AT = 64
TAIL = 0.1
"""Share of zeros at a file's end from which it is said."""
"""Frames that are looked at for one that is not blank."""
UNCOMPRESSED = ("bmp", "dib", "pnm", "tga")
HARMLESS = ("extraneous bytes", "Invalid SOS parameters", "unknown Adobe color transform")
"""What libjpeg notes and decodes rightly all the same."""


def read_common(
    kind: str, data: bytes, options: ReadOptions, name: str, *, indices: bool = False
) -> Raster:
    """Any kind but TIFF, DICOM and HEIC. Whatever a broken file makes Pillow raise passes through.

    `indices`: a palette's picture as indices, its colours beside.
    """
    if kind == "jpeg" and (bits := _jpeg_bits(data)) != 8:
        return _jpeg_wide(data, bits, options, name)
    if kind == "jp2" and (bits := _jp2_bits(data)) > 8:
        return _jp2_wide(data, bits, options, name)
    if kind == "pnm" and (header := _pnm(data)) is not None and header[3] > 255:
        return _pnm_wide(data, *header, options, name)
    notes = _png_damage(data, options, name) if kind == "png" else []
    opened = Image.open(io.BytesIO(data), formats=PILLOW[kind])
    check_size(opened.size, options, name)
    if kind == "png" and data[24] == 16:
        return _png_wide(data, opened).with_warnings(*notes)
    if kind == "jpeg":
        return _jpeg(data, opened, options, name)
    pages, page = 1, 0
    if getattr(opened, "is_animated", False) and opened.format != "MPO":
        page = _first_frame(opened)
        pages = int(opened.n_frames)  # type: ignore[attr-defined]
    if kind == "ico":
        kept = sorted(opened.info.get("sizes", ()))
        if len(kept) > 1:
            notes.append(f"page_chosen: of {len(kept)} sizes in the icon the largest is read")
    notes += load_all(opened, options, name)
    raster = from_pillow(opened, name, indices=indices)
    if kind in UNCOMPRESSED:
        raster = _opaque_bitmap(raster)
        notes += zero_tail(data)
    lossy = kind in ("jp2", "avif", "webp") and not (kind == "webp" and b"VP8L" in data[:64])
    return Raster(
        **{**vars(raster), "page": page, "pages": pages, "lossy": lossy,
           "warnings": (*raster.warnings, *notes)}
    )  # fmt: skip


def load_all(opened: Image.Image, options: ReadOptions, name: str) -> list[str]:
    """Decode; with `allow_truncated` what there is. Pillow's switch for that holds for all threads,
    so it is turned only for as long as one file takes."""
    try:
        opened.load()
        return []
    except OSError as error:
        if not options.allow_truncated:
            raise
        text = str(error)
    with _LENIENT:
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        try:
            opened.load()
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = False
    return [
        f"truncated: the file ends early or is damaged ({text}); what is missing is black or grey"
    ]


_LENIENT = threading.Lock()


def from_pillow(image: Image.Image, name: str, *, indices: bool = False) -> Raster:
    """A picture that Pillow has decoded, of any mode."""
    turned = int(image.getexif().get(ORIENTATION, 1) or 1)
    turned = turned if 1 <= turned <= 8 else 1
    mode = image.mode
    if indices and mode == "P":
        colours = np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))
        return Raster(np.asarray(image), orientation=turned, colours=colours)
    if mode == "RGBa" or mode == "La":
        values = np.asarray(image)
        colour = values[..., :-1] if mode == "RGBa" else values[..., 0]
        return Raster(np.ascontiguousarray(colour), alpha=values[..., -1], premultiplied=True,
                      orientation=turned)  # fmt: skip
    if mode.startswith("I;16") or mode in ("I", "F"):
        values = np.asarray(image)
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        clear = image.info.get("transparency")
        alpha = None if clear is None else _key(values, clear)
        return Raster(values, Stated(), alpha, orientation=turned)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Raster(
            rgba.convert("RGB"), alpha=np.asarray(rgba.getchannel("A")), orientation=turned
        )
    rgb = image if mode in ("L", "RGB") else image.convert("L" if mode == "1" else "RGB")
    return Raster(rgb, orientation=turned)


def _first_frame(opened: Image.Image) -> int:
    """Seeks to the first frame that is not of one colour; the first if all are."""
    for number in range(min(int(opened.n_frames), LOOKED_AT)):  # type: ignore[attr-defined]
        opened.seek(number)
        extrema = opened.convert("RGB").getextrema()
        if any(low != high for low, high in extrema):  # type: ignore[misc]
            return number
    opened.seek(0)
    return 0


def _opaque_bitmap(raster: Raster) -> Raster:
    """Most programs leave the fourth byte of a bitmap's pixel at zero: no transparency is meant."""
    if raster.alpha is not None and not raster.alpha.any():
        return Raster(**{**vars(raster), "alpha": None})
    return raster


def _key(values: Any, clear: Any) -> Any:
    """Alpha by a colour that is transparent."""
    same = values == np.asarray(clear)
    return np.where(same.all(axis=2) if same.ndim == 3 else same, 0, 255).astype(np.uint8)


# PNG of 16 bit: Pillow keeps 8 of RGB's.


def _png_wide(data: bytes, opened: Image.Image) -> Raster:
    import imagecodecs

    opened.load()  # finds the orientation behind the pixels
    turned = int(opened.getexif().get(ORIENTATION, 1) or 1)
    values = imagecodecs.png_decode(data)
    chunks = dict(_chunks(data))
    colour, alpha = values, None
    if values.ndim == 3 and values.shape[2] in (2, 4):
        colour = values[..., :-1] if values.shape[2] == 4 else values[..., 0]
        alpha = np.round(values[..., -1] / 257).astype(np.uint8)
    elif b"tRNS" in chunks:
        alpha = _key(values, struct.unpack(f">{len(chunks[b'tRNS']) // 2}H", chunks[b"tRNS"]))
    stated = Stated()
    if b"sBIT" in chunks:
        stated = _significant(np.asarray(colour), max(chunks[b"sBIT"]))
    return Raster(np.ascontiguousarray(colour), stated, alpha, orientation=turned)


def _significant(values: Any, bits: int) -> Stated:
    """sBIT: by the standard in the upper bits, by many a camera's program in the lower ones."""
    if not 8 <= bits < 16:
        return Stated(high=65535.0) if bits == 16 else Stated()
    if int(values.max()) > white_of(bits):
        return Stated(high=65535.0)
    low = values & ((1 << (16 - bits)) - 1)
    if values.any() and (not low.any() or (low == values >> bits).all()):
        return Stated(high=65535.0)  # filled with zeros, or with the upper bits again
    return Stated(high=white_of(bits))


def _png_damage(data: bytes, options: ReadOptions, name: str) -> list[str]:
    """Pillow does not compare the checksums of pixels: garbled ones would show as a picture."""
    place, text = 8, "the file ends early"
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if end > len(data):
            break
        if kind[:1].isupper() and zlib.crc32(data[place + 4 : end - 4]) != int.from_bytes(
            data[end - 4 : end], "big"
        ):
            text = (
                f"the file is damaged: the checksum of its part {kind.decode('latin-1')} is wrong"
            )
            break
        if kind == b"IEND":
            return []
        place = end
    if not options.allow_truncated:
        raise ImageError(f"{name}: {text}; copy it again")
    return [f"truncated: {text}"]


def zero_tail(data: bytes) -> list[str]:
    """Of formats without compression only the end tells that a copy was cut short."""
    zeros = len(data) - len(data.rstrip(b"\0"))
    if zeros < 512 or zeros < TAIL * len(data):
        return []
    return [
        f"zero_tail: the last {zeros / len(data):.0%} of the file are zeros: it is black there, or "
        "was not copied whole"
    ]


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Chunks of a PNG up to its pixels."""
    place = 8
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"IDAT":
            return
        yield kind, data[place + 8 : place + 8 + length]
        place += 12 + length


# JPEG: libjpeg fills what is missing with grey and goes on; here it is noticed.


def _jpeg(data: bytes, opened: Image.Image, options: ReadOptions, name: str) -> Raster:
    import simplejpeg

    turned = int(opened.getexif().get(ORIENTATION, 1) or 1)
    turned = turned if 1 <= turned <= 8 else 1
    space = {"L": "GRAY", "RGB": "RGB"}.get(opened.mode, "CMYK")
    notes: tuple[str, ...] = ()
    try:
        values = simplejpeg.decode_jpeg(data, colorspace=space, strict=True)
    except ValueError as error:
        notes = (_damage(str(error), options, name),)
        values = None if space == "CMYK" else simplejpeg.decode_jpeg(data, space, strict=False)
    if space == "CMYK":
        opened.load()
        image = opened.convert("RGB")
    else:
        image = Image.fromarray(values[..., 0] if space == "GRAY" else values)
    notes = tuple(note for note in notes if note)
    return Raster(image, orientation=turned, lossy=True, warnings=notes)


def jpeg_damage(data: bytes, options: ReadOptions, name: str) -> str:
    """A warning for what is missing of a JPEG stream, empty if nothing. Raises `ImageError`."""
    import simplejpeg

    try:
        components = simplejpeg.decode_jpeg_header(data, strict=False)[2]
        simplejpeg.decode_jpeg(data, "GRAY" if components == "Gray" else "RGB", strict=True)
    except ValueError as error:
        if "orrupt" in str(error) or "remature" in str(error):
            return _damage(str(error), options, name)
    return ""


def _damage(text: str, options: ReadOptions, name: str) -> str:
    """A warning for what was missing or garbled. Raises `ImageError` where it is not allowed."""
    if any(known in text for known in HARMLESS):
        return ""
    early = "remature end" in text
    what = "the file ends early" if early else "the file is damaged"
    if not options.allow_truncated:
        raise ImageError(
            f"{name}: {what}: a part of the picture is missing ({text}); copy it again"
        )
    return f"truncated: {what}: what is missing shows as grey ({text})"


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Marker and place of a JPEG's headers."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:
            place += 1
            continue
        yield marker, place + 4
        if marker == 0xDA:
            return
        place += 2 + struct.unpack_from(">H", data, place + 2)[0]


def _jpeg_bits(data: bytes) -> int:
    frames = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
    for marker, place in _segments(data):
        if marker in frames and place < len(data):
            return data[place]
    return 8


def _jpeg_wide(data: bytes, bits: int, options: ReadOptions, name: str) -> Raster:
    import imagecodecs

    for marker, place in _segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, place + 1)
            check_size((width, height), options, name)
    if data.rfind(b"\xff\xd9") < len(data) // 2:
        raise ImageError(f"{name}: the file ends early; copy it again")
    values = imagecodecs.jpeg_decode(data)
    return Raster(values, Stated(high=white_of(bits)), lossy=True)


# JPEG 2000 and PNM beyond 8 bit.


def _jp2_bits(data: bytes) -> int:
    at = data.find(b"\xff\x51")
    return (data[at + 40] & 0x7F) + 1 if 0 <= at < len(data) - 41 else 8


def _jp2_wide(data: bytes, bits: int, options: ReadOptions, name: str) -> Raster:
    import imagecodecs

    opened = Image.open(io.BytesIO(data), formats=PILLOW["jp2"])
    check_size(opened.size, options, name)
    opened.load()  # refuses what is cut
    values = imagecodecs.jpeg2k_decode(data)
    if values.ndim == 3 and values.shape[2] not in (1, 3):
        return from_pillow(opened, name)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    stated = Stated() if bits in (16, 32) else Stated(high=white_of(bits))
    return Raster(values, stated, lossy=True)


_PNM = re.compile(rb"P([56])(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)\s")


def _pnm(data: bytes) -> tuple[int, int, int, int, int] | None:
    """Channels, width, height, white and the header's length of a binary picture."""
    found = _PNM.match(data[:4096])
    if found is None:
        return None
    kind, width, height, white = (int(part) for part in found.groups())
    return (3 if kind == 6 else 1), width, height, white, found.end()


def _pnm_wide(
    data: bytes, channels: int, width: int, height: int, white: int, start: int,
    options: ReadOptions, name: str,
) -> Raster:  # fmt: skip
    check_size((width, height), options, name)
    if white > 65535:
        raise ImageError(f"{name} names {white} as white; 65535 is the most")
    if len(data) - start < 2 * channels * width * height:
        raise ImageError(f"{name}: the file ends early; copy it again")
    values = np.frombuffer(data, ">u2", channels * width * height, start).astype(np.uint16)
    values = values.reshape((height, width, 3) if channels == 3 else (height, width))
    stated = Stated() if white == 65535 else Stated(high=float(white))
    return Raster(values, stated, warnings=tuple(zero_tail(data)))
