"""The everyday formats: by Pillow, and by decoders that keep 16 bit or notice missing data."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from mrad.images.decoding.depth import Stated, white_of
from mrad.images.decoding.jp2 import jp2_bits, jp2_damage, read_wide_jp2
from mrad.images.decoding.jpeg import jpeg_bits, read_jpeg, read_wide_jpeg
from mrad.images.decoding.netpbm import read_plain
from mrad.images.decoding.raster import Raster, check_size, truncated
from mrad.images.decoding.runs import LONG_RUN, zero_run, zero_tail
from mrad.images.decoding.several import pictures
from mrad.images.decoding.switch import SWITCH
from mrad.images.formats import PILLOW
from mrad.images.options import ReadOptions

ORIENTATION = 0x0112
LOOKED_AT = 64
"""Frames that are looked at for one that is not blank."""
UNCOMPRESSED = ("bmp", "dib", "pnm", "tga")


def read_common(kind: str, data: bytes, options: ReadOptions, *, indices: bool = False) -> Raster:
    """Any kind but TIFF, DICOM and HEIC. Whatever a broken file makes Pillow raise passes through.

    `indices`: a palette's picture as indices, its colours beside.
    """
    raster = _first(kind, data, options, indices)
    count = pictures(kind, data)
    return raster if count == 1 else replace(raster, pages=raster.pages + count - 1)


def _first(kind: str, data: bytes, options: ReadOptions, indices: bool) -> Raster:
    if kind == "pnm" and (plain := read_plain(data, options)) is not None:
        return plain
    notes = _damage(kind, data, options)
    if kind == "jp2" and (bits := jp2_bits(data)) != (8, False):
        return read_wide_jp2(data, bits[0], options).with_warnings(*notes)
    if kind == "jpeg" and (stream := jpeg_bits(data)) != (8, False):
        return read_wide_jpeg(data, stream[0], options)
    opened = Image.open(io.BytesIO(data), formats=PILLOW[kind])
    check_size(opened.size, options)
    if kind == "png" and data[24] == 16:
        wide = _png_wide(data, opened).with_warnings(*notes)
        return replace(wide, profile=_profile(opened), pages=int(getattr(opened, "n_frames", 1)))
    if kind == "jpeg":
        raster = read_jpeg(data, opened, orientation_of(opened), options)
        return Raster(**{**vars(raster), "profile": _profile(opened)})
    pages, page = 1, 0
    if getattr(opened, "is_animated", False) and opened.format != "MPO":
        page = _first_frame(opened)
        pages = int(opened.n_frames)  # type: ignore[attr-defined]
    if kind == "ico":
        kept = sorted(opened.info.get("sizes", ()))
        if len(kept) > 1:
            notes.append(f"page_chosen: of {len(kept)} sizes in the icon the largest is read")
    notes += load_all(opened, options)
    raster = from_pillow(opened, indices=indices)
    if kind in UNCOMPRESSED:
        raster = _opaque_bitmap(raster)
        notes += zero_tail(data)
    lossy = kind in ("jp2", "avif", "webp") and not (kind == "webp" and b"VP8L" in data[:64])
    return Raster(
        **{**vars(raster), "page": page, "pages": pages, "lossy": lossy, "profile": _profile(opened),
           "warnings": (*raster.warnings, *notes)}
    )  # fmt: skip


def load_all(opened: Image.Image, options: ReadOptions) -> list[str]:
    """Decode; with `allow_truncated` what there is."""
    try:
        opened.load()
        return []
    except OSError as error:
        if not options.allow_truncated:
            raise
        text = str(error)
    with SWITCH.lenient():
        opened.load()
    return [
        f"truncated: the file ends early or is damaged ({text}); what is missing is black or grey"
    ]


def _profile(opened: Image.Image) -> bytes | float | None:
    """What the file says of its colours; inks are another matter. By PNG's rule a profile wins over gamma."""
    if opened.mode == "CMYK":
        return None
    found = opened.info.get("icc_profile")
    if found or "srgb" in opened.info or opened.format != "PNG":
        return found or None
    return float(opened.info.get("gamma", 0)) or None


def orientation_of(opened: Image.Image) -> int:
    """The EXIF tag that turns a picture, 1 to 8."""
    turned = int(opened.getexif().get(ORIENTATION, 1) or 1)
    return turned if 1 <= turned <= 8 else 1


def _damage(kind: str, data: bytes, options: ReadOptions) -> list[str]:
    """What Pillow would not notice."""
    if kind == "png":
        return _png_damage(data, options)
    if kind == "jp2":
        return [*jp2_damage(data, options)]
    if kind == "pcx":
        return _pcx_damage(data, options)
    if kind == "webp":
        return [*zero_run(_webp_data(data), "WebP")]
    return [*zero_run(data, "AVIF", LONG_RUN)] if kind == "avif" else []


def _webp_data(data: bytes) -> bytes:
    """The coded pictures; descriptions beside them may hold zeros."""
    place, found = 12, []
    while place + 8 <= len(data):
        kind, length = (
            data[place : place + 4],
            int.from_bytes(data[place + 4 : place + 8], "little"),
        )
        if kind in (b"VP8 ", b"VP8L", b"ALPH"):
            found.append(data[place + 8 : place + 8 + length])
        place += 8 + length + length % 2
    return b"".join(found)


def _pcx_damage(data: bytes, options: ReadOptions) -> list[str]:
    """Of 256 levels: its palette lies at the end, and without it the levels are others."""
    if (
        len(data) < 128
        or data[1] != 5
        or data[3] != 8
        or data[65] != 1
        or data[-769:-768] == b"\x0c"
    ):
        return []
    return [truncated("the file ends early: its palette is missing", options)]


def from_pillow(image: Image.Image, *, indices: bool = False) -> Raster:
    """A picture that Pillow has decoded, of any mode."""
    turned = orientation_of(image)
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
    turned = orientation_of(opened)
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


def _png_damage(data: bytes, options: ReadOptions) -> list[str]:
    """Pillow does not compare the checksums of pixels: garbled ones would show as a picture."""
    place, text = 8, "the file ends early"
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if end > len(data):
            break
        if (kind[:1].isupper() or kind == b"fdAT") and zlib.crc32(
            data[place + 4 : end - 4]
        ) != int.from_bytes(data[end - 4 : end], "big"):
            text = (
                f"the file is damaged: the checksum of its part {kind.decode('latin-1')} is wrong"
            )
            break
        if kind == b"IEND":
            return []
        place = end
    return [truncated(text, options)]


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Chunks of a PNG up to its pixels."""
    place = 8
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"IDAT":
            return
        yield kind, data[place + 8 : place + 8 + length]
        place += 12 + length
