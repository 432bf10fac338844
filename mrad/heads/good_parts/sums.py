"""What a memory's own images retrieve from the others, as sums that follow lessons.

`tf` judges an image by two sums of exp(cosine) at each level, one over the keys of each class. A new
entry adds its keys to the sums of every image, and one that is forgotten takes its keys away: nothing
else has to be measured again. Where lessons count near what they teach (`mrad.retrieval.lessons`), all is
measured again when an entry of the build is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mrad.encoder.encoder import Features
from mrad.encoder.tower import neighbourhood_average
from mrad.heads import HeadOutput
from mrad.heads.good_parts import cache
from mrad.memory.bank import MemoryBank
from mrad.memory.level import LevelMemory
from mrad.retrieval.base import counts_without, probability_of, scaled_by
from mrad.retrieval.good_patches import Views
from mrad.retrieval.lessons import Keys, built_entries, judging, per_class

BATCH = 8
"""Images at a time."""
VERSION = 4
KEPT = ("total", "taught", "nearest")
"""Tensors of `Sums`."""
Stored = Callable[[Sequence[int]], Features]
"""Views -> their features."""


@dataclass(frozen=True)
class Sums:
    """Of M queries, over the keys of one level."""

    total: Tensor
    """float64 [M, 2], sum of exp(cosine - 1) over the normal and the anomalous keys, as they count."""
    taught: Tensor
    """float64 [M, 2], how much keys count that do not count in full."""
    nearest: Tensor
    """float32 [M], the largest cosine to a key that counts in full."""

    @classmethod
    def empty(cls, count: int) -> Sums:
        """Of no key."""
        zeros = torch.zeros(count, 2, dtype=torch.float64)
        return cls(zeros, zeros.clone(), torch.full((count,), -1.0))

    def put(self, places: Tensor, other: Sums, rows: Tensor) -> None:
        """Take over what another one has of queries."""
        for name in KEPT:
            getattr(self, name)[places] = getattr(other, name)[rows]

    def add(
        self, places: Tensor, queries: Tensor, keys: Keys, own: Tensor, full: bool, sign: float
    ) -> None:
        """Add keys to the sums of queries, or take them away.

        Args:
            places: int64 [m], of the queries among these.
            queries: float32 [m, d], L2-normalised.
            keys: they count.
            own: int64 [m], entries whose keys a query does not retrieve; -1 for none.
            full: they count in full; else as near as they are (`mrad.retrieval.lessons.weights`).
            sign: 1 adds, -1 takes away.
        """
        exclude = own if bool((own >= 0).any()) else None
        if not full:
            nearest = self.nearest[places].to(queries.device)
            total, counted = keys.weighed(queries, nearest, exclude)
            self.total[places] += sign * total.cpu()
            self.taught[places] += sign * counted.cpu()
            return
        for rows, cosine, labels in keys.cosines(queries, exclude):
            at = places[rows]
            self.nearest[at] = torch.maximum(self.nearest[at], cosine.amax(dim=1).cpu())
            self.total[at] += sign * per_class(cosine.sub_(1).exp_(), labels).cpu()

    def probability(self, level: LevelMemory, judging: int | None, own: Tensor) -> Tensor:
        """As `tf` judges queries of the entries `own` [M]."""
        found = probability_of(self.total.clamp_min(0).log())
        count = len(level) if judging is None else judging
        asked = counts_without(level, count, own) + self.taught.clamp_min(0).numpy()
        return scaled_by(found, level, asked)


@dataclass(frozen=True)
class LeftOutSums:
    """Of every image or tile that the memory holds whole: sums over the keys of the other entries."""

    views: tuple[tuple[str, int], ...]
    """Entry and tile of each of the V views."""
    entries: tuple[str, ...]
    levels: tuple[LevelMemory, LevelMemory]
    """Image and patch level that were summed over."""
    judging: tuple[int | None, int | None]
    """Keys of each level that count in full (`mrad.retrieval.lessons.judging`); None: all."""
    built: tuple[str, ...]
    """Entries whose keys those are; empty where all count in full at both levels."""
    image: Sums
    """[V]."""
    patch: Sums
    """[V * N]."""

    @classmethod
    @torch.inference_mode()
    def measure(
        cls, bank: MemoryBank, views: Views, stored: Stored, known: LeftOutSums | None = None
    ) -> LeftOutSums:
        """Of the bank as it is.

        Args:
            bank: holds the entries.
            views: the images, or tiles, that it holds whole.
            stored: gives what they ask with.
            known: of an earlier state of the bank; what still holds is taken over.
        """
        entries = tuple(entry.entry_id for entry in bank.entries)
        pairs = tuple(
            (entries[row], tile) for row, tile in zip(views.rows.tolist(), views.tiles.tolist())
        )
        cells = views.normal.shape[1]
        levels = bank.image, bank.patch
        first = built_entries(bank)
        full = judging(bank.image, first), judging(bank.patch, first)
        built = () if full == (None, None) else entries[: bank.settled]
        empty = Sums.empty(len(pairs)), Sums.empty(len(pairs) * cells)
        made = cls(pairs, entries, levels, full, built, *empty)
        if known is not None and not made._follows(known):
            known = None
        old = {pair: view for view, pair in enumerate(known.views)} if known is not None else {}
        kept = [view for view, pair in enumerate(pairs) if pair in old]
        fresh = [view for view, pair in enumerate(pairs) if pair not in old]
        if known is not None and kept:
            places, rows = torch.tensor(kept), torch.tensor([old[pairs[view]] for view in kept])
            made.image.put(places, known.image, rows)
            made.patch.put(_cells(places, cells), known.patch, _cells(rows, cells))
            before, now = set(known.entries), set(entries)
            gone = [row for row, entry in enumerate(known.entries) if entry not in now]
            new = [row for row, entry in enumerate(entries) if entry not in before]
            made._add(kept, views, stored, known.levels, gone, -1.0)
            made._add(kept, views, stored, levels, new, 1.0)
        if fresh:
            made._add(fresh, views, stored, levels, None, 1.0)
        return made

    def _follows(self, known: LeftOutSums) -> bool:
        """Whether the same keys count in full, so that the rest can be taken over."""
        counted = [count is None for count in self.judging]
        return (
            counted == [count is None for count in known.judging]
            and self.built == known.built
            and len(self.patch.total) * len(known.views) == len(known.patch.total) * len(self.views)
        )

    def _add(
        self,
        chosen: list[int],
        views: Views,
        stored: Stored,
        levels: tuple[LevelMemory, LevelMemory],
        rows: list[int] | None,
        sign: float,
    ) -> None:
        """Add, or take away, the keys of entries `rows` of `levels`; None: all but a view's own."""
        if rows is not None and not rows:
            return
        parts = [_parts(level, full, rows) for level, full in zip(levels, self.judging)]
        cells = views.normal.shape[1]
        for start in range(0, len(chosen), BATCH):
            batch = torch.tensor(chosen[start : start + BATCH])
            own = views.rows[batch] if rows is None else torch.full((len(batch),), -1)
            asked = stored(batch.tolist())
            image, patch = asked.class_query(), asked.patch_query()
            for keys, full in parts[0]:
                self.image.add(batch, image, keys, own, full, sign)
            at, own = _cells(batch, cells), own.repeat_interleave(cells)
            for keys, full in parts[1]:
                self.patch.add(at, patch.flatten(0, 1), keys, own, full, sign)

    def write(self, path: Path) -> None:
        """Keep it at `path`, or say in the log why not."""
        fields = {name: value for name, value in vars(self).items() if name != "levels"}
        cache.write(path, VERSION, fields)

    @classmethod
    def read(cls, path: Path, levels: tuple[LevelMemory, LevelMemory]) -> LeftOutSums | None:
        """What `write` kept of `levels`; None where it is absent, damaged or of another version."""
        fields = cache.read(path, VERSION, image=Sums, patch=Sums)
        return None if fields is None else cls(**fields, levels=levels)

    def output(self, rows: Tensor) -> HeadOutput:
        """As `tf` judges images of the entries `rows` [V], each without its own keys."""
        count = len(self.views)
        cells = len(self.patch.total) // max(count, 1)
        patch = self.patch.probability(
            self.levels[1], self.judging[1], rows.repeat_interleave(cells)
        )
        image = self.image.probability(self.levels[0], self.judging[0], rows)
        return HeadOutput(patch.view(count, cells), image)


