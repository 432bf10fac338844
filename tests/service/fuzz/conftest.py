"""Broken images without end: every format that the server reads, then damaged."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from mrad.images.formats import PILLOW

FORMATS = [name for names in PILLOW.values() for name in names]

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F")
MARKED = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\x80\0\0\0", b"\0\0\xff\xff")
"""What a size, an offset or a count may be replaced by."""
Mutant = Callable[[np.random.Generator], bytes]


def seeds() -> dict[str, bytes]:
    """Every format in every mode that Pillow writes it in: small files, all of them valid."""
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (18, 23, 3), np.uint8))
    grey = Image.fromarray((rng.integers(0, 65536, (18, 23))).astype(np.int32))
    shares = Image.fromarray(rng.random((18, 23), np.float32))  # float images lie in [0, 1]
    found = {}
    for kind in FORMATS:
        for mode in MODES:
            image = {"I": grey, "I;16": grey, "F": shares}.get(mode, colours)
            buffer = io.BytesIO()
            try:
                image.convert(mode).save(buffer, kind)
            except (OSError, KeyError, ValueError):
                continue  # Pillow does not write this mode in this format
            found[f"{kind} {mode}"] = buffer.getvalue()
    frames = [colours.rotate(angle) for angle in (0, 90, 180)]
    for kind in {"GIF", "TIFF", "WEBP", "PNG"} & set(FORMATS):
        buffer = io.BytesIO()
        frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
        found[f"{kind} frames"] = buffer.getvalue()
    return found


def damage(data: bytearray, rng: np.random.Generator, other: bytes) -> bytearray:
    """One step of damage."""
    place = int(rng.integers(len(data)))
    if rng.random() < 0.5:
        place = min(place, int(rng.integers(96)))  # headers are where decoders are fooled
    match int(rng.integers(7)):
        case 0:
            return data[: max(1, place)]
        case 1:
            for at in rng.integers(len(data), size=int(rng.integers(1, 12))):
                data[at] ^= 1 << int(rng.integers(8))
        case 2:
            data[place : place + 4] = MARKED[int(rng.integers(len(MARKED)))]
        case 3:
            data[place : place + int(rng.integers(1, 40))] = b""
        case 4:
            data[place:place] = rng.bytes(int(rng.integers(1, 40)))
        case 5:
            data[place:] = other[min(place, len(other) - 1) :]
        case _:
            data[place:place] = data[place : place + int(rng.integers(1, 200))]
    return data or bytearray(b"\0")


@pytest.fixture(scope="session")
def valid_files() -> dict[str, bytes]:
    """`format mode` -> a valid file."""
    return seeds()


@pytest.fixture(scope="session")
def mutant(valid_files: dict[str, bytes]) -> Mutant:
    """`mutant(rng)`: a valid file with one to three damages."""
    files = list(valid_files.values())

    def make(rng: np.random.Generator) -> bytes:
        data = bytearray(files[int(rng.integers(len(files)))])
        for _ in range(int(rng.integers(1, 4))):
            data = damage(data, rng, files[int(rng.integers(len(files)))])
        return bytes(data)

    return make
