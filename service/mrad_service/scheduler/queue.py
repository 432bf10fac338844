"""What waits: a request as a job, its images as items, and who comes next."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from PIL import Image

from mrad.detector import Decoded, Detector
from mrad.errors import MRADError
from mrad.images.layout import Layout
from mrad.images.options import ReadOptions
from mrad.types import ImageInput, Prediction
from mrad_service.errors import DeadlineError
from mrad_service.scheduler.room import KEPT, MAPPED, OPENED, pixels_of

BLANK = Image.new("RGB", (1, 1))
Outcome = Any
"""What a job's `finish` made of an image, or the `MRADError` that kept it from being judged."""


class Model(Protocol):
    """What judges: the same bank and head on every device."""

    @property
    def detectors(self) -> Sequence[Detector]:
        """One for each device."""
        ...


@dataclass(frozen=True)
class Wanted:
    """What the device has to compute for an image."""

    maps: bool = False
    image: bool = False
    """Whether `finish` needs the upright input (an overlay does)."""
    evidence: int = 0
    full_map: bool = False
    """Whether the map of a very large image comes at its full size."""


class Job:
    """The images of one request. Its future holds an outcome for each, in order."""

    def __init__(
        self,
        images: Sequence[ImageInput | MRADError],
        model: Model,
        finish: Callable[[int, Prediction, Image.Image], Outcome],
        *,
        wanted: Wanted,
        deadline: float = math.inf,
        layout: Layout | None = None,
        reading: ReadOptions | None = None,
    ) -> None:
        """
        Args:
            images: encoded, or pixels; an error stands for one that is known to be unusable.
            model: what judges them.
            wanted: what the device has to compute.
            layout: how these images are looked at, instead of the bank's own layout.
            finish: called in a finishing thread with the index, the prediction and the upright
                image (one pixel unless wanted).
            deadline: on `time.monotonic`'s clock; after it the rest is dropped.
            reading: how its images are read; None: as the server's settings say.
        """
        self.model, self.finish, self.wanted, self.deadline = model, finish, wanted, deadline
        self.layout = model.detectors[0].layout if layout is None else layout
        self.reading = reading
        self.future: Future[list[Outcome]] = Future()
        self.who = ""
        """The client, as far as one can be told from another."""
        self.trace: Any = None
        """Where its spans belong, when tracing is on."""
        self.dropped: MRADError | None = None
        """Why nobody waits for it any more."""
        self._outcomes: list[Outcome] = list(images)
        self._waiting = deque(
            Item(self, index, image)
            for index, image in enumerate(images)
            if not isinstance(image, MRADError)
        )
        self._unsettled = len(self._waiting)
        self._lock = threading.Lock()
        if not self._unsettled:
            self.future.set_result(self._outcomes)

    @property
    def waiting(self) -> int:
        """Images that no thread has taken yet."""
        return len(self._waiting)

    def take(self) -> Item | None:
        """The next image; None when there is no other."""
        return self._waiting.popleft() if self._waiting else None

    @property
    def cost(self) -> int:
        """Bytes that the next image takes."""
        return self._waiting[0].cost if self._waiting else 0

    def drop(self, error: MRADError) -> int:
        """Give up; returns how many images had not been taken. What runs is thrown away."""
        self.dropped = self.dropped or error
        left = len(self._waiting)
        self._waiting.clear()
        self._conclude()
        return left

    def is_over(self) -> MRADError | None:
        """The error of a job that was dropped or is late."""
        if self.dropped is None and time.monotonic() > self.deadline:
            self.dropped = DeadlineError(
                "the request was not done in time; what was left is dropped"
            )
        return self.dropped

    def settle(self, index: int, outcome: Outcome) -> None:
        """One image is done."""
        with self._lock:
            self._outcomes[index] = outcome
            self._unsettled -= 1
            last = self._unsettled == 0
        if last:
            self._conclude()

    def _conclude(self) -> None:
        """The first to come decides; whoever waits may have cancelled."""
        with contextlib.suppress(InvalidStateError):
            if self.dropped is not None:
                self.future.set_exception(self.dropped)
            else:
                self.future.set_result(self._outcomes)