def stored_at(bank: MemoryBank) -> Path | None:
    """Where a bank that lies on disk keeps its sums; None for one in memory, or that learned."""
    return cache.place(bank, "sums", VERSION, [bank.local, bank.image, bank.patch])


def stored_features(bank: MemoryBank, views: Views, device: torch.device | str) -> Stored:
    """The features of the images that a bank holds whole, from what it holds of them."""
    cells, grid = views.normal.shape[1], round(views.normal.shape[1] ** 0.5)
    raw = torch.from_numpy(bank.local.keys).view(-1, cells, bank.local.dim)
    place = {
        pair: row
        for row, pair in enumerate(zip(bank.image.entry.tolist(), bank.image.tile.tolist()))
    }
    pairs = list(zip(views.rows.tolist(), views.tiles.tolist()))
    keys = torch.from_numpy(bank.image.keys)

    def features(chosen: Sequence[int]) -> Features:
        whole = keys[torch.tensor([place[pairs[view]] for view in chosen])].to(device)
        part = raw[torch.tensor(list(chosen))].to(device)
        return Features(whole, neighbourhood_average(part, grid), part)

    return features


def _cells(views: Tensor, cells: int) -> Tensor:
    """The places of the views' patches."""
    return (views[:, None] * cells + torch.arange(cells)).flatten()


def _parts(level: LevelMemory, full: int | None, rows: list[int] | None) -> list[tuple[Keys, bool]]:
    """Keys of the entries `rows`, None: all; those that count in full first, and whether they do."""
    count = len(level) if full is None else full
    if rows is None:
        found = [(Keys.of(level, slice(None, count)), True)]
        return [*found, (Keys.of(level, slice(count, None)), False)]
    chosen = np.flatnonzero(np.isin(level.entry, rows))
    return [(Keys.of(level, chosen), full is None)] if len(chosen) else []
