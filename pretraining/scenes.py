"""Pictures in pairs: the same thing without and with a defect, its mask and both captions."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from pretraining.boards import board
from pretraining.captions import pair
from pretraining.defects import CIRCUIT_DEFECTS, DEFECTS, Scene, spoil_circuit
from pretraining.fields import Array, Rng, blur, colour, coordinates, log_uniform, spectral
from pretraining.objects import OBJECTS, render, scan
from pretraining.surfaces import SURFACES, paint_circuit, tracks

KINDS = ("flawless", *DEFECTS, *CIRCUIT_DEFECTS)
"""Classes of the defect head; number 0 is no defect."""
VISIBLE = 0.04
"""Mean change of a pixel's colour from which it counts as changed."""


@dataclass(frozen=True)
class Pair:
    """One subject twice. Pictures float32 [S, S, 3] in 0..1; mask float32 [S, S] in 0..1."""

    good: Array
    bad: Array
    mask: Array
    captions: tuple[str, str]
    kind: int


class Tiles:
    """Surfaces that many crops share: making one costs as much as twenty crops."""

    def __init__(self, rng: Rng, count: int, side: int) -> None:
        names = list(SURFACES)
        makers = [names[i] for i in rng.integers(len(names), size=count)]
        self.side = side
        self.tiles = [(name, SURFACES[name](rng, side).clip(0, 1)) for name in makers]

    def crop(self, rng: Rng, side: int) -> tuple[str, Array]:
        """A crop [side, side, 3], turned, mirrored and scaled by 0.6 to 1.8."""
        name, tile = self.tiles[rng.integers(len(self.tiles))]
        scale = min(log_uniform(rng, 0.6, 1.8), self.side / side)
        window = min(self.side, round(side * scale))
        top, left = rng.integers(0, self.side - window + 1, 2)
        part = tile[top : top + window, left : left + window]
        part = np.rot90(part, rng.integers(4))
        part = part[::-1] if rng.random() < 0.5 else part
        return name, resized(np.ascontiguousarray(part), side)


def resized(image: Array, side: int) -> Array:
    """[H, W, 3] -> [side, side, 3], bicubic by Pillow as at inference."""
    if image.shape[:2] == (side, side):
        return image
    picture = Image.fromarray((image.clip(0, 1) * 255).astype(np.uint8))
    small = picture.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(small, dtype=np.float32) / 255


def make_pair(rng: Rng, tiles: Tiles, side: int, boost: float = 1.0) -> Pair:
    """One pair of side x side pixels. The defect is visible, or another is tried.

    `boost` > 1 makes contrasts stronger, for the beginning of training.
    """
    for _ in range(8):
        made = _circuit(rng, side) if rng.random() < 0.25 else _general(rng, tiles, side, boost)
        if made is not None:
            return made
    raise RuntimeError("no visible defect in eight tries: check the defects' contrasts")


def _circuit(rng: Rng, side: int) -> Pair | None:
    kind = CIRCUIT_DEFECTS[rng.integers(len(CIRCUIT_DEFECTS))]
    copper = tracks(rng, side) if rng.random() < 0.15 else board(rng, side)
    spoilt, cover = copper, np.zeros_like(copper)
    for _ in range(rng.choice([1, 2, 4, 8])):
        spoilt, more = spoil_circuit(rng, spoilt, kind)
        cover = np.maximum(cover, more)
    if rng.random() < 0.4:
        return _scanned(rng, copper, spoilt, cover, kind)
    seed = int(rng.integers(1 << 31))
    good, bad = (paint_circuit(np.random.default_rng(seed), c) for c in (copper, spoilt))
    return _finish(rng, good, bad, cover, "printed circuit board", kind)


def _scanned(rng: Rng, copper: Array, spoilt: Array, cover: Array, kind: str) -> Pair | None:
    """As a scanner for boards delivers them: two tones, and no camera behind them."""
    if rng.random() < 0.7:
        copper, spoilt = 1 - copper, 1 - spoilt
    good, bad = (np.repeat(c[..., None], 3, axis=2) for c in (copper, spoilt))
    return _finish(rng, good, bad, cover, "printed circuit board", kind, camera=False)


def _general(rng: Rng, tiles: Tiles, side: int, boost: float) -> Pair | None:
    subject, scene = _scene(rng, tiles, side)
    names = list(DEFECTS)
    kind = names[rng.integers(len(names))]
    bad, cover = DEFECTS[kind](rng, scene)
    cover = cover * (scene.inside > 0.3)
    bad = scene.image + boost * (cover > 0)[..., None] * (bad - scene.image)
    return _finish(rng, scene.image, bad, cover, subject, kind)