@dataclass(eq=False)
class Item:
    """One image on its way."""

    job: Job
    index: int
    data: ImageInput = field(repr=False)
    device: int = 0
    """Which device's pixels it was, or is being, decoded to."""
    decoded: Decoded | None = field(default=None, repr=False)
    settled: bool = False
    held: int = 0
    """Bytes of the room for pixels that it holds."""
    pixels: int = -1
    """Before it is decoded; -1: not looked at yet."""

    @property
    def cost(self) -> int:
        """Bytes that decoding it takes, and judging it as it was asked for."""
        if self.pixels < 0:
            self.pixels = pixels_of(self.data)
        wanted, twice = self.job.wanted, self.job.layout.align is not None
        return self.pixels * (OPENED + MAPPED * wanted.maps + KEPT * (wanted.image + twice))

    @property
    def kept(self) -> int:
        """Bytes that remain once it is decoded."""
        wanted, cut = self.job.wanted, self.decoded is not None and not self.decoded.places.whole
        twice = cut and self.job.layout.align is not None
        return self.pixels * (MAPPED * wanted.maps + KEPT * ((wanted.image or cut) + twice))

    @property
    def whole(self) -> Item:
        """The image that an outcome is told of: itself, or the one that a tile was cut from."""
        return self

    def prepare(self, detector: Detector) -> Decoded:
        """Decode it. Raises `ImageError`."""
        decoded = detector.decode(self.data, self.job.reading, layout=self.job.layout)
        self.data = b""
        if decoded.places.whole and not self.job.wanted.image:
            return replace(decoded, image=BLANK, upright=None)
        return decoded


class Source(Protocol):
    """What gives items in turn with others: a job its images, a large image its tiles."""

    @property
    def waiting(self) -> int:
        """Items that no thread has taken yet."""
        ...

    @property
    def cost(self) -> int:
        """Bytes that the next takes, beyond what is held already."""
        ...

    def take(self) -> Item | None:
        """The next; None when there is no other."""
        ...


class FairQueue:
    """Sources take turns, one item each, so that a huge request does not hold up small ones."""

    def __init__(self) -> None:
        self._jobs: deque[Source] = deque()

    def __len__(self) -> int:
        return sum(job.waiting for job in self._jobs)

    def __bool__(self) -> bool:
        return any(job.waiting for job in self._jobs)

    def push(self, job: Source) -> None:
        """Its first turn comes after everyone's who waits."""
        if job.waiting:
            self._jobs.append(job)

    def pop(self, skip: Callable[[Source], bool] = lambda source: False) -> Item | None:
        """The next item of a source that is not to be skipped."""
        for _ in range(len(self._jobs)):
            job = self._jobs.popleft()
            if skip(job):
                self._jobs.append(job)
                continue
            item = job.take()
            if job.waiting:
                self._jobs.append(job)
            if item is not None:
                return item
        return None

    def ahead_of(self, images: int) -> int:
        """Images that come before the last of a new job of so many."""
        return sum(min(job.waiting, images) for job in self._jobs)


class Rate:
    """Images a second while there is work, over the last half minute or so."""

    MEMORY = 30.0

    def __init__(self) -> None:
        self._count = self._busy = 0.0
        self._since = 0.0

    def start(self, now: float) -> None:
        """Work came while idle."""
        self._since = now

    def done(self, now: float, images: int = 1) -> None:
        """So many images left it."""
        spent = max(0.0, now - self._since)
        fade = math.exp(-spent / self.MEMORY)
        self._count, self._busy = self._count * fade + images, self._busy * fade + spent
        self._since = now

    def __call__(self) -> float | None:
        """None before anything was measured."""
        return self._count / self._busy if self._count and self._busy > 0 else None


TRIED = 8
"""Of so many batches, one waits where the last waits were in vain."""


class BatchWait:
    """How long an idle device waits for one more image: as long as that lately paid."""

    def __init__(self, longest: float) -> None:
        self._longest, self._shortest = longest, longest / 32
        self.seconds = longest / 4
        self._skipped = 0

    def next(self) -> float:
        """Seconds to wait this time. Where nobody came even after the shortest wait, it is only tried
        now and then: a client that is alone would pay it for each image."""
        if self.seconds > self._shortest:
            return self.seconds
        self._skipped = (self._skipped + 1) % TRIED
        return 0.0 if self._skipped else self.seconds

    def learn(self, gap: float | None) -> None:
        """After a wait: the widest gap after which an image still came, None when none did."""
        if gap is None:
            self.seconds = max(self._shortest, self.seconds / 2)
        else:
            self.seconds = min(self._longest, 0.7 * self.seconds + 0.3 * 2 * gap)
