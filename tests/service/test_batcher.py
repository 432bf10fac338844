"""The batcher with detectors that only pretend: order, fairness, limits, halves, clients that leave, stopping."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mrad_service.errors import (
    ClientGoneError,
    DeadlineError,
    DeviceError,
    DeviceLostError,
    DeviceMemoryError,
    DrainingError,
    QueueFullError,
)
from mrad_service.scheduler.batch import Limits
from mrad_service.scheduler.batcher import Batcher
from mrad_service.scheduler.queue import BatchWait, Job, Rate, Wanted
from PIL import Image

from mrad.detector import Decoded
from mrad.encoder.encoder import Features
from mrad.errors import ImageError, MRADError
from mrad.images.layout import PLAIN, Layout
from mrad.types import Prediction


@dataclass
class Watch:
    """An observer that keeps what it is told."""

    batches: list[int] = field(default_factory=list)
    inside: int = 0
    stages: list[tuple[str, float]] = field(default_factory=list)

    def stage(self, name: str, seconds: float, items: Sequence[Any]) -> None:
        self.stages.append((name, seconds))

    def batch(self, size: int) -> None:
        self.batches.append(size)

    def waiting(self, images: int) -> None:
        self.inside = images


@dataclass
class Pretender:
    """A detector whose score is the image's number / 1000; an event may hold up its device."""

    go: threading.Event = field(default_factory=threading.Event)
    memory: int = 1000
    broken: int | None = None
    seen: list[list[int]] = field(default_factory=list)
    lost: bool = False
    short: int = 0
    """How many images cannot be decoded for want of memory, from now on."""
    decoded: list[int] = field(default_factory=list)
    encoder: Any = field(
        default_factory=lambda: SimpleNamespace(name="pretender", device=torch.device("cpu"))
    )

    layout: Layout = PLAIN

    def decode(self, data: bytes, max_pixels: int, *, layout: Layout) -> Decoded:
        if data == b"bad":
            raise ImageError("no image")
        if self.short:
            self.short -= 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.decoded.append(int(data))
        places = PLAIN.places((2, 3))
        return Decoded(torch.tensor([float(data)]), Image.new("RGB", (2, 3)), places)

    def encode(self, decoded: Sequence[Decoded]) -> Features:
        assert self.go.wait(20)
        numbers = [int(item.pixels) for item in decoded]
        self.seen.append(numbers)
        if self.lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if len(numbers) > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if self.broken in numbers:
            raise RuntimeError("device-side assert")
        stacked = torch.stack([item.pixels for item in decoded])
        return Features(stacked, stacked[:, None])

    def finish(
        self, features: Features, sizes: Sequence[tuple[int, int]], *, maps: bool, evidence: int
    ) -> list[Prediction]:
        scores = features.class_feature[:, 0].tolist()
        return [Prediction(s / 1000, s / 1000, 0.0, size) for s, size in zip(scores, sizes)]


@pytest.fixture
def start() -> Iterator[Callable[..., tuple[Batcher, Pretender, Watch]]]:
    made: list[tuple[Batcher, Pretender]] = []

    def make(running: bool = True, memory: int = 1000, broken: int | None = None, **limits: Any):
        detector, watch = Pretender(memory=memory, broken=broken), Watch()
        if running:
            detector.go.set()
        batcher = Batcher(1, Limits(**{"batch_wait": 0.005} | limits), watch)
        batcher.start()
        made.append((batcher, detector))
        return batcher, detector, watch

    yield make
    for batcher, detector in made:
        detector.go.set()
        batcher.close()


def job_of(detector: Pretender, *numbers: int | bytes, **options: Any) -> Job:
    images = [n if isinstance(n, bytes) else str(n).encode() for n in numbers]
    model = SimpleNamespace(detectors=[detector])
    options = {"wanted": Wanted()} | options
    return Job(images, model, lambda index, prediction, image: prediction.score, **options)


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it never came to pass"
        time.sleep(0.002)


def test_outcomes_in_order_and_batches_filled(start) -> None:
    batcher, detector, watch = start(running=False, max_batch=4)
    first = job_of(detector, 0)
    batcher.submit(first)
    until(lambda: watch.batches)
    jobs = [job_of(detector, *range(10 * i, 10 * i + 3)) for i in range(1, 5)]
    for job in jobs:
        batcher.submit(job)
    detector.go.set()
    for i, job in enumerate(jobs, start=1):
        assert job.future.result(20) == [(10 * i + k) / 1000 for k in range(3)]
    assert watch.batches == [1, 4, 4, 4]
    until(lambda: watch.inside == 0)


