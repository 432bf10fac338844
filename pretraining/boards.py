"""Copper of printed boards: pours, bundles of tracks, nets between pads, vias; edges as etched."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from pretraining.fields import Array, Rng, blur, log_uniform, spectral

SCALE = 2
"""Drawn so many times larger, then shrunk."""
GRID = 20
"""Of a net's pads and of vias, pixels as drawn."""


def board(rng: Rng, side: int) -> Array:
    """Copper [side, side] in 0..1, shapes from a few pixels to most of the picture."""
    full = side * SCALE
    canvas = Image.new("L", (full, full))
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(0, 3)):
        _pour(rng, pen, full)
    for _ in range(rng.integers(1, 5)):
        _bundle(rng, pen, full)
    for _ in range(rng.integers(0, 4)):
        _pads(rng, pen, full)
    for _ in range(rng.integers(0, 12)):
        _net(rng, pen, full)
    if rng.random() < 0.5:
        _vias(rng, pen, full)
    drawn = np.asarray(canvas, dtype=np.float32) / 255
    drawn = 1 - drawn if rng.random() < 0.25 else drawn
    etched = Image.fromarray(_etched(rng, drawn)).resize((side, side), Image.Resampling.BOX)
    return np.asarray(etched, dtype=np.float32)


def _etched(rng: Rng, drawn: Array) -> Array:
    """Rounded corners and ragged edges: what is flawless must not be as smooth as a drawing."""
    soft = blur(drawn, rng.uniform(0.8, 2.0))
    rough = blur(spectral(rng, len(drawn), 0), rng.uniform(1.0, 2.5))
    rough = rough / max(float(rough.std()), 1e-6) * rng.uniform(0, 0.16)
    return np.clip((soft + rough - 0.5) * 4 + 0.5, 0, 1).astype(np.float32)


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
        radius, u, v = log_uniform(rng, 6, 60), *rng.uniform(0.2, 0.8, 2)
        _disc(pen, x + u * width, y + v * height, radius, 0)


def _bundle(rng: Rng, pen: ImageDraw.ImageDraw, full: int) -> None:
    """One to six parallel tracks that turn together by 45 degrees; pads at their ends."""
    width, count = log_uniform(rng, 3, 36), int(rng.integers(1, 7))
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
                _pad(rng, pen, x, y, width * rng.uniform(0.7, 1.5))


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


def _net(rng: Rng, pen: ImageDraw.ImageDraw, full: int) -> None:
    """Two to four pads on a grid, joined by tracks that run aslant and then straight."""
    width = log_uniform(rng, 3, 24)
    radius = max(6.0, width) * rng.uniform(1.0, 2.2)
    x, y = rng.uniform(0, full, 2) // GRID * GRID
    for _ in range(rng.integers(1, 4)):
        dx, dy = rng.normal(0, 0.2, 2) * full // GRID * GRID
        slant = min(abs(dx), abs(dy))
        knee = (x + slant * np.sign(dx), y + slant * np.sign(dy))
        pen.line([(x, y), knee, (x + dx, y + dy)], fill=255, width=round(width), joint="curve")
        _pad(rng, pen, x, y, radius)
        x, y = x + dx, y + dy
    _pad(rng, pen, x, y, radius)


def _vias(rng: Rng, pen: ImageDraw.ImageDraw, full: int) -> None:
    """Dots of one size, on a grid with gaps, over a part of the picture: no defects."""
    radius, pitch = log_uniform(rng, 3, 9), GRID * int(rng.integers(1, 5))
    left, top, right, bottom = np.sort(rng.uniform(0, full, (2, 2)), axis=0).flatten()
    for x in np.arange(left, right, pitch):
        for y in np.arange(top, bottom, pitch):
            if rng.random() < 0.4:
                _disc(pen, x, y, radius, 255)


def _pad(rng: Rng, pen: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    """A disc or a square; often with a hole."""
    if rng.random() < 0.6:
        _disc(pen, x, y, radius, 255)
    else:
        pen.rectangle((x - radius, y - radius, x + radius, y + radius), fill=255)
    if rng.random() < 0.4:
        _disc(pen, x, y, radius * rng.uniform(0.3, 0.55), 0)


def _disc(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: int) -> None:
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
