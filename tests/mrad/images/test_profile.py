"""What a file says of its colours and Pillow does not use: said where it changes the levels, never used."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mrad.images.reader import read_image

LEVELS = np.tile(np.arange(256, dtype=np.uint8), (16, 1))
SRGB = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
P3 = ((0.5151, 0.2412, -0.0011), (0.2919, 0.6922, 0.0419), (0.1572, 0.0666, 0.7841))


def fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def icc(gamma: float, primaries=None) -> bytes:
    """A display's profile of version 2, grey without `primaries`."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    white = (0.9642, 1.0, 0.8249)
    tags = [(b"wtpt", b"XYZ \0\0\0\0" + fixed(*white)), (b"kTRC", curve)]
    if primaries:
        tags[1:] = [(b"rgb"[n : n + 1] + b"TRC", curve) for n in range(3)]
        tags += [
            (b"rgb"[n : n + 1] + b"XYZ", b"XYZ \0\0\0\0" + fixed(*place))
            for n, place in enumerate(primaries)
        ]
    start, table, body = 132 + 12 * len(tags), b"", b""
    for name, value in tags:
        table += name + struct.pack(">II", start + len(body), len(value))
        body += value
    head = struct.pack(">I", start + len(body)) + b"\0\0\0\0\x02\x40\0\0mntr"
    head += (b"RGB " if primaries else b"GRAY") + b"XYZ " + b"\0" * 12 + b"acsp" + b"\0" * 28
    head += fixed(*white)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def codes(data: bytes) -> list[str]:
    found = read_image(data)
    return [text.partition(":")[0] for text in found.warnings]


def saved(kind: str, profile: bytes, mode: str = "L") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(LEVELS).convert(mode).save(buffer, kind, icc_profile=profile)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_a_profile_that_changes_the_levels_is_said(kind):
    mode = "RGB" if kind == "WEBP" else "L"
    assert codes(saved(kind, icc(1.0), mode)) == ["colour_profile"]
    assert codes(saved(kind, icc(2.2), mode)) == []
    assert codes(saved(kind, icc(2.2, P3), "RGB")) == []  # of a telephone: nearly the same
    assert codes(saved(kind, icc(1.0, SRGB), "RGB")) == ["colour_profile"]
    assert codes(saved(kind, b"no profile at all", mode)) == []


@pytest.mark.parametrize(
    ("gamma", "expected"), [(1.0, ["colour_profile"]), (0.45455, []), (0.5, [])]
)
@pytest.mark.parametrize("deep", [False, True])
def test_the_gamma_of_a_png(gamma, expected, deep):
    pixels = LEVELS.astype(np.uint16) * 257 if deep else LEVELS
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    data, body = buffer.getvalue(), b"gAMA" + struct.pack(">I", round(gamma * 100_000))
    chunk = struct.pack(">I", 4) + body + struct.pack(">I", zlib.crc32(body))
    assert codes(data[:33] + chunk + data[33:]) == expected


def test_inks_without_adobes_mark_are_not_inverted():
    grey = Image.new("RGB", (32, 32), (200, 180, 60))
    buffer = io.BytesIO()
    grey.convert("CMYK").save(buffer, "JPEG", quality=98)
    data = buffer.getvalue()
    at = data.find(b"Adobe") - 4
    assert np.abs(np.asarray(read_image(data).image)[8, 8].astype(int) - (200, 180, 60)).max() < 4
    length = int.from_bytes(data[at + 2 : at + 4], "big")
    # The same samples without the mark: what was inverted ink is ink.
    bare = read_image(data[:at] + data[at + 2 + length :])
    assert np.asarray(bare.image)[8, 8].astype(int).max() < 4  # its black ink is full now
    assert next(text.partition(":")[0] for text in bare.warnings) == "colours_doubtful"
