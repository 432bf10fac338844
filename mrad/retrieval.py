"""Asking the memory: exact softmax attention over all keys, and the nearest keys as evidence."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

import faiss
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mrad.errors import DimensionError, EmptyLevelError, MRADError, NonFiniteError
from mrad.memory import LevelMemory
from mrad.nearest import nearest
from mrad.types import ANOMALOUS, FloatArray

if TYPE_CHECKING:
    from mrad.cells import KeySource

logger = logging.getLogger(__name__)

BLOCK = 8_192
QUERY_BLOCK = 2_048
"""Keys and queries at a time: their product (64 MiB) bounds what retrieval takes in memory."""


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


class ExactRetriever:
    """p(q) = sum_i softmax_i(q.k_i) v_i over ALL keys, streamed in blocks of keys.

    Similarities in float32, sums in float64, so neither the order of the keys nor the size of a
    block changes a digit that matters. Memory stays flat in the number of keys.
    """

    def __init__(
        self,
        keys: FloatArray | Tensor,
        labels: npt.NDArray[np.uint8],
        entry: npt.NDArray[np.int64] | None = None,
        *,
        device: torch.device | str = "cpu",
        block: int = BLOCK,
    ) -> None:
        """`keys` [n, d], `labels` [n], `entry` [n] rows for `exclude`; raises `EmptyLevelError`."""
        keys = torch.as_tensor(keys, dtype=torch.float32)
        if keys.ndim != 2 or len(keys) == 0:
            raise EmptyLevelError("there is no key to retrieve")
        if len(labels) != len(keys):
            raise DimensionError(f"{len(labels)} labels for {len(keys)} keys")
        if not torch.isfinite(keys).all():
            raise NonFiniteError("the keys hold NaN or infinity")
        # Sorted by class, so that a class is a slice and its sum needs no weights.
        self.rows = np.argsort(np.asarray(labels), kind="stable")
        self.anomalous_from = int((np.asarray(labels) != ANOMALOUS).sum())
        self.keys = keys[torch.from_numpy(self.rows)].to(device)
        entry = np.arange(len(keys)) if entry is None else entry
        self.entry = torch.from_numpy(np.asarray(entry, dtype=np.int64)[self.rows]).to(device)
        self.block = block
        self._index: faiss.Index | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @torch.inference_mode()
    def log_sums(self, queries: Tensor, exclude: Tensor | None = None) -> Tensor:
        """See `Retriever.log_sums`."""
        queries = self._checked(queries)
        parts = []
        for start in range(0, len(queries), QUERY_BLOCK):
            stop = start + QUERY_BLOCK
            rows = None if exclude is None else exclude[start:stop].to(self.keys.device)
            parts.append(self._log_sums(queries[start:stop], rows))
        empty = torch.empty(0, 2, dtype=torch.float64, device=self.keys.device)
        return torch.cat(parts) if parts else empty

    def _log_sums(self, queries: Tensor, exclude: Tensor | None) -> Tensor:
        classes = (0, self.anomalous_from), (self.anomalous_from, len(self.keys))
        return torch.stack([self._class_sum(queries, exclude, *c) for c in classes], dim=1)

    def _class_sum(self, queries: Tensor, exclude: Tensor | None, first: int, end: int) -> Tensor:
        total = torch.full((len(queries),), -torch.inf, dtype=torch.float64, device=queries.device)
        for start in range(first, end, self.block):
            part = slice(start, min(start + self.block, end))
            scores = queries @ self.keys[part].T
            if exclude is not None:
                scores.masked_fill_(self.entry[part][None] == exclude[:, None], -torch.inf)
            total = torch.logaddexp(total, log_sum_exp(scores))
        return total

    def probability(self, queries: Tensor, exclude: Tensor | None = None) -> Tensor:
        """See `Retriever.probability`."""
        return probability_of(self.log_sums(queries, exclude))

    def nearest(
        self, queries: Tensor, k: int, exclude: Tensor | None = None
    ) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        """See `Retriever.nearest`; FAISS, inner product, exact."""
        queries = self._checked(queries)
        count = min(k, len(self))
        if exclude is None:
            similarity, rows = self._search(queries, count)
            return similarity, self.rows[rows]
        own = int(torch.bincount(self.entry).max())  # at most so many keys can be excluded
        similarity, rows = self._search(queries, min(k + own, len(self)))
        banned = self.entry.cpu().numpy()[rows] == exclude.cpu().numpy()[:, None]
        order = np.argsort(banned, axis=1, kind="stable")[:, :count]
        banned = np.take_along_axis(banned, order, 1)
        rows = np.where(banned, -1, self.rows[np.take_along_axis(rows, order, 1)])
        return np.where(banned, -np.inf, np.take_along_axis(similarity, order, 1)), rows

    def _search(self, queries: Tensor, k: int) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        """Similarities and sorted key places [M, k]; on a GPU only these come back."""
        if self.keys.is_cuda:
            similarity, rows = nearest(queries, self.keys, k)
            return similarity.cpu().numpy(), rows.cpu().numpy()
        if self._index is None:
            self._index = faiss.IndexFlatIP(self.keys.shape[1])
            self._index.add(self.keys.numpy())
        found: tuple[FloatArray, npt.NDArray[np.int64]]
        found = self._index.search(np.ascontiguousarray(queries.numpy()), k)
        return found

    def _checked(self, queries: Tensor) -> Tensor:
        if queries.ndim != 2 or queries.shape[1] != self.keys.shape[1]:
            raise DimensionError(
                f"queries are {list(queries.shape)}, keys are {self.keys.shape[1]} wide"
            )
        queries = queries.to(self.keys.device, torch.float32)
        if not torch.isfinite(queries).all():
            raise NonFiniteError("a query holds NaN or infinity")
        return queries


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


MODES = ("exact", "approximate", "auto")
FEW_PRODUCTS = 4_096 * 1_024
"""n * d up to which all keys cost less than the bookkeeping of cells (the paper's memory fits)."""
SHARP = 32.0
SHARP_PRODUCTS = 100_000 * 1_024


def choose(n_keys: int, d: int, sharpness: float) -> tuple[str, str]:
    """`exact` or `approximate`, and why, for n keys of width d.

    `sharpness`: typical |q| |k|, 1 for TF (`sharpness_of`).
    """
    if n_keys * d <= FEW_PRODUCTS:
        return "exact", f"{n_keys} keys of width {d} are few: exact costs no more than cells"
    if sharpness > SHARP and n_keys * d <= SHARP_PRODUCTS:
        return "exact", (
            f"sharpness {sharpness:.3g} is above {SHARP:g}, where most keys have to be read anyway, "
            f"and exact is affordable for {n_keys} keys of width {d}"
        )
    return "approximate", f"{n_keys} keys of width {d} at sharpness {sharpness:.3g} are many"


def sharpness_of(keys: KeySource, queries: Tensor | None = None, sample: int = 4_096) -> float:
    """Root mean square of |k| times that of |q| (the keys' own, where no queries are at hand)."""
    rows = np.unique(np.linspace(0, keys.shape[0] - 1, sample).astype(np.int64))
    norm = float(np.sqrt(np.square(np.asarray(keys[rows], dtype=np.float64)).sum(axis=1).mean()))
    if queries is None:
        return norm**2
    return norm * float(queries.double().square().sum(dim=1).mean().sqrt())


def make_retriever(
    level: LevelMemory,
    *,
    mode: str = "exact",
    device: torch.device | str = "cpu",
    queries: Tensor | None = None,
) -> Retriever:
    """The retriever of one level of the memory.

    Args:
        mode: `exact`, `approximate`, or `auto`, which logs what it chose and why.
        queries: [M, d], a sample of what will be asked, for the sharpness and the measured error;
            None: the keys stand in.

    Raises `MRADError` for an unknown `mode`, `EmptyLevelError`.
    """
    if mode not in MODES:
        raise MRADError(f"retrieval {mode!r} is unknown; choose {', '.join(MODES)}")
    if mode == "auto":
        sharpness = sharpness_of(level.keys, queries) if len(level) else 0.0
        mode, reason = choose(len(level), level.dim, sharpness)
        logger.info("retrieval is %s: %s", mode, reason)
    if mode == "exact":
        return ExactRetriever(level.keys, level.labels, level.entry, device=device)
    from mrad.approximate_derived import approximate

    return approximate(level, device=device, queries=queries)