def test_small_requests_do_not_wait_for_a_huge_one(start) -> None:
    batcher, detector, watch = start(running=False, max_batch=2)
    huge = job_of(detector, *range(100))
    batcher.submit(huge)
    until(lambda: watch.batches)
    small = [job_of(detector, 200 + i) for i in range(3)]
    for job in small:
        batcher.submit(job)
    detector.go.set()
    for job in small:
        job.future.result(20)
    huge.future.result(20)
    order = [number for batch in detector.seen for number in batch]
    assert max(order.index(200 + i) for i in range(3)) < 20, "each comes within a few turns"


def test_time_that_a_device_thread_finishes_is_not_told_as_encoding_too(start, monkeypatch) -> None:
    batcher, detector, watch = start()
    finish, threads = detector.finish, []

    def slow(*given: Any, **options: Any) -> list[Prediction]:
        threads.append(threading.current_thread().name)
        time.sleep(0.2)
        return finish(*given, **options)

    monkeypatch.setattr(detector, "finish", slow)
    job = job_of(detector, 1)
    job.wanted = Wanted(maps=False)
    batcher.submit(job)
    job.future.result(20)
    until(lambda: any(name == "encode" for name, _ in watch.stages))
    assert threads[0].endswith("device-0")
    told = dict(watch.stages)
    assert told["retrieve"] >= 0.2
    assert told["encode"] < 0.1


def test_an_unreadable_image_is_its_own_outcome(start) -> None:
    batcher, detector, _ = start()
    job = job_of(detector, 1, b"bad", 3)
    batcher.submit(job)
    outcomes = job.future.result(20)
    assert isinstance(outcomes[1], ImageError)
    assert [outcomes[0], outcomes[2]] == [0.001, 0.003]
    given = Job([ImageError("known")], job.model, job.finish, wanted=Wanted())
    batcher.submit(given)
    assert isinstance(given.future.result(1)[0], ImageError)


def test_out_of_memory_halves_and_remembers(start) -> None:
    batcher, detector, watch = start(running=False, max_batch=8, memory=3)
    job = job_of(detector, *range(17))
    batcher.submit(job)
    detector.go.set()
    assert job.future.result(20) == [n / 1000 for n in range(17)]
    until(lambda: watch.inside == 0)
    again = job_of(detector, *range(16))
    detector.seen.clear()
    batcher.submit(again)
    again.future.result(20)
    assert max(map(len, detector.seen)) <= 3, "what did not fit is not tried at once again"


def test_a_device_without_memory_for_one_image_fails_it_and_lives_on(start) -> None:
    batcher, detector, _ = start(memory=0)
    job = job_of(detector, 1, 2)
    batcher.submit(job)
    assert all(isinstance(o, DeviceMemoryError) for o in job.future.result(20))
    detector.memory = 10
    after = job_of(detector, 3)
    batcher.submit(after)
    assert after.future.result(20) == [0.003]


def test_what_breaks_the_device_breaks_alone(start) -> None:
    batcher, detector, _ = start(broken=5)
    job = job_of(detector, *range(8))
    batcher.submit(job)
    outcomes = job.future.result(20)
    assert isinstance(outcomes[5], DeviceError)
    assert outcomes[5].__cause__ is not None, "the log shows where"
    assert sum(isinstance(outcome, MRADError) for outcome in outcomes) == 1


def test_memory_short_while_decoding_is_tried_once_more_and_told_as_what_it_is(start) -> None:
    batcher, detector, _ = start(decode_threads=1)
    for short, kind in ((1, float), (2, DeviceMemoryError)):
        detector.short = short
        job = job_of(detector, 1)
        batcher.submit(job)
        assert isinstance(job.future.result(20)[0], kind)


def test_a_thread_that_ends_is_told(start) -> None:
    batcher, detector, watch = start()
    watch.batch = lambda size: 1 / 0  # type: ignore[method-assign]
    batcher.submit(job_of(detector, 1))
    until(lambda: batcher.health.why)
    assert "thread device-0 ended: ZeroDivisionError" in batcher.health.why
    with pytest.raises(DeviceLostError):
        batcher.submit(job_of(detector, 2))


def test_a_full_house_says_when_there_is_room(start) -> None:
    batcher, detector, watch = start(running=False, queue_images=10, max_batch=2)
    batcher.submit(job_of(detector, *range(10)))
    with pytest.raises(QueueFullError) as refused:
        batcher.submit(job_of(detector, 1))
    assert refused.value.retry_after > 0
    detector.go.set()
    until(lambda: watch.inside == 0)
    assert batcher._rate()
    batcher.submit(job_of(detector, *range(30)))  # an empty start takes any request


