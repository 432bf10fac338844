"""DurableMemory: a bank that learns and forgets while it serves, through any crash."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import cast

from mrad.errors import BaseChangedError, LogCorruptError, LogWriteError, MRADError
from mrad.lock import WriterLock
from mrad.memory.bank import MemoryBank
from mrad.memory.entry import Entry, Key
from mrad.memory.living import LivingFolder, Stamps
from mrad.memory.operations import Add, Operation, Put, Remove, Request
from mrad_service.memory.committer import Committer, Pending
from mrad_service.memory.errors import MemoryClosedError
from mrad_service.memory.state import MemoryState, Page, check_repeat

logger = logging.getLogger(__name__)
Callback = Callable[[MemoryBank], None]


class DurableMemory:
    """A bank folder and everything it learned since. Thread-safe; one writer process."""

    def __init__(self, folder: LivingFolder, lock: WriterLock) -> None:
        """Use `open`."""
        self.folder, self._lock = folder, lock
        self._database, saved = folder.open()
        try:
            bank = MemoryBank.load(folder.bank, living=False)
            self._stamps = Stamps.of(folder)
            self._state = MemoryState(bank, saved, folder.live)
        except BaseException:
            self._database.close()
            raise
        for path in folder.temporary.iterdir():
            shutil.rmtree(path, ignore_errors=True)
        self._view = self._state.view()
        self._guard = threading.Lock()  # the state: short
        self._writing = threading.Lock()  # the database: a sync long
        self._subscribers: list[Callback] = []
        self._broken, self._closed = "", False
        self._committer = Committer(self._commit, self._rest, f"memory {folder.bank.name}")

    @classmethod
    def open(cls, path: str | Path) -> DurableMemory:
        """Take the lock of a bank's folder, verify every digest, read what was learned.

        Raises `BankLockedError`, `LogCorruptError`, `BaseChangedError`, `LogWriteError` where nothing
        can be written, and what `MemoryBank.load` raises.
        """
        folder = LivingFolder(Path(path))
        folder.base_digest()  # a bank must be there before anything is made beside it
        try:
            folder.create()
            lock = WriterLock(folder.lock)
            try:
                return cls(folder, lock)
            except BaseException:
                lock.release()
                raise
        except OSError as error:
            raise LogWriteError(
                f"{error.filename or folder.live}: {error.strerror or error}, so nothing can be learned: "
                "make room or let it be written; `mrad serve --read-only` serves it as it is"
            ) from error

    @property
    def bank(self) -> MemoryBank:
        """The memory as of the last commit. Immutable; later commits give another object."""
        return self._view

    @property
    def built(self) -> MemoryBank:
        """The bank as it was built, without what it learned."""
        return self._state.built

    def __len__(self) -> int:
        return len(self._state)

    def add(
        self,
        entry: Entry,
        keys: Sequence[Key],
        thumbnail: bytes | None = None,
        idempotency_key: str | None = None,
        content: str = "",
    ) -> Entry:
        """Durable, and in `bank`, before it returns; returns the entry that stands.

        With an `idempotency_key` that was seen before, that is the entry of then, also after a
        restart; `IdempotencyConflictError` when `content`, a digest of what was uploaded, or the
        entry's facts were others. Raises `EntryExistsError`, `DimensionError`, `NonFiniteError`,
        `LogWriteError`, `MemoryClosedError`.
        """
        operation = Add(entry, tuple(keys), thumbnail, idempotency_key, content)
        return cast(Entry, self._submit(operation))

    def remove(self, entry_id: str) -> None:
        """Forget an entry, durably. Raises `EntryNotFoundError`.

        Raises `OneClassError` when a level would lose its last key of a class that a head in `serves`
        needs, `NoGoodPartsError` with the last good image: nothing could be scored then.
        """
        self._submit(Remove(entry_id))

    def serves(self, heads: Collection[str]) -> None:
        """Which heads judge by this memory: it is kept such that they can."""
        with self._guard:
            self._state.heads = frozenset(heads)

    def put(self, name: str, value: bytes | None) -> None:
        """Store a value beside the entries, durably; None takes it away.

        `mrad.memory.living.CALIBRATION` + a head's name is its calibration, JSON: `bank` has it then.
        """
        self._submit(Put(name, value))

    @property
    def values(self) -> Mapping[str, bytes]:
        """What `put` stored, as of the last commit."""
        return self._state.values

    def get(self, entry_id: str) -> Entry:
        """One entry. Raises `EntryNotFoundError`."""
        with self._guard:
            return self._state.get(entry_id)

    def list(self, *, cursor: str | None = None, limit: int = 50, label: int | None = None) -> Page:
        """Entries, those added last first, after `cursor` (the last page's `next_cursor`).

        Pages neither skip nor repeat what stands throughout, whatever is added or removed between.
        `limit` in [1, 1000], else `BankError`.
        """
        with self._guard:
            return self._state.page(cursor, limit, label)

    def thumbnail(self, entry_id: str) -> bytes | None:
        """The entry's JPEG, where it has one."""
        return self._state.bank.thumbnails.get(entry_id)

    def subscribe(self, callback: Callback) -> Callable[[], None]:
        """Call `callback` with the new bank after each commit, BEFORE its writers return.

        So whoever reads "added" finds it. Several additions may come as one. Where it raises, the
        addition stands, and nothing more is acknowledged (`trouble`). Returns what ends the subscription.
        """
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    def export(self, target: str | Path) -> MemoryBank:
        """Write the memory as it is now as an ordinary bank folder."""
        with self._guard:
            bank = self._state.snapshot()
        return bank.save(target)

    def compact(self) -> None:
        """Give the room of what was removed back to the disk. Writers wait meanwhile."""
        with self._writing:
            self._check_open()
            self._database.vacuum()

    def renew(self) -> None:
        """Take up thresholds that were written into the bank since. Raises `BaseChangedError`."""
        if not self.holds():
            raise BaseChangedError(self.folder.rebuilt())
        built = MemoryBank.load(self.folder.bank, living=False)
        with self._writing, self._guard:
            self._state.renew(built)
            self._view = self._state.view()
        self._notify()

    def holds(self) -> bool:
        """Whether the bank's folder still holds the keys that this memory grew from."""
        return self._database.base == self.folder.base_digest()

    def trouble(self) -> str:
        """Why nothing is acknowledged any more; empty while all is well.

        Also when files of the memory were replaced or removed under it. Costs a few `stat` calls.
        """
        if not self._broken and not self._closed and (changed := self._stamps.changed()):
            self._broken = (
                f"{changed} while the server ran, so nothing is taken up any more. Stop the server, put "
                "the file back (or let the change be), and start it again"
            )
            logger.error("%s", self._broken)
        return self._broken

    @property
    def closed(self) -> bool:
        """Whether it takes no writes any more."""
        return self._closed

    def retire(self) -> None:
        """`close`, so that a bank that was built again in this folder can take over.

        Raises `BaseChangedError` if anything was learned here; it goes on learning then, and all of
        it is found again once the old bank is back in its place.
        """
        with self._writing:
            if self._state.sequence:
                raise BaseChangedError(self.folder.rebuilt())
            self._broken = "the bank was built again and takes over; try again"
        self.close()

    def close(self) -> None:
        """Finish what is queued, let the next writer in. May be called twice."""
        self._committer.close()
        with self._writing:
            if not self._closed:
                self._tidy()
                self._closed = True
                self._database.close()
                self._stamps.close()
                self._lock.release()

    def __enter__(self) -> DurableMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(self, operation: Operation) -> Entry | None:
        return self._committer.submit(Pending(operation))

    def _commit(self, batch: Sequence[Pending]) -> None:
        """Admit, write, apply, tell: in this order, so that a failure leaves nothing visible."""
        with self._writing:
            admitted = admit(self._state, batch)
            if not admitted:
                return
            self._check_open()
            try:
                self._database.commit([pending.operation for pending, _ in admitted])
            except LogCorruptError as error:
                self._broken = str(self.folder.damaged(error))
                raise LogWriteError(self._broken) from error
            except LogWriteError as error:
                if error.final:
                    self._broken = f"{error}; restart the server"
                raise LogWriteError(self._broken or str(error)) from error
            if trouble := self.trouble():  # files were taken away: then it is not durable
                raise LogWriteError(trouble)
            try:
                with self._guard:
                    for pending, _ in admitted:
                        self._state.apply(pending.operation)
                    self._view = self._state.view()
            except Exception as error:
                self._broken = f"the memory and its file differ ({error!r}); restart the server"
                raise
        self._notify()
        for pending, entry in admitted:
            pending.resolve(entry)

    def _check_open(self) -> None:
        if self._closed:
            raise MemoryClosedError("the memory is closed")
        if self._broken:
            raise LogWriteError(self._broken)

    def _notify(self) -> None:
        for callback in tuple(self._subscribers):
            try:
                callback(self._view)
            except Exception as error:
                # The change stands, but what judges may not know it: nobody may go on as if it did.
                self._broken = (
                    f"the latest change is on disk, but the server could not take it up ({error!r}), so "
                    "nothing more is; restart the server, which reads it again"
                )
                logger.exception("%s: %s", self.folder.live, self._broken)

    def _rest(self) -> None:
        with self._writing:
            self._tidy()

    def _tidy(self) -> None:
        """What stands in SQLite's journal alone goes into the database; best when nothing comes."""
        if self.trouble():
            return
        try:
            self._database.checkpoint()
        except (MRADError, OSError):
            logger.warning(
                "%s could not be tidied; it stays whole", self.folder.live, exc_info=True
            )


def admit(state: MemoryState, batch: Sequence[Pending]) -> list[tuple[Pending, Entry | None]]:
    """What of the batch may happen, with the entry each is about; settles or joins the others."""
    admitted: list[tuple[Pending, Entry | None]] = []
    fresh: dict[str, tuple[Pending, Request]] = {}  # idempotency keys of this batch
    coming: set[str] = set()
    leaving: list[str] = []
    for pending in batch:
        operation, entry = pending.operation, None
        try:
            if isinstance(operation, Remove):
                entry = state.check_remove(operation.entry_id, leaving)
                leaving.append(entry.entry_id)
            elif isinstance(operation, Add):
                if _repeats(state, fresh, pending, operation):
                    continue
                entry = state.check_add(operation, coming)
                coming.add(entry.entry_id)
                if operation.idempotency_key is not None:
                    request = Request(entry, operation.content)
                    fresh[operation.idempotency_key] = (pending, request)
        except MRADError as error:
            pending.fail(error)
            continue
        admitted.append((pending, entry))
    return admitted


def _repeats(
    state: MemoryState,
    fresh: dict[str, tuple[Pending, Request]],
    pending: Pending,
    operation: Add,
) -> bool:
    """Answer a repeat with what stands, or let it wait for the one it repeats."""
    key = operation.idempotency_key
    if key is None:
        return False
    before = state.requests.get(key)
    if before is not None:
        check_repeat(key, before, operation)
        pending.resolve(before.entry)
        return True
    if key in fresh:
        first, before = fresh[key]
        check_repeat(key, before, operation)
        first.waiting.extend(pending.waiting)
        return True
    return False
