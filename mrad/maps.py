"""Grid -> map -> what people look at: top score, overlay, regions (docs/method.md)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mrad.errors import MRADError
from mrad.types import BoolArray, Box, FloatArray

if TYPE_CHECKING:
    from mrad.images.strips import Strips

STRIP = 128
"""Rows of an overlay that are coloured at once."""
SAMPLED = 16
"""Of so many pixels one says roughly which are the largest."""
SPOT = (95, 242, 255)
"""Colour of the frame around the strongest place."""


@lru_cache(maxsize=8)
def map_operator(
    grid: int, image_size: int, sigma: float, device: torch.device | str = "cpu"
) -> Tensor:
    """[S, g] matrix of one axis: bilinear upsampling (`align_corners=False`), then the Gaussian.

    Both steps are linear and separable, so a map is `A G A^T`: two small products instead of an
    interpolation and two convolutions. The Gaussian's rows are SciPy's (reflect, truncate 4).
    """
    eye = torch.eye(grid, dtype=torch.float64)[None]
    up = F.interpolate(eye, size=image_size, mode="linear", align_corners=False)[0].T.numpy()
    if sigma > 0:
        up = _blurred(up, sigma)
    return torch.from_numpy(np.ascontiguousarray(up, dtype=np.float32)).to(device)


def _blurred(columns: npt.NDArray[np.float64], sigma: float) -> npt.NDArray[np.float64]:
    """Each column [S, g] under SciPy's `gaussian_filter1d`, which takes half a second to import."""
    radius = int(4.0 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    padded = np.pad(columns, ((radius, radius), (0, 0)), mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * radius + 1, axis=0)
    blurred: npt.NDArray[np.float64] = windows @ (weights / weights.sum())
    return blurred


def outline(inside: BoolArray, *, thick: bool = False) -> BoolArray:
    """Pixels of a region [H, W] with a neighbour above, below or beside that is outside.

    `thick`: those outside with a neighbour inside, too.
    """
    edge = np.zeros(inside.shape, bool)
    for at, other in ((inside, edge), (inside.T, edge.T)):
        steps = at[1:] != at[:-1]
        other[1:] |= steps
        other[:-1] |= steps
    return edge if thick else edge & inside


def smoothed(cells: Tensor, image_size: int, sigma: float = 4.0) -> Tensor:
    """Values of patches [B, N] -> map float32 [B, S, S]: upsampled, then blurred."""
    grid = round(cells.shape[1] ** 0.5)
    if grid * grid != cells.shape[1]:
        raise MRADError(f"{cells.shape[1]} patch values do not fill a square grid")
    operator = map_operator(grid, image_size, sigma, cells.device)
    return operator @ cells.float().view(-1, grid, grid) @ operator.T


def anomaly_map(patch: Tensor, image_size: int, sigma: float = 4.0) -> Tensor:
    """As `smoothed`, of patch probabilities: no value leaves [0, 1]."""
    return smoothed(patch, image_size, sigma).clamp_(0, 1)  # rounding leads slightly beyond 1


def top_mean(maps: Tensor, fraction: float = 0.01) -> Tensor:
    """Mean of the largest `fraction` of each map's pixels: [B, S, S] -> [B]."""
    flat = maps.flatten(1)
    count = max(1, int(flat.shape[1] * fraction))
    if flat.is_cuda or SAMPLED * count > flat.shape[1]:
        return flat.topk(count, dim=1).values.mean(dim=1)
    return torch.stack([_largest(values, count) for values in flat]).mean(dim=1)


def _largest(values: Tensor, count: int) -> Tensor:
    """As `values.topk(count).values`, to the digit: what a sample says is too small is not put in order."""
    sample = values[::SAMPLED]
    cut = sample.topk(min(len(sample), 2 * count // SAMPLED + 8)).values[-1]
    every = values.numpy()  # whose choice takes a sixth of the time
    kept = torch.from_numpy(every[~(every < float(cut))])
    return (kept if len(kept) >= count else values).topk(count).values


def fuse(top: Tensor, image: Tensor, fusion: float) -> Tensor:
    """Image score [B] = (1 - fusion) * top score + fusion * image probability (docs/method.md)."""
    return (1 - fusion) * top + fusion * image


def resize_map(values: Tensor, size: tuple[int, int]) -> FloatArray:
    """Map [S, S] -> float32 [height, width] at `size` (width, height), bilinear."""
    width, height = size
    shrinks = width < values.shape[1] or height < values.shape[0]
    resized = F.interpolate(
        values[None, None],
        size=(height, width),
        mode="bilinear",
        align_corners=False,
        antialias=shrinks,
    )
    out: FloatArray = resized[0, 0].clamp_(0, 1).cpu().numpy()
    return out


def at_shape(mask: BoolArray, shape: tuple[int, ...]) -> BoolArray:
    """A mask [H, W] at another shape [h, w], as that of a map that was scaled down: nearest pixels."""
    if mask.shape == shape:
        return mask
    size = (shape[1], shape[0])
    return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))


def at_size(image: Image.Image | Strips, size: tuple[int, int]) -> Image.Image:
    """An image at the size of its map, where that was scaled down. Raises `MRADError` for no such map."""
    if image.size == size:
        return image if isinstance(image, Image.Image) else image.convert("RGB")
    scale = size[0] / image.width, size[1] / image.height
    if max(scale) > 1 or abs(scale[0] * image.height - size[1]) > 1 + 0.01 * size[1]:
        raise MRADError(f"the map is {size}, the image {image.size} (width, height)")
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)


