"""Group commit: writers queue, one thread writes what has gathered with one fsync."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from mrad.errors import MRADError
from mrad.memory.entry import Entry
from mrad_service.memory.errors import LogWriteError, MemoryClosedError
from mrad_service.memory.operations import Operation

LARGEST_COMMIT = 512
"""Operations in one frame."""


@dataclass
class Pending:
    """An operation and everyone who waits for it."""

    operation: Operation
    data: bytes
    waiting: list[Future[Entry]] = field(default_factory=lambda: [Future()])

    def resolve(self, entry: Entry) -> None:
        """It is durable."""
        for future in self.waiting:
            future.set_result(entry)

    def fail(self, error: BaseException) -> None:
        """It did not happen."""
        for future in self.waiting:
            future.set_exception(error)


class Committer:
    """The one thread that touches the log."""

    def __init__(self, commit: Callable[[Sequence[Pending]], None], name: str) -> None:
        """`commit` settles every pending it is given; what it raises fails those left."""
        self._commit = commit
        self._queue: deque[Pending] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, pending: Pending) -> Entry:
        """Wait until it is durable. Raises whatever kept it from being so."""
        future = pending.waiting[0]
        with self._wake:
            if self._closed:
                raise MemoryClosedError("the memory is closed; nothing was written")
            self._queue.append(pending)
            self._wake.notify()
        return future.result()

    def close(self) -> None:
        """Write what is queued, then stop."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._take():
            try:
                self._commit(batch)
            except MRADError as error:
                _fail_rest(batch, error)
            except Exception as error:
                reason = LogWriteError(f"the write failed unexpectedly: {error!r}")
                reason.__cause__ = error
                _fail_rest(batch, reason)

    def _take(self) -> list[Pending]:
        with self._wake:
            self._wake.wait_for(lambda: self._queue or self._closed)
            count = min(len(self._queue), LARGEST_COMMIT)
            return [self._queue.popleft() for _ in range(count)]


def _fail_rest(batch: list[Pending], error: BaseException) -> None:
    for pending in batch:
        if not pending.waiting[0].done():
            pending.fail(error)
