"""Maps and overlays of the local judge, as files' bytes."""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
import torch
from PIL import Image

from mrad.errors import MRADError
from mrad.maps import mark_strongest, outline, overlay, resize_map
from mrad.types import FloatArray, Prediction
from mrad_indexer.scoring.judge import Judge

MapFormat = Literal["none", "png16", "npy"]
OUTLINE = (60, 255, 120)
LONGEST = 32_000
"""Pixels of an overlay's longer side: JPEG ends at 65,500."""


def draw(image: Image.Image, prediction: Prediction, judge: Judge) -> Image.Image:
    """Heat map over the image in the judge's colours; the pixel threshold as a green line.

    Where an anomalous image has no such line, its strongest place is framed and called so. Raises
    `MRADError` for a prediction without a map.
    """
    values = prediction.anomaly_map
    if values is None:
        raise MRADError("this prediction has no map to draw")
    if max(values.shape) > LONGEST:
        shrink = LONGEST / max(values.shape)
        size = max(1, int(values.shape[1] * shrink)), max(1, int(values.shape[0] * shrink))
        values = resize_map(torch.from_numpy(values), size)
    unseen = prediction.unseen(values.shape)
    picture = overlay(image, values, low=judge.low, high=judge.high, alpha=0.6, unseen=unseen)
    inside = values >= (np.inf if judge.pixel_threshold is None else judge.pixel_threshold)
    if not inside.any() or inside.all():
        if prediction.peak_box and judge.verdict(prediction.score) == "anomalous":
            mark_strongest(picture, prediction.peak_box, prediction.size[0])
        return picture
    pixels = np.asarray(picture).copy()
    thick = max(values.shape) > 800  # a line of one pixel vanishes on a large picture
    pixels[outline(inside, thick=thick)] = OUTLINE
    return Image.fromarray(pixels)


def encode_map(values: FloatArray, kind: MapFormat) -> tuple[bytes, str]:
    """A map's bytes and suffix. png16: value / 65535 = probability; npy: float32."""
    buffer = io.BytesIO()
    if kind == "npy":
        np.save(buffer, values)
        return buffer.getvalue(), ".npy"
    steps = np.round(np.clip(values, 0, 1) * 65535).astype(np.uint16)
    Image.fromarray(steps).save(buffer, "PNG")
    return buffer.getvalue(), ".png"
