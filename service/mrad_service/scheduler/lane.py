"""Work beside the batches, one after the other: lessons, copies, switching. Bounded, with deadlines."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from mrad_service.errors import DeadlineError, QueueFullError
from mrad_service.scheduler.room import KEPT, OPENED, Room, pixels_of


class Lane:
    """A few may wait for their turn; the others are told when to come back. Thread-safe."""

    def __init__(self, what: str, waiting: int) -> None:
        """`what`: for messages; `waiting`: how many wait at most beside the one that runs."""
        self._what, self._most = what, waiting
        self._changed = threading.Condition()
        self._line: deque[object] = deque()
        self._seconds = 1.0

    @contextmanager
    def turn(self, deadline: float) -> Iterator[None]:
        """Wait until `deadline` (`time.monotonic`) for being first; the next begins after this.

        Raises `QueueFullError`, `DeadlineError`.
        """
        own = object()
        with self._changed:
            if len(self._line) > self._most:
                raise QueueFullError(
                    f"{len(self._line)} {self._what} are waiting; come back later",
                    retry_after=min(60.0, len(self._line) * self._seconds),
                )
            self._line.append(own)
        try:
            self._wait(own, deadline)
            began = time.monotonic()
            yield
            self._seconds += 0.3 * (time.monotonic() - began - self._seconds)
        finally:
            with self._changed:
                self._line.remove(own)
                self._changed.notify_all()

    def _wait(self, own: object, deadline: float) -> None:
        with self._changed:
            while self._line[0] is not own:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise DeadlineError("its turn did not come in time; nothing was changed")
                self._changed.wait(left)


class Work:
    """One piece of work in a lane: its deadline, and the room for pixels that it holds."""

    def __init__(self, deadline: float = math.inf, pixels: Room | None = None) -> None:
        """`deadline`: on `time.monotonic`'s clock. `pixels`: None where nobody else holds any."""
        self._deadline, self._pixels = deadline, pixels
        self._held = ExitStack()

    def __enter__(self) -> Work:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def check(self) -> None:
        """Before a step that cannot be undone. Raises `DeadlineError`."""
        if time.monotonic() > self._deadline:
            raise DeadlineError("it was not done in time; nothing was changed")

    def reserve(self, *files: bytes | None) -> None:
        """Wait for room for the pixels of files, until this work is over. Raises `DeadlineError`."""
        if self._pixels is not None:
            count = sum(pixels_of(file) for file in files if file) * (OPENED + KEPT)
            self._held.enter_context(self._pixels.reserved(count, self._deadline))
