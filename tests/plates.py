"""A product that moves in its pictures, for tests of alignment."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

SIZE = (480, 360)
LEFT, RIGHT = (100, 100, 220, 240), (250, 110, 370, 250)


def plate(seed: int = 0, *, defect: bool = False) -> Image.Image:
    """A product of its own for each seed: some shapes on a plain ground; a defect in its right part."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", SIZE, (120, 124, 130))
    draw = ImageDraw.Draw(image)
    for _ in range(45):
        x, y = rng.integers(90, 370), rng.integers(90, 250)
        w, h = rng.integers(8, 36, 2)
        colour = tuple(int(c) for c in rng.integers(10, 245, 3))
        (draw.rectangle if rng.random() < 0.5 else draw.ellipse)((x, y, x + w, y + h), fill=colour)
    if defect:
        draw.rectangle((300, 170, 330, 200), fill=(255, 0, 255))
    return image


def moved(image: Image.Image, shift: tuple[int, int] = (0, 0), turn: float = 0.0) -> Image.Image:
    return image.rotate(turn, Image.Resampling.BICUBIC, translate=shift, fillcolor=(120, 124, 130))


def carried(point: tuple[float, float], shift: tuple[int, int], turn: float) -> np.ndarray:
    """Where `moved` takes a point: turned about the middle, then shifted."""
    angle, middle = np.radians(-turn), np.array(SIZE) / 2
    wheel = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return wheel @ (np.array(point) - middle) + middle + shift
