"""OpenTelemetry (the extra `otel`): a span for each request, one for each stage of its images."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from starlette.types import Scope

from mrad_service.errors import ServiceError
from mrad_service.scheduler.queue import Item


class TracingError(ServiceError):
    """Tracing was asked for, but its packages are not installed."""

    code = "tracing_unavailable"


class Tracing:
    """Where the spans go is said by OTEL_* variables, unless a provider is given."""

    def __init__(self, provider: Any = None) -> None:
        """Raises `TracingError`."""
        try:
            from opentelemetry import context, propagate, trace

            self._provider = provider or _exporting_provider()
        except ImportError as error:
            raise TracingError(
                f"MRAD_TRACING needs the extra: pip install 'mrad[otel]' ({error})"
            ) from error
        self._trace, self._context, self._propagate = trace, context, propagate
        self._tracer = self._provider.get_tracer("mrad.service")

    @contextmanager
    def request(self, scope: Scope) -> Iterator[Any]:
        """The span of a request; a caller's `traceparent` is its parent."""
        headers = {
            key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]
        }
        with self._tracer.start_as_current_span(
            f"{scope['method']} {scope['path']}",
            context=self._propagate.extract(headers),
            kind=self._trace.SpanKind.SERVER,
        ) as span:
            span.set_attribute("http.request.method", scope["method"])
            span.set_attribute("mrad.request_id", scope["state"]["request_id"])
            yield span

    def here(self) -> Any:
        """The context that a job takes along to other threads."""
        return self._context.get_current()

    def stage(self, name: str, seconds: float, items: Sequence[Item]) -> None:
        """A span in every request that had images in it."""
        ended = time.time_ns()
        jobs = {id(item.job): item.job for item in items if item.job.trace is not None}
        for job in jobs.values():
            span = self._tracer.start_span(
                name, context=job.trace, start_time=ended - int(seconds * 1e9)
            )
            span.set_attribute("mrad.batch_images", len(items))
            span.end(ended)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def _exporting_provider() -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": "mrad"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
