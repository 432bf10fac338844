"""Around every request: its id, its log line, its figures, the headers of its answer."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mrad_service import problems
from mrad_service.errors import AuditError, DrainingError
from mrad_service.telemetry.audit import Audit
from mrad_service.telemetry.metrics import Metrics
from mrad_service.telemetry.tracing import Tracing

log = structlog.get_logger("mrad_service.access")
API_VERSION = "1"
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
QUIET = ("/health/live", "/health/ready", "/metrics")

HEADERS = {
    "X-MRAD-API-Version": API_VERSION,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "geolocation=(), microphone=(), payment=()",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' blob: data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
}


class Observability:
    """The outermost ASGI middleware: whatever fails inside, a problem document comes out."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, audit: Audit, tracing: Tracing | None
    ) -> None:
        self.app, self._metrics, self._audit, self._tracing = app, metrics, audit, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        asked = Headers(scope=scope).get("x-request-id", "")
        request_id = asked if REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.bind_contextvars(request_id=request_id)
        began, status = time.perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            with self._span(scope) as span:
                await self._audited(scope, receive, answer)
                if span is not None:
                    span.set_attribute("http.response.status_code", status)
        except asyncio.CancelledError:  # the drain limit passed
            if status:
                raise
            error = DrainingError("the server stopped before this was done; ask another one")
            await problems.respond(error, scope)(scope, receive, answer)
        except Exception as error:
            log.error("failed", exc_info=error)
            if not status:
                body = problems.describe(
                    500,
                    "internal_error",
                    "the server failed; its log has this request's id",
                    request_id,
                )
                await problems.answer(body, scope)(scope, receive, answer)
        finally:
            self._note(scope, status, time.perf_counter() - began)
            structlog.contextvars.unbind_contextvars("request_id")

    async def _audited(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._audit.begin(scope)
        except AuditError as error:
            await problems.respond(error, scope)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _span(self, scope: Scope) -> AbstractContextManager[Any]:
        if self._tracing is None or scope["path"] in QUIET:
            return nullcontext()
        return self._tracing.request(scope)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route: Any = scope.get("route")
        path = getattr(route, "path", None) or "unmatched"
        self._metrics.request(path, status or 499, seconds)
        self._audit.note(scope, status or 499)
        if scope["path"] in QUIET and status == 200:
            return
        log.info(
            "request",
            method=scope["method"],
            path=scope["path"],
            status=status or 499,
            seconds=round(seconds, 4),
            key=scope["state"].get("key_name") or None,
            client=scope["client"][0] if scope.get("client") else None,
        )
