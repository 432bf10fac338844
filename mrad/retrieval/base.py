"""What a head asks of one level of the memory, and the sums that every retriever shares."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mrad.memory.level import LevelMemory
from mrad.types import ANOMALOUS, FloatArray

BLOCK = 8_192
"""Keys at a time: with the queries at a time, their product (64 MiB) bounds retrieval's memory."""


class KeySource(Protocol):
    """Keys [n, d] that may be larger than memory: an array, a memory map, or made on demand."""

    @property
    def shape(self) -> tuple[int, ...]:
        """n, d."""
        ...

    def __getitem__(self, rows: Any) -> Any:
        """Keys of a slice or of sorted row numbers, [m, d]."""
        ...


class Retriever(Protocol):
    """What a head asks of one level of the memory."""

    def log_sums(self, queries: Tensor, exclude: Tensor | None = None) -> Tensor:
        """`queries` float32 [M, d] -> float64 [M, 2]: log of the sum of exp(q.k) over each class.

        `exclude` int64 [M]: the entry row that a query must not retrieve, -1 for none. A class
        without keys gives -inf. Sums of shards merge by log-add-exp.
        """
        ...

    def probability(self, queries: Tensor, exclude: Tensor | None = None) -> Tensor:
        """Share of the anomalous class in the softmax over all keys: float32 [M]."""
        ...

    def nearest(
        self, queries: Tensor, k: int, exclude: Tensor | None = None
    ) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        """The k keys of largest inner product: similarities and key rows, [M, k], best first.

        A place that cannot be filled, for all else is excluded, has similarity -inf and row -1.
        """
        ...


def probability_of(log_sums: Tensor) -> Tensor:
    """Per-class log sums float64 [M, 2] -> anomalous probability float32 [M] (METHOD.md, Scores)."""
    return torch.softmax(log_sums, dim=-1)[:, ANOMALOUS].float()


def at_whole_prior(probability: Tensor, level: LevelMemory, exclude: Tensor | None) -> Tensor:
    """What a query that may not retrieve its own keys is told, at the class shares of the whole.

    Without its own keys an image asks a memory in which its class is rarer, by 1/n of the odds. TF's
    scores differ by less than that in a small memory, so a defect would look better, and a good part
    worse, for no other reason than being left out. Odds are scaled back: `probability` [M],
    `exclude` int64 [M] or None -> float32 [M].
    """
    if exclude is None:
        return probability
    entries = int(level.entry.max()) + 1
    own = np.bincount(level.entry * 2 + level.labels, minlength=2 * entries).reshape(entries, 2)
    rows = exclude.cpu().numpy()
    mine = np.where((rows >= 0)[:, None], own[rows.clip(0, entries - 1)], 0)
    mine[rows >= entries] = 0
    total = np.bincount(level.labels, minlength=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        rarer = np.log(
            total / (total - mine)
        )  # infinite where a class is all one's own: then p is 0
    shift = torch.from_numpy(np.nan_to_num(rarer[:, ANOMALOUS] - rarer[:, 1 - ANOMALOUS], posinf=0))
    odds = torch.logit(probability.double()) + shift.to(probability.device)
    return torch.sigmoid(odds).float()


def log_sum_exp(scores: Tensor) -> Tensor:
    """`scores` float32 [M, n], overwritten -> float64 [M]; -inf where every key is excluded."""
    peak = scores.amax(dim=1, keepdim=True).clamp_min(torch.finfo(scores.dtype).min)
    sums = scores.sub_(peak).exp_().sum(dim=1, dtype=torch.float64)
    return sums.log() + peak[:, 0].double()


@torch.inference_mode()
def streamed_log_sums(
    keys: KeySource,
    labels: npt.NDArray[np.uint8],
    queries: Tensor,
    entry: npt.NDArray[np.int64] | None = None,
    exclude: Tensor | None = None,
) -> Tensor:
    """As `Retriever.log_sums`, exactly, over keys that are read once and never held: for checks."""
    sums = torch.full((len(queries), 2), -torch.inf, dtype=torch.float64)
    for start in range(0, len(labels), BLOCK):
        part = slice(start, min(start + BLOCK, len(labels)))
        scores = queries @ torch.as_tensor(keys[part], dtype=torch.float32).T
        if entry is not None and exclude is not None:
            scores.masked_fill_(torch.from_numpy(entry[part]) == exclude[:, None], -torch.inf)
        for label in np.unique(labels[part]).tolist():
            own = scores[:, torch.from_numpy(labels[part] == label)]
            sums[:, label] = torch.logaddexp(sums[:, label], log_sum_exp(own))
    return sums
