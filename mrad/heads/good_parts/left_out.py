"""How far the memory's own images lie from each other's patches: kept while it learns, and on disk.

Measuring every image against all others costs as much as judging each of them once. A lesson changes
little of it: old images may have found a nearer patch among the new ones, and only those that leaned on
a forgotten image are measured again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mrad.heads.good_parts import cache
from mrad.memory.bank import MemoryBank
from mrad.retrieval.good_patches import GoodPatches, Views, within_itself

VERSION = 3
Query = Callable[[int], Tensor]
"""View -> its patches [N, W], L2-normalised, on the encoder's device."""
Progress = Callable[[int, int], None]
"""Called with how many images, or tiles, are measured, and how many there are."""
_progress: ContextVar[Progress | None] = ContextVar("_progress", default=None)


@contextmanager
def watched(progress: Progress) -> Iterator[None]:
    """Within it, whoever measures a memory's own images in this thread reports its progress."""
    before = _progress.set(progress)
    try:
        yield
    finally:
        _progress.reset(before)


@dataclass(frozen=True)
class LeftOutDistances:
    """Of every patch of every stored image: its nearest good patch of another group."""

    views: tuple[tuple[str, int], ...]
    """Entry and tile of each of the V views."""
    groups: tuple[tuple[str, ...], ...]
    """Entries that each view was not compared with: itself and its near-duplicates."""
    entries: tuple[str, ...]
    cosine: Tensor
    """float32 [V, N]."""
    nearest: Tensor
    """int32 [V, N], place in `entries` of the image that the nearest patch belongs to; -1 for none."""
    several: bool
    """Whether there was more than one group; else each view was compared within itself."""
    asked: tuple[str, ...] | None = None
    """Entries whose patches were compared with; None: all."""

    @classmethod
    @torch.inference_mode()
    def measure(
        cls,
        bank: MemoryBank,
        views: Views,
        good_patches: GoodPatches,
        query: Query,
        known: LeftOutDistances | None = None,
    ) -> LeftOutDistances:
        """Of the bank as it is now; `known` is what was measured of an earlier state of it.

        Args:
            bank: holds the entries.
            views: the images that it holds whole.
            good_patches: the patches that are compared with.
            query: the patches of a view.
            known: of the same encoder's features; what still holds is taken over.
        """
        entries = tuple(entry.entry_id for entry in bank.entries)
        pairs = tuple(
            (entries[row], tile) for row, tile in zip(views.rows.tolist(), views.tiles.tolist())
        )
        groups = _groups(entries, good_patches.groups.cpu(), pairs)
        several = good_patches.several_groups
        cells = views.normal.shape[1]
        made = cls(
            pairs,
            groups,
            entries,
            torch.empty(len(pairs), cells),
            torch.empty(len(pairs), cells, dtype=torch.int32),
            several,
            None if good_patches.only is None else tuple(entries[row] for row in good_patches.only),
        )
        old = {}
        if known is not None and known.several == several and known.cosine.shape[1:] == (cells,):
            old = {pair: view for view, pair in enumerate(known.views)}
        fresh = torch.ones(len(good_patches), dtype=torch.bool)
        moved = torch.empty(0, dtype=torch.int32)
        if known is not None and old:
            rows = {entry: row for row, entry in enumerate(entries)}
            moved = torch.tensor([rows.get(entry, -2) for entry in known.entries] + [-1]).int()
            before = set(known.entries if known.asked is None else known.asked)
            new = torch.tensor([entry not in before for entry in entries])
            fresh = new[good_patches.entry.cpu()]
        fresh, learned = fresh.to(good_patches.keys.device), bool(fresh.any())
        gone = torch.zeros(len(pairs), cells, dtype=torch.bool)
        for view, pair in enumerate(pairs):
            place = old.get(pair)
            if known is not None and place is not None and known.groups[place] == groups[view]:
                made.cosine[view] = known.cosine[place]
                made.nearest[view] = moved[known.nearest[place].long()]
                gone[view] = made.nearest[view] == -2
                if several and learned:
                    cosine, key = good_patches.nearest(query(view), int(views.rows[view]), fresh)
                    closer = cosine.cpu() > made.cosine[view]
                    made.cosine[view, closer] = cosine.cpu()[closer]
                    made.nearest[view, closer] = _entries_of(key, good_patches)[closer]
            else:
                made._measure(view, views, good_patches, query)
            if (tell := _progress.get()) is not None:
                tell(view + 1, len(pairs))
        if bool(gone.any()):
            made._measure_again(gone, views, good_patches, query)
        return made

    def _measure(self, view: int, views: Views, good_patches: GoodPatches, query: Query) -> None:
        """Against all good patches."""
        patches = query(view)
        if not self.several and bool(views.good[view]):
            self.cosine[view] = within_itself(patches, round(len(patches) ** 0.5)).cpu()
            self.nearest[view] = -1
            return
        cosine, key = good_patches.nearest(patches, int(views.rows[view]))
        self.cosine[view] = cosine.cpu()
        self.nearest[view] = _entries_of(key, good_patches)

    def _measure_again(
        self, cells: Tensor, views: Views, good_patches: GoodPatches, query: Query
    ) -> None:
        """The same for some patches alone, bool [V, N], as many together as an image has."""
        for places in cells.nonzero().split(cells.shape[1]):
            asked = torch.cat(
                [query(view)[_cells_of(places, view)] for view in places[:, 0].unique().tolist()]
            )
            cosine, key = good_patches.each_without(asked, views.rows[places[:, 0]])
            self.cosine[places[:, 0], places[:, 1]] = cosine.cpu()
            self.nearest[places[:, 0], places[:, 1]] = _entries_of(key, good_patches)

    def write(self, path: Path) -> None:
        """Keep it at `path`, or say in the log why not."""
        cache.write(path, VERSION, vars(self))

    @classmethod
    def read(cls, path: Path) -> LeftOutDistances | None:
        """What `write` kept; None where it is absent, damaged or of another version."""
        fields = cache.read(path, VERSION)
        return None if fields is None else cls(**fields)


def stored_at(bank: MemoryBank) -> Path | None:
    """Where a bank that lies on disk keeps its distances; None for one in memory, or that learned."""
    return cache.place(bank, "left-out", VERSION, [bank.local])


def _cells_of(places: Tensor, view: int) -> Tensor:
    """Patches, int64 [m], that pairs `places` [M, 2] name of a view."""
    return places[places[:, 0] == view, 1]


def _entries_of(keys: Tensor, good_patches: GoodPatches) -> Tensor:
    """Entry row, int32, of each of the `keys` [M]; -1 for none."""
    found = good_patches.entry[keys.clamp_min(0)].where(keys >= 0, torch.full_like(keys, -1))
    return found.cpu().int()


def _groups(
    entries: tuple[str, ...], group: Tensor, pairs: tuple[tuple[str, int], ...]
) -> tuple[tuple[str, ...], ...]:
    members: dict[int, set[str]] = {}
    numbers = dict(zip(entries, group.tolist()))
    for entry, number in numbers.items():
        members.setdefault(number, set()).add(entry)
    return tuple(tuple(sorted(members[numbers[entry]])) for entry, _ in pairs)


def eased(built: Tensor, found: Tensor) -> Tensor:
    """Distances where some of what was compared with was taught since the build.

    A taught patch calms by as much as it is nearer than all of the build; one that is hardly nearer, as some
    patch of many lessons is to any, calms hardly.

    Args:
        built: distances to what the memory was built of.
        found: to all that it holds, of the same shape.
    """
    nearer = (built - found).clamp_min(0)
    return built - nearer.square() / built.clamp_min(1e-6)
