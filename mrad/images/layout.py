"""What of a picture is looked at: region of interest, named parts, tiles. A bank keeps its own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from mrad.errors import DataError, LayoutError
from mrad.images.align import Move, Reference
from mrad.images.regions import Area
from mrad.images.tiles import Size, Tiling
from mrad.types import WHOLE, BoolArray, Box, Place


@dataclass(frozen=True)
class Tile:
    """A rectangle of a picture that the encoder sees as one image."""

    number: int
    """Counted over the whole layout: what a key keeps."""
    box: Box


@dataclass(frozen=True)
class Section:
    """A part of a picture that gets a score of its own; without parts, all that is looked at."""

    name: str
    box: Box
    inside: BoolArray | None
    """Which pixels of `box` count, [h, w]; None for all."""
    columns: tuple[int, ...]
    """Where tiles begin, x from the left of `box`."""
    rows: tuple[int, ...]
    tile: Size
    """Width, height of each tile."""
    first: int
    """Number of its first tile."""
    only: frozenset[int] | None = None
    """Numbers of the tiles that are looked at; None for all."""

    @property
    def size(self) -> Size:
        """Width, height of `box`."""
        return self.box[2] - self.box[0], self.box[3] - self.box[1]

    @cached_property
    def tiles(self) -> tuple[Tile, ...]:
        """Row by row; those without a pixel that counts are left out."""
        return tuple(t for t in self.every if self.only is None or t.number in self.only)

    @cached_property
    def every(self) -> tuple[Tile, ...]:
        """The same with those that are not looked at (`only`)."""
        return tuple(tile for tile in self._all() if self.inside is None or self.counts(tile).any())

    def counts(self, tile: Tile) -> BoolArray:
        """Which pixels of a tile count, [h, w]."""
        left, top, right, bottom = tile.box
        if self.inside is None:
            return np.ones((bottom - top, right - left), dtype=bool)
        x, y = self.box[:2]
        return self.inside[top - y : bottom - y, left - x : right - x]

    def box_of(self, number: int) -> Box:
        """The box of a tile by its number."""
        row, column = divmod(number - self.first, len(self.columns))
        left, top = self.box[0] + self.columns[column], self.box[1] + self.rows[row]
        return left, top, left + self.tile[0], top + self.tile[1]

    def _all(self) -> Iterator[Tile]:
        for number in range(self.first, self.first + len(self.columns) * len(self.rows)):
            yield Tile(number, self.box_of(number))


@dataclass(frozen=True)
class Places:
    """All that is looked at in one picture."""

    size: Size
    sections: tuple[Section, ...]
    coarse: Places | None = None
    """What is looked at first, where only some of the tiles are looked at then."""
    closely: float = 1.0
    """The share of them."""

    @cached_property
    def tiles(self) -> tuple[Tile, ...]:
        """Those of all sections."""
        return tuple(tile for section in self.sections for tile in section.tiles)

    @property
    def several(self) -> bool:
        """Whether the picture is cut, however few of its tiles are looked at."""
        return sum(len(section.every) for section in self.sections) > 1

    @property
    def whole(self) -> bool:
        """Whether one tile covers the picture and all of it counts: nothing is cut."""
        return len(self.sections) == 1 and self._covered(self.sections[0])

    def _covered(self, section: Section) -> bool:
        return section.tile == self.size and section.inside is None

    def counted(self) -> BoolArray | None:
        """Which of the picture's pixels are of interest, [H, W]; None for all."""
        if len(self.sections) == 1 and self.sections[0].size == self.size:
            return self.sections[0].inside
        found = np.zeros(self.size[::-1], dtype=bool)
        for section in self.sections:
            left, top, right, bottom = section.box
            inside = True if section.inside is None else section.inside
            found[top:bottom, left:right] |= inside
        return found

    def moved(self, move: Move) -> Places:
        """What is looked at, as it lies in a picture that was brought upright: sections with a mask."""
        sections = []
        for section in self.sections:
            box, inside = move.region(section.box, section.inside)
            sections.append(replace(section, box=box, inside=inside))
        return replace(self, sections=tuple(sections))

    def place_of(self, number: int) -> Place | None:
        """Where in its picture a tile lies; None for no such tile."""
        for section in self.sections:
            if section.first <= number < section.first + len(section.columns) * len(section.rows):
                box = section.box_of(number)
                if box == (0, 0, *self.size):
                    return WHOLE
                shares = (edge / self.size[i % 2] for i, edge in enumerate(box))
                left, top, right, bottom = (round(share, 4) for share in shares)
                return left, top, right, bottom
        return None

    def boxes(self) -> dict[Place | None, Box]:
        """The box of each tile, by its place."""
        return {self.place_of(tile.number): tile.box for tile in self.tiles}

    def box_of(self, number: int) -> Box | None:
        """The box of a tile by its number; None where it is the picture, or there is no such tile."""
        for section in self.sections:
            if section.first <= number < section.first + len(section.columns) * len(section.rows):
                box = section.box_of(number)
                return None if box == (0, 0, *self.size) else box
        return None


