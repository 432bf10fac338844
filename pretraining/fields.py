"""Random fields and shapes that surfaces and defects are made of. All float32, seeded by `rng`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

Array = npt.NDArray[np.float32]
Rng = np.random.Generator
OVERSAMPLE = 3
"""Lines are drawn so many times larger, then shrunk: their edges come out smooth."""


def log_uniform(rng: Rng, low: float, high: float) -> float:
    """A number whose logarithm is uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def spectral(rng: Rng, side: int, beta: float, stretch: float = 1.0, angle: float = 0.0) -> Array:
    """Periodic noise [side, side] with amplitude ~ 1 / frequency**beta, mean 0, deviation 1.

    `stretch` > 1 draws it out along `angle` (radians): brushing, grain.
    """
    fy = np.fft.fftfreq(side)[:, None]
    fx = np.fft.rfftfreq(side)[None]
    along = fx * np.cos(angle) + fy * np.sin(angle)
    across = fy * np.cos(angle) - fx * np.sin(angle)
    radius = np.sqrt((along * stretch) ** 2 + across**2)
    amplitude = np.maximum(radius, 1.0 / side) ** -beta
    amplitude[0, 0] = 0
    white = np.fft.rfft2(rng.standard_normal((side, side), dtype=np.float32))
    field = np.fft.irfft2(white * amplitude, s=(side, side)).astype(np.float32)
    return np.asarray(field / max(float(field.std()), 1e-6), dtype=np.float32)


def unit_range(field: Array) -> Array:
    """Squash a field of deviation 1 into [0, 1]."""
    return np.asarray(1 / (1 + np.exp(-1.5 * field)), dtype=np.float32)


def coordinates(side: int, angle: float = 0.0) -> tuple[Array, Array]:
    """x, y in pixels, turned by `angle` around the middle."""
    y, x = np.mgrid[:side, :side].astype(np.float32) - side / 2
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def colour(rng: Rng, low: float = 0.05, high: float = 0.95) -> Array:
    """A random colour [3], more often muted than loud."""
    grey = rng.uniform(low, high)
    tint = rng.normal(0, 0.12, 3) * rng.choice([0.3, 1.0, 2.0])
    return np.clip(grey + tint, low, high).astype(np.float32)


def ramp(values: Array, first: Array, second: Array) -> Array:
    """[H, W] in 0..1 -> [H, W, 3] between two colours."""
    return np.asarray(first + values[..., None] * (second - first), dtype=np.float32)


def two_tone(rng: Rng, values: Array, contrast: float | None = None) -> Array:
    """[H, W] in 0..1 -> RGB around one colour, lighter and darker by `contrast`."""
    base = colour(rng, 0.15, 0.85)
    step = rng.uniform(0.05, 0.5) if contrast is None else contrast
    tint = 1 + rng.normal(0, 0.15, 3).astype(np.float32)
    return ramp(values, base - step / 2 * tint, base + step / 2 * tint)


def blob(rng: Rng, shape: tuple[int, int], radius: float, edge: float = 1.5) -> Array:
    """A soft, lumpy spot [H, W] in 0..1, somewhere in the picture; `edge`: softness, pixels."""
    height, width = shape
    cy, cx = rng.uniform(0, height), rng.uniform(0, width)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    aspect, turn = log_uniform(rng, 0.4, 2.5), rng.uniform(0, np.pi)
    dx = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)
    dy = (y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)
    theta = np.arctan2(dy, dx)
    rim = np.ones_like(theta)
    for order in range(2, 7):
        rim += rng.normal(0, rng.uniform(0, 0.35) / order) * np.cos(
            order * theta + rng.uniform(0, 7)
        )
    distance = np.hypot(dx / np.sqrt(aspect), dy * np.sqrt(aspect)) - radius * rim
    return np.asarray(1 / (1 + np.exp(np.clip(distance / max(edge, 0.3), -30, 30))), np.float32)


def walk(rng: Rng, shape: tuple[int, int], length: float, wobble: float) -> npt.NDArray[np.float64]:
    """Points [n, 2] (x, y) of a line that changes its mind by `wobble` radians a step."""
    height, width = shape
    steps = max(3, int(length / 3))
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, wobble, steps))
    moves = 3 * np.stack([np.cos(heading), np.sin(heading)], axis=1)
    middle = np.array([rng.uniform(0.05, 0.95) * width, rng.uniform(0.05, 0.95) * height])
    points = np.cumsum(moves, axis=0)
    return np.asarray(points - points[steps // 2] + middle)


def stroke(shape: tuple[int, int], lines: list[npt.NDArray[np.float64]], thickness: float) -> Array:
    """Lines drawn with antialiasing: [H, W] in 0..1."""
    size = (shape[1] * OVERSAMPLE, shape[0] * OVERSAMPLE)
    canvas = Image.new("L", size)
    pen = ImageDraw.Draw(canvas)
    for points in lines:
        scaled = [(float(x) * OVERSAMPLE, float(y) * OVERSAMPLE) for x, y in points]
        pen.line(scaled, fill=255, width=max(1, round(thickness * OVERSAMPLE)), joint="curve")
    small = canvas.resize((shape[1], shape[0]), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / 255


def blur(image: Array, sigma: float) -> Array:
    """Gaussian blur of [H, W] or [H, W, 3]."""
    sigmas = (sigma, sigma, 0)[: image.ndim]
    return np.asarray(ndimage.gaussian_filter(image, sigmas, truncate=3.0), dtype=np.float32)


def lit(height_map: Array, strength: float, angle: float) -> Array:
    """Shading [H, W] around 0 of a relief lit from `angle`."""
    gy, gx = np.gradient(height_map)
    return np.asarray(strength * (gx * np.cos(angle) + gy * np.sin(angle)), dtype=np.float32)
