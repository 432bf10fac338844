"""Group commit: writers queue, one thread writes what has gathered in one transaction."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from mrad.errors import LogWriteError, MRADError
from mrad.memory.entry import Entry
from mrad.memory.operations import Operation
from mrad_service.memory.errors import MemoryClosedError

LARGEST_COMMIT = 512
"""Operations in one transaction."""
QUIET = 1.0
"""Seconds without a write after which `rest` is called."""


@dataclass
class Pending:
    """An operation and everyone who waits for it. Of a `Put` nobody gets an entry."""

    operation: Operation
    waiting: list[Future[Entry | None]] = field(default_factory=lambda: [Future()])

    def resolve(self, entry: Entry | None) -> None:
        """It is durable."""
        for future in self.waiting:
            future.set_result(entry)

    def fail(self, error: BaseException) -> None:
        """It did not happen."""
        for future in self.waiting:
            future.set_exception(error)


class Committer:
    """The one thread that writes."""

    def __init__(
        self, commit: Callable[[Sequence[Pending]], None], rest: Callable[[], None], name: str
    ) -> None:
        """
        Args:
            commit: settles every pending it is given; what it raises fails those left.
            rest: called once when no write came for a while; must not raise.
            name: the thread's.
        """
        self._commit, self._rest = commit, rest
        self._queue: deque[Pending] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, pending: Pending) -> Entry | None:
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
        written = False
        while True:
            with self._wake:
                quiet = QUIET if written else None
                self._wake.wait_for(lambda: self._queue or self._closed, timeout=quiet)
                count = min(len(self._queue), LARGEST_COMMIT)
                batch = [self._queue.popleft() for _ in range(count)]
                closed = self._closed
            if batch:
                self._settle(batch)
                written = True
            elif closed:
                return
            else:
                self._rest()
                written = False

    def _settle(self, batch: list[Pending]) -> None:
        try:
            self._commit(batch)
        except MRADError as error:
            _fail_rest(batch, error)
        except Exception as error:
            reason = LogWriteError(f"the write failed unexpectedly: {error!r}")
            reason.__cause__ = error
            _fail_rest(batch, reason)


def _fail_rest(batch: list[Pending], error: BaseException) -> None:
    for pending in batch:
        if not pending.waiting[0].done():
            pending.fail(error)
