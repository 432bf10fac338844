"""The memory as operations make it, and what of an operation is allowed."""

from __future__ import annotations

import bisect
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mrad.errors import (
    BankError,
    DimensionError,
    NoGoodPartsError,
    NonFiniteError,
    OneClassError,
)
from mrad.heads.choose import GOOD_PARTS_ALONE
from mrad.memory.bank import MemoryBank
from mrad.memory.database import REMEMBERED
from mrad.memory.entry import Entry
from mrad.memory.living import calibration_of, grown, metadata_of
from mrad.memory.operations import Add, Operation, Put, Remove, Request, Saved
from mrad.types import NORMAL, Level
from mrad_service.memory.errors import (
    EntryExistsError,
    EntryNotFoundError,
    IdempotencyConflictError,
)


@dataclass(frozen=True)
class Page:
    """A page of entries, newest first."""

    entries: list[Entry]
    next_cursor: str | None


class MemoryState:
    """Bank, idempotency keys, values, and the order of entries. Not thread-safe."""

    def __init__(self, built: MemoryBank, saved: Saved, live: Path) -> None:
        """
        Args:
            built: the bank as it was built.
            saved: what was learned since.
            live: where that lies.
        """
        self.built = built
        self.heads: frozenset[str] = frozenset()
        """Those that judge by the memory; none where nobody said so."""
        self.bank = grown(built, saved, live)
        self.requests, self.values = saved.requests, saved.values
        self.sequence = saved.sequence
        lessons = {lesson.entry.entry_id: number for number, lesson in saved.lessons.items()}
        self._place = {
            entry_id: lessons.get(entry_id, row - len(built.entries))
            for row, entry_id in enumerate(self.bank.rows)
        }
        self._order = [(place, entry_id) for entry_id, place in self._place.items()]
        """Rising: the bank's entries by their row, then the others by their operation. So a clock
        that is put back does not reorder them."""
        self._order.sort()

    def __len__(self) -> int:
        return len(self._order)

    def get(self, entry_id: str) -> Entry:
        """One entry. Raises `EntryNotFoundError`."""
        try:
            return self.bank.entry(entry_id)
        except KeyError:
            raise EntryNotFoundError(f"the memory has no entry {entry_id}") from None

    def apply(self, operation: Operation) -> None:
        """Do what was committed, once it was checked."""
        self.sequence += 1
        self.bank.sequence = self.sequence
        if isinstance(operation, Put):
            if operation.value is None:
                self.values.pop(operation.name, None)
            else:
                self.values[operation.name] = operation.value
            self.bank.calibration = calibration_of(self.built.calibration, self.values)
            self.bank.metadata = metadata_of(self.built.metadata, self.values)
        elif isinstance(operation, Remove):
            self.bank.remove(operation.entry_id)
            place = self._place.pop(operation.entry_id)
            del self._order[bisect.bisect_left(self._order, (place, operation.entry_id))]
        else:
            entry_id = operation.entry.entry_id
            self.bank.add(operation.entry, operation.keys, operation.thumbnail)
            self._place[entry_id] = self.sequence
            self._order.append((self.sequence, entry_id))
            if operation.idempotency_key is not None:
                self.requests[operation.idempotency_key] = Request(
                    operation.entry, operation.content
                )
                while len(self.requests) > REMEMBERED:
                    del self.requests[next(iter(self.requests))]

    def renew(self, built: MemoryBank) -> None:
        """Take up other thresholds of the same bank."""
        self.built = replace(self.built, calibration=built.calibration, metadata=built.metadata)
        self.bank.metadata = metadata_of(built.metadata, self.values)
        self.bank.calibration = calibration_of(built.calibration, self.values)

    def view(self) -> MemoryBank:
        """The bank as it is now; costs nothing unless something was removed."""
        return self.bank.view()

    def snapshot(self) -> MemoryBank:
        """A view whose thumbnails and pictures stay as they are too."""
        view = self.bank.view()
        return replace(view, thumbnails=dict(view.thumbnails), pictures=dict(view.pictures))

    def page(self, cursor: str | None, limit: int, label: int | None) -> Page:
        """See `DurableMemory.list`."""
        if not 1 <= limit <= 1000:
            raise BankError(f"limit must lie in [1, 1000], not {limit}")
        found: list[tuple[int, Entry]] = []
        at = len(self._order) if cursor is None else self._before(cursor)
        while at and len(found) <= limit:
            at -= 1
            place, entry_id = self._order[at]
            entry = self.bank.entry(entry_id)
            if label is None or entry.label == label:
                found.append((place, entry))
        page = found[:limit]
        return Page([entry for _, entry in page], str(page[-1][0]) if len(found) > limit else None)

    def _before(self, cursor: str) -> int:
        """How many entries are older than the one that a page ended with."""
        try:
            return bisect.bisect_left(self._order, (int(cursor), ""))
        except ValueError:
            raise BankError(f"{cursor!r} is no cursor; take a page's next_cursor") from None

    def check_add(self, operation: Add, coming: Collection[str] = ()) -> Entry:
        """The entry; raises whatever would make the memory unusable with these keys."""
        entry, dims = operation.entry, dict(zip(("image", "patch", "local"), self.bank.dims))
        if entry.entry_id in self.bank.rows or entry.entry_id in coming:
            raise EntryExistsError(f"the memory has an entry {entry.entry_id} already")
        if not operation.keys:
            raise BankError(f"entry {entry.entry_id} brings no key")
        for key in operation.keys:
            if key.entry_id != entry.entry_id:
                raise BankError(f"a key of entry {key.entry_id} came with entry {entry.entry_id}")
            if key.vector.shape != (dims[key.level],):
                raise DimensionError(
                    f"a {key.level} key has shape {key.vector.shape}, the memory's are "
                    f"{dims[key.level]} wide"
                )
            if not np.isfinite(key.vector).all():
                raise NonFiniteError(f"a {key.level} key of {entry.entry_id} holds NaN or infinity")
        return entry

    def check_remove(self, entry_id: str, leaving: Collection[str] = ()) -> Entry:
        """The entry; raises `OneClassError`, `NoGoodPartsError` if without it and `leaving` no verdict
        could be given by the heads that serve the memory."""
        entry = self.get(entry_id)
        if entry_id in leaving:
            raise EntryNotFoundError(f"the memory has no entry {entry_id} any more")
        gone = [*leaving, entry_id]
        if self.heads & GOOD_PARTS_ALONE and NORMAL in self.bank.would_lose("local", gone):
            raise NoGoodPartsError(
                f"entry {entry_id} is the last good image whose patches the memory holds, and head nn "
                "compares with nothing else; add another good image first"
            )
        comparing = self.heads - GOOD_PARTS_ALONE
        levels: tuple[Level, ...] = ("image", "patch") if comparing or not self.heads else ()
        if any(self.bank.would_lose(level, gone) for level in levels):
            raise OneClassError(
                f"without entry {entry_id} a level of the memory would hold one class only, and "
                f"{', '.join(sorted(comparing)) or 'a head'} that compares classes could score nothing; "
                "add another of its kind first, or serve the memory with head nn"
            )
        return entry


def check_repeat(key: str, before: Request, asked: Add) -> None:
    """Raise `IdempotencyConflictError` unless it asks for the same: what, not when or by whom."""
    entry = before.entry
    theirs = replace(
        asked.entry, entry_id=entry.entry_id, added_at=entry.added_at, added_by=entry.added_by
    )
    known = asked.content if before.content else ""
    if Request(theirs, known) != before:
        raise IdempotencyConflictError(
            f"idempotency key {key!r} was used for another image, mask or label (entry "
            f"{entry.entry_id}); use a new key for a new request"
        )
