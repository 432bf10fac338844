"""What a head asks of one level of the memory, and the sums that every retriever shares."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mrad.encoder.kernels import all_finite
from mrad.errors import DimensionError, NonFiniteError
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


def checked(queries: Tensor, dim: int, device: torch.device) -> Tensor:
    """Queries float32 [M, dim] on a device. Raises `DimensionError`, `NonFiniteError`."""
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise DimensionError(f"queries are {list(queries.shape)}, keys are {dim} wide")
    queries = queries.to(device, torch.float32)
    if not all_finite(queries):
        raise NonFiniteError("a query holds NaN or infinity")
    return queries


def probability_of(log_sums: Tensor) -> Tensor:
    """Per-class log sums float64 [M, 2] -> anomalous probability float32 [M] (docs/method.md)."""
    return torch.softmax(log_sums, dim=-1)[:, ANOMALOUS].float()


def at_reference_shares(
    probability: Tensor, level: LevelMemory, exclude: Tensor | None = None
) -> Tensor:
    """Probabilities at the class shares that scores refer to, whatever the memory holds now.

    At temperature 1 a probability is close to the share of anomalous keys, so one key more or less
    moves every score by about 1/n of the odds: more than TF's scores differ by. Odds are therefore
    scaled by (reference share) / (share among the keys that were asked), per class. That keeps scores
    where they were when the memory learns or forgets an image, and an image that is left out (it may
    not retrieve its own keys) is judged at the same shares as any other.

    Args:
        probability: float32 [M], over the keys of `level` that are not excluded.
        level: its `reference` counts say which shares; as they are now where it has none.
        exclude: int64 [M], the entry row that a query did not retrieve, -1 for none.

    Returns float32 [M]; unchanged where nothing is excluded and the counts are the reference's, or a
    class is missing.
    """
    if exclude is None and level.counts == level.refers_to:
        return probability
    return scaled_by(probability, level, counts_without(level, len(level), exclude))


def counts_without(
    level: LevelMemory, count: int, exclude: Tensor | None
) -> npt.NDArray[np.float64]:
    """Of the first `count` keys, those of each class but of the entries `exclude` [M]: [M or 1, 2]."""
    entry, labels = level.entry[:count], level.labels[:count].astype(np.int64)
    total = np.bincount(labels, minlength=2)[None].astype(np.float64)
    if exclude is None:
        return total
    entries = int(entry.max()) + 1
    own = np.bincount(entry * 2 + labels, minlength=2 * entries).reshape(entries, 2)
    rows = exclude.cpu().numpy()
    known = (rows >= 0) & (rows < entries)
    return total - np.where(known[:, None], own[rows.clip(0, entries - 1)], 0)


def scaled_by(probability: Tensor, level: LevelMemory, asked: npt.NDArray[np.float64]) -> Tensor:
    """As `at_reference_shares`; `asked`: [M or 1, 2] keys of each class that were asked, or weights."""
    if not all(level.refers_to):
        return probability
    with np.errstate(divide="ignore"):  # infinite where a class is all one's own
        ratio = np.log(np.array(level.refers_to)) - np.log(asked)
    shift = torch.from_numpy(np.nan_to_num(ratio[:, ANOMALOUS] - ratio[:, 1 - ANOMALOUS], posinf=0))
    odds = torch.logit(probability.double()) + shift.to(probability.device)
    return torch.sigmoid(odds).float()


def log_sum_exp(scores: Tensor) -> Tensor:
    """`scores` float32 [M, n], overwritten -> float64 [M]; -inf where every key is excluded."""
    return log_sum_and_peak(scores)[0]


def log_sum_and_peak(scores: Tensor) -> tuple[Tensor, Tensor]:
    """As `log_sum_exp`; and the largest score of each row, float32 [M]."""
    peak = scores.amax(dim=1, keepdim=True)
    shift = peak.clamp_min(torch.finfo(scores.dtype).min)
    sums = scores.sub_(shift).exp_().sum(dim=1, dtype=torch.float64)
    return sums.log() + shift[:, 0].double(), peak[:, 0]


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