def _scene(rng: Rng, tiles: Tiles, side: int) -> tuple[str, Scene]:
    name, face = tiles.crop(rng, side)
    _, other = tiles.crop(rng, side)
    draw = rng.random()
    if draw < 0.58:
        return name, Scene(face, np.ones((side, side), np.float32), other)
    if draw < 0.72:
        image, inside = _framed(rng, face)
        return name, Scene(image, inside, other)
    if draw < 0.8:
        image, inside = scan(rng, side)
        return str(rng.choice(["tissue scan", "body scan"])), Scene(image, inside, other)
    thing = list(OBJECTS)[rng.integers(len(OBJECTS))]
    ground = np.broadcast_to(colour(rng), face.shape) if rng.random() < 0.6 else other
    image, inside = render(rng, OBJECTS[thing], face, np.asarray(ground, dtype=np.float32))
    return thing, Scene(image, inside, other)


def _framed(rng: Rng, face: Array) -> tuple[Array, Array]:
    """A surface whose own wavy border shows against a plain ground on one to four sides."""
    side = len(face)
    inside = np.ones((side, side), np.float32)
    across = np.arange(side, dtype=np.float32)
    for turn in range(4):
        if rng.random() < 0.6:
            wave = spectral(rng, side, 1.8)[0] * rng.uniform(0, 2)
            edge = side * rng.uniform(0.01, 0.12) + wave + (across - side / 2) * rng.normal(0, 0.03)
            keep = 1 / (1 + np.exp(np.clip((edge[None] - across[:, None]) * 1.5, -30, 30)))
            inside *= np.rot90(keep, turn).astype(np.float32)
    ground = colour(rng, 0.0, 0.3) if rng.random() < 0.7 else colour(rng)
    return (ground + inside[..., None] * (face - ground)).astype(np.float32), inside


def _finish(
    rng: Rng, good: Array, bad: Array, cover: Array, subject: str, kind: str, camera: bool = True
) -> Pair | None:
    # Blurred, so that the mask of a changed grain is an area and not a cloud of its pixels.
    changed = blur(np.abs(bad.clip(0, 1) - good.clip(0, 1)).mean(axis=2), 1.0)
    mask = ((changed > VISIBLE) & (cover > 0.2)).astype(np.float32)
    if mask.sum() < 6 or mask.mean() > 0.5:
        return None
    if camera:
        good, bad = _photograph(rng, good, bad)
    return Pair(good, bad, mask, pair(rng, subject, kind), KINDS.index(kind))


def _photograph(rng: Rng, good: Array, bad: Array) -> tuple[Array, Array]:
    """Light, lens and camera, the same for both but for the noise of each shot."""
    side = len(good)
    x, y = coordinates(side, rng.uniform(0, 7))
    light = 1 + rng.normal(0, 0.25) * x / side
    light = light - rng.uniform(0, 0.5) * (rng.random() < 0.4) * (x**2 + y**2) / side**2
    if rng.random() < 0.3:
        light = light + 0.12 * rng.random() * spectral(rng, side, 2.2)
    gain, lift, gamma = rng.uniform(0.6, 1.3), rng.normal(0, 0.05), log_uniform(rng, 0.7, 1.4)
    grey, sigma = rng.random() < 0.45, rng.uniform(0.2, 0.9) * (rng.random() < 0.4)
    noise, quality = rng.choice([0.0, 0.01, 0.03]), int(rng.integers(40, 96))
    shots = []
    for image in (good, bad):
        shot = (image * light[..., None] * gain + lift).clip(0, 1) ** gamma
        shot = shot.mean(axis=2, keepdims=True).repeat(3, axis=2) if grey else shot
        shot = blur(shot.astype(np.float32), sigma) if sigma > 0 else shot
        shot = shot + rng.normal(0, noise, shot.shape) if noise else shot
        shots.append(_jpeg(shot, quality) if quality < 70 else shot.clip(0, 1).astype(np.float32))
    return shots[0], shots[1]


def _jpeg(image: Array, quality: int) -> Array:
    buffer = io.BytesIO()
    Image.fromarray((image.clip(0, 1) * 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer), dtype=np.float32) / 255


def coverage(mask: Array, grid: int) -> Array:
    """Share of each cell that is anomalous: [S, S] -> [grid, grid]."""
    cell = len(mask) // grid
    return np.asarray(
        mask[: cell * grid, : cell * grid].reshape(grid, cell, grid, cell).mean(axis=(1, 3))
    )


def near(cells: Array) -> Array:
    """Cells within one step of an anomalous one: neither normal nor anomalous for training."""
    return np.asarray(ndimage.binary_dilation(cells > 0, np.ones((3, 3))))
