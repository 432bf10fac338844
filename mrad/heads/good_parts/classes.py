"""How unlike the good images a whole image is, by one feature of it."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

FOLDS = 64
"""Groups left out one by one at most; more are left out several at a time."""
SHRINK = 0.2
"""Share of an even spread in the covariance: few images do not show how they vary."""

APART = 2**0.5
"""Two good images are so many times as far from each other as from their mean. What is nearer than that to
a lesson looks as it does; by distance alone, one of many lessons would calm any defect a little."""


class ClassSpread:
    """How good images lie, by which others are measured. The covariance is shrunk to an even spread."""

    def __init__(self, keys: Tensor, taught: Tensor) -> None:
        """`keys` float64 [n, E]: those that say what is usual; `taught` [m, E]: the others."""
        self._mean = keys.mean(dim=0)
        self._centres = torch.cat([self._mean[None], taught])
        centred = keys - self._mean
        count, width = centred.shape
        share = (1 - SHRINK) / max(count - 1, 1)
        even = SHRINK * centred.square().sum() / max(count - 1, 1) / width
        self._even = even.clamp_min(1e-12)
        # Woodbury: an n x n system instead of an E x E one, where there are fewer images.
        self._few = count < width
        if self._few:
            inner = centred @ centred.T
            inner += self._even / share * torch.eye(count, dtype=torch.float64)
            self._factor, self._base = torch.linalg.cholesky(inner), centred
        else:
            covariance = share * centred.T @ centred
            covariance += self._even * torch.eye(width, dtype=torch.float64)
            self._factor = torch.linalg.cholesky(covariance)
            self._base = torch.eye(width, dtype=torch.float64)
        self._there = self._placed(self._centres)

    def _placed(self, values: Tensor) -> Tensor:
        placed = self._base @ (values - self._mean).T
        found: Tensor = torch.linalg.solve_triangular(self._factor, placed, upper=False).T
        return found

    def distance(self, queries: Tensor) -> Tensor:
        """Mahalanobis distance of queries [M, E] from the mean, float64 [M].

        Or, where that is less, `APART` times that from one that does not say what is usual: so it calms
        what is like it, and nothing else.
        """
        square = torch.cdist(self._placed(queries), self._there).square()
        if self._few:
            square = (torch.cdist(queries, self._centres).square() - square) / self._even
        square[:, 1:] *= APART**2
        root: Tensor = square.amin(dim=1).clamp_min(0).sqrt()
        return root


class GoodClasses:
    """Features of whole good images [n, E], L2-normalised, and the group of each."""

    def __init__(self, keys: Tensor, group: Tensor, usual: Tensor | None = None) -> None:
        """`usual` bool [n]: those that say what is usual, all by default; the others are neighbours."""
        self.keys, self.group = keys.double(), group
        self.usual = torch.ones(len(keys), dtype=torch.bool) if usual is None else usual
        self.enough = len(torch.unique(group[self.usual])) > 2
        """Whether they still show how they vary when one group is left out."""

    def alone(self) -> GoodClasses:
        """Those alone that say what is usual."""
        return GoodClasses(self.keys[self.usual], self.group[self.usual])

    def distance(self, queries: Tensor, exclude: Tensor | None = None) -> Tensor:
        """How far queries [M, E] are from the good images, float64 [M].

        Mahalanobis distance, or 1 - cosine to the nearest where there are too few. `exclude` bool [n]:
        good images left out; 2 where none is left.
        """
        if exclude is not None and bool(exclude.all()):
            return torch.full((len(queries),), 2.0, dtype=torch.float64)
        return self.spread(queries, exclude) if self.enough else self.nearest(queries, exclude)

    def nearest(self, queries: Tensor, exclude: Tensor | None = None) -> Tensor:
        """1 - cosine to the nearest good image, float64 [M]; `exclude` bool [n]: left out."""
        keys = self.keys if exclude is None else self.keys[~exclude]
        return 1 - (queries.double() @ keys.T).amax(dim=1)

    def spread(self, queries: Tensor, exclude: Tensor | None = None) -> Tensor:
        """Mahalanobis distance from the good images, float64 [M] (`ClassSpread`).

        `exclude` bool [n]: good images left out.
        """
        found = self._whole if exclude is None else self._without(exclude)
        return found.distance(queries.double())

    @cached_property
    def _whole(self) -> ClassSpread:
        return self._without(torch.zeros_like(self.usual))

    def _without(self, exclude: Tensor) -> ClassSpread:
        return ClassSpread(self.keys[self.usual & ~exclude], self.keys[~self.usual & ~exclude])

    def left_out(self, queries: Tensor, group: Tensor) -> Tensor:
        """`distance` of queries [M, E], none of which is compared with its own group [M].

        NaN where nothing is left to compare with.
        """
        found = torch.full((len(queries),), torch.nan, dtype=torch.float64)
        own = torch.unique(group)
        for part in torch.tensor_split(own, min(FOLDS, max(1, len(own)))):
            asked, left = torch.isin(group, part), torch.isin(self.group, part)
            if not bool(left.all()):
                found[asked] = self.distance(queries[asked], left)
        return found
