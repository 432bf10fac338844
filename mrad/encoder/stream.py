"""Tiles of any number of pictures through the encoder in batches, prepared ahead in threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import chain, islice
from typing import Protocol, TypeAlias, TypeVar

import torch
from PIL import Image
from torch import Tensor

from mrad.encoder.device import Lanes
from mrad.encoder.encoder import Encoder, Features
from mrad.images.layout import Places, Tile
from mrad.images.strips import Strips


class Cut(Protocol):
    """A decoded picture and what of it is looked at."""

    @property
    def image(self) -> Image.Image | Strips:
        """Upright, L or RGB."""
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


TOGETHER = 4
"""Tiles that are prepared at once."""
Pixels: TypeAlias = "tuple[Future[list[Tensor]], int] | Tensor"
"""Of one tile: which of those prepared together; or as they are."""
Batch: TypeAlias = "tuple[list[tuple[C, Tile]], list[Pixels], bool]"
"""Tiles with their pictures, their pixels, and whether no other batch has tiles of the same group."""


def encode_tiles(
    encoder: Encoder, pictures: Iterable[C | None], batch_size: int
) -> Generator[tuple[list[tuple[C, Tile]], Features], None, None]:
    """Batches of tiles in order, each with its features; a batch may hold tiles of several pictures.

    None among the pictures ends a group: no batch holds tiles of two, but those of two may be under way
    at once. Features do not depend on the other groups, to the last bit: the only batch of a group is
    encoded on all cores wherever it stands, since the number of threads shows in the last bits.

    Pictures are taken when their first tile is needed, so memory holds a few batches of prepared tiles
    and the pictures that these belong to, however many there are. On the CPU batches are encoded side
    by side (`mrad.encoder.device`).
    """
    with closing(_batches(encoder, pictures, batch_size)) as batches:
        ahead, cores = list(islice(batches, 2)), torch.get_num_threads()
        lanes = Lanes.of(encoder.device, cores)
        if lanes.count == 1 or len(ahead) < 2:
            for tiles, pixels, _ in chain(ahead, batches):
                yield tiles, _encoded(encoder, pixels, cores)
        else:
            yield from _in_lanes(encoder, chain(ahead, batches), lanes)


def _in_lanes(
    encoder: Encoder, batches: Iterable[Batch[C]], lanes: Lanes
) -> Generator[tuple[list[tuple[C, Tile]], Features], None, None]:
    """Batches encoded side by side; meanwhile the caller's thread has a lane's share of the cores."""
    encoding: deque[tuple[list[tuple[C, Tile]], Future[Features]]] = deque()
    with ThreadPoolExecutor(lanes.count) as pool:
        torch.set_num_threads(lanes.share)
        try:
            for tiles, pixels, alone in batches:
                threads = lanes.cores if alone else lanes.share
                encoding.append((tiles, pool.submit(_encoded, encoder, pixels, threads)))
                if len(encoding) > lanes.count:
                    tiles, features = encoding.popleft()
                    yield tiles, features.result()
            while encoding:
                tiles, features = encoding.popleft()
                yield tiles, features.result()
        finally:
            torch.set_num_threads(lanes.cores)
            for _, features in encoding:
                features.cancel()


def _batches(
    encoder: Encoder, pictures: Iterable[C | None], batch_size: int
) -> Generator[Batch[C], None, None]:
    """Batches of tiles whose pixels are prepared in threads, one batch ahead."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        waiting: deque[tuple[C, Tile, Pixels]] = deque()
        alone = True
        try:
            for picture in chain(pictures, [None]):
                if picture is None:
                    alone = alone and len(waiting) <= batch_size
                    while waiting:
                        yield _taken(waiting, batch_size, alone)
                    alone = True
                    continue
                for tile, pixels in _prepared(pool, encoder, picture):
                    waiting.append((picture, tile, pixels))
                    if len(waiting) == 2 * batch_size:
                        alone = False
                        yield _taken(waiting, batch_size, alone)
        finally:
            for _, _, pixels in waiting:
                if not isinstance(pixels, Tensor):
                    pixels[0].cancel()


def prepare_tile(encoder: Encoder, image: Image.Image | Strips, tile: Tile) -> Tensor:
    """The pixels of one tile, float32 [3, S, S]; any thread."""
    return encoder.prepare(image.crop(tile.box))


def prepare_tiles(
    encoder: Encoder, image: Image.Image | Strips, tiles: Sequence[Tile]
) -> list[Tensor]:
    """The same of several."""
    return encoder.prepare_several([image.crop(tile.box) for tile in tiles])


def _prepared(
    pool: ThreadPoolExecutor, encoder: Encoder, picture: C
) -> Iterator[tuple[Tile, Pixels]]:
    """Tiles of a picture with their pixels; none is prepared much before it is asked for."""
    ready, tiles = picture.pixels if picture.places.whole else None, picture.places.tiles
    if ready is not None:
        yield tiles[0], ready
        return
    for first in range(0, len(tiles), TOGETHER):
        part = tiles[first : first + TOGETHER]
        pixels = pool.submit(prepare_tiles, encoder, picture.image, part)
        yield from ((tile, (pixels, place)) for place, tile in enumerate(part))


def _taken(waiting: deque[tuple[C, Tile, Pixels]], batch_size: int, alone: bool) -> Batch[C]:
    batch = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
    return [(picture, tile) for picture, tile, _ in batch], [pixels for *_, pixels in batch], alone


def _encoded(encoder: Encoder, pixels: Sequence[Pixels], threads: int) -> Features:
    if threads != torch.get_num_threads():  # a thread's own number
        torch.set_num_threads(threads)
    ready = [p if isinstance(p, Tensor) else p[0].result()[p[1]] for p in pixels]
    return encoder.encode_prepared(ready)
