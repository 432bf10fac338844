"""What lives as long as the server: banks, batcher, metrics. `app.state.runtime`."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Protocol

import structlog
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from mrad.detector import Decoded, Detector
from mrad.encoder.encoder import Features
from mrad.errors import MRADError
from mrad.types import Prediction
from mrad_service.errors import (
    ClientGoneError,
    DeadlineError,
    DeviceError,
    DrainingError,
    InvalidRequestError,
    NotReadyError,
)
from mrad_service.memory import DurableMemory
from mrad_service.models.loading import EncoderOf, Encoders, Model, devices_of
from mrad_service.models.objects import Objects
from mrad_service.models.registry import Banks
from mrad_service.scheduler.batch import Limits
from mrad_service.scheduler.batcher import Batcher
from mrad_service.scheduler.lane import Lane
from mrad_service.scheduler.queue import Item, Job, Outcome
from mrad_service.scheduler.retry import in_halves
from mrad_service.scheduler.room import Room
from mrad_service.settings import Settings
from mrad_service.telemetry.drift import Drift
from mrad_service.telemetry.metrics import Metrics
from mrad_service.telemetry.tracing import Tracing

log = structlog.get_logger(__name__)


class File(Protocol):
    """A file that the server depends on."""

    def reload(self) -> None:
        """Open or read it again."""
        ...

    def why_not_ready(self) -> str:
        """What is wrong with it; empty while nothing is."""
        ...


class Runtime:
    """Built once for an application; `start` and `stop` are its lifespan."""

    def __init__(self, settings: Settings, encoder_of: EncoderOf | None = None) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.drift = Drift(settings.drift_window)
        self.tracing = Tracing() if settings.tracing else None
        self.banks = Banks(settings, Encoders(settings, encoder_of))
        self.batcher = Batcher(
            len(devices_of(settings)),
            Limits(
                max_batch=settings.max_batch,
                kind="cpu" if set(devices_of(settings)) <= {"auto", "cpu"} else "cuda",
                batch_wait=settings.batch_wait,
                decode_threads=settings.decode_threads,
                finish_threads=settings.finish_threads,
                queue_images=settings.queue_images,
                queue_seconds=settings.queue_seconds,
                max_decoded_bytes=settings.max_decoded_bytes,
                nearest_every=settings.drift_every,
            ),
            self,
        )
        self.room = Room(settings.max_inflight_bytes, "bodies and answers")
        self.objects = Objects()
        self._draining = threading.Event()
        self._teaching = threading.Lock()
        self._files: list[File] = []
        self.lessons = Lane("lessons", settings.max_lessons)
        self.copies = Lane("exports", 1)
        self.switches = Lane("switches of banks", 2)

    def watch_over(self, *files: File | None) -> None:
        """Files that are read again on `reload`, and without which the server is not ready."""
        self._files += [file for file in files if file is not None]

    def check_files(self) -> None:
        """Raises `NotReadyError` where one of them would keep the server unready."""
        for file in self._files:
            if why := file.why_not_ready():
                raise NotReadyError(why)

    def reload(self) -> None:
        """SIGHUP: logs are opened again, keys read again; requests go on."""
        for file in self._files:
            file.reload()
        log.info("reloaded")

    def start(self) -> None:
        """Load the first bank, once. Raises what keeps it from being served."""
        if self.banks.active is not None:
            return
        self.batcher.start()
        began = time.perf_counter()
        model = self.banks.activate(self.banks.first())
        log.info("ready", bank=model.name, seconds=round(time.perf_counter() - began, 2))

    def announce_stop(self) -> None:
        """Readiness goes off; work still comes in."""
        self._draining.set()

    def stop(self) -> None:
        """Finish what is inside, within the limit, then let everything go."""
        self.announce_stop()
        if not self.batcher.drain(self.settings.drain_seconds):
            log.warning("stopped with work left", images=self.batcher.inside)
        self.batcher.close()
        self.banks.close()
        if self.tracing is not None:
            self.tracing.close()

    def why_not_live(self) -> str:
        """What only a new process can heal; empty when there is nothing of the kind."""
        return self.batcher.health.why

    def why_not_ready(self) -> str:
        """Empty when requests are welcome."""
        if self._draining.is_set():
            return "the server is stopping"
        if why := self.why_not_live():
            return why
        for file in self._files:
            if why := file.why_not_ready():
                return why
        return self.banks.trouble() if self.banks.active is not None else "no bank is loaded yet"

    def model(self, bank: str | None = None) -> Model:
        """What judges now. Raises `UnknownBankError`, `BankNotLoadedError`."""
        return self.banks.get(bank).model

    async def model_of(self, bank: str | None, name: str | None) -> Model:
        """What judges one product's images, or all where none is named; see `Objects.get`."""
        model = self.model(bank)
        if name is None:
            return model
        return await run_in_threadpool(self.objects.get, model, name)

    def memory(self, bank: str | None = None) -> DurableMemory:
        """The living memory of a bank. Raises `ReadOnlyError` too."""
        return self.banks.memory(bank)

    def encode(self, detector: Detector, image: Decoded) -> Features:
        """Features of one image, beside the batches: one at a time, so that lessons do not crowd
        the device. Raises `DeviceMemoryError`, `DeviceError`."""
        with self._teaching:
            for _, features in in_halves([image], detector.encode, detector.encoder.device):
                if isinstance(features, MRADError):
                    raise features
                return features
        raise DeviceError("nothing was encoded")

    def activate(self, name: str) -> Model:
        """Switch; see `Banks.activate`."""
        if self._draining.is_set():
            raise DrainingError("the server is stopping; nothing is switched any more")
        return self.banks.activate(name)

    def deadline(self, request: Request) -> float:
        """On `time.monotonic`'s clock: the setting's, or what `X-Request-Timeout` asks for."""
        seconds = self.settings.request_seconds
        asked = request.headers.get("x-request-timeout")
        if asked is not None:
            seconds = min(seconds, _seconds(asked))
        return time.monotonic() + seconds

    def watch(self, model: Model, prediction: Prediction) -> None:
        """An image was judged: for metrics and drift."""
        self.metrics.scored(model.name, prediction.score)
        self.metrics.warned(prediction.warnings)
        if not model.part:  # its scores have a scale of their own
            self.drift.note(model, prediction)

    def stage(self, name: str, seconds: float, items: Sequence[Item]) -> None:
        """See `mrad_service.scheduler.batch.Observer`."""
        self.metrics.stage(name, seconds)
        if self.tracing is not None:
            self.tracing.stage(name, seconds, items)

    def batch(self, size: int) -> None:
        """See `mrad_service.scheduler.batch.Observer`."""
        self.metrics.batches.observe(size)

    def waiting(self, images: int) -> None:
        """See `mrad_service.scheduler.batch.Observer`."""
        self.metrics.queue.set(images)

    def figures(self) -> bytes:
        """What Prometheus reads."""
        model = self.model() if self.banks.active is not None else None
        return self.metrics.text(model, self.drift.report(model) if model else None)

    async def run(self, job: Job, request: Request) -> list[Outcome]:
        """Queue a job, wait for it; drop it when its time is over or its client leaves.

        Raises `QueueFullError`, `DrainingError`, `DeadlineError`, `ClientGoneError`.
        """
        job.who = client_of(request)
        job.trace = self.tracing.here() if self.tracing is not None else None
        self.batcher.submit(job)
        done = asyncio.wrap_future(job.future)
        gone = asyncio.ensure_future(_left(request))
        try:
            await asyncio.wait(
                {done, gone},
                timeout=max(0.0, job.deadline - time.monotonic()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if done.done():
                return done.result()
            if gone.done():
                raise ClientGoneError("the client left")
            raise DeadlineError("the request was not done in time; what was left is dropped")
        finally:
            gone.cancel()
            if not done.done():
                done.cancel()
                self.batcher.drop(job, ClientGoneError("nobody waits for this any more"))


def client_of(request: Request) -> str:
    """Key and address: who a request comes from, as far as that can be told."""
    key = getattr(request.state, "key_name", "")
    return f"{key}@{request.client.host if request.client else ''}"


async def _left(request: Request) -> None:
    """Returns when the client closes its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise InvalidRequestError(f"X-Request-Timeout is a number of seconds, not {text!r}")
    return seconds
