"""A memory in several parts: per-class sums are additive, so shards merge exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mrad.errors import EmptyLevelError
from mrad.retrieval import Retriever, probability_of
from mrad.types import FloatArray


def merge_log_sums(parts: Sequence[Tensor]) -> Tensor:
    """Per-class log sums of shards, each float64 [M, 2] -> of the whole, [M, 2]."""
    if not parts:
        raise EmptyLevelError("there is no shard to merge")
    return torch.stack([part.double() for part in parts]).logsumexp(dim=0)


class ShardedRetriever:
    """Several retrievers asked as one. Shard i's key row r is row `first[i] + r` of the whole."""

    def __init__(self, shards: Sequence[Retriever], sizes: Sequence[int]) -> None:
        """`sizes`: keys of each shard, in order. Raises `EmptyLevelError` without shards."""
        if not shards or len(shards) != len(sizes):
            raise EmptyLevelError(
                f"{len(shards)} shards, {len(sizes)} sizes: one of each is needed"
            )
        self.shards = list(shards)
        self.first = [0, *np.cumsum(sizes)[:-1].tolist()]

    def log_sums(self, queries: Tensor, exclude: Tensor | None = None) -> Tensor:
        """See `Retriever.log_sums`; `exclude` holds entry rows of the whole memory."""
        return merge_log_sums([shard.log_sums(queries, exclude) for shard in self.shards])

    def probability(self, queries: Tensor, exclude: Tensor | None = None) -> Tensor:
        """See `Retriever.probability`."""
        return probability_of(self.log_sums(queries, exclude))

    def nearest(
        self, queries: Tensor, k: int, exclude: Tensor | None = None
    ) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        """See `Retriever.nearest`."""
        found = [shard.nearest(queries, k, exclude) for shard in self.shards]
        similarity = np.concatenate([values for values, _ in found], axis=1)
        rows = np.concatenate(
            [np.where(r >= 0, r + first, r) for (_, r), first in zip(found, self.first)], axis=1
        )
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(similarity, order, 1), np.take_along_axis(rows, order, 1)
