"""What Prometheus reads at /metrics. Names are stable: docker/grafana and alerts use them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mrad.images.guard import code_of
from mrad_service.models.loading import Model
from mrad_service.telemetry.drift import DriftReport

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SCORES = tuple(i / 50 for i in range(1, 50))


class Watched(Protocol):
    """Connections that can be counted."""

    on_cut: Callable[[str], None]

    def __len__(self) -> int: ...


class Metrics:
    """One registry for each application."""

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
        self.warnings = Counter(
            "mrad_image_warnings",
            "Judged images with a warning, by its code: something was assumed or is odd.",
            ["code"],
            **own,
        )
        self.stages = Histogram(
            "mrad_stage_seconds",
            "Time of a stage: decode and render of an image, encode and retrieve of a batch.",
            ["stage"],
            buckets=SECONDS,
            **own,
        )
        self.queue = Gauge("mrad_queue_images", "Images waiting or being judged.", **own)
        self.batches = Histogram(
            "mrad_batch_images",
            "Images in a device batch.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            **own,
        )
        self.score = Histogram("mrad_score", "Image scores.", ["bank"], buckets=SCORES, **own)
        self.keys = Gauge("mrad_memory_keys", "Keys of the active memory.", ["level"], **own)
        self.entries = Gauge("mrad_memory_entries", "Entries of the active memory.", **own)
        self.drift = Gauge(
            "mrad_drift_distance",
            "Distance from the calibration's distribution.",
            ["signal"],
            **own,
        )
        self.drift_limit = Gauge(
            "mrad_drift_limit", "Distance that chance gives once in a hundred.", ["signal"], **own
        )
        self.audit_failures = Counter(
            "mrad_audit_failures", "Lines of the audit file that could not be written.", **own
        )
        self.connections = Gauge("mrad_connections", "Open connections.", **own)
        self.cut = Counter(
            "mrad_connections_cut", "Connections refused or cut, by reason.", ["reason"], **own
        )
        self.gpu = Gauge("mrad_gpu_memory_bytes", "GPU memory that torch holds.", ["device"], **own)

    def follow(self, connections: Watched) -> None:
        """Show the connections of the server around this application."""
        self.connections.set_function(lambda: len(connections))
        connections.on_cut = lambda reason: self.cut.labels(reason).inc()

    def request(self, route: str, code: int, seconds: float) -> None:
        """A request was answered."""
        self.requests.labels(route, str(code)).inc()
        self.request_seconds.labels(route).observe(seconds)

    def judged(self, status: str) -> None:
        """An image was: `ok`, or the code of its error."""
        self.images.labels(status).inc()

    def scored(self, bank: str, score: float) -> None:
        """An image got its score."""
        self.score.labels(bank).observe(score)

    def warned(self, warnings: Iterable[str]) -> None:
        """An image was judged with these to say about it."""
        for code in {code_of(text) for text in warnings}:
            self.warnings.labels(code).inc()

    def stage(self, name: str, seconds: float) -> None:
        """A stage ended."""
        self.stages.labels(name).observe(seconds)

    def text(self, model: Model | None = None, report: DriftReport | None = None) -> bytes:
        """The exposition, with the figures of the active model as they are now."""
        if model is not None:
            self.keys.labels("image").set(len(model.bank.image))
            self.keys.labels("patch").set(len(model.bank.patch))
            self.entries.set(len(model.bank.entries))
        for name in ("scores", "similarity"):
            signal = getattr(report, name, None)
            if signal is not None:
                self.drift.labels(name).set(signal.distance)
                self.drift_limit.labels(name).set(signal.limit)
        for device in range(torch.cuda.device_count()):
            self.gpu.labels(f"cuda:{device}").set(torch.cuda.memory_reserved(device))
        return generate_latest(self.registry)
