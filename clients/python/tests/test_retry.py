"""Waiting: what is tried again, after how long, and when it ends."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest
from mrad_client.retry import Attempts, Retry, retry_after


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def attempts(retry: Retry, clock: Clock | None = None) -> Attempts:
    """Jitter always at its ceiling."""
    return Attempts(retry, clock=clock or Clock(), draw=lambda low, high: high)


def answer(status: int, after: str | None = None) -> httpx.Response:
    return httpx.Response(status, headers={"retry-after": after} if after else {})


def test_backoff_doubles_up_to_the_longest_and_ends() -> None:
    tries = attempts(Retry(attempts=6, base=1, longest=5))
    waits = [tries.wait(answer(503)) for _ in range(6)]
    assert waits == [1, 2, 4, 5, 5, None]


def test_retry_after_is_the_least_wait_with_jitter_on_top() -> None:
    assert attempts(Retry(base=1)).wait(answer(429, "7")) == 8


def test_a_server_that_asks_for_too_much_is_not_waited_for() -> None:
    assert attempts(Retry(longest=10)).wait(answer(429, "11")) is None


def test_patience_ends_the_call() -> None:
    clock = Clock()
    tries = attempts(Retry(attempts=9, base=1, patience=10), clock)
    clock.now = 9.5
    assert tries.wait(answer(503)) is None


@pytest.mark.parametrize("status", [200, 400, 401, 404, 409, 413, 422, 500])
def test_what_will_not_get_better_is_not_tried_again(status: int) -> None:
    assert attempts(Retry()).wait(answer(status)) is None


@pytest.mark.parametrize("error", [httpx.ConnectError("no"), httpx.RemoteProtocolError("cut")])
def test_lost_connections_are_tried_again(error: httpx.TransportError) -> None:
    assert attempts(Retry()).wait(error) is not None


def test_a_server_too_slow_is_not_given_the_same_work_again() -> None:
    assert attempts(Retry()).wait(httpx.ReadTimeout("slow")) is None


def test_retry_after_as_a_date() -> None:
    when = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    seconds = retry_after(answer(503, when))
    assert seconds is not None
    assert 27 < seconds <= 30


@pytest.mark.parametrize("value", ["soon", "", "  "])
def test_an_unreadable_retry_after_is_as_none(value: str) -> None:
    assert retry_after(answer(503, value)) is None


def test_jitter_spreads_a_crowd() -> None:
    first = {Attempts(Retry(base=10)).wait(answer(503)) for _ in range(50)}
    assert len(first) > 40
    assert all(wait is not None and 0 <= wait <= 10 for wait in first)
