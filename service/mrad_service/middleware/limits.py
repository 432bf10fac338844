"""How much may be sent, and for how long: counted while it streams in."""

from __future__ import annotations

import asyncio
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mrad.errors import MRADError
from mrad_service.errors import BodyTooLargeError, QueueFullError, UploadTimeoutError
from mrad_service.problems import respond
from mrad_service.settings import Settings

SLACK = 1 << 20
"""Bytes of form fields and boundaries beside the files."""


class BodyLimits:
    """ASGI middleware. Bytes count until the request is over: that is how long they are held."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self._settings = app, settings
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        body = _Body(self, receive, self._limit(scope["path"]), self._settings.upload_seconds)
        try:
            body.announce(headers.get("content-length"), "transfer-encoding" in headers)
        except MRADError as error:
            refusal = respond(error, scope)
            refusal.headers["Connection"] = "close"
            await refusal(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start" and not body.complete:
                # Nobody reads the rest: without this it would be taken in and thrown away.
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        try:
            await self.app(scope, body.receive, answer)
        finally:
            self._held -= body.count

    def _limit(self, path: str) -> int:
        """An addition to the memory is one image and one mask; the rest may be many images."""
        settings = self._settings
        if path.startswith("/v1/memory"):
            return min(settings.max_body_bytes, 2 * settings.max_file_bytes + SLACK)
        return settings.max_body_bytes

    def hold(self, count: int) -> None:
        """More bytes came. Raises `QueueFullError` when all requests together hold too many."""
        self._held += count
        if self._held > self._settings.max_inflight_bytes:
            raise QueueFullError("requests in flight hold too many bytes; try again", 1.0)


class _Body:
    def __init__(self, limits: BodyLimits, receive: Receive, limit: int, seconds: float) -> None:
        self._limits, self._receive, self._limit = limits, receive, limit
        self._until = time.monotonic() + seconds
        self.complete = False
        self.count = 0

    def announce(self, length: str | None, chunked: bool) -> None:
        """Refuse by the header alone, before a byte is read."""
        self.complete = not chunked and length in (None, "0")
        if length is not None and length.isdigit() and int(length) > self._limit:
            raise self._too_large()

    async def receive(self) -> Message:
        """As ASGI's. Raises `BodyTooLargeError`, `UploadTimeoutError`, `QueueFullError`."""
        if self.complete:
            return await self._receive()
        try:
            left = max(0.0, self._until - time.monotonic())
            message = await asyncio.wait_for(self._receive(), left)
        except TimeoutError:
            raise UploadTimeoutError("the body did not arrive in time") from None
        size = len(message.get("body", b""))
        self.complete = not message.get("more_body", False)
        self.count += size
        self._limits.hold(size)
        if self.count > self._limit:
            raise self._too_large()
        return message

    def _too_large(self) -> BodyTooLargeError:
        return BodyTooLargeError(f"the body has more than {self._limit} bytes")
