"""Keys in stretched clusters, like the patches of a few surfaces; for the tests of retrieval."""

from __future__ import annotations

import numpy as np

WIDTH, COUNT, SURFACES = 96, 6_000, 40


def clustered(count: int, seed: int, scale: float = 1.0) -> np.ndarray:
    """[count, WIDTH] points of norm `scale` in 40 clusters; `seed` draws other points of the same."""
    centres = np.random.default_rng(99).normal(size=(SURFACES, WIDTH))
    stretch = np.geomspace(1.5, 0.02, WIDTH)
    rng = np.random.default_rng(seed)
    points = centres[rng.integers(0, SURFACES, count)] + rng.normal(size=(count, WIDTH)) * stretch
    return (scale * points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def mixed_labels(count: int = COUNT, seed: int = 0) -> np.ndarray:
    """[count] for the points of `clustered`: every third surface is mostly anomalous."""
    surface = np.random.default_rng(seed).integers(0, SURFACES, count)
    flipped = np.random.default_rng(seed + 1).random(count) < 0.1
    return ((surface % 3 == 0) ^ flipped).astype(np.uint8)
