"""Pictures that follow one another in one file: decoders read the first, and say nothing of the others.

By the standard in PNM and PAM; in JPEG as cameras' multi-picture files, whose further pictures of another size are
previews and maps of the first; elsewhere where files were put together.
"""

from __future__ import annotations

import re
import struct

from mrad.images.decoding.jpeg import END, FRAMES, segments
from mrad.images.decoding.netpbm import GAP, PAM, PFM

MOST = 64
"""Pictures that are counted."""
HEADERS = 1 << 20
"""Bytes of a JPEG in which its size stands."""
BORDERS = {
    "png": re.compile(rb"IEND\xaeB`\x82\s*\x89PNG\r\n\x1a\n"),
    "gif": re.compile(rb";\s*GIF8[79]a"),
}
"""Where one picture ends and the next begins."""
BITS = re.compile(rb"P([14])" + GAP + rb"(\d+)" + GAP + rb"(\d+)\s")
LEVELS = re.compile(rb"P([2356])" + GAP + rb"(\d+)" + GAP + rb"(\d+)" + GAP + rb"(\d+)\s")
NUMBERED = re.compile(rb"\sP[1-7fF]\s")
"""Where a picture begins behind one that is written in numbers."""
COMMENT = re.compile(rb"#[^\n]*")


def pictures(kind: str, data: bytes) -> int:
    """How many a file holds, animations aside; `kind`: as `mrad.images.formats.kind_of` names it."""
    if kind in BORDERS:
        return 1 + len(BORDERS[kind].findall(data))
    if kind == "jpeg":
        return _jpegs(data)
    length = {"bmp": _bmp, "webp": _webp, "pnm": _pnm}.get(kind)
    count, place = 1, 0
    while length is not None and count < MOST:
        size = length(data, place)
        place += size
        while size and data[place : place + 1].isspace():
            place += 1
        if not size or not length(data, place):
            break
        count += 1
    return count


def _jpegs(data: bytes) -> int:
    """Those of the first one's size."""
    first, count, place = _size(data), 1, 0
    for _ in range(MOST):
        scan = next((at for mark, at in segments(data[place : place + HEADERS]) if mark == 0xDA), 0)
        end = data.find(END, place + scan)
        place = data.find(b"\xff\xd8\xff", end)
        if not scan or end < 0 or place < 0:
            break
        count += first is not None and _size(data[place : place + HEADERS]) == first
    return count


def _size(data: bytes) -> bytes | None:
    return next((data[at + 1 : at + 5] for mark, at in segments(data) if mark in FRAMES), None)


def _bmp(data: bytes, place: int) -> int:
    """Bytes of a picture that begins at a place, 0 for none; so the others."""
    if data[place : place + 2] != b"BM" or place + 18 > len(data):
        return 0
    size: int = struct.unpack_from("<I", data, place + 2)[0]
    return size if size > 18 else 0


def _webp(data: bytes, place: int) -> int:
    if data[place : place + 4] != b"RIFF" or data[place + 8 : place + 12] != b"WEBP":
        return 0
    size: int = struct.unpack_from("<I", data, place + 4)[0]
    return 8 + size + size % 2


def _pnm(data: bytes, place: int) -> int:
    head = data[place : place + 4096]
    if found := PFM.match(head):
        channels = 3 if found[1] == b"F" else 1
        return found.end() + 4 * channels * int(found[2]) * int(found[3])
    if found := PAM.match(head):
        said = dict(re.findall(rb"^(\w+)\s+(\d+)", found[1], re.MULTILINE))
        if not said.keys() >= {b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL"}:
            return 0
        samples = int(said[b"WIDTH"]) * int(said[b"HEIGHT"]) * int(said[b"DEPTH"])
        return found.end() + samples * (1 + (int(said[b"MAXVAL"]) > 255))
    if (found := BITS.match(head)) and found[1] == b"4":
        return found.end() + -(-int(found[2]) // 8) * int(found[3])
    if (found := LEVELS.match(head)) and found[1] in b"56":
        samples = int(found[2]) * int(found[3]) * (3 if found[1] == b"6" else 1)
        return found.end() + samples * (1 + (int(found[4]) > 255))
    if not BITS.match(head) and not found:
        return 0
    numbers = COMMENT.sub(lambda one: b" " * len(one[0]), data[place:])
    border = NUMBERED.search(numbers, 2)
    return border.start() if border else len(numbers)
