"""Copper of printed boards: pours, thick tracks at right and half right angles, pads with holes."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from pretraining.fields import Array, Rng, log_uniform

SCALE = 2
"""Drawn so many times larger, then shrunk."""


def board(rng: Rng, side: int) -> Array:
    """Copper [side, side] in 0..1, shapes from a few pixels to most of the picture."""
    full = side * SCALE
    canvas = Image.new("L", (full, full))
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(0, 4)):
        _pour(rng, pen, full)
    for _ in range(rng.integers(2, 6)):
        _bundle(rng, pen, full)
    for _ in range(rng.integers(1, 5)):
        _pads(rng, pen, full)
    small = canvas.resize((side, side), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / 255


def _pour(rng: Rng, pen: ImageDraw.ImageDraw, full: int) -> None:
    """An area of copper with cut corners, or a disc; sometimes cleared from around a hole."""
    x, y = rng.uniform(-0.2, 1, 2) * full
    width, height = rng.uniform(0.15, 0.7, 2) * full
    if rng.random() < 0.25:
        pen.ellipse((x, y, x + width, y + width), fill=255)
    else:
        cut = rng.uniform(0, 0.3) * min(width, height)
        pen.polygon(
            [(x + cut, y), (x + width, y), (x + width, y + height - cut),
             (x + width - cut, y + height), (x, y + height), (x, y + cut)], fill=255,
        )  # fmt: skip
    if rng.random() < 0.4:
        radius, u, v = log_uniform(rng, 4, 24), *rng.uniform(0.2, 0.8, 2)
        _disc(pen, x + u * width, y + v * height, radius, 0)


def _bundle(rng: Rng, pen: ImageDraw.ImageDraw, full: int) -> None:
    """One to six parallel tracks that turn together by 45 degrees; pads at their ends."""
    width, count = log_uniform(rng, 3, 26), int(rng.integers(1, 7))
    pitch = width * rng.uniform(1.7, 3)
    heading = int(rng.integers(8))
    point = rng.uniform(0, full, 2)
    corners = [point]
    for _ in range(rng.integers(1, 5)):
        angle = heading * np.pi / 4
        point = point + rng.uniform(0.08, 0.5) * full * np.array([np.cos(angle), np.sin(angle)])
        corners.append(point)
        heading += int(rng.choice([-1, 1]))
    across = np.array([1.0, 0.41]) if heading % 2 else np.array([0.41, 1.0])
    for number in range(count):
        line = [tuple(corner + number * pitch * across) for corner in corners]
        pen.line(line, fill=255, width=max(2, round(width)), joint="curve")
        for x, y in (line[0], line[-1]):
            if rng.random() < 0.6:
                radius = width * rng.uniform(0.7, 1.5)
                _disc(pen, x, y, radius, 255)
                if rng.random() < 0.6:
                    _disc(pen, x, y, radius * rng.uniform(0.3, 0.55), 0)


def _pads(rng: Rng, pen: ImageDraw.ImageDraw, full: int) -> None:
    """A row of equal pads."""
    width, height = log_uniform(rng, 6, 50), log_uniform(rng, 6, 50)
    x, y = rng.uniform(0, full, 2)
    pitch, upright, round_ = rng.uniform(1.3, 2.5), rng.random() < 0.5, rng.random() < 0.5
    for _ in range(rng.integers(1, 8)):
        shape = (x, y, x + width, y + height)
        pen.ellipse(shape, fill=255) if round_ else pen.rectangle(shape, fill=255)
        if upright:
            y += pitch * height
        else:
            x += pitch * width


def _disc(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: int) -> None:
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
