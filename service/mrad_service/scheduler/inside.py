"""The images that are inside: admitted, counted, and settled once each."""

from __future__ import annotations

import threading
import time

from mrad.errors import MRADError
from mrad_service.errors import DeviceLostError, DrainingError
from mrad_service.scheduler.admission import Admission
from mrad_service.scheduler.batch import Limits, Observer
from mrad_service.scheduler.health import Health
from mrad_service.scheduler.queue import FairQueue, Item, Job, Outcome, Rate
from mrad_service.scheduler.room import Room


class Inside:
    """What a batcher has taken in; threads take it from the queue. Thread-safe."""

    def __init__(self, health: Health, limits: Limits, observer: Observer) -> None:
        self.health, self.limits, self._observer = health, limits, observer
        # One lock, and a condition for each kind of thread: one for all would wake them all at every
        # step of every image, to look and sleep again.
        self._lock = threading.RLock()
        self._to_decode, self._to_encode, self._to_finish, self._left = (
            threading.Condition(self._lock) for _ in range(4)
        )
        self._queue, self._admission = FairQueue(), Admission(limits)
        self._jobs: set[Job] = set()
        self._inside = 0
        self._rate, self._came = Rate(), 0.0
        self.pixels = Room(limits.max_decoded_bytes, "decoded pixels")
        self._open: set[Item] = set()  # images that are cut and not settled
        self._draining = self._closed = False
        self._threads: list[threading.Thread] = []

    def submit(self, job: Job) -> None:
        """Queue it. Raises `QueueFullError` (says when to come back), `DrainingError`, `DeviceLostError`."""
        with self._lock:
            if self._draining:
                raise DrainingError("the server is stopping; ask another one")
            if not self.health.usable:
                raise DeviceLostError(f"{self.health.why}; the server has to be started again")
            ahead = self._queue.ahead_of(job.waiting)
            self._admission.admit(job.who, job.waiting, self._inside, ahead, self._rate())
            now = time.monotonic()
            if not self._inside:
                self._rate.start(now)
            self._came = now
            self._count(job.waiting)
            self._jobs.add(job)
            self._queue.push(job)
            self._to_decode.notify(job.waiting)
        job.future.add_done_callback(lambda _: self._forget(job))

    def _forget(self, job: Job) -> None:
        self._jobs.discard(job)
        self.pixels.forget(job)

    def drop(self, job: Job, error: MRADError) -> None:
        """Nobody waits for it any more."""
        with self._lock:
            self._count(-job.drop(error))
            self._tell_all()

    @property
    def inside(self) -> int:
        """Images waiting or being worked on."""
        return self._inside

    def drain(self, seconds: float) -> bool:
        """Take nothing new, finish what is inside; whether all of it was done in time."""
        with self._lock:
            end, self._draining = time.monotonic() + seconds, True
            while self._inside and time.monotonic() < end:
                self._left.wait(min(0.2, end - time.monotonic()))
            return not self._inside

    def close(self) -> None:
        """Stop every thread; whoever still waits is told."""
        with self._lock:
            self._draining = self._closed = True
            for job in list(self._jobs):
                job.drop(DrainingError("the server stopped before this was done"))
            self._tell_all()
        for thread in self._threads:
            thread.join(timeout=10)

    def _tell_all(self) -> None:
        """Something changed that any thread may wait for. Called with the lock."""
        for condition in (self._to_decode, self._to_encode, self._to_finish, self._left):
            condition.notify_all()

    def _count(self, change: int) -> None:
        self._inside += change
        self._observer.waiting(self._inside)

    def _settle(self, item: Item, outcome: Outcome) -> None:
        whole = item.whole
        item.decoded = whole.decoded = None
        self._hold(whole, 0)
        with self._lock:
            if whole.settled:
                return
            whole.settled = True
            if whole.job.dropped is None:
                self._rate.done(time.monotonic())
            self._open.discard(whole)
            self._count(-1)
            if self._queue:  # there is room for pixels
                self._to_decode.notify_all()
            if not self._inside:
                self._left.notify_all()
        whole.job.settle(whole.index, outcome)

    def _hold(self, item: Item, count: int) -> None:
        """Of the room for pixels only so much from now on."""
        before, item.held = item.held, count
        self.pixels.give(before - count)

    def _alive(self, item: Item) -> bool:
        """Whether someone still waits for it; settles it otherwise."""
        error = item.job.is_over()
        if error is None:
            return not item.whole.settled
        self._settle(item, error)
        with self._lock:
            self._count(-item.job.drop(error))
        return False
