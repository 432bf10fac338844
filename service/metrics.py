"""What Prometheus reads at /metrics. Names are stable: docker/grafana and alerts use them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mrad.types import Prediction
from service.jobs import Item
from service.loading import Model
from service.results import Judge

Finish = Callable[[int, Prediction, Image.Image], dict[str, Any]]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SCORES = tuple(i / 50 for i in range(1, 50))


class Metrics:
    """One registry for each application; also the batcher's observer."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = {"registry": self.registry}
        self.requests = Counter(
            "mrad_requests", "Requests by route and status.", ["route", "code"], **own
        )
        self.request_seconds = Histogram(
            "mrad_request_seconds", "Time of a request.", ["route"], buckets=SECONDS, **own
        )
        self.images = Counter(
            "mrad_images", "Images by outcome: ok, or the error's code.", ["status"], **own
        )
        self.stages = Histogram(
            "mrad_stage_seconds",
            "Time of a stage: decode and render of an image, encode and retrieve of a batch.",
            ["stage"],
            buckets=SECONDS,
            **own,
        )
        self.queue = Gauge("mrad_queue_images", "Images in the house: waiting or worked on.", **own)
        self.batches = Histogram(
            "mrad_batch_images",
            "Images in a device batch.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            **own,
        )
        self.score = Histogram("mrad_score", "Image scores.", ["bank"], buckets=SCORES, **own)
        self.keys = Gauge("mrad_memory_keys", "Keys of the active memory.", ["level"], **own)
        self.entries = Gauge("mrad_memory_entries", "Entries of the active memory.", **own)
        self.gpu = Gauge("mrad_gpu_memory_bytes", "GPU memory that torch holds.", ["device"], **own)

    def request(self, route: str, code: int, seconds: float) -> None:
        """A request was answered."""
        self.requests.labels(route, str(code)).inc()
        self.request_seconds.labels(route).observe(seconds)

    def judged(self, status: str) -> None:
        """An image was: `ok`, or the code of its error."""
        self.images.labels(status).inc()

    def observed(self, judge: Judge) -> Finish:
        """The judge, watched."""
        histogram = self.score.labels(judge.model.name)

        def finish(index: int, prediction: Prediction, image: Image.Image) -> dict[str, Any]:
            histogram.observe(prediction.score)
            return judge(index, prediction, image)

        return finish

    def stage(self, name: str, seconds: float, items: Sequence[Item]) -> None:
        """See `service.batcher.Observer`."""
        self.stages.labels(name).observe(seconds)

    def batch(self, size: int) -> None:
        """See `service.batcher.Observer`."""
        self.batches.observe(size)

    def waiting(self, images: int) -> None:
        """See `service.batcher.Observer`."""
        self.queue.set(images)

    def serves(self, model: Model) -> None:
        """The size of the memory that judges."""
        self.keys.labels("image").set(len(model.bank.image))
        self.keys.labels("patch").set(len(model.bank.patch))
        self.entries.set(len(model.bank.entries))

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self.registry)
