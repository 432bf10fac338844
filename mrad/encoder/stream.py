"""Tiles of any number of pictures through the encoder in batches, prepared ahead in threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

from PIL import Image
from torch import Tensor

from mrad.encoder.encoder import Encoder, Features
from mrad.images.layout import Places, Tile
from mrad.images.strips import Strips


class Cut(Protocol):
    """A decoded picture and what of it is looked at."""

    @property
    def image(self) -> Image.Image | Strips:
        """Upright RGB."""
        ...

    @property
    def places(self) -> Places:
        """Its tiles."""
        ...

    @property
    def pixels(self) -> Tensor | None:
        """float32 [3, S, S] where the picture is its only tile and was prepared already."""
        ...


C = TypeVar("C", bound=Cut)


def encode_tiles(
    encoder: Encoder, pictures: Iterable[C], batch_size: int
) -> Iterator[tuple[list[tuple[C, Tile]], Features]]:
    """Batches of tiles in order, each with its features; a batch may hold tiles of several pictures.

    Pictures are taken when their first tile is needed, so memory holds two batches of prepared tiles
    and the pictures that these belong to, however many there are.
    """
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        waiting: deque[tuple[C, Tile, Future[Tensor] | Tensor]] = deque()
        try:
            for picture in pictures:
                for tile in picture.places.tiles:
                    waiting.append((picture, tile, _prepared(pool, encoder, picture, tile)))
                    if len(waiting) == 2 * batch_size:
                        yield _encoded(encoder, waiting, batch_size)
            while waiting:
                yield _encoded(encoder, waiting, batch_size)
        finally:
            for _, _, pixels in waiting:
                if isinstance(pixels, Future):
                    pixels.cancel()


def prepare_tile(encoder: Encoder, image: Image.Image | Strips, tile: Tile) -> Tensor:
    """The pixels of one tile, float32 [3, S, S]; any thread."""
    return encoder.prepare(image.crop(tile.box))


def _prepared(
    pool: ThreadPoolExecutor, encoder: Encoder, picture: C, tile: Tile
) -> Future[Tensor] | Tensor:
    ready = picture.pixels if picture.places.whole else None
    return pool.submit(prepare_tile, encoder, picture.image, tile) if ready is None else ready


def _encoded(
    encoder: Encoder, waiting: deque[tuple[C, Tile, Future[Tensor] | Tensor]], batch_size: int
) -> tuple[list[tuple[C, Tile]], Features]:
    batch = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
    pixels = [p.result() if isinstance(p, Future) else p for _, _, p in batch]
    return [(picture, tile) for picture, tile, _ in batch], encoder.encode_prepared(pixels)
