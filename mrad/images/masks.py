"""The one way to a mask: whatever people's tools write -> which pixels are defective.

What is unambiguous is understood, whatever the file is called; what is not is refused, or taken with
a warning that says what share it marks. The rules stand in docs/images.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from mrad.errors import ImageError, MaskError
from mrad.images import marks
from mrad.images.decoding.raster import TURNS, Raster
from mrad.images.options import ReadOptions
from mrad.images.reader import guarded, named, read_raster
from mrad.types import BoolArray, ImageInput

Orientation = Literal["auto", "upright", "stored"]
ORIENTATIONS: tuple[Orientation, ...] = ("auto", "upright", "stored")
MOST = 0.5
"""Share of marked pixels above which it is asked whether the mask is inverted."""


@dataclass(frozen=True)
class Mask:
    """What a mask says of each pixel of its upright image."""

    anomalous: BoolArray
    """[height, width]."""
    ignore: BoolArray
    """Pixels that belong to neither class: a border drawn around defects."""
    warnings: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Marked pixels of all, 0 to 1."""
        return float(self.anomalous.mean())


def read_mask(
    source: ImageInput,
    size: tuple[int, int],
    *,
    image_orientation: int = 1,
    orientation: Orientation = "auto",
    options: ReadOptions | None = None,
) -> Mask:
    """Decode the mask of an image.

    Args:
        size: width, height of the upright image.
        image_orientation: the tag that turned the image (`Picture.orientation`).
        orientation: how the mask lies where it has no tag of its own: as the `upright` image, as
            its `stored` pixels (tools that ignore the tag), or found out by its size.
        options: limits of reading.

    Raises `MaskError` when its size differs from the image's, when it cannot be read, or when what
    it marks cannot be told.
    """
    options = named(options, source, "the mask")
    raster, (marked, ignore, notes) = _marked(source, options)
    turn, more = _turn(raster, marked.shape[::-1], size, image_orientation, orientation)
    marked, ignore = (_turned(array, turn) for array in (marked, ignore))
    if marked.shape[::-1] != tuple(size):
        raise MaskError(
            f"{options.name}: the mask is {marked.shape[::-1]} but its image is {tuple(size)} (w, h): save it "
            "at the image's own size"
        )
    # Good parts are zeros in a mask, so a file that ends with zeros needs no warning.
    said = [text for text in raster.warnings if not text.startswith("zero_tail")]
    warnings = [*said, *_pages(raster), *notes, *more]
    mask = Mask(marked & ~ignore, ignore, tuple(warnings))
    return replace(mask, warnings=(*mask.warnings, *_share(mask)))


def read_any_size(source: ImageInput, options: ReadOptions | None = None) -> Mask:
    """A mask alone, without the image that it belongs to: to see whether it marks anything.

    Raises `MaskError`.
    """
    _, (marked, ignore, notes) = _marked(source, named(options, source, "the mask"))
    return Mask(marked & ~ignore, ignore, tuple(notes))


def _marked(source: ImageInput, options: ReadOptions) -> tuple[Raster, marks.Marked]:
    try:
        raster = guarded(lambda: read_raster(source, options, indices=True), options.name)
    except ImageError as error:
        raise MaskError(f"the mask cannot be read: {error}") from error
    try:
        return raster, marks.of(raster, options.name)
    except ImageError as error:
        raise MaskError(str(error)) from error


def _turn(
    raster: Raster,
    have: tuple[int, ...],
    size: tuple[int, int],
    image: int,
    asked: Orientation,
) -> tuple[int, list[str]]:
    """The tag by which the mask is turned, and what is doubtful about it."""
    own = raster.orientation if raster.orientation in TURNS else 1
    if own != 1:
        return own, []
    if image not in TURNS or asked == "upright":
        return 1, []
    if asked == "stored":
        return image, []
    stored = size[::-1] if image >= 5 else size
    if tuple(have) == tuple(stored) and tuple(have) != tuple(size):
        return image, []
    if tuple(have) != tuple(size) or tuple(stored) != tuple(size):
        return 1, []  # of the wrong size, or only upright does it fit
    return 1, [
        "mask_orientation: the image is turned by its orientation tag, the mask has none and would "
        "fit both ways; it is taken as drawn on the upright image. Say which with "
        "--mask-orientation or the field mask_orientation (upright or stored)"
    ]


def _turned(array: BoolArray, orientation: int) -> BoolArray:
    turns: dict[int, Callable[[Any], Any]] = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.T,
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].T,
        8: np.rot90,
    }
    turn = turns.get(orientation)
    return array if turn is None else np.ascontiguousarray(turn(array))


def _pages(raster: Raster) -> list[str]:
    if raster.pages == 1:
        return []
    return [
        f"mask_pages: the mask has {raster.pages} pages; page {raster.page + 1} is taken, and the "
        "others are left out: join them where they mark defects too"
    ]


def _share(mask: Mask) -> list[str]:
    marked = mask.anomalous
    if not marked.any():
        return ["mask_empty: the mask is empty: it marks no pixel"]
    if marked.all():
        return ["mask_full: the mask marks every pixel of the image"]
    if mask.share <= MOST:
        return []
    edge = np.concatenate([marked[0], marked[-1], marked[:, 0], marked[:, -1]])
    inverted = " and all but an island: it looks inverted" if edge.mean() > 0.95 else ""
    return [
        f"mask_mostly: the mask marks {mask.share:.1%} of the image{inverted}; defects are what is "
        "marked, so invert it if white (or 1) is the good part"
    ]
