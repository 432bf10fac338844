"""Shards equal one index: sums merge exactly, and so do the nearest keys."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for `clusters`, under any import mode

from clusters import COUNT, clustered, mixed_labels

from mrad.approximate import ApproximateRetriever
from mrad.errors import EmptyLevelError
from mrad.retrieval import ExactRetriever
from mrad.shards import ShardedRetriever, merge_log_sums


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return mixed_labels()


@pytest.fixture(scope="module")
def entry() -> np.ndarray:
    return np.repeat(np.arange(COUNT // 2), 2)


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_shards_equal_one_index(labels: np.ndarray, entry: np.ndarray, shards: int) -> None:
    keys, queries = clustered(COUNT, 0, 4.0), torch.from_numpy(clustered(40, 1, 4.0))
    whole = ExactRetriever(keys, labels, entry)
    parts = np.array_split(np.arange(COUNT), shards)
    sharded = ShardedRetriever(
        [ExactRetriever(keys[p], labels[p], entry[p]) for p in parts], [len(p) for p in parts]
    )
    exclude = torch.arange(40) * 7
    torch.testing.assert_close(
        sharded.log_sums(queries, exclude), whole.log_sums(queries, exclude), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(sharded.probability(queries), whole.probability(queries))
    for got, want in zip(sharded.nearest(queries, 7), whole.nearest(queries, 7)):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_shard_without_a_class_merges() -> None:
    one = torch.tensor([[1.0, -torch.inf]], dtype=torch.float64)
    two = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    merged = merge_log_sums([one, two])
    assert merged[0, 0] == pytest.approx(1 + np.log(2))
    assert merged[0, 1] == 2
    with pytest.raises(EmptyLevelError):
        merge_log_sums([])


def test_approximate_shards_add_up(labels: np.ndarray) -> None:
    """Cells of a shard are its own, so only the estimated error grows, not the method's."""
    keys, queries = clustered(COUNT, 0, 2.0), torch.from_numpy(clustered(40, 1, 2.0))
    parts = np.array_split(np.arange(COUNT), 2)
    sharded = ShardedRetriever(
        [ApproximateRetriever.build(keys[p], labels[p], p) for p in parts], [len(p) for p in parts]
    )
    exact = ExactRetriever(keys, labels)
    exclude = torch.arange(40) * 100
    got, want = sharded.probability(queries, exclude), exact.probability(queries, exclude)
    assert (got - want).abs().max() < 1e-3
    np.testing.assert_allclose(
        sharded.nearest(queries, 3)[0], exact.nearest(queries, 3)[0], atol=2e-3
    )
