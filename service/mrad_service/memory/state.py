"""The state that the log's operations act on. Deterministic: replaying them gives it again."""

from __future__ import annotations

import bisect
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from mrad.errors import BankError, DimensionError, NonFiniteError, OneClassError
from mrad.memory.bank import MemoryBank
from mrad.memory.entry import Entry
from mrad_service.memory.errors import (
    EntryExistsError,
    EntryNotFoundError,
    IdempotencyConflictError,
)
from mrad_service.memory.growing import GrowingBank
from mrad_service.memory.operations import Add, Operation, Remove

REMEMBERED = 10_000
"""Idempotency keys kept, the newest."""


@dataclass(frozen=True)
class Standing:
    """What an idempotency key was used for."""

    entry: Entry
    content: str = ""
    """See `Add.content`; empty where an older release wrote it."""


@dataclass(frozen=True)
class Page:
    """A page of entries, newest first."""

    entries: list[Entry]
    next_cursor: str | None


class MemoryState:
    """Bank, idempotency keys and the order of entries. Not thread-safe."""

    def __init__(self, bank: MemoryBank, ledger: Mapping[str, Standing]) -> None:
        self.bank = GrowingBank(bank)
        self.ledger = dict(ledger)
        """Idempotency key -> what was added under it."""
        self._ids = sorted(self.bank.rows)

    def __len__(self) -> int:
        return len(self._ids)

    def get(self, entry_id: str) -> Entry:
        """One entry. Raises `EntryNotFoundError`."""
        try:
            return self.bank.entry(entry_id)
        except KeyError:
            raise EntryNotFoundError(f"the memory has no entry {entry_id}") from None

    def apply(self, operation: Operation) -> None:
        """Do what the log says. Raises `EntryNotFoundError`, `EntryExistsError`."""
        if isinstance(operation, Remove):
            self.get(operation.entry_id)
            self.bank.remove(operation.entry_id)
            del self._ids[bisect.bisect_left(self._ids, operation.entry_id)]
            return
        entry = operation.entry
        if entry.entry_id in self.bank.rows:
            raise EntryExistsError(f"the memory has an entry {entry.entry_id} already")
        self.bank.add(entry, operation.keys, operation.thumbnail)
        bisect.insort(self._ids, entry.entry_id)
        if operation.idempotency_key is not None:
            self.ledger[operation.idempotency_key] = Standing(entry, operation.content)
            while len(self.ledger) > REMEMBERED:
                del self.ledger[next(iter(self.ledger))]

    def view(self) -> MemoryBank:
        """The bank as it is now; costs nothing unless something was removed."""
        return self.bank.view()

    def snapshot(self) -> MemoryBank:
        """A view whose thumbnails stay as they are too."""
        return replace(self.bank.view(), thumbnails=dict(self.bank.thumbnails))

    def page(self, cursor: str | None, limit: int, label: int | None) -> Page:
        """See `DurableMemory.list`."""
        if not 1 <= limit <= 1000:
            raise BankError(f"limit must lie in [1, 1000], not {limit}")
        found: list[Entry] = []
        place = len(self._ids) if cursor is None else bisect.bisect_left(self._ids, cursor)
        while place and len(found) <= limit:
            place -= 1
            entry = self.bank.entry(self._ids[place])
            if label is None or entry.label == label:
                found.append(entry)
        page = found[:limit]
        return Page(page, page[-1].entry_id if len(found) > limit else None)

    def check_add(self, operation: Add, coming: Collection[str] = ()) -> Entry:
        """The entry; raises whatever would make the memory unusable with these keys."""
        entry, dims = operation.entry, dict(zip(("image", "patch"), self.bank.dims))
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
        """The entry; raises `OneClassError` if without it and `leaving` a level lost a class."""
        entry = self.get(entry_id)
        if entry_id in leaving:
            raise EntryNotFoundError(f"the memory has no entry {entry_id} any more")
        if self.bank.would_lose_a_class([*leaving, entry_id]):
            raise OneClassError(
                f"without entry {entry_id} a level of the memory would hold one class only, and "
                "nothing could be scored; add another of its kind first"
            )
        return entry


def check_repeat(key: str, standing: Standing, asked: Add) -> None:
    """Raise `IdempotencyConflictError` unless it asks for the same: what, not when or by whom."""
    entry = standing.entry
    theirs = replace(
        asked.entry, entry_id=entry.entry_id, added_at=entry.added_at, added_by=entry.added_by
    )
    known = asked.content if standing.content else ""
    if Standing(theirs, known) != standing:
        raise IdempotencyConflictError(
            f"idempotency key {key!r} was used for another image, mask or label (entry "
            f"{entry.entry_id}); use a new key for a new request"
        )
