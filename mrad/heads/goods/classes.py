"""How unlike the good images a whole image is, by its class feature."""

from __future__ import annotations

import torch
from torch import Tensor

FOLDS = 64
"""Groups left out one by one at most; more are left out several at a time."""
SHRINK = 0.2
"""Share of an even spread in the covariance: few images do not show how they vary."""


class GoodClasses:
    """Class features of good images [n, E], L2-normalised, and the group of each."""

    def __init__(self, keys: Tensor, group: Tensor) -> None:
        self.keys, self.group = keys.double(), group
        self.enough = len(torch.unique(group)) > 2
        """Whether they still show how they vary when one group is left out."""

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
        """Mahalanobis distance from the good images, float64 [M].

        The covariance is shrunk to an even spread. `exclude` bool [n]: good images left out.
        """
        keys = self.keys if exclude is None else self.keys[~exclude]
        mean = keys.mean(dim=0)
        centred, asked = keys - mean, queries.double() - mean
        count, width = centred.shape
        share = (1 - SHRINK) / max(count - 1, 1)
        even = SHRINK * centred.square().sum() / max(count - 1, 1) / width
        even = even.clamp_min(1e-12)
        # Woodbury: an n x n system instead of an E x E one, where there are fewer images.
        if count < width:
            inner = centred @ centred.T + even / share * torch.eye(count, dtype=torch.float64)
            seen = asked @ centred.T
            gone = (seen * torch.linalg.solve(inner, seen.T).T).sum(dim=1)
            square = (asked.square().sum(dim=1) - gone) / even
        else:
            covariance = share * centred.T @ centred + even * torch.eye(width, dtype=torch.float64)
            square = (asked * torch.linalg.solve(covariance, asked.T).T).sum(dim=1)
        root: Tensor = square.clamp_min(0).sqrt()
        return root

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
