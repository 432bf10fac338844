"""Lessons that count near what they teach: a key that was taught weighs by how much nearer it is.

At temperature 1 every key weighs on every query, so a lesson would move the score of each image, and of
some more than of others. Here the keys that the memory was built of judge a query as before. A key that
was taught since weighs 1 - d / d0, where d is its distance to the query (1 - cosine) and d0 that of the
nearest key of the build: 1 where it is the very same, 0 where the build knows something as near.

It stays one key among many: a taught picture that is moved may keep its verdict. Were the whole error of a
taught picture taken off whatever is near it, defects would pass: how near they are does not tell a picture
with a small new defect from one moved by two pixels. `python -m benchmarks lessons` counts the verdicts of both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mrad.encoder.kernels import filled_product
from mrad.memory.bank import MemoryBank
from mrad.memory.level import LevelMemory
from mrad.retrieval.base import (
    Retriever,
    at_reference_shares,
    counts_without,
    probability_of,
    scaled_by,
)
from mrad.retrieval.choose import make_retriever
from mrad.retrieval.exact import ExactRetriever
from mrad.types import ANOMALOUS

FEW = 10
"""Good images of the build that judge alone, and that say what is usual; with fewer, what was taught does too.

`tf` counts all good entries, `nn` those that the memory holds whole: each those it can judge by."""
LEAST_BAD = 2
"""The same for defective ones: one of them is left out where it is judged itself."""
LEAST = 1e-6
"""What two distances differ by at least: less is rounding."""
CODED = 1e-3
"""What cosines to keys as an index holds them, in half precision, may be too large by."""
STEP = 2.0**-30
"""See `in_steps`."""
BLOCK = 2_048
"""Queries, and keys, at a time: a product of theirs takes 16 MiB, its float64 sums twice that."""


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
    """How much keys that were taught count, float32 [M, n] in [0, 1].

    Args:
        cosine: float32 [M, n], of queries to them.
        nearest: float32 [M], the largest cosine to a key of the build.
    """
    nearest = nearest[:, None].clamp_min(-1)
    found = (1 - (1 - cosine) / (1 - nearest).clamp_min(LEAST)).clamp_(0, 1)
    return found.masked_fill_(cosine <= nearest + LEAST, 0.0)


class Keys(NamedTuple):
    """Some keys of a level."""

    keys: Tensor
    """float32 [n, d]."""
    labels: npt.NDArray[np.uint8]
    """[n]."""
    entry: Tensor
    """int64 [n]."""

    @classmethod
    def of(cls, level: LevelMemory, chosen: slice | npt.NDArray[np.int64]) -> Keys:
        """By their places."""
        keys = torch.from_numpy(np.ascontiguousarray(level.keys[chosen]))
        return cls(keys, level.labels[chosen], torch.from_numpy(level.entry[chosen]))

    def cosines(
        self, queries: Tensor, exclude: Tensor | None
    ) -> Iterator[tuple[slice, Tensor, npt.NDArray[np.uint8]]]:
        """Which of `queries` [M, d], their cosines float32 [m, n] to some keys, and those keys' labels.

        -inf to keys of the entries `exclude` int64 [M]. At most `BLOCK` of each at a time.
        """
        for first in range(0, len(self.labels), BLOCK):
            part = slice(first, first + BLOCK)
            keys, entry = self.keys[part].to(queries.device), self.entry[part].to(queries.device)
            for start in range(0, len(queries), BLOCK):
                rows = slice(start, start + BLOCK)
                cosine = filled_product(queries[rows], keys)
                if exclude is not None:
                    own = entry[None] == exclude[rows].to(entry.device)[:, None]
                    cosine.masked_fill_(own, -torch.inf)
                yield rows, cosine, self.labels[part]

    def largest(self, queries: Tensor, exclude: Tensor | None) -> Tensor:
        """The largest cosine of each of `queries` [M, d], float32 [M]; -inf where all is excluded."""
        found = queries.new_full((len(queries),), -torch.inf)
        for rows, cosine, _ in self.cosines(queries, exclude):
            found[rows] = torch.maximum(found[rows], cosine.amax(dim=1))
        return found

    def weighed(
        self, queries: Tensor, nearest: Tensor, exclude: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What these keys add to the sums of exp(cosine - 1) of each class, and how much they count.

        Args:
            queries: float32 [M, d], L2-normalised.
            nearest: as for `weights`.
            exclude: int64 [M], entries whose keys a query must not retrieve, or -1.

        Returns two float64 [M, 2].
        """
        total = queries.new_zeros(len(queries), 2, dtype=torch.float64)
        counted = torch.zeros_like(total)
        for rows, cosine, labels in self.cosines(queries, exclude):
            weight = in_steps(weights(cosine, nearest[rows]))
            counted[rows] += per_class(weight, labels)
            total[rows] += per_class(in_steps(weight * cosine.sub_(1).exp_()), labels)
        return total, counted


