"""Retry-After is kept: whoever comes back when it was told to gets in, however large its request."""

from __future__ import annotations

import heapq

import pytest
from mrad_service.errors import QueueFullError
from mrad_service.scheduler.admission import Admission
from mrad_service.scheduler.batch import Limits

RATE = 10.0


class Simulation:
    """A server of ten images a second, and clients that come when they like."""

    def __init__(self, queue_images: int) -> None:
        self.now, self._busy_until = 0.0, 0.0
        limits = Limits(queue_images=queue_images, queue_seconds=60)
        self.admission = Admission(limits, clock=lambda: self.now)

    def ask(self, who: str, images: int) -> float:
        """0 when let in, else when to come back."""
        inside = max(0, round((self._busy_until - self.now) * RATE))
        try:
            self.admission.admit(who, images, inside, inside + images, RATE)
        except QueueFullError as error:
            return error.retry_after
        self._busy_until = max(self.now, self._busy_until) + images / RATE
        return 0.0

    def run(
        self, seconds: float, period: float, large: int, ghosts: bool = False
    ) -> list[tuple[float, bool]]:
        """Others ask for 8 images every `period` s, and never wait; one obeys and asks for `large`.

        With `ghosts` the others never come back under the same name.
        Returns when the obedient one asked, and whether it was let in.
        """
        due, asked = [(0.0, "flood"), (1.0, "obedient")], []
        while due:
            self.now, who = heapq.heappop(due)
            if self.now > seconds:
                continue
            if who == "flood":
                self.ask(f"flood-{self.now if ghosts else 0}", 8)
                heapq.heappush(due, (self.now + period, who))
                continue
            wait = self.ask(who, large)
            asked.append((self.now, not wait))
            heapq.heappush(due, (self.now + (wait or large / RATE), who))
        return asked


@pytest.mark.parametrize("queue_images", [12, 40, 256])
@pytest.mark.parametrize("large", [8, 32])
def test_who_obeys_gets_in_at_ten_times_the_rate(queue_images: int, large: int) -> None:
    asked = Simulation(queue_images).run(120, period=0.08, large=large)
    let_in = [found for _, found in asked]
    assert sum(let_in) >= 3
    refusals = 0
    for found in let_in:
        refusals = 0 if found else refusals + 1
        assert refusals <= 2, "told to come back, and refused again and again"


def test_who_obeys_gets_in_where_others_do_not_come_back() -> None:
    asked = Simulation(40).run(200, period=0.08, large=32, ghosts=True)
    assert sum(found for _, found in asked) >= 5


def test_room_is_kept_only_so_long_for_who_does_not_come() -> None:
    simulation = Simulation(12)
    assert simulation.ask("a", 8) == 0
    assert simulation.ask("gone", 12) > 0
    simulation.now = 0.7  # one image is left: 8 would fit, had nobody been promised anything
    wait = simulation.ask("b", 8)
    assert wait > 0
    simulation.now += wait + 5
    assert simulation.ask("c", 8) == 0, "the promise is over"


def test_promises_are_bounded() -> None:
    simulation = Simulation(12)
    assert simulation.ask("a", 8) == 0
    for number in range(5000):
        assert simulation.ask(f"flood-{number}", 8) <= 60
    assert len(simulation.admission._promises) <= 256
    simulation.now = 100
    assert simulation.ask("late", 8) == 0
