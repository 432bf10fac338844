"""A map as it travels: 16-bit PNG, npy, overlay, run lengths, polygons."""

from __future__ import annotations

import base64
import io
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from mrad.maps import mark_strongest, overlay, regions
from mrad.types import BoolArray, Box, FloatArray
from mrad_service.schemas.score import MapFormat

CUT = ("rle", "polygons")
"""Formats that show what is at or above the pixel threshold."""
Strongest: TypeAlias = tuple[Box, int]
"""A box in pixels of the image, and the image's width."""


def render(
    kind: MapFormat,
    values: FloatArray,
    image: Image.Image,
    cut: float | None,
    unseen: BoolArray | None = None,
    strongest: Strongest | None = None,
) -> dict[str, Any]:
    """The `map` of a result.

    Args:
        kind: its format.
        values: float32 [H, W] in [0, 1].
        image: the upright input, for an overlay.
        cut: for `rle` and `polygons`.
        unseen: see `mrad.maps.overlay`.
        strongest: what an overlay frames; None: nothing.
    """
    if kind == "png16":
        data: Any = _base64(png16(values))
    elif kind == "npy":
        data = _base64(npy(values))
    elif kind == "overlay":
        buffer = io.BytesIO()
        picture = overlay(image, values, unseen=unseen)
        if strongest is not None:
            mark_strongest(picture, *strongest)
        picture.save(buffer, "PNG", compress_level=1)
        data = _base64(buffer.getvalue())
    elif kind == "rle":
        data = run_lengths(values >= np.float32(cut or 0.0))
    else:
        found = regions(values, cut or 0.0)
        data = [{"polygon": region.polygon, "peak": region.peak} for region in found]
    return {"format": kind, "data": data}


def png16(values: FloatArray) -> bytes:
    """Grey PNG of 16 bit: steps of 1/65535."""
    steps = np.round(np.clip(values, 0, 1) * np.float32(65535)).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(steps).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def npy(values: FloatArray) -> bytes:
    """NumPy's own format, float32."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(values, dtype=np.float32), allow_pickle=False)
    return buffer.getvalue()


def run_lengths(inside: BoolArray) -> dict[str, Any]:
    """COCO's uncompressed RLE: column by column, runs of outside and inside in turn."""
    flat = inside.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {"size": list(inside.shape), "counts": [0, *counts] if flat[0] else counts}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
