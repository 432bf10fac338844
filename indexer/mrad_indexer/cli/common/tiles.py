"""What commands say about tiles, regions of interest and parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mrad.images.guard import SCALED
from mrad.words import counted
from mrad_indexer.cli.common.console import say, warn

if TYPE_CHECKING:
    from mrad.encoder.encoder import Encoder
    from mrad.images.layout import Layout
    from mrad.images.tiles import Size
    from mrad_indexer.cutting import Extent

SHARD = 64
"""Tiles in a shard, about."""
SIZES = 4
"""Sizes that are named, the most frequent first."""


def describe(layout: Layout) -> str:
    """One line: tiles, region of interest, parts."""
    found = []
    if layout.tiling is not None:
        share = f"{100 * layout.tiling.overlap:.0f} % of which neighbours share"
        found.append(f"tiles of {layout.tiling.side} px, {share}")
        if layout.tiling.closely < 1:
            found.append(
                f"{100 * layout.tiling.closely:.0f} % of them closely, after a coarse look at all"
            )
    if layout.roi is not None:
        found.append("a region of interest")
    if layout.parts:
        found.append(f"parts: {', '.join(part.name for part in layout.parts)}")
    if layout.align is not None:
        found.append("aligned with a reference picture")
    return "; ".join(found) or "each picture as a whole"


def say_layout(layout: Layout, extent: Extent, encoder: Encoder, asked: str | None) -> None:
    """What was chosen and why; without tiles, what is lost without them."""
    from mrad_indexer.cutting import suggested

    if not extent.sizes:
        return
    width, height = extent.middle
    if layout.tiling is not None:
        count = len(layout.places((width, height)).tiles)
        say(
            f"{describe(layout)}: {counted(count, 'tile')} in a picture of {width} x {height}, each shrunk "
            f"{layout.tiling.side / encoder.image_size:.1f} x to {encoder.image_size} px",
        )
        if differ := of_several_scales(layout, extent.sizes):
            warn(differ)
        return
    if not layout.plain:
        say(describe(layout))
    if asked == "auto":
        say(
            f"--tile auto: pictures of {width} x {height} do well as a whole; no tiles",
        )
        return
    better = suggested(extent, layout, encoder)
    if better is not None:
        side, patch = encoder.image_size, encoder.image_size // encoder.grid
        warn(
            f"pictures of {width} x {height} are shrunk to {side} x {side} px: what is less than "
            f"{max(1, round(patch * max(width, height) / side))} px long may be lost"
            f"{lost_by_squeezing(width, height)}; --tile auto would cut them into tiles of "
            f"{better.side} px"
        )


def of_several_scales(layout: Layout, sizes: Sequence[Size]) -> str:
    """That pictures which are cut into tiles differ in size; empty where they hardly do.

    As a picture is warned of that differs from the memory's (`other_scale`): by the shorter side.
    """
    shorter = [min(size) for size in sizes]
    if layout.tiling is None or layout.roi or layout.parts or max(shorter) <= layout.tiling.side:
        return ""
    if max(shorter) <= SCALED * min(shorter):
        return ""
    kinds = Counter(sizes).most_common()
    shown = ", ".join(f"{width} x {height} ({count})" for (width, height), count in kinds[:SIZES])
    others = sum(count for _, count in kinds[SIZES:])
    return (
        f"pictures differ in size: {shown}{f' and others ({others})' if others else ''}. Tiles are cut by "
        "pixels, so where these show one product at several scales, details look larger in some than in "
        "others: bring them to one scale, or build a memory of each"
    )


def lost_by_squeezing(width: int, height: int) -> str:
    """What a square takes of a long picture; empty for one that is nearly square."""
    longer, shorter = max(width, height), min(width, height)
    if longer < 1.5 * shorter:
        return ""
    axis = "height" if height > width else "width"
    return f", and {100 * (1 - shorter / longer):.0f} % of the {axis} is squeezed away"


def shard_size(layout: Layout, extent: Extent) -> int:
    """Pictures in a shard, so that a shard has about `SHARD` tiles: the unit of a build's work."""
    return max(1, SHARD // max(1, len(layout.places(extent.middle).tiles)))
