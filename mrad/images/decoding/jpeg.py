"""JPEG of 8 to 16 bits. libjpeg fills what is missing with grey and goes on; here it is noticed.

A JPEG carries no checksum: garbled data that decode to just as many blocks as they should are not found.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageChops

from mrad.images.decoding.depth import Stated, white_of
from mrad.images.decoding.raster import Raster, check_size, truncated
from mrad.images.options import ReadOptions

HARMLESS = ("Invalid SOS parameters", "unknown Adobe color transform")
"""What libjpeg notes and decodes rightly all the same."""
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
END = b"\xff\xd9"
EARLY = "the file ends early: a part of the picture is missing, which shows as grey"
DAMAGED = "the file is damaged: a part of the picture is missing, which shows as grey"
EXTRA = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")


def read_jpeg(data: bytes, opened: Image.Image, orientation: int, options: ReadOptions) -> Raster:
    """Of 8 bit; `opened` by Pillow, which knows its colours. Smaller where `options.least_side` lets it be."""
    import simplejpeg

    least = options.least_side
    scale = {} if least is None else {"min_height": least, "min_width": least, "min_factor": 1}
    space = {"L": "GRAY", "RGB": "RGB"}.get(opened.mode, "CMYK")
    notes: tuple[str, ...] = ()
    try:
        values = simplejpeg.decode_jpeg(data, colorspace=space, strict=True, **scale)
    except ValueError as error:
        values = (
            None if space == "CMYK" else simplejpeg.decode_jpeg(data, space, strict=False, **scale)
        )
        notes = (_damage(str(error), data, options),)
    if space == "CMYK":
        opened.load()
        inks = opened
        if not any(mark == 0xEE and data[at : at + 5] == b"Adobe" for mark, at in segments(data)):
            inks = ImageChops.invert(
                opened
            )  # Pillow takes all for Adobe's, who stores them inverted
            notes += (
                "colours_doubtful: inks without Adobe's mark; the file does not say whether they are stored "
                "inverted, and is read as if they are not: save it as RGB",
            )
        image = inks.convert("RGB")
    else:
        image = Image.fromarray(values[..., 0] if space == "GRAY" else values)
    notes = tuple(note for note in notes if note)
    return Raster(image, orientation=orientation, lossy=True, warnings=notes, full=opened.size)


def jpeg_damage(data: bytes, options: ReadOptions) -> str:
    """A warning for what is missing of a JPEG stream, empty if nothing. Raises `ImageError`."""
    import simplejpeg

    try:
        space = {"Gray": "GRAY", "CMYK": "CMYK", "YCCK": "CMYK"}.get(
            simplejpeg.decode_jpeg_header(data, strict=False)[2], "RGB"
        )
        simplejpeg.decode_jpeg(data, space, strict=True)
    except ValueError as error:
        if "orrupt" in str(error) or "remature" in str(error):
            return _damage(str(error), data, options)
    return ""


def _damage(text: str, data: bytes, options: ReadOptions) -> str:
    """A warning for what was missing or garbled. Raises `ImageError` where it is not allowed."""
    harmless = any(known in text for known in HARMLESS) or _is_padding(text, data)
    if harmless and not _ends_early(data):  # it may be the last of several remarks
        return ""
    early = harmless or "remature end" in text
    return truncated(f"{EARLY if early else DAMAGED} ({text})", options)


def _is_padding(text: str, data: bytes) -> bool:
    """Whether the bytes that libjpeg passed over are a camera's padding, not blocks left over."""
    found = EXTRA.search(text)
    if found is None:
        return False
    count, mark = int(found[1]), bytes([0xFF, int(found[2], 16)])
    place = data.find(mark)
    while place >= 0:
        if not data[max(0, place - count) : place].strip(b"\0\xff"):
            return True
        place = data.find(mark, place + 1)
    return False


def _ends_early(data: bytes) -> bool:
    """Whether the decoder reads on beyond the last block that is there: then what follows matters."""
    import imagecodecs

    end = data.rfind(END)
    if end < 0:
        return True
    given, longer = (
        imagecodecs.jpeg_decode(stream) for stream in (data, data[:end] + b"\x55" * 64 + data[end:])
    )
    return not np.array_equal(given, longer)


def segments(data: bytes) -> Iterator[tuple[int, int]]:
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


def jpeg_bits(data: bytes) -> tuple[int, bool]:
    """Bits of a sample, and whether the stream is lossless."""
    for marker, place in segments(data):
        if marker in FRAMES and place < len(data):
            return data[place], marker in (0xC3, 0xC7, 0xCB, 0xCF)
    return 8, False


def read_wide_jpeg(data: bytes, bits: int, options: ReadOptions) -> Raster:
    """Of 12 bit, and lossless ones of 2 to 16 bit."""
    import imagecodecs

    orientation = 1
    for marker, place in segments(data):
        if marker == 0xE1 and data[place : place + 6] == b"Exif\0\0":
            exif = Image.Exif()
            exif.load(data[place : place - 2 + struct.unpack_from(">H", data, place - 2)[0]])
            orientation = int(exif.get(0x0112, 1) or 1)
        if marker in FRAMES:
            height, width = struct.unpack_from(">HH", data, place + 1)
            check_size((width, height), options)
    values = imagecodecs.jpeg_decode(data)
    notes = _wide_damage(data, values, options)
    stated = Stated() if bits == 16 else Stated(high=white_of(bits))
    return Raster(values, stated, orientation=orientation, lossy=True, warnings=notes)


def _wide_damage(data: bytes, values: Any, options: ReadOptions) -> tuple[str, ...]:
    """Blocks that are missing, or left over: what was garbled holds fewer blocks, or more."""
    import imagecodecs

    if _ends_early(data):
        return (truncated(f"{EARLY} (fewer blocks than its size asks for)", options),)
    end = data.rfind(END)
    rest = data[end - 16 : end]
    shorter = imagecodecs.jpeg_decode(data[: end - 16] + data[end:])
    telling = sum(byte not in (0, 0xFF) for byte in rest)  # flat parts are zeros, or nearly
    if telling >= 8 and np.array_equal(values, shorter):
        return (truncated(f"{DAMAGED} (its last blocks are not used)", options),)
    return ()
