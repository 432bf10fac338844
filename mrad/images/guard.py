"""Whether a picture is like those that the memory learned from: depth, brightness, contrast.

Behind all decoding: a picture that was misread is mostly far too dark, too pale or flat, and a verdict
on it would be wrong in silence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mrad.errors import DoubtfulImageError
from mrad.images.options import ReadOptions
from mrad.images.reader import FLAT, Picture

RATIO = 0.6
"""Brightness below so much of the memory's darkest is far outside; so is its mirror at white."""
SLACK = 10.0
"""Levels by which brightness and contrast may differ in any case."""
TIMES = 2.0
"""How many times less or more contrast than any of the memory's is far outside."""


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

    def seen(self, picture: Picture) -> InputProfile:
        """The profile with one picture more."""
        brightness, contrast, depths = self.brightness, self.contrast, dict(self.depths)
        found = picture.assumed
        if found is not None:
            depths[found.kind] = max(depths.get(found.kind, 0), found.bits)
        return replace(
            self,
            images=self.images + 1,
            brightness=_wider(brightness, picture.brightness),
            contrast=_wider(contrast, picture.contrast),
            depths=depths,
        )

    def widened(self, levels: tuple[float, float]) -> InputProfile:
        """The profile with the mean and the deviation of one more picture's levels.

        Unchanged where it knows no picture at all: one alone would set all others apart.
        """
        if not self.images:
            return self
        brightness = _wider(self.brightness, levels[0])
        return replace(self, brightness=brightness, contrast=_wider(self.contrast, levels[1]))

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
        )

    def options(self, options: ReadOptions) -> ReadOptions:
        """How a query is read, so that it is read as the memory was."""
        depth = self.bit_depth if options.bit_depth is None else options.bit_depth
        return replace(options, bit_depth=depth, assume={**self.depths, **options.assume})

    def check(self, picture: Picture) -> tuple[str, ...]:
        """The picture's own warnings, and what sets it apart from the memory's."""
        if not self.images:
            return picture.warnings
        flat = self.contrast[0] < 2 * FLAT  # then flat pictures are everyday here
        kept = (w for w in picture.warnings if not (flat and code_of(w) == "uniform"))
        return (*kept, *self._brightness(picture.brightness), *self._contrast(picture.contrast))

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


def _wider(span: tuple[float, float], value: float) -> tuple[float, float]:
    return min(span[0], value), max(span[1], value)


def _union(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return min(one[0], other[0]), max(one[1], other[1])
