"""Families of surfaces made by procedure: name -> RGB tile in 0..1, periodic or nearly so."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw
from scipy.spatial import cKDTree

from pretraining.fields import (
    Array,
    Rng,
    blur,
    colour,
    coordinates,
    lit,
    log_uniform,
    ramp,
    spectral,
    two_tone,
    unit_range,
)

Maker = Callable[[Rng, int], Array]
SURFACES: dict[str, Maker] = {}


def surface(*names: str) -> Callable[[Maker], Maker]:
    """Register a maker under the names that captions call it by."""

    def register(maker: Maker) -> Maker:
        for name in names:
            SURFACES[name] = maker
        return maker

    return register


@surface("brushed metal", "steel sheet", "metal plate", "ground metal surface")
def brushed(rng: Rng, side: int) -> Array:
    angle = rng.choice([0.0, np.pi / 2, rng.uniform(0, np.pi)])
    grain = spectral(rng, side, rng.uniform(0.1, 0.9), log_uniform(rng, 8, 120), angle)
    blotches = spectral(rng, side, rng.uniform(1.4, 2.4), log_uniform(rng, 1, 4), angle)
    fine = spectral(rng, side, rng.uniform(0, 0.4))
    mixed = grain * rng.uniform(0.4, 1) + blotches * rng.uniform(0, 1) + fine * rng.uniform(0, 0.5)
    return two_tone(rng, unit_range(mixed), rng.uniform(0.06, 0.45))


@surface("stone", "plaster wall", "ceramic surface")
def cloudy(rng: Rng, side: int) -> Array:
    field = spectral(rng, side, rng.uniform(0.6, 1.8), log_uniform(rng, 1, 2), rng.uniform(0, 3))
    return two_tone(rng, unit_range(field))


@surface("granite", "terrazzo")
def granite(rng: Rng, side: int) -> Array:
    beta = rng.uniform(0.5, 1.1)
    image = np.broadcast_to(colour(rng), (side, side, 3)).astype(np.float32)
    for _ in range(rng.integers(2, 5)):
        grains = spectral(rng, side, beta) > rng.uniform(0.3, 1.4)
        image = np.where(grains[..., None], colour(rng), image)
    return blur(image, rng.uniform(0.3, 0.9))


@surface("concrete", "cast iron")
def concrete(rng: Rng, side: int) -> Array:
    field = spectral(rng, side, rng.uniform(0.3, 1.0)) + spectral(rng, side, 1.6)
    pits = blur((spectral(rng, side, 0.5) > rng.uniform(1.8, 2.6)).astype(np.float32), 0.8)
    return two_tone(rng, unit_range(field)) - rng.uniform(0, 0.25) * pits[..., None]


@surface("wood", "wooden board")
def wood(rng: Rng, side: int) -> Array:
    angle = rng.choice([0.0, np.pi / 2]) + rng.normal(0, 0.08)
    _, across = coordinates(side, angle)
    bend = spectral(rng, side, 2.0, log_uniform(rng, 3, 10), angle) * rng.uniform(2, 14)
    rings = np.sin((across + bend) * 2 * np.pi / rng.uniform(8, 45))
    grain = spectral(rng, side, 0.4, log_uniform(rng, 15, 60), angle)
    return two_tone(rng, unit_range(rings * rng.uniform(0.3, 1) + grain * rng.uniform(0.2, 0.8)))


@surface("woven fabric", "textile", "canvas")
def woven(rng: Rng, side: int) -> Array:
    period, angle = log_uniform(rng, 4, 22), rng.choice([0.0, np.pi / 4, rng.uniform(0, np.pi)])
    x, y = coordinates(side, angle)
    jitter = spectral(rng, side, 1.5) * rng.uniform(0, 0.12) * period
    warp = np.sin((x + jitter) * 2 * np.pi / period)
    weft = np.sin((y + jitter) * 2 * np.pi / (period * rng.uniform(0.7, 1.4)))
    over = np.where(warp * weft > 0, np.abs(warp), np.abs(weft) * rng.uniform(0.3, 0.9))
    return two_tone(rng, np.clip(over + 0.08 * spectral(rng, side, 0.3), 0, 1))


@surface("carpet", "knitted wool", "felt")
def carpet(rng: Rng, side: int) -> Array:
    tufts = spectral(rng, side, rng.uniform(0.1, 0.5), log_uniform(rng, 1, 3), rng.uniform(0, 3))
    return two_tone(rng, unit_range(blur(tufts, rng.uniform(0.5, 1.5)) * 2))


@surface("leather", "rubber surface")
def leather(rng: Rng, side: int) -> Array:
    first, second = cells(rng, side, log_uniform(rng, 5, 22))
    relief = np.tanh((second - first) * rng.uniform(0.2, 0.8))
    shade = lit(blur(relief, 0.7), rng.uniform(0.3, 1.2), rng.uniform(0, 7))
    return two_tone(rng, np.clip(0.5 + shade + 0.3 * (relief - 0.5), 0, 1))


@surface("foam", "sponge")
def foam(rng: Rng, side: int) -> Array:
    first, _ = cells(rng, side, log_uniform(rng, 6, 26))
    return two_tone(rng, np.clip(first / first.max() * rng.uniform(0.8, 1.6), 0, 1))


@surface("ceramic tile", "tiled floor", "brick wall")
def tiles(rng: Rng, side: int) -> Array:
    width, height = log_uniform(rng, 30, 120), log_uniform(rng, 20, 100)
    x, y = coordinates(side, rng.normal(0, 0.03))
    row = np.floor(y / height)
    x = x + (row % 2) * width * rng.choice([0, 0.5])
    column, joint = np.floor(x / width), rng.uniform(1, 4)
    inside = (np.minimum(x - column * width, y - row * height) > joint).astype(np.float32)
    own = np.sin(column * 12.9898 + row * 78.233) * 43758.5453
    tone = (own - np.floor(own)) * rng.uniform(0, 0.4) + 0.3 * spectral(rng, side, 0.9)
    face = two_tone(rng, np.clip(tone + 0.4, 0, 1), rng.uniform(0.05, 0.3))
    edge = blur(inside, 0.7)[..., None]
    return np.asarray(face * edge + colour(rng) * (1 - edge), dtype=np.float32)


@surface("perforated plate", "dotted sheet")
def dots(rng: Rng, side: int) -> Array:
    pitch, angle = log_uniform(rng, 9, 36), rng.choice([0.0, np.pi / 4, rng.uniform(0, 1.5)])
    x, y = coordinates(side, angle)
    x = x + (np.floor(y / pitch) % 2) * pitch * rng.choice([0, 0.5])
    distance = np.hypot(x % pitch - pitch / 2, y % pitch - pitch / 2)
    inside = unit_range((pitch * rng.uniform(0.15, 0.38) - distance) * 2)
    base = two_tone(rng, unit_range(spectral(rng, side, 0.8)), rng.uniform(0.02, 0.2))
    return np.asarray(base + inside[..., None] * (colour(rng) - base), dtype=np.float32)


@surface("wire mesh", "grid")
def mesh(rng: Rng, side: int) -> Array:
    pitch, angle = log_uniform(rng, 10, 40), rng.choice([0.0, np.pi / 4, rng.uniform(0, 1.5)])
    x, y = coordinates(side, angle)
    wire = rng.uniform(0.08, 0.22) * pitch
    near = np.minimum(np.abs(x % pitch - pitch / 2), np.abs(y % pitch - pitch / 2))
    bars = unit_range((wire - near) * 2)
    values = np.clip(bars + 0.08 * spectral(rng, side, 0.6), 0, 1)
    return ramp(values, colour(rng), colour(rng))


@surface("plastic surface", "painted panel", "glass pane")
def smooth(rng: Rng, side: int) -> Array:
    shading = spectral(rng, side, 2.6) * rng.uniform(0, 1)
    noise = spectral(rng, side, rng.uniform(0, 0.5)) * rng.uniform(0.02, 0.4)
    return two_tone(rng, unit_range(shading + noise), rng.uniform(0.02, 0.2))


@surface("paper", "cardboard", "sand", "powder coating")
def grainy(rng: Rng, side: int) -> Array:
    grain = spectral(rng, side, rng.uniform(0, 0.4)) + 0.4 * spectral(rng, side, 1.6)
    return two_tone(rng, unit_range(grain), rng.uniform(0.05, 0.35))


@surface("corrugated sheet", "ribbed plastic", "striped film")
def ribs(rng: Rng, side: int) -> Array:
    angle, pitch = rng.choice([0.0, np.pi / 2, rng.uniform(0, np.pi)]), log_uniform(rng, 6, 40)
    x, _ = coordinates(side, angle)
    wave = np.sin((x + 0.04 * pitch * spectral(rng, side, 1.8)) * 2 * np.pi / pitch)
    sharp = np.tanh(wave * log_uniform(rng, 0.7, 6))
    return two_tone(rng, np.clip(0.5 + 0.4 * sharp + 0.06 * spectral(rng, side, 0.4), 0, 1))


@surface("printed circuit board", "circuit board")
def circuit(rng: Rng, side: int) -> Array:
    return paint_circuit(rng, tracks(rng, side))


def tracks(rng: Rng, side: int) -> Array:
    """Copper [side, side] in 0..1: parallel tracks with 45 degree bends, pads, holes."""
    canvas = Image.new("L", (side * 2, side * 2))
    pen = ImageDraw.Draw(canvas)
    width = log_uniform(rng, 3, 12) * 2
    pitch = width * rng.uniform(1.8, 3.2)
    upright, position = rng.random() < 0.5, rng.uniform(0, pitch)
    while position < side * 2:
        points, along, place = [], -10.0, position
        bend = rng.random() < 0.7
        while along < side * 2:
            points.append((along, place) if not upright else (place, along))
            along += rng.uniform(20, 160)
            points.append((along, place) if not upright else (place, along))
            if bend:
                shift = rng.choice([-1, 1]) * pitch * rng.uniform(0.3, 1.0)
                along, place = along + abs(shift), place + shift
        pen.line(points, fill=255, width=round(width), joint="curve")
        if rng.random() < 0.5:
            x, y = points[rng.integers(len(points))]
            radius = width * rng.uniform(0.8, 1.6)
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
            if rng.random() < 0.6:
                hole = radius * rng.uniform(0.3, 0.6)
                pen.ellipse((x - hole, y - hole, x + hole, y + hole), fill=0)
        position += pitch * rng.choice([1, 1, 1, 2, 3])
    small = canvas.resize((side, side), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / 255


def paint_circuit(rng: Rng, copper: Array) -> Array:
    """Copper in 0..1 -> RGB: black and white as a scanner's, or in colours."""
    if rng.random() < 0.5:
        dark, light = np.full(3, rng.uniform(0, 0.15)), np.full(3, rng.uniform(0.8, 1))
    else:
        dark, light = colour(rng, 0.05, 0.5), colour(rng, 0.4, 0.95)
    if rng.random() < 0.45:
        dark, light = light, dark
    grain = spectral(rng, len(copper), 0.5) * rng.choice([0.0, 0.0, 0.02, 0.06])
    return np.clip(ramp(copper, dark, light) + grain[..., None], 0, 1).astype(np.float32)


def cells(rng: Rng, side: int, spacing: float) -> tuple[Array, Array]:
    """Distance to the nearest and the second nearest of scattered points, pixels."""
    count = max(8, int((side / spacing) ** 2))
    tree = cKDTree(rng.uniform(0, side, (count, 2)), boxsize=side)
    grid = np.stack(np.mgrid[:side, :side], axis=-1).reshape(-1, 2).astype(np.float64)
    distance, _ = tree.query(grid, k=2)
    first, second = distance.T.astype(np.float32).reshape(2, side, side)
    return first, second
