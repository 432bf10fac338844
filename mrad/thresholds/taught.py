"""A picture that was taught and is shown again is judged as its label says, whatever its score."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from mrad.calibration import Calibration
from mrad.types import NORMAL, Box, FloatArray, Prediction

CLEAR = 0.5
"""So far on its label's side of the threshold it stands at least, in units of the calibrated scale: at
a calibrated score of 25 or less, or 75 or more."""
STEPS = 65_535
"""Of a map in 16 bits."""


def as_taught(
    prediction: Prediction,
    calibration: Calibration | None,
    threshold: float | None = None,
    pixel_threshold: float | None = None,
) -> Prediction:
    """The prediction with score, parts and map on the label's side of the thresholds.

    A picture taught as good stays below them everywhere. One taught as defective lies above
    the threshold, and its map reaches the pixel threshold where it was marked.

    Args:
        prediction: unchanged where no picture was recognised.
        calibration: of the memory; None: no threshold of its own, and no scale.
        threshold: in force, where it is not the calibration's.
        pixel_threshold: the same for map values.
    """
    taught = prediction.recognised
    if taught is None:
        return prediction
    if calibration is not None:
        threshold = calibration.image_threshold if threshold is None else threshold
        if pixel_threshold is None and calibration.pixel is not None:
            pixel_threshold = calibration.pixel_threshold
    good, parts, score = taught.label == NORMAL, prediction.parts, prediction.score
    if threshold is not None:
        margin = CLEAR * calibration.unit(threshold) if calibration is not None else 0.0
        score = _beside(score, threshold, margin, good)
        worst = max((part.score for part in parts), default=0.0)
        parts = tuple(
            replace(part, score=_beside(part.score, threshold, margin, good))
            if good or _shows(part.box, taught.marked, part.score == worst)
            else part
            for part in parts
        )
    shown = prediction.anomaly_map
    if shown is not None and pixel_threshold is not None:
        shown = _drawn(shown, prediction.size, pixel_threshold, good, taught.marked)
    return replace(prediction, score=score, parts=parts, anomaly_map=shown)


def _beside(score: float, threshold: float, margin: float, good: bool) -> float:
    """On its side of the threshold; float32 decides, as everywhere."""
    if good:
        below = float(np.nextafter(np.float32(threshold), np.float32(-np.inf)))
        return min(score, below, threshold - margin)
    return max(
        score, float(np.nextafter(np.float32(threshold), np.float32(np.inf))), threshold + margin
    )


def _shows(box: Box, marked: tuple[Box, ...], worst: bool) -> bool:
    """Whether a part shows what was marked; where nothing was, the strongest does."""
    if not marked:
        return worst
    left, top, right, bottom = box
    return any(x0 < right and left < x1 and y0 < bottom and top < y1 for x0, y0, x1, y1 in marked)


def _drawn(
    shown: FloatArray, size: tuple[int, int], cut: float, good: bool, marked: tuple[Box, ...]
) -> FloatArray:
    below, reached = _steps(cut)
    if good:
        return np.minimum(shown, below)
    out = shown.copy()
    across, down = shown.shape[1] / size[0], shown.shape[0] / size[1]
    for left, top, right, bottom in marked:
        place = out[
            round(top * down) : max(round(bottom * down), round(top * down) + 1),
            round(left * across) : max(round(right * across), round(left * across) + 1),
        ]
        np.maximum(place, reached, out=place)
    return out


def _steps(cut: float) -> tuple[np.float32, np.float32]:
    """The steps of a 16-bit map beside a threshold: the last below, and the first that reaches it.

    Maps go out in 65,535 steps; rounded across the threshold, a place would be on the other side of it.
    """
    step = math.ceil(cut * STEPS)
    while np.float32(step / STEPS) < cut:
        step += 1
    return np.float32((step - 1) / STEPS), np.float32(step / STEPS)
