"""Very large pictures, read by rows when a tile asks: arrays, and TIFF files in strips.

A line-scan camera's picture of 2,048 x 100,000 pixels takes 600 MB as RGB; here the rows of the tile at
hand are all that is held. What cannot be read so (another format, depth or layout) is decoded whole.
"""

from __future__ import annotations

import logging
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from mrad.images.decoding.raster import check_size
from mrad.images.options import ReadOptions
from mrad.images.reader import SAMPLED, Picture, guarded, named
from mrad.types import Box, ImageInput

STREAMED = 50_000_000
"""Pixels from which a picture that is cut into tiles is read by rows."""
HELD = 64 << 20
"""Bytes of decoded strips that are kept for the next tile."""
Levels = npt.NDArray[np.uint8]


class Rows(Protocol):
    """Some rows of a picture: uint8 [n, W] or [n, W, 3]."""

    def __call__(self, top: int, bottom: int) -> Levels:
        """Rows `top` to `bottom`, which are inside."""
        ...


class Strips:
    """A picture of which only what is asked for is read. Thread-safe."""

    def __init__(self, size: tuple[int, int], rows: Rows, name: str = "the image") -> None:
        """`name`: what errors call it."""
        self.size, self._read, self._name = size, rows, name

    def _rows(self, top: int, bottom: int) -> Levels:
        return guarded(lambda: self._read(top, bottom), self._name)

    @property
    def width(self) -> int:
        """Pixels."""
        return self.size[0]

    @property
    def height(self) -> int:
        """Pixels."""
        return self.size[1]

    def crop(self, box: Box) -> Image.Image:
        """A part of it, L or RGB. Raises `ImageError` where that is damaged."""
        left, top, right, bottom = box
        part = np.ascontiguousarray(self._rows(top, bottom)[:, left:right])
        return Image.fromarray(part)

    def resize(self, size: tuple[int, int], *_: Any, **__: Any) -> Image.Image:
        """A small copy, L or RGB: of the pixels at even steps, one in each place."""
        rows = ((np.arange(size[1]) + 0.5) * self.height / size[1]).astype(int)
        columns = ((np.arange(size[0]) + 0.5) * self.width / size[0]).astype(int)
        found = [self._rows(row, row + 1)[0, columns] for row in rows.tolist()]
        return Image.fromarray(np.stack(found))

    def convert(self, mode: str) -> Image.Image:
        """All of it, whatever that takes."""
        return self.crop((0, 0, *self.size)).convert(mode)

    def picture(self) -> Picture:
        """What is known of it without reading it all: brightness and contrast of a small copy."""
        small = self.resize((min(SAMPLED, self.width), min(SAMPLED, self.height)))
        values = np.asarray(small.convert("L"), dtype=float)
        levels = float(values.mean()), float(values.std())
        return Picture(small, brightness=levels[0], contrast=levels[1], full=self.size)


def open_strips(source: ImageInput, options: ReadOptions) -> Strips | None:
    """A picture of `STREAMED` pixels or more that can be read by rows; None for any other.

    Raises `ImageTooLargeError`, and `ImageError` for a TIFF that is damaged.
    """
    if isinstance(source, np.ndarray):
        return _of_array(source, options)
    if isinstance(source, str | Path) and Path(source).suffix.lower() in (".tif", ".tiff", ".btf"):
        options = named(options, source)
        return guarded(lambda: _of_tiff(Path(source), options), options.name)
    return None


def _of_array(array: npt.NDArray[Any], options: ReadOptions) -> Strips | None:
    plain = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if not plain or array.dtype != np.uint8 or array.shape[0] * array.shape[1] < STREAMED:
        return None
    size = array.shape[1], array.shape[0]
    check_size(size, named(options, array))
    return Strips(size, lambda top, bottom: array[top:bottom])


def _of_tiff(path: Path, options: ReadOptions) -> Strips | None:
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    with tifffile.TiffFile(path) as tif:
        page: Any = tif.pages[0]
        size = int(page.imagewidth), int(page.imagelength)
        if len(tif.pages) != 1 or size[0] * size[1] < STREAMED or not _is_plain(page):
            return None
        check_size(size, options)
        if page.compression == 1 and page.is_contiguous:
            return Strips(size, _stored(path, int(page.dataoffsets[0]), page.shape), str(path))
        return Strips(size, _decoded(path, page), str(path))


def _is_plain(page: Any) -> bool:
    """8-bit grey or RGB as it is shown, upright, in strips that are each a small part."""
    turned = page.tags.get(274)
    upright = turned is None or turned.value == 1
    grey_or_rgb = (page.photometric == 1 and page.samplesperpixel == 1) or (
        page.photometric == 2 and page.samplesperpixel == 3 and page.planarconfig == 1
    )
    plain = page.dtype == np.uint8 and page.bitspersample == 8 and grey_or_rgb and upright
    stored = page.compression == 1 and page.is_contiguous
    strips = not page.is_tiled and len(page.dataoffsets) >= 16
    return bool(plain and (stored or strips))


def _stored(path: Path, offset: int, shape: tuple[int, ...]) -> Rows:
    """Rows that lie in the file as they are; read, not mapped, so that nothing adds up."""
    line = int(np.prod(shape[1:]))

    def rows(top: int, bottom: int) -> Levels:
        count = (bottom - top) * line
        found = np.fromfile(path, np.uint8, count, offset=offset + top * line)
        if len(found) < count:
            raise EOFError("truncated: fewer rows than the header says")
        return found.reshape(bottom - top, *shape[1:])

    return rows


def _decoded(path: Path, page: Any) -> Rows:
    """Rows of a compressed TIFF: strips are decoded when asked for, the last ones are kept."""
    each, lock = int(page.rowsperstrip), threading.Lock()

    @lru_cache(max(1, HELD // (each * int(np.prod(page.shape[1:])))))
    def strip(number: int) -> Levels:
        with path.open("rb") as file:
            file.seek(int(page.dataoffsets[number]))
            data = file.read(int(page.databytecounts[number]))
        decoded = page.decode(data, number, jpegtables=page.jpegtables)[0]
        return np.asarray(decoded, dtype=np.uint8).reshape(-1, *page.shape[1:])

    def rows(top: int, bottom: int) -> Levels:
        first, last = top // each, (bottom - 1) // each
        with lock:
            joined = np.concatenate([strip(number) for number in range(first, last + 1)])
        return joined[top - first * each : bottom - first * each]

    return rows
