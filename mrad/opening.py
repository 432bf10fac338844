"""An image on its way to the encoder: decoded, and what of it is looked at."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from mrad.errors import LayoutError
from mrad.images.align import Move
from mrad.images.layout import Layout, Places
from mrad.images.options import ReadOptions
from mrad.images.reader import Picture, read_image
from mrad.images.strips import Strips, open_strips
from mrad.tiled import Canvas
from mrad.types import ImageInput, Prediction


@dataclass(frozen=True)
class Decoded:
    """An image on its way to the encoder."""

    pixels: Tensor | None
    """float32 [3, S, S], from `Encoder.prepare`; None where the image is cut into tiles."""
    image: Image.Image | Strips
    """The upright input, L or RGB; one that is read when a tile asks, where it is very large."""
    places: Places
    """What of it is looked at."""
    warnings: tuple[str, ...] = ()
    """What was assumed or is odd about it."""
    orientation: int = 1
    """The tag that turned it, as EXIF numbers it: a mask may lie on the pixels as stored."""
    levels: tuple[float, float] | None = None
    """Mean and deviation of its levels, by which the memory knows what its images are like."""
    upright: Image.Image | None = None
    """The input in the frame of the layout's reference picture; None where it is not aligned."""
    move: Move | None = None
    """How the input lies to that."""

    @property
    def size(self) -> tuple[int, int]:
        """Width, height of the upright input."""
        return self.places.size

    @property
    def looked_at(self) -> Image.Image | Strips:
        """What tiles are cut from."""
        return self.image if self.upright is None else self.upright

    @property
    def shown(self) -> Places:
        """What is looked at, in the input's own pixels."""
        return self.places if self.move is None else self.places.moved(self.move)

    def finished(self, found: Prediction) -> Prediction:
        """A prediction in the input's own pixels, with what there is to say about it."""
        own = found if self.move is None else self.move.prediction(found)
        return own.warned(self.warnings)


@dataclass(frozen=True, eq=False)
class TiledImage:
    """An image that is cut, and where its tiles are gathered."""

    decoded: Decoded
    canvas: Canvas
    own: int
    """Entry row that it must not retrieve, or -1."""

    @property
    def image(self) -> Image.Image | Strips:
        """See `mrad.encoder.stream.Cut`."""
        return self.decoded.looked_at

    @property
    def places(self) -> Places:
        """See `mrad.encoder.stream.Cut`."""
        return self.canvas.places

    @property
    def pixels(self) -> Tensor | None:
        """See `mrad.encoder.stream.Cut`."""
        return self.decoded.pixels


def open_picture(
    source: ImageInput, options: ReadOptions, layout: Layout
) -> tuple[Picture, Image.Image | Strips, Places]:
    """What is known of a picture, the picture itself, and what of it (aligned, where it is) is looked at.

    A very large one that is cut into tiles is read by rows where that can be (`mrad.images.strips`).
    Raises `ImageError`.
    """
    streams = layout.tiling is not None and layout.align is None
    if streams and (strips := open_strips(source, options)) is not None:
        places = layout.places(strips.size)
        if not places.whole:
            return strips.picture(), strips, places
    picture = read_image(source, options=options)
    return picture, picture.image, layout.places(picture.size)


def aligned(
    image: Image.Image, layout: Layout
) -> tuple[Move | None, Image.Image | None, tuple[str, ...]]:
    """How a picture lies to its layout's reference, the picture in that frame, and what is doubtful."""
    if layout.align is None:
        return None, None, ()
    try:
        move = layout.align.find(image)
        return move, move.upright(image), ()
    except LayoutError as error:
        doubt = f"not_aligned: {error}; its parts are taken to be where they were drawn"
        return None, None, (doubt,)
