"""Approximate retrieval: the strongest cells key by key, all the others in closed form.

At temperature 1 nearly all of the softmax's mass lies in the tail, so a softmax over the nearest
keys is wrong. Instead each class's keys are split into cells, and a cell of n keys whose q.k has
mean m and variance v counts as log n + m + v / 2, the log of the sum of a Gaussian's exponentials.
Cells whose closed form could be off by too much for a query are summed key by key.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mrad.errors import DimensionError
from mrad.retrieval.approximate.cells import Stats, assign, make_frame
from mrad.retrieval.approximate.closed_form import LARGEST, ClosedForm
from mrad.retrieval.approximate.codec import STORAGES, Segment, make_segment
from mrad.retrieval.base import KeySource, checked, log_sum_exp, probability_of
from mrad.types import ANOMALOUS, NORMAL, FloatArray

logger = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""Estimated error of a class's log-sum above which more cells are summed key by key."""
ROUNDS = 4
NEAREST_PROBES = 32
QUERY_BLOCK = 2_048
KEY_BLOCK = 8_192
DRIFT_LIMIT = 2.0
"""Mean squared distance to the centroid, new keys over built ones, that asks for a new build."""


@dataclass(frozen=True)
class Drift:
    """How well keys added later fit cells that were made without them."""

    added: int
    share: float
    """Added keys over all keys."""
    distortion: float
    """Mean squared distance to the own centroid, added keys over built ones; 1 when none added."""

    @property
    def rebuild(self) -> bool:
        """Whether the cells should be made again: the new keys are elsewhere, or the majority."""
        return self.added > 0 and (self.distortion > DRIFT_LIMIT or self.share > 0.5)


@dataclass(frozen=True)
class Accuracy:
    """Approximate against exact on a sample of queries."""

    queries: int
    largest_error: float
    """Of the anomalous probability."""
    spearman: float
    probed: float
    """Cells summed key by key, mean over queries."""


@dataclass(frozen=True)
class Cells:
    """All that an index consists of, apart from the device it is asked on."""

    stats: Stats
    segments: tuple[Segment, ...]
    built: tuple[int, float]
    """Number and mean squared distance to the centroid of the keys that made the cells."""
    tolerance: float = TOLERANCE
    accuracy: Accuracy | None = None
    source: str = ""
    """Fingerprint of the level that it holds, where one is kept (`mrad.retrieval.approximate.derived`)."""


