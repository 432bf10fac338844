"""How a picture is cut into overlapping tiles, and how large they should be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mrad.errors import MRADError

Size = tuple[int, int]
"""Width, height."""

OVERLAP = 0.25
COARSER = 2
"""How many times larger tiles are where all of a picture is looked at coarsely first."""
MOST_OVERLAP = 0.9
SHRINK = 2.5
"""`auto`, where no mask says more: a tile is shrunk by so much to fit the encoder."""
PATCHES = 1.0
"""`auto`: the smallest defects should be so many patches wide. Smaller tiles show them larger, and less of
the part around them."""


@dataclass(frozen=True)
class Tiling:
    """Square tiles of `side` pixels of the picture; neighbours share `overlap` of their side.

    Along an axis that is shorter than a tile, the tile is as long as the axis: a picture that is
    smaller than a tile is one tile.

    With `closely` below 1 a query is looked at coarsely first, in tiles `COARSER` times as large, and
    closely at this share of its tiles alone: those that were most anomalous then. A memory's own
    pictures are always looked at closely.
    """

    side: int
    overlap: float = OVERLAP
    closely: float = 1.0

    def __post_init__(self) -> None:
        if self.side < 16:
            raise MRADError(f"a tile of {self.side} pixels is too small; take 16 or more")
        if not 0 <= self.overlap <= MOST_OVERLAP:
            raise MRADError(f"the overlap of tiles lies in [0, {MOST_OVERLAP}], not {self.overlap}")
        if not 0 < self.closely <= 1:
            raise MRADError(
                f"the share of tiles that are looked at closely lies in (0, 1], not {self.closely}"
            )

    def starts(self, length: int) -> tuple[int, ...]:
        """Where tiles begin along an axis of so many pixels: even steps, the last ends with it."""
        if length <= self.side:
            return (0,)
        step = max(1, round(self.side * (1 - self.overlap)))
        count = math.ceil((length - self.side) / step)
        return (*(step * place for place in range(count)), length - self.side)

    def count(self, size: Size) -> int:
        """Tiles of a picture of `size`."""
        return len(self.starts(size[0])) * len(self.starts(size[1]))

    @property
    def coarser(self) -> Tiling:
        """The tiles of the first look."""
        return Tiling(COARSER * self.side, self.overlap)

    def to_json(self) -> dict[str, Any]:
        """As a bank keeps it."""
        facts = {"side": self.side, "overlap": self.overlap}
        return facts if self.closely == 1 else facts | {"closely": self.closely}

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Tiling:
        """Inverse of `to_json`."""
        share = float(facts.get("closely", 1.0))
        return cls(int(facts["side"]), float(facts["overlap"]), share)


def auto_tiling(
    sizes: Sequence[Size],
    image_size: int,
    grid: int,
    defects: Sequence[float] = (),
    overlap: float = OVERLAP,
) -> Tiling | None:
    """Tiles that suit pictures of these `sizes`; None where the picture as a whole does.

    Args:
        sizes: width, height of the pictures.
        image_size: side of the encoder's input, pixels.
        grid: patches along that side.
        defects: shorter side of each marked defect, pixels of its picture; may be empty.
        overlap: of neighbours, as in `Tiling`.

    The side is `SHRINK` times the encoder's input. Where nine of ten defects would then be less than
    `PATCHES` patches wide, it is smaller, but never below the encoder's input: what is smaller than a
    patch there is beyond this encoder. It never exceeds the short side of the median picture, so that
    tiles are square. Pictures whose longer side is no more than half as long again as a tile are not
    cut.
    """
    if not sizes:
        return None
    short = sorted(min(size) for size in sizes)[len(sizes) // 2]
    long = sorted(max(size) for size in sizes)[len(sizes) // 2]
    side = SHRINK * image_size
    if defects:
        small = sorted(defects)[len(defects) // 10]
        side = min(side, small * grid / PATCHES)
    side = min(max(side, image_size), short)
    return None if long <= 1.5 * side else Tiling(max(16, round(side)), overlap)
