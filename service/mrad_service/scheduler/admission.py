"""Who is let in, and when the others are to come back: a promise that is kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from mrad.words import counted
from mrad_service.errors import QueueFullError
from mrad_service.scheduler.batch import Limits

GRACE = 3.0
"""Seconds, at least, that room is kept for whoever comes later than it was told to."""
LONGEST = 60.0
"""Seconds: nobody is told to come back later than that."""
PROMISES = 256
"""Requests that room is kept for at once, at most."""


@dataclass
class Promise:
    """Room that is kept for a request that was refused."""

    images: int
    due: float
    """When it was told to come back."""
    until: float


class Admission:
    """Lets requests in by room and age. Called with the batcher's lock.

    Whoever is refused is told when to come back, and until then its images count as waiting against
    everyone who asked later. Small requests would otherwise take every gap before one is large
    enough for a request of many images.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        """`limits`: `queue_images` and `queue_seconds`. `clock`: seconds."""
        self._limits, self._clock = limits, clock
        self._promises: dict[tuple[str, int], Promise] = {}

    def admit(self, who: str, images: int, inside: int, ahead: int, rate: float | None) -> None:
        """Raise `QueueFullError` where so many more images do not fit, with when to come back.

        Args:
            who: the client, as far as one can be told from another.
            images: of the job that wants in.
            inside: images waiting or being worked on. An empty queue takes any job: their number is
                bounded by the request's own limit.
            ahead: images and tiles that come before the job's last.
            rate: images and tiles a second; None before anything was measured.
        """
        limits, now, own = self._limits, self._clock(), (who, images)
        self._promises = {key: kept for key, kept in self._promises.items() if kept.until > now}
        kept = self._kept_before(own, now + (inside + images) / rate if rate else now)
        over = inside + kept + images - limits.queue_images
        late = (ahead + kept) / rate - limits.queue_seconds if rate else 0.0
        if (inside or kept) and over > 0:
            need = min(over, inside + kept)
            text = f"{counted(inside, 'image')} waiting, and {images} more do not fit "
            limit = f"({limits.queue_images} at most)"
            self._refuse(own, text + limit, need / rate if rate else 1.0)
        if rate and late > 0:
            text = f"{counted(ahead, 'image')} ahead, about {ahead / rate:.1f} s of work "
            self._refuse(own, text + f"({limits.queue_seconds:g} s at most)", late)
        self._promises.pop(own, None)

    def _kept_before(self, own: tuple[str, int], done: float) -> int:
        """Images that room is kept for, of those who were refused before this one.

        `done`: when this one would be. What is over before someone is due takes nothing from it.
        """
        total = 0
        for key, promise in self._promises.items():
            if key == own:
                break
            if done <= promise.due:
                continue
            if total and total + promise.images > self._limits.queue_images // 2:
                break
            total += promise.images
        return total

    def _refuse(self, own: tuple[str, int], message: str, seconds: float) -> None:
        seconds = math.ceil(min(max(seconds, 1.0), LONGEST))
        due = self._clock() + seconds
        until = due + max(GRACE, seconds / 2)
        if own in self._promises:
            self._promises[own].due, self._promises[own].until = due, until
        elif len(self._promises) < PROMISES:
            self._promises[own] = Promise(own[1], due, until)
        raise QueueFullError(message, retry_after=seconds)