def test_the_expected_wait_is_bounded_too(start) -> None:
    batcher, detector, _ = start(running=False, queue_images=1000, queue_seconds=1, max_batch=1)
    batcher._rate._count, batcher._rate._busy = 20.0, 10.0  # two images a second
    batcher.submit(job_of(detector, *range(100)))
    batcher.submit(job_of(detector, 1))  # one turn away, however much is waiting
    with pytest.raises(QueueFullError) as refused:
        batcher.submit(job_of(detector, *range(50)))
    assert refused.value.retry_after > 20


def test_a_client_that_leaves_frees_its_place(start) -> None:
    batcher, detector, watch = start(running=False, max_batch=2, queue_images=60)
    job = job_of(detector, *range(50))
    batcher.submit(job)
    until(lambda: watch.batches)
    batcher.drop(job, ClientGoneError("gone"))
    assert watch.inside < 20, "what no thread had taken is gone at once"
    detector.go.set()
    until(lambda: watch.inside == 0)
    assert sum(map(len, detector.seen)) <= 8, "only what was on its way was encoded"
    with pytest.raises(ClientGoneError):
        job.future.result(1)


def test_what_is_late_is_dropped(start) -> None:
    batcher, detector, watch = start(running=False, max_batch=1)
    blocker = job_of(detector, 0)
    batcher.submit(blocker)
    until(lambda: watch.batches)
    late = job_of(detector, 1, 2, deadline=time.monotonic() - 1)
    batcher.submit(late)
    detector.go.set()
    with pytest.raises(DeadlineError):
        late.future.result(20)
    until(lambda: watch.inside == 0)
    assert detector.seen == [[0]]


def test_draining_finishes_what_is_inside_and_takes_nothing_new(start) -> None:
    batcher, detector, _ = start(running=False)
    job = job_of(detector, *range(20))
    batcher.submit(job)
    assert not batcher.drain(0.05)
    with pytest.raises(DrainingError):
        batcher.submit(job_of(detector, 1))
    detector.go.set()
    assert batcher.drain(20)
    assert len(job.future.result(1)) == 20


def test_closing_tells_everyone_who_still_waits(start) -> None:
    batcher, detector, watch = start(running=False, max_batch=1)
    jobs = [job_of(detector, 1), *(job_of(detector, *range(9)) for _ in range(2))]
    for job in jobs:
        batcher.submit(job)
    until(lambda: watch.batches)
    threading.Timer(0.2, detector.go.set).start()
    batcher.close()
    for job in jobs:
        with pytest.raises(DrainingError):
            job.future.result(20)


def test_a_bug_in_the_finishing_is_an_outcome_not_a_hang(start) -> None:
    batcher, detector, _ = start()
    job = job_of(detector, 1)
    job.finish = lambda *_: 1 / 0
    batcher.submit(job)
    assert isinstance(job.future.result(20)[0], MRADError)


def test_the_wait_for_a_batch_grows_where_waiting_pays_and_shrinks_where_not() -> None:
    wait = BatchWait(0.02)
    for _ in range(20):
        wait.learn(None)
    assert wait.seconds < 0.001
    tried = [wait.next() for _ in range(80)]
    assert set(tried) == {0.0, wait.seconds}
    assert (
        5 < sum(seconds > 0 for seconds in tried) < 20
    )  # now and then, or it would never grow again
    for _ in range(20):
        wait.learn(0.004)
    assert wait.next() == wait.seconds
    assert wait.seconds == pytest.approx(0.008, rel=0.05)


def test_the_rate_counts_busy_time_only() -> None:
    rate = Rate()
    assert rate() is None
    rate.start(100.0)
    for second in range(1, 6):
        rate.done(100.0 + second, 4)
    rate.start(1000.0)
    rate.done(1001.0, 4)
    assert rate() == pytest.approx(4)


def test_what_none_follows_is_finished_where_it_was_encoded_unless_it_has_maps(start) -> None:
    batcher, detector, watch = start(running=False, max_batch=1)
    names: list[str] = []

    def job(*numbers: int, **options: Any) -> Job:
        made = job_of(detector, *numbers, **options)
        made.finish = lambda *_: names.append(threading.current_thread().name)
        return made

    def done(*numbers: int, **options: Any) -> list[str]:
        names.clear()
        one = job(*numbers, **options)
        batcher.submit(one)
        if len(numbers) > 1:
            until(lambda: len(batcher._ready) == len(numbers) - 1)
        detector.go.set()
        one.future.result(20)
        until(lambda: watch.inside == 0)
        return list(names)

    assert done(1, 2, 3)[0].startswith("finish")
    assert done(4) == ["device-0"]
    (name,) = done(5, wanted=Wanted(maps=True))
    assert name.startswith("finish")
