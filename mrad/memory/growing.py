"""A bank that grows in place and hands out immutable views of itself.

Arrays have room to spare. An addition is written behind the rows that earlier views show, so a
view costs nothing and never changes; the array is copied only when it is full (amortised O(1) a
key). Removals copy: they are rare, and those of one commit share one copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from mrad.memory.contents import SETTLED, Changes, Contents, add_picture
from mrad.memory.entry import Entry, Key
from mrad.memory.level import COLUMNS, LEVELS, LevelMemory
from mrad.types import ANOMALOUS, NORMAL, Level

C = TypeVar("C", bound=Contents)


class GrowingLevel:
    """One level; see the module."""

    def __init__(self, level: LevelMemory) -> None:
        self._folder, self._refers_to = level.folder, level.refers_to
        self._count = len(level)
        self._finite_to = len(level) if level.finite else 0
        self._arrays = {name: getattr(level, name) for name in COLUMNS}

    def append(self, keys: Sequence[Key], row: int) -> None:
        """Add the keys of the entry at `row`."""
        if not keys:
            return
        self._reserve(self._count + len(keys))
        for key in keys:
            values = (key.vector, key.label, row, key.region, key.size, key.tile)
            for array, value in zip(self._arrays.values(), values):
                array[self._count] = value
            self._count += 1

    def view(self) -> LevelMemory:
        """The level as it is now; stays so. Of its keys only the new ones are looked at."""
        arrays = {name: array[: self._count] for name, array in self._arrays.items()}
        level = LevelMemory(
            **arrays, folder=self._folder, reference=self._refers_to, finite_to=self._finite_to
        )
        if level.finite:
            self._finite_to = self._count
        return level

    def keep(self, rows: npt.NDArray[np.bool_]) -> None:
        """Forget the keys of entries whose row is not kept; rows move up."""
        view = self.view()
        kept = rows[view.entry]
        self._finite_to = int(kept[: self._finite_to].sum())
        moved = np.cumsum(rows) - 1
        self._arrays = {name: getattr(view, name)[kept] for name in COLUMNS}
        self._arrays["entry"] = moved[self._arrays["entry"]].astype(np.int64)
        self._count = int(kept.sum())

    def lost_without(self, rows: Sequence[int]) -> set[int]:
        """Labels of which no key would be left without those of the entries `rows`."""
        labels, entry = (self._arrays[name][: self._count] for name in ("labels", "entry"))
        kept = labels[~np.isin(entry, rows)]
        return {label for label in (NORMAL, ANOMALOUS) if label in labels and label not in kept}

    def _reserve(self, count: int) -> None:
        if count <= len(self._arrays["labels"]):
            return
        room = max(count + count // 2, 64)
        for name, array in self._arrays.items():
            larger = np.empty((room, *array.shape[1:]), dtype=array.dtype)
            larger[: self._count] = array[: self._count]
            self._arrays[name] = larger


class GrowingBank(Generic[C]):
    """Entries and both levels; `view` is a bank of the same kind."""

    def __init__(self, bank: C) -> None:
        self._bank = bank
        self.metadata: dict[str, Any] = bank.metadata
        self.calibration: dict[str, Any] | None = bank.calibration
        self.sequence = 0
        """Number of the last operation; 0 while nothing was learned."""
        self.folder = Path()
        """Where what was learned lies."""
        self._built, self._removed = len(bank.entries), 0
        self._settled = min(int(bank.metadata.get(SETTLED, self._built)), self._built)
        self._levels = {name: GrowingLevel(getattr(bank, name)) for name in LEVELS}
        self._keeps_local = bank.keeps_local
        self._entries = list(bank.entries)
        self.rows = {entry.entry_id: row for row, entry in enumerate(self._entries)}
        """entry_id -> row."""
        self.thumbnails = dict(bank.thumbnails)
        self.pictures = dict(bank.pictures)
        self._dropped: list[int] = []

    @property
    def dims(self) -> tuple[int, int, int]:
        """Width of the image keys, of the patch keys, and of single patches."""
        return self._bank.image.dim, self._bank.patch.dim, self._bank.local.dim

    def entry(self, entry_id: str) -> Entry:
        """One entry; `KeyError` when there is none."""
        return self._entries[self.rows[entry_id]]

    def add(self, entry: Entry, keys: Sequence[Key], thumbnail: bytes | None) -> None:
        """Append an entry that is known to be new and to fit."""
        row = len(self._entries)
        self._entries.append(entry)
        self.rows[entry.entry_id] = row
        for name, level in self._levels.items():
            if name != "local" or self._keeps_local:
                level.append([key for key in keys if key.level == name], row)
        if self._keeps_local:
            add_picture(self.pictures, keys)
        if thumbnail is not None:
            self.thumbnails[entry.entry_id] = thumbnail

    def remove(self, entry_id: str) -> None:
        """Mark an entry as gone; `view` sweeps."""
        row = self.rows.pop(entry_id)
        self._dropped.append(row)
        self._removed += row < self._built
        self.thumbnails.pop(entry_id, None)
        self.pictures.pop(entry_id, None)

    def view(self) -> C:
        """The bank as it is now. Its thumbnails and pictures are the store's own: ask, don't iterate."""
        self._sweep()
        levels: dict[str, Any] = {name: level.view() for name, level in self._levels.items()}
        changes = None
        if self.sequence:
            added = len(self._entries) - self._built
            changes = Changes(added, self._removed, self.sequence, self.folder)
        return replace(
            self._bank,
            entries=tuple(self._entries),
            **levels,
            thumbnails=self.thumbnails,
            pictures=self.pictures,
            metadata=self.metadata | ({SETTLED: self._settled} if self.sequence else {}),
            calibration=self.calibration,
            changes=changes,
            digest=None,
        )

    def would_lose(self, level: Level, entry_ids: Sequence[str]) -> set[int]:
        """Labels of which a level would lose its last key with these entries."""
        return self._levels[level].lost_without([self.rows[entry_id] for entry_id in entry_ids])

    def _sweep(self) -> None:
        if not self._dropped:
            return
        kept = np.ones(len(self._entries), dtype=bool)
        kept[self._dropped] = False
        for level in self._levels.values():
            level.keep(kept)
        self._built = int(kept[: self._built].sum())
        self._settled = int(kept[: self._settled].sum())
        self._entries = [entry for entry, keep in zip(self._entries, kept) if keep]
        self.rows = {entry.entry_id: row for row, entry in enumerate(self._entries)}
        self._dropped = []
