"""Lessons that count near what they teach: a key that was taught weighs by how much nearer it is.

At temperature 1 every key weighs on every query, so a lesson would move the score of each image, and of
some more than of others. Here the keys that the memory was built of judge a query as ever. A key that
was taught since weighs 1 - d / d0, where d is its distance to the query (1 - cosine) and d0 that of the
nearest key of the build: 1 where it is the very same, 0 where the build knows something as near.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mrad.memory.level import LevelMemory
from mrad.retrieval.base import (
    Retriever,
    at_reference_shares,
    counts_without,
    probability_of,
    scaled_by,
)
from mrad.retrieval.choose import make_retriever
from mrad.types import ANOMALOUS

if TYPE_CHECKING:
    from mrad.memory.bank import MemoryBank

FEW = 10
"""Good images of the build that judge alone; with fewer every key counts in full."""
LEAST_BAD = 2
"""Defective ones likewise: one of them is left out where it is judged itself."""
LEAST = 1e-6
"""Of a distance."""


def built_entries(bank: MemoryBank) -> int | None:
    """How many first entries judge; None: all do, for there are too few of the build.

    It must have `FEW` good images and two defective ones.
    """
    bad = sum(entry.label for entry in bank.entries[: bank.settled])
    return bank.settled if bank.settled - bad >= FEW and bad >= LEAST_BAD else None


def judging(level: LevelMemory, entries: int | None) -> int | None:
    """Keys of the first entries (`built_entries`), which count in full; None: all do.

    Also where those entries lack defective keys at this level.
    """
    if entries is None:
        return None
    count = int((level.entry < entries).sum())
    entry, labels = level.entry[:count], level.labels[:count]
    if (entry >= entries).any():  # keys come in the order they were added
        return None
    return count if len(np.unique(entry[labels == ANOMALOUS])) >= LEAST_BAD else None


def weights(cosine: Tensor, nearest: Tensor) -> Tensor:
    """How much keys that were taught count, in [0, 1].

    Args:
        cosine: [M, n], of queries to them.
        nearest: [M], the largest cosine to a key of the build.
    """
    built = (1 - nearest).clamp_min(LEAST)
    return (1 - (1 - cosine) / built[:, None]).clamp(0, 1)


@dataclass(frozen=True)
class WithLessons:
    """One level whose later keys count near what they teach (see the module)."""

    level: LevelMemory
    count: int
    """So many first keys judge."""
    built: Retriever
    keys: Tensor
    """[L, d], taught since."""
    labels: Tensor
    """[L]."""
    entry: Tensor
    """[L]."""

    @classmethod
    def of(
        cls, level: LevelMemory, count: int, *, mode: str, device: torch.device | str
    ) -> WithLessons:
        """`count`: from `judging`; the rest as for `make_retriever`."""
        first, later = level.take(slice(None, count)), level.take(slice(count, None))
        return cls(
            level,
            count,
            make_retriever(first, mode=mode, device=device),
            torch.from_numpy(np.ascontiguousarray(later.keys)).to(device),
            torch.from_numpy(later.labels.astype(np.int64)).to(device),
            torch.from_numpy(later.entry).to(device),
        )

    @torch.inference_mode()
    def judged(self, queries: Tensor, exclude: Tensor | None = None) -> Tensor:
        """Share of the anomalous class at the reference's shares: float32 [M]."""
        sums = self.built.log_sums(queries, exclude)
        near, _ = self.built.nearest(queries, 1, exclude)
        queries = queries.to(self.keys.device, torch.float32)
        nearest = torch.from_numpy(near[:, 0]).to(queries)
        cosine = queries @ self.keys.T
        weight = weights(cosine, nearest)
        if exclude is not None:
            own = self.entry[None] == exclude.to(self.entry.device)[:, None]
            weight = weight.masked_fill(own, 0.0)
        taught = weight.double() * cosine.double().exp()
        added, counted = (
            torch.stack([part[:, self.labels == label].sum(dim=1) for label in (0, 1)], dim=1)
            for part in (taught, weight.double())
        )
        sums = torch.logaddexp(sums, added.log().to(sums.device))
        asked = counts_without(self.level, self.count, exclude) + counted.cpu().numpy()
        return scaled_by(probability_of(sums), self.level, asked)


def retriever_of(
    level: LevelMemory, entries: int | None, *, mode: str, device: torch.device | str
) -> Retriever | WithLessons:
    """Of a level of a memory; `entries`: `built_entries` of it."""
    count = judging(level, entries)
    if count is None or count == len(level):
        return make_retriever(level, mode=mode, device=device)
    return WithLessons.of(level, count, mode=mode, device=device)


def judged(
    retriever: Retriever | WithLessons,
    level: LevelMemory,
    queries: Tensor,
    exclude: Tensor | None = None,
) -> Tensor:
    """Probabilities float32 [M] at the class shares that scores refer to (`at_reference_shares`)."""
    if isinstance(retriever, WithLessons):
        return retriever.judged(queries, exclude)
    return at_reference_shares(retriever.probability(queries, exclude), level, exclude)
