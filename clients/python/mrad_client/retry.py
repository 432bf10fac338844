"""When to try again, and after how long. Knows nothing of sockets, so both clients share it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

RETRIED_STATUS = frozenset({429, 502, 503, 504})
NOT_RETRIED = (httpx.ReadTimeout, httpx.UnsupportedProtocol, httpx.DecodingError)
"""A server too slow to answer is not helped by the same work again."""


@dataclass(frozen=True)
class Retry:
    """How patient a client is. `Retry(attempts=1)` never tries again."""

    attempts: int = 5
    base: float = 0.25
    """Seconds; the first wait is drawn from [0, base], the next from twice that, and so on."""
    longest: float = 30.0
    """Seconds; no single wait is longer. A server that asks for more gets no further try."""
    patience: float = 120.0
    """Seconds for one call, waits included, after which no new try begins."""

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.base < 0 or self.longest < 0:
            raise ValueError("attempts must be at least 1, base and longest at least 0")


@dataclass
class Attempts:
    """The tries of one call: after each outcome, says how long to wait, or that it is over."""

    retry: Retry
    made: int = 0
    clock: Callable[[], float] = time.monotonic
    draw: Callable[[float, float], float] = random.uniform
    _began: float = field(init=False)

    def __post_init__(self) -> None:
        self._began = self.clock()

    def wait(self, outcome: httpx.Response | httpx.TransportError) -> float | None:
        """Seconds until the next try, or None when this outcome stands."""
        self.made += 1
        if self.made >= self.retry.attempts or not is_transient(outcome):
            return None
        asked = retry_after(outcome) if isinstance(outcome, httpx.Response) else None
        if asked is not None and asked > self.retry.longest:
            return None
        ceiling = min(self.retry.longest, self.retry.base * 2 ** (self.made - 1))
        # Full jitter; on top of what the server asked for, so that a crowd does not return at once.
        seconds = (asked or 0.0) + self.draw(0.0, ceiling)
        late = self.clock() + seconds - self._began > self.retry.patience
        return None if late else seconds


def is_transient(outcome: httpx.Response | httpx.TransportError) -> bool:
    """Whether the same call may fare better later."""
    if isinstance(outcome, httpx.Response):
        return outcome.status_code in RETRIED_STATUS
    return not isinstance(outcome, NOT_RETRIED)


def retry_after(response: httpx.Response) -> float | None:
    """Seconds of the Retry-After header, given as a number or as a date; None without one."""
    value = response.headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
