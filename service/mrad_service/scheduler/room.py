"""Memory that all requests share: what they hold is counted before it is held."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from mrad.images.reader import pixels_stated
from mrad_service.errors import DeadlineError, QueueFullError

OPENED = 16
"""Bytes for each pixel while a file is decoded: the decoder's own, upright, in RGB, and one copy."""
MAPPED = 8
"""Beside that for its map: float32, and what it is written as."""
KEPT = 16
"""Beside that where the input itself is drawn on: its copy, the colours, and the blend."""
SMALL = 16
"""What takes less than this part of the room is let past what waits for more of it."""


class Room:
    """Bytes of which requests together hold so many at most. Thread-safe."""

    def __init__(self, limit: int, what: str) -> None:
        """`what`: of what, for messages."""
        self.limit, self._what = limit, what
        self.held = 0
        """Bytes that are held now."""
        self._changed = threading.Condition(threading.RLock())
        self._first: object | None = None

    def take(self, count: int) -> None:
        """Hold more of them. Raises `QueueFullError`, and holds nothing, where there is no room."""
        with self._changed:
            if self.held + count > self.limit:
                raise QueueFullError(
                    f"requests in flight hold too many bytes of {self._what}; try again", 1.0
                )
            self.held += count

    def try_take(self, count: int, who: object) -> bool:
        """Hold more if they fit; what is larger than the room fits when nothing else is in it.

        Whoever came first and did not fit is next: meanwhile only what is small passes.
        """
        with self._changed:
            fits = not self.held or self.held + count <= self.limit
            large = count * SMALL > self.limit
            if fits and (self._first in (None, who) or not large):
                self.held += count
                if self._first is who:
                    self._first = None
                return True
            if self._first is None and large:
                self._first = who
            return False

    def forget(self, who: object) -> None:
        """It does not wait any more."""
        with self._changed:
            if self._first is who:
                self._first = None
                self._changed.notify_all()

    def give(self, count: int) -> None:
        """They are free again."""
        with self._changed:
            self.held -= count
            self._changed.notify_all()

    @contextmanager
    def reserved(self, count: int, deadline: float) -> Iterator[None]:
        """Wait for room until `deadline` (`time.monotonic`); hold it inside. Raises `DeadlineError`."""
        who = object()
        try:
            with self._changed:
                while not self.try_take(count, who):
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise DeadlineError(
                            f"there was no room for the {self._what} in time; try again"
                        )
                    self._changed.wait(min(left, 1.0))
        finally:
            self.forget(who)
        try:
            yield
        finally:
            self.give(count)


def pixels_of(data: Any) -> int:
    """Pixels of an image that is not decoded; 0 where that cannot be told, which decoding tells."""
    if isinstance(data, np.ndarray):
        return int(np.prod(data.shape[:2]))
    return pixels_stated(data) if isinstance(data, bytes) else 0