@dataclass(frozen=True)
class Layout:
    """How every picture of a bank, and every query to it, is looked at."""

    tiling: Tiling | None = None
    roi: Area | None = None
    parts: tuple[Area, ...] = field(default=())
    align: Reference | None = None
    """Every picture is aligned with it before regions are cut out; None: parts do not move."""

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        if len(set(names)) != len(names) or "" in names:
            raise DataError(f"every part needs a name of its own, these are {names}")

    @property
    def plain(self) -> bool:
        """Whether every picture is looked at as a whole."""
        return self == PLAIN

    def places(self, size: Size) -> Places:
        """What is looked at in a picture of `size`.

        Raises `LayoutError` where a region does not fit the picture.
        """
        sections: list[Section] = []
        first = 0
        for area in self.parts or (self.roi,):
            box, inside = ((0, 0, *size), None) if area is None else area.inside(size)
            if self.parts and self.roi is not None:
                inside = _both(box, inside, *self.roi.inside(size))
                if not inside.any():
                    raise LayoutError(f"part {area.name!r} lies outside the region of interest")  # type: ignore[union-attr]
            width, height = box[2] - box[0], box[3] - box[1]
            side = self.tiling.side if self.tiling else max(width, height)
            tiling = self.tiling or Tiling(max(16, side))
            found = Section(
                "" if area is None else area.name,
                box,
                inside,
                tiling.starts(width),
                tiling.starts(height),
                (min(tiling.side, width), min(tiling.side, height)),
                first,
            )
            sections.append(found)
            first += len(found.columns) * len(found.rows)
        places = Places(size, tuple(sections))
        if self.tiling is None or self.tiling.closely == 1:
            return places
        coarse = replace(self, tiling=self.tiling.coarser).places(size)
        share = self.tiling.closely
        saves = len(coarse.tiles) + share * len(places.tiles) < len(places.tiles)
        return replace(places, coarse=coarse, closely=share) if saves else places

    def with_regions(
        self, roi: Area | None, parts: tuple[Area, ...], align: Reference | bool = False
    ) -> Layout:
        """The same with other regions; `align`: what pictures are aligned with, True for its own reference.

        Raises `LayoutError` where it has none.
        """
        own = self.align if align is True else align or None
        if align is True and own is None:
            raise LayoutError(
                "the memory's pictures were not aligned with a reference picture, so there is none to "
                'align with: name one ("align": "picture.png" in parts.json, not in a request)'
            )
        return replace(self, roi=roi, parts=parts, align=own)

    def looked_at_closely(self, share: float) -> Layout:
        """The same with another share of tiles that are looked at closely (`Tiling.closely`).

        Raises `LayoutError` where pictures are not cut.
        """
        if self.tiling is None:
            raise LayoutError(
                "a share of tiles to look at closely needs tiles, and this memory does not cut "
                "pictures: build one with --tile"
            )
        return replace(self, tiling=replace(self.tiling, closely=share))

    def to_json(self) -> dict[str, Any]:
        """As a bank's metadata keep it; only what is set."""
        facts: dict[str, Any] = {}
        if self.tiling is not None:
            facts["tiling"] = self.tiling.to_json()
        if self.roi is not None:
            facts["roi"] = self.roi.to_json()
        if self.parts:
            facts["parts"] = [part.to_json() for part in self.parts]
        if self.align is not None:
            facts["align"] = self.align.to_json()
        return facts

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Layout:
        """Inverse of `to_json`. Raises `DataError`, `MRADError`."""
        try:
            tiling = facts.get("tiling")
            return cls(
                None if tiling is None else Tiling.from_json(tiling),
                Area.from_json(facts["roi"]) if facts.get("roi") else None,
                tuple(Area.from_json(part) for part in facts.get("parts", ())),
                Reference.from_json(facts["align"]) if facts.get("align") else None,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"the layout of the pictures cannot be read: {error!r}") from error


PLAIN = Layout()
"""The picture as a whole, as the paper looks at it."""


def cell_box(cell: tuple[int, int], grid: int, tile: Box) -> Box:
    """The pixels of a patch of a tile: `cell` row and column on a grid of `grid` patches a side."""
    (row, column), (left, top, right, bottom) = cell, tile
    width, height = right - left, bottom - top
    return (
        left + math.floor(column * width / grid),
        top + math.floor(row * height / grid),
        left + math.ceil((column + 1) * width / grid),
        top + math.ceil((row + 1) * height / grid),
    )


def _both(one: Box, inside: BoolArray | None, other: Box, within: BoolArray | None) -> BoolArray:
    """Of the pixels of box `one`, those that count there and in box `other`."""
    height, width = one[3] - one[1], one[2] - one[0]
    found = np.zeros((height, width), dtype=bool)
    left, top = max(one[0], other[0]), max(one[1], other[1])
    right, bottom = min(one[2], other[2]), min(one[3], other[3])
    if left >= right or top >= bottom:
        return found
    rows, columns = slice(top - one[1], bottom - one[1]), slice(left - one[0], right - one[0])
    found[rows, columns] = True if inside is None else inside[rows, columns]
    if within is not None:
        found[rows, columns] &= within[
            top - other[1] : bottom - other[1], left - other[0] : right - other[0]
        ]
    return found
