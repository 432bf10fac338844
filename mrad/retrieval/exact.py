"""Asking the memory: exact softmax attention over all keys, and the nearest keys as evidence."""

from __future__ import annotations

from threading import Lock

import faiss
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mrad.encoder.kernels import product
from mrad.errors import DimensionError, EmptyLevelError, NonFiniteError
from mrad.retrieval.base import BLOCK, checked, log_sum_and_peak, probability_of
from mrad.retrieval.nearest import nearest
from mrad.types import ANOMALOUS, FloatArray

QUERY_BLOCK = 2_048
"""Queries at a time."""


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
        labels = np.asarray(labels)
        self.rows = np.argsort(labels, kind="stable")
        self.anomalous_from = int((labels != ANOMALOUS).sum())
        sorted_already = bool(
            (labels[1:] >= labels[:-1]).all()
        )  # then no second copy of large keys
        chosen = keys if sorted_already else keys[torch.from_numpy(self.rows).to(keys.device)]
        self.keys = chosen.to(device)
        entry = np.arange(len(keys)) if entry is None else entry
        self.entry = torch.from_numpy(np.asarray(entry, dtype=np.int64)[self.rows]).to(device)
        self.block = block
        self._index: faiss.Index | None = None
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self.keys)

    def log_sums(self, queries: Tensor, exclude: Tensor | None = None) -> Tensor:
        """See `Retriever.log_sums`."""
        return self.sums_and_peak(queries, exclude)[0]

    @torch.inference_mode()
    def sums_and_peak(
        self, queries: Tensor, exclude: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`log_sums`, and the largest product of each query, float32 [M]; -inf where all is excluded."""
        queries = checked(queries, self.keys.shape[1], self.keys.device)
        sums = queries.new_full((len(queries), 2), -torch.inf, dtype=torch.float64)
        peaks = queries.new_full((len(queries), 2), -torch.inf)
        classes = (0, self.anomalous_from), (self.anomalous_from, len(self.keys))
        for start in range(0, len(queries), QUERY_BLOCK):
            part = slice(start, start + QUERY_BLOCK)
            rows = None if exclude is None else exclude[part].to(self.keys.device)
            for label, (first, end) in enumerate(classes):
                found = self._class_sum(queries[part], rows, first, end)
                sums[part, label], peaks[part, label] = found
        return sums, peaks.amax(dim=1)

    def _class_sum(
        self, queries: Tensor, exclude: Tensor | None, first: int, end: int
    ) -> tuple[Tensor, Tensor]:
        """Log sum and largest product over the keys from `first` to `end`, sorted by class."""
        total = torch.full((len(queries),), -torch.inf, dtype=torch.float64, device=queries.device)
        peak = queries.new_full((len(queries),), -torch.inf)
        for start in range(first, end, self.block):
            part = slice(start, min(start + self.block, end))
            scores = product(queries, self.keys[part])
            if exclude is not None:
                scores.masked_fill_(self.entry[part][None] == exclude[:, None], -torch.inf)
            summed, largest = log_sum_and_peak(scores)
            total, peak = torch.logaddexp(total, summed), torch.maximum(peak, largest)
        return total, peak

    def probability(self, queries: Tensor, exclude: Tensor | None = None) -> Tensor:
        """See `Retriever.probability`."""
        return probability_of(self.log_sums(queries, exclude))

    def nearest(
        self, queries: Tensor, k: int, exclude: Tensor | None = None
    ) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        """See `Retriever.nearest`; FAISS, inner product, exact."""
        queries = checked(queries, self.keys.shape[1], self.keys.device)
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
        found: tuple[FloatArray, npt.NDArray[np.int64]]
        found = self._filled().search(np.ascontiguousarray(queries.numpy()), k)
        return found

    def _filled(self) -> faiss.Index:
        """FAISS's index of the keys, made once; nobody sees one that is not full."""
        with self._lock:
            if self._index is None:
                index = faiss.IndexFlatIP(self.keys.shape[1])
                index.add(self.keys.numpy())
                self._index = index
            return self._index
