"""PNM beyond 8 bit, PAM and PFM: plain samples behind a header that names their white."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from mrad.errors import ImageError
from mrad.images.decoding.depth import Stated
from mrad.images.decoding.raster import Raster, check_size, truncated
from mrad.images.decoding.runs import zero_tail
from mrad.images.options import ReadOptions

GAP = rb"(?:\s|#[^\n]*\n)+"
PNM = re.compile(rb"P([2356])" + GAP + rb"(\d+)" + GAP + rb"(\d+)" + GAP + rb"(\d+)\s")
PFM = re.compile(rb"P([fF])\s+(\d+)\s+(\d+)\s+([-+.\deE]+)\s")
PAM = re.compile(rb"P7\s(.*?)ENDHDR\s*?\n", re.DOTALL)


@dataclass(frozen=True)
class Header:
    """What stands before the samples."""

    size: tuple[int, int]
    channels: int
    start: int
    """Where the samples begin."""
    white: int
    kind: str
    """numpy's name of a sample as stored."""
    text: bool = False
    """Samples are written as decimal numbers."""


def read_plain(data: bytes, options: ReadOptions) -> Raster | None:
    """None for what Pillow reads as it should: bits, and PNM of 8 bit."""
    header = _header(data, options.name)
    if header is None:
        return None
    check_size(header.size, options)
    width, height = header.size
    shape = (height, width) if header.channels == 1 else (height, width, header.channels)
    count = int(np.prod(shape))
    if header.text:
        found = np.array(data[header.start :].split()[:count], dtype=np.int64)
        if found.size and (found.min() < 0 or found.max() > 65535):
            raise ImageError(f"{options.name} has values beyond 0 to 65535: it is damaged")
        stored = found.astype(np.uint16)
    else:
        dtype = np.dtype(header.kind)
        there = min(count, (len(data) - header.start) // dtype.itemsize)
        stored = np.frombuffer(data, dtype, there, header.start).astype(dtype.newbyteorder("="))
    notes = [] if header.text else zero_tail(data)
    if stored.size < count:
        missing = 1 - stored.size / count
        notes = [truncated(f"the file ends early: {missing:.0%} of it is missing", options)]
        stored = np.concatenate([stored, np.zeros(count - stored.size, stored.dtype)])
    values = stored.reshape(shape)
    if stored.dtype.kind == "f":
        return Raster(np.ascontiguousarray(values[::-1]), Stated(), warnings=tuple(notes))
    stated = Stated() if header.white == 65535 else Stated(high=float(header.white))
    alpha = None
    if header.channels in (2, 4):
        alpha = np.round(np.minimum(values[..., -1] / header.white, 1) * 255).astype(np.uint8)
        values = values[..., 0] if header.channels == 2 else values[..., :3]
    return Raster(np.ascontiguousarray(values), stated, alpha, warnings=tuple(notes))


def _header(data: bytes, name: str) -> Header | None:
    head = data[:4096]
    if found := PFM.match(head):
        channels = 3 if found[1] == b"F" else 1
        kind = "<f4" if float(found[4]) < 0 else ">f4"
        return Header((int(found[2]), int(found[3])), channels, found.end(), 1, kind)
    if found := PAM.match(head):
        return _pam(found[1], found.end(), name)
    if (found := PNM.match(head)) and (white := int(found[4])) > 255:
        if white > 65535:
            raise ImageError(f"{name} names {white} as white; 65535 is the most")
        number, size = int(found[1]), (int(found[2]), int(found[3]))
        channels = 3 if number in (3, 6) else 1
        return Header(size, channels, found.end(), white, ">u2", number in (2, 3))
    return None


def _pam(text: bytes, start: int, name: str) -> Header:
    said = {}
    for line in text.splitlines():
        word, _, value = line.strip().partition(b" ")
        if word and not word.startswith(b"#"):
            said[word] = value.strip()
    try:
        width, height, channels, white = (
            int(said[word]) for word in (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL")
        )
    except (KeyError, ValueError) as error:
        raise ImageError(f"{name} is a PAM picture whose header cannot be read: {error}") from error
    if channels not in (1, 2, 3, 4) or not 0 < white <= 65535:
        raise ImageError(f"{name} is a PAM picture of {channels} samples with white at {white}")
    kind = ">u2" if white > 255 else "u1"
    return Header((width, height), channels, start, white, kind)