class ApproximateRetriever:
    """A `mrad.retrieval.base.Retriever` whose cost hardly grows with the number of keys.

    Build with `build`, from disk with `mrad.retrieval.approximate.store.load`. Cells that hold a key of an
    excluded entry are always summed key by key, so `exclude` is exact, not a subtraction.
    """

    def __init__(
        self,
        cells: Cells,
        *,
        device: torch.device | str = "cpu",
        resident: Sequence[Tensor] = (),
    ) -> None:
        """The cells' small table goes to the device; on a GPU the coded keys go along.

        `resident`: codes of the first segments, where they are on the device already.
        """
        self.cells, self.device = cells, torch.device(device)
        self.probed = 0.0
        """Cells summed key by key in the last call, mean over queries."""
        stats = cells.stats
        self.closed_form = ClosedForm(stats, self.device)
        self._centroid = torch.from_numpy(stats.frame.centroid).to(self.device)
        self._label = torch.from_numpy(stats.frame.label).to(self.device).long()
        new = cells.segments[len(resident) :]
        self._codes = [*resident, *(torch.from_numpy(s.codes).to(self.device) for s in new)]

    @classmethod
    def build(
        cls,
        keys: KeySource,
        labels: npt.NDArray[np.uint8],
        entry: npt.NDArray[np.int64] | None = None,
        *,
        cells: int | None = None,
        storage: str = "fp16",
        codes_file: Path | None = None,
        device: torch.device | str = "cpu",
        tolerance: float = TOLERANCE,
        seed: int = 0,
    ) -> ApproximateRetriever:
        """Index keys [n, d] that are read twice, block by block, so they may exceed memory.

        Args:
            labels: [n], 0 normal, 1 anomalous.
            entry: [n], for `exclude`; left out, each key is its own entry.
            cells: for each class; None: the square root of its keys, at most 512.
            storage: of the keys inside cells: `fp32` or `fp16`.
            codes_file: write the coded keys straight into this .npy file.
            tolerance: wanted error of a class's log-sum; that of the probability is smaller.

        Raises `EmptyLevelError`, `DimensionError`, `NonFiniteError`.
        """
        labels = np.asarray(labels, dtype=np.uint8)
        entry = np.arange(len(labels)) if entry is None else np.asarray(entry)
        cell, stats = assign(keys, labels, make_frame(keys, labels, cells, seed))
        dtype = STORAGES[storage]
        segment = make_segment(keys, cell, stats, dtype, entry=entry, file=codes_file)
        made = Cells(stats, (segment,), (len(labels), stats.distortion), tolerance)
        return cls(made, device=device)

    def __len__(self) -> int:
        return int(self.cells.stats.count.sum())

    @property
    def dim(self) -> int:
        """Width of the keys."""
        return int(self._centroid.shape[1])

    @torch.inference_mode()
    def log_sums(self, queries: Tensor, exclude: Tensor | None = None) -> Tensor:
        """See `Retriever.log_sums`."""
        queries = checked(queries, self.dim, self.device)
        parts, probed = [], 0
        for start in range(0, len(queries), QUERY_BLOCK):
            part = slice(start, start + QUERY_BLOCK)
            rows = None if exclude is None else exclude[part].to(self.device)
            sums, done = self._summed(queries[part], rows)
            probed += int(done.sum())
            parts.append(self._per_class(sums))
        self.probed = probed / max(len(queries), 1)
        empty = torch.empty(0, 2, dtype=torch.float64, device=self.device)
        return torch.cat(parts) if parts else empty

    def probability(self, queries: Tensor, exclude: Tensor | None = None) -> Tensor:
        """See `Retriever.probability`."""
        return probability_of(self.log_sums(queries, exclude))

    def _summed(self, queries: Tensor, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
        """Every cell's log sum [M, C], and which of them were summed key by key."""
        sums, variance = self.closed_form(queries)
        done = self._holding(exclude, sums)
        self._sum_keys(queries, sums, done, exclude)
        variance = self.closed_form.widened(queries, variance)
        ceiling = self.closed_form.ceiling(queries, variance).clamp_max(LARGEST).expm1()
        if float((self._share(sums) @ ceiling).max()) <= self.cells.tolerance:
            return sums, done  # so at temperature 1 in cells of many keys
        cautious, error = self.closed_form.cautious(queries, variance)
        for _ in range(ROUNDS):
            chosen = self._chosen(torch.where(done, sums, cautious), error.masked_fill(done, 0))
            if not chosen.any():
                break
            self._sum_keys(queries, sums, chosen, exclude)
            done |= chosen
        return sums, done

    def _per_class(self, sums: Tensor) -> Tensor:
        out = sums.new_full((len(sums), 2), -torch.inf)
        for label in (NORMAL, ANOMALOUS):
            own = self._label == label
            if own.any():
                out[:, label] = sums[:, own].logsumexp(dim=1)
        return out

    def _share(self, sums: Tensor) -> Tensor:
        """Of each cell in its class's sum, [M, C]."""
        return (sums - self._per_class(sums)[:, self._label]).exp().nan_to_num_()

    def _chosen(self, sums: Tensor, error: Tensor) -> Tensor:
        """Cells to sum key by key in this round, bool [M, C].

        A cell's part in its class's error is its share times what it grows by if it is off by its
        own error [M, C]. Largest first, until what is left is within the tolerance, but at most a
        quarter of the cells in a round: an overestimated cell hides the others' shares until it is
        summed.
        """
        part = self._share(sums) * error.clamp_max(LARGEST).expm1()
        most = -(-part.shape[1] // ROUNDS)
        top = part.topk(most, dim=1)
        left = part.sum(dim=1, keepdim=True) - top.values.cumsum(dim=1) + top.values
        wanted = (left > self.cells.tolerance) & (top.values > 0)
        return torch.zeros_like(part, dtype=torch.bool).scatter_(1, top.indices, wanted)

    def _holding(self, exclude: Tensor | None, sums: Tensor) -> Tensor:
        """Cells with keys of the entry that a query must not retrieve, bool [M, C]."""
        out = torch.zeros_like(sums, dtype=torch.bool)
        if exclude is None:
            return out
        for entry in exclude.unique().tolist():
            if entry < 0:
                continue
            cells = [
                np.searchsorted(s.start, np.flatnonzero(s.entry == entry), side="right") - 1
                for s in self.cells.segments
            ]
            held = torch.from_numpy(np.unique(np.concatenate(cells))).to(self.device)
            out[(exclude == entry).nonzero(), held[None]] = True
        return out

    def _sum_keys(
        self, queries: Tensor, sums: Tensor, chosen: Tensor, exclude: Tensor | None
    ) -> None:
        """Replace the closed form of the chosen cells by the sum over their keys."""
        if not chosen.any():
            return
        for cell in chosen.any(dim=0).nonzero()[:, 0].tolist():
            rows = chosen[:, cell].nonzero()[:, 0]
            own = None if exclude is None else exclude[rows]
            total = sums.new_full((len(rows),), -torch.inf)
            for scores, _ in self._scores(queries[rows], cell, own):
                total = torch.logaddexp(total, log_sum_exp(scores))
            sums[rows, cell] = total

    def _scores(
        self, queries: Tensor, cell: int, exclude: Tensor | None
    ) -> Iterator[tuple[Tensor, npt.NDArray[np.int64]]]:
        """Similarities [m, n] with a cell's keys and their rows, block by block."""
        offset = queries @ self._centroid[cell]
        for segment, codes in zip(self.cells.segments, self._codes):
            first, end = int(segment.start[cell]), int(segment.start[cell + 1])
            for start in range(first, end, KEY_BLOCK):
                part = slice(start, min(start + KEY_BLOCK, end))
                scores = torch.addmm(offset[:, None], queries, codes[part].float().T)
                if exclude is not None:
                    entry = torch.from_numpy(np.array(segment.entry[part])).to(self.device)
                    scores.masked_fill_(entry[None] == exclude[:, None], -torch.inf)
                yield scores, np.array(segment.row[part])

    @torch.inference_mode()
    def nearest(
        self, queries: Tensor, k: int, exclude: Tensor | None = None
    ) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        """See `Retriever.nearest`; among the 32 cells of largest q.m (more where they hold too few)."""
        queries = checked(queries, self.dim, self.device)
        exclude = None if exclude is None else exclude.to(self.device)
        k = min(k, len(self))
        chosen = self._nearest_cells(queries, k, exclude is not None)
        best = queries.new_full((len(queries), k), -torch.inf)
        rows = torch.full((len(queries), k), -1, dtype=torch.int64, device=self.device)
        for cell in chosen.any(dim=0).nonzero()[:, 0].tolist():
            own = chosen[:, cell].nonzero()[:, 0]
            for scores, found in self._scores(
                queries[own], cell, None if exclude is None else exclude[own]
            ):
                new = torch.from_numpy(found).to(self.device).expand(len(own), -1)
                joined = torch.cat([best[own], scores], dim=1).topk(k, dim=1)
                best[own] = joined.values
                rows[own] = torch.cat([rows[own], new], dim=1).gather(1, joined.indices)
        rows[best.isinf()] = -1
        return best.cpu().numpy(), rows.cpu().numpy()

    def _nearest_cells(self, queries: Tensor, k: int, excluding: bool) -> Tensor:
        """bool [M, C]: cells to search, enough of them for k keys that are not excluded."""
        form = self.closed_form
        score = (queries @ form.mean.T).masked_fill_(form.count == 0, -torch.inf)
        order = score.argsort(dim=1, descending=True)
        if excluding:
            entries = np.concatenate([segment.entry for segment in self.cells.segments])
            k += int(np.unique(entries, return_counts=True)[1].max())
        count = form.count[order]
        wanted = (count.cumsum(dim=1) - count < k) & (count > 0)
        wanted[:, :NEAREST_PROBES] = True
        return torch.zeros_like(wanted).scatter_(1, order, wanted)

    def add(
        self, keys: FloatArray, labels: npt.NDArray[np.uint8], entry: npt.NDArray[np.int64]
    ) -> ApproximateRetriever:
        """A retriever that also holds `keys` [m, d]: cells stay, their counts and moments move.

        Nothing is trained, and coded keys are shared with this one. `drift` says when it no longer
        fits. Raises `DimensionError`, `NonFiniteError`.
        """
        if keys.ndim != 2 or keys.shape[1] != self.dim:
            raise DimensionError(f"keys are {list(keys.shape)}, the index holds {self.dim} wide")
        cells = self.cells
        cell, stats = assign(keys, np.asarray(labels, dtype=np.uint8), cells.stats.frame)
        dtype = cells.segments[0].codes.dtype
        new = make_segment(keys, cell, stats, dtype, entry=entry, first_row=len(self))
        segments = [*cells.segments]
        while len(segments) > 1 and len(segments[-1]) <= 2 * len(new):
            new = Segment.join([segments.pop(), new])  # so that there are few, at O(log n) a key
        added = replace(cells, stats=cells.stats.merge(stats), segments=(*segments, new))
        kept = self._codes[: len(segments)]
        return ApproximateRetriever(added, device=self.device, resident=kept)

    def drift(self) -> Drift:
        """How the keys added since the build fit its cells."""
        count, before = self.cells.built
        added = len(self) - count
        if added == 0:
            return Drift(0, 0.0, 1.0)
        now = self.cells.stats.distortion * len(self)
        new = max(now - before * count, 0.0) / added
        return Drift(added, added / len(self), new / max(before, 1e-12))

    def measure(self, queries: Tensor, exact: Tensor, exclude: Tensor | None = None) -> Accuracy:
        """Compare with `exact` probabilities [M] of the same queries, and remember it."""
        from scipy.stats import spearmanr

        got, want = self.probability(queries, exclude).cpu().double(), exact.cpu().double()
        rank = float(spearmanr(got.numpy(), want.numpy()).statistic)
        found = Accuracy(len(got), float((got - want).abs().max()), rank, self.probed)
        self.cells = replace(self.cells, accuracy=found)
        logger.info("approximate retrieval measured against exact: %s", found)
        return found
