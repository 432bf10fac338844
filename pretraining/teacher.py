"""Boosted trees on the hand-made statistics: what a defect looks like where no line separates it.

They find thresholds (a peak a little lower than a straight edge's) in a minute that a tower takes
long to come upon from masks alone; asked for their log-odds, cell by cell, it is told where to look.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import Tensor

from pretraining.losses import Batch
from pretraining.statistics import PLANES, statistics

LARGEST = 6.0
"""Of log-odds: beyond it the trees are sure, and how sure is noise."""


class Teacher:
    """Fitted on a sample; asked for log-odds, of mean 0 and deviation 1 on that sample."""

    def __init__(self, samples: Iterable[Batch], grid: int) -> None:
        """Reads one sample after the other: a picture takes far more room than its statistics."""
        parts, labels = [], []
        for sample in samples:
            known = sample.cells.flatten() >= 0
            read = torch.cat([_readings(part, grid) for part in sample.pixels.split(32)])
            parts.append(read[known])
            labels.append(sample.cells.flatten()[known])
        found = torch.cat(parts).numpy()
        self._trees: Any = HistGradientBoostingClassifier(class_weight="balanced", random_state=0)
        self._trees.fit(found, torch.cat(labels).numpy())
        odds = torch.from_numpy(self._trees.decision_function(found)).clamp(-LARGEST, LARGEST)
        self._mean, self._deviation = float(odds.mean()), float(odds.std())

    def __call__(self, pixels: Tensor, grid: int) -> Tensor:
        """[B, 3, S, S] -> [B, N, 1] on the same device; the trees run on the CPU."""
        odds = self._trees.decision_function(_readings(pixels, grid).cpu().numpy())
        clamped = torch.from_numpy(odds).float().clamp(-LARGEST, LARGEST).to(pixels.device)
        return (clamped.view(len(pixels), -1, 1) - self._mean) / self._deviation


def _readings(pixels: Tensor, grid: int) -> Tensor:
    """[B N, D]: the statistics, and the peaks by themselves, since trees cut along axes."""
    found = statistics(pixels, grid).flatten(0, 1)
    return torch.cat([found, found[:, :PLANES] + found[:, PLANES : 2 * PLANES]], dim=1)
