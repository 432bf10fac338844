"""Defects: each changes a picture somewhere and says where. Contrasts run from faint to plain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from pretraining.fields import (
    Array,
    Rng,
    blob,
    blur,
    colour,
    log_uniform,
    spectral,
    stroke,
    unit_range,
    walk,
)


@dataclass(frozen=True)
class Scene:
    """A picture before its defect. `inside`: where its subject is, 0..1."""

    image: Array  # [H, W, 3]
    inside: Array  # [H, W]
    other: Array  # [H, W, 3], another surface

    @property
    def shape(self) -> tuple[int, int]:
        return self.inside.shape[0], self.inside.shape[1]

    @property
    def side(self) -> int:
        return min(self.shape)


Change = Callable[[Rng, Scene], tuple[Array, Array]]
"""-> the changed picture and the share of each pixel that belongs to the defect, 0..1."""
DEFECTS: dict[str, Change] = {}


def defect(*names: str) -> Callable[[Change], Change]:
    """Register a change under the names that captions call it by."""

    def register(change: Change) -> Change:
        for name in names:
            DEFECTS[name] = change
        return change

    return register


def _tone(rng: Rng, image: Array, cover: Array) -> Array:
    """A colour that differs from what is under `cover` by a random amount, darker more often."""
    under = (image * cover[..., None]).sum((0, 1)) / max(float(cover.sum()), 1e-6)
    step = log_uniform(rng, 0.12, 0.8) * (-1 if rng.random() < 0.65 else 1)
    tint = 1 + rng.normal(0, rng.choice([0.05, 0.4]), 3)
    return np.clip(under + step * tint, 0, 1).astype(np.float32)


def _paint(image: Array, cover: Array, paint: Array) -> Array:
    return np.asarray(image + cover[..., None] * (paint - image), dtype=np.float32)


def _radius(rng: Rng, scene: Scene, low: float, high: float) -> float:
    return scene.side * log_uniform(rng, low, high)


@defect("a scratch", "a thin scratch")
def scratch(rng: Rng, scene: Scene) -> tuple[Array, Array]:
    lines = [
        walk(rng, scene.shape, scene.side * log_uniform(rng, 0.15, 1.0), rng.uniform(0, 0.06))
        for _ in range(rng.choice([1, 1, 1, 2, 3]))
    ]
    cover = stroke(scene.shape, lines, log_uniform(rng, 0.8, 3.5)) * rng.uniform(0.5, 1)
    return _paint(scene.image, cover, _tone(rng, scene.image, cover)), cover


@defect("a crack", "a fine crack")
def crack(rng: Rng, scene: Scene) -> tuple[Array, Array]:
    length, wobble = scene.side * log_uniform(rng, 0.2, 1.1), rng.uniform(0.1, 0.5)
    trunk = walk(rng, scene.shape, length, wobble)
    lines = [trunk]
    for _ in range(rng.choice([0, 0, 1, 2])):
        branch = walk(rng, scene.shape, length * rng.uniform(0.2, 0.6), wobble)
        lines.append(branch - branch[0] + trunk[rng.integers(len(trunk))])
    cover = stroke(scene.shape, lines, log_uniform(rng, 0.8, 2.8)) * rng.uniform(0.6, 1)
    dark = scene.image * rng.uniform(0.1, 0.75)
    return _paint(scene.image, cover, dark), cover


@defect("a spot", "a dark spot", "a pit")
def spot(rng: Rng, scene: Scene) -> tuple[Array, Array]:
    cover = np.zeros(scene.shape, np.float32)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        dot = blob(rng, scene.shape, _radius(rng, scene, 0.012, 0.06), rng.uniform(0.4, 1.5))
        cover = np.maximum(cover, dot)
    return _paint(scene.image, cover, _tone(rng, scene.image, cover)), cover


@defect("a hole", "a blowhole")
def hole(rng: Rng, scene: Scene) -> tuple[Array, Array]:
    cover = blob(rng, scene.shape, _radius(rng, scene, 0.02, 0.12), rng.uniform(0.4, 1.2))
    rim = np.clip(blur(cover, 1.5) - cover, 0, 1) * rng.uniform(0, 0.8)
    dark = scene.image * rng.uniform(0.0, 0.5)
    changed = _paint(scene.image, cover, dark) + rim[..., None]
    return changed, np.maximum(cover, (rim > 0.1) * cover)


@defect("a stain", "a smear")
def stain(rng: Rng, scene: Scene) -> tuple[Array, Array]:
    radius = _radius(rng, scene, 0.06, 0.3)
    cover = blob(rng, scene.shape, radius, log_uniform(rng, 0.8, 0.25 * radius + 1))
    lumpy = cover * (0.4 + 0.6 * unit_range(spectral(rng, scene.side, 1.6)))
    tone = 1 + rng.normal(0, 0.1, 3) * rng.choice([0, 1])
    factor = rng.choice([rng.uniform(0.35, 0.85), rng.uniform(1.15, 1.7)])
    return _paint(scene.image, lumpy, scene.image * (factor * tone).astype(np.float32)), cover


@defect("discoloration", "a discoloured area")
def discoloration(rng: Rng, scene: Scene) -> tuple[Array, Array]:
    cover = blob(rng, scene.shape, _radius(rng, scene, 0.08, 0.35), rng.uniform(0.6, 6))
    shift = rng.normal(0, 0.16, 3) if rng.random() < 0.5 else np.full(3, rng.normal(0, 0.2))
    return scene.image + cover[..., None] * shift.astype(np.float32), cover


@defect("contamination", "a foreign body", "dirt")
def contamination(rng: Rng, scene: Scene) -> tuple[Array, Array]:
    cover = np.zeros(scene.shape, np.float32)
    for _ in range(rng.choice([1, 1, 2, 5])):
        lump = blob(rng, scene.shape, _radius(rng, scene, 0.015, 0.12), rng.uniform(0.4, 1.0))
        cover = np.maximum(cover, lump)
    return _paint(scene.image, cover, 0.4 * colour(rng) + 0.6 * scene.other), cover


@defect("a chipped edge", "a broken corner", "a break")
def chip(rng: Rng, scene: Scene) -> tuple[Array, Array]:
    """Bites into the subject's rim, or into the picture's own edge where the subject fills it."""
    bite = blob(rng, scene.shape, _radius(rng, scene, 0.04, 0.2), rng.uniform(0.4, 1.5))
    rim = np.clip(4 * scene.inside * (1 - blur(scene.inside, 2)), 0, 1)
    places = np.argwhere(rim > 0.3)
    if len(places):
        target = places[rng.integers(len(places))]
    else:
        target = np.array([rng.choice([0, scene.shape[0] - 1]), rng.integers(scene.shape[1])])
        target = target if rng.random() < 0.5 else target[::-1]
    move = target - np.array(ndimage.center_of_mass(bite))
    cover = np.clip(ndimage.shift(bite, move, order=1), 0, 1) * scene.inside
    rough = 0.1 * spectral(rng, scene.side, 0.8)[..., None]
    fill = scene.image * rng.uniform(0.1, 0.7) + rough * rng.uniform(0, 1)
    return _paint(scene.image, cover, fill.astype(np.float32)), cover.astype(np.float32)


@defect("a missing part", "a gap")
def missing(rng: Rng, scene: Scene) -> tuple[Array, Array]:
    cover = blob(rng, scene.shape, _radius(rng, scene, 0.04, 0.16), 0.6) * scene.inside
    ground = scene.image[scene.inside < 0.1]
    fill = ground.mean(0) if len(ground) > 50 else blur(scene.image, scene.side / 8)
    return _paint(scene.image, cover, np.asarray(fill, dtype=np.float32)), cover


@defect("a displaced part", "a misaligned pattern")
def displaced(rng: Rng, scene: Scene) -> tuple[Array, Array]:
    cover = blob(rng, scene.shape, _radius(rng, scene, 0.07, 0.22), 0.7)
    turned = rng.random() < 0.5
    moved = np.rot90(scene.image, rng.integers(1, 4)) if turned else scene.image[:, ::-1]
    moved = np.roll(moved, tuple(rng.integers(3, scene.side // 2, 2)), (0, 1))
    return _paint(scene.image, cover, np.ascontiguousarray(moved)), cover


@defect("a rough area", "a frayed area", "an uneven area")
def uneven(rng: Rng, scene: Scene) -> tuple[Array, Array]:
    """The grain changes: another contrast and level of the same surface, or a rougher one."""
    if rng.random() < 0.4:
        cover = _band(rng, scene)
    else:
        cover = blob(rng, scene.shape, _radius(rng, scene, 0.08, 0.35), rng.uniform(0.6, 4))
    level = blur(scene.image, rng.uniform(4, 12))
    other = np.roll(scene.image, tuple(rng.integers(5, scene.side - 5, 2)), (0, 1))
    grain = (other - blur(other, 6)) * log_uniform(rng, 0.3, 3.0)
    rough = spectral(rng, scene.side, rng.uniform(0, 1))[..., None] * rng.choice([0, 0.05, 0.12])
    fill = level + grain + rough + rng.normal(0, 0.1)
    return _paint(scene.image, cover, fill.astype(np.float32)), cover


def _band(rng: Rng, scene: Scene) -> Array:
    height, width = scene.shape
    line = np.zeros(scene.shape, np.float32)
    first = int(rng.uniform(-0.2, 0.8) * height)
    line[max(0, first) : max(2, first + int(height * rng.uniform(0.1, 0.45)))] = 1
    if rng.random() < 0.5:
        line[:, : int(width * rng.uniform(0, 0.5))] = 0
    line = np.rot90(line, rng.integers(4)) if height == width else line
    return blur(np.ascontiguousarray(line), rng.uniform(0.5, 3))


@defect("blur", "a blurred area")
def blurred(rng: Rng, scene: Scene) -> tuple[Array, Array]:
    cover = blob(rng, scene.shape, _radius(rng, scene, 0.08, 0.3), rng.uniform(0.8, 3))
    return _paint(scene.image, cover, blur(scene.image, log_uniform(rng, 1, 4))), cover


@defect("a fold", "a wrinkle", "a dent")
def fold(rng: Rng, scene: Scene) -> tuple[Array, Array]:
    if rng.random() < 0.5:
        line = walk(rng, scene.shape, scene.side * log_uniform(rng, 0.3, 1.2), 0.05)
        ridge = blur(stroke(scene.shape, [line], 2.0), log_uniform(rng, 1, 4))
    else:
        ridge = blob(rng, scene.shape, _radius(rng, scene, 0.05, 0.18), log_uniform(rng, 2, 8))
    gy, gx = np.gradient(ridge / max(float(ridge.max()), 1e-6))
    light = rng.uniform(0, 2 * np.pi)
    shade = gx * np.cos(light) + gy * np.sin(light)
    shade *= log_uniform(rng, 0.12, 0.6) / max(float(np.abs(shade).max()), 1e-6)
    change = np.abs(shade)
    return scene.image + shade[..., None], np.clip(4 * change / change.max(), 0, 1) * 1.0


@defect("a thread", "a hair", "a bent wire")
def thread(rng: Rng, scene: Scene) -> tuple[Array, Array]:
    line = walk(rng, scene.shape, scene.side * log_uniform(rng, 0.3, 1.5), rng.uniform(0.1, 0.3))
    cover = stroke(scene.shape, [line], log_uniform(rng, 0.7, 2.0))
    return _paint(scene.image, cover, _tone(rng, scene.image, cover)), cover


CIRCUIT_DEFECTS = (
    "an open track",
    "a short",
    "a mouse bite",
    "a spur",
    "spurious copper",
    "a pinhole",
)


def spoil_circuit(rng: Rng, copper: Array, name: str) -> tuple[Array, Array]:
    """A defect of a printed circuit in its copper [H, W] in 0..1 -> copper and cover."""
    shape = copper.shape[0], copper.shape[1]
    solid = copper > 0.5
    depth = ndimage.distance_transform_edt(solid)
    width = 2 * float(np.percentile(depth[solid], 90)) if solid.any() else 4.0
    width = min(max(2.0, width), log_uniform(rng, 6, 20))
    near = {
        "an open track": depth > 0.35 * width,
        "a short": ~solid & (ndimage.distance_transform_edt(~solid) > 0.3 * width),
        "a mouse bite": solid & (depth < 1.6),
        "a spur": ~solid & ndimage.binary_dilation(solid),
        "spurious copper": ~solid,
        "a pinhole": depth > 0.3 * width,
    }[name]
    places = np.argwhere(near)
    if not len(places):
        return copper, np.zeros(shape, np.float32)
    size = {"an open track": 0.75, "a short": 1.1, "spurious copper": 0.6, "a pinhole": 0.22}
    radius = width * size.get(name, 0.42) * rng.uniform(0.5, 1.2)
    lump = _slit(rng, shape, radius) if rng.random() < 0.5 else blob(rng, shape, radius, 0.4)
    move = places[rng.integers(len(places))] - np.array(ndimage.center_of_mass(lump))
    lump = np.clip(ndimage.shift(lump, move, order=1), 0, 1).astype(np.float32)
    adds = name in ("a short", "a spur", "spurious copper")
    changed = np.maximum(copper, lump) if adds else copper * (1 - lump)
    cover = np.abs(changed - copper)
    return changed.astype(np.float32), cover.astype(np.float32)


def _slit(rng: Rng, shape: tuple[int, int], radius: float) -> Array:
    """A short stroke, as a hair on the film or a knife leaves it."""
    line = walk(rng, shape, max(4.0, 3 * radius), rng.uniform(0, 0.25))
    return stroke(shape, [line], min(log_uniform(rng, 1.0, 4.0), max(1.2, radius)))
