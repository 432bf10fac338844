"""How many requests at once: climbs while the server gets faster, gives way when it refuses."""

from __future__ import annotations

from dataclasses import dataclass

GAIN = 1.03
"""A window counts as faster from here; less is noise."""
SAME = 0.99
"""A window with fewer requests at once counts as no slower from here."""
REST = 4
"""Windows spent at the best limit before another is tried: one more and one less, in turn."""
WINDOW = 12
"""Requests in a window, at least; noise hides the gain in fewer."""
BACK = 0.7
"""What remains of the limit after a refusal."""


@dataclass
class Pace:
    """The limit on requests in flight, moved by what windows of completed requests show.

    Doubles while doubling pays, then rests at the best limit and from time to time tries one step
    up (kept if faster) or down (kept if no slower: a queue in the server helps nobody). A refusal (429, 503, time-out) multiplies by `BACK`,
    once for all requests that were in flight together.
    """

    most: int = 64
    limit: float = 1.0
    _doubling: bool = True
    _up: bool = True
    _best_rate: float = 0.0
    _best_limit: float = 1.0
    _resting: int = 0
    _began: float | None = None
    _images: int = 0
    _requests: int = 0
    _deaf_until: float = 0.0

    @property
    def slots(self) -> int:
        """Requests that may be in flight now."""
        return max(1, int(self.limit))

    def done(self, images: int, now: float) -> None:
        """A request with so many images was answered at `now` (seconds, any clock)."""
        if self._began is None:
            self._began = now
            return
        self._images += images
        self._requests += 1
        if self._requests < max(WINDOW, 2 * self.slots) or now <= self._began:
            return
        rate = self._images / (now - self._began)
        self._began, self._images, self._requests = now, 0, 0
        self._judge(rate)

    def refused(self, sent: float, now: float) -> None:
        """A request sent at `sent` was turned away at `now`."""
        if sent < self._deaf_until:
            return
        self.limit = max(1.0, self.limit * BACK)
        self._doubling, self._resting = False, REST
        self._best_rate, self._best_limit = 0.0, self.limit
        self._began, self._images, self._requests = None, 0, 0
        self._deaf_until = now

    def _judge(self, rate: float) -> None:
        if self._resting:
            self._resting -= 1
            # Follows a server whose speed changes, so that an old best does not bind for ever.
            self._best_rate = rate if not self._best_rate else 0.6 * self._best_rate + 0.4 * rate
            if not self._resting:
                self._probe()
        elif rate > self._best_rate * (GAIN if self.limit >= self._best_limit else SAME):
            self._best_rate, self._best_limit = rate, self.limit
            if self._doubling:
                self.limit = min(float(self.most), self.limit * 2)
            else:
                self._resting = REST
        else:
            self.limit, self._doubling, self._resting = self._best_limit, False, REST

    def _probe(self) -> None:
        self._up = not self._up
        step = max(1.0, self._best_limit / 8)
        wanted = self._best_limit + (step if self._up else -step)
        self.limit = min(float(self.most), max(1.0, wanted))
