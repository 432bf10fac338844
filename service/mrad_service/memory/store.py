"""DurableMemory: a bank that learns and forgets while it serves, through any crash."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mrad.errors import MRADError
from mrad.memory.bank import MemoryBank
from mrad.memory.entry import Entry, Key
from mrad_service.memory.committer import Committer, Pending
from mrad_service.memory.errors import BaseChangedError, LogWriteError, MemoryClosedError
from mrad_service.memory.folder import Current, LiveFolder
from mrad_service.memory.lock import WriterLock
from mrad_service.memory.log import Log, base_changed
from mrad_service.memory.operations import Add, Operation, Remove, decode, encode
from mrad_service.memory.state import MemoryState, Page, Standing, check_repeat

if TYPE_CHECKING:
    from mrad.encoder.encoder import Encoder

logger = logging.getLogger(__name__)
COMPACT_BYTES = 64 << 20
Callback = Callable[[MemoryBank], None]


class DurableMemory:
    """A bank folder and everything it learnt since. Thread-safe; one writer process."""

    def __init__(
        self, folder: LiveFolder, lock: WriterLock, encoder: Encoder | None, compact: int
    ) -> None:
        """Use `open`."""
        self.folder, self._lock, self._compact_bytes = folder, lock, compact
        self._current = settle_base(folder)
        folder.sweep(self._current)
        bank, ledger = folder.load(self._current)
        if encoder is not None:
            bank.check(encoder)
        self._state = MemoryState(bank, ledger)
        self._log = Log(
            folder.log,
            self._current.base,
            self._current.applied,
            lambda data: self._state.apply(decode(data)),
        )
        self._view = self._state.view()
        self._guard = threading.Lock()  # the state: short
        self._log_guard = threading.Lock()  # the log, so the order of commits: an fsync long
        self._compacting = threading.Lock()
        self._compactor: threading.Thread | None = None
        self._subscribers: list[Callback] = []
        self._broken, self._closed = "", False
        self._committer = Committer(self._commit, f"memory {folder.bank.name}")

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        encoder: Encoder | None = None,
        live: Path | None = None,
        compact_bytes: int = COMPACT_BYTES,
    ) -> DurableMemory:
        """Take the lock, verify every digest, replay the log.

        Args:
            path: the bank's folder, which is never written to.
            encoder: refuse a bank of another one.
            live: where what is learnt lies; `<path>.live` unless told.
            compact_bytes: log size at which a new snapshot is made in the background; never less
                than a quarter of the keys' own size.

        Raises `BankLockedError`, `LogCorruptError`, `BaseChangedError` and what
        `MemoryBank.load` and `MemoryBank.check` raise.
        """
        folder = LiveFolder(Path(path), live)
        folder.base_digest()  # a bank must be there before anything is made beside it
        folder.create()
        lock = WriterLock(folder.lock)
        try:
            return cls(folder, lock, encoder, compact_bytes)
        except BaseException:
            lock.release()
            raise

    @property
    def bank(self) -> MemoryBank:
        """The memory as of the last commit. Immutable; later commits give another object."""
        return self._view

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
        return self._submit(Add(entry, tuple(keys), thumbnail, idempotency_key, content))

    def remove(self, entry_id: str) -> None:
        """Forget an entry, durably. Raises `EntryNotFoundError`.

        Raises `OneClassError` when a level would lose its last key of a class: nothing could be
        scored then.
        """
        self._submit(Remove(entry_id))

    def get(self, entry_id: str) -> Entry:
        """One entry. Raises `EntryNotFoundError`."""
        with self._guard:
            return self._state.get(entry_id)

    def list(self, *, cursor: str | None = None, limit: int = 50, label: int | None = None) -> Page:
        """Entries by `entry_id`, newest first, after `cursor` (the last page's `next_cursor`).

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

        So whoever was told "added" finds it. Several additions may come as one. What it raises is
        logged: the addition stands. Returns what ends the subscription.
        """
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    def export(self, target: str | Path) -> MemoryBank:
        """Write the memory as it is now as an ordinary bank folder."""
        with self._guard:
            bank = self._state.snapshot()
        return bank.save(target)

    def compact(self) -> None:
        """Make a new snapshot and drop the log that it holds. Writers go on meanwhile.

        A crash at any moment leaves the old generation with its log, or the new one.
        """
        with self._compacting:
            with self._log_guard, self._guard:
                if self._closed:
                    raise MemoryClosedError("the memory is closed")
                applied = self._log.sequence
                if applied == self._current.applied:
                    return
                self._log.rotate()
                bank, ledger = self._state.snapshot(), dict(self._state.ledger)
            following = self.folder.write_generation(self._current, bank, ledger, applied)
            self.folder.write_current(following)
            self._current = following
            with self._log_guard:
                self._log.drop_through(applied)
            self.folder.sweep_generations(following)
            logger.info("%s: generation %d", self.folder.live, following.generation)

    def status(self) -> dict[str, int]:
        """Figures for an operator."""
        view = self._view
        return {
            "entries": len(view.entries),
            "image_keys": len(view.image),
            "patch_keys": len(view.patch),
            "sequence": self._log.sequence,
            "generation": self._current.generation,
            "log_bytes": self._log.bytes,
        }

    @property
    def closed(self) -> bool:
        """Whether it takes no writes any more."""
        return self._closed

    def retire(self) -> None:
        """`close`, so that a bank that was built anew in this folder can take over.

        Raises `BaseChangedError` if anything was learnt here; it goes on learning then, and all of
        it is found again once the old bank is back in its place.
        """
        with self._log_guard:
            if self._log.sequence:
                raise BaseChangedError(base_changed(self.folder.bank))
            self._broken = "the bank was built anew and takes over; try again"
        self.close()

    def close(self) -> None:
        """Finish what is queued, let the next writer in. May be called twice."""
        self._committer.close()
        if self._compactor is not None:
            self._compactor.join()
        with self._compacting, self._log_guard:
            if not self._closed:
                self._closed = True
                self._log.close()
                self._lock.release()

    def __enter__(self) -> DurableMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(self, operation: Operation) -> Entry:
        return self._committer.submit(Pending(operation, encode(operation)))

    def _commit(self, batch: Sequence[Pending]) -> None:
        """Admit, log, apply, tell: in this order, so that a failure leaves nothing visible."""
        admitted = admit(self._state, batch)
        if not admitted:
            return
        with self._log_guard:
            if self._broken:
                raise LogWriteError(self._broken)
            self._log.append([pending.data for pending, _ in admitted])
            try:
                with self._guard:
                    for pending, _ in admitted:
                        self._state.apply(pending.operation)
                    self._view = self._state.view()
            except Exception as error:
                self._broken = f"the memory and its log differ ({error!r}); restart the server"
                raise
        self._tell()
        for pending, entry in admitted:
            pending.resolve(entry)
        self._compact_if_due()

    def _tell(self) -> None:
        for callback in tuple(self._subscribers):
            try:
                callback(self._view)
            except Exception:
                logger.exception("%s changed, but a part of the server missed it", self.folder.live)

    def _compact_if_due(self) -> None:
        keys = self._view.image.keys.nbytes + self._view.patch.keys.nbytes
        busy = self._compactor is not None and self._compactor.is_alive()
        if busy or self._log.bytes < max(self._compact_bytes, keys // 4):
            return
        self._compactor = threading.Thread(target=self._compact_quietly, daemon=True)
        self._compactor.start()

    def _compact_quietly(self) -> None:
        """The log stays whole if this fails; the next commit tries again."""
        try:
            self.compact()
        except Exception:
            logger.exception("%s could not be compacted; its log goes on", self.folder.live)


def admit(state: MemoryState, batch: Sequence[Pending]) -> list[tuple[Pending, Entry]]:
    """What of the batch may happen, with the entry each is about; settles or joins the others."""
    admitted: list[tuple[Pending, Entry]] = []
    fresh: dict[str, tuple[Pending, Standing]] = {}  # idempotency keys of this batch
    coming: set[str] = set()
    leaving: list[str] = []
    for pending in batch:
        operation = pending.operation
        try:
            if isinstance(operation, Remove):
                entry = state.check_remove(operation.entry_id, leaving)
                leaving.append(entry.entry_id)
            elif _repeats(state, fresh, pending, operation):
                continue
            else:
                entry = state.check_add(operation, coming)
                coming.add(entry.entry_id)
                if operation.idempotency_key is not None:
                    standing = Standing(entry, operation.content)
                    fresh[operation.idempotency_key] = (pending, standing)
        except MRADError as error:
            pending.fail(error)
            continue
        admitted.append((pending, entry))
    return admitted


def _repeats(
    state: MemoryState,
    fresh: dict[str, tuple[Pending, Standing]],
    pending: Pending,
    operation: Add,
) -> bool:
    """Answer a repeat with what stands, or let it wait for the one it repeats."""
    key = operation.idempotency_key
    if key is None:
        return False
    standing = state.ledger.get(key)
    if standing is not None:
        check_repeat(key, standing, operation)
        pending.resolve(standing.entry)
        return True
    if key in fresh:
        first, standing = fresh[key]
        check_repeat(key, standing, operation)
        first.waiting.extend(pending.waiting)
        return True
    return False


def settle_base(folder: LiveFolder) -> Current:
    """The pointer, made on the first start. Raises `BaseChangedError`.

    A bank that was rebuilt before anything was learnt on it simply takes over.
    """
    digest, current = folder.base_digest(), folder.read_current()
    if current is not None and current.base == digest:
        return current
    if (current is not None and current.generation) or not folder.is_untaught():
        raise BaseChangedError(base_changed(folder.bank))
    folder.clear_log()
    current = Current(digest)
    folder.write_current(current)
    return current
