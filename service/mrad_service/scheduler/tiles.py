"""Large images in the queue: the tiles of one take turns with everyone's images, and share batches."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from mrad.detector import Decoded, Detector
from mrad.encoder.stream import prepare_tile
from mrad.images.layout import Tile
from mrad.tiled import Canvas
from mrad_service.scheduler.queue import BLANK, Item, Job, Source

OPEN = 2
"""Images that are cut and under way at once, each with all its pixels in memory."""


@dataclass(eq=False)
class TileItem(Item):
    """One tile of an image on its way."""

    parent: Item = None  # type: ignore[assignment]
    tile: Tile = None  # type: ignore[assignment]
    canvas: Canvas = None  # type: ignore[assignment]
    """Where the tiles of the image are gathered."""
    pixels: int = 0

    @property
    def whole(self) -> Item:
        """See `Item`."""
        return self.parent

    def prepare(self, detector: Detector) -> Decoded:
        """Cut it out and scale it."""
        decoded = self.parent.decoded
        if decoded is None:  # its image was settled meanwhile
            return Decoded(None, BLANK, self.canvas.places)
        pixels = prepare_tile(detector.encoder, decoded.looked_at, self.tile)
        return Decoded(pixels, BLANK, decoded.places)


class Cut:
    """An opened image as a source of its tiles."""

    def __init__(self, item: Item, canvas: Canvas) -> None:
        self._item, self._canvas = item, canvas
        self._tiles = deque(canvas.places.tiles)

    @property
    def waiting(self) -> int:
        """See `Source`."""
        return len(self._tiles)

    @property
    def cost(self) -> int:
        """Its image's pixels are held already."""
        return 0

    def take(self) -> Item | None:
        """See `Source`."""
        if not self._tiles or self._item.settled:
            self._tiles.clear()
            return None
        item = self._item
        return TileItem(
            item.job, item.index, b"", parent=item, tile=self._tiles.popleft(), canvas=self._canvas
        )


def is_cut(source: Source) -> bool:
    """Whether the images of a source are cut into tiles, and so are large."""
    return isinstance(source, Job) and source.layout.tiling is not None
