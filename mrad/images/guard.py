"""Whether a picture is like those that the memory learned from: depth, brightness, contrast, shape.

Behind all decoding: a picture that was misread is mostly far too dark, too pale or flat, and a verdict
on it would be wrong in silence.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mrad.errors import DoubtfulImageError, LayoutError
from mrad.images.layout import PLAIN, Layout, Places
from mrad.images.options import ReadOptions
from mrad.images.reader import FLAT, Picture

RATIO = 0.6
"""Brightness below so much of the memory's darkest is far outside; so is its mirror at white."""
SLACK = 10.0
"""Levels by which brightness and contrast may differ in any case."""
TIMES = 2.0
"""How many times less or more contrast than any of the memory's is far outside."""
ENLARGED = 4.0
"""How many times a picture may be enlarged to the encoder's input, where the memory's sizes are unknown."""
STRETCHED = 1.5
"""How many times wider or narrower, for its height, than any of the memory's is another shape."""
SCALED = 1.25
"""How many times larger or smaller than the memory's images show them details may be shown."""
SAME_SHAPE = 1.05
"""Within so much the shape is the same: then another size is another scale rather than a crop."""


@dataclass(frozen=True)
class InputProfile:
    """What the pictures of a memory are like. Built with `seen`, kept in the bank's metadata."""

    images: int = 0
    brightness: tuple[float, float] = (255.0, 0.0)
    """Lowest and highest mean level."""
    contrast: tuple[float, float] = (255.0, 0.0)
    """Lowest and highest standard deviation of the levels."""
    depths: Mapping[str, int] = field(default_factory=dict)
    """Kind -> bits that are assumed of pictures that do not state it."""
    bit_depth: int | None = None
    """The same by the word of whoever built the memory."""
    side: int = 0
    """Shorter side of the smallest, pixels; 0: nobody knows."""
    aspect: tuple[float, float] = (math.inf, 0.0)
    """Lowest and highest width over height."""
    largest: int = 0
    """Shorter side of the largest, pixels; 0: nobody knows."""
    flat: int = 0
    """Pictures of one level: a few of them, frames that the camera lost, do not make such usual."""
    flat_brightness: tuple[float, float] = (255.0, 0.0)
    """Their lowest and highest level; the ranges above are of the others."""

    def seen(self, picture: Picture) -> InputProfile:
        """The profile with one picture more."""
        found = picture.assumed
        depths = {} if found is None else {found.kind: found.bits}
        own = _one(picture.levels, picture.size)
        return self.joined(replace(own, images=1, depths=depths))

    def widened(self, levels: tuple[float, float], size: tuple[int, int]) -> InputProfile:
        """The profile with the mean and the deviation of one more picture's levels, and its size.

        Unchanged where it knows no picture at all: one alone would set all others apart.
        """
        if not self.images:
            return self
        wider = self.joined(_one(levels, size))
        return wider if self.side else replace(wider, side=0, aspect=self.aspect, largest=0)

    def joined(self, other: InputProfile) -> InputProfile:
        """The profile of both memories' pictures."""
        depths = dict(self.depths)
        for kind, bits in other.depths.items():
            depths[kind] = max(depths.get(kind, 0), bits)
        return replace(
            self,
            images=self.images + other.images,
            brightness=_union(self.brightness, other.brightness),
            contrast=_union(self.contrast, other.contrast),
            depths=depths,
            side=min((side for side in (self.side, other.side) if side), default=0),
            aspect=_union(self.aspect, other.aspect),
            largest=0
            if any(each.side and not each.largest for each in (self, other))
            else max(self.largest, other.largest),
            flat=self.flat + other.flat,
            flat_brightness=_union(self.flat_brightness, other.flat_brightness),
        )

    def options(self, options: ReadOptions) -> ReadOptions:
        """How a query is read, so that it is read as the memory was."""
        depth = self.bit_depth if options.bit_depth is None else options.bit_depth
        return replace(options, bit_depth=depth, assume={**self.depths, **options.assume})

    def check(
        self, picture: Picture, image_size: int, own: Layout = PLAIN, places: Places | None = None
    ) -> tuple[str, ...]:
        """The picture's own warnings, and what sets it apart from the memory's.

        Args:
            picture: as it was read.
            image_size: side of the encoder's input, pixels.
            own: how the memory's images are looked at.
            places: what of the picture is looked at; None: as of the memory's.
        """
        shape = self._small(picture.size, image_size, places)
        shape += [] if self._longer(own, picture.size) else self._shape(picture.size)
        shape += self._scale(own, places) if places and self.images else []
        if not self.images:
            return (*picture.warnings, *shape)
        flat = 2 * self.flat >= self.images  # then flat pictures are everyday here
        kept = [w for w in picture.warnings if not (flat and code_of(w) == "uniform")]
        usual = self._with_flat() if flat else self
        levels = [*usual._brightness(picture.brightness), *usual._contrast(picture.contrast)]
        return (*kept, *levels, *shape)

    def _with_flat(self) -> InputProfile:
        return replace(
            self,
            brightness=_union(self.brightness, self.flat_brightness),
            contrast=_union(self.contrast, (0.0, 2 * FLAT)),
        )

    def _scale(self, own: Layout, places: Places) -> list[str]:
        """Whether a picture is looked at where, and as large as, the memory's images were."""
        try:
            usual = own.places(places.size)
        except LayoutError:
            return []
        if not {tile.box for tile in places.tiles} <= {tile.box for tile in usual.tiles}:
            return self._other_region(own, places, usual)
        if own.tiling is None or own.roi or own.parts or not self.side:
            return []
        (width, height), cut = places.size, self.side > own.tiling.side
        least, most = (self.side, self.largest) if cut else (own.tiling.side, 0)
        value, (low, high) = width / height, self.aspect
        if cut and not low / SAME_SHAPE <= value <= high * SAME_SHAPE:
            return []  # a part of it, or several
        small = min(width, height) * SCALED < min(least, self.side)
        if not small and not 0 < most * SCALED < min(width, height):
            return []
        sides = f"{self.side}" if self.largest <= self.side else f"{self.side} to {self.largest}"
        return [
            f"other_scale: the picture's shorter side has {min(width, height)} pixels, that of the memory's "
            f"images {sides}; tiles are cut by pixels, so details look larger or smaller than any that "
            "it knows: give images of its scale, or build a memory of such images"
        ]

    def _other_region(self, own: Layout, places: Places, usual: Places) -> list[str]:
        """Of a region that the memory's images do not have, unless it is as large as all of one."""
        single = own.tiling is None or 0 < self.largest <= own.tiling.side
        if single and not (own.roi or own.parts) and self.side:
            tiles = [section.tile for section in places.sections]
            least, most = self.side / SCALED, max(self.side, self.largest) * SCALED
            if all(least <= min(tile) <= most and not self._shape(tile) for tile in tiles):
                return []
        shown, known = places.sections[0].tile, usual.sections[0].tile
        differ = "elsewhere in an image"
        if shown != known:
            differ = f"in pieces of {known[0]} x {known[1]} pixels, not {shown[0]} x {shown[1]}"
        return [
            f"other_region: the memory's images were looked at {differ}: good parts may look unusual, and "
            "thresholds do not hold; build the memory with this region (mrad build --roi, --parts)"
        ]

    def _small(self, size: tuple[int, int], image_size: int, places: Places | None) -> list[str]:
        """Whether the encoder is shown a picture, or a piece of it, enlarged and the memory's are finer."""
        if self.side and min(size) * SCALED >= self.side:
            return []
        pieces = [section.tile for section in places.sections] if places else [size]
        least = min(min(piece) for piece in pieces)
        if least * (SCALED if self.side else ENLARGED) >= image_size:
            return []
        than = f"; the memory's images have {self.side} and more" if self.side else ""
        return [
            f"too_small: the picture is {size[0]} x {size[1]} pixels, enlarged "
            f"{image_size / least:.1f} times to the encoder's {image_size}{than}: give the "
            "original, not a thumbnail or a crop"
        ]

    def _longer(self, own: Layout, size: tuple[int, int]) -> bool:
        """Whether tiles of a picture are as the memory's, though it may be longer, as strips are."""
        if own.tiling is None or not self.side:
            return False
        short = min(size)
        return (
            own.tiling.side <= short
            and self.side <= SAME_SHAPE * short <= SAME_SHAPE**2 * self.largest
        )

    def _shape(self, size: tuple[int, int]) -> list[str]:
        value, (low, high) = size[0] / size[1], self.aspect
        if not self.side or low / STRETCHED <= value <= high * STRETCHED:
            return []
        return [
            f"other_shape: width over height is {value:.2f}, the memory's images have {low:.2f} to "
            f"{high:.2f}: it shows something else, or is squeezed otherwise; crop it as they are"
        ]

    def _brightness(self, value: float) -> list[str]:
        low, high = self.brightness
        dark = value < min(RATIO * low, low - SLACK)
        pale = 255 - value < min(RATIO * (255 - high), 255 - high - SLACK)
        if not (dark or pale):
            return []
        return [
            f"{'too_dark' if dark else 'too_bright'}: the mean level is {value:.0f} of 255, the "
            f"memory's images have {low:.0f} to {high:.0f}: look at exposure, bit depth and file"
        ]

    def _contrast(self, value: float) -> list[str]:
        low, high = self.contrast
        weak = value < min(low / TIMES, low - SLACK / 2)
        strong = value > max(high * TIMES, high + SLACK)
        if not (weak or strong):
            return []
        return [
            f"{'low_contrast' if weak else 'high_contrast'}: the levels' deviation is {value:.1f}, "
            f"the memory's images have {low:.1f} to {high:.1f}: look at exposure, bit depth and file"
        ]

    def as_json(self) -> dict[str, Any]:
        """For the bank's metadata."""
        return {
            "images": self.images,
            "brightness": [round(value, 2) for value in self.brightness],
            "contrast": [round(value, 2) for value in self.contrast],
            "depths": dict(self.depths),
            "bit_depth": self.bit_depth,
            **({"side": self.side, "aspect": list(self.aspect)} if self.side else {}),
            **({"largest": self.largest} if self.largest else {}),
            **(
                {"flat": self.flat, "flat_brightness": list(self.flat_brightness)}
                if self.flat
                else {}
            ),
        }

    @classmethod
    def of(cls, stored: Mapping[str, Any] | None) -> InputProfile:
        """Inverse of `as_json`; empty for a bank that was built before it was stored."""
        if not stored:
            return cls()
        return cls(
            int(stored["images"]),
            (float(stored["brightness"][0]), float(stored["brightness"][1])),
            (float(stored["contrast"][0]), float(stored["contrast"][1])),
            {str(kind): int(bits) for kind, bits in stored["depths"].items()},
            stored.get("bit_depth"),
            int(stored.get("side", 0)),
            tuple(map(float, stored.get("aspect", (math.inf, 0.0)))),  # type: ignore[arg-type]
            int(stored.get("largest", 0)),
            int(stored.get("flat", int(stored["images"]) * (stored["contrast"][0] < 2 * FLAT))),
            tuple(map(float, stored.get("flat_brightness", (255.0, 0.0)))),  # type: ignore[arg-type]
        )


def code_of(warning: str) -> str:
    """The stable part of a warning."""
    return warning.partition(":")[0]


def codes(warnings: Iterable[Iterable[str]]) -> Counter[str]:
    """Code -> images that have it."""
    return Counter(code for each in warnings for code in {code_of(text) for text in each})


def refuse_doubtful(warnings: Iterable[str], name: str) -> None:
    """With strict input: raises `DoubtfulImageError` if there is anything to warn of."""
    found = list(warnings)
    if found:
        raise DoubtfulImageError(f"{name} is refused, for input is strict: {'; '.join(found)}")


def _one(levels: tuple[float, float], size: tuple[int, int]) -> InputProfile:
    """Of one picture, by the mean and the deviation of its levels."""
    brightness, contrast, aspect = ((value, value) for value in (*levels, size[0] / size[1]))
    one = InputProfile(0, side=min(size), aspect=aspect, largest=min(size))
    if levels[1] < 2 * FLAT:
        return replace(one, flat=1, flat_brightness=brightness)
    return replace(one, brightness=brightness, contrast=contrast)


def _union(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return min(one[0], other[0]), max(one[1], other[1])