def in_steps(values: Tensor) -> Tensor:
    """Float32 values up to 1, in whole `STEP`s: float64 adds up millions of them without rounding.

    So a sum does not depend on the order in which keys came, nor on keys that went. What is not taught,
    exp(cosine - 1), needs none of it: it is above 1/8, where float32 has no finer steps.
    """
    return values.div_(STEP).round_().mul_(STEP)


def per_class(values: Tensor, labels: npt.NDArray[np.uint8]) -> Tensor:
    """`values` float32 [M, n] of keys with `labels` [n], added up in float64: [M, 2]."""
    found = values.new_zeros(len(values), 2, dtype=torch.float64)
    for label in np.unique(labels).tolist():
        mine = torch.from_numpy(np.flatnonzero(labels == label)).to(values.device)
        found[:, label] = values[:, mine].sum(dim=1, dtype=torch.float64)
    return found


@dataclass(frozen=True)
class WithLessons:
    """One level whose later keys count near what they teach (see the module)."""

    level: LevelMemory
    count: int
    """So many first keys judge."""
    built: Retriever
    """Of those."""
    taught: Keys
    """The others."""

    @torch.inference_mode()
    def judged(self, queries: Tensor, exclude: Tensor | None = None) -> Tensor:
        """Share of the anomalous class at the reference's shares: float32 [M].

        `queries`, `exclude`: as for `Retriever.probability`.
        """
        queries = queries.to(self.taught.keys.device, torch.float32)
        if isinstance(self.built, ExactRetriever):
            sums, nearest = self.built.sums_and_peak(queries, exclude)
        else:
            sums = self.built.log_sums(queries, exclude)
            nearest = self._nearest_built(self.built, queries, exclude)
        total, counted = self.taught.weighed(queries, nearest, exclude)
        sums = torch.logaddexp(sums, total.log() + 1)
        asked = counts_without(self.level, self.count, exclude) + counted.cpu().numpy()
        return scaled_by(probability_of(sums), self.level, asked)

    def _nearest_built(self, built: Retriever, queries: Tensor, exclude: Tensor | None) -> Tensor:
        """The largest cosine to a key of the build, float32 [M], wherever a lesson is nearer than that.

        An index misses the nearest key now and then, and a lesson would count too much. So where one is
        nearer than what the index found, all keys are looked at; elsewhere none counts anyway.
        """
        found = torch.from_numpy(built.nearest(queries, 1, exclude)[0][:, 0]).to(queries)
        asked = (self.taught.largest(queries, exclude) > found - CODED).nonzero()[:, 0]
        if len(asked):
            keys = Keys.of(self.level, slice(None, self.count))
            own = None if exclude is None else exclude[asked.to(exclude.device)]
            found[asked] = keys.largest(queries[asked], own)
        return found


def retriever_of(
    level: LevelMemory, entries: int | None, *, mode: str, device: torch.device | str
) -> Retriever | WithLessons:
    """What judges by a level of a memory.

    Args:
        level: its keys.
        entries: `built_entries` of the memory.
        mode: `exact`, `approximate` or `auto`, as for `make_retriever`.
        device: that queries come on.

    Raises `MRADError` for an unknown `mode`, `EmptyLevelError`.
    """
    count = judging(level, entries)
    if count is None or count == len(level):
        return make_retriever(level, mode=mode, device=device)
    # In the bank's folder, so that an index of the keys of the build is found there.
    first = replace(level.take(slice(None, count)), folder=level.folder)
    keys, labels, entry = Keys.of(level, slice(count, None))
    taught = Keys(keys.to(device), labels, entry.to(device))
    return WithLessons(level, count, make_retriever(first, mode=mode, device=device), taught)


def judged(
    retriever: Retriever | WithLessons,
    level: LevelMemory,
    queries: Tensor,
    exclude: Tensor | None = None,
) -> Tensor:
    """Probabilities float32 [M] at the class shares that scores refer to (`at_reference_shares`).

    Args:
        retriever: `retriever_of` the level.
        level: what it retrieves from.
        queries: float32 [M, d], L2-normalised.
        exclude: int64 [M], entry rows that a query must not retrieve, -1 for none.
    """
    if isinstance(retriever, WithLessons):
        return retriever.judged(queries, exclude)
    return at_reference_shares(retriever.probability(queries, exclude), level, exclude)