@dataclass(frozen=True)
class Region:
    """One connected region above a threshold, in pixels of the input image."""

    box: tuple[int, int, int, int]
    """[x_min, y_min, x_max, y_max), origin top left."""
    area: int
    peak: float
    """Largest map value inside."""
    peak_at: tuple[int, int]
    """x, y of the peak."""
    polygon: tuple[tuple[float, float], ...]
    """Outline as x, y points, simplified to within a pixel; edges as those of `box`."""


def regions(
    values: FloatArray,
    threshold: float,
    *,
    min_area: int = 1,
    size: tuple[int, int] | None = None,
) -> list[Region]:
    """Connected regions (8 neighbours) of map [H, W] at or above `threshold`, strongest first.

    Args:
        values: a prediction's map.
        threshold: what lies at or above it belongs to a region.
        min_area: pixels of the map that a region has at least.
        size: width, height of the image, where its map was scaled down; regions are in its pixels.
    """
    from skimage import measure  # a second to load: only where regions are asked for

    labelled = measure.label(values >= threshold, connectivity=2)
    height, width = values.shape
    x, y = (size[0] / width, size[1] / height) if size is not None else (1.0, 1.0)
    parts = [part for part in measure.regionprops(labelled) if part.area >= min_area]
    return sorted((_region(part, values, x, y) for part in parts), key=lambda found: -found.peak)


def _region(part: Any, values: FloatArray, x: float, y: float) -> Region:
    """`x`, `y`: pixels of the image for each of the map's."""
    top, left, bottom, right = part.bbox
    inside = np.where(part.image, values[top:bottom, left:right], -np.inf)
    row, column = np.unravel_index(int(inside.argmax()), inside.shape)
    at = (left + int(column) + 0.5) * x, (top + int(row) + 0.5) * y
    return Region(
        box=(
            math.floor(left * x),
            math.floor(top * y),
            math.ceil(right * x),
            math.ceil(bottom * y),
        ),
        area=round(part.area * x * y),
        peak=float(inside[row, column]),
        peak_at=(int(at[0]), int(at[1])),
        polygon=tuple((h * x, v * y) for h, v in _outline(part.image, left, top)),
    )


