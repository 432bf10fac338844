"""What cells add to a class's sum without a key of theirs being read, and how far off that may be."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mrad.retrieval.approximate.cells import Stats, weights

LONELY = 3.0
"""Squared distance of a cell's farthest key over the mean one above which it counts as an outlier."""
LARGEST = 600.0
"""Exponents beyond it are cut, so that no product of theirs is infinite."""


class ClosedForm:
    """log sum exp(q.k) of C cells, from their counts, means, covariances and radii, on one device."""

    def __init__(self, stats: Stats, device: torch.device) -> None:
        self.mean = torch.from_numpy(stats.mean).to(device)
        self.count = torch.from_numpy(stats.count).to(device)
        self.log_count = self.count.double().log()  # -inf for an empty cell
        self.radius = torch.from_numpy(stats.radius).to(device)
        self._covariance = torch.from_numpy(stats.covariance).to(device)
        self._basis = torch.from_numpy(stats.frame.basis).to(device)
        alone = np.append(np.flatnonzero(stats.frame.diagonal), -1)
        self._alone = torch.from_numpy(alone).to(device)
        lonely = np.square(stats.radius, dtype=np.float64) > LONELY * stats.spread
        self._lonely = torch.from_numpy(lonely).to(device)

    @torch.inference_mode()
    def __call__(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Every cell's log sum float64 [M, C], and the variance of q.k in it float64 [M, C].

        log n + q.m + v / 2 while v <= 2 log n. Beyond, n draws of a Gaussian are too few to show the
        tail that its mean lives on, and their sum is its largest term: q.m + sqrt(2 v log n) (the
        frozen phase of Derrida's random energy model; both agree at v = 2 log n). Kept inside what
        no n keys of that radius can exceed.
        """
        variance = (weights(queries, self._basis) @ self._covariance.T).double().clamp_min_(0)
        return self._at(queries, variance), variance

    def widened(self, queries: Tensor, variance: Tensor) -> Tensor:
        """`variance`, or what it is if no two coordinates moved together where that is more: [M, C].

        Coordinates may cancel along a query, but what a Gaussian misses does not cancel with them:
        keys of one length vary little along their own direction, but lopsidedly.
        """
        apart = weights(queries, self._basis)[:, self._alone] @ self._covariance[:, self._alone].T
        return torch.maximum(variance, apart.double())

    def cautious(self, queries: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Every cell's log sum at a variance, and by how much it may be off: float64 [M, C], twice."""
        farthest = self._farthest(queries)
        lone = self._lone(self._out(variance, farthest)) - self._gain(variance)
        return self._at(queries, variance), torch.maximum(missed(variance), lone)

    def ceiling(self, queries: Tensor, variance: Tensor) -> Tensor:
        """What `cautious` says at most for any of the queries: float64 [C]."""
        farthest, largest = self._farthest(queries).amax(dim=0), variance.amax(dim=0)
        return torch.maximum(missed(largest), self._lone(self._out(largest, farthest)))

    def _at(self, queries: Tensor, variance: Tensor) -> Tensor:
        far = self._farthest(queries)
        reach = torch.minimum(far.square() / 2, far)  # what no n keys of that radius can add
        base: Tensor = (queries @ self.mean.T).double() + self.log_count
        return base + torch.minimum(self._gain(variance), reach)

    def _gain(self, variance: Tensor) -> Tensor:
        count = self.log_count.clamp_min(0)
        frozen = (2 * variance * count).sqrt() - count
        return torch.where(variance <= 2 * count, variance / 2, frozen)

    def _farthest(self, queries: Tensor) -> Tensor:
        farthest: Tensor = (queries.norm(dim=1, keepdim=True) * self.radius).double()
        return farthest

    def _out(self, variance: Tensor, farthest: Tensor) -> Tensor:
        """How far out one key of a cell may lie along a query.

        Twice as far as the farthest of n draws of a Gaussian is expected; at the cell's radius if its
        farthest key is far beyond the others. No variance tells: one key of fifty is most of it.
        """
        usual = (8 * variance * self.log_count.clamp_min(0)).sqrt_()
        return torch.where(self._lonely, farthest, torch.minimum(usual, farthest))

    def _lone(self, far: Tensor) -> Tensor:
        """log of the mean of exp in a cell, one key of which is `far` out and draws the mean along."""
        far = far.clamp_max(LARGEST)
        mean: Tensor = ((far.expm1() - far) / self.count.clamp_min(1)).log1p()
        return mean


def missed(variance: Tensor) -> Tensor:
    """Estimated error of a cell's closed form, from the variance of q.k in it.

    A cell is no Gaussian: the next term of its cumulant series is skewness * variance ** 1.5 / 6,
    taken here at a skewness of 2 (an exponential's), and the sum of a frozen cell is known to about
    its own spread.
    """
    spread = variance.sqrt()
    return torch.minimum(variance * spread / 3, spread)
