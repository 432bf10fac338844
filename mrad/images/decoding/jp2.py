"""JPEG 2000: 16 bit is kept, and a stream is checked by its own lengths and marks.

It carries no checksum: garbled data without a forbidden mark or a long run of zeros are not found.
"""

from __future__ import annotations

import io
import re
import struct

from PIL import Image

from mrad.images.decoding.depth import Stated, white_of
from mrad.images.decoding.raster import Raster, check_size, truncated
from mrad.images.decoding.runs import zero_run
from mrad.images.formats import PILLOW
from mrad.images.options import ReadOptions

START, SIZE, TILE, DATA, END = b"\xff\x4f", b"\xff\x51", 0xFF90, 0xFF93, b"\xff\xd9"
STYLE = 0xFF52
FORBIDDEN = re.compile(rb"\xff[\x90-\xff]")
"""No two bytes of coded data may look like a mark."""


def jp2_bits(data: bytes) -> tuple[int, bool]:
    """Bits of a sample, and whether samples are signed."""
    at = data.find(SIZE)
    if not 0 <= at < len(data) - 41:
        return 8, False
    return (data[at + 40] & 0x7F) + 1, data[at + 40] >= 0x80


def read_wide_jp2(data: bytes, bits: int, options: ReadOptions) -> Raster:
    """Of more than 8 bit, or signed."""
    import imagecodecs

    with Image.open(io.BytesIO(data), formats=PILLOW["jp2"]) as opened:
        check_size(opened.size, options)
        opened.load()  # refuses what is cut
    values = imagecodecs.jpeg2k_decode(data)
    alpha = None
    if values.ndim == 3 and values.shape[2] in (2, 4):
        alpha = (values[..., -1].astype(float) / white_of(bits) * 255).round().astype("uint8")
        values = values[..., :-1]
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    stated = Stated() if bits in (16, 32) else Stated(high=white_of(bits))
    return Raster(values, stated, alpha, lossy=True)


def jp2_damage(data: bytes, options: ReadOptions) -> tuple[str, ...]:
    """Warnings for what is missing or garbled. Raises `ImageError` where it is not allowed."""
    found = _stream_damage(data)
    if not found:
        return zero_run(data, "JPEG 2000")
    return (truncated(found, options),)


def _stream_damage(data: bytes) -> str:
    place = data.find(START + SIZE)
    marked, parts = False, 0
    place += 2
    while place + 4 <= len(data):
        mark, length = struct.unpack_from(">HH", data, place)
        if mark == TILE:
            (part,) = struct.unpack_from(">I", data, place + 6)
            stop = place + part if part else data.rfind(END)
            if stop > len(data) or stop <= place:
                return "the file ends early: a tile of it is missing"
            if not marked and (wrong := _forbidden(data, place, stop)):
                return wrong
            place, parts = stop, parts + 1
            continue
        if data[place : place + 2] == END:
            return "" if parts else "the file ends early: it holds no tile"
        if mark < 0xFF00:
            return "the file is damaged: its parts do not follow one another"
        marked |= mark == STYLE and bool(data[place + 4] & 0b110)
        place += 2 + length
    if data[place : place + 2] == END and parts:
        return ""
    return "the file ends early: its end mark is missing"


def _forbidden(data: bytes, place: int, stop: int) -> str:
    begin = data.find(DATA.to_bytes(2, "big"), place, stop)
    if begin < 0:
        return "the file is damaged: a tile has no data"
    if FORBIDDEN.search(data, begin + 2, stop):
        return "the file is damaged: its coded data hold a mark that they may not hold"
    return ""