def _outline(inside: BoolArray, left: int, top: int) -> tuple[tuple[float, float], ...]:
    from skimage import measure

    padded = np.pad(inside, 1).astype(np.float32)
    # "high": pixels that touch at a corner are one region, so they are one outline.
    longest = max(measure.find_contours(padded, 0.5, fully_connected="high"), key=len)
    points = measure.approximate_polygon(longest, tolerance=1.0)
    if len(points) < 4:  # closed by repeating the first: a region too thin to be simplified
        points = longest
    # Contours count from the centres of the padded pixels, boxes from the edges of the image's.
    return tuple((float(x) - 0.5 + left, float(y) - 0.5 + top) for y, x in points[:-1])


def overlay(
    image: Image.Image | Strips,
    values: FloatArray,
    *,
    low: float | None = None,
    high: float | None = None,
    alpha: float = 0.5,
    unseen: BoolArray | None = None,
) -> Image.Image:
    """Heat map over the image, RGB, at the image's size. Cold places stay transparent.

    Args:
        image: upright; where the map was scaled down, it is too.
        values: float32 [H, W].
        low: value of the coldest colour. Left out, it is the map's own smallest, which shows WHERE, not
            HOW MUCH: pass a fixed one to compare images.
        high: the same of the hottest colour.
        alpha: how much of the hottest colour covers the image.
        unseen: pixels [H, W] that were not looked at closely: they are darkened.
    """
    low = float(values.min()) if low is None else low
    high = float(values.max()) if high is None else high
    image = at_size(image, (values.shape[1], values.shape[0]))
    under = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    mixed = np.empty((*values.shape, 3), np.uint8)
    for start in range(0, len(values), STRIP):  # float colours of all of it would take 50 B a pixel
        rows = slice(start, start + STRIP)
        heat = np.clip((values[rows] - low) / max(high - low, 1e-12), 0, 1)
        colours = _colours()[(heat * 255).astype(np.uint8)]
        weight = (alpha * np.sqrt(heat))[..., None]
        mixed[rows] = np.round(under[rows].astype(np.float32) * (1 - weight) + colours * weight)
        if unseen is not None:
            mixed[rows][unseen[rows]] //= 3
    return Image.fromarray(mixed)


def mark_strongest(picture: Image.Image, box: Box, width: int) -> None:
    """Frame the place of an image where its map is strongest, and call it so.

    Args:
        picture: an overlay, RGB; it is drawn on.
        box: [x_min, y_min, x_max, y_max), pixels of the image.
        width: of the image, which the overlay may be a smaller copy of.
    """
    scale, pen = picture.width / width, ImageDraw.Draw(picture)
    left, top, right, bottom = (round(scale * edge) for edge in box)
    thick = 1 + max(picture.size) // 500
    pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), None, SPOT, thick)
    font, text = ImageFont.load_default(max(11, max(picture.size) // 45)), "strongest place"
    wide, high = (math.ceil(edge) for edge in pen.textbbox((0, 0), text, font)[2:])
    if wide > picture.width or high > picture.height:
        return
    above = top - high - thick
    y = above if above >= 0 else min(bottom + thick, picture.height - high)
    at = min(left, picture.width - wide), y
    pen.rectangle((*at, at[0] + wide, at[1] + high), (0, 0, 0))
    pen.text(at, text, SPOT, font)


@lru_cache(maxsize=1)
def _colours() -> FloatArray:
    """256 RGB steps from dark blue over red to light yellow; brightness rises all the way."""
    stops = [
        (0, 0, 64),
        (90, 0, 140),
        (200, 30, 90),
        (250, 110, 30),
        (255, 200, 40),
        (255, 255, 190),
    ]
    place = np.linspace(0, 255, len(stops))
    channels = [np.interp(np.arange(256), place, [stop[c] for stop in stops]) for c in range(3)]
    return np.stack(channels, axis=1).astype(np.float32)
