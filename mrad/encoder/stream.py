"""Tiles of any number of pictures through the encoder in batches, prepared ahead in threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Sequence
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


Batch: TypeAlias = "tuple[list[tuple[C, Tile]], list[Future[Tensor] | Tensor], bool]"
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
        waiting: deque[tuple[C, Tile, Future[Tensor] | Tensor]] = deque()
        alone = True
        try:
            for picture in chain(pictures, [None]):
                if picture is None:
                    alone = alone and len(waiting) <= batch_size
                    while waiting:
                        yield _taken(waiting, batch_size, alone)
                    alone = True
                    continue
                for tile in picture.places.tiles:
                    waiting.append((picture, tile, _prepared(pool, encoder, picture, tile)))
                    if len(waiting) == 2 * batch_size:
                        alone = False
                        yield _taken(waiting, batch_size, alone)
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


def _taken(
    waiting: deque[tuple[C, Tile, Future[Tensor] | Tensor]], batch_size: int, alone: bool
) -> Batch[C]:
    batch = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
    return [(picture, tile) for picture, tile, _ in batch], [pixels for *_, pixels in batch], alone


def _encoded(encoder: Encoder, pixels: Sequence[Future[Tensor] | Tensor], threads: int) -> Features:
    if threads != torch.get_num_threads():  # a thread's own number
        torch.set_num_threads(threads)
    return encoder.encode_prepared([p.result() if isinstance(p, Future) else p for p in pixels])
