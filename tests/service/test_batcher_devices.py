"""The batcher with two devices that pretend: whose images they take, and one that is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from mrad_service.errors import DeviceLostError
from mrad_service.scheduler import batcher as batchers
from mrad_service.scheduler import retry
from mrad_service.scheduler.batch import Limits
from mrad_service.scheduler.batcher import Batcher
from mrad_service.scheduler.health import why_lost
from mrad_service.scheduler.queue import Job

from mrad.encoder.device import Lanes
from tests.service.test_batcher import Pretender, Watch, job_of, until


@pytest.fixture
def two() -> Iterator[Callable[..., tuple[Batcher, list[Pretender]]]]:
    """Two devices; the second one's encoder is another object, as on a second card."""
    made: list[Batcher] = []

    def make(**limits: Any) -> tuple[Batcher, list[Pretender]]:
        detectors = [Pretender(), Pretender()]
        for detector in detectors:
            detector.go.set()
        batcher = Batcher(2, Limits(**{"batch_wait": 0.005} | limits), Watch())
        batcher.start()
        made.append(batcher)
        return batcher, detectors

    yield make
    for batcher in made:
        batcher.close()


def job_for(detectors: Sequence[Pretender], numbers: Sequence[int]) -> Job:
    job = job_of(detectors[0], *numbers)
    job.model.detectors[:] = list(detectors)  # type: ignore[index]
    return job


def test_an_image_is_decoded_to_the_device_that_judges_it(two) -> None:
    # Batches wait until they are full: else a slow machine's go with one image, and more come there.
    batcher, detectors = two(max_batch=2, decode_threads=1, batch_wait=5)
    for detector in detectors:
        detector.go.clear()
    job = job_for(detectors, range(8))
    batcher.submit(job)
    until(lambda: sum(len(detector.decoded) for detector in detectors) == 8)
    # Four each, or five and three: a batch that is taken counts for less than the images in it.
    assert sorted(len(detector.decoded) for detector in detectors) in ([4, 4], [3, 5])
    for detector in detectors:
        detector.go.set()
    assert job.future.result(20) == [n / 1000 for n in range(8)]
    for detector in detectors:
        judged = {number for batch in detector.seen for number in batch}
        assert len(judged & set(detector.decoded)) >= 2  # the first batch at least is its own


def test_an_idle_device_takes_what_waits_for_one_that_is_held_up(two) -> None:
    batcher, detectors = two(max_batch=1, decode_threads=1)
    detectors[1].go.clear()
    job = job_for(detectors, range(8))
    batcher.submit(job)
    until(lambda: len({n for batch in detectors[0].seen for n in batch}) == 7)
    assert detectors[1].decoded  # some of them were decoded to the other one
    detectors[1].go.set()
    assert job.future.result(20) == [n / 1000 for n in range(8)]


def test_a_lost_device_fails_liveness_and_the_others_go_on(two, monkeypatch) -> None:
    batcher, detectors = two(max_batch=2)
    reason = "CUDA error: an illegal memory access was encountered"
    monkeypatch.setattr(retry, "why_lost", lambda device: reason)
    assert batcher.health.why == ""
    detectors[1].lost = True
    first = job_for(detectors, range(8))
    batcher.submit(first)
    outcomes = first.future.result(20)
    assert any(isinstance(outcome, DeviceLostError) for outcome in outcomes)
    assert "device 1 is lost" in batcher.health.why
    assert "illegal memory access" in batcher.health.why
    tries = len(detectors[1].seen)
    after = job_for(detectors, range(20))
    batcher.submit(after)
    assert after.future.result(20) == [n / 1000 for n in range(20)]
    assert len(detectors[1].seen) == tries  # it is asked no more
    detectors[0].lost = True
    last = job_for(detectors, [1])
    batcher.submit(last)
    assert isinstance(last.future.result(20)[0], DeviceLostError)
    with pytest.raises(DeviceLostError):
        batcher.submit(job_for(detectors, [1]))


def test_a_device_that_can_still_compute_is_not_lost() -> None:
    assert why_lost(torch.device("cpu")) == ""
    assert "meta" in why_lost(torch.device("meta"))  # nothing there ever gives a number


def test_a_processor_encodes_two_batches_side_by_side(monkeypatch) -> None:
    monkeypatch.setattr(batchers, "usable_cores", lambda: 2)
    detector, watch = Pretender(), Watch()
    batcher = Batcher(1, Limits(batch_wait=0.005, max_batch=4, kind="cpu"), watch)
    batcher.start()
    try:
        job = job_of(detector, *range(8))
        batcher.submit(job)
        until(lambda: len(watch.batches) == 2)  # neither is done: the detector holds them up
        assert not detector.seen
        detector.go.set()
        assert job.future.result(20) == [n / 1000 for n in range(8)]
    finally:
        detector.go.set()
        batcher.close()


def test_batches_share_the_cores_and_what_waits() -> None:
    lanes = Lanes.of("cpu", 16)
    assert (lanes.count, lanes.cores, lanes.share) == (4, 16, 4)
    assert Lanes.of("cpu", 2) == Lanes(2, 2)
    assert Lanes.of("cpu", 0) == Lanes(1, 1)
    assert Lanes.of("cuda", 16) == Lanes(1, 16)
    assert [lanes.part(8, busy) for busy in range(4)] == [2, 3, 4, 8]
    assert lanes.part(8, 4) == 8  # one was taken from another device
