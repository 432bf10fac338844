"""How large a dataset's pictures and defects are, and the layout that a build looks at them with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from mrad.encoder.encoder import Encoder
from mrad.errors import DataError, ImageError, MaskError, MRADError
from mrad.images.layout import PLAIN, Layout
from mrad.images.reader import read_size
from mrad.images.regions import read_alignment, read_parts, read_roi
from mrad.images.tiles import OVERLAP, Size, Tiling, auto_tiling
from mrad_indexer.datasets import Dataset, Record

NOT_ALIGNED = "it could not be aligned"
"""Why a picture is left out where a layout aligns pictures with a reference."""
LOOKED_AT = 200
"""Pictures, spread over the dataset, whose size is read."""
MASKS = 40
"""Masks, spread over the dataset, whose defects are measured."""


@dataclass(frozen=True)
class Extent:
    """Sizes of some pictures, and the shorter side of each defect in some masks, pixels."""

    sizes: list[Size]
    defects: list[float]

    @property
    def middle(self) -> Size:
        """Median width and height."""
        return (
            int(median(size[0] for size in self.sizes)),
            int(median(size[1] for size in self.sizes)),
        )


def extent_of(dataset: Dataset, image_size: int) -> Extent:
    """Read the headers of some pictures, and some masks; what cannot be read is left out.

    Masks are read only where pictures are larger than the encoder's input, of `image_size` pixels.
    """
    records = spread(dataset.records, LOOKED_AT)
    sizes = [size for size in map(size_of, (record.image for record in records)) if size]
    defects: list[float] = []
    if any(max(size) > image_size for size in sizes):
        for record in spread([r for r in dataset.records if r.anomalous and r.mask], MASKS):
            defects += _defects(record)
    return Extent(sizes, defects)


def size_of(path: Path) -> Size | None:
    """Width, height of the upright picture from its header; None where it cannot be read."""
    try:
        return read_size(path)
    except ImageError:
        return None


def _defects(record: Record) -> list[float]:
    """The width of each marked region: of its bounding box, or of a square of its area."""
    from skimage import measure

    size = size_of(record.image)
    if size is None:
        return []
    try:
        mask = record.read_mask(size)
    except MaskError:
        return []
    if mask is None or not mask.any():
        return []
    found = []
    for part in measure.regionprops(measure.label(mask, connectivity=2)):
        top, left, bottom, right = part.bbox
        found.append(float(min(bottom - top, right - left, np.sqrt(part.area))))
    return found


def spread(records: Sequence[Record], count: int) -> list[Record]:
    """At most so many of the records, evenly from the first to the last."""
    places = np.linspace(0, len(records) - 1, min(count, len(records))).astype(int)
    return [records[place] for place in places]


def layout_of(
    dataset: Dataset,
    encoder: Encoder,
    *,
    tile: str | None = None,
    overlap: float = OVERLAP,
    closely: float = 1.0,
    roi: Path | None = None,
    parts: Path | None = None,
) -> tuple[Layout, Extent]:
    """The layout that was asked for, and what it follows from.

    Args:
        dataset: the pictures.
        encoder: what they are shown to.
        tile: a number of pixels, `auto`, or None for none.
        overlap: share of a tile that its neighbour shows too.
        closely: see `Tiling`.
        roi: file of a region of interest.
        parts: file of named parts.

    Raises `DataError`, `MRADError`.
    """
    extent = extent_of(dataset, encoder.image_size)
    if not extent.sizes:
        if tile is None and roi is None and parts is None:
            return PLAIN, extent
        raise DataError(f"{dataset.root} holds no picture whose size can be read")
    drawn_on = extent.sizes[0]
    area = None if roi is None else read_roi(roi, drawn_on)
    named = () if parts is None else read_parts(parts, drawn_on)
    tiling = tiling_of(tile, overlap, extent, Layout(None, area, named), encoder)
    good = next((record.image for record in dataset.records if not record.anomalous), None)
    align = False if parts is None else read_alignment(parts, good)
    layout = Layout(tiling).with_regions(area, named, align)
    if closely < 1 and (tiling is not None or tile != "auto"):
        layout = layout.looked_at_closely(closely)
    return layout, extent


def tiling_of(
    tile: str | None, overlap: float, extent: Extent, layout: Layout, encoder: Encoder
) -> Tiling | None:
    """Tiles as asked for; `auto` follows the sizes of what is looked at. Raises `MRADError`."""
    if tile is None:
        return None
    if tile != "auto":
        try:
            return Tiling(int(tile), overlap)
        except ValueError as error:
            raise MRADError(f"--tile is a number of pixels, or auto, not {tile!r}") from error
    return suggested(extent, layout, encoder, overlap)


def suggested(
    extent: Extent, layout: Layout, encoder: Encoder, overlap: float = OVERLAP
) -> Tiling | None:
    """What `auto` chooses; None where pictures, or their parts, do well as a whole."""
    sizes = extent.sizes
    if layout.roi or layout.parts:
        sizes = [section.size for section in layout.places(sizes[0]).sections]
    return auto_tiling(sizes, encoder.image_size, encoder.grid, extent.defects, overlap)
