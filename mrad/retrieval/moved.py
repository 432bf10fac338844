"""A picture that was taught and comes back moved by a few pixels: told by its pixels.

The move is found to a hundredth of a pixel of the encoder's input, then undone; brightness is fitted. What is
left must be small at every place, blurred as finely and as coarsely as `SCALES`: a stain of low contrast
in a grainy texture shows in a coarse one alone. What is left of a picture with nothing new is errors of
resampling and of JPEG; both grow with the square root of the grey levels around. Where a new defect is,
more is left than elsewhere in the same picture, whatever is allowed: hence `PEAK`.

Measured on five sets, 32 good pictures each, at 264 pixels, of moves by (2, 1), (3, -2) and (1.5, 0.5) pixels
of the picture, what came into view real or from the other side:

| share recognised                              | magnetic_tile | deep_pcb | bsdata | textile, elpv |
|-----------------------------------------------|---------------|----------|--------|---------------|
| moved                                         |          0.96 |     0.95 |   1.00 |          1.00 |
| and recompressed (JPEG 80)                    |          0.93 |     0.94 |   1.00 |          1.00 |
| and brightened by 3 %                         |          0.86 |     0.90 |   1.00 |          1.00 |
| and brightened, then recompressed             |          0.86 |     0.97 |   0.53 |          1.00 |

None was recognised of 3,421 with a new defect that the encoder sees (spots of 1 to 6 % of the shorter side,
scratches, stains, from 10 grey levels on or of another colour; three of four moved), but one that brightening
had made white as its surroundings; of 960 moved boards of DeepPCB that are there with and without defects;
of 4,784 other pictures of the sets. The tolerances were set on half of the good pictures.

Not compared: the strip that came into view, and a row more, for the encoder's input shows other pixels there. A
defect that lies in it as a whole passes: 18 of 461 black or white spots whose centres lay within 3 % of a border.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from mrad.types import FloatArray

LIMIT, STILL = 0.02, 0.1
"""Of the side: the largest move; pixels: below it nothing moved, and features tell more."""
GAIN, OFFSET = 0.1, 12.0
"""How much brighter or darker: of the contrast, and grey levels at mid-grey."""
SCALES = {1: (1.5, 1.1), 2: (1.5, 0.45), 4: (1.3, 0.24), 8: (1.2, 0.12)}
"""Sigma of a blur -> grey levels a, b: pictures differ by a + b * sqrt(local range) at most after it."""
PEAK, QUIET = 3.5, 0.45
"""A difference stands out at so many times that of 99 % of the picture, from so much of what is allowed."""
LOBE, REACH = 0.12, 2
"""Share of what came into view that the resampling mixes into so many pixels beside it."""
SMALL, FIRST = 4, 8.0
"""Factor by which pictures are reduced for a first look, and how many times what is allowed passes it."""

Picture = npt.NDArray[np.uint8]


def same_moved(taught: Picture, shown: Picture) -> bool:
    """Whether two pictures uint8 [S, S, C] show the same at every place, but for a small move.

    C is 1 or 3. Brightness may differ a little. Not compared: the strip that came into view, as wide as the
    move.
    """
    if len(taught) < 16 * SMALL:  # too small to tell
        return False
    limit, few = LIMIT * len(taught), len(taught) // SMALL
    small, other = _reduced(taught, few), _reduced(shown, few)
    start = _move(small, other, np.zeros(2), limit / SMALL + 0.5)
    if start is None or not _alike(small[..., None], other[..., None], start, first=True):
        return False
    channels = max(taught.shape[2], shown.shape[2])
    before, now = (
        np.broadcast_to(one, (*one.shape[:2], channels)).astype(np.float32)
        for one in (taught, shown)
    )
    start *= len(taught) / few
    move = _move(before.mean(axis=2), now.mean(axis=2), start, limit)
    return move is not None and np.abs(move).max() >= STILL and _alike(before, now, move)


def _reduced(picture: Picture, side: int) -> FloatArray:
    """Its grey levels [side, side]."""
    grey = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture).convert("L")
    return np.asarray(grey.resize((side, side), Image.Resampling.BICUBIC), np.float32)


def _move(
    before: FloatArray, now: FloatArray, start: npt.NDArray[np.float64], limit: float
) -> npt.NDArray[np.float64] | None:
    """Down and right, by which `now` [n, n] shows what `before` shows; None beyond `limit`.

    By Gauss and Newton: the differences are explained by the slopes, a gain and an offset.
    """
    from scipy import ndimage

    before, now = (ndimage.gaussian_filter(one, 1) for one in (before, now))
    spline = ndimage.spline_filter(now, order=3, mode="nearest")
    edge = int(np.ceil(limit)) + 2
    inner = (slice(edge, -edge),) * 2
    wanted, move = before[inner].ravel(), start
    for _ in range(8):
        back = ndimage.shift(spline, -move, order=3, mode="nearest", prefilter=False)
        down, right = (slope[inner].ravel() for slope in np.gradient(back))
        here = back[inner].ravel()
        terms = np.stack([down, right, here, np.ones_like(here)], axis=1).astype(np.float64)
        found, *_ = np.linalg.lstsq(terms.T @ terms, terms.T @ wanted, rcond=None)
        step = (found[:2] / max(found[2], 0.5)).clip(-1, 1)
        move = move + step
        if np.abs(move).max() > limit:
            return None
        if np.abs(step).max() < 0.01:
            break
    return move


def _alike(
    before: FloatArray, now: FloatArray, move: npt.NDArray[np.float64], first: bool = False
) -> bool:
    """Whether pictures [n, n, C] are the same at every place that both show. `first`: at reduced size."""
    from scipy import ndimage

    there = np.stack(
        [ndimage.shift(one, move, order=3, mode="nearest") for one in np.moveaxis(before, 2, 0)], 2
    )
    rows, columns = (_shared(float(by), len(now)) for by in move)
    ok = np.logical_and.outer(*(one > first for one in (rows, columns)))
    beside = ok & ~np.logical_and.outer(*(one > 1 for one in (rows, columns)))
    fit = _brightness(there[ok].ravel(), now[ok].ravel())
    if fit is None:
        return False
    gain, offset = fit
    # What is black or white in one of them is not told apart in the other either.
    low, high = max(0.0, offset), min(255.0, 255 * gain + offset)
    there, now = (gain * there + offset).clip(low, high), now.clip(low, high)
    apart = now - there
    apart = np.where(ok[..., None], apart, 0)
    if beside.any():
        near = LOBE * _range(now, 2 * REACH + 3)[..., None]
        less = np.sign(apart) * np.maximum(np.abs(apart) - near, 0)
        apart = np.where(beside[..., None], less, apart)
    lively = ndimage.maximum_filter(ndimage.gaussian_filter(_range(there, 3), 2), 3)
    root, seen = np.sqrt(lively), ok.astype(np.float32)
    for sigma, (level, slope) in SCALES.items():
        if first and sigma == 1:
            continue
        wide = sigma / SMALL if first else sigma
        blurred = ndimage.gaussian_filter(apart, (wide, wide, 0), mode="constant")
        share = ndimage.gaussian_filter(seen, wide, mode="constant").clip(0.4)
        ratio = (np.abs(blurred).max(axis=2) / share / (level + slope * root))[ok]
        most = float(ratio.max())
        if first:
            if most > FIRST:
                return False
        elif most > min(1.0, max(QUIET, PEAK * float(np.quantile(ratio, 0.99)))):
            return False
    return True


def _shared(by: float, side: int) -> npt.NDArray[np.int64]:
    """Of each row of a picture that moved down by so much: 0 where it came into view and the outermost, 1 beside
    those, where resampling knew other rows, else 2."""
    rows = np.arange(side)
    if abs(by) < 0.02:
        return np.full(side, 2)
    least = np.minimum(rows - max(by, 0), side - 1 + min(by, 0) - rows)
    return np.where(least < 1, 0, np.where(least < 1 + REACH, 1, 2))


def _brightness(before: FloatArray, now: FloatArray) -> tuple[float, float] | None:
    """Gain and offset from one to the other, by what most pixels say; None for a large change."""
    gain, offset = 1.0, 0.0
    keep = np.ones(len(before), bool)
    for _ in range(3):
        x, y = before[keep], now[keep]
        spread = float(x.var())
        gain = float(((x - x.mean()) * (y - y.mean())).mean()) / spread if spread > 1 else 1.0
        offset = float(y.mean()) - gain * float(x.mean())
        apart = np.abs(gain * before + offset - now)
        keep = apart <= 2 * apart.mean() + 0.5
    if abs(gain - 1) > GAIN or abs((gain - 1) * 128 + offset) > OFFSET:
        return None
    return gain, offset


def _range(picture: FloatArray, size: int) -> FloatArray:
    """Largest less smallest around each pixel [n, n], of the channel where it is largest."""
    from scipy import ndimage

    around = (size, size, 1)
    most, least = ndimage.maximum_filter(picture, around), ndimage.minimum_filter(picture, around)
    return np.asarray((most - least).max(axis=2), np.float32)
