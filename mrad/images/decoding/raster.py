"""A decoded picture before it is one: samples as stored, and what the file says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mrad.errors import ImageError, ImageTooLargeError
from mrad.images.decoding.depth import Assumed, Stated, scale
from mrad.images.options import ReadOptions

BYTES = Stated(high=255)
FAINTEST = 16
"""Alpha below which colours that it has darkened are too few to be brightened."""


@dataclass(frozen=True)
class Raster:
    """One page as it is stored: not upright, not 8 bit, alpha apart."""

    samples: npt.NDArray[Any] | Image.Image
    """[H, W] or [H, W, 3], or a picture of Pillow's in mode L or RGB, which needs nothing more."""
    stated: Stated = BYTES
    alpha: npt.NDArray[np.uint8] | None = None
    """0..255, [H, W]."""
    premultiplied: bool = False
    orientation: int = 1
    """As EXIF and TIFF number it."""
    page: int = 0
    pages: int = 1
    lossy: bool = False
    full: tuple[int, int] | None = None
    """Width, height as stored, where `samples` may be smaller."""
    warnings: tuple[str, ...] = ()
    profile: bytes | float | None = None
    """The file's ICC profile, or its gamma, which change nothing."""
    colours: npt.NDArray[Any] | None = None
    """[H, W, 3 or 4] where `samples` are a palette's indices; only where indices were asked for."""

    def with_warnings(self, *more: str) -> Raster:
        """The same with more to say."""
        return Raster(**{**vars(self), "warnings": (*self.warnings, *more)})


def check_size(size: tuple[int, int], options: ReadOptions) -> None:
    """Raises `ImageError`, `ImageTooLargeError`."""
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{options.name} has no pixels ({width} x {height})")
    if width * height > options.max_pixels:
        raise ImageTooLargeError(
            f"{options.name} has {width} x {height} pixels, more than the limit of {options.max_pixels} "
            "(max_pixels; --max-pixels, MRAD_MAX_PIXELS): scale it down, or raise max_pixels"
        )


def truncated(what: str, options: ReadOptions) -> str:
    """The warning that a file is not whole. Raises `ImageError` where that is not allowed."""
    if not options.allow_truncated:
        raise ImageError(f"{options.name}: {what}; copy it again")
    return f"truncated: {what}"


def to_grey_or_rgb(
    raster: Raster, options: ReadOptions
) -> tuple[Image.Image, tuple[str, ...], Assumed | None]:
    """Upright L or RGB of 8 bit, the warnings on the way, and what depth was assumed."""
    warnings, assumed = list(raster.warnings), None
    if isinstance(raster.samples, Image.Image):
        image = raster.samples
    else:
        levels, notes, assumed = scale(raster.samples, raster.stated, options)
        warnings += notes
        image = Image.fromarray(levels)
    if raster.alpha is not None:
        image, notes = without_alpha(image, raster.alpha, raster.premultiplied)
        warnings += notes
    if raster.pages > 1:
        warnings.append(_pages(raster))
    image = image if image.mode in ("L", "RGB") else image.convert("RGB")
    return upright(image, raster.orientation), tuple(warnings), assumed


def without_alpha(
    image: Image.Image, alpha: npt.NDArray[np.uint8], premultiplied: bool
) -> tuple[Image.Image, list[str]]:
    """Transparency that varies is laid over white; one that is the same everywhere says nothing."""
    low, high = int(alpha.min()), int(alpha.max())
    if low == high:
        return _without_level(image, high, premultiplied)
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    share = float((alpha < 255).mean())
    mask = Image.fromarray(alpha)
    if premultiplied:
        straight = np.asarray(rgb).astype(np.uint16) + (255 - alpha.astype(np.uint16))[..., None]
        laid = Image.fromarray(np.minimum(straight, 255).astype(np.uint8))
    else:
        rgba = rgb.copy()
        rgba.putalpha(mask)
        laid = Image.alpha_composite(Image.new("RGBA", rgb.size, "white"), rgba).convert("RGB")
    return laid, [f"transparency: {share:.1%} of the picture is transparent; it is laid over white"]


def _without_level(
    image: Image.Image, level: int, premultiplied: bool
) -> tuple[Image.Image, list[str]]:
    """Alpha that is the same everywhere. Colours that it has darkened never exceed it."""
    if level == 255:
        return image, []
    values = np.asarray(image)
    if level >= FAINTEST and values.max() <= level:
        bright = np.round(values * (255 / level)).astype(np.uint8)
        why = "the file says so" if premultiplied else "no value exceeds it"
        return Image.fromarray(bright), [
            f"premultiplied: the alpha channel is {level} everywhere, and the colours are taken as "
            f"multiplied by it already, for {why}: they are brightened again; save it without alpha"
        ]
    return image, [
        f"alpha_ignored: the alpha channel is {level} everywhere, so it carries no picture; the "
        "colours are read as they are stored"
    ]


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turned and mirrored as the tag asks for."""
    method = TURNS.get(orientation)
    return image if method is None else image.transpose(method)


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _pages(raster: Raster) -> str:
    why = "the first of the largest that is not blank" if raster.page else "the first"
    return f"page_chosen: of {raster.pages} pages, page {raster.page + 1} is read, {why}"
