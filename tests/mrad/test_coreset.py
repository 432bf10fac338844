"""Few keys for many: coverage, and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for `clusters`, under any import mode

from clusters import clustered

from mrad.errors import DimensionError, MRADError, NonFiniteError
from mrad.memory.coreset import greedy_coreset, reduced
from mrad.memory.level import LevelMemory


def covering_radius(vectors: torch.Tensor, rows: np.ndarray) -> float:
    """Largest distance of one of the vectors from its nearest picked one."""
    return float(torch.cdist(vectors, vectors[torch.from_numpy(rows)]).amin(dim=1).max())


def test_coreset_covers_far_better_than_chance() -> None:
    rng = np.random.default_rng(0)
    points = torch.from_numpy(clustered(3_000, 0))
    rows = greedy_coreset(points, 100, projected=0)
    assert len(np.unique(rows)) == 100
    chance = [covering_radius(points, rng.choice(3_000, 100, replace=False)) for _ in range(5)]
    assert covering_radius(points, rows) < 0.9 * min(chance)
    # Greedy's guarantee: every pick was at least as far out as what stays uncovered.
    apart = torch.cdist(points[rows], points[rows]) + torch.eye(100) * 9
    assert apart.min() >= covering_radius(points, rows) - 1e-3


def test_coreset_takes_all_there_are_and_refuses_nonsense() -> None:
    points = torch.from_numpy(clustered(10, 0))
    assert sorted(greedy_coreset(points, 50)) == list(range(10))
    with pytest.raises(MRADError):
        greedy_coreset(points, 0)
    with pytest.raises(DimensionError):
        greedy_coreset(points[0], 3)
    with pytest.raises(NonFiniteError):
        greedy_coreset(points * torch.nan, 3)


def test_a_reduced_level_keeps_the_classes_shares() -> None:
    labels = np.repeat([0, 1], [900, 100]).astype(np.uint8)
    level = LevelMemory(
        clustered(1_000, 0),
        labels,
        np.arange(1_000),
        np.full(1_000, "normal"),
        np.ones(1_000, "i4"),
    )
    small = reduced(level, 50)
    assert np.bincount(small.labels).tolist() == [45, 5]
    np.testing.assert_array_equal(small.keys, level.keys[small.entry])
    assert np.bincount(reduced(level, 6).labels).tolist() == [5, 1]
    with pytest.raises(MRADError, match="none of the 100 anomalous ones; ask for 6 or more"):
        reduced(level, 5)
