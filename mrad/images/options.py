"""How pictures are read, in one place for library, command line and server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

DEFAULT_MAX_PIXELS = 100_000_000
"""Pixels of one picture, for library, command line and server."""
TILED_MAX_PIXELS = 500_000_000
"""Of a picture that is cut into tiles: 2,048 x 244,000, say."""


@dataclass(frozen=True)
class ReadOptions:
    """How pictures are read; the defaults suit a picture that says how it is to be read."""

    max_pixels: int = DEFAULT_MAX_PIXELS
    """More are refused, before anything is decoded."""
    max_tiled_pixels: int = TILED_MAX_PIXELS
    """The same where a detector cuts pictures into tiles."""
    bit_depth: int | None = None
    """Bits that count in a picture that does not state it, by the user's word."""
    assume: Mapping[str, int] = field(default_factory=dict)
    """The same by kind (`integer`, `float`), as the memory's own images have it."""
    allow_truncated: bool = False
    """Take a file that ends early, with a warning, instead of refusing it."""
    strict: bool = False
    """Refuse a picture that there is anything to warn of, once all is known about it."""
    least_side: int | None = None
    """A JPEG may be decoded smaller, by its decoder's own scale, with sides of so many pixels at least: for a
    look at it, as by `mrad data check`. Scores would change by more than rounding (`benchmarks scaled`)."""
    name: str = ""
    """What errors call the picture; a path names itself."""
