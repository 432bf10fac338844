"""Simple things on a background, and scans: pictures whose parts matter, not only their grain."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from pretraining.fields import Array, Rng, blob, blur, coordinates, log_uniform, spectral

Shape = Callable[[Rng, int], Array]
"""Signed distance [side, side], pixels, negative inside."""
OBJECTS: dict[str, Shape] = {}


def thing(*names: str) -> Callable[[Shape], Shape]:
    """Register a shape under the names that captions call it by."""

    def register(shape: Shape) -> Shape:
        for name in names:
            OBJECTS[name] = shape
        return shape

    return register


def _placed(rng: Rng, side: int) -> tuple[Array, Array, float]:
    x, y = coordinates(side, rng.uniform(0, 2 * np.pi))
    shift = rng.normal(0, 0.05 * side, 2)
    return x - shift[0], y - shift[1], side * rng.uniform(0.25, 0.46)


@thing("tablet", "coin", "bottle cap")
def disc(rng: Rng, side: int) -> Array:
    x, y, radius = _placed(rng, side)
    return np.asarray(np.hypot(x, y * rng.uniform(1, 1.4)) - radius, dtype=np.float32)


@thing("capsule", "rod", "cable")
def capsule(rng: Rng, side: int) -> Array:
    x, y, radius = _placed(rng, side)
    thick = radius * rng.uniform(0.25, 0.6)
    reach = np.maximum(np.abs(x) - (radius - thick), 0)
    return np.asarray(np.hypot(reach, y) - thick, dtype=np.float32)


@thing("washer", "gasket", "bottle rim")
def ring(rng: Rng, side: int) -> Array:
    x, y, radius = _placed(rng, side)
    thick = radius * rng.uniform(0.15, 0.4)
    return np.asarray(np.abs(np.hypot(x, y) - (radius - thick)) - thick, dtype=np.float32)


@thing("metal nut", "hexagonal plate")
def nut(rng: Rng, side: int) -> Array:
    x, y, radius = _placed(rng, side)
    distance = np.full_like(x, -np.inf)
    for turn in np.arange(3) * np.pi / 3:
        distance = np.maximum(distance, np.abs(x * np.cos(turn) + y * np.sin(turn)) - radius * 0.87)
    hole = radius * rng.uniform(0.3, 0.55)
    return np.asarray(np.maximum(distance, hole - np.hypot(x, y)), dtype=np.float32)


@thing("gear", "cogwheel")
def gear(rng: Rng, side: int) -> Array:
    x, y, radius = _placed(rng, side)
    teeth = np.tanh(4 * np.sin(np.arctan2(y, x) * rng.integers(8, 20)))
    outer = np.hypot(x, y) - radius * (0.9 + 0.08 * teeth)
    hole = radius * rng.uniform(0.15, 0.5)
    return np.asarray(np.maximum(outer, hole - np.hypot(x, y)), dtype=np.float32)


@thing("bracket", "connector", "metal part")
def plate(rng: Rng, side: int) -> Array:
    x, y, radius = _placed(rng, side)
    wide, high = radius, radius * rng.uniform(0.4, 1)
    distance = np.maximum(np.abs(x) - wide, np.abs(y) - high)
    for _ in range(rng.integers(0, 4)):
        hole = np.hypot(x - rng.uniform(-0.7, 0.7) * wide, y - rng.uniform(-0.7, 0.7) * high)
        distance = np.maximum(distance, radius * rng.uniform(0.08, 0.2) - hole)
    return np.asarray(distance, dtype=np.float32)


def render(rng: Rng, shape: Shape, face: Array, background: Array) -> tuple[Array, Array]:
    """The thing with `face` as its skin, on `background`: RGB and its silhouette in 0..1."""
    side = len(face)
    distance = shape(rng, side)
    inside = 1 / (1 + np.exp(np.clip(distance * 2, -30, 30)))
    depth = np.minimum(-distance, 12) * (distance < 0)
    gy, gx = np.gradient(blur(depth.astype(np.float32), 1.0))
    light = rng.uniform(0, 2 * np.pi)
    shade = rng.uniform(0, 0.35) * (gx * np.cos(light) + gy * np.sin(light))
    cast = ndimage.shift(inside, (3, 3), order=0) * rng.uniform(0, 0.3)
    ground = background * (1 - cast[..., None])
    skin = face + shade[..., None]
    mixed = ground + inside[..., None] * (skin - ground)
    return mixed.astype(np.float32), inside.astype(np.float32)


def scan(rng: Rng, side: int) -> tuple[Array, Array]:
    """A grey picture as a scanner's: a body of tissue with organs and vessels, on black."""
    shape = (side, side)
    x, y = coordinates(side, rng.uniform(0, 3))
    body = np.hypot(x / rng.uniform(0.6, 0.95), y / rng.uniform(0.6, 0.95)) < side / 2
    tissue = 0.35 + 0.08 * spectral(rng, side, rng.uniform(0.8, 1.6))
    for _ in range(rng.integers(2, 6)):
        organ = blob(rng, shape, side * rng.uniform(0.05, 0.25), log_uniform(rng, 1, 6))
        tissue = tissue + organ * rng.normal(0, 0.12)
    vessels = np.abs(spectral(rng, side, 1.4)) < 0.06
    tissue = tissue + blur(vessels.astype(np.float32), 0.8) * rng.uniform(-0.15, 0.25)
    inside = blur(body.astype(np.float32), 1.5)
    noisy = tissue * inside + 0.02 * spectral(rng, side, 0.2)
    return np.repeat(noisy[..., None], 3, axis=2).astype(np.float32), inside
